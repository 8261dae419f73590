"""A checkpoint that a converter reads one tensor at a time, and its plan of how the result is made.

A converter is a function ``(source, options, context) -> ConversionPlan`` that a component declares
(``lyrics.core.registry.component.Converter``). It
decides by names and shapes; the tensors themselves pass through when the result is written, file by file, so that no
model is ever held whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lyrics.core.conversion.unpickle import PICKLED, unpickle
from lyrics.core.errors import WeightsError
from lyrics.core.json_reading import read_json
from lyrics.core.renaming import moved_names
from lyrics.core.weights.pieces import DTYPES as DTYPES
from lyrics.core.weights.pieces import Piece as Piece
from lyrics.core.weights.pieces import SourceCheckpoint as SourceCheckpoint
from lyrics.core.weights.pieces import itself as itself
from lyrics.core.weights.tensors import INDEX_FILE
from lyrics.core.weights.transformers_files import load_tokenizer

#: Tensors of a large model go into several files of at most this size, which is what writing them holds in memory
#: twice.
SHARD_BYTES = 2 * 10**9


def source_files(path: Path) -> list[Path]:
    """Return the files that hold the tensors of a checkpoint.

    They are the file itself, those that a folder's index names, or a folder's only one.

    Raises ``WeightsError`` when there is none, more than one that no index joins, or one that the index names is not
    there.
    """
    endings = (".safetensors", *PICKLED)
    if path.is_file():
        if path.suffix not in endings:
            raise WeightsError(f"{path}: is not a file of weights; those end in {', '.join(endings)}.")
        return [path]
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder.")
    for ending in endings:
        indices = sorted(path.glob(f"*{ending}.index.json"))
        if len(indices) == 1:
            return _indexed(indices[0], ending)
        files = sorted(path.glob(f"*{ending}"))
        if len(files) == 1 and not indices:
            return files
        if files or indices:
            names = ", ".join(file.name for file in [*indices, *files][:5])
            raise WeightsError(
                f"{path}: holds several checkpoints ({names}) that no index joins; name the file to convert."
            )
    raise WeightsError(f"{path}: holds no file of weights; those end in {', '.join(endings)}.")


def _indexed(index: Path, ending: str) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: is not an index of weights: {type(error).__name__}: {error}.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(ending):
            raise WeightsError(f"{index}: names {name!r}, which is not a {ending} file beside it.")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index}: names {name}, which is not there; the checkpoint is not complete.")
    return [index.parent / name for name in names]


@contextlib.contextmanager
def opened(path: Path, work: Path) -> Iterator[SourceCheckpoint]:
    """The checkpoint at ``path``.

    Pickled files are read by a process of their own, which writes safetensors under ``work``.
    """
    files: list[Path] = []
    for number, file in enumerate(source_files(path)):
        files += [file] if file.suffix == ".safetensors" else unpickle(file, work / f"{number:05d}")
    checkpoint = SourceCheckpoint(path, files)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


@dataclass(frozen=True)
class Beside:
    """What a part of a whole model needs beside its tensors and no checkpoint holds: a tokenizer, the names of classes.

    Args:
        what: it, in words.
        stand_in: what takes its place where the user gives none, in words.
        read: ``read(folder, part)`` reads the folder that the user gave and puts it into the part, a module on the
            meta device, which is then saved; returns notes. Raises ``WeightsError`` naming the file that is missing,
            broken, or of another size than the part.
    """

    what: str
    stand_in: str
    read: Callable[[Path, Any], tuple[str, ...]]


@dataclass(frozen=True)
class ConversionPlan:
    """What a converter decides.

    Args:
        tensors: name in the result -> how it is made.
        new: names of the component's own tensors that the source has nothing for and that it initializes; rows of
            one as ``name[32:]``.
        files: name in the result -> a file to put beside the weights as it is.
        notes: what the user has to do or know beside.
        beside: of a part of a whole model, what it needs beside its tensors.
    """

    tensors: Mapping[str, Piece]
    new: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside: Beside | None = None


def read_tokenizer(folder: Path, words: int) -> Any:
    """Return the tokenizer of a folder, for a part with embeddings of so many words.

    Raises ``WeightsError`` when the folder holds none, when it cannot be read, and when it has more tokens than there
    are words.
    """
    tokenizer = load_tokenizer(folder)
    found = num_tokens(tokenizer)
    if found > words:
        raise WeightsError(f"{folder}: its tokenizer has {found} tokens, but the checkpoint has only {words} words.")
    return tokenizer


def num_tokens(tokenizer: Any) -> int:
    """Return one more than the largest id."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def fewer_tokens(folder: Path, tokenizer: Any, words: int) -> tuple[str, ...]:
    """Return a note for a tokenizer that does not use all words.

    It may be another one than the checkpoint was trained with.
    """
    found = num_tokens(tokenizer)
    if found == words:
        return ()
    return (
        f"the tokenizer of {folder} has {found} tokens, the checkpoint {words} words; the last {words - found} are "
        "never used",
    )


def write_file(path: Path, tensors: Mapping[str, Piece], source: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file."""
    try:
        # Cloned, because parts of one tensor would share memory, which safetensors refuses.
        made = {
            name: piece.of(source).detach().clone(memory_format=torch.contiguous_format)
            for name, piece in tensors.items()
        }
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"a tensor cannot be read: {error}.") from error
    save_file(made, path, {"format": "pt"})


def write_shards(
    folder: Path, tensors: Mapping[str, Piece], source: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Tensor]
) -> None:
    """``model-00001-of-0000N.safetensors``, ... and ``model.safetensors.index.json``, as transformers writes them.

    ``shapes`` has the source's tensors on the meta device; sizes are planned by it, and one shard at a time is held in
    memory.
    """
    sizes = {name: _num_bytes(piece.of(shapes)) for name, piece in tensors.items()}
    groups: list[dict[str, Piece]] = [{}]
    filled = 0
    for name, piece in tensors.items():
        if groups[-1] and filled + sizes[name] > SHARD_BYTES:
            groups.append({})
            filled = 0
        groups[-1][name] = piece
        filled += sizes[name]
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_file(folder / file, group, source)
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


__getattr__ = moved_names(
    __name__, {"Checkpoint": "lyrics.types.SourceCheckpoint", "Plan": "lyrics.types.ConversionPlan"}
)
