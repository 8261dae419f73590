"""The page in a real browser: an image is dropped, questions are asked, a box is drawn, parts are exchanged."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright import sync_api as playwright

import lyrics
from lyrics.core.model import LyricsModel
from lyrics.workflows.demo.page import build_page, launch
from lyrics.workflows.demo.parts import Parts
from lyrics.workflows.demo.scenes import scenes
from lyrics.workflows.serve.hosting import bound
from lyrics.workflows.serve.worker import Worker
from tests.core.small import drawn

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)")
#: Texts on a page whose contrast with what they stand on is less than WCAG 2 asks for at level AA: 4.5, or 3 where they
#: are large. What is disabled may be pale.
PALE = """() => {
  const dot = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    dot.clearRect(0, 0, 1, 1);
    dot.fillStyle = color;
    dot.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat([1]);
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((part) => part / 255).map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pale = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const holder = texts.currentNode.parentElement;
    const said = texts.currentNode.textContent.trim();
    const box = holder.getBoundingClientRect();
    if (!said || box.width < 2 || box.height < 2) continue;
    if (holder.closest("svg, script, style, :disabled, [aria-disabled=true]")) continue;
    if (!holder.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const layers = [];
    for (let one = holder; one; one = one.parentElement) {
      const { backgroundColor, opacity } = getComputedStyle(one);
      layers.unshift([rgba(backgroundColor), Number(opacity)]);
    }
    const style = getComputedStyle(holder);
    // What shows at last, with or without ink: an element is painted whole, and then let shine through.
    const painted = (depth, below, ink) => {
      if (depth === layers.length) return ink ? over(ink, below) : below;
      const [color, opacity] = layers[depth];
      const whole = painted(depth + 1, over(color, below), ink);
      return over([...whole.slice(0, 3), opacity], below);
    };
    const white = [255, 255, 255, 1];
    const [low, high] = [painted(0, white, rgba(style.color)), painted(0, white, null)]
      .map(light).sort((a, b) => a - b);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const contrast = (high + 0.05) / (low + 0.05);
    count += 1;
    if (contrast < (large ? 3 : 4.5)) pale.push(`${said.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return { count, pale };
}"""
#: A machine with other things to do takes its time.
PATIENCE_MS = 180_000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    model = lyrics.load_model("lyrics-tiny")

    def load(overrides: Any) -> LyricsModel:
        return lyrics.load_model("lyrics-tiny", overrides=overrides) if overrides else model

    worker = Worker(model)
    worker.start()
    page = build_page(worker, Parts(worker, load), "lyrics-tiny", scenes(2))
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    yield launch(page, "127.0.0.1", port)
    page.close(verbose=False)
    worker.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as found:
        # Without a sandbox of its own, which root cannot have.
        one = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


class Visit:
    """A page that is open, with what it complained of and whom else it asked."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        self.page.on("console", lambda one: self.complaints.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda one: self.complaints.append(str(one)))
        self.page.on("request", self._asked)
        self.page.goto(address)
        self.page.wait_for_selector("#view .lyrics-view p")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.strangers.append(request.url)

    def example(self) -> None:
        self.page.locator(".gallery-item").first.click()
        self.page.wait_for_selector("#view .row")

    def ask(self, question: str | None = None) -> str:
        """What is answered."""
        before = self.page.locator("#said .bot.message").count()
        if question is not None:
            self.page.fill("#question textarea", question)
        self.page.click("#ask")
        self.page.wait_for_selector(f"#said .bot.message >> nth={before}")
        self.page.wait_for_function("document.querySelector('#question textarea').value === ''")
        return str(self.page.locator("#said .bot.message").nth(before).inner_text()).strip()

    def check_contrast(self) -> None:
        found = self.page.evaluate(PALE)
        assert found["count"] > 15
        assert found["pale"] == []

    def picture(self, name: str) -> None:
        """A screenshot, where ``LYRICS_SCREENSHOTS`` names a folder for them."""
        if folder := os.environ.get("LYRICS_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    found = Visit(browser, address)
    yield found
    found.context.close()
    assert found.complaints == []
    assert found.strangers == []


def test_an_image_is_seen_asked_about_and_its_parts_exchanged(visit: Visit) -> None:
    """The whole way: look, ask, light up, draw a box, ask about that, no masks, and the same as a command."""
    page = visit.page
    visit.example()
    assert page.locator("#view .row .tag").all_inner_texts() == ["diamond"]
    assert page.locator("#view .chip").count() == 1
    page.click("#view [data-layer=masks]")
    assert page.locator("#view image.mask").count() == 1
    visit.picture("masks")
    assert visit.ask("Where is the diamond?") == "diamond"
    page.wait_for_selector("#view h3:has-text('Answer: diamond')")
    assert page.locator("#view [data-layer=answer]").get_attribute("aria-pressed") == "true"
    assert "seen by tiny-detector as 'diamond', score 0.9" in page.locator("#view .row").first.inner_text()
    thing = page.locator("#view .thing")
    assert "lit" not in thing.get_attribute("class")
    page.hover("#view .row >> nth=0")
    assert "lit" in thing.get_attribute("class")
    visit.picture("answer")
    page.hover("#question")
    assert "lit" not in thing.get_attribute("class")

    page.click("#view [data-layer=boxes]")
    frame = page.locator("#view .lyrics-view svg image").bounding_box()
    # The diamond, in shares of the image.
    corners = [
        (frame["x"] + share * frame["width"], frame["y"] + high * frame["height"])
        for share, high in ((0.2668, 0.2359), (0.466, 0.4964))
    ]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#question textarea').value.includes('<box')")
    assert page.input_value("#question textarea") == "What is at <box 68 45 119 95>?"
    assert visit.ask() == "a diamond"

    page.click("#segmenter input")
    page.locator("[role=option]:has-text('none')").click()
    page.wait_for_selector("#view h3:has-text('masks: none')")
    assert page.locator("#view .row").count() == 1
    page.click("#view [data-layer=masks]")
    assert page.locator("#view image.mask").count() == 0
    assert visit.ask("Where is the diamond?") == "diamond"
    page.click("text=The same as a command")
    page.wait_for_selector("#shell .cm-content:has-text('lyrics ask')")
    assert "--set refiner.segmenter=null" in page.locator("#shell .cm-content").inner_text()
    assert "'refiner.segmenter': None" in page.locator("#python .cm-content").inner_text()
    visit.picture("swapped")
    visit.check_contrast()
    other = Visit(visit.context.browser, page.url)
    other.page.wait_for_function("document.querySelector('#segmenter input').value === 'none'")
    other.context.close()
    page.click("#segmenter input")
    page.locator("[role=option]:has-text('tiny-segmenter')").click()
    page.wait_for_selector("#view h3:has-text('masks: tiny-segmenter')")


def test_an_image_of_ones_own(visit: Visit, tmp_path: Path) -> None:
    """Uploaded; what cannot be asked is said, and nothing that is typed becomes markup."""
    drawn(640, 400).save(tmp_path / "own.png")
    page = visit.page
    page.set_input_files("#picture input[type=file]", str(tmp_path / "own.png"))
    page.wait_for_selector("#view .lyrics-view svg")
    assert page.locator("#view .lyrics-view svg").get_attribute("viewBox") == "0 0 640 400"
    page.fill("#question textarea", "What is at <box 0 0 9000 9000>?")
    page.click("#ask")
    page.wait_for_selector("text=does not lie in the image, which is 640 x 400 pixels")
    visit.ask("<img src=x onerror=alert(1)> **what** is _this_?")
    said = page.locator("#said .user.message").last
    assert said.inner_text().strip() == "<img src=x onerror=alert(1)> **what** is _this_?"
    assert page.locator("#said img[src=x]").count() == 0


def test_what_is_too_pale_is_found(browser: Any) -> None:
    """The measure of the tests below."""
    page = browser.new_page()
    gray = "<p style='color: #767676'>enough</p><p style='color: #777777'>little</p><h1 style='color: #888'>large</h1>"
    veiled = (
        "<div style='background: #000; opacity: 0.5'><p style='color: #fff'>veiled</p></div><button disabled>x</button>"
    )
    page.set_content(gray + veiled)
    found = page.evaluate(PALE)
    page.close()
    assert found["count"] == 4
    assert [one.partition(":")[0] for one in found["pale"]] == ["little", "veiled"]


def test_the_keyboard_reaches_everything(visit: Visit) -> None:
    page = visit.page
    visit.example()
    page.focus("#view [data-layer=boxes]")
    names = []
    for _ in range(5):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent || ''"))
    assert names[0] == "masks"
    assert any("score" in name for name in names[1:])
    page.locator("#view .row").nth(0).focus()
    assert "lit" in page.locator("#view .thing").first.get_attribute("class")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#question textarea').value.includes('<box')")
    page.focus("#question textarea")
    page.keyboard.press("Enter")
    page.wait_for_selector("#said .bot.message")


def test_a_telephone_in_the_dark(browser: Any, address: str) -> None:
    """Nothing is wider than the screen."""
    visit = Visit(browser, address, viewport={"width": 375, "height": 740}, color_scheme="dark", has_touch=True)
    visit.example()
    visit.ask("Where is the diamond?")
    visit.page.wait_for_selector("#view h3:has-text('Answer')")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
    box = visit.page.locator("#view .lyrics-view svg").bounding_box()
    assert 0 <= box["x"] < box["x"] + box["width"] <= 375
    visit.picture("telephone")
    visit.check_contrast()
    visit.context.close()
    assert (visit.complaints, visit.strangers) == ([], [])


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/static/../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=C:\\Windows\\win.ini",
        "/gradio_api/file=" + lyrics.__file__.replace("__init__.py", "cli/__init__.py"),
    ],
)
def test_no_file_of_this_machine_is_given_out(address: str, path: str) -> None:
    request = urllib.request.Request(address.rstrip("/") + path)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read().decode(errors="replace")
    except OSError as error:
        text = str(error)
    assert "root:" not in text
    assert "typer.Typer(" not in text
