"""Masked spatial prediction (paper equation 4).

Some of an image's objects are masked whole, tag and box, and restored. Recipe ``paper``: {V, G, S} see each other, the
caption is absent, [MLM] stands in front; with ``queries_see_text`` off, S reads the query stream of ITC instead and the
queries see no text. Recipe ``released``: each unit of an object (tag, coordinate, bracket) is masked by itself, the
caption is visible, [CLS] stays in front, the query stream is the prefix, and labels are smoothed by 0.1.

A batch in which nothing is masked has loss 0 with count 0.

Letters: B samples, L tokens, n masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.language.spatial_tokens import KINDS
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Stream, Text, full
from lyrics.kernels.hashing import keyed_uniform
from lyrics.kernels.upload import to_device_soon
from lyrics.plugins.objectives import MSPOptions
from lyrics.plugins.objectives.icg import right_tokens, token_cross_entropy
from lyrics.plugins.objectives.texts import QUERIES, begin, query_stream, special_id

SPATIAL = "msp"
_DRAW = 15


class MSP(nn.Module):
    """Has no parameters: the vocabulary head is the query transformer's."""

    def __init__(self, options: MSPOptions, segments: Sequence[str]):
        super().__init__()
        self.options = options
        self.segments = tuple(segments)
        self.released = options.recipe == "released"
        self.smoothing = 0.1 if self.released else 0.0

    def masked(self, batch: PretrainBatch) -> torch.Tensor:
        """Return which spatial tokens are masked: bool [B, L] over ``batch.spatial``.

        A function of (seed, step, sample, object).
        """
        part_BL = batch.spatial.unit_BL if self.released else batch.spatial.object_BL
        chance = keyed_uniform(batch.seed, batch.step, batch.sample_B[:, None], part_BL, _DRAW)
        return (chance < self.options.mask_probability) & batch.spatial.text.mask_RL

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        spatial = batch.spatial.text
        masked_BL = self.masked(batch)
        hidden = Text(spatial.ids_RL.masked_fill(masked_BL, batch.special.mask), spatial.lengths_R)
        first = batch.special.cls if self.released else special_id(batch.special, "mlm")
        text = {"S": begin(hidden, first)}
        wanted = {"S": torch.cat([torch.zeros(len(batch), 1, dtype=torch.bool), masked_BL], dim=1)}
        if self.released:
            text["C"] = Text(batch.caption.ids_RL, batch.caption.lengths_R, first_position=1)
            table = full("SC")
        elif not self.options.queries_see_text:
            table = full("S")
        else:
            rows = torch.arange(len(batch))
            seen = "".join(name for name in "VGS" if name in self.segments)
            return [Stream(SPATIAL, full(seen), batch.sample_B, rows, text, wanted=wanted)]
        return [
            query_stream(batch, self.segments),
            Stream(SPATIAL, table, batch.sample_B, None, text, prefix=QUERIES, wanted=wanted),
        ]

    def _predicted(self, state: StepState) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [n, vocabulary] and targets [n]."""
        logits = state.token_logits(state.outputs(SPATIAL, "S"))
        targets = state.batch.spatial.text.ids_RL[self.masked(state.batch)]
        return logits, to_device_soon(targets, logits.device)

    def loss(self, state: StepState) -> Loss:
        logits, targets = self._predicted(state)
        return Loss(token_cross_entropy(logits, targets, self.smoothing), len(targets))

    def restored(self, state: StepState) -> torch.Tensor:
        """Return the likeliest token in place of each masked one: ids [n] on the host."""
        return self._predicted(state)[0].argmax(dim=-1).cpu()

    def accuracy(self, state: StepState) -> dict[str, tuple[int, int]]:
        """Masked spatial tokens restored rightly; markup (always the same), names and coordinates apart where known."""
        logits, targets = self._predicted(state)
        kind_BL = state.batch.spatial.kind_BL
        if kind_BL is None:
            return {"masked token accuracy": right_tokens(logits, targets)}
        kind_n = kind_BL[self.masked(state.batch)].to(logits.device)
        return {
            f"masked {name} accuracy": right_tokens(logits[kind_n == kind], targets[kind_n == kind])
            for kind, name in enumerate(KINDS)
        }


def build(options: MSPOptions, context: BuildContext) -> MSP:
    return MSP(options, context.query_segments)
