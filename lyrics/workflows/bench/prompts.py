"""Stage-2 prompts through a language model: packed without padding, against padded ones, with gradients.

Lengths are like those of LLaVA-Instruct-150K: 58 of 158 thousand samples are conversations (here 2 to 6 questions of
about 11 words with answers of about 18), 23 are descriptions (95 words), 77 reason (108 words), 1.35 tokens a word;
beside them the soft tokens of one image and 1 to 20 objects of 12 tokens. The losses of all ways are compared in each
turn, before any time counts.

Letters: Q soft tokens of an image, D width of the language model.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.language.soft_prompts import answer_loss, answer_losses, groups_by_length
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.stage1.state import Loss
from lyrics.workflows.bench.machine import environment

#: Kinds of LLaVA-Instruct's samples, in thousands.
_KINDS = {"conversation": 58, "detail": 23, "reasoning": 77}
_TOKENS_A_WORD = 1.35
_OBJECT_TOKENS = 12
#: Ids of ordinary tokens.
_IDS = (3, 300)
_CLOSE = 1e-5


def prompt_length(draw: random.Random, soft_tokens: int) -> int:
    """Tokens of one prompt with its answers."""

    def words(mean: float, spread: float) -> float:
        return max(3.0, draw.gauss(mean, spread))

    kind = draw.choices(list(_KINDS), list(_KINDS.values()))[0]
    if kind == "conversation":
        spoken = sum(words(11, 3) + words(18, 9) for _ in range(draw.randint(2, 6)))
    elif kind == "detail":
        spoken = words(10, 2) + words(95, 25)
    else:
        spoken = words(17, 5) + words(108, 30)
    return int(soft_tokens + _OBJECT_TOKENS * draw.randint(1, 20) + _TOKENS_A_WORD * spoken)


def prompts_of(draw: random.Random, size: int, soft_tokens: int) -> list[TokenPrompt]:
    """A batch; the second half of each prompt is its answer."""
    found = []
    for _ in range(size):
        length = prompt_length(draw, soft_tokens)
        ids = tuple(draw.randrange(*_IDS) for _ in range(length))
        found.append(TokenPrompt(ids, tuple(place > length // 2 for place in range(length)), ((1, 0),)))
    return found


def measure(
    model: LyricsModel,
    batch_sizes: Sequence[int] = (8, 16, 32),
    rounds: int = 3,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row per batch size: processor seconds of each way, and ratios; each turn has prompts of its own.

    Raises:
        AssertionError: the ways' losses differ.
    """
    language_model = model.language_model
    count = model.query_transformer.num_queries
    soft_PQD = torch.randn(1, count, language_model.hidden_size, generator=torch.Generator().manual_seed(0))
    soft_PQD.requires_grad_()
    ways: Mapping[str, Callable[[Sequence[TokenPrompt]], Sequence[Loss]]] = {
        "padded": lambda prompts: [answer_loss(prompts, soft_PQD, language_model)],
        "groups of like length": lambda prompts: [
            answer_loss(group, soft_PQD, language_model) for group in groups_by_length(prompts)
        ],
        "packed": lambda prompts: answer_losses(prompts, soft_PQD, language_model),
    }
    draw = random.Random(0)
    rows = []
    for size in batch_sizes:
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        lengths: list[int] = []
        for _ in range(rounds):
            prompts = prompts_of(draw, size, count)
            lengths += map(len, prompts)
            losses = []
            for way, run in ways.items():
                model.zero_grad()
                started = time.process_time()
                loss = torch.stack([one.sum for one in run(prompts)]).sum()
                loss.backward()
                seconds[way].append(time.process_time() - started)
                losses.append(float(loss.detach()))
            assert max(losses) - min(losses) <= _CLOSE * max(losses), dict(zip(ways, losses, strict=True))
        ratios = {
            way: statistics.median(a / b for a, b in zip(seconds["padded"], seconds[way], strict=True)) for way in ways
        }
        rows.append(
            {
                "batch": size,
                "mean_length": statistics.fmean(lengths),
                "longest": max(lengths),
                "cpu_seconds": seconds,
                "cpu_speedup_vs_padded": ratios,
            }
        )
        say(f"batch {size}: packed {ratios['packed']:.2f} times as fast as padded")
    return rows


def run_bench_prompts(
    preset: str = "lyrics-mini",
    batch_sizes: Sequence[int] = (8, 16, 32),
    rounds: int = 3,
    *,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """``measure`` with random weights on one thread, and a JSON file at ``out``, where that is given."""
    torch.set_num_threads(1)
    measured_on = environment()
    rows = measure(build_model(preset, weights="random").train(), batch_sizes, rounds, say=say)
    rows = [row | {"model": preset} | measured_on for row in rows]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"benchmark": "prompts", "rows": rows}, indent=2) + "\n")
    return rows
