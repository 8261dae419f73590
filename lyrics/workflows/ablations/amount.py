"""Figure 4a: how much pre-training. Stage 1 sees a part of its samples, then the same stage 2 follows.

A part of the samples is a part of the steps, with a whole schedule of its own (warm-up and decay): the paper speaks of
"pre-training data" and "pre-training steps" alike (section 5.4). The samples of a part are the first of the whole. 0 is
no stage 1 at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from lyrics.core.errors import SpecError
from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.launch import several_processes
from lyrics.workflows.ablations.runs import (
    Evaluating,
    Stages,
    changed,
    train_once,
    trained_model,
)
from lyrics.workflows.ablations.tables import Ablation, ScoreRow, rows_of

AMOUNTS = (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1))


def parsed(text: str) -> tuple[Fraction, ...]:
    """Return ``0,1/4,0.5,1`` as shares, in rising order. Raises ``SpecError`` for what is none."""
    found = set()
    for part in text.split(","):
        try:
            share = Fraction(part.strip())
        except (ValueError, ZeroDivisionError):
            raise SpecError(f"--amounts {text}: {part.strip()!r} is no share; write such as 0,1/4,1/2,1.") from None
        if not 0 <= share <= 1:
            raise SpecError(f"--amounts {text}: {part.strip()} is not from 0 to 1.")
        found.add(share)
    return tuple(sorted(found))


def part_of(config: TrainConfig, share: Fraction) -> int:
    """Steps that a share of stage 1 has. Raises ``SpecError`` where it is none at all."""
    steps = round(config.optimization.steps * share)
    if share and not steps:
        raise SpecError(
            f"--amounts: {share} of {config.optimization.steps} steps of stage 1 is less than one; leave it out, or "
            "train longer."
        )
    return steps


def amount(
    stages: Stages, evaluating: Evaluating, out: Path, seeds: int, shares: Sequence[Fraction] = AMOUNTS
) -> tuple[list[ScoreRow], dict[str, float]]:
    """Return rows, and the samples that stage 1 sees in each variant. No rows under torchrun, which trains only."""
    runs = []
    samples: dict[str, float] = {}
    for share in shares:
        steps = part_of(stages.pretrain, share)
        samples[str(share)] = float(steps * stages.pretrain.optimization.global_batch)
        for seed in stages.seeds(seeds):
            folder = out / f"amount-{str(share).replace('/', '-')}" / f"seed-{seed}"
            own = {"seed": seed}
            first = None
            start = {}
            if steps:
                first = changed(stages.pretrain, {**own, "out": str(folder / "pretrain"), "optimization.steps": steps})
                start = {"model.start_from": first.out}
            second = changed(stages.finetune, {**own, **start, "out": str(folder / "finetune")})
            runs.append((share, seed, first, second, folder))
    rows: list[ScoreRow] = []
    for share, seed, first, second, folder in runs:
        if first is not None:
            train_once(first, f"{share} of stage 1, seed {seed}")
        train_once(second, f"stage 2 after {share} of stage 1, seed {seed}")
        if several_processes():
            continue
        results = evaluating(
            lambda second=second: trained_model(second, evaluating),  # type: ignore[misc]
            folder / "results",
            f"figure 4a, {share}, seed {seed}",
        )
        rows += rows_of(str(share), None, seed, results)
    return rows, samples


def figure_4a(
    rows: Sequence[ScoreRow],
    samples: Mapping[str, float],
    facts: Mapping[str, str],
    about: Mapping[str, Mapping[str, str]],
) -> Ablation:
    """Return what is written."""
    notes = [
        "Variants are shares of stage 1: "
        + ", ".join(f"{name} is {int(count):,} samples" for name, count in samples.items())
        + "; each has a whole schedule of its own.",
        "The paper gives this figure's values as a drawing only.",
    ]
    return Ablation(
        "figure-4a",
        "Figure 4a: the amount of pre-training",
        rows,
        facts,
        notes,
        about=about,
        x=samples,
        x_name="samples of stage 1",
    )
