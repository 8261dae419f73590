"""Image-text contrastive learning (paper equation 1).

Queries and text run in separate streams, so neither sees the other. Recipe ``paper``: H_I is mean-pooled visual and
mean-pooled grounding queries side by side, H_T the states of [BOS] and [CLS] side by side; both are projected and
L2-normalized, and compared at a learnable temperature. Recipe ``released``: every query is projected by itself, and an
image's similarity with a text (its first token) is that of its best query; labels are smoothed by 0.1.

With ``drop_spatial``, that share of a training step's texts has no objects: boxes alone tell most images apart, and
then captions teach little.

Negatives are all other samples of all ranks, with gradient. (The authors' code gathers features without gradient, on
one rank too, so that each logit has a gradient on one side only; recipe ``released`` does the same where there is
spatial text.)

Letters: B samples of this rank, N of all ranks, Q queries, D width, E projection width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.distributed import gather, gather_with_gradient, rank
from lyrics.core.stage1.negatives import Similarity
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Stream, StreamOutputs, Text, Wanted, full
from lyrics.kernels.hashing import keyed_uniform
from lyrics.plugins.objectives import ITCOptions
from lyrics.plugins.objectives.texts import QUERIES, both_texts, query_stream

TEXT = "itc.text"
_DRAW = 16


class ITC(nn.Module):
    """Owns both projections and the temperature."""

    def __init__(self, options: ITCOptions, query_dim: int, segments: Sequence[str]):
        super().__init__()
        self.options = options
        self.released = options.recipe == "released"
        self.segments = tuple(segments)
        self.smoothing = 0.1 if self.released else 0.0
        self.detached = self.released and "S" in segments
        self.query_segments = [name for name in "VG" if name in segments]
        read = [name for name in "SC" if name in segments]
        self.text_segments = (
            read[:1] if self.released else read
        )  # released: [CLS] is the first token of the first segment
        images = 1 if self.released else len(self.query_segments)
        self.image_projection = nn.Linear(images * query_dim, options.projection_dim)
        self.text_projection = nn.Linear(len(self.text_segments) * query_dim, options.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(options.temperature))

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        spatial = self.spatial(batch)
        text = both_texts(spatial, batch.caption, batch.special, self.options.recipe, self.segments)
        images = replace(query_stream(batch, self.segments), wanted=dict.fromkeys(self.query_segments, "all"))
        wanted: dict[str, Wanted] = dict.fromkeys(self.text_segments, "first")
        return [images, Stream(TEXT, full("".join(text)), batch.sample_B, None, text, wanted=wanted)]

    def spatial(self, batch: PretrainBatch) -> Text:
        """Return the spatial texts that are compared.

        Which are dropped is a function of (seed, step, sample), and none is in evaluation mode.
        """
        text = batch.spatial.text
        if not (self.training and self.options.drop_spatial):
            return text
        dropped = keyed_uniform(batch.seed, batch.step, batch.sample_B, _DRAW) < self.options.drop_spatial
        return replace(text, lengths_R=text.lengths_R.masked_fill(dropped, 0))

    def similarity(self, outputs: StreamOutputs, batch: PretrainBatch) -> Similarity:
        """Return logits against the samples of all ranks."""
        image_BQE, text_BE = self.features(outputs)
        if self.detached:
            all_images_NQE, all_texts_NE = gather(image_BQE.detach()), gather(text_BE.detach())
        else:
            all_images_NQE, all_texts_NE = gather_with_gradient(image_BQE), gather_with_gradient(text_BE)
        temperature: torch.Tensor = self.temperature
        if not self.released:
            temperature = temperature.clamp(self.options.min_temperature, self.options.max_temperature)
        return Similarity(
            best_query(image_BQE, all_texts_NE) / temperature,
            best_query(all_images_NQE, text_BE).T / temperature,
        )

    def relevance(self, outputs: StreamOutputs) -> dict[str, torch.Tensor]:
        """Return ``itc``: the cosine of each image with its own text, from -1 to 1."""
        image_BQE, text_BE = self.features(outputs)
        return {"itc": torch.einsum("bqe,be->bq", image_BQE.float(), text_BE.float()).amax(dim=1)}

    def features(self, outputs: StreamOutputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized features: images [B, Q or 1, E] and texts [B, E]."""
        queries = [outputs(QUERIES, name) for name in self.query_segments]
        texts = [outputs(TEXT, name) for name in self.text_segments]
        if self.released:
            image_BQD, text_BD = torch.cat(queries, dim=1), texts[0]
        else:
            image_BQD, text_BD = torch.cat([q.mean(1) for q in queries], dim=1)[:, None], torch.cat(texts, dim=1)
        return F.normalize(self.image_projection(image_BQD), dim=-1), F.normalize(self.text_projection(text_BD), dim=-1)

    def loss(self, state: StepState) -> Loss:
        assert state.similarity is not None
        size = len(state.batch)
        logits = state.similarity
        targets = torch.arange(size, device=logits.image_to_text_BN.device) + rank() * size
        both = [
            F.cross_entropy(
                side.float() if side.dtype != torch.float64 else side,
                targets,
                label_smoothing=self.smoothing,
                reduction="sum",
            )
            for side in (logits.image_to_text_BN, logits.text_to_image_BN)
        ]
        return Loss((both[0] + both[1]) / 2, size)

    def accuracy(self, state: StepState) -> dict[str, tuple[int, int]]:
        """Retrieval among the samples of all ranks: how often the best match is the right one, in either direction."""
        assert state.similarity is not None
        size = len(state.batch)
        found = {}
        for name, side_BN in (
            ("image to text R@1", state.similarity.image_to_text_BN),
            ("text to image R@1", state.similarity.text_to_image_BN),
        ):
            targets = torch.arange(size, device=side_BN.device) + rank() * size
            found[name] = (int((side_BN.argmax(dim=1) == targets).sum()), size)
        return found


def best_query(image_XQE: torch.Tensor, text_YE: torch.Tensor) -> torch.Tensor:
    """Largest dot product over an image's queries: [X, Y]."""
    return torch.einsum("xqe,ye->xyq", image_XQE, text_YE).amax(dim=-1)


def build(options: ITCOptions, context: BuildContext) -> ITC:
    if options.drop_spatial and "S" not in context.query_segments:
        warnings.warn("drop_spatial: has no effect, as this query transformer reads no spatial text.", stacklevel=2)
    return ITC(options, context.query_dim, context.query_segments)
