"""The one place where pickled weights are opened: tensors pass, every other name is refused, and nothing runs.

A process that imports torch takes seconds to start, so what it does is tested by calling it here; ``test_convert.py``
starts it.
"""

from __future__ import annotations

import builtins
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lyrics.core.conversion import unpickle as module
from lyrics.core.conversion.unpickle import unpickle
from lyrics.core.errors import WeightsError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}


class Trap:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Custom:
    pass


def read(path: Path) -> dict[str, torch.Tensor]:
    """What the converter's process writes, without the process."""
    out = path.parent / "read"
    out.mkdir()
    module._write(path, out)
    return {name: tensor for file in sorted(out.iterdir()) for name, tensor in load_file(file).items()}


def saved(folder: Path, value: object, *, zipped: bool = True) -> Path:
    path = folder / "weights.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_out_as_they_were_whatever_wraps_them(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, {"model": OrderedDict(STATE), "epoch": 3, "config": {"lr": 0.1}}, zipped=zipped)
    assert zipfile.is_zipfile(path) is zipped
    found = read(path)
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tied_parameters_and_views_are_written_each(tmp_path: Path) -> None:
    shared = torch.nn.Parameter(torch.randn(4, 4))
    found = read(saved(tmp_path, {"x": shared, "y": shared, "z": shared.detach()[:2].t()}))
    assert torch.equal(found["x"], shared)
    assert torch.equal(found["y"], shared)
    assert torch.equal(found["z"], shared[:2].t())


def test_a_large_file_becomes_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BYTES_PER_FILE", 100)
    state = {f"{number}": torch.full((10,), float(number)) for number in range(7)}
    out = tmp_path / "out"
    out.mkdir()
    module._write(saved(tmp_path, state), out)
    files = sorted(out.iterdir())
    assert [len(load_file(file)) for file in files] == [2, 2, 2, 1]
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, r"(posix|nt)\.system"), (builtins.eval, "eval"), (os.mkdir, r"(posix|nt)\.mkdir")],
)
def test_a_call_is_refused_by_name_and_not_made(
    tmp_path: Path, function: Callable[..., object], name: str, zipped: bool
) -> None:
    mark = tmp_path / "mark"
    argument = {os.system: f"touch {mark}", builtins.eval: f"open({str(mark)!r}, 'w')", os.mkdir: str(mark)}[function]
    path = saved(tmp_path, {"model": {"x": torch.ones(1), "y": Trap(function, argument)}}, zipped=zipped)
    with pytest.raises(
        WeightsError, match=rf"weights.pth: is refused: it asks to import {name}, .* Nothing of it was run"
    ):
        read(path)
    assert not mark.exists()
    assert not list((tmp_path / "read").iterdir())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Custom(), r"asks to import tests\.core\.conversion\.test_unpickle\.Custom"),
        ({"x": date(2020, 1, 1)}, r"asks to import datetime\.date"),
        ({"x": torch.ones(2), "y": 3}, "holds an int under 'y'"),
        ({"x": torch.ones(2), 3: torch.ones(2)}, "holds a Tensor under 3"),
        ([torch.ones(2)], "holds a list, not tensors under names"),
        ({}, "holds a dict without anything in it"),
        ({"x": torch.ones(3, 3).to_sparse()}, "'x' is a Tensor that is not a plain dense tensor"),
        ({"x": torch.ones(1).expand(10**9)}, r"'x' of shape \[1000000000\] claims more values than the file holds"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, value: object, message: str) -> None:
    path = saved(tmp_path, value)
    with pytest.raises(WeightsError, match=f"weights.pth: .*{message}"):
        module._tensors(path, module._read(path))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = saved(tmp_path, {"x": torch.randn(1000)}, zipped=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(
        WeightsError, match=r"weights.pth: is (not a file that torch.save wrote, or is damaged|refused)"
    ):
        module._read(path)


def test_a_plain_pickle_is_not_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps(Trap(os.mkdir, str(tmp_path / "mark"))))
    with pytest.raises(WeightsError, match=r"weights.bin: is"):
        read(path)
    assert not (tmp_path / "mark").exists()


def test_a_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(WeightsError, match=r"weights.pth: the process that reads it failed: it ended with code 1"):
        unpickle(saved(tmp_path, STATE), tmp_path / "out")
