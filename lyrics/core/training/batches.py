"""A run's data: the mixture it draws from, its digest, and the loader that hands out each step's micro-batches."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from lyrics.core.contracts import Dataset, InShards
from lyrics.core.data.fitting import Fitting
from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.phases import PhasedMixture
from lyrics.core.data.relevance import Kept
from lyrics.core.data.sampler import StepSampler
from lyrics.core.data.stream import SampleStream
from lyrics.core.errors import SpecError
from lyrics.core.refining.features import features_fingerprint
from lyrics.core.runs.config import TrainConfig


def build_mixture(config: TrainConfig, datasets: Mapping[str, Dataset]) -> Mixture | PhasedMixture:
    """Return the order of the run over data sets by the configuration's names.

    Raises ``SpecError`` for a set whose share of the steps holds none, and as ``Mixture`` does.
    """
    sources, spans = [], []
    for name, slot in config.data.sets.items():
        data = datasets[name]
        sources.append(Source(name, len(data), slot.weight, data.shard_sizes if isinstance(data, InShards) else None))
        spans.append(_span(config, name))
    if all(span == (0, None) for span in spans):
        return Mixture(sources, config.seed, config.data.group)
    return PhasedMixture(sources, spans, config.seed, config.data.group)


def _span(config: TrainConfig, name: str) -> tuple[int, int | None]:
    """The first position at which a set is read, and the one after the last."""
    during, steps = config.data.sets[name].during, config.optimization.steps
    begin, end = (round(share * steps) for share in during)
    if begin >= end:
        raise SpecError(f"data.sets.{name}.during={list(during)}: holds no whole step of {steps}; widen it.")
    batch = config.optimization.global_batch
    return begin * batch, None if during[1] == 1 else end * batch


def data_facts(
    config: TrainConfig, mixture: Mixture | PhasedMixture, datasets: Mapping[str, Dataset]
) -> dict[str, Any]:
    """Return what decides which samples a run sees and in which form, as plain data, with a digest of it all.

    Folders are left out: the same files may lie elsewhere. So is the seed, which a checkpoint keeps by itself.
    """
    facts: dict[str, Any] = {
        "order": mixture.reseeded(0).fingerprint(),
        "sets": {
            name: {
                "use": slot.use,
                "options": {key: value for key, value in slot.options.items() if key not in ("root", "images")},
                "rows": source.rows,
                "weight": slot.weight,
                **({} if (kept := _kept(datasets[name])) is None else {"kept": kept}),
            }
            for (name, slot), source in zip(config.data.sets.items(), mixture.sources, strict=True)
        },
        "refined": None if config.data.refined is None else _sha256(config.data.refined),
        # What changes nothing is left out, so that runs from before there were these options can be resumed.
        **({} if config.data.snap_iou is None else {"snap_iou": config.data.snap_iou}),
        **({} if not config.data.drop_text else {"drop_text": config.data.drop_text}),
        **({} if not config.data.drop_queries_text else {"drop_queries_text": config.data.drop_queries_text}),
        **({} if config.data.features is None else {"features": features_fingerprint(config.data.features)}),
        "augmentation": None if config.data.augmentation is None else config.data.augmentation.model_dump(mode="json"),
    }
    facts["digest"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return facts


def _kept(data: Dataset) -> str | None:
    """A hash of which rows are read, where not all are."""
    while isinstance(data, Fitting):
        data = data.data
    return data.fingerprint() if isinstance(data, Kept) else None


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class MicroBatches:
    """The ``batch_sampler`` of a loader: a ``StepSampler``'s steps, each cut into pieces of at most ``size`` positions.

    Raises ``SpecError`` for pieces that would cut a group of the sampler's.
    """

    def __init__(self, steps: StepSampler, size: int | None) -> None:
        self.steps = steps
        self.share = steps.global_batch // steps.ranks
        self.size = min(size or self.share, self.share)
        if self.size % steps.group:
            raise SpecError(
                f"a micro-batch of {self.size} does not hold whole groups of {steps.group} (data.group); take "
                f"{max(1, self.size // steps.group) * steps.group}"
            )

    @property
    def per_step(self) -> int:
        """Micro-batches of a step; the same on all ranks."""
        return -(-self.share // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self.steps:
            for start in range(0, len(positions), self.size):
                yield positions[start : start + self.size]

    def __len__(self) -> int:
        return len(self.steps) * self.per_step


class StepLoader:
    """Iterates over steps: a list of micro-batches, and the seconds that were spent waiting for it.

    Args:
        stream: samples by position.
        batches: which positions, in which order.
        collate: examples -> a micro-batch; runs in the workers.
        workers: processes; 0 reads in this one.
        pinned: batches lie in memory that a GPU reads by itself.
    """

    def __init__(
        self,
        stream: SampleStream,
        batches: MicroBatches,
        collate: Callable[[list[Any]], Any],
        workers: int,
        *,
        pinned: bool = False,
    ) -> None:
        self.per_step = batches.per_step
        self.loader: DataLoader[Any] = DataLoader(
            stream,  # type: ignore[arg-type]  # has __len__ and __getitem__
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pinned,
            worker_init_fn=leave_signals_to_the_main_process,
            # Draws no number from the global generator; what it gives the workers is not used.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[tuple[list[Any], float]]:
        found = iter(self.loader)
        while True:
            started = time.perf_counter()
            step = [batch for _, batch in zip(range(self.per_step), found, strict=False)]
            if not step:
                return
            assert len(step) == self.per_step
            yield step, time.perf_counter() - started


def leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's signal reach the whole process group.

    Workers end when the main process tells them to, after its save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
