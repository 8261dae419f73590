"""The main job in one function: what ``lyrics-tiny`` sees in drawn scenes or in a user's image, and a report of it.

``dialogue`` asks about them, ``twins`` asks what only the pixels tell, ``swap`` exchanges a part, ``training`` takes
steps of both stages, ``page`` writes the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lyrics.core.masks import Mask
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject, Turn
from lyrics.workflows.quickstart.dialogue import conversation, in_pixels, referring
from lyrics.workflows.quickstart.page import page
from lyrics.workflows.quickstart.swap import OVERRIDES, annotated, difference
from lyrics.workflows.quickstart.training import few_steps
from lyrics.workflows.quickstart.twins import ask_twins, draw_twins

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

SCENES = 6
SEED = 0
#: What the detector calls whatever is written.
_WORD = "word"
RESULT, REPORT = "result.json", "report.html"
#: Shorter images are enlarged before boxes and labels are drawn.
_DRAWN_SIDE_PX = 384
_BATCH = 8


def run(pictures: Sequence[Path], out: Path, *, progress: Callable[[str], None]) -> dict[str, Any]:
    """Show ``lyrics-tiny`` some images (scenes of the split ``test`` when there are none).

    Write ``result.json`` and ``report.html``.

    Raises ``ImageError`` for an image that cannot be used, ``OSError`` when ``out`` cannot be written.
    """
    import torch

    from lyrics.core.loading import build_model
    from lyrics.core.pictures.images import open_image

    opened = [(str(path), open_image(path)) for path in pictures]
    out.mkdir(parents=True, exist_ok=True)
    truth: list[tuple[DetectedObject, ...]] = []
    questions: list[tuple[Turn, ...]] = []
    if not opened:
        progress(f"drawing {SCENES} scenes that lyrics-tiny has not seen ...")
        opened, truth, questions = _scenes(out)
    progress("composing lyrics-tiny ...")
    torch.manual_seed(SEED)
    model = build_model("lyrics-tiny").eval()
    progress("looking ...")
    encoded = [
        model.encode([picture for _, picture in opened[first : first + _BATCH]])
        for first in range(0, len(opened), _BATCH)
    ]
    refinements = [refinement for one in encoded for refinement in one.refinements]
    progress("talking about what it sees ...")
    questions = [referring(seen) for seen in refinements] if pictures else [*questions]
    if not pictures:
        questions[0] = (*referring(refinements[0]), *questions[0])
    talks = [conversation(model, picture, asked) for (_, picture), asked in zip(opened, questions, strict=True)]
    result = {
        "pictures": [
            {**_seen(*one, refinement), "conversation": talk}
            for one, refinement, talk in zip(opened, refinements, talks, strict=True)
        ],
        "soft_tokens": list(encoded[0].soft_tokens_PQD.shape[1:]),
        "spatial_text": encoded[0].spatial_texts[0],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "twins": None if pictures else _twins(model, out, progress),
        "swap": _swapped(opened, truth, refinements, progress) if truth else None,
        "training": _trained(progress),
        "report": str(out / REPORT),
        "written": str(out / RESULT),
    }
    drawn = [_drawn(picture, found) for (_, picture), found in zip(opened, refinements, strict=True)]
    (out / REPORT).write_text(page(result, drawn, own=bool(pictures)), encoding="utf-8")
    (out / RESULT).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _scenes(
    out: Path,
) -> tuple[list[tuple[str, Image.Image]], list[tuple[DetectedObject, ...]], list[tuple[Turn, ...]]]:
    """Return images with their paths.

    What is drawn in each, words under the name that the detector has for them; questions with answers.
    """
    from lyrics.core.data.build import build_dataset
    from lyrics.core.geometry import Box

    data = build_dataset("lyrics-vl/scenes", {"split": "test", "scenes": SCENES, "task": "dialogue"})
    found, truth, questions = [], [], []
    for row in range(SCENES):
        sample = data[row]
        path, picture = out / f"scene-{row}.png", data.picture(sample)
        assert picture is not None
        picture.save(path)
        found.append((str(path), picture))
        words = [DetectedObject(_WORD, Box(*word["box_norm"]), 1.0) for word in sample.extra["words"]]
        truth.append((*sample.objects, *words))
        questions.append(tuple(in_pixels(turn, picture.size) for turn in sample.turns))
    return found, truth, questions


def _twins(model: LyricsModel, out: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    progress("asking what only the pixels tell ...")
    return ask_twins(model, *draw_twins(out, SCENES))


def _swapped(
    opened: Sequence[tuple[str, Image.Image]],
    truth: Sequence[Sequence[DetectedObject]],
    seen: Sequence[Refinement],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    progress("swapping the detector: the annotations, through refiner.detector=cached ...")
    others = annotated([picture for _, picture in opened], truth)
    differences = [difference(one, other) for one, other in zip(seen, others, strict=True)]
    return {
        "overrides": OVERRIDES,
        "pictures": [{"picture": name, **one} for (name, _), one in zip(opened, differences, strict=True)],
    }


def _trained(progress: Callable[[str], None]) -> dict[str, Any]:
    progress("training: some steps of stage 1 and of stage 2 ...")
    return few_steps()


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
    """Return boxes, masks and labels, on an image large enough to read them."""
    times = -(-_DRAWN_SIDE_PX // max(picture.size))
    if times == 1:
        return refinement.draw(picture)
    large = picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)
    objects = tuple(replace(found, mask=_enlarged(found.mask, times)) for found in refinement.objects)
    return replace(refinement, size_px=large.size, objects=objects).draw(large)


def _enlarged(mask: Mask | None, times: int) -> Mask | None:
    return None if mask is None else Mask.from_array(mask.to_array().repeat(times, 0).repeat(times, 1))
