"""A model folder: ``spec.json`` and ``model.safetensors``. No pickle is ever written or read.

Tensors that share storage (tied weights) are stored once, under the first of their names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lyrics.core.errors import WeightsError
from lyrics.core.spec import dump

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

SPEC_FILE = "spec.json"
WEIGHTS_FILE = "model.safetensors"


def spec_file(folder: str | os.PathLike[str]) -> Path:
    """The spec of a model folder. Raises ``WeightsError`` when ``folder`` is none."""
    path = Path(folder) / SPEC_FILE
    if not path.is_file():
        raise WeightsError(f"{folder}: is not a model folder: it has no {SPEC_FILE}.")
    return path


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


def save_weights(model: LyricsModel, folder: str | os.PathLike[str]) -> None:
    """Write the model's resolved spec and all its tensors to ``folder``, which is made if need be.

    Raises ``WeightsError`` for a model on the meta device: it has no values.
    """
    tensors = stored_tensors(model)
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise WeightsError(f"a model built with weights='meta' has no values to save (such as {empty[0]}).")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(on_cpu, path / WEIGHTS_FILE, {"format": "pt"})
    dump(model.spec, path / SPEC_FILE)


def load_weights(model: torch.nn.Module, folder: str | os.PathLike[str]) -> None:
    """Fill every tensor of ``model`` from ``folder``.

    Raises ``WeightsError`` naming the file and its missing, unexpected and misshapen tensors.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; a model folder holds {SPEC_FILE} and {WEIGHTS_FILE}.")
    wanted = stored_tensors(model)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _match(path, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, shapes)
            with torch.no_grad():
                for name, tensor in wanted.items():
                    tensor.copy_(file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}.") from error


def _match(path: Path, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
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
        raise WeightsError(f"{path}: does not fit the model of {SPEC_FILE}: {'; '.join(complaints)}.")
