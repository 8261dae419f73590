"""BLIP-2's stage 1 with transformers' Q-Former, as LAVIS runs it: a rival for the packed step whose layers nobody here
wrote.

One pass for the queries, which keeps their keys and values; one for the texts; one for matching, over three pairs a
sample; one for the captions, which read what the queries left. Texts are padded to the batch's width, the image's keys
and values are projected anew in each pass, and every row of every layer is computed. Weights are those of a
``qformer`` of ours.

Letters: B samples, R pairs, L padded tokens, Q queries, D width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.state import Loss
from lyrics.core.stage1.streams import Features, SpecialTokens, Text

#: Keys and values of one layer's self-attention, [B, H, Q, d].
Cache = list[tuple[torch.Tensor, torch.Tensor]]
_ATTENTION = "lyrics_bench_sdpa_with_cache"
_SMOOTHING = 0.1


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kept: Cache | None = None,
    past: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' own attention over torch's; self-attention can keep its keys and values or go on after others',
    which transformers' Q-Former, unlike LAVIS', has no argument for.
    """
    if not module.reads_image:
        if kept is not None:
            kept.append((key, value))
        if past is not None:
            past_key, past_value = next(past)
            key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    return cast(tuple[torch.Tensor, None], sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs))


class Blip2Rival(nn.Module):
    """transformers' Q-Former with BLIP-2's embeddings, heads and projections, and the weights of ours.

    Args:
        query_transformer: a ``qformer``.
        objectives: its ``itc`` and ``itm``.
    """

    def __init__(self, query_transformer: Any, objectives: Any) -> None:
        super().__init__()
        options = query_transformer.options
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
        config = Blip2QFormerConfig(
            vocab_size=query_transformer.word_embeddings.num_embeddings,
            hidden_size=options.hidden_size,
            num_hidden_layers=options.num_layers,
            num_attention_heads=options.num_heads,
            intermediate_size=options.intermediate_size,
            hidden_act=options.activation,
            hidden_dropout_prob=options.hidden_dropout,
            attention_probs_dropout_prob=options.attention_dropout,
            max_position_embeddings=options.max_positions,
            layer_norm_eps=options.layer_norm_eps,
            cross_attention_frequency=options.cross_attention_every,
            encoder_hidden_size=query_transformer.image_dim,
            use_qformer_text_input=True,
        )
        config._attn_implementation = _ATTENTION
        self.qformer = Blip2QFormerModel(config)
        layers: Any = self.qformer.encoder.layer
        for layer in layers:
            layer.attention.attention.reads_image = False
            if layer.has_cross_attention:
                layer.crossattention.attention.reads_image = True
        self.embeddings = Blip2TextEmbeddings(config)
        self.query_tokens = nn.Parameter(torch.empty(1, *query_transformer.query_tokens_QD.shape))
        self.ln_vision = nn.LayerNorm(query_transformer.image_dim)
        width = options.hidden_size
        self.transform = nn.Linear(width, width)
        self.activation = ACT2FN[options.activation]
        self.transform_norm = nn.LayerNorm(width, eps=options.layer_norm_eps)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.vocab_size = query_transformer.vocab_size
        itc = objectives["itc"]
        self.vision_proj = nn.Linear(width, itc.image_projection.out_features)
        self.text_proj = nn.Linear(width, itc.text_projection.out_features)
        self.temp = nn.Parameter(torch.empty(()))
        self.itm_head = nn.Linear(width, 2)
        self._take(query_transformer, objectives)
        self.train(query_transformer.training)

    @torch.no_grad()
    def _take(self, ours: Any, objectives: Any) -> None:
        """Copy every weight; raises ``AssertionError`` where one is left out."""
        taken: set[int] = set()

        def copy(target: nn.Parameter, source: torch.Tensor) -> None:
            assert target.shape == source.shape
            target.copy_(source)
            taken.add(id(target))

        def both(target: Any, source: Any) -> None:
            copy(target.weight, source.weight)
            copy(target.bias, source.bias)

        def split(targets: tuple[Any, ...], source: Any) -> None:
            for target, weight, bias in zip(
                targets, source.weight.chunk(len(targets)), source.bias.chunk(len(targets)), strict=True
            ):
                copy(target.weight, weight)
                copy(target.bias, bias)

        layers: Any = self.qformer.encoder.layer
        for target, source in zip(layers, ours.layers, strict=True):
            own = target.attention
            split((own.attention.query, own.attention.key, own.attention.value), source.self_attention.qkv)
            both(own.output.dense, source.self_attention.output)
            both(own.output.LayerNorm, source.self_attention.norm)
            if target.has_cross_attention:
                cross, reads = target.crossattention, source.image_attention
                both(cross.attention.query, reads.query)
                split((cross.attention.key, cross.attention.value), reads.key_value["image"])
                both(cross.output.dense, reads.output)
                both(cross.output.LayerNorm, reads.norm)
            for up, down, ffn in (
                (target.intermediate, target.output, source.text_ffn),
                (target.intermediate_query, target.output_query, source.query_ffn),
            ):
                both(up.dense, ffn.up)
                both(down.dense, ffn.down)
                both(down.LayerNorm, ffn.norm)
        both(self.qformer.layernorm, ours.embedding_norm)
        embeddings: Any = self.embeddings
        copy(embeddings.word_embeddings.weight, ours.word_embeddings.weight)
        copy(embeddings.position_embeddings.weight, ours.position_embeddings.weight)
        copy(self.query_tokens, ours.query_tokens_QD[None])
        both(self.ln_vision, ours.image_norm)
        both(self.transform, ours.token_head.transform)
        both(self.transform_norm, ours.token_head.norm)
        copy(self.head_bias, ours.token_head.bias)
        both(self.vision_proj, objectives["itc"].image_projection)
        both(self.text_proj, objectives["itc"].text_projection)
        copy(self.temp, objectives["itc"].temperature)
        both(self.itm_head, objectives["itm"].classifier)
        assert {id(one) for one in self.parameters()} == taken

    def forward(
        self, features: Features, batch: PretrainBatch, negatives: Negatives, special: SpecialTokens
    ) -> dict[str, Loss]:
        """The losses of ITC, ITM and ICG. Every sample needs a negative image and a negative text."""
        device = self.query_tokens.device
        size = len(batch)
        image = self.ln_vision(features.image_tokens_BND)
        ids_BL, exists_BL = _caption(batch.caption, special.cls, special.sep, device)
        kept: Cache = []
        queries = self._run(self.query_tokens.expand(size, -1, -1), image, kept=kept)
        texts = self._run(self.embeddings(ids_BL), None, exists_BL[:, None, None, :])
        losses = {"itc": self._contrastive(queries, texts[:, 0])}
        wrong_image, wrong_text = negatives.image_B.to(device), negatives.text_B.to(device)
        losses["itm"] = self._matching(image, ids_BL, exists_BL, wrong_image, wrong_text)
        losses["icg"] = self._captions(ids_BL, exists_BL, kept, special.dec)
        return losses

    def _run(
        self,
        embedded: torch.Tensor,
        image: torch.Tensor | None,
        mask: torch.Tensor | None = None,
        query_length: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        found = self.qformer(
            query_embeds=embedded,
            query_length=query_length if query_length is not None else 0 if image is None else embedded.shape[1],
            attention_mask=mask,
            encoder_hidden_states=image,
            **kwargs,
        )
        return cast(torch.Tensor, found.last_hidden_state)

    def _contrastive(self, queries_BQD: torch.Tensor, text_BD: torch.Tensor) -> Loss:
        image = F.normalize(self.vision_proj(queries_BQD), dim=-1)
        text = F.normalize(self.text_proj(text_BD), dim=-1)
        logits_BB = torch.einsum("xqe,ye->xyq", image, text).amax(dim=-1) / self.temp
        targets = torch.arange(len(text), device=text.device)
        sides = [
            F.cross_entropy(side.float(), targets, label_smoothing=_SMOOTHING, reduction="sum")
            for side in (logits_BB, logits_BB.T)
        ]
        return Loss((sides[0] + sides[1]) / 2, len(text))

    def _matching(
        self,
        image: torch.Tensor,
        ids_BL: torch.Tensor,
        exists_BL: torch.Tensor,
        wrong_image: torch.Tensor,
        wrong_text: torch.Tensor,
    ) -> Loss:
        """Pairs that match, wrong images, wrong texts: one batch of three."""
        images = torch.cat([image, image[wrong_image], image])
        ids = torch.cat([ids_BL, ids_BL, ids_BL[wrong_text]])
        exists = torch.cat([exists_BL, exists_BL, exists_BL[wrong_text]])
        queries = self.query_tokens.expand(len(ids), -1, -1)
        count = queries.shape[1]
        seen = torch.cat([exists.new_ones(len(ids), count), exists], dim=1)
        embedded = self.embeddings(ids, query_embeds=queries)
        hidden = self._run(embedded, images, seen[:, None, None, :], query_length=count)
        logits = self.itm_head(hidden[:, :count]).mean(dim=1)
        labels = (torch.arange(len(ids), device=ids.device) < len(ids_BL)).long()
        return Loss(F.cross_entropy(logits.float(), labels, reduction="sum"), len(ids))

    def _captions(self, ids_BL: torch.Tensor, exists_BL: torch.Tensor, kept: Cache, dec: int) -> Loss:
        """Left to right after the queries; all positions through the head."""
        ids = ids_BL.clone()
        ids[:, 0] = dec
        length = ids.shape[1]
        order = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        own = order[None] & exists_BL[:, None, :]
        before = own.new_ones(len(ids), length, kept[0][0].shape[2])
        mask = torch.cat([before, own], dim=2)[:, None]
        hidden = self._run(self.embeddings(ids), None, mask, past=iter(kept))
        words = cast(nn.Embedding, self.embeddings.word_embeddings)
        transformed = self.transform_norm(self.activation(self.transform(hidden)))
        logits = F.linear(transformed, words.weight, self.head_bias)[..., : self.vocab_size]
        targets = ids[:, 1:].masked_fill(~exists_BL[:, 1:], -100)
        summed = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets.flatten(), label_smoothing=_SMOOTHING, reduction="sum"
        )
        return Loss(summed, int(exists_BL[:, 1:].sum()))


def _caption(text: Text, cls: int, sep: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[CLS], the words, [SEP], padded: ids and which exist, [B, L]."""
    size, width = text.ids_RL.shape
    ids = torch.zeros(size, width + 2, dtype=torch.int64)
    ids[:, 0] = cls
    ids[:, 1:-1] = text.ids_RL
    ids[torch.arange(size), text.lengths_R + 1] = sep
    exists = torch.arange(width + 2) < text.lengths_R[:, None] + 2
    return ids.to(device), exists.to(device)


def blip2_losses(
    rival: Blip2Rival, _: Mapping[str, Any], features: Features, batch: PretrainBatch, negatives: Negatives
) -> dict[str, Loss]:
    """The rival's step, in the form of ``pretrain_losses``."""
    return cast(dict[str, Loss], rival(features, batch, negatives, batch.special))
