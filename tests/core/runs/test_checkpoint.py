"""Checkpoints: whole or not there, whatever stops the process, fails the disk, or changes the bytes."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lyrics.core.errors import CheckpointError
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.checkpoint import Checkpoint, load, newest_valid, prune, remove_leftovers, save
from lyrics.core.runs.disk import Disk
from lyrics.core.runs.tensor_file import as_pieces, write_file
from lyrics.core.training.writer import CheckpointWriter
from tests.core.training.runs import FaultyDisk, StoppedError, snapshot, some_tensors

FACTS = {"config": "abc"}


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(some_tensors(step), some_tensors(step + 1000), {"step": step, "seed": 3})


def equal(found: Checkpoint, wanted: Checkpoint) -> bool:
    return found.state == wanted.state and all(
        set(have) == set(want)
        and all(have[name].dtype == want[name].dtype and torch.equal(have[name], want[name]) for name in want)
        for have, want in ((found.trained, wanted.trained), (found.optimizer, wanted.optimizer))
    )


def never(text: str) -> None:
    raise AssertionError(text)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = save(Disk(), tmp_path, checkpoint(7), FACTS)
    assert folder.name == "step-00000007"
    assert equal(load(folder), checkpoint(7))
    assert newest_valid(tmp_path, never) == folder


def test_the_tensor_file_is_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    size, _ = write_file(Disk(), path, as_pieces(some_tensors()))
    assert size == path.stat().st_size
    found = load_file(path)
    assert set(found) == set(some_tensors())
    assert all(torch.equal(found[name], tensor) for name, tensor in some_tensors().items())


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    save(Disk(), tmp_path, checkpoint(1), FACTS)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        save(Disk(), tmp_path, checkpoint(1), FACTS)
    assert snapshot(tmp_path) == before


def calls_of_a_save(folder: Path) -> int:
    disk = FaultyDisk()
    folder.mkdir()
    save(disk, folder, checkpoint(2), FACTS)
    return disk.calls


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_a_stop_at_any_call_leaves_a_whole_checkpoint(tmp_path: Path, how: str) -> None:
    """T3: the process ends at, within or after every single call of a save."""
    calls = calls_of_a_save(tmp_path / "counted")
    assert calls >= 20
    outcomes = set()
    for at in range(1, calls + 1):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        save(Disk(), folder, checkpoint(1), FACTS)
        with pytest.raises(StoppedError):
            save(FaultyDisk(at, how), folder, checkpoint(2), FACTS)
        found = newest_valid(folder, never)  # what is torn has no checkpoint's name, so nothing is passed over
        assert found is not None
        step = checkpoints.step_of(found)
        assert equal(load(found), checkpoint(step or 0))
        outcomes.add(step)
        remove_leftovers(Disk(), folder)
        save(Disk(), folder, checkpoint(3), FACTS)
        names = {path.name for path in folder.iterdir()}
        assert names == {"step-00000001", "step-00000003"} | ({found.name} if step == 2 else set())
    # Only the calls after the rename, or the rename itself, leave the new one.
    assert outcomes == {1, 2}


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", ["ENOSPC", "EFBIG", "EIO"])
def test_a_failing_call_leaves_the_last_checkpoint_as_it_was(tmp_path: Path, code: str, lasting: bool) -> None:
    """T4: every single call fails once, or all from there on."""
    calls = calls_of_a_save(tmp_path / "counted")
    for at in range(1, calls + 1):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        first = save(Disk(), folder, checkpoint(1), FACTS)
        before = snapshot(first)
        with pytest.raises(OSError, match=r"space|large|Input"):
            save(FaultyDisk(at, code, lasting), folder, checkpoint(2), FACTS)
        assert snapshot(first) == before
        assert not list(folder.glob("*.tmp-*")), "nothing half-written is left"
        if at < calls:  # the last call makes the rename durable: the new one is there already
            assert [path.name for path in folder.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_stop_while_old_ones_are_deleted(tmp_path: Path, how: str) -> None:
    for at in (1, 2, 3, 4):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        for step in (1, 2, 3, 4):
            save(Disk(), folder, checkpoint(step), FACTS)
        with pytest.raises(StoppedError):
            prune(FaultyDisk(at, how), folder, 2)
        for found in checkpoints.finished(folder):
            checkpoints.verify(found)
        remove_leftovers(Disk(), folder)
        prune(Disk(), folder, 2)
        assert {path.name for path in folder.iterdir()} == {"step-00000003", "step-00000004"}


def test_changed_bytes_never_pass(tmp_path: Path) -> None:
    """T5: 1,000 times some bytes of some file are flipped, cut, added, or the file is gone."""
    good = tmp_path / "good"
    good.mkdir()
    save(Disk(), good, checkpoint(1), FACTS)
    save(Disk(), good, checkpoint(2), FACTS)
    whole = snapshot(good / "step-00000002")
    draw = random.Random(0)
    for trial in range(1000):
        name = draw.choice(sorted(whole))
        path = good / "step-00000002" / name
        data = bytearray(whole[name])
        match draw.randrange(5):
            case 0 | 1:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 2:
                del data[draw.randrange(len(data)) :]
            case 3:
                data += bytes(draw.randrange(1, 50))
            case 4:
                start = draw.randrange(len(data))
                data[start : start + 8] = draw.randbytes(8)
        if bytes(data) == whole[name]:
            continue
        path.write_bytes(data)
        said: list[str] = []
        assert newest_valid(good, said.append) == good / "step-00000001", f"trial {trial}: {name}"
        assert len(said) == 1
        assert str(path) in said[0]
        with pytest.raises(CheckpointError, match=name):
            load(good / "step-00000002")
        path.write_bytes(whole[name])
    assert newest_valid(good, never) == good / "step-00000002"


@pytest.mark.parametrize("name", ["trainable.safetensors", "optim.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save(Disk(), tmp_path, checkpoint(1), FACTS)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_a_folder_under_another_step_s_name_is_refused(tmp_path: Path) -> None:
    folder = save(Disk(), tmp_path, checkpoint(1), FACTS)
    shutil.copytree(folder, tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="is of step 1; the folder has another name"):
        load(tmp_path / "step-00000009")


def test_a_manifest_of_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = save(Disk(), tmp_path, checkpoint(1), FACTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    (folder / "manifest.json").write_bytes(checkpoints._sealed(manifest | {"format": 2}))
    with pytest.raises(CheckpointError, match="has format 2; this version of lyrics reads 1"):
        load(folder)


# --- the writer ---


def test_a_save_does_not_see_later_updates(tmp_path: Path) -> None:
    """T12: 100 saves of tensors that are changed as soon as ``save`` returns."""
    writer = CheckpointWriter(tmp_path, 100, FACTS, never)
    tensors = {"a": torch.zeros(20_000), "b": torch.zeros(3, dtype=torch.float64)}
    moments = {"a/step": torch.zeros(())}
    for step in range(1, 101):
        for tensor in (*tensors.values(), *moments.values()):
            tensor.fill_(step)
        writer.save(tensors, moments, {"step": step})
        for tensor in (*tensors.values(), *moments.values()):
            tensor.fill_(-1)
    writer.wait()
    for step in range(1, 101):
        found = load(tmp_path / checkpoints.folder_name(step))
        for tensor in (*found.trained.values(), *found.optimizer.values()):
            assert (tensor == step).all(), step


def test_the_newest_are_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 2, FACTS, never)
    for step in (10, 20, 30, 40):
        writer.save(some_tensors(), {}, {"step": step})
    writer.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000030", "step-00000040"}


def test_failures_are_counted_in_a_row(tmp_path: Path) -> None:
    said: list[str] = []
    disk = FaultyDisk(at=3, how="ENOSPC")
    writer = CheckpointWriter(tmp_path, 2, FACTS, said.append, disk)
    writer.save(some_tensors(), {}, {"step": 1})
    writer.wait()
    assert writer.failures == 1
    assert "save step 1" in said[0]
    assert "No space left" in said[0]
    disk.at = disk.calls + 2
    writer.save(some_tensors(), {}, {"step": 2})
    writer.wait()
    assert writer.failures == 2
    writer.save(some_tensors(), {}, {"step": 3})
    writer.wait()
    assert writer.failures == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_fault_that_is_not_the_disk_s_is_raised(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 2, FACTS, never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.save({"a": torch.zeros(2, dtype=torch.complex64)}, {}, {"step": 1})
        with pytest.raises(KeyError):
            writer.wait()
