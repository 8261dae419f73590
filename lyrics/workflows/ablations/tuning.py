"""Figure 4b: the language model frozen, adapted with LoRA, or trained in full in stage 2, from the same stage 1.

The query transformer and the projection are trained in all three. The paper's "full" trains the image encoder and the
refiner as well (section 5.4, "Training Strategy"); here these stay frozen always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lyrics.core.errors import SpecError
from lyrics.core.training.launch import several_processes
from lyrics.core.training.runfolder import RunFolder
from lyrics.workflows.ablations.runs import (
    Evaluating,
    Stages,
    changed,
    train_once,
    trained_model,
)
from lyrics.workflows.ablations.tables import Ablation, Curve, ScoreRow, rows_of

ADAPTATIONS = ("frozen", "lora", "full")


def tuning(stages: Stages, evaluating: Evaluating, out: Path, seeds: int) -> tuple[list[ScoreRow], list[Curve]]:
    """Final scores, and what stage 2 measured on held-out samples on its way. None under torchrun, which trains only.

    Where stage 2 names what it starts from, no stage 1 is trained. Raises ``SpecError`` for a stage 2 that measures
    nothing on its way.
    """
    if stages.finetune.evaluation.every_steps is None or not stages.finetune.evaluation.sets:
        raise SpecError(
            "finetune.evaluation: measures nothing on the way, and the curves are made of that; set "
            "finetune.evaluation.every_steps and finetune.evaluation.sets."
        )
    if stages.finetune.model.weights not in ("pretrained", "random"):
        raise SpecError(
            f"finetune: model.weights={stages.finetune.model.weights} is a model with one adaptation; set it to "
            "pretrained or random."
        )
    runs = []
    for seed in stages.seeds(seeds):
        own = {"seed": seed}
        first = None
        if stages.finetune.model.start_from is None:
            first = changed(stages.pretrain, {**own, "out": str(out / "pretrain" / f"seed-{seed}")})
            own["model.start_from"] = first.out  # type: ignore[assignment]
        for adaptation in ADAPTATIONS:
            more = {
                "out": str(out / adaptation / f"seed-{seed}" / "finetune"),
                "model.spec.language_model.options.adaptation": adaptation,
            }
            runs.append((adaptation, seed, first, changed(stages.finetune, {**own, **more})))
    rows: list[ScoreRow] = []
    curves: list[Curve] = []
    for adaptation, seed, first, second in runs:
        if first is not None:
            train_once(first, f"seed {seed}, stage 1")
        train_once(second, f"{adaptation}, seed {seed}, stage 2")
        if several_processes():
            continue
        results = evaluating(
            lambda second=second: trained_model(second, evaluating),  # type: ignore[misc]
            out / adaptation / f"seed-{seed}" / "results",
            f"figure 4b, {adaptation}, seed {seed}",
        )
        rows += rows_of(adaptation, None, seed, results)
        curves += held_out(adaptation, seed, Path(second.out))
    return rows, curves


def held_out(variant: str, seed: int, run: Path) -> list[Curve]:
    """Return what a run has measured on its way, from its log."""
    found: dict[str, dict[int, float]] = {}
    for line in RunFolder(run).log_lines():
        for name, value in line.get("evaluation", {}).items():
            found.setdefault(name, {})[line["step"]] = value
    return [Curve(variant, seed, name, tuple(sorted(points.items()))) for name, points in found.items()]


def figure_4b(
    rows: Sequence[ScoreRow], curves: Sequence[Curve], facts: Mapping[str, str], about: Mapping[str, Mapping[str, str]]
) -> Ablation:
    """Return what is written."""
    notes = [
        "Query transformer and projection are trained in all three; image encoder and refiner are frozen in all three "
        "(the paper's 'full' trains these, too).",
        "The paper gives this figure's values as a drawing only.",
    ]
    return Ablation(
        "figure-4b", "Figure 4b: adapting the language model", rows, facts, notes, about=about, curves=curves
    )
