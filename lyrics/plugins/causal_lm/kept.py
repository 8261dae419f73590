"""What a cache of transformers, filled by an earlier prompt, is worth to another one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lyrics.core.language.past import Past


def kept(past: Past, keys: Sequence[Hashable], weights: Hashable) -> DynamicCache | None:
    """Return the cache of a past, cut to what the new prompt begins with; None where it is of no use.

    At least the last place of the prompt is left to be read, since the answer begins with what is read there.
    """
    cache: DynamicCache | None = past.state
    if cache is None or past.weights != weights:
        return None
    shared = min(past.shared(keys), len(keys) - 1)
    surplus = len(past.keys) - shared
    if not shared or (surplus and not _can_be_cut(cache)):
        return None
    if surplus:
        cache.crop(-surplus)
    return cache


def _can_be_cut(cache: DynamicCache) -> bool:
    """Whether every layer keeps all places: a convolution and a sliding window have lost those that a cut would bring
    back.
    """
    return all(type(layer) is DynamicLayer for layer in cache.layers)
