"""MQ-Former: BLIP-2's BERT trunk with visual and grounding queries.

Visual queries read the image, grounding queries the visual refiner.

Twelve post-LayerNorm layers. Self-attention weights are shared by queries and text; every second layer has two
cross-attentions (paper section 3.1 and figure 2, placement as in BLIP-2); queries and text have a feed-forward each.
All streams of a call run packed, without padding: the packed sequence is all query rows, then all text rows
(``lyrics.kernels.plan``). Keys and values of the frozen features are projected once per layer and image, however many
streams read them, and the last layer computes only the rows that are wanted.

Letters: T packed tokens, P query sets (one per stream row with queries), Q queries of a set (V visual + G grounding), I
images, N image tokens, M local tokens, D width, H heads, d head width, n selected rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp.autocast_mode import is_autocast_available
from torch.utils.checkpoint import checkpoint

from lyrics.core.box_waves import WIDTH
from lyrics.core.errors import ContractError, SpecError
from lyrics.core.language.tokenizers import numbers_in_order
from lyrics.core.stage1.streams import Features, ProjectedFeatures, SpecialTokens, Stream, StreamOutputs
from lyrics.kernels import CrossPlan, Plan, prepare
from lyrics.kernels.attention import Prepared, host_tables
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions
from lyrics.plugins.mqformer.boxes import with_box_waves
from lyrics.plugins.mqformer.dense import forward_dense
from lyrics.plugins.mqformer.layers import (
    KeysAndValues,
    Layer,
    TokenHead,
    pad_width,
    padded,
)
from lyrics.plugins.mqformer.packing import Keys, PlannedPass, Planner, Sizes, Tables, lower, place

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[DEC]", "[MLM]")


class MQFormer(nn.Module):
    """The query transformer; with ``num_grounding`` 0 it is BLIP-2's Q-Former.

    Args:
        options: sizes and dropout.
        image_dim: width of image tokens.
        local_dims: width of the local tokens of each source, in the order in which they are concatenated; may be
            empty, and then the grounding queries have nothing to read and skip their cross-attention.
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
        self.box_waves = isinstance(options, MQFormerOptions) and options.box_features == "fourier"
        for name, width in self.local_dims.items() if self.box_waves else ():
            if width < 4:
                raise SpecError(
                    "query_transformer.options.box_features: fourier reads the last four numbers of a local token as "
                    f"its box, and {name} tokens have {width}; set it to raw."
                )
        self.tokenizer = tokenizer
        self.vocab_size = options.vocab_size
        self.max_positions = options.max_positions
        last_reads = (options.num_layers - 1) % options.cross_attention_every == 0
        self.sizes = Sizes(self.num_visual, self.num_grounding, self.max_positions, last_reads)

        self.query_tokens_QD = nn.Parameter(torch.empty(self.num_queries, self.hidden_size))
        self.word_embeddings = nn.Embedding(padded(options.vocab_size, 64), self.hidden_size)
        self.position_embeddings = nn.Embedding(options.max_positions, self.hidden_size)
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=options.layer_norm_eps)
        self.image_norm: nn.Module = nn.LayerNorm(image_dim) if options.normalize_image_tokens else nn.Identity()
        self.layers = nn.ModuleList(
            Layer(options, image_dim, self.read_dims, reads=number % options.cross_attention_every == 0)
            for number in range(options.num_layers)
        )
        self.token_head = TokenHead(options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: Normal(0, init_std), zero biases, queries with small noise so that no two are alike.

        The grounding cross-attention, which no BLIP-2 checkpoint has, is Xavier-initialized (paper section 3.1).
        Numbers are in order where the options ask for it.
        """
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
        weight = self.word_embeddings.weight
        if self.options.numbers_in_order and not weight.is_meta and not numbers_in_order(weight, self.tokenizer):
            warnings.warn(
                "query_transformer.options.numbers_in_order: has no effect, as not every number is one token of this "
                "tokenizer.",
                stacklevel=2,
            )

    # --- features ----------------------------------------------------------------------------------------------------

    @property
    def read_dims(self) -> dict[str, int]:
        """Width of the local tokens of each source as the cross-attention reads them."""
        return {name: width + (WIDTH if self.box_waves else 0) for name, width in self.local_dims.items()}

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
                f"local tokens come from {sorted(features.local)}; this query transformer reads "
                f"{sorted(self.local_dims)}."
            )
        local = {name: self.read_local(name, *features.local[name]) for name in self.local_dims}
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

    def read_local(self, name: str, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Zero columns up to the padded width, which is exact; features cached at the padded width pass, too.

        Raises ``ContractError`` for tokens of another width.
        """
        wanted, wide = self.local_dims[name], padded(self.local_dims[name], 8)
        if tokens.shape[-1] not in (wanted, wide):
            raise ContractError(f"{name} tokens are {tokens.shape[-1]} wide; this query transformer reads {wanted}.")
        return pad_width(with_box_waves(tokens, wanted) if self.box_waves else tokens), mask

    # --- the packed forward pass -------------------------------------------------------------------------------------

    def forward(self, streams: Sequence[Stream], features: Features | ProjectedFeatures) -> StreamOutputs:
        """Run all streams at once and return the hidden states that they want.

        ``features`` that several calls read (the two passes of a stage-1 step) are better projected once, with
        ``project``.
        """
        memory = features if isinstance(features, ProjectedFeatures) else self.project(features)
        return self._run(lower(self.sizes, streams, memory, self._prepare), memory)

    def planner(self, image_tokens: int) -> Planner:
        """See ``PlansAhead`` in ``lyrics.core.contracts``."""
        tables = host_tables(**self._attention())
        return Planner(self.sizes, image_tokens, tuple(self.local_dims), tables)

    def run_planned(self, planned: PlannedPass, features: ProjectedFeatures) -> StreamOutputs | None:
        """See ``PlansAhead`` in ``lyrics.core.contracts``."""
        if planned.laid.keys != Keys.of(features):
            return None
        prepared = planned.tables.sent(self.query_tokens_QD.device)
        return self._run(place(self.sizes, planned.laid, prepared, features), features)

    def _run(self, tables: Tables, memory: ProjectedFeatures) -> StreamOutputs:
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

    def _prepare(self, plans: Sequence[Plan | CrossPlan], arrays: Sequence[np.ndarray]) -> Prepared:
        """Tables to the device, with those that the layers' attention will read."""
        return prepare(plans, arrays, **self._attention())

    def _attention(self) -> dict[str, Any]:
        """What the layers' attention will be called with."""
        weight = self.query_tokens_QD
        kind = weight.device.type
        cast_to = is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return {
            "device": weight.device,
            "dtype": torch.get_autocast_dtype(kind) if cast_to else weight.dtype,
            "head_dim": self.hidden_size // self.options.num_heads,
            "dropout_p": self.options.attention_dropout if self.training else 0.0,
            "impl": self.options.attention,
        }

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
        """Return logits over the vocabulary [n, vocab_size] of hidden states.

        Give it target rows only: it is the widest product here.
        """
        transformed = self.token_head(hidden_nD)
        logits = F.linear(transformed, self.word_embeddings.weight, self.token_head.bias)
        return logits[:, : self.vocab_size]

    def stage1_parameters(self) -> Iterator[nn.Parameter]:
        """The head behind ``token_logits``; its output matrix is that of the embeddings, which stage 2 trains, too."""
        return self.token_head.parameters()

    def forward_dense(self, stream: Stream, features: Features, cache: Sequence[KeysAndValues] | None = None) -> Any:
        """Return the same stream by the plain definition: padded, one dense mask, no sharing. See ``dense.py``."""
        return forward_dense(self, stream, features, cache)
