"""How well each row's image and text belong together, in a file; and a data set without the rows that do not.

A file of scores is safetensors: for each kind of score a float32 per row, NaN where a row has none. ``lyrics data
filter`` writes it (``lyrics.core.evaluation.relevance`` has the model's scores). Thresholds are given where it is read,
so that another one needs no other file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lyrics.core.contracts import Dataset, InShards
from lyrics.core.errors import DatasetError, SpecError, did_you_mean
from lyrics.core.runs.config import DataSlot
from lyrics.core.types import Sample

if TYPE_CHECKING:
    from PIL import Image

Scores = Mapping[str, npt.NDArray[np.float32]]

_FORMAT = "lyrics_scores"


def write_scores(path: Path, scores: Scores, about: Mapping[str, str]) -> None:
    """Write a file of scores, whole or not at all; ``about`` says where they come from."""
    part = path.with_name(f".{path.name}.part")
    save_file(
        {name: np.ascontiguousarray(one, np.float32) for name, one in scores.items()}, part, {_FORMAT: "1", **about}
    )
    os.replace(part, path)


def read_scores(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the scores of a file, by their names: float32 [rows].

    Raises ``DatasetError`` for a file that is not there, or is no file of scores.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; 'lyrics data filter' writes it.")
    try:
        with safe_open(path, framework="np") as file:
            if _FORMAT not in (file.metadata() or {}):
                raise DatasetError(f"{path}: is no file of scores; 'lyrics data filter' writes one.")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}.") from error


def rows_reaching(scores: Scores, at_least: Mapping[str, float], rows: int, where: str) -> npt.NDArray[np.int64]:
    """Return the rows whose scores are all at least so large, in their order: int64 [kept].

    Raises ``SpecError`` beginning with ``where``: a score that there is not, another number of rows, or no row kept.
    """
    kept = np.ones(rows, dtype=bool)
    for name, threshold in at_least.items():
        if name not in scores:
            raise SpecError(f"{where}: has no scores {name!r}.{did_you_mean(name, scores)} It has {', '.join(scores)}.")
        if scores[name].shape != (rows,):
            raise SpecError(f"{where}: has scores of {scores[name].size:,} rows, and the data set has {rows:,}.")
        kept &= scores[name] >= np.float32(threshold)  # NaN reaches nothing
    found = np.flatnonzero(kept)
    if not len(found):
        said = ", ".join(f"{name} >= {threshold:g}" for name, threshold in at_least.items())
        raise SpecError(f"{where}: no row has {said}; lower the threshold.")
    return found


class Kept:
    """Some rows of another data set, in their order. Keeps the contract of the kind ``dataset``."""

    def __init__(self, data: Dataset, rows: npt.NDArray[np.int64]) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        sizes = self.data.shard_sizes if isinstance(self.data, InShards) else None
        if sizes is None:
            return None
        ends = self.rows.searchsorted(np.cumsum(np.asarray(sizes, dtype=np.int64)))
        found: list[int] = np.diff(ends, prepend=0).tolist()
        return found

    def __getitem__(self, index: int) -> Sample:
        return self.data[int(self.rows[index])]

    def picture(self, sample: Sample) -> Image.Image:
        return self.data.picture(sample)

    def fingerprint(self) -> str:
        """Return a hash of which rows they are."""
        return hashlib.sha256(np.ascontiguousarray(self.rows, "<i8").tobytes()).hexdigest()


def relevant(datasets: Mapping[str, Dataset], slots: Mapping[str, DataSlot]) -> dict[str, Dataset]:
    """Return the data sets with the rows that their slots ask for.

    Raises ``SpecError`` for sets that are to be filtered and have no file of scores, all named at once, and as
    ``rows_reaching`` does.
    """
    if without := [name for name, slot in slots.items() if slot.at_least and slot.scores is None]:
        first = slots[without[0]]
        kind = next(iter(first.at_least))
        raise SpecError(
            f"data.sets: {', '.join(without)} are read where image and text belong together (at_least), and no scores "
            f"say where: 'lyrics data filter {first.use} --root FOLDER --out FILE' writes {kind}; then --set "
            f"data.sets.{without[0]}.scores=FILE. All rows are read with --set 'data.sets.{without[0]}.at_least={{}}'."
        )
    found: dict[str, Dataset] = {}
    for name, data in datasets.items():
        slot = slots[name]
        found[name] = data
        if slot.scores is not None:
            where = f"data.sets.{name}.scores: {slot.scores}"
            rows = rows_reaching(read_scores(Path(slot.scores)), slot.at_least, len(data), where)
            found[name] = Kept(data, rows)
    return found
