"""Trained weights, those that ship with the package above all: where they are, and loading them into an expert whose
options fit.

A file says in its metadata which options it is of; one that does not is of the default ones. ``weights/sha256.json``
lists the files that ship; a test compares, running does not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.core.registry.component import Options
from lyrics.core.weights.pretrained import load_module, locate_checkpoint, read_tensors
from lyrics.plugins.tiny.presets import PLAIN_WEIGHTS

WEIGHTS = Path(__file__).parent / "weights"
#: File name -> sha256, in ``WEIGHTS``.
HASHES_FILE = "sha256.json"
#: Options that say what is reported, not what is computed: any value goes with any weights.
_FREE = frozenset({"threshold", "score_threshold", "nms_iou", "rival_iou", "max_detections", "checkpoint"})
#: The key of the files' metadata under which the options are.
OPTIONS_KEY = "options"


def weights_file(component: str) -> str:
    """The name of a component's file."""
    return f"{component}.safetensors"


def list_files(folder: Path) -> None:
    """Write the sha256 of every file of ``folder``, and of the folders in it, to the list there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / HASHES_FILE)
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / HASHES_FILE).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_weights(module: nn.Module, component: str, options: Options, folder: Path = WEIGHTS) -> None:
    """Fill an expert with the weights of ``folder``.

    Raises:
        WeightsError: there is no file; an option is not the one that the weights were trained with, which is named
            with both values; or tensors do not fit.
    """
    file = folder / weights_file(component)
    if not file.is_file():
        cure = (
            "install lyrics-vl again"
            if folder == WEIGHTS
            else "train them first (docs/tiny.md), or leave checkpoint out"
        )
        raise WeightsError(f"{component}: its weights {file} are not there; {cure}.")
    trained = _trained_options(file, type(options))
    for name, value in trained.model_dump().items():
        given = getattr(options, name)
        if name not in _FREE and given != value:
            raise WeightsError(
                f"{component}: {_shown(name, given)} does not fit the trained weights, which are of "
                f"{_shown(name, value)}. Set {name} to that, or build with weights='random' and train your own "
                "(docs/tiny.md)."
            )
    load_module(module, read_tensors(file), file)


def _trained_options(file: Path, kind: type[Options]) -> Options:
    """The options that a file says it is of; the defaults where it does not say."""
    try:
        with safe_open(file, framework="pt") as opened:
            told = (opened.metadata() or {}).get(OPTIONS_KEY, "{}")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error
    try:
        return kind.model_validate_json(told)
    except ValueError as error:
        raise WeightsError(
            f"{file} is of options that this version does not know, {told}; export its weights again (docs/tiny.md)."
        ) from error


def materialize(module: nn.Module, component: str, options: Options, context: BuildContext) -> None:
    """What ``BuildContext.weights`` asks for: trained weights, or those that the module was made with.

    Raises as ``load_weights``.
    """
    if context.weights == "pretrained":
        checkpoint = getattr(options, "checkpoint", None)
        folder = WEIGHTS if checkpoint is None else _located(component, checkpoint, downloads=context.downloads)
        load_weights(module, component, options, folder)


def _located(component: str, checkpoint: str, *, downloads: bool) -> Path:
    try:
        return locate_checkpoint(checkpoint, downloads=downloads)
    except WeightsError as error:
        if checkpoint != PLAIN_WEIGHTS:
            raise
        raise WeightsError(
            f"{component}: the weights of lyrics-tiny-plain do not ship; train them (python scripts/train_tiny.py all "
            "--plain --out runs/plain) and copy runs/plain/weights to lyrics/plugins/tiny/plain_weights "
            "(docs/tiny-story.md), or build with weights='random'."
        ) from error


def _shown(name: str, value: object) -> str:
    return f"{name} of {len(value)} names" if isinstance(value, tuple) else f"{name}={value!r}"
