"""Convert a whole model of another project to a model folder of ours.

The folder has ``spec.json``, sharded safetensors, and what parts need beside them.

Parts that declare a converter for the format translate their own tensors. The image encoder, the projection and the
language model are where transformers' BLIP-2 has them, and inside of them names are transformers' own, so they need no
converter. What training needs and the source does not have (LoRA's matrices, heads of objectives) is initialized,
always with the same values. Tokenizers and names of classes are in no checkpoint: the user gives them, or a stand-in is
written and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lyrics.core.build import build_part, build_resolved
from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.formats import Format, run_converter
from lyrics.core.conversion.plan import (
    Beside,
    ConversionPlan,
    Piece,
    SourceCheckpoint,
    fewer_tokens,
    read_tokenizer,
    write_shards,
)
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.model import LyricsModel
from lyrics.core.public_models import wrapped_names
from lyrics.core.resolve import Part, Resolved, resolve
from lyrics.core.spec import dump
from lyrics.core.weights.model_folder import SPEC_FILE, save_beside
from lyrics.core.weights.tensors import stored_tensors

#: Spec path -> prefix of the part's keys in ``Blip2ForConditionalGeneration``, whose names the released Lyrics kept.
_BLIP2 = {"image_encoder": "vision_model.", "language_model": "language_model."}
_PROJECTION = "language_projection."
_WORDS = "language_model.model.embed_tokens.weight"
_SEED = 0


def convert_model(
    checkpoint: SourceCheckpoint, wanted: Format, resolved: Resolved, result: Path, given: Mapping[str, Path]
) -> ConversionPlan:
    """Write the model that ``resolved`` describes to ``result``, filled from ``checkpoint``.

    ``given`` has, for parts by their path in the spec, the folder with what they need beside their tensors.

    Raises ``WeightsError`` naming our tensor and the source's where one is missing or of another shape, or naming a
    file that was given and does not fit; ``SpecError`` where a folder was given for a part that needs nothing.
    """
    shapes = checkpoint.shapes()
    resolved, notes = _with_vocabulary_of(shapes, resolved)
    model = build_resolved(LyricsModel, resolved, weights="meta")
    plan, beside = plan_model(model, resolved, checkpoint, shapes, wanted)
    notes += read_beside(model, beside, given)
    save_beside(model, result)
    files = {file.relative_to(result).as_posix(): file for file in sorted(result.rglob("*")) if file.is_file()}
    write_shards(result, plan.tensors, checkpoint, shapes)
    dump(resolved.spec, result / SPEC_FILE)
    return replace(plan, files=files, notes=(*notes, *plan.notes))


def read_beside(model: LyricsModel, beside: Mapping[str, Beside], given: Mapping[str, Path]) -> tuple[str, ...]:
    """Put into every part what was given for it; returns notes, among them one for every stand-in.

    Raises ``WeightsError`` naming a file that does not fit, ``SpecError`` for a part that needs nothing.
    """
    idle = next((path for path in given if path not in beside), None)
    if idle is not None:
        raise SpecError(
            f"--with {idle}={given[idle]}: {idle} needs nothing beside its tensors; what can be given is for "
            f"{', '.join(beside) or 'no part'}."
        )
    notes: list[str] = []
    for path, needs in beside.items():
        if path in given:
            notes += needs.read(given[path], model.get_submodule(_prefix(path)[:-1]))
        else:
            notes.append(
                f"{path}: {needs.what} is in no checkpoint, so a stand-in was written: {needs.stand_in}. Convert again "
                f"with --with {path}=FOLDER for the real one"
            )
    return tuple(notes)


def plan_model(
    model: LyricsModel,
    resolved: Resolved,
    checkpoint: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Tensor],
    wanted: Format,
) -> tuple[ConversionPlan, dict[str, Beside]]:
    """Return how every stored tensor of ``model`` (on the meta device) is made of the checkpoint's.

    ``shapes`` are those on that device.

    Also, for each part that needs it, by its path in the spec, what it needs beside its tensors.
    """
    needed = {name: tensor.shape for name, tensor in stored_tensors(model).items()}
    tensors = {f"projection.{name}": Piece((f"{_PROJECTION}{name}",)) for name in ("weight", "bias")}
    new: list[str] = []
    notes: list[str] = []
    beside: dict[str, Beside] = {}
    sources = {} if model.refiner is None else model.refiner.local_sources
    context = BuildContext(
        "meta",
        image_dim=model.encoder.feature_dim,
        local_dims={source: module.feature_dim for source, module in sources.items()},
        query_dim=model.query_transformer.hidden_size,
        query_segments=model.query_transformer.segments,
    )
    for path, part in resolved.parts.items():
        prefix = _prefix(path)
        own = [name.removeprefix(prefix) for name in needed if name.startswith(prefix)]
        if not own:
            continue
        planned = _plan_part(model.get_submodule(prefix[:-1]), own, path, part, checkpoint, wanted, context)
        values = _fresh(part, {name: needed[f"{prefix}{name}"] for name in planned.new if name in own}, context)
        tensors |= {f"{prefix}{name}": piece for name, piece in planned.tensors.items()}
        tensors |= {f"{prefix}{name}": _constant(value) for name, value in values.items()}
        new += [f"{prefix}{name}" for name in planned.new]
        notes += planned.notes
        if planned.beside is not None:
            beside[path] = planned.beside
    _check(needed, tensors, shapes, getattr(checkpoint, "path", "the checkpoint"))
    return ConversionPlan(
        {name: tensors[name] for name in needed}, tuple(new), notes=tuple(dict.fromkeys(notes))
    ), beside


def _prefix(path: str) -> str:
    """Return where a part of the spec is in ``LyricsModel``."""
    return "encoder." if path == "image_encoder" else f"{path}."


def _with_vocabulary_of(shapes: Mapping[str, torch.Tensor], resolved: Resolved) -> tuple[Resolved, tuple[str, ...]]:
    """Return the spec with as many words as the language model of the source has: a padding token was added to it."""
    stated = getattr(resolved.parts["language_model"].options, "vocab_size", None)
    if stated is None or _WORDS not in shapes or shapes[_WORDS].shape[0] == stated:
        return resolved, ()
    found = shapes[_WORDS].shape[0]
    changed = resolve(resolved.spec, {"language_model.options.vocab_size": found})
    return changed, (f"language_model.options.vocab_size is {found} in the checkpoint and in spec.json, not {stated}",)


def _plan_part(
    module: nn.Module,
    own: list[str],
    path: str,
    part: Part,
    checkpoint: Mapping[str, torch.Tensor],
    wanted: Format,
    context: BuildContext,
) -> ConversionPlan:
    converter = wanted.converter_of(part.entry)
    if converter is not None:
        return run_converter(part.entry, converter, checkpoint, part.options, context)
    if path in _BLIP2:
        return _transformers_names(module, own, _BLIP2[path], part)
    if path.startswith("objectives."):
        return ConversionPlan({}, new=tuple(own))
    raise WeightsError(
        f"{path}: {part.label} has weights, and the format {wanted.name!r} has none for it. Give "
        "a --model with a part that it has "
        f"weights for, or with {path}: null."
    )


def _transformers_names(module: nn.Module, own: list[str], prefix: str, part: Part) -> ConversionPlan:
    """Return a part that wraps one transformers model: names within it are the source's."""
    names = wrapped_names(module)
    if not names:
        raise WeightsError(
            f"{part.path}: {part.label} does not wrap a transformers model, whose tensors the format holds."
        )
    new = tuple(name for name in own if _is_lora(name))
    kept = {name: names[name] for name in own if name not in new}
    beside = _TOKENIZER if part.path == "language_model" else None
    return ConversionPlan({name: Piece((f"{prefix}{theirs}",)) for name, theirs in kept.items()}, new, beside=beside)


def _read_tokenizer(folder: Path, part: Any) -> tuple[str, ...]:
    """Return the language model's tokenizer, with the tokens that prompts and batches need."""
    words = int(part.model.get_input_embeddings().num_embeddings)
    tokenizer = read_tokenizer(folder, words)
    if tokenizer.eos_token_id is None:
        raise WeightsError(f"{folder}: its tokenizer names no token that ends a text (eos_token).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    part.tokenizer = tokenizer
    return fewer_tokens(folder, tokenizer, words)


_TOKENIZER = Beside(
    "the language model's tokenizer", "bytes as tokens, with which its words mean nothing", _read_tokenizer
)


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _fresh(part: Part, shapes: Mapping[str, torch.Size], context: BuildContext) -> dict[str, torch.Tensor]:
    """Initial values of new tensors of a part, the same in every run.

    LoRA's as PEFT has them: A as a fresh linear layer, B zero, so that the model is unchanged. The language model
    itself is too large to be built for them; other parts are built as they are for training.
    """
    if not shapes:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        if all(_is_lora(name) for name in shapes):
            return {name: _lora(name, shape) for name, shape in shapes.items()}
        state = build_part(part, replace(context, weights="random")).state_dict()
    return {name: state[name] for name in shapes}


def _lora(name: str, shape: torch.Size) -> torch.Tensor:
    values = torch.zeros(shape)
    return nn.init.kaiming_uniform_(values, a=math.sqrt(5)) if ".lora_A." in name else values


@dataclass(frozen=True)
class _Constant:
    value: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return self.value


def _constant(value: torch.Tensor) -> Piece:
    return Piece((), _Constant(value.detach()))


def _check(
    needed: Mapping[str, torch.Size],
    tensors: Mapping[str, Piece],
    shapes: Mapping[str, torch.Tensor],
    source: object,
) -> None:
    problems = []
    for name, shape in needed.items():
        piece = tensors.get(name)
        if piece is None:
            problems.append(f"nothing is known to become {name} {list(shape)}")
        elif absent := [key for key in piece.keys if key not in shapes]:
            problems.append(f"{absent[0]} is missing, which becomes {name} {list(shape)}")
        elif (found := piece.of(shapes).shape) != shape:
            given = " and ".join(f"{key} {list(shapes[key].shape)}" for key in piece.keys)
            problems.append(f"{given} gives {list(found)}, but {name} is {list(shape)}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"{source} does not fit the spec: {'; '.join(problems[:5])}{more}. Give a --model "
            "with the checkpoint's parts and sizes."
        )
