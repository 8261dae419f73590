"""``lyrics refine`` with the experts of preset ``photo`` against a plain loop: ``python benchmarks/photo.py --help``.

Real size, random weights, one thread, one process; both ways take turns, and processor time counts. The plain loop is
what one writes with transformers' classes: open an image, prepare it, run ``AutoModelForObjectDetection``, run
``Sam2Model`` with the boxes, enlarge the masks, encode them with pycocotools, write a line. Boxes of random weights
mean nothing, so each image is given the same six, after the detector has run. What the networks compute is compared
first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, Sam2Config, Sam2Model

from lyrics import Box, VisualRefiner, build_refiner
from lyrics.core.refining.refine_files import refine_files
from lyrics.data import find_images, open_image
from lyrics.types import Detection, DetectorOutput, ImageBatch
from lyrics.workflows.bench.machine import environment

RESULTS = Path(__file__).parent / "results"
BOXES = tuple(Box(x, y, x + 0.4, y + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.3, 0.6))
PLAIN_STEPS = ("prepare", "detector", "segmenter", "write")


class SixBoxes(nn.Module):
    """A detector that runs, and whose detections are then the same six boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.inner = detector
        self.preprocessing, self.feature_dim = detector.preprocessing, detector.feature_dim
        self.num_tokens, self.vocabulary = detector.num_tokens, detector.vocabulary

    def forward(self, images: ImageBatch, phrases: Any) -> DetectorOutput:
        found = self.inner(images, phrases)
        six = tuple(Detection(self.vocabulary[0], box, 0.9) for box in BOXES)
        return DetectorOutput((six,) * len(images), found.tokens_BMD, found.mask_BM)


class Clock:
    """Processor seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return timed


def stock(refiner: VisualRefiner) -> tuple[Any, Any]:
    """transformers' networks as they come, with our weights."""
    detector_config = refiner.detector.inner.config  # type: ignore[union-attr]
    detector = AutoModelForObjectDetection.from_config(AutoConfig.for_model(**detector_config.to_dict()))
    detector.load_state_dict(refiner.detector.inner.network.state_dict())  # type: ignore[union-attr]
    segmenter = Sam2Model(Sam2Config())
    segmenter.load_state_dict(refiner.segmenter.network.state_dict())  # type: ignore[union-attr]
    return detector.eval(), segmenter.eval()


def _pixels(image: Image.Image, side: int, mean: Any, std: Any) -> torch.Tensor:
    resized = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    scaled = (resized - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(scaled).permute(2, 0, 1)[None].contiguous()


@torch.inference_mode()
def plain(paths: list[Path], detector: Any, segmenter: Any, refiner: VisualRefiner, out: Path, clock: Clock) -> Any:
    """The plain loop; returns the last image's detector output and mask logits."""
    from pycocotools import mask as coco

    sides = [expert.preprocessing for expert in (refiner.detector, refiner.segmenter)]  # type: ignore[union-attr]
    with out.open("w") as file:
        for path in paths:
            with clock("prepare"):
                image = open_image(path)
                small, large = (_pixels(image, one.size, one.mean, one.std) for one in sides)
            with clock("detector"):
                found = detector(pixel_values=small)
                found.logits.sigmoid().flatten(1).topk(300)
            with clock("segmenter"):
                side = sides[1].size
                boxes = torch.tensor([[[one.x1 * side, one.y1 * side, one.x2 * side, one.y2 * side] for one in BOXES]])
                seen = segmenter(pixel_values=large, input_boxes=boxes, multimask_output=False)
                masks = F.interpolate(seen.pred_masks[0], image.size[::-1], mode="bilinear", align_corners=False) > 0
            with clock("write"):
                runs = coco.encode(np.asfortranarray(masks[:, 0].permute(1, 2, 0).numpy().astype(np.uint8)))
                file.write(json.dumps({"image": str(path), "masks": [one["counts"].decode() for one in runs]}) + "\n")
    return found, seen


@torch.inference_mode()
def differences(refiner: VisualRefiner, path: Path, found: Any, seen: Any) -> dict[str, float]:
    """The largest difference of the detector's states and boxes, and of the mask logits, as a share of the largest."""
    images = refiner.prepare([open_image(path)], [str(path)]).normalized()
    tokens_QD = refiner.detector(images.by_expert["detector"], [[]]).tokens_BMD[0]  # type: ignore[misc]
    expected_QD = torch.cat([found.last_hidden_state[0], found.pred_boxes[0]], dim=-1)
    segmenter: Any = refiner.segmenter
    batch = images.by_expert["segmenter"]
    boxes = torch.tensor([batch.frames[0].box_to_canvas(one) for one in BOXES], dtype=torch.float32)
    logits = segmenter.mask_logits(segmenter.embed(batch.pixels_BCHW[0]), boxes)
    expected = seen.pred_masks[0, :, 0]
    return {
        "detector": float(((tokens_QD - expected_QD).abs().amax(-1).median()) / expected_QD.abs().max()),
        "segmenter": float((logits - expected).abs().max() / expected.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pictures", type=Path, nargs="*", help="pictures, or folders; soft noise of 640x480 without any"
    )
    parser.add_argument("--count", type=int, default=4, help="how many of them [4]")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each way gets; medians count [3]")
    parser.add_argument("--out", type=Path, default=RESULTS / "photo.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = {"load_at_start": os.getloadavg()} | environment()
    with tempfile.TemporaryDirectory() as folder:
        paths = find_images(given.pictures)[: given.count] if given.pictures else _noise(Path(folder), given.count)
        refiner = build_refiner("photo", weights="random")
        refiner.detector = SixBoxes(refiner.detector)  # type: ignore[assignment]
        digest = refiner.digest()
        refiner.digest = lambda phrases=None: digest  # type: ignore[method-assign]  # once a run, however long
        networks = stock(refiner)
        agreement = differences(refiner, paths[-1], *plain(paths[-1:], *networks, refiner, Path(folder) / "p", Clock()))
        print(json.dumps(agreement), flush=True)
        assert max(agreement.values()) < 1e-2, agreement
        ours = [Clock() for _ in range(given.rounds)]
        theirs = [Clock() for _ in range(given.rounds)]
        shares: list[Clock] = []
        for turn in range(given.rounds):
            for way in ("ours", "plain")[:: 1 if turn % 2 else -1]:
                if way == "plain":
                    with theirs[turn]("all"):
                        plain(paths, *networks, refiner, Path(folder) / "plain.jsonl", theirs[turn])
                    continue
                shares.append(_watched(refiner))
                with ours[turn]("all"):
                    refine_files(refiner, paths, Path(folder) / f"ours{turn}", batch_size=4, draw=False, formats=())
            seconds = [round(one.seconds["all"] / len(paths), 3) for one in (ours[turn], theirs[turn])]
            print(json.dumps({"round": turn, "ours": seconds[0], "plain": seconds[1]}), flush=True)
    medians = {
        way: statistics.median(one.seconds["all"] for one in clocks) / len(paths)
        for way, clocks in (("ours", ours), ("plain", theirs))
    }
    row = {
        "pictures": len(paths),
        "boxes": len(BOXES),
        "differences": agreement,
        "processor_seconds_per_picture": medians,
        "all_seconds": {"ours": [c.seconds["all"] for c in ours], "plain": [c.seconds["all"] for c in theirs]},
        "images_per_processor_second": {way: 1 / seconds for way, seconds in medians.items()},
        "speedup": medians["plain"] / medians["ours"],
        "share_of_ours": _mean_shares(shares, ours, ("prepare", "detector", "segmenter")),
        "share_of_plain": _mean_shares(theirs, theirs, PLAIN_STEPS),
    }
    print(json.dumps(row))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"benchmark": "photo", **before, "rows": [row]}, indent=2) + "\n")
    print(f"{given.out} written")


def _watched(refiner: VisualRefiner) -> Clock:
    """Count what each expert takes from now on. Thread time, as images are prepared in another thread."""
    clock = Clock()
    for name in ("detector", "segmenter"):
        expert: Any = getattr(refiner, name)
        expert.forward = _thread_timed(clock, name, type(expert).forward.__get__(expert))
    refiner.prepare = _thread_timed(clock, "prepare", type(refiner).prepare.__get__(refiner))  # type: ignore[method-assign]
    return clock


def _thread_timed(clock: Clock, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        result = function(*args, **kwargs)
        clock.seconds[name] = clock.seconds.get(name, 0.0) + time.thread_time() - start
        return result

    return timed


def _mean_shares(parts: list[Clock], wholes: list[Clock], names: tuple[str, ...]) -> dict[str, float]:
    total = sum(one.seconds["all"] for one in wholes)
    return {name: round(sum(one.seconds.get(name, 0.0) for one in parts) / total, 4) for name in names}


def _noise(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


if __name__ == "__main__":
    main()
