"""The tensors of a model folder: safetensors, in one file or in shards with an index.

No pickle is ever written or read.

Tensors that share storage (tied weights) are stored once, under the first of their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lyrics.core.errors import WeightsError
from lyrics.core.json_reading import read_json

WEIGHTS_FILE = "model.safetensors"
#: Which shard holds which tensor, as transformers writes it.
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: A model may have so many times the tensors and the numbers of its file (tied, adapted or left out), and so many more.
_SLACK = 4
_MORE_TENSORS, _MORE_NUMBERS = 4096, 10_000_000


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of a tensor before it is read.

    Its shape, and its type as the format spells it (``BF16``).
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_floating_point(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def stored_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without the second and later names of a tensor that several modules share."""
    state = model.state_dict(keep_vars=True)
    return {names[0]: state[names[0]] for names in shared_names(model)}


def shared_names(model: torch.nn.Module) -> list[list[str]]:
    """Return the names of each tensor of the state dict, several where modules share it."""
    found: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        storage = id(tensor) if tensor.is_meta else tensor.data_ptr()
        # Empty tensors share an address, and nothing else.
        key = (storage, tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        found.setdefault(key, []).append(name)
    return list(found.values())


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
        headers = _headers(where, opened)
        if others == "ignore":
            headers = {name: header for name, header in headers.items() if name in wanted}
        _match(source, wanted, headers)
        with torch.no_grad():
            for name, tensor in wanted.items():
                with _reading(where[name]):
                    found = opened[where[name]].get_tensor(name)
                check_finite([(name, found)], where[name])
                tensor.copy_(found)


def tensor_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files that hold the tensors of a folder. Raises ``WeightsError`` where there is none."""
    return sorted(set(_files(Path(folder)).values()))


def tensor_headers(folder: str | os.PathLike[str]) -> dict[str, TensorHeader]:
    """Return the shape and type of every tensor of a folder. Raises ``WeightsError`` for a file that cannot be read."""
    where = _files(Path(folder))
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {file: stack.enter_context(_opened(file)) for file in sorted(set(where.values()))}
        return _headers(where, opened)


def file_headers(file: Path) -> dict[str, TensorHeader]:
    """Shape and type of every tensor of a safetensors file. Raises ``WeightsError`` for a file that cannot be read."""
    with _opened(file) as tensors:
        return _headers(dict.fromkeys(tensors.keys(), file), {file: tensors})


def _headers(where: Mapping[str, Path], opened: Mapping[Path, Any]) -> dict[str, TensorHeader]:
    headers: dict[str, TensorHeader] = {}
    for name, file in where.items():
        with _reading(file):
            found = opened[file].get_slice(name)
            headers[name] = TensorHeader(tuple(found.get_shape()), str(found.get_dtype()))
    return headers


@contextlib.contextmanager
def bounded(headers: Iterable[TensorHeader], source: object) -> Iterator[None]:
    """Parameters made inside stay near the count and size of ``headers``, the tensors that are to fill them.

    A specification or a configuration may ask for a million layers where the file holds two; nothing of that kind is
    built to the end.

    Raises ``WeightsError`` naming ``source`` at the first parameter beyond the bound.
    """
    from torch.nn.modules import module as modules

    own = [math.prod(header.shape) for header in headers]
    most_tensors, most_numbers = _SLACK * len(own) + _MORE_TENSORS, _SLACK * sum(own) + _MORE_NUMBERS
    tensors = numbers = 0
    thread = threading.get_ident()

    def count(_module: object, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None or threading.get_ident() != thread:
            return
        tensors += 1
        numbers += tensor.numel()
        if tensors > most_tensors or numbers > most_numbers:
            raise WeightsError(
                f"{source}: holds {len(own):,} tensors of {sum(own):,} numbers, and its configuration asks for far "
                f"more (stopped at {name} {list(tensor.shape)}). The two do not belong together; fetch the folder "
                "again."
            )

    hooks = (
        modules.register_module_parameter_registration_hook(count),
        modules.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def headers_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorHeader]:
    """Return what a file of these tensors would say of them."""
    kinds = {torch.bfloat16: "BF16", torch.bool: "BOOL"}
    return {
        name: TensorHeader(
            tuple(one.shape), kinds.get(one.dtype, f"{'F' if one.is_floating_point() else 'I'}{one.itemsize * 8}")
        )
        for name, one in tensors.items()
    }


def check_types(headers: Mapping[str, TensorHeader], source: object) -> None:
    """Raise ``WeightsError`` for weights of whole numbers: a cast would make noise of their bytes.

    Buffers may be of any type.
    """
    odd = [
        f"{name} ({header.dtype})"
        for name, header in headers.items()
        if name.endswith("weight") and not header.is_floating_point
    ]
    if odd:
        raise WeightsError(
            f"{source}: {len(odd)} weights are not of a floating-point type: {', '.join(odd[:3])}"
            f"{', ...' if len(odd) > 3 else ''}. The file is damaged, or of a quantization that is not read."
        )


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], source: object) -> None:
    """Raise ``WeightsError`` naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        smallest, largest = torch.aminmax(tensor.detach())  # one pass without a copy; NaN goes through
        if not (math.isfinite(smallest.item()) and math.isfinite(largest.item())):
            raise WeightsError(
                f"{source}: {name} holds values that are not finite (NaN or infinity). "
                "The file is damaged, or was saved from a run that had diverged."
            )


def _files(folder: Path) -> dict[str, Path]:
    """Return where each tensor is."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            written = read_json(index)["weight_map"]
            names = {str(name): str(file) for name, file in written.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _match(source: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, TensorHeader]) -> None:
    common = sorted(set(wanted) & set(found))
    faults = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "of another shape": _misshapen({name: wanted[name] for name in common}, found),
        "of another kind of type": [
            f"{n} {found[n].dtype}, not {wanted[n].dtype}"
            for n in common
            if found[n].is_floating_point != wanted[n].is_floating_point()
        ],
    }
    complaints = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in faults.items()
        if names
    ]
    if complaints:
        raise WeightsError(f"{source}: does not fit the model of spec.json: {'; '.join(complaints)}.")


def _misshapen(wanted: Mapping[str, torch.Tensor], found: Mapping[str, TensorHeader]) -> list[str]:
    return [
        f"{name} {found[name].shape}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if found[name].shape != tuple(tensor.shape)
    ]


def check_shapes(model: torch.nn.Module, prefix: str, headers: Mapping[str, TensorHeader], source: object) -> None:
    """Compare a part with the tensors of a model folder whose names begin with ``prefix``.

    The part may be on the meta device.

    Only tensors that both have are compared. Raises ``WeightsError`` naming the first of another shape.
    """
    own = {prefix + name: tensor for name, tensor in stored_tensors(model).items()}
    wrong = _misshapen({name: tensor for name, tensor in own.items() if name in headers}, headers)
    if wrong:
        raise WeightsError(
            f"{source}: does not fit the model of spec.json: {len(wrong)} of another shape: {', '.join(wrong[:3])}"
            f"{', ...' if len(wrong) > 3 else ''}."
        )


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return sha256 over names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        if plain.numel():
            found.update(plain.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
