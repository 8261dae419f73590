"""The tensors of another project's checkpoint, read one at a time, and how one of ours is made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lyrics.core.errors import WeightsError


class SourceCheckpoint(Mapping[str, torch.Tensor]):
    """The tensors of safetensors files: key -> tensor, read when asked for.

    Args:
        path: what the user named, a file or a folder; messages name it, and files that belong to the checkpoint lie
            there.
        files: the safetensors files that hold the tensors.

    Raises ``WeightsError`` when a file cannot be read or two hold the same key.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._open = contextlib.ExitStack()
        self._holder: dict[str, Any] = {}
        for file in files:
            try:
                opened = self._open.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path}: {file.name} cannot be read as safetensors: {error}.") from error
            for key in opened.keys():  # noqa: SIM118
                if key in self._holder:
                    raise WeightsError(f"{path}: {key!r} is in more than one of its files.")
                self._holder[key] = opened

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._holder[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._holder)

    def __len__(self) -> int:
        return len(self._holder)

    @property
    def folder(self) -> Path:
        """Where files that belong to the checkpoint lie beside it."""
        return self.path if self.path.is_dir() else self.path.parent

    def shapes(self) -> dict[str, torch.Tensor]:
        """Return every key with a tensor on the meta device: the shape without the values."""
        return {key: self._shape(key) for key in self}

    def _shape(self, key: str) -> torch.Tensor:
        part = self._holder[key].get_slice(key)
        if part.get_dtype() not in DTYPES:
            raise WeightsError(f"{self.path}: {key!r} is of type {part.get_dtype()}; known are {', '.join(DTYPES)}.")
        return torch.empty(part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta")

    def close(self) -> None:
        self._open.close()


#: As safetensors' header spells them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class Piece:
    """One tensor of the result: ``make`` of the source's tensors of these keys. It also works on the meta device.

    ``first_rows``: the result may be the first rows of a tensor that has more (queries, words), whose others stay as
    they are initialized.
    """

    keys: tuple[str, ...]
    make: Callable[..., torch.Tensor] = itself
    first_rows: bool = False

    def of(self, source: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.make(*(source[key] for key in self.keys))
