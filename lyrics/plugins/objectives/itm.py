"""Image-text matching (paper equation 2).

One stream per pair of an image and a text. Recipe ``paper``: visual queries and the caption see each other, grounding
queries and the spatial text see each other, nothing crosses; one two-way classifier reads the mean visual and the mean
grounding query, half the loss each. Recipe ``released``: everything sees everything, and the classifier reads the mean
of all queries.

Pairs are the B matching ones (first pass), and for each text a hard negative image and for each image a hard negative
text (second pass).

Letters: B samples, R pairs of one kind, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import NegativePairs
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import QUERY_SEGMENTS, Stream, StreamOutputs, Text, full
from lyrics.plugins.objectives import ITMOptions
from lyrics.plugins.objectives.texts import both_texts

POSITIVE, NEGATIVE_IMAGE, NEGATIVE_TEXT = "itm.positive", "itm.negative-image", "itm.negative-text"


class ITM(nn.Module):
    """Owns the classifier: logits (no match, match)."""

    def __init__(self, options: ITMOptions, query_dim: int, segments: Sequence[str]):
        super().__init__()
        self.options = options
        self.segments = tuple(segments)
        self.table = full("VGSC") if options.recipe == "released" else full("VC", "GS")
        self.classifier = nn.Linear(query_dim, 2)

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        rows = torch.arange(len(batch))
        return [self._stream(POSITIVE, batch, batch.sample_B, rows, batch.spatial.text, batch.caption)]

    def negative_streams(self, batch: PretrainBatch, pairs: NegativePairs) -> list[Stream]:
        """Return the wrong image for each text, the wrong text for each image."""
        i, t = pairs.row_image, pairs.row_text
        return [
            self._stream(
                NEGATIVE_IMAGE, batch, batch.sample_B[i], pairs.image, batch.spatial.text.rows(i), batch.caption.rows(i)
            ),
            self._stream(NEGATIVE_TEXT, batch, batch.sample_B[t], t, pairs.spatial, pairs.caption),
        ]

    def _stream(
        self,
        name: str,
        batch: PretrainBatch,
        sample_R: torch.Tensor,
        image_R: torch.Tensor,
        spatial: Text,
        caption: Text,
    ) -> Stream:
        text = both_texts(spatial, caption, batch.special, self.options.recipe, self.segments)
        queries = [name for name in QUERY_SEGMENTS if name in self.segments]
        present = (*queries, *text)
        table = {pair: seen for pair, seen in self.table.items() if pair[0] in present and pair[1] in present}
        return Stream(name, table, sample_R, image_R, text, wanted=dict.fromkeys(queries, "all"))

    def _judged(self, state: StepState) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return logits [R, 2] of each pooled kind of query over all pairs, and which pairs match."""
        assert state.pairs is not None
        kinds = [(POSITIVE, 1, len(state.batch)), (NEGATIVE_IMAGE, 0, len(state.pairs.row_image))]
        kinds.append((NEGATIVE_TEXT, 0, len(state.pairs.row_text)))
        present = [(name, label, count) for name, label, count in kinds if count]
        logits = [self.logits(state.outputs, name) for name, _, _ in present]
        device = logits[0][0].device
        labels = torch.cat([torch.full((count,), label, device=device) for _, label, count in present])
        return [torch.cat(part) for part in zip(*logits, strict=True)], labels

    def loss(self, state: StepState) -> Loss:
        parts, labels = self._judged(state)
        sums = [F.cross_entropy(part, labels, reduction="sum") for part in parts]
        return Loss(sum(sums[1:], sums[0]) / len(sums), len(labels))

    def accuracy(self, state: StepState) -> dict[str, tuple[int, int]]:
        """Pairs judged rightly; a third of them match, and the others are hard negatives."""
        parts, labels = self._judged(state)
        judged = sum(parts[1:], parts[0]).argmax(dim=1)
        return {"ITM accuracy": (int((judged == labels).sum()), len(labels))}

    def relevance(self, outputs: StreamOutputs) -> dict[str, torch.Tensor]:
        """Return ``itm``: the probability that image and caption are a pair, as those queries say that see it."""
        return {"itm": self.logits(outputs, POSITIVE)[0].float().softmax(dim=1)[:, 1]}

    def logits(self, outputs: StreamOutputs, name: str) -> list[torch.Tensor]:
        """Return logits [R, 2] of each pooled kind of query (recipe released: of all queries together)."""
        queries = [outputs(name, segment) for segment in "VG" if segment in self.segments]
        if self.options.recipe == "released":
            queries = [torch.cat(queries, dim=1)]
        return [self.classifier(query_RQD.mean(1)) for query_RQD in queries]


def build(options: ITMOptions, context: BuildContext) -> ITM:
    return ITM(options, context.query_dim, context.query_segments)
