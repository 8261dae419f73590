"""The learning rate as a function of the step, so that nothing about it is kept in a checkpoint."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, peak: float, warmup_share: float) -> float:
    """Return the learning rate of a step (paper, section 4).

    It rises linearly from near 0 to ``peak`` over the first ``warmup_share`` of all steps, then falls as half a cosine
    to 0.

    ``step`` counts from 0. The first step of a warm-up has ``peak / warm-up steps``, the last one ``peak``.
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
