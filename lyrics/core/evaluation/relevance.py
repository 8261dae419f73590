"""How well each row's image and caption belong together, by what stage 1 taught a model.

Letters: B samples of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lyrics.core.contracts import Dataset, ScoresPairs
from lyrics.core.data.collate import Collator, PretrainExamples
from lyrics.core.data.fitting import check_fits
from lyrics.core.data.stream import Example
from lyrics.core.errors import GeometryError, ImageError, SampleError, SpecError
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.streams import Features, merge

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

Say = Callable[[str], None]


@dataclass(frozen=True)
class Relevance:
    """Scores by name, float32 [rows] with NaN where a row could not be read; and how many could not, by kind."""

    scores: Mapping[str, npt.NDArray[np.float32]]
    unread: Mapping[str, int] = field(default_factory=dict)


def column_scores(data: Dataset, column: str, say: Say = lambda line: None) -> Relevance:
    """Return the number that each record has under that name, such as LAION's ``similarity``.

    Raises ``SpecError`` where no record has it.
    """
    found = np.full(len(data), np.nan, dtype=np.float32)
    unread: Counter[str] = Counter()
    others: set[str] = set()
    for row in range(len(data)):
        try:
            numbers = data[row].extra.get("scores", {})
        except (SampleError, ImageError, GeometryError) as error:
            unread[_kind(error)] += 1
            continue
        found[row] = numbers.get(column, np.nan)
        others |= numbers.keys()
        if (row + 1) % 100_000 == 0:
            say(f"{row + 1:,} of {len(data):,} rows")
    if np.isnan(found).all():
        there = f"they have {', '.join(sorted(others))}" if others else "they have no numbers"
        raise SpecError(
            f"no record has a number {column!r}; {there}. img2dataset keeps a column of its list in the shards with "
            f"--save_additional_columns '[\"{column}\"]'; a model of stage 1 scores pairs without one (--model)."
        )
    return Relevance({column: found}, dict(unread))


def model_scores(
    model: LyricsModel, data: Dataset, *, batch: int = 32, workers: int = 0, say: Say = lambda line: None
) -> Relevance:
    """Return what the model's objectives say of each row's image and first caption: ``itm``, ``itc``.

    Spatial text is left out: it is the image's own, and fits whatever the caption says.

    Raises ``SpecError`` for a model none of whose objectives scores pairs.
    """
    scorers = [one for one in model.losses.values() if isinstance(one, ScoresPairs)]
    if not scorers:
        raise SpecError(
            "no objective of this model tells how well an image and a text belong together; give the model of stage 1 "
            "that was trained to match or to compare them."
        )
    model.eval()
    collator = Collator("pretrain", model.processor, seed=0, codec=model.spec.codec)
    rows = _Rows(data)
    loader: DataLoader[Any] = DataLoader(
        rows,  # type: ignore[arg-type]  # has __len__ and __getitem__
        batch_sampler=[list(range(start, min(start + batch, len(data)))) for start in range(0, len(data), batch)],
        collate_fn=_Batches(collator),
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )
    found: dict[str, npt.NDArray[np.float32]] = {}
    unread: Counter[str] = Counter()
    done = 0
    for prepared, failed, read in loader:
        unread.update(failed)
        done += read
        if prepared is not None:
            for name, scores_B in scores_of_batch(model, scorers, prepared).items():
                column = found.setdefault(name, np.full(len(data), np.nan, dtype=np.float32))
                column[list(prepared.positions)] = scores_B.cpu().numpy()
        say(f"{done:,} of {len(data):,} rows")
    if not found:
        raise SpecError("no row of the data set has an image and a caption that can be read.")
    return Relevance(found, dict(unread))


@torch.no_grad()
def scores_of_batch(model: LyricsModel, scorers: list[ScoresPairs], batch: PretrainExamples) -> dict[str, torch.Tensor]:
    """Return the scores [B] of a batch's images with their captions, by name."""
    features, texts = model.pretraining_inputs(batch, 0, 0)
    alone = replace(texts, spatial=Spatial.from_objects([[] for _ in range(len(texts))]))
    return _relevance(model, scorers, features, alone)


def _relevance(
    model: LyricsModel, scorers: list[ScoresPairs], features: Features, texts: PretrainBatch
) -> dict[str, torch.Tensor]:
    streams = merge([stream for one in scorers for stream in one.streams(texts)])
    outputs = model.query_transformer(streams, model.query_transformer.project(features))
    return {name: scores_B for one in scorers for name, scores_B in one.relevance(outputs).items()}


class _Rows:
    """Row -> the example, or the kind of its fault."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Example | str:
        try:
            sample = self.data[row]
            check_fits(sample, "pretrain")
            if not sample.captions:
                raise SampleError(f"{sample.source}: has no caption.", "record")
            first = replace(sample, captions=sample.captions[:1])
            return Example(row, "", row, first, self.data.picture(sample))
        except (SampleError, ImageError, GeometryError) as error:
            return _kind(error)


class _Batches:
    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, items: list[Example | str]) -> tuple[PretrainExamples | None, list[str], int]:
        good = [one for one in items if isinstance(one, Example)]
        failed = [one for one in items if isinstance(one, str)]
        prepared = self.collator(good) if good else None
        assert prepared is None or isinstance(prepared, PretrainExamples)
        return prepared, failed, len(items)


def _kind(error: SampleError | ImageError | GeometryError) -> str:
    return "box" if isinstance(error, GeometryError) else error.kind
