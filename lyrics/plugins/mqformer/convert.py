"""Checkpoints of other projects -> this query transformer's weights, and back.

The one table of how their keys are spelled: LAVIS' (BLIP-2 stage 1), transformers' BLIP-2 and InstructBLIP, and those
of the released Lyrics code's stages 1 and 2. Ours keeps query, key and value of self-attention in one matrix, key and
value of cross-attention in another, pads the vocabulary to a multiple of 64 and source widths to a multiple of 8; all
of that is exact. Key names are facts of the public checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lyrics.core.errors import WeightsError
from lyrics.core.weights.pretrained import read_tensors
from lyrics.core.weights.tensors import WEIGHTS_FILE, check_finite, check_types, headers_of
from lyrics.plugins.mqformer.layers import padded
from lyrics.plugins.mqformer.model import MQFormer

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Naming:
    """How a project spells the keys of the trunk, its embeddings and its heads."""

    name: str
    encoder: str
    embeddings: str
    embedding_norm: str
    nested: str
    head: str | None
    image_norm: str | None = None
    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """objective -> {our parameter prefix: upstream key prefix}"""


_BLIP2_HEADS = {
    "itc": {"image_projection": "vision_proj", "text_projection": "text_proj", "temperature": "temp"},
    "itm": {"classifier": "itm_head"},
}
LAVIS = Naming(
    name="lavis",
    encoder="Qformer.bert.encoder.layer",
    embeddings="Qformer.bert.embeddings",
    embedding_norm="Qformer.bert.embeddings.LayerNorm",
    nested="self",
    head="Qformer.cls.predictions",
    image_norm="ln_vision",
    heads=_BLIP2_HEADS,
)
TRANSFORMERS = Naming(
    name="transformers",
    encoder="qformer.encoder.layer",
    embeddings="embeddings",
    embedding_norm="qformer.layernorm",
    nested="attention",
    head=None,
    image_norm="vision_model.post_layernorm",
    heads={
        "itc": {"image_projection": "vision_projection", "text_projection": "text_projection"},
        "itm": {"classifier": "itm_head"},
    },
)
RELEASED_STAGE1 = Naming(
    name="released-stage1",
    encoder="qformer.bert.encoder.layer",
    embeddings="qformer.bert.embeddings",
    embedding_norm="qformer.bert.embeddings.LayerNorm",
    nested="attention",
    head="qformer.cls.predictions",
    heads=_BLIP2_HEADS,
)
RELEASED_STAGE2 = Naming(
    name="released-stage2",
    encoder="qformer.encoder.layer",
    embeddings="qformer.embeddings",
    embedding_norm="qformer.embeddings.LayerNorm",
    nested="attention",
    head=None,
)
INSTRUCTBLIP = Naming(
    name="instructblip",
    encoder="qformer.encoder.layer",
    embeddings="qformer.embeddings",
    embedding_norm="qformer.embeddings.layernorm",
    nested="attention",
    head=None,
)
NAMINGS = (LAVIS, TRANSFORMERS, RELEASED_STAGE1, RELEASED_STAGE2, INSTRUCTBLIP)


def detect_naming(keys: Iterable[str]) -> Naming | None:
    """Return the naming whose embedding LayerNorm and first query projection are among the keys, or None."""
    present = set(keys)
    for naming in NAMINGS:
        marks = (f"{naming.embedding_norm}.weight", f"{naming.encoder}.0.attention.{naming.nested}.query.weight")
        if all(mark in present for mark in marks):
            return naming
    return None


@dataclass(frozen=True)
class UpstreamKeys:
    """One of our parameters in upstream's terms: these keys stacked along the first dimension."""

    keys: tuple[str, ...]
    columns: int | None = None
    """True number of columns, where ours are padded."""
    new_columns: int = 0
    """Columns of ours after those, which upstream lacks."""
    rows: int | None = None
    """True number of rows, where ours are padded."""
    squeeze: bool = False
    """Upstream has a leading dimension of 1."""


def sources(model: MQFormer, naming: Naming) -> dict[str, UpstreamKeys]:
    """Return every parameter of ``model`` that ``naming`` has a place for -> where upstream keeps it."""
    found = {
        "query_tokens_QD": UpstreamKeys(("query_tokens",), squeeze=True),
        "word_embeddings.weight": UpstreamKeys((f"{naming.embeddings}.word_embeddings.weight",), rows=model.vocab_size),
        "position_embeddings.weight": UpstreamKeys((f"{naming.embeddings}.position_embeddings.weight",)),
    }

    def put(ours: str, *theirs: str, columns: int | None = None, new_columns: int = 0) -> None:
        keys = tuple(f"{key}.weight" for key in theirs)
        found[f"{ours}.weight"] = UpstreamKeys(keys, columns=columns, new_columns=new_columns)
        found[f"{ours}.bias"] = UpstreamKeys(tuple(f"{key}.bias" for key in theirs))

    put("embedding_norm", naming.embedding_norm)
    if model.options.normalize_image_tokens and naming.image_norm is not None:
        put("image_norm", naming.image_norm)
    for number in range(len(model.layers)):
        ours, theirs = f"layers.{number}", f"{naming.encoder}.{number}"
        inner = f"attention.{naming.nested}"
        put(f"{ours}.self_attention.qkv", *(f"{theirs}.{inner}.{part}" for part in ("query", "key", "value")))
        put(f"{ours}.self_attention.output", f"{theirs}.attention.output.dense")
        put(f"{ours}.self_attention.norm", f"{theirs}.attention.output.LayerNorm")
        for branch, upstream, dims in (
            ("image_attention", "crossattention", {"image": model.image_dim}),
            ("local_attention", "detection_crossattention", model.local_dims),
        ):
            if getattr(model.layers[number], branch) is None:
                continue
            cross = f"{theirs}.{upstream}"
            put(f"{ours}.{branch}.query", f"{cross}.{naming.nested}.query")
            for source, width in dims.items():
                if source in ("image", "detector"):  # no upstream project has another local source
                    parts = (f"{cross}.{naming.nested}.key", f"{cross}.{naming.nested}.value")
                    new = model.read_dims[source] - width if source in model.read_dims else 0
                    put(f"{ours}.{branch}.key_value.{source}", *parts, columns=width, new_columns=new)
            put(f"{ours}.{branch}.output", f"{cross}.output.dense")
            put(f"{ours}.{branch}.norm", f"{cross}.output.LayerNorm")
        for ffn, suffix in (("text_ffn", ""), ("query_ffn", "_query")):
            put(f"{ours}.{ffn}.up", f"{theirs}.intermediate{suffix}.dense")
            put(f"{ours}.{ffn}.down", f"{theirs}.output{suffix}.dense")
            put(f"{ours}.{ffn}.norm", f"{theirs}.output{suffix}.LayerNorm")
    if naming.head is not None:
        put("token_head.transform", f"{naming.head}.transform.dense")
        put("token_head.norm", f"{naming.head}.transform.LayerNorm")
        found["token_head.bias"] = UpstreamKeys((f"{naming.head}.bias",), rows=model.vocab_size)
    return found


def head_keys(naming: Naming, objective: str, keys: Iterable[str]) -> dict[str, str]:
    """Return the parameters of an objective -> upstream's keys of them, of those that are among ``keys``."""
    prefixes = naming.heads.get(objective, {})
    return {
        ours + key[len(theirs) :]: key
        for ours, theirs in prefixes.items()
        for key in keys
        if key == theirs or key.startswith(f"{theirs}.")
    }


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our naming.

    ``trunk`` are parameters of the query transformer, ``heads[objective]`` of that objective; ``copies`` are upstream
    keys that repeat another one (tied weights, the position buffer) and ``rest`` those that belong to other parts of
    the model (vision tower, LLM, experts).
    """

    naming: str
    trunk: dict[str, torch.Tensor]
    heads: dict[str, dict[str, torch.Tensor]]
    copies: tuple[str, ...]
    rest: tuple[str, ...]


def from_upstream(state: State, model: MQFormer, naming: Naming | None = None) -> Converted:
    """Convert whatever ``state`` has for ``model``. Also fits gradients, for the conversion is linear.

    Raises:
        WeightsError: the naming is not known, only part of a matrix is there, or tied copies differ.
    """
    naming = naming or detect_naming(state)
    if naming is None:
        names = ", ".join(n.name for n in NAMINGS)
        raise WeightsError(
            f"the checkpoint's keys are in none of the known namings ({names}); it begins with {sorted(state)[:3]}."
        )
    used: set[str] = set()
    trunk: dict[str, torch.Tensor] = {}
    for ours, source in sources(model, naming).items():
        present = [key for key in source.keys if key in state]
        if not present:
            continue
        if len(present) < len(source.keys):
            raise WeightsError(f"{ours} needs {', '.join(source.keys)}; the checkpoint has only {', '.join(present)}.")
        tensor = torch.cat([state[key] for key in source.keys]) if len(source.keys) > 1 else state[source.keys[0]]
        tensor = tensor.squeeze(0) if source.squeeze else tensor
        if source.columns is not None:
            if tensor.shape[1] not in (source.columns, padded(source.columns, 8)):
                raise WeightsError(f"{source.keys[0]} reads tokens {tensor.shape[1]} wide, the model {source.columns}.")
            # A box's waves, which upstream has none of, begin without weight.
            wide = padded(source.columns + source.new_columns, 8)
            tensor = torch.nn.functional.pad(tensor, (0, wide - tensor.shape[1]))
        trunk[ours] = tensor
        used.update(source.keys)
    heads: dict[str, dict[str, torch.Tensor]] = {}
    for objective in naming.heads:
        keys = head_keys(naming, objective, state)
        if keys:
            heads[objective] = {ours: state[key] for ours, key in keys.items()}
            used.update(keys.values())
    copies = _check_copies(state, naming)
    rest = tuple(sorted(set(state) - used - set(copies)))
    return Converted(naming.name, trunk, heads, copies, rest)


class Made:
    """Our tensor ``name`` of upstream's of ``keys``: stacked, and as wide and long as ours where that only pads.

    The rows that pad the vocabulary are zero. With fewer words than the model has, there are fewer rows.
    """

    def __init__(self, model: MQFormer, naming: Naming, name: str) -> None:
        self.model, self.naming, self.name = model, naming, name
        source = sources(model, naming)[name]
        self.keys, self.rows = source.keys, source.rows
        self.padded_rows = len(model.get_parameter(name))

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        state = dict(zip(self.keys, tensors, strict=True))
        made = from_upstream(state, self.model, self.naming).trunk[self.name]
        if self.rows is None or len(made) != self.rows:
            return made
        return torch.nn.functional.pad(made, (0, 0) * (made.ndim - 1) + (0, self.padded_rows - len(made)))


def _check_copies(state: State, naming: Naming) -> tuple[str, ...]:
    found = []
    if f"{naming.embeddings}.position_ids" in state:
        found.append(f"{naming.embeddings}.position_ids")
    for copy, original in (
        (f"{naming.head}.decoder.weight", f"{naming.embeddings}.word_embeddings.weight"),
        (f"{naming.head}.decoder.bias", f"{naming.head}.bias"),
    ):
        if naming.head is not None and copy in state:
            comparable = original in state and state[copy] is not state[original] and not state[copy].is_meta
            if comparable and not torch.equal(state[copy], state[original]):
                raise WeightsError(f"{copy} differs from {original}; this query transformer ties them.")
            found.append(copy)
    return tuple(found)


def to_upstream(model: MQFormer, naming: Naming = RELEASED_STAGE1) -> dict[str, torch.Tensor]:
    """Return the model's weights in another project's naming: split, without padding, tied copies and buffers included.

    Raises:
        WeightsError: the model has parameters the naming has no place for (a segmenter's projections; grounding in
            BLIP-2's).
    """
    own = dict(model.state_dict())
    wanted = sources(model, naming)
    missing = sorted(set(own) - set(wanted))
    if missing:
        raise WeightsError(f"the {naming.name} naming has no place for {', '.join(missing)}.")
    if model.box_waves:
        raise WeightsError(f"the {naming.name} naming has no place for box_features: fourier.")
    state: dict[str, torch.Tensor] = {}
    for ours, source in wanted.items():
        tensor = own[ours]
        tensor = tensor if source.rows is None else tensor[: source.rows]
        tensor = tensor if source.columns is None else tensor[:, : source.columns]
        tensor = tensor[None] if source.squeeze else tensor
        for key, part in zip(source.keys, tensor.chunk(len(source.keys)), strict=True):
            state[key] = part
    device = model.query_tokens_QD.device
    state[f"{naming.embeddings}.position_ids"] = torch.arange(model.options.max_positions, device=device)[None]
    if naming.head is not None:
        state[f"{naming.head}.decoder.weight"] = state[f"{naming.embeddings}.word_embeddings.weight"]
        state[f"{naming.head}.decoder.bias"] = state[f"{naming.head}.bias"]
    return state


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Parameters left as initialized, and rows of a matrix left so because the checkpoint has fewer.
    """

    naming: str
    initialized: tuple[str, ...]
    partly: Mapping[str, int]
    rest: tuple[str, ...]


#: Parameters of which a larger model takes the first rows from a checkpoint.
GROWING = ("query_tokens_QD", "word_embeddings.weight", "token_head.bias")
#: Parameters that a BLIP-2 checkpoint cannot have.
_MAY_BE_NEW = re.compile(r"local_attention\.|token_head\.|image_norm\.")


def load_converted(model: MQFormer, converted: Converted) -> LoadReport:
    """Copy converted weights into the model.

    New vocabulary rows and the grounding queries keep their initial values where the checkpoint has fewer; so do the
    grounding cross-attention and the token head where it has none.

    Raises:
        WeightsError: another parameter is missing, or a shape does not fit.
    """
    own = dict(model.named_parameters())
    missing = [name for name in own if name not in converted.trunk]
    forbidden = [name for name in missing if not _MAY_BE_NEW.search(name)]
    if forbidden:
        raise WeightsError(f"the checkpoint ({converted.naming}) has nothing for {', '.join(forbidden[:5])}.")
    partly: dict[str, int] = {}
    with torch.no_grad():
        for name, tensor in converted.trunk.items():
            target = own[name]
            fits = tensor.shape == target.shape
            if not fits and name in GROWING and tensor.shape[1:] == target.shape[1:] and len(tensor) <= len(target):
                partly[name] = len(tensor)
                fits = True
            if not fits:
                raise WeightsError(
                    f"{name} is {tuple(target.shape)} in the model and {tuple(tensor.shape)} in the checkpoint "
                    f"({converted.naming})."
                )
            target[: len(tensor)].copy_(tensor)
    return LoadReport(converted.naming, tuple(missing), partly, converted.rest)


def load_checkpoint(model: MQFormer, path: str | Path) -> LoadReport:
    """Read a checkpoint in any known naming (ours included) into the model.

    It is a .safetensors file, or the folder that ``lyrics convert`` wrote.

    Raises:
        WeightsError: no such file, another format, or weights that do not fit.
    """
    file = Path(path)
    if file.is_dir():
        file = file / WEIGHTS_FILE
    if not file.is_file() or file.suffix != ".safetensors":
        raise WeightsError(
            f"query_transformer.options.checkpoint: {path} is neither a .safetensors file nor a folder that holds "
            f"{WEIGHTS_FILE}."
        )
    state = read_tensors(file)
    check_finite(state.items(), file)
    check_types(headers_of(state), file)
    if set(state) == set(dict(model.named_parameters())):
        return load_converted(model, Converted("lyrics", dict(state), {}, (), ()))
    return load_converted(model, from_upstream(state, model))
