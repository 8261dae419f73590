"""A model folder: what ``save_pretrained`` writes and ``from_pretrained`` reads.

=========================  =============================================================================================
``spec.json``              the resolved specification, with the distribution of every part
``model.safetensors``      the tensors (``lyrics.core.weights.tensors``); all of them, or only those that training
                           changes
``frozen.json``            in the second case: for every part that is not stored, where it comes from and the sha256 of
                           its tensors
``tokenizers/``            one folder each for ``query_transformer`` (where it reads text) and ``language_model``
``parts/``                 one folder for each part that needs more than tensors (its configuration in transformers'
                           format, a tagger's names, a detector's tokenizer); see ``save_files`` and ``load_files`` in
                           ``lyrics.core.contracts``
``licenses.json``          for each checkpoint that a part was made from: its source, revision, license, and what that
                           asks for
``preprocessing.json``     how each expert prepares images; compared when the folder is read
=========================  =============================================================================================
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lyrics.core.changes import Changes, part_of, warn_of_changes
from lyrics.core.contracts import Expert, LanguageModel, ReadsText, WithFiles
from lyrics.core.errors import WeightsError
from lyrics.core.json_reading import read_json_object
from lyrics.core.spec import ModelSpec, dump
from lyrics.core.types import Preprocessing
from lyrics.core.weights.licenses import license_rows
from lyrics.core.weights.tensors import digest, load_tensors, save_tensors, stored_tensors, tensor_headers
from lyrics.core.weights.transformers_files import load_tokenizer

if TYPE_CHECKING:
    from lyrics.core.composed import ComposedModel

SPEC_FILE = "spec.json"
FROZEN_FILE = "frozen.json"
PREPROCESSING_FILE = "preprocessing.json"
LICENSES_FILE = "licenses.json"
PARTS = "parts"
#: Spec paths of the parts that no stage trains, and of the one that is trained in part, with the prefix of their
#: tensors.
_FROZEN_PARTS = {
    "image_encoder": "encoder.",
    "refiner.tagger": "refiner.tagger.",
    "refiner.detector": "refiner.detector.",
    "refiner.segmenter": "refiner.segmenter.",
    "language_model": "language_model.",
}


def spec_file(folder: str | os.PathLike[str]) -> Path:
    """Return the spec of a model folder. Raises ``WeightsError`` when ``folder`` is none."""
    path = Path(folder) / SPEC_FILE
    if not path.is_file():
        raise WeightsError(
            f"{folder}: is neither a model folder (it has no {SPEC_FILE}) nor the folder of a run (it has no "
            "config.yaml and checkpoints)."
        )
    return path


def holds_all_tensors(folder: str | os.PathLike[str]) -> bool:
    """Return whether nothing but this folder is needed to load it."""
    return not (Path(folder) / FROZEN_FILE).is_file()


def save_folder(model: ComposedModel, folder: str | os.PathLike[str], *, trainable_only: bool = False) -> None:
    """Write a model folder, which is made if need be.

    Raises ``WeightsError`` for a model on the meta device (it has no values) and for one whose LoRA is merged.
    """
    if model.abilities.lora is not None and model.abilities.lora.lora_merged:
        raise WeightsError("the language model's LoRA is merged into its weights; call unmerge_lora() before saving.")
    path = Path(folder)
    tensors = stored_tensors(model)
    frozen = {name for name in tensors if is_frozen(model, name)} if trainable_only else set()
    save_tensors({name: tensor for name, tensor in tensors.items() if name not in frozen}, path)
    dump(model.spec, path / SPEC_FILE)
    if trainable_only:
        _write_json(path / FROZEN_FILE, {"parts": _references(model.spec, tensors, frozen)})
    else:
        (path / FROZEN_FILE).unlink(missing_ok=True)
    save_beside(model, path)


def save_beside(model: ComposedModel, folder: str | os.PathLike[str]) -> None:
    """Write what a model folder holds beside specification and tensors.

    That is preprocessing, the experts' own files, and tokenizers.
    """
    path = Path(folder)
    prepared = {name: dataclasses.asdict(one) for name, one in model.processor.preprocessing.items()}
    _write_json(path / PREPROCESSING_FILE, prepared)
    licenses = license_rows(model.spec, hashes=False)
    _write_json(path / LICENSES_FILE, [dataclasses.asdict(row) for row in licenses])
    for name, part in _parts(model).items():
        if isinstance(part, WithFiles):
            (path / PARTS / name).mkdir(parents=True, exist_ok=True)
            part.save_files(path / PARTS / name)
    for name, reader in readers(model).items():
        reader.tokenizer.save_pretrained(path / "tokenizers" / name)


def _parts(model: ComposedModel) -> dict[str, Expert | LanguageModel]:
    """Return the parts that may have files of their own, by the names of their folders."""
    return {**model.experts, "language_model": model.language_model}


def part_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Spec path -> the folder of the part's own files, for every part that has one in a model folder."""
    places = {path: Path(folder) / PARTS / name for path, name in _folder_names().items()}
    return {path: place for path, place in places.items() if place.is_dir()}


def _folder_names() -> dict[str, str]:
    """Spec path -> name of the folder of the part's own files."""
    return {path: path.removeprefix("refiner.") for path in _FROZEN_PARTS}


def is_frozen_part(path: str, spec: ModelSpec) -> bool:
    """Return whether a folder of trained parts leaves out that part; ``path`` is its place in the specification."""
    return path in _FROZEN_PARTS and not (path == "image_encoder" and spec.train_image_encoder)


def part_prefix(path: str) -> str:
    """Return how the names of a part's tensors begin in a model folder.

    ``path`` is the part's place in the specification.
    """
    return _FROZEN_PARTS.get(path, f"{path}.")


def readers(model: ComposedModel) -> dict[str, ReadsText | LanguageModel]:
    """Return the parts that have a tokenizer, by their paths in the specification, which name its folder."""
    found: dict[str, ReadsText | LanguageModel] = {"language_model": model.language_model}
    return found if model.abilities.text is None else {"query_transformer": model.abilities.text, **found}


def is_frozen(model: ComposedModel, name: str) -> bool:
    """Return whether no stage trains the tensor of that name.

    That is an expert's, or the language model's beside its adaptation.
    """
    if name.startswith("language_model."):
        return name.removeprefix("language_model.") not in model.adapted
    return name.startswith("refiner.") or (name.startswith("encoder.") and not model.trains_encoder)


def _references(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], frozen: set[str]) -> dict[str, dict[str, Any]]:
    options = {path: slot for path, _, slot in spec.slots()}
    found = {}
    for path, prefix in _FROZEN_PARTS.items():
        own = [(name, tensors[name]) for name in frozen if name.startswith(prefix)]
        if own:
            found[path] = {
                "component": options[path].use,
                "checkpoint": options[path].options.get("checkpoint"),
                "tensors": len(own),
                "sha256": digest(own),
            }
    return found


def load_folder(
    model: ComposedModel,
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    changes: Changes | None = None,
) -> None:
    """Fill a model from a folder.

    ``base`` is a model folder with the frozen parts, where this one leaves them out; without it, the model holds them
    already. ``changes`` are those that overrides made to the folder's specification: what fits is filled, and what
    stays random is warned of.

    Raises ``WeightsError`` for tensors that are missing, unexpected or misshapen, and for other frozen parts than it
    was saved with.
    """
    path = Path(folder)
    tensors = stored_tensors(model)
    changed = changes.all if changes is not None else frozenset()
    replaced = changes.replaced if changes is not None else {}
    frozen = {name for name in tensors if is_frozen(model, name)} if not holds_all_tensors(path) else set()
    left = []
    if base is not None and frozen:
        left += _fill(model, {name: tensors[name] for name in frozen}, base, changes, others="ignore")
    left += _fill(model, {name: tensor for name, tensor in tensors.items() if name not in frozen}, path, changes)
    if changes is not None:
        warn_of_changes(changes, model.spec, left, path)
    if frozen:
        _compare(model.spec, tensors, {one for one in frozen if part_of(one) not in changed}, path / FROZEN_FILE)
    _load_tokenizers(model, path, replaced)
    names = {name: one for one, name in _folder_names().items()}
    for name, part in _parts(model).items():
        if isinstance(part, WithFiles) and (path / PARTS / name).is_dir() and names[name] not in replaced:
            part.load_files(path / PARTS / name)
    _compare_preprocessing(model, path / PREPROCESSING_FILE, changed)


def _fill(
    model: ComposedModel,
    wanted: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str],
    changes: Changes | None,
    others: str = "refuse",
) -> list[str]:
    """Fill tensors from a folder: all of them, or after ``changes`` those that fit.

    Return the names of those that were left.
    """
    if changes is None:
        load_tensors(wanted, folder, others=others)
        return []
    headers = tensor_headers(folder)
    left = []
    fitting = {}
    for name, tensor in wanted.items():
        part = part_of(name)
        if part in changes.quantized and is_frozen(model, name):
            continue
        if part not in changes.replaced and name in headers and headers[name].shape == tuple(tensor.shape):
            fitting[name] = tensor
        else:
            left.append(name)
    load_tensors(fitting, folder, others="ignore")
    return left


def load_trained_parts(model: ComposedModel, folder: Path) -> None:
    """Fill what training changes, as far as it fits, from the folder of a model.

    The model may have other parts than this one.

    Warns of parts that keep random weights because the folder has none that fit.
    """
    wanted = {name: tensor for name, tensor in stored_tensors(model).items() if not is_frozen(model, name)}
    headers = tensor_headers(folder)
    fitting = {
        name: tensor
        for name, tensor in wanted.items()
        if name in headers and headers[name].shape == tuple(tensor.shape)
    }
    load_tensors(fitting, folder, others="ignore")
    random: dict[str, int] = {}
    for name in wanted.keys() - fitting.keys():
        part = ".".join(name.split(".")[: 2 if name.startswith("objectives.") else 1])
        random[part] = random.get(part, 0) + 1
    if random:
        counts = ", ".join(f"{part} ({count})" for part, count in sorted(random.items()))
        warnings.warn(
            f"the trained weights of {folder.name} do not fit the parts that were changed: tensors that stay random: "
            f"{counts}. Until they are trained, answers mean little.",
            stacklevel=2,
        )


def _compare(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], frozen: set[str], file: Path) -> None:
    stored = read_json_object(file, WeightsError).get("parts", {})
    # Quantized weights are other numbers than those of the checkpoint that they come from: nothing can be said of them.
    quantized = {path for path, _, slot in spec.slots() if slot.options.get("quantization", "none") != "none"}
    for path, now in _references(spec, tensors, frozen).items():
        if path in quantized:
            continue
        then = stored.get(path)
        if not isinstance(then, dict) or then.get("sha256") != now["sha256"]:
            known = then.get("checkpoint") if isinstance(then, dict) else None
            raise WeightsError(
                f"{file}: {path} is not the part that this model was trained with (sha256 differs"
                f"{f'; that one was {known}' if known else ''}). Load it with the same weights and in the same dtype, "
                "or give from_pretrained the folder of the whole model as base=."
            )


def _load_tokenizers(model: ComposedModel, folder: Path, replaced: Collection[str]) -> None:
    for name, reader in readers(model).items():
        place = folder / "tokenizers" / name
        if place.is_dir() and name not in replaced:
            reader.tokenizer = load_tokenizer(place)


def _compare_preprocessing(model: ComposedModel, file: Path, changed: Collection[str]) -> None:
    if not file.is_file():
        return
    stored = read_json_object(file, WeightsError)
    for name, now in model.processor.preprocessing.items():
        if name in changed or f"refiner.{name}" in changed:
            continue
        if name in stored and _as_now(stored[name]) != json.loads(json.dumps(dataclasses.asdict(now))):
            warnings.warn(
                f"{file}: {name} prepares images in another way than when this model was saved; its answers may "
                "differ.",
                stacklevel=2,
            )


def _as_now(stored: Any) -> Any:
    """Stored preprocessing with the defaults of what it did not have when it was written."""
    if not isinstance(stored, dict):
        return stored
    optional = {one.name: one.default for one in dataclasses.fields(Preprocessing)}
    filled = {name: value for name, value in optional.items() if value is not dataclasses.MISSING}
    return json.loads(json.dumps(filled)) | stored


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
