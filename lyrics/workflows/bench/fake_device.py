"""A device that computes nothing and counts what the host asks of it: torch's meta device, with answers.

The meta device runs every operation as far as its shapes. Here it also answers whoever reads a value or copies to the
host, with zeros, and counts these: on a GPU each is a wait for all that was launched before. Copies from the host are
counted with their bytes.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

#: A file of this package, other than those that measure, says where a wait was asked for. The package's folder, not any
#: of its name: a clone is mostly called so, too, and may hold the environment with torch.
_OWN = f"{Path(__file__).parents[2].as_posix()}/"


@dataclass
class FakeDevice:
    """What was asked of the device in ``fake_device``.

    Attributes:
        waits: for each value that the host read or copied to itself, the place in this package that asked.
        copies: copies to the device that the host need not wait for (``non_blocking``).
        waiting_copies: the other ones, by place.
        copied_bytes: of both.
        places: whether places are looked up, which takes time.
    """

    places: bool = True
    waits: list[str] = field(default_factory=list)
    copies: int = 0
    waiting_copies: list[str] = field(default_factory=list)
    copied_bytes: int = 0

    def clear(self) -> None:
        self.waits.clear()
        self.waiting_copies.clear()
        self.copies = self.copied_bytes = 0

    def _place(self) -> str:
        if not self.places:
            return ""
        for frame in reversed(traceback.extract_stack()):
            name = frame.filename.replace("\\", "/")
            inside = name.removeprefix(_OWN)
            if inside != name and not inside.startswith("workflows/bench/"):
                return f"{inside}:{frame.lineno} {frame.name}"
        return "elsewhere"

    def _read(self, value: torch.Tensor) -> Any:
        self.waits.append(self._place())
        if value.dtype == torch.bool:
            return True
        return 0.0 if value.dtype.is_floating_point else 0

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if source.is_meta and not target.is_meta:
            if non_blocking:
                self.copies += 1
            else:
                self.waits.append(self._place())
            return target.zero_()
        if target.is_meta and not source.is_meta:
            if non_blocking:
                self.copies += 1
            else:
                self.waiting_copies.append(self._place())
            self.copied_bytes += source.numel() * source.element_size()
        return target


@contextlib.contextmanager
def fake_device(*, places: bool = True) -> Iterator[FakeDevice]:
    """In this context the device ``meta`` answers and is counted; every other device is as it was."""
    found = FakeDevice(places)
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another implementation stands there
            library.impl("_local_scalar_dense", found._read, "Meta", allow_override=True)
            library.impl("copy_", found._copy, "Meta", allow_override=True)
        yield found
    finally:
        library._destroy()
