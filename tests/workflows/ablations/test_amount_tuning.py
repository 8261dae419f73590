"""Figures 4a and 4b from configurations to rows and curves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.errors import SpecError
from lyrics.core.reports.plots import Lines
from lyrics.core.runs.checkpoint import TRAINED_FILE
from lyrics.core.runs.config import dump_config
from lyrics.core.runs.tensor_file import read_tensors
from lyrics.workflows.ablations.amount import AMOUNTS, amount, figure_4a, parsed, part_of
from lyrics.workflows.ablations.runs import Stages, open_stages
from lyrics.workflows.ablations.tables import markdown, panels
from lyrics.workflows.ablations.tuning import ADAPTATIONS, figure_4b, held_out, tuning
from tests.core.training.runs import losses
from tests.workflows.ablations.toys import config, evaluating, stages, written

MEASURING = {
    "evaluation__every_steps": 1,
    "evaluation__sets": {
        "scenes": {
            "use": "scenes",
            "options": {"task": "vqa", "split": "validation", "scenes": 2, "attributes": "plain"},
        }
    },
    "evaluation__samples": 2,
    "evaluation__max_new_tokens": 2,
}


def started_from(run: Path) -> str:
    (line,) = [line for line in (run / "config.yaml").read_text().splitlines() if "start_from:" in line]
    return line.partition(":")[2].strip()


def test_amounts_of_stage_1(tmp_path: Path) -> None:
    rows, samples = amount(stages(), evaluating(), tmp_path, 1, (Fraction(0), Fraction(1, 2), Fraction(1)))
    assert samples == {"0": 0.0, "1/2": 2.0, "1": 4.0}
    assert list(dict.fromkeys((row.variant, row.reading, row.seed) for row in rows)) == [
        (name, None, 0) for name in ("0", "1/2", "1")
    ]
    none, half, whole = (tmp_path / f"amount-{name}" / "seed-0" for name in ("0", "1-2", "1"))
    assert not (none / "pretrain").exists()
    assert started_from(none / "finetune") == "null"
    assert started_from(half / "finetune") == str(half / "pretrain")
    assert [[step for step, _ in losses(folder / "pretrain")] for folder in (half, whole)] == [[1], [1, 2]]
    # The part begins as the whole does.
    assert losses(half / "pretrain")[0] == losses(whole / "pretrain")[0]
    before = written(tmp_path)
    assert amount(stages(), evaluating(), tmp_path, 1, (Fraction(0), Fraction(1, 2), Fraction(1))) == (rows, samples)
    after = written(tmp_path)
    assert {Path(path).name for path in after if after[path] != before.get(path)} <= {
        "scores.json",
        "table.md",
        "worst.html",
        "risk.svg",
    }

    found = figure_4a(rows, samples, {}, {})
    assert "1/2 is 2 samples" in markdown(found, "")
    (panel, *_) = panels(found)
    assert isinstance(panel, Lines)
    (points,) = panel.lines.values()
    assert [point.x for point in points] == [0.0, 2.0, 4.0]


def test_shares() -> None:
    assert parsed("1, 1/4,0,0.5") == AMOUNTS
    for text in ("half", "1/0", "", "2", "-1/4"):
        with pytest.raises(SpecError, match="--amounts"):
            parsed(text)
    assert part_of(config("pretrain", steps=10), Fraction(1, 4)) == 2
    assert part_of(config("pretrain", steps=10), Fraction(0)) == 0
    with pytest.raises(SpecError, match="1/100 of 10 steps of stage 1 is less than one"):
        part_of(config("pretrain", steps=10), Fraction(1, 100))


def test_three_adaptations_of_one_stage_1(tmp_path: Path) -> None:
    rows, curves = tuning(stages(**MEASURING), evaluating(), tmp_path, 1)
    assert list(dict.fromkeys(row.variant for row in rows)) == list(ADAPTATIONS)
    trained = {}
    for name in ADAPTATIONS:
        run = tmp_path / name / "seed-0" / "finetune"
        assert started_from(run) == str(tmp_path / "pretrain" / "seed-0")
        tensors = read_tensors(run / "checkpoints" / "step-00000002" / TRAINED_FILE)
        trained[name] = {tensor for tensor in tensors if tensor.startswith("language_model.")}
    assert not trained["frozen"]
    assert trained["lora"]
    assert all("lora" in name for name in trained["lora"])
    assert len(trained["full"]) > len(trained["lora"])
    assert not any("lora" in name for name in trained["full"])
    # The same weights to begin with, whatever is trained of them.
    assert len({losses(tmp_path / name / "seed-0" / "finetune")[0][1]["answer"] for name in ("frozen", "full")}) == 1

    assert {(one.variant, one.seed, one.name) for one in curves} == {
        (name, 0, "answer accuracy") for name in ADAPTATIONS
    }
    assert all([step for step, _ in one.points] == [1, 2] for one in curves)
    assert curves[0].points == held_out("frozen", 0, tmp_path / "frozen" / "seed-0" / "finetune")[0].points
    drawn = panels(figure_4b(rows, curves, {}, {}))[-1]
    assert isinstance(drawn, Lines)
    assert drawn.title == "held-out: answer accuracy"
    assert list(drawn.lines) == list(ADAPTATIONS)


def test_stage_1_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyrics.workflows.ablations import tuning as module

    asked: list[Any] = []
    monkeypatch.setattr(module, "train_once", lambda config, what: asked.append(config))
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = stages(model__start_from="runs/one", **MEASURING)
    assert tuning(given, evaluating(), tmp_path, 2) == ([], [])
    assert {one.stage for one in asked} == {"instruct"}
    assert {one.model.start_from for one in asked} == {"runs/one"}
    assert [(one.model.spec.language_model.options["adaptation"], one.seed) for one in asked] == [
        (name, seed) for seed in (0, 1) for name in ADAPTATIONS
    ]


def test_curves_need_something_to_be_measured(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"finetune\.evaluation: measures nothing on the way"):
        tuning(stages(), evaluating(), tmp_path, 1)
    with pytest.raises(SpecError, match=r"finetune: model\.weights=.* is a model with one adaptation"):
        tuning(stages(model__weights=str(tmp_path), **MEASURING), evaluating(), tmp_path, 1)


# --- configurations ---


def files(tmp_path: Path, given: Stages) -> tuple[str, str]:
    found = []
    for name, one in (("one.yaml", given.pretrain), ("two.yaml", given.finetune)):
        (tmp_path / name).write_text(dump_config(one))
        found.append(str(tmp_path / name))
    return found[0], found[1]


def test_both_configurations_with_their_overrides(tmp_path: Path) -> None:
    one, two = files(tmp_path, stages())
    found = open_stages(one, two, {"pretrain": {"optimization.steps": 7}, "finetune": {"seed": 3}})
    assert (found.pretrain.optimization.steps, found.finetune.optimization.steps) == (7, 2)
    assert (found.pretrain.seed, found.finetune.seed) == (0, 3)
    assert found.facts()["stage 1"] == "7 steps of 2 samples of scenes"
    assert open_stages("tiny-stage1", "tiny-stage2", {}).pretrain.stage == "pretrain"


def test_configurations_that_do_not_go_together(tmp_path: Path) -> None:
    one, two = files(tmp_path, stages())
    for arguments, message in (
        ((str(tmp_path), two), r"--pretrain .*: is a folder; variants are trained, and that takes a configuration"),
        ((two, two), r"--pretrain .*two\.yaml: is a configuration of stage 'instruct', not 'pretrain'"),
        ((one, "tiny-stage2"), r"of different models: model\.spec\.image_encoder is "),
        ((one, "tiny-stage3"), r"no recipe named 'tiny-stage3'"),
    ):
        with pytest.raises(SpecError, match=message):
            open_stages(*arguments, {})
    with pytest.raises(
        SpecError, match=r"finetune\.model\.start_from=runs/one: every variant starts from a stage 1 of its own"
    ):
        open_stages(one, two, {"finetune": {"model.start_from": "runs/one"}})
    given = open_stages(one, two, {"finetune": {"model.start_from": "runs/one"}}, own_start=True)
    assert given.facts()["stage 1"] == "not trained here: runs/one"
    with pytest.raises(SpecError, match="precision is fp32 and bf16, and one process trains both"):
        open_stages(one, two, {"finetune": {"optimization.precision": "bf16"}})
    with pytest.raises(SpecError, match="device is cpu and auto"):
        open_stages(one, two, {"finetune": {"device": "auto"}})
