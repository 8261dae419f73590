"""What the parts over transformers' Auto classes have in common: a checkpoint, its configuration, and how
it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError, did_you_mean
from lyrics.core.types import Preprocessing
from lyrics.core.weights.pretrained import load_transformers, locate_checkpoint, read_tensors
from lyrics.core.weights.transformers_files import (
    CONFIG_FILE,
    CONFIG_FILES,
    MODEL_TENSORS,
    TOKENIZER_PATTERNS,
    compare_config,
    config_from_numbers,
    load_config,
    needs_package,
    refuse_disagreements,
    stored_config,
    write_config,
)
from lyrics.plugins.hf import HfOptions
from lyrics.plugins.hf.preprocessing import (
    PREPROCESSOR_FILE,
    PROCESSOR_FILES,
    entries_of,
    preprocessing_of,
    read_entries,
)

#: For random weights: transformers' default of some models is so small that every image gets the same features.
_INITIALIZER_RANGE = 0.02


@dataclass(frozen=True)
class CheckpointSource:
    """Where a part comes from.

    Args:
        config: the transformers configuration.
        entries: those of ``preprocessor_config.json``, defaults included.
        weights: the file or folder with its tensors, where they are read.
        folder: the folder with its small files, a tokenizer among them, if there is one.
        name: for messages.
    """

    config: Any
    entries: Mapping[str, Any]
    weights: Path | None
    folder: Path | None
    name: str

    @property
    def preprocessing(self) -> Preprocessing:
        return preprocessing_of(self.entries, self.name)


def find_source(
    options: HfOptions,
    context: BuildContext,
    auto_class: Any,
    what: str,
    part_of: Callable[[Any], Any] = lambda config: config,
) -> CheckpointSource:
    """Find a part's configuration and preprocessing; its tensors are not read yet.

    Args:
        options: name the checkpoint, or state the configuration.
        context: says whether weights are to be read, and where the part was saved.
        auto_class: transformers' Auto class of the kind; a configuration that is none of its models is refused.
        what: the part in words, for messages.
        part_of: of a whole model's configuration, the one that is wanted.

    Raises:
        SpecError: nothing says what the part is.
        WeightsError: the checkpoint is not found, is of another kind, or not what the options state.
    """
    folder = context.files if stored_config(context.files) is not None else None
    weights: Path | None = None
    if folder is None and context.weights == "pretrained":
        if options.checkpoint is None:
            raise SpecError(f"{what}: names no checkpoint; set the option checkpoint to a hub id or a local folder.")
        # The small files first: what is of another kind is refused before its tensors are fetched.
        small = (*CONFIG_FILES, *PROCESSOR_FILES, *TOKENIZER_PATTERNS)
        folder = _folder(locate_checkpoint(options.checkpoint, also=small, tensors=(), downloads=context.downloads))
        config = load_config(folder)
        _refuse_other_kinds(config, auto_class, what, options.checkpoint)
        part_of(config)
        # The kind has been looked at: SAM 2.1's checkpoints are of a video model, of which the image part is read.
        stated = {name: value for name, value in (options.config or {}).items() if name != "model_type"}
        refuse_disagreements(_flat(stated), _flat(config.to_dict()), folder)
        weights = locate_checkpoint(options.checkpoint, also=small, tensors=MODEL_TENSORS, downloads=context.downloads)
    elif folder is not None:
        config = load_config(folder)
    elif options.config is not None:
        config = config_from_numbers(options.config, f"{what}, option config")
    else:
        folder = None if options.checkpoint is None else _local(options.checkpoint)
        if folder is None:
            raise SpecError(
                f"{what}: random weights download nothing, so the sizes of {options.checkpoint!r} are not known here. "
                "State the entries of its config.json in the option config, or give a local folder as checkpoint."
            )
        config = load_config(folder)
    _refuse_other_kinds(config, auto_class, what, options.checkpoint or "the option config")
    model_type = config.model_type
    config = part_of(config)
    written = read_entries(folder)
    changed = {**_size_of(config), **options.preprocessor} if written is None else options.preprocessor
    entries = entries_of(written, model_type, changed)
    return CheckpointSource(
        config, entries, weights, folder, f"{what} {options.checkpoint!r}" if options.checkpoint else what
    )


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _local(checkpoint: str) -> Path | None:
    path = Path(checkpoint).expanduser()
    return _folder(path) if path.exists() and (_folder(path) / CONFIG_FILE).is_file() else None


def _refuse_other_kinds(config: Any, auto_class: Any, what: str, named: object) -> None:
    known = auto_class._model_mapping
    if type(config) in known:
        return
    names = sorted({one.model_type for one in known})
    raise WeightsError(
        f"{what}: {named} is of the model type {config.model_type!r}, which is none of transformers' "
        f"{auto_class.__name__}.{did_you_mean(config.model_type, names)}"
    )


def _size_of(config: Any) -> dict[str, Any]:
    """Entries that follow from the size of the images that a network was made for, where there is one size."""
    vision = getattr(config, "vision_config", None)
    for part in (
        config,
        vision,
        getattr(vision, "backbone_config", None),
        getattr(config, "prompt_encoder_config", None),
    ):
        side = getattr(part, "image_size", None)
        side = side[0] if isinstance(side, list | tuple) and len(set(side)) == 1 else side
        if isinstance(side, int):
            square = {"height": side, "width": side}
            if config.model_type in ("sam", "sam_hq"):
                return {"size": {"longest_edge": side}, "pad_size": square}
            return {"size": square, "do_center_crop": False}
    return {}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries within entries by their dotted path."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and name != "id2label":
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = (
                {str(one): text for one, text in value.items()} if isinstance(value, Mapping) else value
            )
    return found


def make_network(model_class: Any, source: CheckpointSource, tensors: Mapping[str, Any] | None = None) -> Any:
    """Return the network: of the checkpoint's tensors (``tensors``, where they have been read), or random.

    Raises ``WeightsError`` for tensors that are missing, left over or of another shape, and
    ``MissingRequirementError`` for a network whose backbone is of a package that is not installed.
    """
    try:
        if source.weights is not None:
            state = read_tensors(source.weights) if tensors is None else tensors
            return load_transformers(model_class, source.config, state, source.name)
        _start_apart(source.config)
        return model_class(source.config)
    except ImportError as error:  # a backbone of timm
        raise needs_package(source.name, error) from error


def _start_apart(config: Any) -> None:
    """Random weights are to tell images apart."""
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "model_type"))):
        spread = getattr(part, "initializer_range", None)
        if isinstance(spread, float) and spread < _INITIALIZER_RANGE / 100:
            part.initializer_range = _INITIALIZER_RANGE
        if part is not config:
            _start_apart(part)


class KeepsConfig(nn.Module):
    """A part whose configuration and preprocessing are kept beside its tensors
    (``lyrics.core.contracts.WithFiles``).
    """

    config: Any
    entries: Mapping[str, Any]

    def save_files(self, folder: Path) -> None:
        """The network's configuration and how images are prepared for it, in transformers' format."""
        write_config(self.config, folder)
        text = json.dumps(dict(self.entries), indent=2, sort_keys=True)
        (folder / PREPROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")

    def load_files(self, folder: Path) -> None:
        """Compare the stored configuration with the network's. Raises ``WeightsError`` that lists what differs."""
        compare_config(self.config, folder)
