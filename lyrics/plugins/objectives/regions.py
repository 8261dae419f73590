"""Region words: what captions say of a box, told from the box and the query states.

Not of the paper, whose objectives name no place that a caption describes (section 3.2): masked spatial prediction ties
names and boxes, caption generation ties looks to names, and of two things of one name nothing tells whose look is
whose. Captions that give boxes, as region descriptions do (Visual Genome, Krishna et al. 2016), say it. A small decoder
reads the queries of an image with a box as its question; every word said of it is a target, in no order.

It shares its query stream with ITC and ICG, so it costs no pass of its own, and many boxes of an image are one batch.

Letters: B samples, R regions, Q queries, D width, W words of a description, n targets.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.box_waves import WIDTH, side_waves
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.stage1.batch import PretrainBatch, Regions
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import QUERY_SEGMENTS, Stream, Wanted
from lyrics.plugins.objectives import RegionOptions
from lyrics.plugins.objectives.texts import QUERIES, query_stream


class RegionWords(nn.Module):
    """Owns the decoder; the vocabulary head is the query transformer's."""

    def __init__(self, options: RegionOptions, query_dim: int, segments: Sequence[str]):
        super().__init__()
        self.segments = tuple(segments)
        self.query_segments = [name for name in QUERY_SEGMENTS if name in segments]
        self.question = nn.Sequential(nn.Linear(WIDTH, query_dim), nn.LayerNorm(query_dim))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                query_dim, options.num_heads, 2 * query_dim, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(options.num_layers)
        )

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        wanted: dict[str, Wanted] = dict.fromkeys(self.query_segments, "all")
        return [replace(query_stream(batch, self.segments), wanted=wanted)]

    def _read(self, state: StepState, regions: Regions) -> torch.Tensor:
        """Return logits [R, vocabulary]."""
        queries_BQD = torch.cat([state.outputs(QUERIES, name) for name in self.query_segments], dim=1)
        memory_RQD = queries_BQD[regions.sample_R.to(queries_BQD.device)]
        waves_RW = side_waves(regions.sides_norm_R4.to(queries_BQD.device)).to(queries_BQD.dtype)
        asked_R1D = self.question(waves_RW)[:, None]
        for layer in self.layers:
            asked_R1D = layer(asked_R1D, memory_RQD)
        return state.token_logits(asked_R1D[:, 0])

    def loss(self, state: StepState) -> Loss:
        """Cross-entropy to each word said of a region, averaged over its words, and summed over the regions."""
        regions = _regions(state.batch)
        if regions is None:
            read = [state.outputs(QUERIES, name) for name in self.query_segments]
            return Loss(torch.stack([one.sum() for one in (*read, *self.parameters())]).sum() * 0.0, 0)
        log_RV = F.log_softmax(_exact(self._read(state, regions)), dim=1)
        words_RW, mask_RW = regions.words.ids_RL.to(log_RV.device), regions.words.mask_RL.to(log_RV.device)
        said_RW = log_RV.gather(1, words_RW) * mask_RW
        return Loss(-(said_RW.sum(dim=1) / mask_RW.sum(dim=1)).sum(), len(words_RW))

    def accuracy(self, state: StepState) -> dict[str, tuple[int, int]]:
        """Of the words said of each region, how many are among its so many likeliest ones. None without a region."""
        regions = _regions(state.batch)
        if regions is None:
            return {}
        logits_RV = self._read(state, regions)
        right = total = 0
        for row_V, words, length in zip(
            logits_RV, regions.words.ids_RL.tolist(), regions.words.lengths_R.tolist(), strict=True
        ):
            said = set(words[:length])
            right += len(said & set(row_V.topk(len(said)).indices.tolist()))
            total += len(said)
        return {"region words": (right, total)}


def _regions(batch: PretrainBatch) -> Regions | None:
    """The regions of a batch; None where its captions give no box."""
    if batch.regions is None:
        warnings.warn(
            "regions: has no effect, as the query transformer's tokenizer does not write every number up to 999 as one "
            "token; built-in ones of words do.",
            stacklevel=3,
        )
        return None
    return batch.regions if len(batch.regions.sample_R) else None


def _exact(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def build(options: RegionOptions, context: BuildContext) -> RegionWords:
    if context.query_dim % options.num_heads:
        raise SpecError(
            f"objective regions: num_heads {options.num_heads} does not divide the query transformer's width "
            f"{context.query_dim}; give a number that does."
        )
    return RegionWords(options, context.query_dim, context.query_segments)
