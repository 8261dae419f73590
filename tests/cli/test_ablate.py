"""``lyrics ablate``: from a command line to a table, and what it refuses."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.runs.config import dump_config
from lyrics.core.spec import dump
from lyrics.workflows.ablations import amount, architecture, tuning
from lyrics.workflows.ablations.runs import StoppedError
from lyrics.workflows.ablations.tables import Curve, ScoreRow
from tests.commands import Run
from tests.core.small import small
from tests.workflows.ablations.test_amount_tuning import MEASURING
from tests.workflows.ablations.toys import stages

ROWS = [ScoreRow("full", None, 0, "scenes-test", "rec: accuracy (IoU >= 0.5)", 12.5, 5)]
FEW = ("--option", "scenes.scenes=5", "--option", "scenes.attributes=plain", "--limit", "5", "--batch", "5")


@pytest.fixture
def spec(tmp_path: Path) -> str:
    dump(small(refiner__max_objects=1, language_model__options__max_positions=2048), tmp_path / "model.yaml")
    return str(tmp_path / "model.yaml")


@pytest.fixture
def configs(tmp_path: Path) -> list[str]:
    given = stages(**MEASURING)
    arguments = []
    for flag, one in (("pretrain", given.pretrain), ("finetune", given.finetune)):
        (tmp_path / f"{flag}.yaml").write_text(dump_config(one))
        arguments += [f"--{flag}", str(tmp_path / f"{flag}.yaml")]
    return arguments


def test_table_5_with_blank_pictures(run: Run, spec: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        "ablate",
        "--table",
        "5",
        "--model",
        spec,
        "--weights",
        "random",
        "--only",
        "full,no-vr",
        *FEW,
        "--out",
        str(out),
    )
    done = run(*arguments, "--set", "model.language_model.options.max_positions=1024")
    assert done.code == 0, done.err
    assert "reading blank" in done.out
    assert "w/o VR" in done.out
    page = (out / "table-5.md").read_text()
    assert "--table 5" in page
    assert "language_model.options.max_positions=1024" in page
    assert "scenes-test 5, of each the first 5 at most" in page
    assert (out / "table-5.svg").is_file()
    predictions = out / "table-5" / "blank" / "no-vr" / "scenes-test" / "predictions.jsonl"
    before = predictions.stat().st_mtime_ns
    again = run(*arguments, "--set", "model.language_model.options.max_positions=1024", "--json")
    assert {row["variant"] for row in again.data["rows"]} == {"Lyrics", "w/o VR"}
    assert predictions.stat().st_mtime_ns == before
    assert again.data == json.loads((out / "table-5.json").read_text())
    # Another model's answers are not taken for this one's.
    other = run(*arguments)
    assert other.code == 1
    assert "answers there are of model" in other.err


def test_table_6(run: Run, spec: str, tmp_path: Path) -> None:
    arguments = (
        "ablate",
        "--table",
        "6",
        "--model",
        spec,
        "--weights",
        "random",
        *FEW,
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    )
    done = run(*arguments)
    assert done.code == 0, done.err
    assert "4-shot" in done.out
    assert "of 20 exemplars did not fit into the context" in done.out
    assert (tmp_path / "table-6" / "4-shot" / "seed-0" / "scenes-test" / "exemplars.jsonl").is_file()
    assert "shots" in json.loads((tmp_path / "table-6.json").read_text())


def test_figure_4a(run: Run, configs: list[str], tmp_path: Path) -> None:
    arguments = ("ablate", "--figure", "4a", *configs, "--amounts", "0", *FEW, "--out", str(tmp_path / "out"))
    done = run(*arguments, "--set", "finetune.optimization.steps=1", "--set", "both.seed=3")
    assert done.code == 0, done.err
    data = json.loads((tmp_path / "out" / "figure-4a.json").read_text())
    assert {(row["variant"], row["seed"]) for row in data["rows"]} == {("0", 3)}
    assert data["facts"]["stage 2"] == "1 steps of 2 samples of scenes"
    assert (tmp_path / "out" / "figure-4a" / "amount-0" / "seed-3" / "finetune" / "config.yaml").is_file()


def test_what_is_trained_gets_what_was_asked_for(
    run: Run, configs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def noted(found: Any) -> Any:
        return lambda *arguments: (asked.append(arguments), found)[1]

    monkeypatch.setattr(tuning, "tuning", noted((ROWS, [Curve("full", 0, "REC", ((1, 0.5),))])))
    monkeypatch.setattr(amount, "amount", noted((ROWS, {"full": 4.0})))
    monkeypatch.setattr(architecture, "removed", noted(ROWS))
    monkeypatch.setattr(architecture, "answered", noted(ROWS))
    common = (*configs, "--out", str(tmp_path / "out"), "--benchmark", "scenes:held-out", "--device", "cpu")
    for what, arguments in (
        ("figure-4b", ("--figure", "4b", "--seeds", "2")),
        ("figure-4a", ("--figure", "4a")),
        ("table-5", ("--table", "5", "--reading", "both", "--only", "no-vr,blip2")),
        ("table-5", ("--table", "5", "--reading", "removed")),
        ("table-5", ("--table", "5", "--reading", "all", "--only", "text-only")),
    ):
        done = run("ablate", *common, *arguments)
        assert done.code == 0, done.err
        assert (tmp_path / "out" / f"{what}.svg").is_file()
        assert "12.50" in done.out
    four_b, four_a, blank, removed, all_removed, *all_three = asked
    out = tmp_path / "out"
    assert (four_b[2], four_b[3]) == (out / "figure-4b", 2)
    assert four_b[0].finetune.evaluation.every_steps == 1
    assert four_b[1].about == {"scenes-held-out": {"benchmark": "scenes", "split": "held-out"}}
    assert four_b[1].device == "cpu"
    assert (four_a[2], four_a[3], four_a[4]) == (out / "figure-4a", 1, (0, Fraction(1, 4), Fraction(1, 2), 1))
    assert (blank[0], blank[2], blank[4], blank[5]) == ("blank", "lyrics-tiny", out / "table-5" / "blank", ["no-vr"])
    assert (removed[2], removed[3], removed[4]) == (out / "table-5" / "removed", 1, ("no-vr", "blip2"))
    assert all_removed[4] == ()
    assert [one[0] for one in all_three[:2]] == ["blank", "features"]
    assert all_three[1][4:] == (out / "table-5" / "features", ["text-only"])
    assert all_three[2][2:] == (out / "table-5" / "removed", 1, ("text-only",))


def test_a_signal_is_no_failure(run: Run, configs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise StoppedError("stopped after 1 of 2 steps of it; the same command goes on.")

    monkeypatch.setattr(tuning, "tuning", stopped)
    done = run("ablate", "--figure", "4b", *configs, "--out", str(tmp_path / "out"))
    assert (done.code, done.out) == (0, "stopped after 1 of 2 steps of it; the same command goes on.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --table 5, --table 6, --figure 4a and --figure 4b"),
        (("--table", "5", "--figure", "4a"), "give one of"),
        (("--table", "7"), "--table 7: is not an ablation of the paper that is available; there are --table 5"),
        (("--figure", "5"), "--figure 5: is not an ablation"),
        (
            ("--table", "5", "--reading", "blanc"),
            "--reading blanc: is one of blank, removed, features, both, all. Did you mean 'blank'?",
        ),
        (("--table", "6", "--reading", "blank"), "--reading: is for table 5, not for table 6"),
        (("--table", "6", "--only", "full"), "--only: is for table 5, not for table 6"),
        (("--table", "5", "--amounts", "1"), "--amounts: is for figure 4a, not for table 5"),
        (("--table", "5", "--only", "no-sam"), "--only no-sam: there is no such variant. Did you mean 'no-ssm'?"),
        (("--table", "5", "--only", "blip2"), "--only blip2: is trained without a refiner; it needs --reading removed"),
        (("--figure", "4a", "--amounts", "2"), "--amounts 2: 2 is not from 0 to 1"),
        (("--figure", "4a", "--model", "m"), "--model m: figure 4a trains its variants from --pretrain and --finetune"),
        (
            ("--table", "5", "--reading", "removed", "--model", "m"),
            "--model m: table 5, reading removed, trains its variants",
        ),
        (("--table", "6", "--pretrain", "c"), "--pretrain c: table 6 takes a trained model, --model"),
        (("--table", "5", "--finetune", "c"), "--finetune c: table 5, reading blank, takes a trained model"),
        (("--figure", "4a", "--pretrain", "."), "--pretrain .: is a folder; variants are trained"),
        (
            ("--figure", "4a", "--set", "optimization.steps=1"),
            "--set optimization.steps: say what it belongs to: pretrain.optimization",
        ),
        (("--figure", "4a", "--set", "model.codec=qwen"), "--set model.codec: this ablation has no model to set"),
        (("--table", "6", "--set", "pretrain.seed=1"), "--set pretrain.seed: this ablation has no pretrain to set"),
        (
            ("--figure", "4a", "--set", "pretrain.optimization.step=1"),
            "there is no optimization.step. Did you mean 'steps'?",
        ),
        (("--table", "6", "--dtype", "float64"), "--dtype float64: is one of float32 (or fp32), bfloat16 (or bf16)"),
        (("--table", "6", "--benchmark", "scene"), "no benchmark named 'scene'"),
        (("--table", "6", "--model", "lyrics-tinny"), "lyrics-tinny"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_leaves_nothing_behind(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run("ablate", *arguments, "--out", str(tmp_path / "out"))
    assert done.code == 2, (done.out, done.err)
    assert message in done.err
    assert len([line for line in done.err.splitlines() if "lyrics: " in line]) == 1
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_part(run: Run, tmp_path: Path) -> None:
    dump(small(refiner__segmenter=None), tmp_path / "model.yaml")
    common = ("ablate", "--table", "5", "--model", str(tmp_path / "model.yaml"), "--weights", "random", *FEW)
    done = run(*common, "--only", "full,no-ssm", "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert "w/o SSM: this model has no refiner.segmenter, so there is nothing to take away" in done.err
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    done = run("ablate", "--table", "6", "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert "is a file, not a folder" in done.err
