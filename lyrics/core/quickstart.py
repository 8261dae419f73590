"""The main job in one function: compose ``lyrics-tiny`` and run a picture through every part of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "What is in the picture?"
SEED = 0
# Random weights are sure of nothing; with thresholds at zero every part has something to do.
SEE_ANYTHING = {"refiner.tagger.options.threshold": 0.0, "refiner.detector.options.score_threshold": 0.0}


def run(image: Path | None, out: Path, *, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``lyrics-tiny`` with random weights on ``image`` (one is drawn when None) and write ``result.json`` to ``out``.

    Raises ``ImageError`` for a picture that cannot be used, ``OSError`` when ``out`` cannot be written.
    """
    import torch

    from lyrics.core.build import build_model
    from lyrics.core.images import open_image

    picture = open_image(image) if image is not None else draw_picture()
    out.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = out / "picture.png"
        picture.save(image)
    progress("composing lyrics-tiny with random weights ...")
    torch.manual_seed(SEED)
    model = build_model("lyrics-tiny", overrides=SEE_ANYTHING, weights="random").eval()
    progress("running it ...")
    encoded = model.encode([picture], [QUESTION])
    answer = model.generate([picture], [QUESTION], max_new_tokens=24)[0]
    refinement = encoded.refinements[0]
    written = out / "result.json"
    result = {
        "picture": str(image),
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
        "spatial_text": encoded.spatial_texts[0],
        "soft_tokens": list(encoded.soft_tokens_PQD.shape[1:]),
        "question": QUESTION,
        "answer": answer.text,
        "weights": "random",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "written": str(written),
    }
    written.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def draw_picture() -> Any:
    """A red circle, a blue square and a green triangle on a pale ground."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (320, 240), (236, 232, 220))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((30, 40, 110, 120), fill=(204, 40, 40))
    draw.rectangle((180, 30, 270, 120), fill=(40, 80, 200))
    draw.polygon([(150, 150), (90, 220), (210, 220)], fill=(40, 150, 70))
    return picture
