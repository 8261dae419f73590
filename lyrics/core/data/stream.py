"""The data order, read: position -> sample and image, with bad samples replaced and failing storage waited for.

- *A bad sample* (``SampleError``, ``ImageError``, ``GeometryError``) is replaced by another row of its data set,
  which (seed, position, attempt) fix, and written to the ledger. Batches never change their size, and a run in which
  the bad rows were known beforehand is the same.
- *Storage* (``OSError``) says nothing about the sample. What may pass is tried again after a while; then the run
  stops, naming the file.
- *Anything else* is a mistake in the code and is raised as it is, with the sample named.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lyrics.core.contracts import Dataset
from lyrics.core.data.ledger import BadSample, Ledger
from lyrics.core.data.mixture import Mixture, Place
from lyrics.core.data.phases import PhasedMixture
from lyrics.core.errors import DatasetError, GeometryError, ImageError, SampleError, StorageError
from lyrics.core.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

RETRY_DELAYS_S = (0.1, 0.5, 2.0, 8.0)
#: A run stops after so many bad samples in a row, or when so large a share of the last ``WINDOW`` is bad.
MAX_CONSECUTIVE = 100
MAX_BAD_SHARE = 0.05
WINDOW = 20_000
#: Rows that are tried for one position, those that are known to be bad included.
MAX_DRAWS = 1_000
# Not on every system.
_NAMES = (
    *("EIO", "EAGAIN", "EINTR", "EBUSY", "ETIMEDOUT", "ESTALE", "EPIPE", "EREMOTEIO", "EHOSTDOWN", "EHOSTUNREACH"),
    *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED", "ENOTCONN"),
)
_TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))


class _BadSampleError(Exception):
    """Carries the cause, and the name that the sample has for itself if it could be read."""

    def __init__(self, cause: SampleError | ImageError | GeometryError, source: str) -> None:
        self.cause, self.source = cause, source


@dataclass(frozen=True)
class Example:
    """What stands at a position: the sample, and its image if it has one.

    ``position`` fixes every random draw about it; ``data_set`` and ``row`` say where it was read, after any
    replacement.
    """

    position: int
    data_set: str
    row: int
    sample: Sample
    picture: PILImage | None


class SampleStream:
    """The map-style data set of a ``torch.utils.data.DataLoader`` whose ``batch_sampler`` is a ``StepSampler``.

    Args:
        mixture: the order.
        datasets: one for each of the mixture's sources, by name.
        ledger: where bad samples are written; None writes none.
        known_bad: rows per data set that are replaced without being read, as ``ledger.known_bad`` gives them.
        max_bad_share: see ``MAX_BAD_SHARE``; counted in each worker by itself, known ones not counted.
        retry_delays_s: waits before each further try of a transient failure, in seconds.

    Raises ``DatasetError`` when the mixture and the data sets do not have the same names and lengths.
    """

    def __init__(
        self,
        mixture: Mixture | PhasedMixture,
        datasets: Mapping[str, Dataset],
        *,
        ledger: Ledger | None = None,
        known_bad: Mapping[str, Collection[int]] | None = None,
        max_bad_share: float = MAX_BAD_SHARE,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        for source in mixture.sources:
            if source.name not in datasets:
                raise DatasetError(f"the mixture names {source.name!r}, but there is no such data set here")
            if len(datasets[source.name]) != source.rows:
                raise DatasetError(
                    f"data set {source.name!r} has {len(datasets[source.name])} rows, but the mixture was made for "
                    f"{source.rows}"
                )
        self.mixture, self.datasets, self.ledger = mixture, datasets, ledger
        self.known_bad = known_bad or {}
        self.max_bad_share, self.retry_delays_s = max_bad_share, tuple(retry_delays_s)
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._recent_bad = 0
        self._consecutive = 0

    def __len__(self) -> int:
        """Positions of one epoch; positions go on after it."""
        return len(self.mixture)

    def __getitem__(self, position: int) -> Example:
        """Raises ``StorageError`` when storage goes on failing, ``DatasetError`` when too many samples are bad."""
        place = self.mixture.sample_at(position)
        for attempt in range(1, MAX_DRAWS + 1):
            name = self.mixture.sources[place.source].name
            if place.row not in self.known_bad.get(name, ()):
                try:
                    example = self._read(position, place)
                except _BadSampleError as found_bad:
                    self._bad(name, place.row, found_bad)
                else:
                    self._count(bad=False)
                    return example
            place = self.mixture.replacement(position, attempt)
        raise DatasetError(
            f"data set {name!r}: nearly all rows are known to be bad; no good one was met in {MAX_DRAWS} draws"
        )

    def _read(self, position: int, place: Place) -> Example:
        name = self.mixture.sources[place.source].name
        for delay_s in (*self.retry_delays_s, None):
            try:
                return self._read_once(position, name, place.row)
            except OSError as error:
                transient = error.errno in _TRANSIENT or isinstance(error, TimeoutError | ConnectionError)
                if delay_s is None or not transient:
                    tries = f", also when tried {len(self.retry_delays_s)} times more" if transient else ""
                    raise StorageError(
                        f"{error.filename or 'a file'} (data set {name!r}, row {place.row}) cannot be read{tries}: "
                        f"{error.strerror or error}. This is the storage, not the sample: fix it and resume; the "
                        "order stays the same."
                    ) from error
                time.sleep(delay_s)
        raise AssertionError("the last try returns or raises")

    def _read_once(self, position: int, name: str, row: int) -> Example:
        data = self.datasets[name]
        sample: Sample | None = None
        try:
            sample = data[row]
            picture = None if sample.image is None else data.picture(sample)
        except (SampleError, ImageError, GeometryError) as error:
            raise _BadSampleError(error, sample.source if sample else "") from error
        except OSError:
            raise
        except Exception as error:
            error.add_note(f"while reading row {row} of data set {name!r}" + (f" ({sample.source})" if sample else ""))
            raise
        return Example(position, name, row, sample, picture)

    def _bad(self, name: str, row: int, found_bad: _BadSampleError) -> None:
        error = found_bad.cause
        if self.ledger is not None:
            kind, sha256 = ("box", None) if isinstance(error, GeometryError) else (error.kind, error.sha256)
            self.ledger.add(BadSample(name, row, found_bad.source, kind, f"{type(error).__name__}: {error}", sha256))
        self._count(bad=True)
        seen = f"; see {self.ledger.path}" if self.ledger is not None else ""
        if self._consecutive >= MAX_CONSECUTIVE:
            raise DatasetError(
                f"{MAX_CONSECUTIVE} bad samples in a row; the last is row {row} of data set {name!r}: {error}{seen}"
            ) from error
        if self._recent_bad > self.max_bad_share * WINDOW:
            raise DatasetError(
                f"{self._recent_bad} of the last {len(self._recent)} samples were bad, more than "
                f"{self.max_bad_share:.1%} of {WINDOW}; the last is row {row} of data set {name!r}: {error}{seen}"
            ) from error

    def _count(self, *, bad: bool) -> None:
        self._consecutive = self._consecutive + 1 if bad else 0
        if len(self._recent) == WINDOW:
            self._recent_bad -= self._recent[0]
        self._recent.append(bad)
        self._recent_bad += bad
