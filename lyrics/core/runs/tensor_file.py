"""Tensors as a ``.safetensors`` file, written piece by piece and hashed on the way, without a second copy in memory.

The format: eight bytes with the length of a JSON header, the header (type, shape and place of each tensor), the
tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lyrics.core.errors import CheckpointError
from lyrics.core.runs.disk import CHUNK, Disk

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
}


def write_file(disk: Disk, path: Path, pieces: Iterable[memoryview]) -> tuple[int, str]:
    """Write a new file and make it durable. Returns its size and sha256. Raises ``OSError``."""
    size, sha256 = 0, hashlib.sha256()
    with disk.create(path) as file:
        for piece in pieces:
            for start in range(0, len(piece), CHUNK):
                chunk = piece[start : start + CHUNK]
                sha256.update(chunk)
                size += len(chunk)
                while len(chunk):
                    chunk = chunk[disk.write(file, chunk) :]
        disk.flush(file)
    return size, sha256.hexdigest()


def as_pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of a safetensors file of tensors on the host, in the order given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little"))
    yield memoryview(text)
    for tensor in tensors.values():
        assert tensor.device.type == "cpu"
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a file, on the host. Raises ``CheckpointError`` naming it."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}.") from error
