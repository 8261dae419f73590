"""A checkpoint on disk: a folder that is whole or is not there, and the rule by which the newest whole one is found.

``checkpoints/step-00012000`` holds the trained tensors, the optimizer's, ``state.json``, and last ``manifest.json``
with the size and sha256 of the others and of itself. It is written under another name, made durable file by file, and
renamed; so whatever stops the process, what carries the final name is complete, and what is not complete is seen to be
so. No pickle is written or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lyrics.core.errors import CheckpointError
from lyrics.core.json_reading import parse_json, read_json
from lyrics.core.runs.disk import CHUNK, Disk
from lyrics.core.runs.folder import step_of
from lyrics.core.runs.tensor_file import as_pieces, read_tensors, write_file

TRAINED_FILE = "trainable.safetensors"
OPTIMIZER_FILE = "optim.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_OWN = "manifest_sha256"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds: trained tensors and the optimizer's by name, and plain data with ``step``, the number of
    finished steps.
    """

    trained: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def save(disk: Disk, folder: Path, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Path:
    """Write ``folder/step-...``. All tensors are on the host and are not changed meanwhile.

    ``facts`` are plain data for the manifest (versions, the configuration's hash). Raises ``OSError``; then what was
    there before is untouched, and nothing half-written is left.
    """
    final = folder / folder_name(checkpoint.step)
    if final.exists():
        raise FileExistsError(f"{final} is there already; a checkpoint is never overwritten")
    aside = folder / f"{final.name}.tmp-{uuid.uuid4().hex[:12]}"
    disk.make_folder(aside)
    try:
        state = memoryview(_as_json(checkpoint.state))
        files = {}
        for name, pieces in (
            (TRAINED_FILE, as_pieces(checkpoint.trained)),
            (OPTIMIZER_FILE, as_pieces(checkpoint.optimizer)),
            (STATE_FILE, iter([state])),
        ):
            size, sha256 = write_file(disk, aside / name, pieces)
            files[name] = {"size": size, "sha256": sha256}
        manifest = {"format": _FORMAT, "step": checkpoint.step, "files": files, **facts}
        write_file(disk, aside / MANIFEST_FILE, iter([memoryview(_sealed(manifest))]))
        disk.flush_folder(aside)
        disk.rename(aside, final)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(aside)
        raise
    disk.flush_folder(folder)
    return final


def prune(disk: Disk, folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints.

    Each loses its name first, so that no half-deleted one can be taken for whole.
    """
    assert keep >= 2
    for old in sorted(finished(folder), key=_step, reverse=True)[keep:]:
        doomed = old.with_name(f"{old.name}.tmp-{uuid.uuid4().hex[:12]}")
        disk.rename(old, doomed)
        disk.remove(doomed)


def remove_leftovers(disk: Disk, folder: Path) -> None:
    """Delete what stopped processes left half-written or half-deleted. Only while no other process writes here."""
    for left in folder.glob("step-*.tmp-*"):
        disk.remove(left)


def finished(folder: Path) -> list[Path]:
    """Return folders that carry the name of a finished checkpoint, in no order; nothing is read."""
    return [found for found in folder.iterdir() if step_of(found) is not None] if folder.is_dir() else []


def newest_valid(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is whole.

    Each newer one that is not is named to ``say``, with what is wrong with it.
    """
    for found in sorted(finished(folder), key=_step, reverse=True):
        try:
            verify(found)
        except CheckpointError as error:
            say(f"{found.name} is not usable and is passed over: {error}")
        else:
            return found
    return None


def verify(folder: Path) -> None:
    """Raise ``CheckpointError`` naming the first file that is missing or altered."""
    files = _manifest(folder)["files"]
    for name, written in files.items():
        path = folder / name
        sha256, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    sha256.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
        if size != written["size"]:
            raise CheckpointError(f"{path}: has {size:,} bytes, but {written['size']:,} were written.")
        if sha256.hexdigest() != written["sha256"]:
            raise CheckpointError(f"{path}: its bytes are not those that were written (sha256 differs).")


def load(folder: Path) -> Checkpoint:
    """Return a checkpoint, verified. Raises ``CheckpointError`` naming the file that is wrong."""
    verify(folder)
    state = read_json(folder / STATE_FILE, CheckpointError, max_bytes=None)  # its size and sha256 were compared
    return Checkpoint(read_tensors(folder / TRAINED_FILE), read_tensors(folder / OPTIMIZER_FILE), state)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): the checkpoint was not finished.") from error
    try:
        manifest: dict[str, Any] = parse_json(text)
        content = {key: value for key, value in manifest.items() if key != _OWN}
        whole = _sealed(content) == text
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: is damaged: {type(error).__name__}.") from error
    if not whole:
        raise CheckpointError(f"{path}: is damaged: it does not have its own sha256.")
    if manifest["format"] != _FORMAT:
        raise CheckpointError(f"{path}: has format {manifest['format']}; this version of lyrics reads {_FORMAT}.")
    if manifest["step"] != step_of(folder):
        raise CheckpointError(f"{path}: is of step {manifest['step']}; the folder has another name.")
    return manifest


def _sealed(content: Mapping[str, Any]) -> bytes:
    """A manifest's bytes: the content and its hash. There is one way to write them, so that any other byte shows."""
    return _as_json({**content, _OWN: hashlib.sha256(_as_json(content)).hexdigest()})


def _as_json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _step(folder: Path) -> int:
    step = step_of(folder)
    assert step is not None
    return step
