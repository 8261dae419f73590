"""Prompts of different lengths in one cache of transformers, which join and leave it between two tokens.

Shapes: R rows, B rows that are new, L tokens, D width of the embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer


def can_run(config: PreTrainedConfig) -> bool:
    """Whether every layer of the family's cache can take in rows: those that keep all places, and those that keep a
    state of one size (convolutions). A sliding window keeps the latest places only, wherever a row is padded.
    """
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, LinearAttentionLayer) for layer in layers)


class RunningCache:
    """A running batch (``lyrics.core.contracts.RunningPrompts``): rows are padded on the left to the longest.

    Args:
        model: the causal language model, with PEFT around it or not.
        embed: token ids [R,1] -> embeddings [R,1,D].
        network: the same model without PEFT.
    """

    def __init__(self, model: nn.Module, embed: Callable[[torch.Tensor], torch.Tensor], network: Any) -> None:
        self.model, self.embed, self.network = model, embed, network
        self.cache: DynamicCache | None = None
        self.mask_RL: torch.Tensor | None = None
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}

    @torch.no_grad()
    def join(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """See ``RunningPrompts.join``. If the new rows cannot be read, those that are there are as they were."""
        cache = DynamicCache(config=self.network.config)
        positions_BL = (attention_mask_BL.cumsum(dim=1) - 1).clamp(min=0)
        logits_BV = self._logits(embeddings_BLD, attention_mask_BL, positions_BL, cache)
        if self.cache is None or self.mask_RL is None:
            self.cache, self.mask_RL = cache, attention_mask_BL
            return logits_BV
        length = max(self.mask_RL.shape[1], attention_mask_BL.shape[1])
        pairs: Any = zip(self.cache.layers, cache.layers, strict=True)
        for old, new in pairs:
            if _keeps_places(old):
                old.keys = torch.cat([_padded(old.keys, length), _padded(new.keys, length)])
                old.values = torch.cat([_padded(old.values, length), _padded(new.values, length)])
            else:
                for states in ("conv_states", "recurrent_states"):
                    mine, others = getattr(old, states), getattr(new, states)
                    for number in mine:
                        if mine[number] is not None:
                            mine[number] = torch.cat([mine[number], others[number]])
        self.mask_RL = torch.cat([_left(self.mask_RL, length), _left(attention_mask_BL, length)])
        return logits_BV

    @torch.no_grad()
    def read(self, ids_R: torch.Tensor) -> torch.Tensor:
        """See ``RunningPrompts.read``."""
        assert self.mask_RL is not None
        assert self.cache is not None
        positions_R1 = self.mask_RL.sum(dim=1, keepdim=True)
        self.mask_RL = F.pad(self.mask_RL, (0, 1), value=1)
        return self._logits(self.embed(ids_R[:, None]), self.mask_RL, positions_R1, self.cache)

    def keep(self, rows: Sequence[int]) -> None:
        """See ``RunningPrompts.keep``."""
        if not rows or self.cache is None or self.mask_RL is None:
            self.cache = self.mask_RL = None
            return
        index = torch.tensor(rows, device=self.mask_RL.device)
        self.mask_RL = self.mask_RL[index]
        # Places where no row that is left has anything.
        free = int(self.mask_RL.shape[1] - self.mask_RL.sum(dim=1).max())
        self.mask_RL = self.mask_RL[:, free:]
        layers: Any = self.cache.layers
        for layer in layers:
            if _keeps_places(layer):
                layer.keys, layer.values = layer.keys[index, :, free:], layer.values[index, :, free:]
            else:
                layer.reorder_cache(index)

    def _logits(
        self, embeddings_RLD: torch.Tensor, mask_RL: torch.Tensor, positions_RL: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits behind the last place [R,vocabulary]; what was read goes into the cache."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            output = self.model(
                inputs_embeds=embeddings_RLD,
                attention_mask=mask_RL,
                position_ids=positions_RL,
                past_key_values=cache,
                use_cache=True,
                **self._last,
            )
        finally:
            if training:
                self.model.train()
        return output.logits[:, -1]  # type: ignore[no-any-return]


def _keeps_places(layer: Any) -> bool:
    return type(layer) is DynamicLayer


def _padded(states_RHLD: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(states_RHLD, (0, 0, length - states_RHLD.shape[2], 0))


def _left(mask_RL: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(mask_RL, (length - mask_RL.shape[1], 0))
