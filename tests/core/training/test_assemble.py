"""The real parts at their smallest: configuration -> data, model, collation -> both stages, one process and two, and
the commands.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from lyrics.cli import train as commands
from lyrics.core.errors import CheckpointError, SpecError
from lyrics.core.model import LyricsModel
from lyrics.core.runs.checkpoint import TRAINED_FILE
from lyrics.core.runs.config import TrainConfig, dump_config, load_config
from lyrics.core.runs.tensor_file import read_tensors
from lyrics.core.training.assemble import run
from lyrics.core.training.loop import Outcome
from tests.core.small import small
from tests.core.training.processes import all_end, ranks
from tests.core.training.runs import losses, trained

CACHED = {"use": "cached", "options": {"missing": "empty"}}


def settings(out: Path, stage: str, **changes: Any) -> TrainConfig:
    """Four steps on scenes whose objects are known, without dropout; ``a__b`` in a keyword stands for ``a.b``."""
    spec = small(
        objectives={name: name for name in ("itc", "itm", "icg", "msp")},
        refiner__tagger=CACHED,
        refiner__detector=CACHED,
        refiner__segmenter=CACHED,
        query_transformer__options__hidden_dropout=0.0,
        query_transformer__options__attention_dropout=0.0,
        query_transformer__options__max_positions=256,
        language_model__options__lora__dropout=0.0,
    )
    task = "caption" if stage == "pretrain" else "mixed"
    base = {
        "stage": stage,
        "out": str(out),
        "device": "cpu",
        "model": {"spec": spec.model_dump(mode="json"), "weights": "random"},
        "data": {
            "sets": {"scenes": {"use": "scenes", "options": {"task": task, "scenes": 64, "attributes": "plain"}}},
            "augmentation": {"flip": 0.5} if stage == "pretrain" else None,
            "workers": 0,
        },
        "optimization": {"steps": 4, "global_batch": 8, "learning_rate": 1e-3},
        "checkpoint": {"every_steps": 2},
        "logging": {"trackers": []},
    }
    return load_config(base, {path.replace("__", "."): value for path, value in changes.items()})


def values(out: Path) -> list[dict[str, float]]:
    return [{name: float.fromhex(text) for name, text in exact.items()} for _, exact in losses(out)]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_stage_runs_resumes_and_does_not_depend_on_ranks(tmp_path: Path, stage: str) -> None:
    assert run(settings(tmp_path / "one", stage)) == Outcome(4, stopped=False)
    whole = losses(tmp_path / "one"), trained(tmp_path / "one")
    names = {"pretrain": {"itc", "itm", "icg", "msp"}, "instruct": {"answer"}}[stage]
    assert set(values(tmp_path / "one")[0]) == names | {"total"}
    assert all(value > 0 and math.isfinite(value) for step in values(tmp_path / "one") for value in step.values())

    run(
        settings(tmp_path / "parts", stage, optimization__steps=4),
        resume_from=str(tmp_path / "one/checkpoints/step-00000002"),
    )
    assert losses(tmp_path / "parts") == whole[0][2:]
    assert trained(tmp_path / "parts") == whole[1]

    with ranks(2, tmp_path, run, settings(tmp_path / "two", stage, data__workers=1)) as children:
        all_end(children, 120)
    for have, want in zip(values(tmp_path / "two"), values(tmp_path / "one"), strict=True):
        for name in want:
            assert math.isclose(have[name], want[name], rel_tol=1e-6), name


TRAINED_ENCODER = {
    "model__spec__train_image_encoder": True,
    "optimization__groups": {"image_encoder": {"learning_rate": 1e-4}},
}


def test_a_trained_encoder_is_kept_resumed_and_alike_on_two_ranks(tmp_path: Path) -> None:
    run(settings(tmp_path / "one", "instruct", **TRAINED_ENCODER))
    tensors = read_tensors(tmp_path / "one/checkpoints/step-00000004" / TRAINED_FILE)
    encoder = {name.removeprefix("encoder."): one for name, one in tensors.items() if name.startswith("encoder.")}
    model = LyricsModel.from_pretrained(tmp_path / "one")
    assert encoder.keys() == dict(model.encoder.named_parameters()).keys()
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(parameter, encoder[name]), name
    before = read_tensors(tmp_path / "one/checkpoints/step-00000002" / TRAINED_FILE)
    moved = {name: (before[f"encoder.{name}"] - one).abs().max() for name, one in encoder.items()}
    assert 0 < max(moved.values()) < 3e-4, "two steps at a tenth of the rate of all"

    run(
        settings(tmp_path / "parts", "instruct", **TRAINED_ENCODER),
        resume_from=str(tmp_path / "one/checkpoints/step-00000002"),
    )
    assert trained(tmp_path / "parts") == trained(tmp_path / "one")

    with ranks(2, tmp_path, run, settings(tmp_path / "two", "instruct", **TRAINED_ENCODER)) as children:
        all_end(children, 120)
    for have, want in zip(values(tmp_path / "two"), values(tmp_path / "one"), strict=True):
        assert math.isclose(have["total"], want["total"], rel_tol=1e-6)


def refused(config: TrainConfig) -> None:
    with pytest.raises(SpecError, match="stage 1 trains the image encoder on one rank only"):
        run(config)


def test_stage_1_trains_an_encoder_on_one_rank_only(tmp_path: Path) -> None:
    run(settings(tmp_path / "one", "pretrain", **TRAINED_ENCODER, optimization__steps=2))
    with ranks(2, tmp_path, refused, settings(tmp_path / "two", "pretrain", **TRAINED_ENCODER)) as children:
        all_end(children, 120)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_dropout_is_on_in_training_steps_and_off_around_them(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    from lyrics.core.model import LyricsModel
    from lyrics.core.training import assemble

    def modes(model: LyricsModel) -> set[bool]:
        trained = (model.query_transformer, model.language_model)
        return {
            part.training for one in trained for part in one.modules() if isinstance(part, nn.Dropout) and part.p > 0
        }

    seen: dict[str, list[set[bool]]] = {"built": [], "steps": [], "frozen": []}
    train, step = assemble.train, {"pretrain": "pretraining_step", "instruct": "instruction_step"}[stage]

    def built(config: Any, model: LyricsModel, *arguments: Any, **options: Any) -> Any:
        seen["built"].append(modes(model))
        return train(config, model, *arguments, **options)

    original = getattr(LyricsModel, step)

    def stepped(self: LyricsModel, *arguments: Any, **options: Any) -> Any:
        seen["steps"].append(modes(self))
        assert self.refiner is not None
        seen["frozen"].append({part.training for one in (self.encoder, self.refiner) for part in one.modules()})
        return original(self, *arguments, **options)

    monkeypatch.setattr(assemble, "train", built)
    monkeypatch.setattr(LyricsModel, step, stepped)
    dropping = {
        "model__spec__query_transformer__options__hidden_dropout": 0.1,
        "model__spec__language_model__options__lora__dropout": 0.1,
    }
    run(settings(tmp_path / "out", stage, optimization__steps=2, **dropping))
    assert seen == {"built": [{False}], "steps": [{True}] * 2, "frozen": [{False}] * 2}


def test_an_objective_can_be_left_out_and_not_all_of_them(tmp_path: Path) -> None:
    run(settings(tmp_path / "out", "pretrain", optimization__steps=1, model__spec__objectives__msp=None))
    assert set(values(tmp_path / "out")[0]) == {"itc", "itm", "icg", "total"}
    with pytest.raises(SpecError, match=r"model\.spec\.objectives: is empty, so stage 1 has nothing to train"):
        run(settings(tmp_path / "none", "pretrain", model__spec__objectives={}))
    with pytest.raises(SpecError, match=r"there is no objectives.mspp. Did you mean 'msp'"):
        settings(tmp_path / "none", "pretrain", model__spec__objectives__mspp=None)


def test_stage_2_starts_from_stage_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings(tmp_path / "first", "pretrain", optimization__steps=1))
    newest = tmp_path / "first" / "checkpoints" / "step-00000001" / TRAINED_FILE
    # So small a rate that what stage 2 has after a step is what it started from.
    slow = {
        "optimization__steps": 1,
        "optimization__learning_rate": 1e-30,
        "model__start_from": str(tmp_path / "first"),
    }
    run(settings(tmp_path / "second", "instruct", **slow))
    assert "tensors from" in capsys.readouterr().err
    before = read_tensors(newest)
    after = read_tensors(tmp_path / "second" / "checkpoints" / "step-00000001" / TRAINED_FILE)
    shared = set(before) & set(after)
    assert any(name.startswith("query_transformer.") for name in shared)
    # A bias that is exactly 0 is moved by that rate, and by no more.
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-29) for name in shared)
    assert any(name.startswith("projection.") for name in after)


def test_a_start_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.start_from=.*: is neither a checkpoint nor a run folder"):
        run(settings(tmp_path / "a", "instruct", model__start_from=str(tmp_path)))


def test_a_data_set_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.sets\.mine: coco: say where its files are"):
        run(settings(tmp_path, "pretrain", data__sets={"mine": "coco"}))


def test_refined_objects_need_an_expert_that_looks(tmp_path: Path) -> None:
    config = settings(tmp_path, "pretrain", data__refined="objects.jsonl", model__spec__refiner=None)
    with pytest.raises(SpecError, match=r"data\.refined=objects\.jsonl: no part of the refiner reads stored objects"):
        run(config)


# --- the commands ---


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("pretrain")(commands.pretrain)
    app.command("finetune")(commands.finetune)
    return app


def test_a_configuration_file_is_trained_and_gone_on_with(tmp_path: Path, app: typer.Typer) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(settings(tmp_path / "ignored", "pretrain")))
    arguments = ["pretrain", str(file), "--out", str(tmp_path / "run"), "--set", "optimization.global_batch=4"]
    done = CliRunner().invoke(app, [*arguments, "--set", "optimization.steps=1"], catch_exceptions=False)
    assert done.stdout.splitlines() == [
        f"done: 1 of 1 steps, in {tmp_path / 'run'}",
        f"next: lyrics finetune CONFIG --set model.start_from={tmp_path / 'run'}",
    ]
    done = CliRunner().invoke(app, [*arguments, "--set", "optimization.steps=2"], catch_exceptions=False)
    assert "after 1 steps" in done.stderr
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]
    assert not (tmp_path / "ignored").exists()
    with pytest.raises(SpecError, match="--resume never"):
        CliRunner().invoke(app, [*arguments, "--resume", "never"], catch_exceptions=False)


def test_the_other_command_is_named(tmp_path: Path, app: typer.Typer) -> None:
    with pytest.raises(SpecError, match=r"is a configuration of stage 'instruct'\. Run: lyrics finetune tiny-stage2"):
        CliRunner().invoke(app, ["pretrain", "tiny-stage2"], catch_exceptions=False)
