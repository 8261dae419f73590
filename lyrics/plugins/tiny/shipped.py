"""The trained weights that ship with the package: where they are, and loading them into an expert whose options fit.

They are of the experts' default options. ``weights/sha256.json`` lists the files; a test compares, running does not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.core.registry.component import Options
from lyrics.core.weights.pretrained import load_module, read_tensors

WEIGHTS = Path(__file__).parent / "weights"
#: File name -> sha256, in ``WEIGHTS``.
HASHES_FILE = "sha256.json"
#: Options that say what is reported, not what is computed: any value goes with any weights.
_FREE = frozenset({"threshold", "score_threshold", "nms_iou", "rival_iou", "max_detections"})


def weights_file(component: str) -> str:
    """The name of a component's file."""
    return f"{component}.safetensors"


def list_files(folder: Path) -> None:
    """Write the sha256 of every file of ``folder``, and of the folders in it, to the list there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / HASHES_FILE)
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / HASHES_FILE).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_weights(module: nn.Module, component: str, options: Options, folder: Path = WEIGHTS) -> None:
    """Fill an expert with the weights of the default options.

    Raises ``WeightsError`` naming the option that the weights were not trained with, or the tensors that do not fit.
    """
    for name, field in type(options).model_fields.items():
        given, trained = getattr(options, name), field.get_default(call_default_factory=True)
        if name not in _FREE and given != trained:
            raise WeightsError(
                f"{component}: {_shown(name, given)} does not fit the trained weights, which are of {_shown(name, trained)}. "
                f"Leave {name} out, or build with weights='random' and train your own (docs/tiny.md)."
            )
    file = folder / weights_file(component)
    if not file.is_file():
        raise WeightsError(f"{component}: its weights {file} are not there; install lyrics-vl again.")
    load_module(module, read_tensors(file), file)


def materialise(module: nn.Module, component: str, options: Options, context: BuildContext) -> None:
    """What ``BuildContext.weights`` asks for: trained weights, or those that the module was made with. Raises as ``load_weights``."""
    if context.weights == "pretrained":
        load_weights(module, component, options)


def _shown(name: str, value: object) -> str:
    return f"{name} of {len(value)} names" if isinstance(value, tuple) else f"{name}={value!r}"
