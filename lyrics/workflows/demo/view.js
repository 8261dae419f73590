// Draws what view.py says: the image, boxes and masks over it, and lists of things that light up on the image.
const SVG = "http://www.w3.org/2000/svg";
const root = element.querySelector(".lyrics-view");
let layer = "boxes";
let size = [1, 1];

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function draw(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function corners(box) {
  return { x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] };
}

function light(key, on) {
  for (const one of root.querySelectorAll(`[data-key="${key}"]`)) one.classList.toggle("lit", on);
}

function lights(node, key) {
  for (const event of ["mouseenter", "focus"]) node.addEventListener(event, () => light(key, true));
  for (const event of ["mouseleave", "blur"]) node.addEventListener(event, () => light(key, false));
}

function boxed(found, key, color, dashed) {
  const group = draw("g", { class: "thing", "data-key": key });
  const rect = draw("rect", {
    ...corners(found.box),
    fill: "transparent",
    stroke: color,
    "vector-effect": "non-scaling-stroke",
  });
  if (dashed) rect.setAttribute("stroke-dasharray", "6 4");
  const title = draw("title", {});
  title.textContent = `${found.tag}: ${found.evidence}`;
  group.append(rect, title);
  lights(group, key);
  return group;
}

function row(found, key, color) {
  const line = make("button", {
    type: "button",
    class: "row",
    "data-key": key,
    title: "Put this box into the question",
  });
  const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.background = color;
  line.append(swatch, make("span", { class: "tag" }, found.tag), make("span", { class: "evidence" }, found.evidence));
  lights(line, key);
  line.addEventListener("click", () => send(found.box));
  return make("li", {}, line);
}

function send(box) {
  trigger("box_drawn", { box: box.map((value) => Math.round(value)) });
}

function listed(title, rows, empty) {
  const list = make("ul", {}, ...rows);
  return make("section", {}, make("h3", {}, title), rows.length ? list : make("p", { class: "evidence" }, empty));
}

function drags(svg) {
  let start = null;
  let rect = null;
  const at = (event) => {
    // The image may be narrower or lower than the element it is drawn in.
    const here = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [here.x, here.y].map((value, i) => Math.min(Math.max(value, 0), size[i]));
  };
  const box = (here) =>
    [0, 1].map((i) => Math.min(start[i], here[i])).concat([0, 1].map((i) => Math.max(start[i], here[i])));
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = at(event);
    rect = draw("rect", { class: "drawn", "vector-effect": "non-scaling-stroke" });
    svg.querySelector(".drawn")?.remove();
    svg.append(rect);
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!start) return;
    for (const [name, value] of Object.entries(corners(box(at(event))))) rect.setAttribute(name, value);
  });
  const end = (event) => {
    if (!start) return;
    const found = box(at(event)).map((value) => Math.round(value));
    start = null;
    if (event.type === "pointerup" && found[2] - found[0] >= 2 && found[3] - found[1] >= 2) send(found);
    else rect.remove();
  };
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
}

function layers(shown) {
  const bar = make("div", { class: "layers", role: "group", "aria-label": "What is drawn" });
  for (const name of ["boxes", "masks", "answer"]) {
    const chosen = layer === name;
    const button = make("button", { type: "button", "aria-pressed": String(chosen), "data-layer": name }, name);
    if (name === "answer" && !shown.answer) button.disabled = true;
    button.addEventListener("click", () => {
      layer = name;
      render();
      root.querySelector(`[data-layer="${name}"]`)?.focus();
    });
    bar.append(button);
  }
  return bar;
}

function render() {
  const shown = props.value;
  root.replaceChildren();
  if (!shown || !shown.image) {
    root.append(
      make(
        "p",
        { class: "evidence" },
        "Drop an image, or take one of the examples: what the model sees appears here.",
      ),
    );
    return;
  }
  size = [shown.width, shown.height];
  if (layer === "answer" && !shown.answer) layer = "boxes";
  const svg = draw("svg", {
    viewBox: `0 0 ${shown.width} ${shown.height}`,
    role: "img",
    "aria-label": "The image with what was found in it",
  });
  svg.append(
    draw("image", { href: shown.image, width: shown.width, height: shown.height, preserveAspectRatio: "none" }),
  );
  const answer = shown.answer ? shown.answer.objects : [];
  const answerColor = (found) => (found.supported ? "#0b6e75" : "#b3261e");
  if (layer === "answer")
    answer.forEach((found, i) => svg.append(boxed(found, `a${i}`, answerColor(found), !found.supported)));
  else
    shown.objects.forEach((found, i) => {
      if (layer === "masks" && found.mask)
        svg.append(
          draw("image", {
            href: found.mask,
            width: shown.width,
            height: shown.height,
            preserveAspectRatio: "none",
            class: "mask",
            "data-key": `o${i}`,
          }),
        );
      svg.append(boxed(found, `o${i}`, layer === "masks" ? "transparent" : found.color));
    });
  drags(svg);
  const tags = shown.tags.map((tag) => make("li", { class: "chip" }, `${tag.name} ${tag.score.toFixed(2)}`));
  root.append(
    layers(shown),
    make("div", { class: "frame" }, svg),
    make("p", { class: "hint" }, "Drag over the image to put a box into the question."),
  );
  if (shown.answer) {
    const sure = shown.answer.sure === null ? "" : `, ${Math.round(100 * shown.answer.sure)} % sure of each word`;
    root.append(
      listed(
        `Answer: ${shown.answer.text || "(nothing)"}${sure}`,
        answer.map((found, i) => row(found, `a${i}`, answerColor(found))),
        "It points at nothing.",
      ),
    );
  }
  root.append(
    listed(
      `Objects (${shown.parts.detector}, masks: ${shown.parts.segmenter})`,
      shown.objects.map((found, i) => row(found, `o${i}`, found.color)),
      "Nothing was found.",
    ),
    make(
      "section",
      {},
      make("h3", {}, `Tags (${shown.parts.tagger})`),
      tags.length ? make("ul", { class: "chips" }, ...tags) : make("p", { class: "evidence" }, "None."),
    ),
  );
}

watch("value", () => {
  if (props.value?.answer) layer = "answer";
  render();
});
render();
