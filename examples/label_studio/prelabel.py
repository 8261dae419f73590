"""Boxes and masks of images, by a running ``lyrics serve``, as tasks with predictions for Label Studio.

    pip install label-studio-sdk lyrics-vl
    python prelabel.py photographs/*.png --server http://127.0.0.1:8000 --out tasks.json

Make a project with the labeling configuration that is written beside the tasks (``tasks.xml``), and import the tasks:
what the refiner saw stands in each image, to be corrected. The images are found by ``--root`` and their file name;
Label Studio's own file serving (local files) has the default.

Label Studio's importer of COCO files does not read masks in runs, which is what ``lyrics refine`` writes.
"""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import urllib.request
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from label_studio_sdk.converter.brush import mask2rle

from lyrics.types import Mask


def refined(image: Path, server: str, key: str, phrases: list[str] | None) -> dict[str, Any]:
    """What ``/v1/refine`` says of an image."""
    kind = mimetypes.guess_type(image.name)[0] or "image/png"
    url = f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    body = {"image": url} if phrases is None else {"image": url, "phrases": phrases}
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{server}/v1/refine", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=300) as response:
        found: dict[str, Any] = json.load(response)
    return found


def task(url: str, seen: dict[str, Any]) -> dict[str, Any]:
    """One image's task: a rectangle for each object, in percent of the image, and its mask."""
    width, height = seen["width"], seen["height"]
    result = []
    for number, found in enumerate(seen["objects"]):
        common = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}
        common["score"] = found["score"]
        left, top, right, bottom = found["box_px"]
        place = {"x": 100 * left / width, "y": 100 * top / height, "rotation": 0}
        size = {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
        value: dict[str, Any] = {**place, **size, "rectanglelabels": [found["tag"]]}
        result.append({"id": f"box{number}", "type": "rectanglelabels", "from_name": "box", "value": value, **common})
        if found["mask"] is not None:
            pixels = Mask.from_coco(found["mask"]).to_array().astype(np.uint8) * 255
            value = {"format": "rle", "rle": mask2rle(pixels), "brushlabels": [found["tag"]]}
            result.append({"id": f"mask{number}", "type": "brushlabels", "from_name": "mask", "value": value, **common})
    score = min((found["score"] for found in seen["objects"]), default=0.0)
    prediction = {"model_version": "lyrics", "score": score, "result": result}
    return {"data": {"image": url}, "predictions": [prediction]}


def configuration(names: list[str]) -> str:
    """The labeling configuration of a project for these names."""
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    return (
        f'<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">{labels}'
        f'</RectangleLabels><BrushLabels name="mask" toName="image">{labels}</BrushLabels></View>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="any", help="of `lyrics serve --api-key`")
    parser.add_argument("--phrases", help='what to look for: "dog, red car"; unless given what the tagger sees')
    parser.add_argument("--root", default="/data/local-files/?d=", help="goes before an image's file name")
    parser.add_argument("--out", type=Path, default=Path("tasks.json"))
    options = parser.parse_args()
    phrases = [one.strip() for one in options.phrases.split(",")] if options.phrases else None
    seen = [refined(image, options.server, options.key, phrases) for image in options.images]
    tasks = [task(options.root + image.name, one) for image, one in zip(options.images, seen, strict=True)]
    names = sorted({found["tag"] for one in seen for found in one["objects"]})
    options.out.write_text(json.dumps(tasks, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".xml").write_text(configuration(names), encoding="utf-8")
    print(f"{len(tasks)} images, {sum(len(one['objects']) for one in seen)} objects in {options.out}")


if __name__ == "__main__":
    main()
