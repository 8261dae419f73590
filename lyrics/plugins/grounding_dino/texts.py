"""The text encoder, run once for each different prompt of a call.

Images of a folder are often asked for the same names.

Shapes: B prompts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput


class DistinctTexts:
    """Stands in for the forward call of a frozen text encoder.

    Outside of ``remembered``, with gradients and on the meta device it is that call.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encode = encoder.forward
        self._known: dict[tuple[int, ...], torch.Tensor] | None = None

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Within, a prompt that was encoded is not encoded again. The weights must not change meanwhile."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    def __call__(self, input_ids: torch.Tensor, *masks: torch.Tensor, **options: Any) -> Any:
        """``masks`` (attention, token types, positions, [B, ...] each) follow from the tokens: equal prompts, padding
        included, are one.
        """
        if self._known is None or torch.is_grad_enabled() or input_ids.is_meta:
            return self._encode(input_ids, *masks, **options)
        rows = [tuple(row) for row in input_ids.tolist()]
        new = [rows.index(row) for row in dict.fromkeys(rows) if row not in self._known]
        if new:
            encoded_NTD = self._encode(input_ids[new], *(mask[new] for mask in masks), **options).last_hidden_state
            self._known |= {rows[index]: one_TD for index, one_TD in zip(new, encoded_NTD, strict=True)}
        return BaseModelOutput(last_hidden_state=torch.stack([self._known[row] for row in rows]))


def exchange_text_calls(network: Any) -> DistinctTexts:
    """Let the text encoder of a ``GroundingDinoForObjectDetection`` be called through ``DistinctTexts``.

    Names and weights stay.
    """
    encoder = network.model.text_backbone
    calls = DistinctTexts(encoder)
    encoder.forward = calls
    return calls
