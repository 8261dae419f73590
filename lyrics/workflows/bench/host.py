"""``lyrics bench host``: what a stage-1 step costs the processor beside what it costs the device.

The real step of a configuration (texts, plans, tiles, both passes, negatives, backward pass, update, log) with the
arithmetic taken out: the model stands on a device that computes nothing (``fake_device``), attention is launched
without a kernel, and what the frozen experts would have found is made up. So it needs no GPU, no weights and no data,
and says of any machine how long its processor keeps a GPU waiting, by kind of work (``lyrics.kernels.host_work``).

Letters: B samples.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from lyrics.core.data.collate import PretrainExamples
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.geometry import Box
from lyrics.core.json_reading import read_json_object
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.pictures.model_inputs import SeenTogether
from lyrics.core.pictures.processor import ModelImages
from lyrics.core.refining.refinement import Refinement
from lyrics.core.registry.registry import default_registry
from lyrics.core.runs.config import TrainConfig
from lyrics.core.stage1.reduction import Flags
from lyrics.core.stage1.streams import Features
from lyrics.core.training.early import Early, findings_are_known
from lyrics.core.training.engine import StageModule, StepEngine
from lyrics.core.training.frozen_precision import hold_frozen
from lyrics.core.training.optimizer import build_optimizer
from lyrics.core.training.progress import StepProgress
from lyrics.core.training.recorder import Recorder
from lyrics.core.training.runfolder import RunFolder
from lyrics.core.types import DetectedObject
from lyrics.kernels.attention import replaced_by
from lyrics.kernels.host_work import watched_by
from lyrics.workflows.bench import null_attention
from lyrics.workflows.bench.charts import host_chart
from lyrics.workflows.bench.fake_device import FakeDevice, fake_device
from lyrics.workflows.bench.machine import environment

#: Samples of a device's step.
BATCHES = (32, 128, 256)
#: ``true``: 5 objects and 14 words for every image (64 and 16 tokens with the special ones); ``random``: 1 to 20
#: objects and 5 to 16 words, evenly, the latter about as long as COCO's captions.
LENGTHS: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "true": ((5, 5), (14, 14)),
    "random": ((1, 20), (5, 16)),
}
#: What the processor does by itself, and what it does to launch the device's work, in the order of a step.
OWN = (
    *("transfer", "tokenize objects", "tokenize captions", "lay out", "tiles", "negatives", "second pass"),
    *("read losses", "recorder", "the rest"),
)
LAUNCHES = ("launch forward", "launch backward", "launch optimizer")
KINDS = (*OWN, *LAUNCHES)
#: Names that a tagger knows: as many as RAM++'s. Frequent ones are drawn often (Zipf's law).
_NAMES = 4585
#: The vocabulary of captions and names.
_VOCABULARY = "words"
_SIZE_PX = (640, 480)


class _Times:
    """Processor time by kind, each moment counted once: with the innermost kind of work that it belongs to."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.spent: Counter[str] = Counter()
        self._stack: list[str] = []
        self._second = False
        self._since = time.process_time_ns()

    def _charge(self) -> None:
        now = time.process_time_ns()
        self.spent[self._stack[-1] if self._stack else "the rest"] += now - self._since
        self._since = now

    def begin(self, kind: str) -> None:
        self._charge()
        self._stack.append("second pass" if self._second and kind in ("lay out", "tiles") else kind)

    def end(self, kind: str) -> None:
        self._charge()
        self._stack.pop()
        # Whatever is laid out once negatives are drawn is for them.
        self._second |= kind == "negatives"

    def milliseconds(self) -> dict[str, float]:
        self._charge()
        return {kind: self.spent[kind] / 1e6 for kind in KINDS}


class _Operations(TorchDispatchMode):
    """Counts operations on the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        first = found[0] if isinstance(found, tuple | list) and found else found
        self.count += isinstance(first, torch.Tensor) and first.is_meta
        return found


class HostStep:
    """A configuration's stage-1 step that can be run again and again.

    Args:
        config: of stage 1; its model is built on the meta device.

    Raises:
        SpecError: the configuration is of another stage, or has no objectives.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        if config.stage != "pretrain" or not config.model.spec.objectives:
            raise SpecError(
                f"stage={config.stage}: the host's share is measured for a step of stage 1 with its objectives; "
                "name a configuration such as paper-stage1."
            )
        self.config = config
        spec = config.model.spec
        if "builtin_tokenizer" in spec.query_transformer.options:
            # It stands in for the tokenizer that would have to be downloaded; by words, texts are about as long.
            spec = spec.with_overrides({"query_transformer.options.builtin_tokenizer": _VOCABULARY})
        self.model: LyricsModel = build_model(spec, weights="meta")
        hold_frozen(self.model, config)
        self.model.train()
        parameters = self.model.trainable_parameters(config.stage)
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True)
        optimizer = build_optimizer(parameters, config.optimization)
        for group in optimizer.param_groups:
            group["foreach"] = True  # as torch chooses on a GPU
        stage = StageModule(self.model, config.stage)
        self.engine = StepEngine(accelerator, stage, stage, optimizer, parameters, config)
        run_folder = RunFolder(folder)
        run_folder.open()
        self.folder = run_folder
        quiet = config.model_copy(update={"logging": config.logging.model_copy(update={"every_steps": 1})})
        self.recorder = Recorder(run_folder, accelerator, quiet, 0)
        self.recorder.progress = StepProgress(config.optimization.steps, 0, Console(file=io.StringIO()))
        self.names = [f"{a} {b}" for a, b in itertools.islice(itertools.product(_words(), repeat=2), _NAMES)]
        self._image_tokens = self.model.encoder(self._pixels("image_encoder", 1).to("meta")).shape[1:]
        self._found: tuple[Features, tuple[Refinement, ...]] | None = None
        # What the frozen experts would find.
        self.model.features = lambda images, phrases=None: self._found  # type: ignore[method-assign,assignment,misc,return-value]
        self.step = 0
        everything = Refinement(_SIZE_PX, (), tuple(self._object(random.Random(0), name) for name in self.names))
        self._early = Early.of(lambda batch: batch, self.model, config)
        self.model._objects([everything])  # a run that has gone on for a while has met every name

    def _pixels(self, expert: str, size: int) -> torch.Tensor:
        one = self.model.processor.images(Image.new("RGB", _SIZE_PX)).by_expert[expert].pixels_BCHW
        return one.expand(size, -1, -1, -1)

    def _object(self, draw: random.Random, name: str) -> DetectedObject:
        (x1, x2), (y1, y2) = (sorted((draw.uniform(0, 0.9), draw.uniform(0, 0.9))) for _ in range(2))
        return DetectedObject(name, Box(x1, y1, x2 + 0.05, y2 + 0.05), draw.random())

    def batch(self, size: int, lengths: str, seed: int) -> PretrainExamples:
        """Prepared images and captions of ``size`` samples; what the experts find in them is set aside for the step."""
        draw = random.Random(seed)
        objects, words = LENGTHS[lengths]
        zipf = list(itertools.accumulate(1 / rank for rank in range(1, _NAMES + 1)))
        refinements = tuple(
            Refinement(
                _SIZE_PX,
                (),
                tuple(
                    self._object(draw, n) for n in draw.choices(self.names, cum_weights=zipf, k=draw.randint(*objects))
                ),
            )
            for _ in range(size)
        )
        refiner = self.model.refiner
        local = {}
        for name, expert in ({} if refiner is None else refiner.local_sources).items():
            count = getattr(expert, "num_tokens", max(len(found.objects) for found in refinements))
            local[name] = (
                torch.empty(size, count, expert.feature_dim, device="meta"),
                torch.empty(size, count, dtype=torch.bool, device="meta"),
            )
        self._found = Features(torch.empty(size, *self._image_tokens, device="meta"), local), refinements
        prepared = self.model.processor.images([Image.new("RGB", _SIZE_PX)], as_bytes=True)
        images = ModelImages(
            ("",) * size,
            (_SIZE_PX,) * size,
            {
                expert: replace(one, pixels_BCHW=one.pixels_BCHW.expand(size, -1, -1, -1), frames=one.frames * size)
                for expert, one in prepared.by_expert.items()
            },
        )
        captions = tuple(" ".join(draw.choices(_words(), k=draw.randint(*words))) for _ in range(size))
        positions = tuple(range(seed * size, (seed + 1) * size))
        return PretrainExamples(images, captions, positions, positions)

    def prepared(self, batch: PretrainExamples) -> PretrainExamples:
        """The batch with what a loader's worker makes of it where it is stored what the experts found."""
        assert self._found is not None
        features, found = self._found
        first = self.step * self.config.optimization.global_batch
        seen = SeenTogether(tuple(one.tags for one in found), tuple(one.objects for one in found), features.local)
        images = replace(batch.images, seen=seen)
        positions = tuple(range(first, first + len(batch)))
        early = self._early.with_texts(replace(batch, images=images, positions=positions))
        return replace(early, images=batch.images)

    def run(self, batch: PretrainExamples) -> None:
        """One step, recorded."""
        result = self.engine(self.step, [batch], Flags())
        self.step += 1
        self.recorder.step(self.step, result, [batch], 1.0, 0.0)


def _words() -> list[str]:
    return [word for word in default_registry().vocabulary(_VOCABULARY)[0] if word.islower() and len(word) > 1]


def measure(
    config: TrainConfig,
    batch_sizes: Sequence[int] = BATCHES,
    lengths: Sequence[str] = tuple(LENGTHS),
    rounds: int = 3,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row per batch size and lengths: medians of ``rounds`` steps in milliseconds of processor time.

    ``own_ms`` sums up the kinds in ``OWN``. ``prepared_ms`` and ``prepared_own_ms`` are of steps whose texts and first
    pass a loader's worker has prepared, as it does where it is stored what the experts find. Beside the times a row
    says, of one step that prepares nothing, how often the host waited for the device, where, what it copied there, and
    how many operations it launched.
    """
    rows = []
    torch.set_num_threads(1)  # what is measured is one processor's work
    with tempfile.TemporaryDirectory() as folder, fake_device(places=False) as device, replaced_by(null_attention):
        host = HostStep(config, Path(folder))
        for size, name in itertools.product(batch_sizes, lengths):
            rows.append(_row(host, device, size, name, rounds))
            say(f"batch {size}, {name} lengths: {rows[-1]['own_ms']:.1f} ms")
        host.folder.close()
    return rows


def _row(host: HostStep, device: FakeDevice, size: int, lengths: str, rounds: int) -> dict[str, Any]:
    host.run(host.batch(size, lengths, 0))
    batch = host.batch(size, lengths, 1)
    device.clear()
    device.places = True
    with _Operations() as operations:
        host.run(batch)
    device.places = False
    counted = {
        "waits": dict(Counter(device.waits)),
        "copies": device.copies,
        "waiting_copies": dict(Counter(device.waiting_copies)),
        "copied_bytes": device.copied_bytes,
        "operations": operations.count,
    }
    found: list[dict[str, float]] = []
    prepared: list[dict[str, float]] = []
    times = _Times()
    for turn in range(rounds):
        batch = host.batch(size, lengths, 2 + turn)
        for into in (found, prepared):
            given = host.prepared(batch) if into is prepared else batch
            with watched_by(times):
                times.start()
                host.run(given)
                into.append(times.milliseconds())
    median, median_prepared = (
        {kind: statistics.median(one[kind] for one in steps) for kind in KINDS} for steps in (found, prepared)
    )
    return {
        "batch": size,
        "lengths": lengths,
        "ms": median,
        "own_ms": sum(median[kind] for kind in OWN),
        "launch_ms": sum(median[kind] for kind in LAUNCHES),
        "all_own_ms": [sum(one[kind] for kind in OWN) for one in found],
        "prepared_ms": median_prepared,
        "prepared_own_ms": sum(median_prepared[kind] for kind in OWN),
        **counted,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    head = ("batch", "lengths", *OWN, "own, ms", "prepared, ms", "launching, ms", "operations", "waits", "MB copied")
    lines = [head]
    for row in rows:
        waits = sum(row["waits"].values()) + sum(row["waiting_copies"].values())
        lines.append(
            (
                str(row["batch"]),
                row["lengths"],
                *(f"{row['ms'][kind]:.2f}" for kind in OWN),
                f"{row['own_ms']:.1f}",
                f"{row['prepared_own_ms']:.1f}",
                f"{row['launch_ms']:.0f}",
                str(row["operations"]),
                str(waits),
                f"{row['copied_bytes'] / 1e6:.0f}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def host_speed(config: TrainConfig, gpus: int, written: Path | None = None) -> float:
    """Samples a second that one processor can prepare for a device, by the kinds in ``OWN`` at random lengths.

    Where loader workers know what the refiner finds, it is that of steps whose texts and first pass they have prepared.

    Measured here, or read from what ``run_bench_host`` has written: the row with the batch nearest to a device's.

    Raises:
        SpecError: ``written`` is no such file.
    """
    settings = config.optimization
    size = min(settings.micro_batch or settings.global_batch, max(1, settings.global_batch // gpus))
    if written is None:
        rows: Sequence[Mapping[str, Any]] = measure(config, (size,), ("random",), rounds=2)
    else:
        try:
            rows = [row for row in read_json_object(written)["rows"] if row["lengths"] == "random"]
            rows = [min(rows, key=lambda row: abs(int(row["batch"]) - size))]
        except (LyricsError, KeyError, TypeError, ValueError) as error:
            why = str(error).rstrip(".")
            raise SpecError(f"--host {written}: is not what 'lyrics bench host --out FILE' writes: {why}.") from error
    spent = rows[0]["own_ms"]
    if findings_are_known(config):
        spent = rows[0].get("prepared_own_ms", spent)  # older files have none
    return float(1e3 * rows[0]["batch"] / spent)


def run_bench_host(
    config: TrainConfig,
    batch_sizes: Sequence[int] = BATCHES,
    rounds: int = 3,
    *,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """``measure``, and a JSON file with a chart beside it at ``out``, where that is given."""
    measured_on = environment()
    rows = [row | measured_on for row in measure(config, batch_sizes, rounds=rounds, say=say)]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"benchmark": "host", "rows": rows}, indent=2) + "\n")
        out.with_suffix(".svg").write_text(host_chart(rows), encoding="utf-8")
    return rows
