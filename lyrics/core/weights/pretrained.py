"""Reading public checkpoints: find the files, read the tensors, load every one of them.

Safetensors only: nothing here unpickles. The network is used only to fetch a hub id that the user wrote.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.errors import WeightsError
from lyrics.core.registry.registry import plugin_packages

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lyrics.core.weights.tensors import TensorHeader

#: How the name of a checkpoint that an installed package holds begins.
PACKAGED = "package:"
_TENSORS = ("*.safetensors", "*.safetensors.index.json")
#: Characters that are passed on of another library's error: some list all that they know.
_MOST_SAID = 240


def locate_checkpoint(
    checkpoint: str,
    also: Sequence[str] = (),
    tensors: Sequence[str] = _TENSORS,
    *,
    downloads: bool = True,
) -> Path:
    """Return the local file or folder that ``checkpoint`` names; a hub id is downloaded first.

    Args:
        checkpoint: a ``.safetensors`` file, a folder that holds some, a hub id (``owner/name``), or what an
            installed package holds (``package:NAME/PATH``, see ``packaged``).
        also: patterns of the files to fetch from the hub beside the tensors, e.g. those of a tokenizer.
        tensors: patterns of the tensors' files, where a repository holds more than those of one checkpoint.
        downloads: whether the network may be used; False where a saved model names the hub id, and not the user
            (``BuildContext.downloads``). What was downloaded before is found either way.

    Raises:
        WeightsError: there is no such file or folder, or the hub does not give it.
    """
    if checkpoint.startswith(PACKAGED):
        return packaged(checkpoint)
    path = Path(checkpoint).expanduser()
    if path.exists():
        return path
    if not is_hub_id(checkpoint):
        raise WeightsError(f"there is no file or folder {checkpoint!r}, and it is no hub id (owner/name) either.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=[*tensors, *also], local_files_only=not downloads))
    except (OSError, ValueError) as error:
        if not downloads:
            raise WeightsError(
                f"the model names the checkpoint {checkpoint!r} of the hub, which was not downloaded before, and a "
                "saved model fetches nothing by itself. Allow it with downloads=True (--download on the command line), "
                "or give from_pretrained the folder of the whole model as base=."
            ) from error
        raise WeightsError(
            f"the checkpoint {checkpoint!r} is no local path, and the hub did not give it: {first_line(error)}. "
            "Check the name and the connection, or give a local folder."
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, without the paragraphs that may follow, and without a full stop.

    Where the first line only announces the second (``Validation error for field 'x':``), both. It is cut
    where a library lists all that it knows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said.rstrip(" :.") if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID].rstrip()}..."


def is_hub_id(checkpoint: str) -> bool:
    """Return whether a checkpoint that is no local path can only be meant as a hub id, ``owner/name``."""
    return (
        checkpoint.count("/") == 1
        and not checkpoint.startswith(("/", ".", "~"))
        and not checkpoint.endswith(("/", ".safetensors"))
    )


def packaged(name: str) -> Path:
    """Return the file or folder within an installed package that ``package:NAME/PATH`` names.

    NAME is the top-level package of a distribution that provides a lyrics plugin. It is looked up without importing
    anything, so that a specification cannot run code.

    Raises ``WeightsError`` where no plugin's distribution has such a package, or nothing is at that path in it.
    """
    package, _, within = name.removeprefix(PACKAGED).partition("/")
    plugins = plugin_packages()
    if package not in plugins:
        raise WeightsError(
            f"{name!r}: no installed lyrics plugin has a package {package!r}; a packaged checkpoint is "
            f"package:NAME/PATH, where NAME is one of {', '.join(sorted(plugins))}."
        )
    # Of a top-level name nothing is imported to find it; of a dotted one its parents would be.
    found = importlib.util.find_spec(package)
    places = [Path(place) for place in (found.submodule_search_locations or [])] if found is not None else []
    path = next((place / within for place in places if (place / within).exists()), None)
    if path is None or not within:
        raise WeightsError(
            f"{name!r}: there is no {within!r} in the installed package {package!r}; install the package that it "
            "belongs to again, or name a folder of your own in its place."
        )
    if not path.resolve().is_relative_to(next(place for place in places if path.is_relative_to(place)).resolve()):
        raise WeightsError(f"{name!r}: leads out of the package {package!r}; a packaged checkpoint lies inside of it.")
    return path


def read_tensors(path: Path, prefixes: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of those of a folder, on the CPU.

    They have the precision of the file.

    Args:
        path: the file or the folder.
        prefixes: how keys of the wanted part of a whole model may begin. Of the first that any key begins with, those
            keys alone are read, and named without it; all keys where none does.

    Raises:
        WeightsError: there is no safetensors file, one cannot be read, or two hold the same key.
    """
    files = _tensor_files(path)
    names = {name for file in files for name in _read_file(file, None)} if prefixes else set()
    prefix = next((one for one in prefixes if any(name.startswith(one) for name in names)), "")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        part = {name.removeprefix(prefix): tensor for name, tensor in _read_file(file, prefix).items()}
        if twice := sorted(tensors.keys() & part.keys()):
            raise WeightsError(
                f"{prefix + twice[0]!r} is in more than one safetensors file of {path}. Keep one checkpoint in a "
                "folder, or name the file."
            )
        tensors.update(part)
    return tensors


def _read_file(file: Path, prefix: str | None) -> dict[str, Any]:
    """The tensors of a file whose keys begin so; None: all keys, and no tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            if prefix is None:
                return dict.fromkeys(keys)
            return {key: opened.get_tensor(key) for key in keys if key.startswith(prefix)}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error


def read_headers(path: Path) -> list[TensorHeader]:
    """Return shapes and types of what ``read_tensors`` reads, without its values.

    For ``lyrics.core.weights.tensors.bounded``.
    """
    from lyrics.core.weights.tensors import file_headers

    return [header for file in _tensor_files(path) for header in file_headers(file).values()]


def _tensor_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise WeightsError(
            f"{path} holds no safetensors file. Other formats are not read, since they can run code when opened; "
            "`lyrics convert` makes a safetensors file of them."
        )
    return files


def load_transformers(model_class: Any, config: Any, state: Mapping[str, torch.Tensor], source: object) -> Any:
    """Return a transformers model in eval mode and the default precision that holds exactly the tensors of ``state``.

    The keys may be in the naming of the hub or of the installed version: transformers translates.

    Args:
        model_class: a ``PreTrainedModel`` subclass.
        config: its configuration.
        state: key -> tensor.
        source: where the tensors came from, for the error message.

    Raises:
        WeightsError: a tensor is missing, left over, or of another shape.
    """
    import torch

    from lyrics.core.weights.tensors import bounded, check_finite, check_types, headers_of

    headers = headers_of(state)
    check_types(headers, source)
    with bounded(headers.values(), source):
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.get_default_dtype(),
        )
    problems = [
        *(f"{key} is missing" for key in sorted(report["missing_keys"])),
        *(f"{key} is not part of the model" for key in sorted(report["unexpected_keys"])),
        *(
            f"{key} is {list(found)}, but the options need {list(needed)}"
            for key, found, needed in sorted(report["mismatched_keys"])
        ),
        *report["error_msgs"],
    ]
    _refuse(problems, source, model_class.__name__)
    check_finite(model.named_parameters(), source)
    return model


def load_module(module: nn.Module, state: Mapping[str, torch.Tensor], source: object, unread: str = "") -> None:
    """Fill a module with exactly the tensors of ``state``.

    A tensor that the module has under several names may come under any of them.

    Args:
        module: of any class.
        state: key -> tensor, in the module's own naming.
        source: where the tensors came from, for the error message.
        unread: pattern of whole keys that may be missing or left over, since nothing depends on them.

    Raises:
        WeightsError: a tensor is missing, left over, of another shape, or comes twice with different values.
    """
    import torch

    from lyrics.core.weights.tensors import check_finite

    own = module.state_dict(keep_vars=True)  # names of one tensor give one object
    ignored = re.compile(unread)
    read = {key: tensor for key, tensor in state.items() if not ignored.fullmatch(key)}
    names: dict[int, list[str]] = {}
    for key in sorted(read.keys() & own.keys()):
        names.setdefault(id(own[key]), []).append(key)
    problems = [
        f"{key} is missing"
        for key, tensor in sorted(own.items(), key=lambda item: item[0])
        if id(tensor) not in names and not ignored.fullmatch(key)
    ]
    problems += [f"{key} is not part of the model" for key in sorted(read.keys() - own.keys())]
    for first, *others in names.values():
        if read[first].shape != own[first].shape:
            problems.append(f"{first} is {list(read[first].shape)}, but the options need {list(own[first].shape)}")
        if read[first].is_floating_point() != own[first].is_floating_point():
            problems.append(f"{first} is of {read[first].dtype}, not of {own[first].dtype}")
        problems += [
            f"{key} differs from {first}, but the model has one tensor for both"
            for key in others
            if not torch.equal(read[key], read[first])
        ]
    _refuse(problems, source, type(module).__name__)
    check_finite(read.items(), source)
    module.load_state_dict(read, strict=False)


def _refuse(problems: Sequence[str], source: object, model: str) -> None:
    """Raises ``WeightsError`` with the first of the problems, if there are any."""
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightsError(
            f"the weights of {source} do not fit a {model} of these options: {shown}. "
            "Set the component's options to the numbers of that checkpoint."
        )
