"""MQ-Former: BLIP-2's BERT trunk with visual queries that read the image and grounding queries that read the visual refiner.

Twelve post-LayerNorm layers. Self-attention weights are shared by queries and text; every second layer has two cross-attentions (paper
section 3.1 and figure 2, placement as in BLIP-2); queries and text have a feed-forward each. All streams of a call run packed, without
padding: the packed sequence is all query rows, then all text rows (``lyrics.kernels.plan``). Keys and values of the frozen features are
projected once per layer and image, however many streams read them, and the last layer computes only the rows that are wanted.

Letters: T packed tokens, P query sets (one per stream row with queries), Q queries of a set (V visual + G grounding), I images, N image
tokens, M local tokens, D width, H heads, d head width, n selected rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.core.stage1.streams import Features, ProjectedFeatures, SpecialTokens, Stream, StreamOutputs
from lyrics.core.weights.pretrained import locate_checkpoint
from lyrics.core.weights.transformers_files import TOKENIZER_PATTERNS, load_tokenizer
from lyrics.kernels import CrossPlan, Layout, Plan, build_cross_plan, build_plan, cross_attention, segment_attention
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[DEC]", "[MLM]")
KeysAndValues = tuple[torch.Tensor, torch.Tensor]


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pad_width(tokens: torch.Tensor) -> torch.Tensor:
    """Zero columns up to a multiple of 8."""
    missing = padded(tokens.shape[-1], 8) - tokens.shape[-1]
    return F.pad(tokens, (0, missing)) if missing else tokens


class MQFormer(nn.Module):
    """The query transformer; with ``num_grounding`` 0 it is BLIP-2's Q-Former.

    Args:
        options: sizes and dropout.
        image_dim: width of image tokens.
        local_dims: width of the local tokens of each source, in the order in which they are concatenated; may be empty, and then the
            grounding queries have nothing to read and skip their cross-attention.
        tokenizer: has the tokens of ``SPECIAL_TOKENS``.
    """

    def __init__(self, options: QFormerOptions, image_dim: int, local_dims: Mapping[str, int], tokenizer: Any):
        super().__init__()
        self.options = options
        self.hidden_size = options.hidden_size
        self.num_visual = options.num_visual
        self.num_grounding = options.num_grounding if isinstance(options, MQFormerOptions) else 0
        self.num_queries = self.num_visual + self.num_grounding
        self.segments = options.segments
        self.image_dim = image_dim
        self.local_dims = dict(local_dims) if self.num_grounding else {}
        self.tokenizer = tokenizer
        self.vocab_size = options.vocab_size
        self.max_positions = options.max_positions

        self.query_tokens_QD = nn.Parameter(torch.empty(self.num_queries, self.hidden_size))
        self.word_embeddings = nn.Embedding(padded(options.vocab_size, 64), self.hidden_size)
        self.position_embeddings = nn.Embedding(options.max_positions, self.hidden_size)
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=options.layer_norm_eps)
        self.image_norm = nn.LayerNorm(image_dim) if options.normalise_image_tokens else nn.Identity()
        self.layers = nn.ModuleList(
            Layer(options, image_dim, self.local_dims, reads=number % options.cross_attention_every == 0)
            for number in range(options.num_layers)
        )
        self.token_head = TokenHead(options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, init_std), zero biases, queries with small noise so that no two are alike, and Xavier for the grounding
        cross-attention, which no BLIP-2 checkpoint has (paper section 3.1)."""
        std = self.options.init_std
        nn.init.normal_(self.query_tokens_QD, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            grounding = cast(Layer, layer).local_attention
            if grounding is not None:
                grounding.reset_parameters_xavier()

    # --- features ----------------------------------------------------------------------------------------------------

    def project(self, features: Features) -> ProjectedFeatures:
        """Keys and values of all images for every layer that reads them: once per step, for all passes.

        Raises:
            ContractError: a source is missing or unknown, or a width differs from the one this model was built for.
        """
        image_IND = features.image_tokens_BND
        if image_IND.shape[-1] != self.image_dim:
            raise ContractError(
                f"image tokens are {image_IND.shape[-1]} wide; this query transformer reads {self.image_dim}."
            )
        if self.num_grounding and set(features.local) != set(self.local_dims):
            raise ContractError(
                f"local tokens come from {sorted(features.local)}; this query transformer reads {sorted(self.local_dims)}."
            )
        local = {name: self._padded_local(name, *features.local[name]) for name in self.local_dims}
        norm = self.image_norm if isinstance(self.image_norm, nn.LayerNorm) else None
        if norm is not None:  # its scale and shift are folded into the projections
            image_IND = F.layer_norm(image_IND, (self.image_dim,), eps=norm.eps)
        image_IND = pad_width(image_IND)
        image: dict[int, KeysAndValues] = {}
        grounding: dict[int, KeysAndValues] = {}
        for number, module in enumerate(self.layers):
            layer = cast(Layer, module)
            if layer.image_attention is not None:
                image[number] = layer.image_attention.project({"image": image_IND}, norm)
            if layer.local_attention is not None:
                grounding[number] = layer.local_attention.project({name: tokens for name, (tokens, _) in local.items()})
        return ProjectedFeatures(
            num_images=features.num_images,
            image=image,
            local=grounding,
            image_mask_BN=features.image_mask_BN,
            local_mask_BM=torch.cat([mask for _, mask in local.values()], dim=1) if local else None,
        )

    def _padded_local(self, name: str, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Zero columns up to the padded width, which is exact; features cached at the padded width pass as they are."""
        wanted, wide = self.local_dims[name], padded(self.local_dims[name], 8)
        if tokens.shape[-1] == wide:
            return tokens, mask
        if tokens.shape[-1] != wanted:
            raise ContractError(f"{name} tokens are {tokens.shape[-1]} wide; this query transformer reads {wanted}.")
        return pad_width(tokens), mask

    # --- the packed forward pass -------------------------------------------------------------------------------------

    def forward(self, streams: Sequence[Stream], features: Features | ProjectedFeatures) -> StreamOutputs:
        """Run all streams at once and return the hidden states that they want.

        ``features`` that several calls read (the two passes of a stage-1 step) are better projected once, with ``project``.
        """
        memory = features if isinstance(features, ProjectedFeatures) else self.project(features)
        device = self.query_tokens_QD.device
        tables = lower(self, streams, memory, device)
        queries_TD, text_TD = self.embed(tables)
        seeds = self._seeds()
        for number, module in enumerate(self.layers):
            layer = cast(Layer, module)
            rows = tables.last if number == len(self.layers) - 1 else tables.every
            seen = (memory.image.get(number), memory.local.get(number))
            if self.options.gradient_checkpointing and self.training and torch.is_grad_enabled():
                queries_TD, text_TD = checkpoint(
                    layer, queries_TD, text_TD, rows, seen, seeds[number], use_reentrant=False
                )
            else:
                queries_TD, text_TD = layer(queries_TD, text_TD, rows, seen, seeds[number])
        return StreamOutputs(torch.cat([queries_TD, text_TD]), tables.where)

    @property
    def special(self) -> SpecialTokens:
        """Ids of the tokens around texts; a model folder may bring another tokenizer."""
        return SpecialTokens.from_tokenizer(self.tokenizer)

    def embed(self, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (no position, but the LayerNorm) and text, packed."""
        queries = self.query_tokens_QD.expand(tables.num_sets, -1, -1).reshape(-1, self.hidden_size)
        text = self.word_embeddings(tables.ids_T) + self.position_embeddings(tables.positions_T)
        return self._embedding_tail(queries), self._embedding_tail(text)

    def _embedding_tail(self, rows_TD: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.embedding_norm(rows_TD), self.options.hidden_dropout, self.training)

    def _seeds(self) -> list[int]:
        """One attention-dropout seed per layer, from torch's generator, so that ``torch.manual_seed`` fixes a run."""
        if not self.training or self.options.attention_dropout == 0:
            return [0] * len(self.layers)
        return [int(seed) for seed in torch.randint(2**62, (len(self.layers),))]

    def token_logits(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        """Hidden states -> logits over the vocabulary [n, vocab_size]. Give it target rows only: it is the widest product here."""
        transformed = self.token_head(hidden_nD)
        logits = F.linear(transformed, self.word_embeddings.weight, self.token_head.bias)
        return logits[:, : self.vocab_size]

    def stage1_parameters(self) -> Iterator[nn.Parameter]:
        """The head behind ``token_logits``; its output matrix is that of the embeddings, which stage 2 trains, too."""
        return self.token_head.parameters()

    def forward_dense(self, stream: Stream, features: Features, cache: Sequence[KeysAndValues] | None = None) -> Any:
        """The same stream by the plain definition: padded, one dense mask, no sharing. See ``dense.py``."""
        from lyrics.plugins.mqformer.dense import forward_dense

        return forward_dense(self, stream, features, cache)


# --- lowering: streams -> the tables that layers read ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """The query rows that a layer computes: all of them, or in the last layer those that are wanted."""

    plan: Plan
    index: torch.Tensor | None
    """Packed positions computed, None for all."""
    num_query_rows: int
    visual: CrossPlan | None
    grounding: CrossPlan | None


@dataclass(frozen=True, eq=False)
class Tables:
    """Everything about one forward call that layers share."""

    every: Rows
    last: Rows
    ids_T: torch.Tensor
    positions_T: torch.Tensor
    num_sets: int
    where: Mapping[tuple[str, str], tuple[torch.Tensor, tuple[int, ...]]]


def lower(model: MQFormer, streams: Sequence[Stream], memory: ProjectedFeatures, device: torch.device) -> Tables:
    """Pack the streams: layout, plan, token ids, and which rows the last layer computes."""
    groups = [stream.group(model.num_visual, model.num_grounding) for stream in streams]
    layout, plan = build_plan(groups)
    num_query_rows, num_text = layout.bank_sizes
    ids = torch.zeros(num_text, dtype=torch.int64)
    positions = torch.zeros(num_text, dtype=torch.int64)
    images: list[torch.Tensor] = []
    for stream in streams:
        if stream.image_index_R is not None:
            images.append(stream.image_index_R)
        for name, text in stream.text.items():
            furthest = text.first_position + int(text.lengths_R.max()) if stream.num_rows else 0
            if furthest > model.options.max_positions:
                raise ContractError(
                    f"stream {stream.name!r}: segment {name!r} reaches position {furthest}, and the query transformer has "
                    f"{model.options.max_positions}. Limit the objects or the caption's length before they get here."
                )
            packed = layout.positions(stream.name, name) - num_query_rows
            mask = text.mask_RL
            ids[packed] = text.ids_RL[mask]
            positions[packed] = mask.nonzero()[:, 1] + text.first_position
    set_image = torch.cat(images) if images else torch.zeros(0, dtype=torch.int64)
    plan = plan.to(device)
    every = Rows(plan, None, num_query_rows, *_cross_plans(model, plan.row_id_T, set_image, memory))
    kept, where = _wanted_rows(model, streams, layout)
    kept_queries = kept[kept < num_query_rows]
    last_plan = plan.select(kept)
    kept_images = set_image[kept_queries[:: model.num_queries] // model.num_queries]
    last = Rows(
        last_plan,
        kept.to(device),
        len(kept_queries),
        *_cross_plans(model, last_plan.row_id_T, kept_images, memory),
    )
    on_device = {key: (rows.to(device), shape) for key, (rows, shape) in where.items()}
    return Tables(every, last, ids.to(device), positions.to(device), len(set_image), on_device)


def _cross_plans(
    model: MQFormer, row_id_T: torch.Tensor, set_image: torch.Tensor, memory: ProjectedFeatures
) -> tuple[CrossPlan | None, CrossPlan | None]:
    if not len(set_image):
        return None, None
    ids_PQ = row_id_T[: len(set_image) * model.num_queries].view(len(set_image), model.num_queries)
    found: list[CrossPlan | None] = []
    for rows, keys_and_values, mask in (
        (ids_PQ[:, : model.num_visual], memory.image, memory.image_mask_BN),
        (ids_PQ[:, model.num_visual :], memory.local, memory.local_mask_BM),
    ):
        if not keys_and_values:
            found.append(None)
            continue
        num_keys = next(iter(keys_and_values.values()))[0].shape[1]
        found.append(build_cross_plan(set_image, mask, memory.num_images, rows, num_keys))
    return found[0], found[1]


def _wanted_rows(
    model: MQFormer, streams: Sequence[Stream], layout: Layout
) -> tuple[torch.Tensor, dict[tuple[str, str], tuple[torch.Tensor, tuple[int, ...]]]]:
    """Packed positions that some stream wants (sorted; query sets whole), and for each segment its rows among them."""
    kept = []
    rows_of: dict[tuple[str, str], torch.Tensor] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for stream in streams:
        for name, wanted in stream.wanted.items():
            key = (stream.name, name)
            positions = layout.positions(*key)
            if name in ("V", "G"):
                if not (isinstance(wanted, str) and wanted == "all"):
                    raise ContractError(f"stream {stream.name!r}: of queries all outputs can be wanted, not some.")
                shapes[key] = (stream.num_rows, layout_count(layout, key))
                kept += [layout.positions(stream.name, segment) for segment in ("V", "G")]
            elif isinstance(wanted, torch.Tensor):
                positions = positions[wanted[stream.text[name].mask_RL]]
                shapes[key] = (len(positions),)
            elif wanted == "first":
                if not bool((layout.lengths[key] > 0).all()):
                    raise ContractError(
                        f"stream {stream.name!r}: the first token of {name!r} is wanted, but a row has none."
                    )
                positions = layout.starts[key]
                shapes[key] = (stream.num_rows,)
            else:
                shapes[key] = (len(positions),)
            kept.append(positions)
            rows_of[key] = positions
    chosen = torch.unique(torch.cat(kept)) if kept else torch.zeros(0, dtype=torch.int64)
    return chosen, {key: (torch.searchsorted(chosen, rows), shapes[key]) for key, rows in rows_of.items()}


def layout_count(layout: Layout, key: tuple[str, str]) -> int:
    lengths = layout.lengths[key]
    return int(lengths[0]) if len(lengths) else 0


# --- one layer -------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Self-attention over queries and text, cross-attention of the queries where the layer ``reads``, and two feed-forwards."""

    def __init__(self, options: QFormerOptions, image_dim: int, local_dims: Mapping[str, int], reads: bool):
        super().__init__()
        self.num_visual = options.num_visual
        self.self_attention = SelfAttention(options)
        self.image_attention = CrossAttention(options, {"image": image_dim}) if reads else None
        self.local_attention = CrossAttention(options, local_dims) if reads and local_dims else None
        self.query_ffn = FeedForward(options)
        self.text_ffn = FeedForward(options)

    def forward(
        self,
        queries_TD: torch.Tensor,
        text_TD: torch.Tensor,
        rows: Rows,
        seen: tuple[KeysAndValues | None, KeysAndValues | None],
        seed: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_TD = self.self_attention(torch.cat([queries_TD, text_TD]), rows.plan, rows.index, seed)
        queries_TD, text_TD = hidden_TD.split([rows.num_query_rows, len(hidden_TD) - rows.num_query_rows])
        if self.image_attention is not None and rows.visual is not None:
            num_sets = len(rows.visual.image_index_S)
            visual_PVD, grounding_PGD = queries_TD.view(num_sets, -1, queries_TD.shape[-1]).split(
                [self.num_visual, len(queries_TD) // num_sets - self.num_visual], dim=1
            )
            visual_PVD = self.image_attention(visual_PVD, seen[0], rows.visual, seed + 1)
            if self.local_attention is not None:
                grounding_PGD = self.local_attention(grounding_PGD, seen[1], rows.grounding, seed + 2)
            queries_TD = torch.cat([visual_PVD, grounding_PGD], dim=1).view(-1, queries_TD.shape[-1])
        return self.query_ffn(queries_TD), self.text_ffn(text_TD)


class SelfAttention(nn.Module):
    """BERT's self-attention block on packed tokens, its weights shared by queries and text."""

    def __init__(self, options: QFormerOptions):
        super().__init__()
        width = options.hidden_size
        self.options = options
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=options.layer_norm_eps)

    def forward(self, hidden_TD: torch.Tensor, plan: Plan, index: torch.Tensor | None, seed: int) -> torch.Tensor:
        heads = (self.options.num_heads, self.options.hidden_size // self.options.num_heads)
        if index is None:
            q, k, v = self.qkv(hidden_TD).view(-1, 3, *heads).unbind(1)
        else:  # queries of the wanted rows only, keys and values of all
            width = self.options.hidden_size
            weight, bias = self.qkv.weight, self.qkv.bias
            k, v = F.linear(hidden_TD, weight[width:], bias[width:]).view(-1, 2, *heads).unbind(1)
            hidden_TD = hidden_TD.index_select(0, index)
            q = F.linear(hidden_TD, weight[:width], bias[:width]).view(-1, *heads)
        dropout_p = self.options.attention_dropout if self.training else 0.0
        read = segment_attention(q, k, v, plan, dropout_p=dropout_p, seed=seed, impl=self.options.attention)
        projected = F.dropout(self.output(read.flatten(1)), self.options.hidden_dropout, self.training)
        return cast(torch.Tensor, self.norm(hidden_TD + projected))


class CrossAttention(nn.Module):
    """Queries of one kind reading frozen features. Each source has its own key and value projection; sources are concatenated along
    the sequence. Source widths are padded to a multiple of 8 with weight columns that only ever meet zeros."""

    def __init__(self, options: QFormerOptions, source_dims: Mapping[str, int]):
        super().__init__()
        width = options.hidden_size
        self.options = options
        self.source_dims = dict(source_dims)
        self.query = nn.Linear(width, width)
        self.key_value = nn.ModuleDict(
            {name: nn.Linear(padded(dim, 8), 2 * width) for name, dim in source_dims.items()}
        )
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=options.layer_norm_eps)

    def reset_parameters_xavier(self) -> None:
        """Each of query, key, value and output by its own fans; the padding columns zero."""
        width = self.options.hidden_size
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.xavier_uniform_(self.output.weight)
        for name, dim in self.source_dims.items():
            weight = cast(nn.Linear, self.key_value[name]).weight
            with torch.no_grad():
                weight[:, dim:] = 0.0
                for block in (weight[:width, :dim], weight[width:, :dim]):
                    nn.init.xavier_uniform_(block)

    def project(self, sources: Mapping[str, torch.Tensor], norm: nn.LayerNorm | None = None) -> KeysAndValues:
        """Source tokens [I, tokens, width] -> keys and values [I, all tokens, H, d].

        With ``norm`` the tokens are normalised but for its scale g and shift b: W (g x + b) + c = (W g) x + (W b + c). The gradients of g
        and b then come out of a product of weights, and none has to reach the frozen tokens.
        """
        heads = (self.options.num_heads, self.options.hidden_size // self.options.num_heads)
        projected = []
        for name, module in self.key_value.items():
            weight: torch.Tensor = cast(nn.Linear, module).weight
            bias: torch.Tensor = cast(nn.Linear, module).bias
            if norm is not None:
                weight, bias = weight * pad_width(norm.weight), bias + F.linear(pad_width(norm.bias), weight)
            projected.append(F.linear(sources[name], weight, bias).unflatten(-1, (2, *heads)))
        both = projected[0] if len(projected) == 1 else torch.cat(projected, dim=1)
        keys, values = both.unbind(2)  # its backward is one stack; two slices would each fill a tensor of zeros
        return keys, values

    def forward(self, queries_PQD: torch.Tensor, seen: KeysAndValues, plan: CrossPlan, seed: int) -> torch.Tensor:
        heads = (self.options.num_heads, self.options.hidden_size // self.options.num_heads)
        q = self.query(queries_PQD).unflatten(-1, heads)
        dropout_p = self.options.attention_dropout if self.training else 0.0
        read = cross_attention(q, *seen, plan, dropout_p=dropout_p, seed=seed, impl=self.options.attention)
        projected = F.dropout(self.output(read.flatten(2)), self.options.hidden_dropout, self.training)
        return cast(torch.Tensor, self.norm(queries_PQD + projected))


class FeedForward(nn.Module):
    """Two linear maps with the activation between them, residual and LayerNorm."""

    compiled_alone = True

    def __init__(self, options: QFormerOptions):
        super().__init__()
        self.dropout = options.hidden_dropout
        self.activation = options.activation
        self.up = nn.Linear(options.hidden_size, options.intermediate_size)
        self.down = nn.Linear(options.intermediate_size, options.hidden_size)
        self.norm = nn.LayerNorm(options.hidden_size, eps=options.layer_norm_eps)

    def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        projected = self.down(activate(self.up(hidden_TD), self.activation))
        return cast(torch.Tensor, self.norm(hidden_TD + F.dropout(projected, self.dropout, self.training)))


class TokenHead(nn.Module):
    """BERT's prediction head up to the output embedding, which is the word embedding."""

    compiled_alone = True

    def __init__(self, options: QFormerOptions):
        super().__init__()
        self.activation = options.activation
        self.transform = nn.Linear(options.hidden_size, options.hidden_size)
        self.norm = nn.LayerNorm(options.hidden_size, eps=options.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(padded(options.vocab_size, 64)))

    def forward(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.norm(activate(self.transform(hidden_nD), self.activation)))


def activate(hidden: torch.Tensor, name: str) -> torch.Tensor:
    return F.gelu(hidden) if name == "gelu" else F.relu(hidden)


# --- building --------------------------------------------------------------------------------------------------------


def build_mqformer(options: MQFormerOptions, context: BuildContext) -> MQFormer:
    """MQ-Former for the encoder and refiner of ``context``."""
    local_dims = dict(context.local_dims) if options.local_dims is None else dict(options.local_dims)
    return _build(options, context, local_dims)


def build_qformer(options: QFormerOptions, context: BuildContext) -> MQFormer:
    """BLIP-2's Q-Former: no grounding queries, so local sources are not read."""
    return _build(options, context, {})


def _build(options: QFormerOptions, context: BuildContext, local_dims: Mapping[str, int]) -> MQFormer:
    if options.hidden_size % options.num_heads:
        raise SpecError(
            f"query_transformer: hidden_size {options.hidden_size} is not divisible by num_heads {options.num_heads}."
        )
    image_dim = options.image_dim or context.image_dim
    if not image_dim:
        raise SpecError("query_transformer: the width of image tokens is unknown; set options.image_dim.")
    model = MQFormer(options, image_dim, local_dims, _tokenizer(options, context))
    if context.weights == "pretrained" and options.checkpoint is not None:
        from lyrics.plugins.mqformer.convert import load_checkpoint

        load_checkpoint(model, options.checkpoint)
    return model


def _tokenizer(options: QFormerOptions, context: BuildContext) -> Any:
    """BERT's with the added tokens; without pretrained weights the built-in one, which needs no download."""
    if context.weights != "pretrained" or options.tokenizer is None:
        return builtin_tokenizer(options.builtin_tokenizer, SPECIAL_TOKENS)
    folder = locate_checkpoint(options.tokenizer, tensors=(), also=TOKENIZER_PATTERNS, downloads=context.downloads)
    tokenizer = load_tokenizer(folder)
    # [DEC] first: it is 30522 in BLIP-2's and the released checkpoints.
    added = [token for token in ("[DEC]", "[BOS]", "[MLM]") if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": added[: max(0, options.vocab_size - len(tokenizer))]})
    if len(tokenizer) > options.vocab_size:
        raise SpecError(
            f"query_transformer.vocab_size is {options.vocab_size}, and tokenizer {options.tokenizer!r} has {len(tokenizer)} tokens."
        )
    return tokenizer
