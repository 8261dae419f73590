"""The visual refiner's speed: ``python benchmarks/refiner.py --help``.

- ``real-size``: ``lyrics refine`` on the experts of preset ``lyrics-13b`` with random weights, one expert and one
  process at a time: seconds per picture and peak resident memory.
- ``batch``: the refiner on a batch against the plain way, which calls the same networks as transformers has them, one
  picture and one expert at a time. Equal results are asserted first; then both take turns in one process.
- ``upstream``: ``grounding-dino`` against ``grounding-dino-upstream`` (groundingdino-py) on the same weights and
  pictures, likewise. Needs the extra ``experts``.

Each writes one JSON file to ``benchmarks/results/``. Weights are random, which does not change what is computed; where
they would decide how much there is to do (tags, boxes), every picture is given the same six phrases and six boxes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lyrics import Box, BuildContext, Refinement
from lyrics.data import Processor, find_images, open_image, prepare
from lyrics.types import DetectedObject, ImageBatch, Mask, Tag
from lyrics.workflows.bench.machine import environment

RESULTS = Path(__file__).parent / "results"
PHRASES = ("person", "car", "dog", "chair", "tree", "building")
BOXES = tuple(Box(x, y, x + 0.4, y + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.3, 0.6))
EXPERTS = ("tagger", "detector", "segmenter")
NAMES = {"tagger": "ram-plus", "detector": "grounding-dino", "segmenter": "sam-hq"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("real-size", "batch", "upstream"):
        command = commands.add_parser(name)
        command.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of pictures")
        command.add_argument("--count", type=int, default=4, help="how many of them [4]")
        command.add_argument("--out", type=Path, default=RESULTS / f"refiner-{name}.json")
        if name == "real-size":
            command.add_argument("--dtype", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
            command.add_argument("--experts", nargs="+", default=EXPERTS, choices=EXPERTS)
        else:
            command.add_argument("--rounds", type=int, default=3, help="turns that each way gets; medians count [3]")
            command.add_argument("--size", choices=("small", "real"), default="small", help="of the networks [small]")
        if name == "batch":
            command.add_argument("--experts", nargs="+", default=EXPERTS, choices=EXPERTS)
    given = parser.parse_args()
    pictures = find_images(given.pictures)[: given.count]
    if not pictures:
        parser.error("no pictures there")
    before = {"load_at_start": os.getloadavg()} | environment()
    run = {"real-size": real_size, "batch": batch, "upstream": upstream}[given.command]
    rows = run(pictures, given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"benchmark": f"refiner {given.command}", **before, "rows": rows}, indent=2) + "\n")
    print(f"{given.out} written")


# --- lyrics refine, one expert at a time ---


def real_size(pictures: Sequence[Path], given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "known.jsonl"
        known.write_text("".join(json.dumps(_known(path).to_json()) + "\n" for path in pictures))
        for dtype in given.dtype:
            for expert in given.experts:
                rows.append(_refine_alone(expert, dtype, pictures, known, Path(folder) / f"{expert}-{dtype}"))
                print(json.dumps(rows[-1]))
    return rows


def _known(path: Path) -> Refinement:
    objects = tuple(DetectedObject(phrase, box, 0.9) for phrase, box in zip(PHRASES, BOXES, strict=True))
    tags = tuple(Tag(phrase, 0.9) for phrase in PHRASES)
    return Refinement(open_image(path).size, tags, objects, str(path))


def _refine_alone(expert: str, dtype: str, pictures: Sequence[Path], known: Path, out: Path) -> dict[str, Any]:
    """``lyrics refine`` in a process of its own; what comes before the expert is read from ``known``, what comes after
    is left out.
    """
    cached = f"{{use: cached, options: {{file: {known}}}}}"
    settings = [f"refiner.{name}={cached}" for name in EXPERTS[: EXPERTS.index(expert)]]
    settings += [f"refiner.{name}=null" for name in reversed(EXPERTS[EXPERTS.index(expert) + 1 :])]
    command = [
        sys.executable,
        "-c",
        "from lyrics.cli import main; main()",
        "refine",
        *map(str, pictures),
        "--out",
        str(out),
        "--spec",
        "lyrics-13b",
    ]
    command += ["--weights", "random", "--dtype", dtype, "--batch", "1", "--no-draw", "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    read, write = os.pipe()
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    summary = json.loads(answer)
    assert summary["refined"] == len(pictures), summary
    return {
        "expert": expert,
        "dtype": dtype,
        "pictures": len(pictures),
        "seconds_per_picture": summary["seconds"] / len(pictures),
        "seconds_to_start_and_build": time.perf_counter() - start - summary["seconds"],
        "peak_resident_mb": usage.ru_maxrss / 1024,
    }


# --- a batch against one picture and one expert at a time ---


def _options(size: str, expert: str) -> dict[str, Any]:
    """Of the preset ``lyrics-13b``, or a like network that takes a second or so per picture."""
    real = {"tagger": {"backbone": "swin-b"}, "detector": {}, "segmenter": {}}
    small = {
        "tagger": {
            "backbone": {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
            "image_size": 192,
            "window_size": 6,
            "num_tags": 600,
            "head_width": 384,
            "head_mlp_width": 1536,
        },
        "detector": {
            "shortest_side": 400,
            "longest_side": 666,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "queries": 300,
        },
        "segmenter": {"image_size": 512, "width": 384, "layers": 6, "heads": 6, "global_layers": (2, 5)},
    }
    return (real if size == "real" else small)[expert]


def _built(kind: str, name: str, options: Mapping[str, Any], weights: str = "random") -> Any:
    """The component, frozen. Random weights are the same every time."""
    from lyrics import default_registry

    component = default_registry().component(kind, name).component
    torch.manual_seed(0)
    built = resolve_name(component.build)(component.options(**options), BuildContext(weights))
    if weights == "random":
        _stir(built)
    return built.requires_grad_(False)


def _stir(expert: Any) -> None:
    """Fresh heads are zero or nearly so, and every result would be equal to every other."""
    for name, parameter in expert.named_parameters():
        if "bbox_embed" in name or name.endswith(("vision_param", "text_param")):
            torch.nn.init.normal_(parameter, std=0.02)
        elif "mask_decoder" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)


def batch(pictures: Sequence[Path], given: argparse.Namespace) -> list[dict[str, Any]]:
    images = [open_image(path) for path in pictures]
    rows = []
    for name in given.experts:
        expert = _built(name, NAMES[name], _options(given.size, name))
        processor = Processor({name: expert.preprocessing})
        ours, plain = {"tagger": _tagger_ways, "detector": _detector_ways, "segmenter": _segmenter_ways}[name](expert)
        ways = {
            "ours": lambda ours=ours, processor=processor, name=name: ours(processor.images(images).by_expert[name]),
            "plain": lambda plain=plain, processor=processor, name=name: [
                result for image in images for result in plain(processor.images([image]).by_expert[name])
            ],
        }
        with torch.inference_mode():
            rows.append(
                {"expert": name, "size": given.size, "pictures": len(images)}
                | compare(ways, given.rounds, len(images), one_thread=True)
            )
        print(json.dumps(rows[-1]))
        del expert, ours, plain, ways
    total = {
        clock: {way: sum(row["seconds_per_picture"][clock][way] for row in rows) for way in ("ours", "plain")}
        for clock in ("wall", "cpu")
    }
    speedup = {clock: by_way["plain"] / by_way["ours"] for clock, by_way in total.items()}
    rows.append({"expert": "all", "size": given.size, "seconds_per_picture": total, "speedup": speedup})
    print(json.dumps(rows[-1]))
    return rows


def _agree(first: Any, other: Any) -> dict[str, Any]:
    worst = _difference(first, other)
    assert worst <= 1e-4, f"the ways differ by {worst}"
    return {"largest_difference": worst}


def _queries_agree(first_1QD: torch.Tensor, other_1QD: torch.Tensor) -> dict[str, Any]:
    """With random weights some queries are within rounding of each other, so that the two ways order or choose them
    differently.
    """
    differences_1Q = (first_1QD - other_1QD).abs().amax(-1)
    same_1Q = differences_1Q <= 1e-3
    share = same_1Q.float().mean().item()
    assert share >= 0.99, f"only {share:.3f} of the queries agree to 1e-3"
    return {"queries_that_agree": share, "largest_difference": differences_1Q[same_1Q].max().item()}


def compare(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    pictures: int,
    *,
    check: Callable[[Any, Any], dict[str, Any]] | None = None,
    one_thread: bool = False,
) -> dict[str, Any]:
    """Seconds per picture of each way, in turns; asserts first that results agree to 1e-4, or what ``check`` asserts.

    ``one_thread`` compares results (it does not time) with one thread for both ways: sums in another order make random
    weights, which leave queries tied, choose others.

    Wall-clock seconds, and seconds of this process's threads: on a busy machine the latter say more.
    """
    threads = torch.get_num_threads()
    if one_thread:
        torch.set_num_threads(1)
    results = {way: run() for way, run in ways.items()}
    torch.set_num_threads(threads)
    first, other = results
    agreement = (check or _agree)(results[first], results[other])
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {way: [] for way in ways} for clock in clocks}
    for turn in range(rounds):
        # Who begins changes from turn to turn.
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            start = {clock: read() for clock, read in clocks.items()}
            ways[way]()
            for clock, read in clocks.items():
                seconds[clock][way].append((read() - start[clock]) / pictures)
    medians = {
        clock: {way: statistics.median(found) for way, found in by_way.items()} for clock, by_way in seconds.items()
    }
    return {
        **agreement,
        "seconds_per_picture": medians,
        "all_seconds_per_picture": seconds,
        "speedup": {clock: by_way[other] / by_way[first] for clock, by_way in medians.items()},
    }


def _difference(one: Any, other: Any) -> float:
    """The largest difference of numbers in two like structures; of masks, the share of pixels in which they differ."""
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape, (one.shape, other.shape)
        finite = one.isfinite()
        assert torch.equal(finite, other.isfinite())
        return float((one[finite] - other[finite]).abs().max()) if finite.any() else 0.0
    if isinstance(one, Mask):
        return float((one.to_array() != other.to_array()).mean())
    assert len(one) == len(other), (len(one), len(other))
    return max((_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


Way = Callable[[ImageBatch], Any]


def _tagger_ways(expert: Any) -> tuple[Way, Way]:
    """transformers' Swin and our head on it: upstream's package does not run, so both ways have the same head."""

    def logits(images: ImageBatch) -> Any:
        return list(expert.logits(images.pixels_BCHW))

    return logits, logits


def _detector_ways(expert: Any) -> tuple[Way, Way]:
    """Our detector, and the same around transformers' class as it comes."""
    from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

    plain = copy.deepcopy(expert)
    plain._texts = None
    del plain.network.model.text_backbone.forward
    for module in list(plain.modules()):
        if isinstance(getattr(module, "attn", None), MultiScaleDeformableAttention):
            module.attn = MultiScaleDeformableAttention()
    return tuple(
        lambda images, way=way: list(way(images, [PHRASES] * len(images)).tokens_BMD) for way in (expert, plain)
    )


def _segmenter_ways(expert: Any) -> tuple[Way, Way]:
    """Six boxes a picture. The plain way is upstream's predictor on transformers' network as it comes: embed a picture,
    decode its boxes, enlarge all their masks at once.
    """
    from transformers import SamHQModel

    stock = SamHQModel(expert.network.config).eval().requires_grad_(False)
    stock.load_state_dict(expert.network.state_dict())
    as_it_comes = copy.copy(expert)
    as_it_comes.__dict__["_modules"] = {**expert._modules, "network": stock}

    def ours(images: ImageBatch) -> Any:
        return list(expert(images, [BOXES] * len(images)).masks)

    def plain(images: ImageBatch) -> Any:
        (frame,) = images.frames
        width, height = frame.size
        boxes_px = torch.tensor([frame.box_to_canvas(box) for box in BOXES], dtype=torch.float32)
        logits = as_it_comes.mask_logits(as_it_comes.embed(images.pixels_BCHW[0]), boxes_px)
        side = images.pixels_BCHW.shape[2:]
        canvas = F.interpolate(logits[None], side, mode="bilinear", align_corners=False)
        original = F.interpolate(
            canvas[..., :height, :width], frame.original_size[::-1], mode="bilinear", align_corners=False
        )
        return [[Mask.from_array(mask) for mask in (original[0] > 0).numpy()]]

    return ours, plain


# --- transformers' Grounding DINO as we run it, against its authors' ---


def upstream(pictures: Sequence[Path], given: argparse.Namespace) -> list[dict[str, Any]]:
    # Where torchvision does not fit torch, the tests' guard lets it be imported. Run as `python -m benchmarks.refiner`.
    with contextlib.suppress(ImportError):
        importlib.import_module("tests.experts.conftest")
    options = _options(given.size, "detector")
    with tempfile.TemporaryDirectory() as folder:
        state = _built("detector", "grounding-dino-upstream", options).network.model.state_dict()
        save_file({name: tensor.clone() for name, tensor in state.items()}, Path(folder) / "model.safetensors")
        _write_vocabulary(Path(folder) / "vocab.txt")
        options["checkpoint"] = folder
        ours, theirs = (
            _built("detector", name, options, "pretrained") for name in ("grounding-dino", "grounding-dino-upstream")
        )
    rows = []
    for path in pictures:
        images = prepare([open_image(path)], ours.preprocessing)
        ways = {
            "ours": lambda images=images: ours(images, [PHRASES]).tokens_BMD,
            "upstream": lambda images=images: theirs(images, [PHRASES]).tokens_BMD,
        }
        with torch.inference_mode():
            found = compare(ways, given.rounds, 1, check=_queries_agree)
        rows.append({"canvas": images.frames[0].size, "size": given.size} | found)
        print(json.dumps(rows[-1]))
    return rows


def _write_vocabulary(file: Path) -> None:
    """The phrases as word pieces, and BERT's special tokens where BERT has them."""
    pieces = [f"[unused{index}]" for index in range(1030)]
    for index, piece in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        pieces[index] = piece
    file.write_text("\n".join([*pieces, *PHRASES]))


if __name__ == "__main__":
    main()
