"""``lyrics evaluate``: from names on a command line to files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import lyrics.cli.evaluate as command
from lyrics.core.answers import Answer
from lyrics.core.errors import DatasetError, LyricsError, SpecError, UnknownNameError
from tests.plugins.benchmarks.conftest import REGISTRY, files


class Parrot:
    """Says one thing; counts how often."""

    answered = 0

    def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Answer]:
        Parrot.answered += len(instructions)
        return [Answer("picture", plain_text="picture")] * len(instructions)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command with the parrot as its model, in-process."""
    monkeypatch.setattr("lyrics.core.evaluation.build.default_registry", lambda: REGISTRY)
    monkeypatch.setattr(command, "open_model", lambda *_, **__: Parrot())
    Parrot.answered = 0
    app = typer.Typer()
    app.command()(command.evaluate)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def fails(result: Result, kind: type[Exception], *parts: str) -> None:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    for part in parts:
        assert part in str(result.exception)


def test_two_splits_in_one_command(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    root, out = files("gqa", tmp_path / "gqa")["root"], tmp_path / "out"
    files("refcoco", tmp_path / "refs")
    options = ("--option", "scenes.scenes=2", "--option", "scenes.attributes=plain")
    done = evaluate("--benchmark", "gqa,scenes:held-out", "--data", f"gqa={root}", *options, "--out", out)
    assert done.exit_code == 0, done.output
    assert Parrot.answered == 2 + 2 * 5
    assert (out / "gqa-testdev-balanced" / "predictions.jsonl").is_file()
    assert (out / "scenes-held-out" / "worst.html").is_file()
    assert "exact match" in done.output
    assert "100.00" in done.output
    about = json.loads((out / "gqa-testdev-balanced" / "run.json").read_text())
    assert about == {"model": "lyrics-tiny", "benchmark": "gqa", "split": "testdev-balanced"}


def test_json_limit_and_rescore(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--benchmark", "scenes", "--model", "mine", "--out", tmp_path / "out", "--limit", 3, "--json")
    done = evaluate(*arguments)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["benchmarks"]["scenes-test"]["samples"] == 3
    assert Parrot.answered == 3
    assert data["benchmarks"]["scenes-test"]["model"] == "mine"
    again = evaluate(*(each for each in arguments if each not in ("--model", "mine")), "--rescore")
    assert Parrot.answered == 3
    assert json.loads(again.stdout) == data


def test_split_applies_to_those_without_their_own(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    done = evaluate(
        *("--benchmark", "scenes:test,scenes", "--split", "validation", "--limit", 1, "--out", tmp_path / "out")
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"scenes-test", "scenes-validation"}


def test_shards(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--option", "scenes.scenes=1", "--option", "scenes.attributes=plain")
    arguments = ("--benchmark", "scenes", *options, "--out", tmp_path)
    for part in ("0/2", "1/2"):
        done = evaluate(*arguments, "--shard", part)
        assert done.exit_code == 0, done.output
        assert "run without --shard" in done.output
    assert Parrot.answered == 5
    assert evaluate(*arguments).exit_code == 0
    assert Parrot.answered == 5
    assert len((tmp_path / "scenes-test" / "predictions.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        (("--benchmark", "scene"), UnknownNameError, ("no benchmark named 'scene'", "'scenes'")),
        (("--benchmark", " , "), SpecError, ("names none",)),
        (("--benchmark", "scenes,scenes:test"), SpecError, ("scenes-test is named twice",)),
        (("--benchmark", "scenes:dev"), SpecError, ("scenes.split", "'dev'")),
        (("--benchmark", "scenes", "--split", "train"), SpecError, ("scenes.split", "'train'")),
        (("--benchmark", "gqa"), SpecError, ("--data gqa=FOLDER",)),
        (("--benchmark", "gqa", "--data", "gqa"), SpecError, ("--data", "NAME=DIR")),
        (("--benchmark", "gqa", "--data", "gqq=/x"), SpecError, ("--data gqq", "Did you mean 'gqa'")),
        (("--benchmark", "gqa", "--data", "gqa=/nowhere"), DatasetError, ("/nowhere: no such folder",)),
        (("--benchmark", "scenes", "--option", "scenes.scenes=0"), SpecError, ("scenes.scenes",)),
        (("--benchmark", "scenes", "--option", "scene.scenes=1"), SpecError, ("--option scene",)),
        (("--benchmark", "scenes", "--option", "scenes.pictures=1"), SpecError, ("pictures",)),
        (("--benchmark", "scenes", "--shard", "2/2"), SpecError, ("--shard 2/2",)),
        (("--benchmark", "scenes", "--shard", "half"), SpecError, ("--shard half",)),
        (("--benchmark", "scenes", "--shard", "0/2", "--rescore"), SpecError, ("--rescore and --shard",)),
        (
            ("--benchmark", "scenes", "--soft", "own,mixed"),
            SpecError,
            ("--soft own,mixed", "is one of own, shuffled, zero, noise"),
        ),
        (("--benchmark", "scenes", "--soft", ","), SpecError, ("--soft: names nothing",)),
        (("--benchmark", "scenes", "--blur", "2,x"), SpecError, ("--blur 2,x: 'x' is not a number",)),
        (("--benchmark", "scenes", "--blur", "-2"), SpecError, ("--blur -2", "0 or more")),
        (("--benchmark", "scenes", "--blur", "2", "--blur-parts", "vit"), SpecError, ("--blur-parts vit", "encoder")),
        (("--benchmark", "scenes", "--blur-parts", "encoder"), SpecError, ("--blur-parts encoder", "give --blur")),
        (("--benchmark", "scenes", "--drop-tokens", "2"), SpecError, ("--drop-tokens 2", "a share from 0 to 1")),
        (("--benchmark", "scenes", "--soft", "zero", "--condition-seed", "3"), SpecError, ("nothing is drawn",)),
        (("--benchmark", "scenes", "--abstain-below", "2"), SpecError, ("--abstain-below 2", "0 at most")),
        (
            ("--benchmark", "scenes", "--abstain-below", "none.json"),
            SpecError,
            ("neither a number nor an existing file",),
        ),
        (("--benchmark", "scenes", "--choose-threshold", "0.1"), SpecError, ("on another split", "--split validation")),
        (
            ("--benchmark", "scenes:validation", "--choose-threshold", "0.1", "--abstain"),
            SpecError,
            ("--choose-threshold and --abstain",),
        ),
        (
            ("--benchmark", "scenes:validation", "--choose-threshold", "0.1", "--shard", "0/2"),
            SpecError,
            ("--choose-threshold and --shard",),
        ),
        (("--benchmark", "scenes", "--rescore"), LyricsError, ("2400 of 2400 predictions are missing",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_leaves_nothing_behind(
    evaluate: Callable[..., Result],
    tmp_path: Path,
    arguments: tuple[str, ...],
    kind: type[Exception],
    parts: tuple[str, ...],
) -> None:
    fails(evaluate(*arguments, "--out", tmp_path / "out"), kind, *parts)
    assert Parrot.answered == 0
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--benchmark", "scenes", "--limit", 1, "--out", tmp_path)
    assert evaluate(*arguments).exit_code == 0
    fails(evaluate(*arguments, "--model", "lyrics-13b"), LyricsError, "of model 'lyrics-tiny', not 'lyrics-13b'")
    fails(evaluate(*arguments, "--weights", "random"), LyricsError, "(random weights)")


def test_out_is_a_file(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    fails(evaluate("--benchmark", "scenes", "--out", tmp_path / "out"), SpecError, "is a file")


def test_a_real_model_answers(tmp_path: Path) -> None:
    from lyrics.core.evaluation.build import build_benchmark
    from lyrics.core.evaluation.runner import evaluate as run
    from lyrics.core.loading import build_model
    from tests.core.small import small

    scenes = build_benchmark("scenes", {"scenes": 1, "attributes": "plain"}, registry=REGISTRY)
    object.__setattr__(scenes, "max_new_tokens", 4)
    model = build_model(small(language_model__options__max_positions=512), weights="random").eval()
    (result,) = run(model, {"scenes-test": scenes}, tmp_path, batch=3)
    assert result.samples == 5
    assert set(result.scores) >= {"caption: named things that are there"}
    lines = (tmp_path / "scenes-test" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert all(isinstance(json.loads(line)["text"], str) for line in lines)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command with a small model of random weights."""
    from lyrics.core.loading import build_model
    from tests.core.small import small

    monkeypatch.setattr("lyrics.core.evaluation.build.default_registry", lambda: REGISTRY)
    monkeypatch.setattr("lyrics.plugins.benchmarks.scenes.ScenesBenchmark.max_new_tokens", 3)
    spec = small(refiner__max_objects=1, language_model__options__max_positions=512)
    monkeypatch.setattr(command, "open_model", lambda *_, **__: build_model(spec, weights="random").eval())
    app = typer.Typer()
    app.command()(command.evaluate)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.mark.long
def test_conditions(real: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--option", "scenes.scenes=2", "--option", "scenes.attributes=plain")
    arguments = ("--benchmark", "scenes", *options, "--out", tmp_path)
    asked = ("--soft", "own,shuffled,zero", "--blur", "0,4", "--blur-parts", "encoder,experts", "--drop-tokens", "0.5")
    done = real(*arguments, *asked)
    assert done.exit_code == 0, done.output
    names = ["soft-shuffled", "soft-zero", "blur-4-encoder", "blur-4-experts", "drop-0.5"]
    folder = tmp_path / "scenes-test"
    assert {path.name for path in (folder / "conditions").iterdir()} == set(names)
    for name in names:
        assert len((folder / "conditions" / name / "predictions.jsonl").read_text().splitlines()) == 10
        assert name in done.output
    assert "conditions.html" in done.output
    again = real(*arguments, *asked, "--rescore", "--json")
    data = json.loads(again.stdout)["benchmarks"]["scenes-test"]["details"]["conditions"]
    assert [one["name"] for one in data] == ["own", *names]
    assert data == json.loads((folder / "conditions.json").read_text())["conditions"]


@pytest.mark.long
def test_the_threshold_chosen_on_validation_is_read_on_test(real: Callable[..., Result], tmp_path: Path) -> None:
    few = ("--option", "scenes.scenes=2", "--option", "scenes.attributes=plain", "--out", tmp_path)
    done = real("--benchmark", "scenes:validation", "--choose-threshold", "1", *few)
    assert done.exit_code == 0, done.output
    file = tmp_path / "scenes-validation" / "abstaining.json"
    chosen = json.loads(file.read_text())
    assert set(chosen) == {"threshold", "coverage", "risk", "risk_asked", "aurc"}
    assert f"threshold {chosen['threshold']:g}" in done.stderr
    done = real("--benchmark", "scenes", "--abstain-below", file, *few)
    assert done.exit_code == 0, done.output
    assert "abstaining: coverage" in done.output
    scores = json.loads((tmp_path / "scenes-test" / "scores.json").read_text())
    assert scores["details"]["abstaining"] == {"threshold": chosen["threshold"]}


def test_a_threshold_needs_answers_with_a_confidence(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--benchmark", "scenes:validation", "--limit", 2, "--out", tmp_path)
    fails(evaluate(*arguments, "--choose-threshold", "0.1"), LyricsError, "needs answers with a confidence")
    fails(evaluate(*arguments, "--soft", "zero", "--limit", 3), LyricsError, "Parrot: conditions need a model")
