"""What a run will need: bytes on each device, steps and samples, time, room for stored refinements.

Memory is counted on the meta device (``lyrics.core.inspection.memory``); time comes from a throughput that was
measured or is given, never guessed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lyrics.core.contracts import Module
from lyrics.core.dtypes import torch_dtype
from lyrics.core.errors import SpecError
from lyrics.core.inspection.memory import Memory, training_memory
from lyrics.core.json_reading import parse_json, read_json_object, read_text
from lyrics.core.loading import build_model
from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.feature_plan import FeaturePlan, plan_features
from lyrics.core.training.sharding import check_model, largest_share, layers

#: Bytes for each image of what may be stored of the refiner: tags, boxes and scores; a token for each box; dense
#: feature maps (257 x 1024, 900 x 256 and 256 x 64 x 64 numbers in half precision).
STORED_BYTES = {"tags, boxes, scores": 200, "a token for each box": 33_000, "dense feature maps": 3_080_000}


@dataclass(frozen=True)
class RunPlan:
    """What a run needs.

    ``speeds`` are the samples a second that one device would get from each part alone (``step``, ``host``, ``refiner``,
    ``loader``), where that is known; they work side by side, so the slowest is ``bound``. ``samples_per_s`` is of all
    devices together, None where the step's own speed is unknown; ``seconds`` follows from it.
    """

    memory: Memory
    samples_per_device: int
    micro_batches: int
    steps: int
    samples: int
    samples_per_s: float | None
    stored: dict[str, int]
    speeds: dict[str, float]
    features: FeaturePlan | None = None

    @property
    def bound(self) -> str | None:
        return min(self.speeds, key=self.speeds.__getitem__, default=None)

    @property
    def seconds(self) -> float | None:
        return None if self.samples_per_s is None else self.samples / self.samples_per_s


def plan_run(
    config: TrainConfig,
    gpus: int,
    *,
    samples_per_s: float | None = None,
    beside: Mapping[str, float] | None = None,
    images: int | None = None,
) -> RunPlan:
    """Count what ``config`` needs on ``gpus`` devices, and compare it with a run on stored features of ``images``.

    ``samples_per_s`` is what one device does, ``beside`` what it gets from other parts (``RunPlan.speeds``). Under
    ``precision: bf16`` weights are fp32 and activations bf16, as autocast has them; the language model's frozen weights
    are of ``frozen_precision``, and under ``strategy: fsdp2`` shared out.

    Raises ``SpecError`` when the batch cannot be shared equally, or the language model cannot be shared out.
    """
    settings = config.optimization
    if settings.global_batch % gpus:
        raise SpecError(
            f"optimization.global_batch={settings.global_batch} cannot be shared equally by {gpus} devices; take "
            f"{settings.global_batch // gpus * gpus or gpus}, or another number of devices."
        )
    share = settings.global_batch // gpus
    micro_batch = min(share, settings.micro_batch or share)
    whole = build_model(config.model.spec, weights="meta")
    if config.strategy == "fsdp2":
        check_model(whole, config.stage)
    memory = training_memory(whole, config.stage, micro_batch)
    if settings.precision == "bf16":
        half = training_memory(
            build_model(config.model.spec, weights="meta", dtype=torch.bfloat16), config.stage, micro_batch
        )
        # Autocast keeps a copy of the trained weights in bf16 beside what the step itself makes.
        memory = replace(memory, working=half.working + half.gradients)
    held, gathered = language_model_bytes(config, whole.language_model, gpus)
    elsewhere = memory.weights - sum(one.numel() * one.element_size() for one in _frozen(whole.language_model))
    memory = replace(memory, weights=elsewhere + held, working=memory.working + gathered)
    if config.data.features is not None and whole.refiner is not None:
        experts = sum(one.numel() * one.element_size() for one in whole.refiner.parameters())
        memory = replace(memory, weights=memory.weights - experts)  # they are not there
    samples = settings.steps * settings.global_batch
    speeds = {**({} if samples_per_s is None else {"step": samples_per_s}), **(beside or {})}
    return RunPlan(
        memory,
        share,
        -(-share // micro_batch),
        settings.steps,
        samples,
        None if samples_per_s is None else min(speeds.values()) * gpus,
        {name: size * samples for name, size in STORED_BYTES.items()},
        speeds,
        plan_features(whole, samples, speeds, gpus, images),
    )


def language_model_bytes(config: TrainConfig, language_model: Module, gpus: int) -> tuple[int, int]:
    """Return the bytes of a language model's frozen weights on a device.

    First what it holds throughout, then what it has of the others' at most.

    A step of stage 2 has embeddings and head whole, the layer that runs, and the one that is fetched meanwhile.
    """
    width = torch_dtype(config.optimization.frozen_precision).itemsize
    if config.strategy == "ddp" or gpus == 1:
        return sum(one.numel() for one in _frozen(language_model)) * width, 0
    held = sum(largest_share(one, gpus) for one in _frozen(language_model)) * width
    if config.stage == "pretrain":
        return held, 0
    parts = sorted((sum(one.numel() for one in _frozen(layer)) for layer in layers(language_model)), reverse=True)
    both_ends = sum(one.numel() for one in _frozen(language_model)) - sum(parts)
    return held, (both_ends + sum(parts[:2])) * width


def _frozen(module: Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if not parameter.requires_grad]


def measured_throughput(run: Path) -> float:
    """Return samples a second and device of a run folder: the median over its log, its first tenth left out.

    Raises ``SpecError`` for a folder that has no log, or one too short.
    """
    try:
        lines = [parse_json(line) for line in read_text(run / "log.jsonl").splitlines()]
        ranks = int(read_json_object(run / "environment.json")["ranks"])
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"--measured {run}: is no run folder with a log: {error}.") from error
    speeds = [line["samples_per_s"] for line in lines if "samples_per_s" in line]
    speeds = speeds[len(speeds) // 10 :]
    if len(speeds) < 3:
        raise SpecError(f"--measured {run}: has {len(speeds)} steps in its log; let it run for some more.")
    return statistics.median(speeds) / ranks
