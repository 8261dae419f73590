"""Image-grounded caption generation (paper equation 3).

The caption, left to right, with the query stream as prefix: the queries see nothing of it, so one query stream serves
ITC and ICG. Recipe ``paper``: [DEC], the caption, [SEP]; every token after [DEC] is a target, the end token too, and
spatial text is absent. Recipe ``released``: [DEC] stands in front of the spatial text, which the caption sees; the
first caption token is predicted from the last spatial token, no end token exists, and labels are smoothed by 0.1.
(Without spatial text, as in BLIP-2, the caption is as in ``paper``.)

Letters: B samples, L tokens, n target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.contracts import BuildContext, QueryTransformer, reader_of
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Features, Stream, Table, Text, merge
from lyrics.kernels.upload import to_device_soon
from lyrics.plugins.objectives import ICGOptions
from lyrics.plugins.objectives.texts import QUERIES, begin, end, query_stream, special_id

CAPTION = "icg"
LEFT_TO_RIGHT: Table = {("S", "S"): "causal", ("C", "S"): "full", ("C", "C"): "causal"}


class ICG(nn.Module):
    """Has no parameters: the vocabulary head is the query transformer's."""

    def __init__(self, options: ICGOptions, segments: Sequence[str]):
        super().__init__()
        self.options = options
        self.segments = tuple(segments)
        self.after_spatial = options.recipe == "released" and "S" in segments
        self.smoothing = 0.1 if options.recipe == "released" else 0.0
        #: Recipe ``released`` learns no end where there is spatial text: what it writes does not stop.
        self.ends_captions = not self.after_spatial

    def text(self, batch: PretrainBatch) -> dict[str, Text]:
        start = special_id(batch.special, "dec")
        if self.after_spatial:
            caption = Text(batch.caption.ids_RL, batch.caption.lengths_R, first_position=1)
            return {"S": begin(batch.spatial.text, start), "C": caption}
        return {"C": end(begin(batch.caption, start), batch.special.sep)}

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        text = self.text(batch)
        caption = text["C"]
        wanted = {"C": _all_but_last(caption)}
        if self.after_spatial:
            has_caption = caption.lengths_R > 0
            wanted["S"] = (text["S"].mask_RL & ~_all_but_last(text["S"])) & has_caption[:, None]
        table = {pair: seen for pair, seen in LEFT_TO_RIGHT.items() if pair[0] in text and pair[1] in text}
        return [
            query_stream(batch, self.segments),
            Stream(CAPTION, table, batch.sample_B, None, text, prefix=QUERIES, wanted=wanted),
        ]

    def _predicted(self, state: StepState) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [n, vocabulary] and targets [n]."""
        caption = self.text(state.batch)["C"]
        later = caption.ids_RL[:, 1:][_all_but_last(caption)[:, :-1]]
        hidden_nD = state.outputs(CAPTION, "C")
        targets = later
        if self.after_spatial:
            first = caption.ids_RL[caption.lengths_R > 0][:, 0] if caption.ids_RL.shape[1] else later[:0]
            hidden_nD = torch.cat([state.outputs(CAPTION, "S"), hidden_nD])
            targets = torch.cat([first, later])
        logits = state.token_logits(hidden_nD)
        return logits, to_device_soon(targets, logits.device)

    def loss(self, state: StepState) -> Loss:
        logits, targets = self._predicted(state)
        return Loss(token_cross_entropy(logits, targets, self.smoothing), len(targets))

    def captions(
        self, query_transformer: QueryTransformer, features: Features, batch: PretrainBatch, longest: int
    ) -> list[list[int]]:
        """Captions of B images as token ids, greedily, without [SEP] and of ``longest`` tokens at most.

        The batch's own are not read.
        """
        reader = reader_of(query_transformer)
        assert self.ends_captions
        assert reader is not None
        memory = query_transformer.project(features)
        written: list[list[int]] = [[] for _ in range(len(batch))]
        open_B = torch.ones(len(batch), dtype=torch.bool)
        for _ in range(longest):
            so_far = replace(batch, caption=Text.from_lists(written))
            outputs = query_transformer(merge(self.streams(so_far)), memory)
            # Every token but the end has a state here; a sample's last foretells the next.
            last_B = (so_far.caption.lengths_R + 1).cumsum(0) - 1
            next_B = reader.token_logits(outputs(CAPTION, "C")[last_B]).argmax(dim=-1).cpu()
            open_B &= next_B != batch.special.sep
            if not open_B.any():
                break
            for row, token in zip(written, next_B.where(open_B, -1).tolist(), strict=True):
                row += [token] if token >= 0 else []
        return written

    def accuracy(self, state: StepState) -> dict[str, tuple[int, int]]:
        """Count the caption tokens that are predicted correctly from those before."""
        return {"caption token accuracy": right_tokens(*self._predicted(state))}


def _all_but_last(text: Text) -> torch.Tensor:
    """True on tokens that have a successor: bool [B, L]."""
    return torch.arange(text.ids_RL.shape[1])[None, :] < text.lengths_R[:, None] - 1


def right_tokens(logits_nV: torch.Tensor, targets_n: torch.Tensor) -> tuple[int, int]:
    """Return how many, of how many."""
    return int((logits_nV.argmax(dim=-1) == targets_n).sum()), len(targets_n)


def token_cross_entropy(logits_nV: torch.Tensor, targets_n: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Summed cross-entropy, in fp32 or better; exactly 0 without targets."""
    if logits_nV.dtype in (torch.float16, torch.bfloat16):
        logits_nV = logits_nV.float()
    return F.cross_entropy(logits_nV, targets_n, label_smoothing=smoothing, reduction="sum")


def build(options: ICGOptions, context: BuildContext) -> ICG:
    return ICG(options, context.query_segments)
