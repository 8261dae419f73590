"""The main job in one function: what ``lyrics-tiny`` sees in drawn scenes or in a user's picture, and a report of it."""

from __future__ import annotations

import base64
import html
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.masks import Mask
from lyrics.core.refinement import Refinement

QUESTION = "What is in the picture?"
SCENES = 6
SEED = 0
RESULT, REPORT = "result.json", "report.html"
# Nothing on the page may run or be fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """body{font:16px/1.45 sans-serif;margin:1rem auto;max-width:60rem;padding:0 1rem;color:#222}
figure{display:inline-block;vertical-align:top;margin:0 1rem 1.5rem 0;width:min(18rem,100%)}img{width:100%;image-rendering:auto}
table{border-collapse:collapse;width:100%;font-size:.85rem}
td,th{text-align:left;border-top:1px solid #ddd;padding:.1rem .3rem}code{background:#f2f2f2}"""
#: Shorter pictures are enlarged before boxes and labels are drawn.
_DRAWN_SIDE_PX = 384
_SHOWN_SIDE_PX = 600
_BATCH = 8


def run(pictures: Sequence[Path], out: Path, *, progress: Callable[[str], None]) -> dict[str, Any]:
    """Show ``lyrics-tiny`` some pictures (scenes of the split ``test`` when there are none); write ``result.json`` and ``report.html``.

    Raises ``ImageError`` for a picture that cannot be used, ``OSError`` when ``out`` cannot be written.
    """
    import torch

    from lyrics.core.build import build_model
    from lyrics.core.images import open_image

    opened = [(str(path), open_image(path)) for path in pictures]
    out.mkdir(parents=True, exist_ok=True)
    if not opened:
        progress(f"drawing {SCENES} scenes that the experts have not seen ...")
        opened = _scenes(out)
    progress("composing lyrics-tiny with its trained experts ...")
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "language_model.options.checkpoint is null")  # the report says so
        model = build_model("lyrics-tiny").eval()
    progress("looking ...")
    encoded = [
        model.encode([picture for _, picture in opened[first : first + _BATCH]])
        for first in range(0, len(opened), _BATCH)
    ]
    refinements = [refinement for one in encoded for refinement in one.refinements]
    answer = model.generate([opened[0][1]], [QUESTION], max_new_tokens=16)[0]
    result = {
        "pictures": [_seen(*one, refinement) for one, refinement in zip(opened, refinements, strict=True)],
        "soft_tokens": list(encoded[0].soft_tokens_PQD.shape[1:]),
        "spatial_text": encoded[0].spatial_texts[0],
        "question": QUESTION,
        "answer": answer.text,
        "trained": ["image_encoder", "refiner.tagger", "refiner.detector", "refiner.segmenter"],
        "random": ["query_transformer", "projection", "language_model"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "report": str(out / REPORT),
        "written": str(out / RESULT),
    }
    drawn = [_drawn(picture, found) for (_, picture), found in zip(opened, refinements, strict=True)]
    (out / REPORT).write_text(page(result, drawn, own=bool(pictures)), encoding="utf-8")
    (out / RESULT).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _scenes(out: Path) -> list[tuple[str, Image.Image]]:
    from lyrics.core.data.build import build_dataset

    data = build_dataset("lyrics-vl/scenes", {"split": "test", "scenes": SCENES})
    found = []
    for row in range(SCENES):
        path, picture = out / f"scene-{row}.png", data.picture(data[row])
        picture.save(path)
        found.append((str(path), picture))
    return found


def _seen(name: str, picture: Image.Image, refinement: Refinement) -> dict[str, Any]:
    return {
        "picture": name,
        "width": picture.width,
        "height": picture.height,
        "tags": [{"name": tag.name, "score": round(tag.score, 4)} for tag in refinement.tags],
        "objects": [
            {
                "tag": found.tag,
                "score": round(found.score, 4),
                "box_px": [round(value, 1) for value in found.box_norm.to_px(picture.size)],
                "mask_area_px": found.mask.area_px if found.mask is not None else 0,
            }
            for found in refinement.objects
        ],
    }


def _drawn(picture: Image.Image, refinement: Refinement) -> Image.Image:
    """Boxes, masks and labels, on a picture large enough to read them."""
    times = -(-_DRAWN_SIDE_PX // max(picture.size))
    if times == 1:
        return refinement.draw(picture)
    large = picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)
    objects = tuple(replace(found, mask=_enlarged(found.mask, times)) for found in refinement.objects)
    return replace(refinement, size_px=large.size, objects=objects).draw(large)


def _enlarged(mask: Mask | None, times: int) -> Mask | None:
    return None if mask is None else Mask.from_array(mask.to_array().repeat(times, 0).repeat(times, 1))


def page(result: dict[str, Any], drawn: Sequence[Image.Image], *, own: bool) -> str:
    """One HTML page that needs no other file and no network, and is readable on a phone."""
    figures = "\n".join(_figure(one, picture) for one, picture in zip(result["pictures"], drawn, strict=True))
    warning = (
        "<p><strong>The experts know drawn shapes and words only.</strong> What they say of a photograph means nothing.</p>"
        if own
        else "<p>Scenes of the test split, which the experts never saw in training.</p>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>lyrics quickstart</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>What lyrics-tiny sees</h1>{warning}\n{figures}\n<h2>What the language model reads</h2>"
        f"<p>Soft tokens: {result['soft_tokens'][0]} of width {result['soft_tokens'][1]}, and of the first picture this text:</p>"
        f"<p><code>{html.escape(result['spatial_text'])}</code></p>"
        "<p>The four experts are trained and ship with the package. The query transformer and the language model are not trained yet: "
        "they run, and their answers mean nothing.</p></body></html>\n"
    )


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
    return f'<figure><img alt="{name}" src="data:image/{kind};base64,{data}"><figcaption>{name}</figcaption>{table}</figure>'
