"""A data set: records that a reader gives, and the function that turns one of them into a ``Sample``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lyrics.core.data.pictures import check_frame
from lyrics.core.data.readers.row import brief
from lyrics.core.errors import DatasetError, ImageError, SampleError
from lyrics.core.types import Sample

if TYPE_CHECKING:
    from PIL import Image


class Records(Protocol):
    """What every reader is: records by number, read when asked for, and where each one stands.

    An optional attribute ``shard_sizes`` gives the number of records per file, where reading them file by file is
    faster.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> tuple[Path, str]:
        """Return the file, and the place in it (``line 3``), for messages."""
        ...


class Pictures(Protocol):
    """Images by the key that stands in ``Sample.image``."""

    def read(self, key: str) -> Image.Image:
        """Return the image, upright RGB, as ``lyrics.core.data.pictures`` reads it."""
        ...

    def find(self, key: str) -> None:
        """Raise ``ImageError`` where there is no such image; opens nothing."""
        ...


@dataclass(frozen=True)
class RecordDataset:
    """Keeps the contract of the kind ``dataset`` (``lyrics.core.contracts.Dataset``).

    Cheap to make and to send to a worker.

    Args:
        name: of the component.
        records: a reader.
        sample: record -> ``Sample``. What it raises over a record becomes a ``SampleError`` that names file and place.
        pictures: where ``Sample.image`` leads; None for a set of text alone.
        expected: how many samples the whole set has, where that is known exactly; ``lyrics data check`` compares.
    """

    name: str
    records: Records
    sample: Callable[[Any], Sample]
    pictures: Pictures | None = None
    expected: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        """Rows per file, in order, for sets of many files; None for others."""
        return getattr(self.records, "shard_sizes", None)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples; there is no sample {index}")
        path, place = self.records.where(index)
        try:
            record = self.records[index]
        except SampleError:
            raise  # the reader has said where
        try:
            sample = self.sample(record)
        except (ImageError, DatasetError):
            raise  # a file beside the records that cannot be used at all is no fault of this one
        except SampleError as error:
            raise SampleError(f"{path}, {place}: {error}", error.kind, sha256=error.sha256) from error
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            raise SampleError(f"{path}, {place}: is not as expected: {brief(str(error))}.", "record") from error
        return replace(sample, source=f"{self.name} {path.name}, {place}")

    def picture(self, sample: Sample) -> Image.Image:
        """Return the sample's image, upright RGB.

        Raises ``ImageError`` or ``SampleError`` naming the file, also where the sample's boxes are not of the image
        that is read: see ``lyrics.core.data.pictures.check_frame``.
        """
        pictures, key = self._named(sample)
        try:
            picture = pictures.read(key)
        except SampleError as error:
            raise SampleError(f"{sample.source}: {error}", error.kind, sha256=error.sha256) from error
        check_frame(sample, picture)
        return picture

    def find_picture(self, sample: Sample) -> None:
        """Look whether the sample's image is there, without opening it.

        Raises ``ImageError`` or ``SampleError`` where it is not.
        """
        pictures, key = self._named(sample)
        try:
            pictures.find(key)
        except SampleError as error:
            raise SampleError(f"{sample.source}: {error}", error.kind) from error

    def _named(self, sample: Sample) -> tuple[Pictures, str]:
        if sample.image is None or self.pictures is None:
            raise ValueError(f"{sample.source or self.name}: the sample has no image")
        return self.pictures, sample.image
