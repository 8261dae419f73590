"""Models of other projects, read into parts of this library: LLaVA's, BLIP-2's, and those that plugins know.

A folder or a hub repository in transformers' format is told by the ``model_type`` of its ``config.json``
(``lyrics.core.registry.component.PublicModel``). The plugin that knows it says which specification it is, and which of
its tensors becomes which of ours. Parts whose options name the checkpoint (image encoder, language model) read it by
themselves; here the rest is filled. Every tensor of ours and every key of the checkpoint is accounted for, by names and
shapes, before any value is read.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from lyrics.core.build import build_resolved
from lyrics.core.changes import Changes, overridden, part_of, warn_of_changes
from lyrics.core.composed import ComposedModel
from lyrics.core.errors import CheckpointError, LyricsError, PluginError, WeightsError
from lyrics.core.json_reading import read_json
from lyrics.core.registry.component import PublicModel
from lyrics.core.registry.registry import PluginSource, default_registry, describe
from lyrics.core.resolve import Resolved, resolve
from lyrics.core.runs.folder import find_run
from lyrics.core.spec import ModelSpec
from lyrics.core.weights.hub import small_files
from lyrics.core.weights.model_folder import SPEC_FILE, readers
from lyrics.core.weights.pieces import Piece, SourceCheckpoint
from lyrics.core.weights.pretrained import is_hub_id, locate_checkpoint
from lyrics.core.weights.tensors import (
    bounded,
    check_finite,
    check_types,
    shared_names,
    stored_tensors,
    tensor_files,
    tensor_headers,
)
from lyrics.core.weights.transformers_files import CONFIG_FILE, MODEL_TENSORS, load_config

if TYPE_CHECKING:
    from lyrics.core.registry.registry import Registry

M = TypeVar("M", bound=ComposedModel)

#: Parts of a model that a public one may have trained, as the names of their tensors begin.
_TRAINED = ("query_transformer.", "projection.", "objectives.")


@dataclass(frozen=True)
class PublicCheckpoint:
    """What a reader of public models looks at: small files alone.

    Args:
        name: as the user wrote it, a folder or a hub id; what the options ``checkpoint`` of parts are set to.
        folder: the local folder with its small files.
        config: its configuration, of a class of transformers.
    """

    name: str
    folder: Path
    config: Any

    def entries(self, file: str) -> dict[str, Any] | None:
        """Return what a JSON file beside the configuration holds; None where there is no such file.

        Raises ``WeightsError`` for one that is broken.
        """
        path = self.folder / file
        if not path.is_file():
            return None
        data = read_json(path, WeightsError)
        if not isinstance(data, dict):
            raise WeightsError(f"{path}: holds no entries under names; fetch it again.")
        return data

    def refuse_unless_causal(self, text_config: Any) -> None:
        """Raise ``WeightsError`` unless its language model writes on from what it reads."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        family = text_config.model_type
        if getattr(text_config, "is_encoder_decoder", False):
            raise self.refuse(
                f"its language model is an encoder-decoder ({family!r}), and no part of this library runs one: prompts "
                "are read and gone on with by one causal language model."
            )
        if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise self.refuse(f"its language model is a {family!r}, which is no causal language model of transformers.")

    def refuse(self, problem: str) -> WeightsError:
        """Return the error for a model that cannot be read, to be raised."""
        return WeightsError(f"{self.name}: {problem}")


@dataclass(frozen=True)
class PublicPlan:
    """How a public model is read.

    Args:
        spec: the model that it is. Parts whose option ``checkpoint`` is ``PublicCheckpoint.name`` read their tensors by
            themselves.
        pieces: ``pieces(model, keys)`` returns, for the tensors of a model, of which keys of the checkpoint they are
            made. It is given the model of ``spec`` on the meta device, or another one, to begin training with; then
            what is not there is left out.
        unread: patterns of whole keys that nothing depends on.
        new: patterns of whole names of ours that the checkpoint has nothing for and that nothing reads.
        tokenizers: spec path of a part that reads text -> its tokenizer, where its options do not name it.
        lacks: in words, what it lacks to be a model that answers; training may begin with it all the same.
    """

    spec: ModelSpec
    pieces: Callable[[ComposedModel, Collection[str]], Mapping[str, Piece]]
    unread: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    tokenizers: Mapping[str, Any] = field(default_factory=dict)
    lacks: str = ""


@dataclass(frozen=True)
class FoundModel:
    """A public model that was recognized, of which the small files are here.

    Args:
        name: as the user wrote it.
        folder: where its small files are.
        model: what reads it.
        source: the plugin that brings that.
    """

    name: str
    folder: Path
    model: PublicModel
    source: PluginSource

    def plan(self) -> PublicPlan:
        """Return how it is read.

        Raises ``WeightsError`` for a model that cannot be read, ``PluginError`` where the plugin is broken.
        """
        checkpoint = PublicCheckpoint(self.name, self.folder, load_config(self.folder))
        module, _, attribute = self.model.read.partition(":")
        try:
            read: Callable[[PublicCheckpoint], PublicPlan] = getattr(importlib.import_module(module), attribute)
            return read(checkpoint)
        except (LyricsError, KeyboardInterrupt):
            raise
        except BaseException as error:  # third-party code may raise anything, SystemExit included
            raise PluginError(
                f"{self.name}: the reader of public model {self.model.name!r} of {self.source} failed: "
                f"{describe(error)}"
            ) from error


def find_public(name: str, *, downloads: bool = True, registry: Registry | None = None) -> FoundModel | None:
    """Return the public model that a folder or a hub id is; None where it is a model folder, a run, or neither.

    Of a hub id the small files are fetched.

    Raises ``WeightsError`` for a hub id that the hub does not give, and for a model in transformers' format that no
    plugin reads.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        folder = path
    elif is_hub_id(name) and not path.exists():
        folder = small_files(name, downloads=downloads)
    else:
        return None
    if (folder / SPEC_FILE).is_file() or not (folder / CONFIG_FILE).is_file() or find_run(folder) is not None:
        return None
    known = registry or default_registry()
    data = read_json(folder / CONFIG_FILE, WeightsError)
    model_type = data.get("model_type") if isinstance(data, dict) else None
    found = known.public_model(model_type) if isinstance(model_type, str) else None
    if found is None:
        types = ", ".join(dict.fromkeys(model.model_type for model, _ in known.public_models))
        raise WeightsError(
            f"{name}: its {CONFIG_FILE} says model_type {model_type!r}, and the public models that are read as a whole "
            f"are {types or 'none'}. To build a model around it, name it as the checkpoint of a part."
        )
    return FoundModel(name, folder, *found)


def load_public(
    model_class: type[M],
    found: FoundModel,
    *,
    overrides: Mapping[str, Any] | None = None,
    downloads: bool = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> M:
    """Return a public model as parts of this library, in evaluation mode.

    Args:
        model_class: what is made of the parts.
        found: which one.
        overrides: of its specification. A part that they replace is built from its own weights; of the others what
            does not fit any more stays random, and is warned of.
        downloads: whether its tensors may be fetched from the hub; what overrides name may be in any case.
        device, dtype: as for ``lyrics.build_model``.

    Raises:
        WeightsError: it cannot be read, lacks a tensor, has one of another shape, or one that is not known.
        SpecError: an override is not valid.
    """
    plan = _answering(found)
    spec, changes = overridden(plan.spec, overrides) if overrides else (plan.spec, Changes())
    resolved = resolve(spec)
    with _tensors(found, downloads) as source:
        shapes = source.shapes()
        with bounded(tensor_headers(source.folder).values(), found.name):
            outline, _ = _outline(model_class, plan.spec, found)
        pieces = _accounted(outline, plan, shapes, found.name)
        named = downloads or bool(changes.replaced)  # what an override names was named by the user
        model = build_resolved(model_class, resolved, downloads=named, device=device, dtype=dtype)
        own = _read_by_themselves(plan.spec, found.name) | changes.replaced.keys()
        left = _fill(model, {name: one for name, one in pieces.items() if part_of(name) not in own}, source, shapes)
    for path, reader in readers(model).items():
        if path in plan.tokenizers and path not in changes.replaced:
            reader.tokenizer = plan.tokenizers[path]
    if changes.all:
        warn_of_changes(changes, model.spec, [*left, *_not_planned(model, pieces, changes, own)], found.name)
    return model.eval()


def start_from_public(model: ComposedModel, found: FoundModel, say: Callable[[str], None], *, downloads: bool) -> None:
    """Load what a public model has trained over a model's query transformer, projection and objectives, where it fits.

    Raises ``CheckpointError`` where nothing of it does, ``WeightsError`` where it cannot be read.
    """
    plan = found.plan()
    with _tensors(found, downloads) as source:
        shapes = source.shapes()
        pieces = {
            name: piece
            for name, piece in plan.pieces(model, shapes).items()
            if name.startswith(_TRAINED) and shapes.keys() >= set(piece.keys)
        }
        left = _fill(model, pieces, source, shapes)
    taken = (pieces.keys() & stored_tensors(model).keys()) - set(left)
    if not taken:
        raise CheckpointError(
            f"model.start_from={found.name}: none of its tensors fits this model's query transformer or projection; "
            f"its own are {plan.spec.query_transformer.use} and {plan.spec.language_model.use}."
        )
    names = {name for name in stored_tensors(model) if name.startswith(_TRAINED)} - taken
    rest = ", ".join(f"{part} ({count})" for part, count in sorted(_counts(names).items()))
    say(f"{len(taken)} tensors from {found.name}" + (f"; as they are initialized: {rest}" if rest else ""))


def wrapped_names(module: nn.Module) -> dict[str, str]:
    """Return the tensors of a part that wraps one transformers model: name in the part -> name in that model.

    PEFT puts ``base_layer`` into names and adds its own, which are left out. Empty where the part wraps no such model,
    or has tensors beside it.
    """
    from transformers import PreTrainedModel

    where = next((f"{name}." for name, inner in module.named_modules() if isinstance(inner, PreTrainedModel)), None)
    names = [name for name in module.state_dict() if ".lora_A." not in name and ".lora_B." not in name]
    if where is None or not all(name.startswith(where) for name in names):
        return {}
    return {name: name.removeprefix(where).replace(".base_layer.", ".") for name in names}


def renamed_pieces(
    prefix: str, names: Mapping[str, str], keys: Collection[str], spellings: Callable[[str], Iterable[str]]
) -> dict[str, Piece]:
    """Return the pieces of a part whose tensors are the checkpoint's by other names.

    Args:
        prefix: how the names of the part's tensors begin in the model.
        names: ``wrapped_names`` of the part.
        keys: those of the checkpoint.
        spellings: a name in the transformers model -> the keys that it may have, of which the first that is there is
            taken.
    """
    found = {}
    for ours, theirs in names.items():
        key = next((one for one in spellings(theirs) if one in keys), None)
        if key is not None:
            found[f"{prefix}{ours}"] = Piece((key,))
    return found


def outline_public(
    model_class: type[M],
    found: FoundModel,
    shapes: Mapping[str, torch.Tensor] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[M, Resolved]:
    """Return a public model on the meta device, from its small files alone, and its resolved specification.

    Args:
        model_class: what is made of the parts.
        found: which one.
        shapes: its tensors by their keys, where they are known, on the meta device; each is accounted for.
        overrides: of its specification.
        dtype: as for ``lyrics.build_model``.

    Raises ``WeightsError`` as ``load_public`` does, ``SpecError`` for an override that is not valid.
    """
    plan = _answering(found)
    if shapes is not None:
        _accounted(_outline(model_class, plan.spec, found)[0], plan, shapes, found.name)
    spec = overridden(plan.spec, overrides)[0] if overrides else plan.spec
    return _outline(model_class, spec, found, dtype)


def _outline(
    model_class: type[M], spec: ModelSpec, found: FoundModel, dtype: str | torch.dtype | None = None
) -> tuple[M, Resolved]:
    """The model without values, of the sizes that its configuration says."""
    local = {f"{path}.options.checkpoint": str(found.folder) for path in _read_by_themselves(spec, found.name)}
    resolved = resolve(spec.with_overrides(local))
    return build_resolved(model_class, resolved, weights="meta", dtype=dtype), resolved


def _answering(found: FoundModel) -> PublicPlan:
    """How a model that answers is read. Raises ``WeightsError`` for one that cannot, or that cannot be read."""
    plan = found.plan()
    if plan.lacks:
        raise WeightsError(
            f"{found.name}: lacks {plan.lacks}, so it cannot answer; training begins with it by "
            f"model.start_from={found.name}."
        )
    return plan


@contextmanager
def _tensors(found: FoundModel, downloads: bool) -> Iterator[SourceCheckpoint]:
    folder = locate_checkpoint(found.name, also=(CONFIG_FILE,), tensors=MODEL_TENSORS, downloads=downloads)
    check_types(tensor_headers(folder), found.name)
    with closing(SourceCheckpoint(folder, tensor_files(folder))) as source:
        yield source


def _read_by_themselves(spec: ModelSpec, name: str) -> set[str]:
    """Spec paths of the parts that read the checkpoint of that name."""
    return {path for path, _, slot in spec.slots() if slot.options.get("checkpoint") == name}


def _accounted(
    outline: ComposedModel, plan: PublicPlan, shapes: Mapping[str, torch.Tensor], name: str
) -> Mapping[str, Piece]:
    """The pieces of the model.

    Raises ``WeightsError`` that lists what is missing, of another shape, or not known.
    """
    pieces = plan.pieces(outline, shapes)
    own = outline.state_dict(keep_vars=True)
    problems = []
    for names in shared_names(outline):
        ours = next((name for name in names if name in pieces), names[0])
        piece, tensor = pieces.get(ours), own[ours]
        if piece is None:
            if not _matches(ours, plan.new):
                problems.append(f"nothing in it becomes {ours} {list(tensor.shape)}")
        elif absent := [key for key in piece.keys if key not in shapes]:
            problems.append(f"{absent[0]} is missing, which becomes {ours} {list(tensor.shape)}")
        elif (made := piece.of(shapes).shape) != tensor.shape:  # only training may begin with fewer rows
            given = " and ".join(f"{key} {list(shapes[key].shape)}" for key in piece.keys)
            problems.append(f"{given} gives {list(made)}, but {ours} is {list(tensor.shape)} by its {CONFIG_FILE}")
    used = {key for piece in pieces.values() for key in piece.keys}
    problems += [
        f"{key} is not part of the model" for key in sorted(shapes.keys() - used) if not _matches(key, plan.unread)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"{name}: its tensors are not those of its {CONFIG_FILE}: {'; '.join(problems[:5])}{more}. Fetch it again."
        )
    return pieces


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _fits(made: torch.Size, wanted: torch.Size, piece: Piece) -> bool:
    rows = piece.first_rows and len(made) == len(wanted) > 0 and made[0] <= wanted[0]
    return made == wanted or (rows and made[1:] == wanted[1:])


@torch.no_grad()
def _fill(
    model: ComposedModel,
    pieces: Mapping[str, Piece],
    source: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Tensor],
) -> list[str]:
    """Fill the tensors that pieces fit; return the names of the others, and of those beside them in a layer.

    Raises ``WeightsError`` naming a tensor that is not finite.
    """
    own = stored_tensors(model)
    own_pieces = {name: piece for name, piece in pieces.items() if name in own}
    odd = {
        name.rpartition(".")[0]
        for name, piece in own_pieces.items()
        if not _fits(piece.of(shapes).shape, own[name].shape, piece)
    }
    left = []
    for name, piece in own_pieces.items():
        if name.rpartition(".")[0] in odd:
            left.append(name)
            continue
        made = piece.of(source)
        check_finite([(name, made)], getattr(source, "path", "the checkpoint"))
        own[name][: len(made)].copy_(made) if made.shape != own[name].shape else own[name].copy_(made)
    return left


def _not_planned(model: ComposedModel, pieces: Collection[str], changes: Changes, own: Collection[str]) -> list[str]:
    """Tensors of altered parts that the public model has nothing for."""
    return [
        name
        for name in stored_tensors(model)
        if part_of(name) in changes.altered and part_of(name) not in own and name not in pieces
    ]


def _counts(names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[part_of(name)] = found.get(part_of(name), 0) + 1
    return found
