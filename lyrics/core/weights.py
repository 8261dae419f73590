"""The tensors of a model folder: safetensors, in one file or in shards with an index. No pickle is ever written or read.

Tensors that share storage (tied weights) are stored once, under the first of their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lyrics.core.errors import WeightsError

WEIGHTS_FILE = "model.safetensors"
#: Which shard holds which tensor, as transformers writes it.
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def stored_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without the second and later names of a tensor that several modules share."""
    seen: set[tuple[object, ...]] = set()
    kept = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        storage = id(tensor) if tensor.is_meta else tensor.data_ptr()
        key = (storage, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or key not in seen:
            kept[name] = tensor
            seen.add(key)
    return kept


def save_tensors(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write ``model.safetensors``. Raises ``WeightsError`` for tensors on the meta device: they have no values."""
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise WeightsError(f"a model built with weights='meta' has no values to save (such as {empty[0]}).")
    folder.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(on_cpu, folder / WEIGHTS_FILE, {"format": "pt"})
    # An index of shards that were here before would be read in this file's place.
    (folder / INDEX_FILE).unlink(missing_ok=True)


def load_tensors(wanted: Mapping[str, torch.Tensor], folder: str | os.PathLike[str], *, others: str = "refuse") -> None:
    """Fill every tensor of ``wanted`` from a model folder.

    ``others="ignore"`` passes over tensors of the folder that are not wanted.

    Raises ``WeightsError`` naming the file and its missing, unexpected and misshapen tensors.
    """
    path = Path(folder)
    where = _files(path)
    source = path / (WEIGHTS_FILE if set(where.values()) <= {path / WEIGHTS_FILE} else INDEX_FILE)
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {file: stack.enter_context(_opened(file)) for file in sorted(set(where.values()))}
        shapes = _shapes(where, opened)
        if others == "ignore":
            shapes = {name: shape for name, shape in shapes.items() if name in wanted}
        _match(source, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, shapes)
        with torch.no_grad():
            for name, tensor in wanted.items():
                with _reading(where[name]):
                    tensor.copy_(opened[where[name]].get_tensor(name))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model folder. Raises ``WeightsError`` for a file that cannot be read."""
    where = _files(folder)
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {file: stack.enter_context(_opened(file)) for file in sorted(set(where.values()))}
        return _shapes(where, opened)


def _shapes(where: Mapping[str, Path], opened: Mapping[Path, Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, file in where.items():
        with _reading(file):
            shapes[name] = tuple(opened[file].get_slice(name).get_shape())
    return shapes


def _files(folder: Path) -> dict[str, Path]:
    """Where each tensor is."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            written = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = {str(name): str(file) for name, file in written.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{index}: not an index of shards: {type(error).__name__}: {error}.") from error
        for shard in set(names.values()):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise WeightsError(f"{index}: {shard!r} is not the name of a safetensors file beside it.")
            if not (folder / shard).is_file():
                raise WeightsError(f"{folder / shard}: no such file; {INDEX_FILE} names it.")
        return {name: folder / shard for name, shard in names.items()}
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickles = sorted(found.name for found in folder.iterdir() if found.suffix in _PICKLES)
        pickled = f" {pickles[0]} is a pickle, which could run code and is never read." if pickles else ""
        raise WeightsError(
            f"{file}: no such file; a model folder holds {WEIGHTS_FILE}, or shards and {INDEX_FILE}.{pickled}"
        )
    with _opened(file) as tensors:
        return dict.fromkeys(tensors.keys(), file)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: not a readable safetensors file: {error}.") from error


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with _reading(file):
        tensors = safe_open(file, framework="pt")
    with tensors as found:
        yield found


def _match(source: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    common = sorted(set(wanted) & set(found))
    faults = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "of another shape": [f"{n} {found[n]}, not {wanted[n]}" for n in common if found[n] != wanted[n]],
    }
    complaints = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in faults.items()
        if names
    ]
    if complaints:
        raise WeightsError(f"{source}: does not fit the model of spec.json: {'; '.join(complaints)}.")


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        if plain.numel():
            found.update(plain.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
