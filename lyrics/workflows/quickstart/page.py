"""The quickstart's report: one HTML page that needs no other file and no network, and is readable on a phone."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lyrics.core.pictures.images import open_image

# Nothing on the page may run or be fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """body{font:16px/1.45 sans-serif;margin:1rem auto;max-width:60rem;padding:0 1rem;color:#222}
figure{display:inline-block;vertical-align:top;margin:0 1rem 1.5rem 0;width:min(18rem,100%)}
img{width:100%;image-rendering:auto}img.part{width:3rem;vertical-align:middle}
table{border-collapse:collapse;width:100%;font-size:.85rem}
dl{font-size:.9rem}dd{margin:0 0 .3rem 1rem}small{color:#777}
td,th{text-align:left;border-top:1px solid #ddd;padding:.1rem .3rem}code{background:#f2f2f2}"""
_SHOWN_SIDE_PX = 600
_BOX = re.compile(r"<box ([0-9 ]+)>")
_PART_SIDE_PX = 96


def page(result: dict[str, Any], drawn: Sequence[Image.Image], *, own: bool) -> str:
    """Return one HTML page that needs no other file and no network, and is readable on a phone."""
    figures = "\n".join(_figure(one, picture) for one, picture in zip(result["pictures"], drawn, strict=True))
    warning = (
        "<p><strong>lyrics-tiny knows drawn shapes and words only.</strong> What it says of a photograph means "
        "nothing.</p>"
        if own
        else "<p>Scenes of the test split, which were in no training.</p>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>lyrics quickstart</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>What lyrics-tiny sees</h1>{warning}"
        "<p>Names, boxes and masks are the experts'; the answers are the language model's: mostly right about what is "
        "there, how many, where, and about the ground, and often wrong about which of several things looks how, and "
        f"about what is written.</p>\n{figures}\n<h2>What the language model reads</h2>"
        f"<p>Soft tokens: {result['soft_tokens'][0]} of width {result['soft_tokens'][1]}, and of the first image "
        f"this text:</p><p><code>{html.escape(result['spatial_text'])}</code></p>"
        f"{_twins(result['twins'])}{_swap(result['swap'])}{_training(result['training'])}</body></html>\n"
    )


def _twins(twins: Mapping[str, Any] | None) -> str:
    """The answers of twins, one figure a drawing; what was wrong is said as plainly as what was right."""
    if twins is None:
        return ""
    figures = []
    for path, rows in groupby(twins["answers"], key=lambda row: row["picture"]):
        shown = "".join(
            f"<tr><td>{_question(row['question'], path)}</td><td>{html.escape(row['truth'])}</td>"
            f"{_judged(row['answer'], row['right'])}"
            f"{_judged(row['with_the_twins_soft_tokens'], row['right_with_the_twins'])}</tr>"
            for row in rows
        )
        name = html.escape(Path(path).name)
        data = base64.b64encode(Path(path).read_bytes()).decode()
        figures.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption><table><tr>'
            f"<th>question</th><th>true</th><th>answer</th><th>with the twin's soft tokens</th></tr>{shown}</table>"
            "</figure>"
        )
    pixels, text = twins["right"]["pixels"], twins["right"]["text"]
    return (
        f"<h2>What only the pixels tell</h2><p>Twins have the same tags and boxes, and look different. "
        f"Of {pixels['asked']} questions about looks lyrics-tiny answers {pixels['own']} rightly, "
        f"and {pixels['twin']} with the soft tokens of the twin, all else being equal; of "
        f"{text['asked']} questions that the text of tags and boxes answers, {text['own']} and "
        f"{text['twin']}.</p>{''.join(figures)}"
    )


def _judged(answer: str, right: bool) -> str:
    return f"<td>{html.escape(answer)} {'&#10003;' if right else '&#10007;'}</td>"


def _swap(swap: Mapping[str, Any] | None) -> str:
    if swap is None:
        return ""
    changed = [one for one in swap["pictures"] if one["trained detector alone"] or one["annotations alone"]]
    rows = "".join(f"<li>{html.escape(difference_text(one))}</li>" for one in changed)
    same = sum(one["both"] for one in swap["pictures"])
    settings = " ".join(f"--set {path}={slot['use']}" for path, slot in swap["overrides"].items())
    return (
        "<h2>Another detector</h2><p>A part is swapped by naming another one. Here the annotations take the places of "
        f"tagger and detector (<code>{html.escape(settings)}</code>), so what differs is what the trained ones missed "
        f"or made up. {same} objects are the same in both"
        + (f"; the differences:</p><ul>{rows}</ul>" if changed else ", and nothing differs.</p>")
    )


def difference_text(one: Mapping[str, Any]) -> str:
    """What the trained detector and the annotations say of an image, in words: ``scene-1.png: only ...``."""
    parts = [
        f"{who} alone: {', '.join(names)}"
        for who, names in (
            ("the trained detector", one["trained detector alone"]),
            ("the annotations", one["annotations alone"]),
        )
        if names
    ]
    return f"{Path(one['picture']).name}: {one['both']} objects the same; {'; '.join(parts)}"


def _training(training: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    tables = []
    for stage, steps in training.items():
        # msp has nothing masked in some batches, and no loss then.
        names = list(dict.fromkeys(name for step in steps for name in step))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            f"<tr><td>{number}</td>{''.join(_loss(step, name) for name in names)}</tr>"
            for number, step in enumerate(steps, 1)
        )
        tables.append(f"<h3>{html.escape(stage)}</h3><table><tr><th>step</th>{head}</tr>{rows}</table>")
    return (
        "<h2>Training works here</h2><p>The first steps of both stages with a new query transformer; the losses have "
        "hardly begun to fall. "
        "<code>lyrics pretrain tiny-stage1</code> goes on.</p>" + "".join(tables)
    )


def _loss(step: Mapping[str, float], name: str) -> str:
    return f"<td>{step[name]:.3f}</td>" if name in step else "<td></td>"


def _figure(one: dict[str, Any], picture: Image.Image) -> str:
    buffer, kind = io.BytesIO(), "png"
    if max(picture.size) > _SHOWN_SIDE_PX:  # a photograph, which need not be as large as it came
        picture.thumbnail((_SHOWN_SIDE_PX, _SHOWN_SIDE_PX))
        kind = "jpeg"
    picture.save(buffer, kind)
    rows = "".join(
        f"<tr><td>{html.escape(found['tag'])}</td><td>{found['score']:.2f}</td>"
        f"<td>{', '.join(f'{value:.0f}' for value in found['box_px'])}</td></tr>"
        for found in one["objects"]
    )
    table = (
        f"<table><tr><th>object</th><th>score</th><th>box, px</th></tr>{rows}</table>"
        if rows
        else "<p>nothing found</p>"
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    name = html.escape(Path(one["picture"]).name)
    return (
        f'<figure><img alt="{name}" src="data:image/{kind};base64,{data}"><figcaption>{name}</figcaption>{table}'
        f"{_conversation(one['conversation'], one['picture'])}</figure>"
    )


def _conversation(turns: Sequence[Mapping[str, Any]], path: str) -> str:
    rows = []
    for turn in turns:
        boxes = "".join(f" ({', '.join(f'{value:.0f}' for value in seen['box_px'])})" for seen in turn["objects"])
        truth = f" <small>true: {html.escape(turn['truth'])}</small>" if turn["truth"] else ""
        answer = html.escape(turn["plain_text"] or turn["text"])
        rows.append(f"<dt>{_question(turn['question'], path)}</dt><dd><b>{answer}</b>{boxes}{truth}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _question(text: str, path: str) -> str:
    """A question whose boxes are drawn: in the place of each stands that part of the image."""
    pieces = _BOX.split(text)  # what is between boxes, and their corners
    return "".join(_part(path, piece) if place % 2 else html.escape(piece) for place, piece in enumerate(pieces))


def _part(path: str, corners: str) -> str:
    """The surroundings of a box of an image, the box outlined in dark and light."""
    image = open_image(path)
    x1, y1, x2, y2 = (int(number) for number in corners.split())
    margin = 4 + max(x2 - x1, y2 - y1) // 3
    left, top = max(0, x1 - margin), max(0, y1 - margin)
    part = image.crop((left, top, min(image.width, x2 + margin), min(image.height, y2 + margin)))
    times = _PART_SIDE_PX / max(part.size)
    shown = part.resize((max(1, round(part.width * times)), max(1, round(part.height * times))))
    box = [round(times * (edge - start)) for edge, start in zip((x1, y1, x2, y2), (left, top, left, top), strict=True)]
    pen = ImageDraw.Draw(shown)
    pen.rectangle(box, outline="black", width=4)
    pen.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline="white", width=2)
    buffer = io.BytesIO()
    shown.save(buffer, "png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="part" alt="the box {corners}" src="data:image/png;base64,{data}">'
