"""A device that computes nothing: it answers, counts, and leaves the meta device as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lyrics
from lyrics.workflows.bench.fake_device import fake_device


def test_reading_and_copying_to_the_host_are_waits() -> None:
    on_device = torch.empty(3, 2, device="meta")
    with fake_device() as device:
        assert float(on_device.sum()) == 0.0
        assert int(on_device.long().sum()) == 0
        assert bool((on_device > 0).all()) is True
        assert on_device.sum(0).tolist() == [0.0, 0.0]
        assert torch.equal(on_device.cpu(), torch.zeros(3, 2))
        assert len(device.waits) == 5
        assert on_device.to("cpu", non_blocking=True).shape == (3, 2)
        assert (len(device.waits), device.copies) == (5, 1)


def test_copies_to_the_device_are_told_apart() -> None:
    with fake_device() as device:
        torch.ones(4).to("meta")
        torch.ones(3, dtype=torch.int32).to("meta", non_blocking=True)
        assert (len(device.waiting_copies), device.copies, device.copied_bytes) == (1, 1, 28)
        device.clear()
        torch.ones(4, device="meta").to(torch.float64)  # nothing leaves the device
        torch.ones(4).to(torch.float64).clone()
        assert (device.waiting_copies, device.waits, device.copies, device.copied_bytes) == ([], [], 0, 0)


def test_afterwards_the_meta_device_is_as_it_was() -> None:
    for _ in range(2):
        with fake_device():
            torch.ones(1, device="meta").item()
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device="meta").item()
    with pytest.raises(NotImplementedError, match="meta"):
        torch.ones(1, device="meta").cpu()


def test_a_clone_that_is_called_like_the_package_is_not_the_package() -> None:
    """``git clone .../lyrics`` holds ``lyrics/.venv/.../torch``; only the package's own files are places."""
    package = Path(lyrics.__file__).parent.as_posix()
    files = (
        "/home/me/lyrics/.venv/lib/torch/_ops.py",
        f"{package}/core/somewhere.py",
        f"{package}/workflows/bench/x.py",
    )
    with fake_device() as device:
        for file in files:
            exec(compile("value.item()", file, "exec"), {"value": torch.empty((), device="meta")})
    assert device.waits == ["elsewhere", "core/somewhere.py:1 <module>", "elsewhere"]
