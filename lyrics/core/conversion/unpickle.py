"""PyTorch's pickled checkpoints to safetensors: the one place where weights that are a pickle are opened.

A pickle is a program, and these come from other people. So it is opened in a process of its own, by
``torch.load(weights_only=True)``, which knows tensors and plain values and refuses every other name that the pickle
asks to import. There is no second try by other means. The process writes safetensors and ends; what the rest of the
program reads is those.

    python -m lyrics.core.conversion.unpickle pytorch_model.bin FOLDER
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lyrics.core.errors import WeightsError

#: Endings of the files that ``torch.save`` writes.
PICKLED = (".pth", ".pt", ".bin")
#: Where training scripts put the weights beside their own state.
_WRAPPERS = ("model", "state_dict")
#: Tensors are written to several files, so that never more than this is held.
_BYTES_PER_FILE = 2**31
_SECONDS = 3600
_REFUSED = 3


def unpickle(source: Path, folder: Path) -> list[Path]:
    """Return the tensors of ``source`` as safetensors files in ``folder``, written by a process of its own.

    Raises ``WeightsError`` naming the file: it asks to import something, is damaged, or holds other things than tensors
    under names.
    """
    folder.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", __name__, str(source), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{source}: was not read within {_SECONDS} seconds; it is not what it says it is.") from None
    if done.returncode == _REFUSED:
        raise WeightsError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}; is there enough memory?"])[
            -1
        ]
        raise WeightsError(f"{source}: the process that reads it failed: {last}")
    return sorted(folder.glob("*.safetensors"))


def _write(source: Path, folder: Path) -> None:
    """Read, check and write. Runs in the converter's process."""
    from safetensors.torch import save_file

    tensors = _tensors(source, _read(source))
    group: dict[str, Any] = {}
    size = number = 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if group and size + num_bytes > _BYTES_PER_FILE:
            save_file(group, folder / f"{number:05d}.safetensors")
            group, size, number = {}, 0, number + 1
        group[name] = tensor.detach().clone().contiguous()  # tied tensors share memory, which safetensors refuses
        size += num_bytes
    save_file(group, folder / f"{number:05d}.safetensors")


def _read(source: Path) -> Any:
    import torch

    try:
        # Only the format of torch 1.6 and later, a zip, can be mapped instead of read whole.
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{source}: is refused: it asks to import {name[1]}, which a file of weights does not. Nothing of it "
                "was run."
            ) from None
        reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        raise WeightsError(f"{source}: is refused: {_line(reason)}") from None
    except Exception as error:  # a damaged file may raise anything
        raise WeightsError(f"{source}: is not a file that torch.save wrote, or is damaged: {_line(error)}") from None


def _line(error: object) -> str:
    """Return the first line of a message, or the kind of an error without one."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tensors(source: Path, loaded: Any) -> dict[str, Any]:
    """Return the state dict, whichever way it is wrapped.

    Raises ``WeightsError`` for anything but plain dense tensors under text names.
    """
    import torch

    state = loaded
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{source}: holds {_article(state)}, not tensors under names.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"{source}: holds {_article(tensor)} under {name!r}, where tensors under names are expected."
            )
        if (
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.is_quantized
        ):
            raise WeightsError(f"{source}: {name!r} is {_article(tensor)} that is not a plain dense tensor.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(
                f"{source}: {name!r} of shape {list(tensor.shape)} claims more values than the file holds."
            )
    return dict(state)


def _article(value: object) -> str:
    kind = f"{type(value).__name__}{' without anything in it' if isinstance(value, Mapping) and not value else ''}"
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


if __name__ == "__main__":
    try:
        _write(Path(sys.argv[1]), Path(sys.argv[2]))
    except WeightsError as refusal:
        sys.stderr.write(f"{refusal}\n")
        sys.exit(_REFUSED)
