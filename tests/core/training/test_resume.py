"""Kill, stop, resume: the run goes on as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lyrics.core.errors import CheckpointError, SpecError, TrainingError
from lyrics.core.runs.checkpoint import TRAINED_FILE
from lyrics.core.runs.config import TrainConfig
from lyrics.core.training.loop import Outcome
from tests.core.training.processes import Child
from tests.core.training.runs import SlowDisk, losses, run, trained
from tests.core.training.standin import StandIn, config

STEPS = 200
STAGES = ["pretrain", "instruct"]


def long_run(out: Path, stage: str, **changes: object) -> TrainConfig:
    settings = {"optimization__steps": STEPS, "checkpoint__every_steps": 10, "checkpoint__keep": 2}
    return config(out, stage, **(settings | changes))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[object, object]]:
    """Losses and final tensors of a run that nobody disturbs, by stage."""
    found: dict[str, tuple[object, object]] = {}

    def of(stage: str) -> tuple[object, object]:
        if stage not in found:
            out = tmp_path_factory.mktemp(stage)
            assert run(long_run(out, stage)) == Outcome(STEPS, stopped=False)
            found[stage] = losses(out), trained(out)
        return found[stage]

    return of


def killed(out: Path, stage: str, output: Path, draw: random.Random, aimed: bool) -> bool:
    """Start the run, or go on with it, and kill it: ``aimed`` waits for a save that is under way. False when it was
    done before.
    """
    child = Child(output, run, long_run(out, stage)) if not aimed else Child(output, _slowly, long_run(out, stage))
    folder = out / "checkpoints"
    if aimed:
        while child.process.is_alive() and not list(folder.glob("*.tmp-*")):
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.05))
    else:
        time.sleep(draw.uniform(0.05, 0.9))
    done = not child.process.is_alive()
    child.kill()
    code = child.end(20)
    assert code in (0, -signal.SIGKILL), child.text
    return not done


def _slowly(settings: TrainConfig) -> None:
    run(settings, disk=SlowDisk(0.002))


def interrupted(out: Path, stage: str, seed: int, kills: int) -> int:
    """A run with that many kills, half of them aimed, then to its end. Returns how many hit."""
    draw = random.Random(seed)
    aimed = [(seed + k) % 2 == 0 for k in range(kills)]
    hits = [killed(out, stage, out.parent / f"{seed}.txt", draw, aimed=one) for one in aimed]
    assert hits[0] or not aimed[0], "the save that was aimed at was over"
    last = Child(out.parent / f"{seed}.txt", run, long_run(out, stage))
    assert last.end(60) == 0, last.text
    return sum(hits)


@pytest.mark.parametrize(
    ("stage", "seed"), [("pretrain", 0), ("instruct", 1), ("pretrain", 2), ("instruct", 4), ("pretrain", 3)]
)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, stage: str, seed: int, uninterrupted) -> None:
    """T1: one kill -9 each, in a save or anywhere."""
    out = tmp_path / "run"
    interrupted(out, stage, seed, kills=1)
    assert (losses(out), trained(out)) == uninterrupted(stage)


@pytest.mark.parametrize(("stage", "kills"), [("pretrain", 3), ("instruct", 2)])
def test_a_chain_of_kills(tmp_path: Path, stage: str, kills: int, uninterrupted) -> None:
    """T2: the second resume is as right as the first."""
    out = tmp_path / "run"
    assert interrupted(out, stage, 10 + kills, kills) >= 1
    assert (losses(out), trained(out)) == uninterrupted(stage)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_fifty_kills(tmp_path: Path, seed: int, uninterrupted) -> None:
    stage = STAGES[seed % 4 // 2]
    interrupted(tmp_path / "run", stage, seed, kills=1)
    assert (losses(tmp_path / "run"), trained(tmp_path / "run")) == uninterrupted(stage)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 220))
def test_twenty_chains(tmp_path: Path, seed: int, uninterrupted) -> None:
    stage = STAGES[seed % 2]
    interrupted(tmp_path / "run", stage, seed, kills=1 + seed % 6)
    assert (losses(tmp_path / "run"), trained(tmp_path / "run")) == uninterrupted(stage)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_zero(tmp_path: Path, number: int, uninterrupted) -> None:
    """T14: a checkpoint of the very step is committed, and the run goes on from it."""
    out = tmp_path / "run"
    settings = long_run(out, "pretrain", checkpoint__every_steps=None, data__workers=1)
    child = Child(tmp_path / "a.txt", run, settings)
    while not (out / "log.jsonl").exists() or len(losses(out)) < 20:
        assert child.process.is_alive(), child.text
        time.sleep(0.005)
    child.signal_group(number)
    assert child.end(10) == 0, child.text
    step, _ = trained(out)
    assert 20 <= step < STEPS
    assert step == len(losses(out))
    assert "asked to stop" in child.text
    assert run(settings) == Outcome(STEPS, stopped=False)
    assert (losses(out), trained(out)) == uninterrupted("pretrain")


# --- which checkpoint, and whether it is of this run ---


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(config(out))
    return out


@pytest.fixture
def half(whole_run: Path, tmp_path: Path) -> Path:
    """A run of 12 steps, of which 8 are done: its last checkpoint is taken away. Each test has a copy."""
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    return out


def test_a_torn_checkpoint_is_named_passed_over_and_set_aside(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = losses(half)
    torn = half / "checkpoints" / "step-00000008" / TRAINED_FILE
    torn.write_bytes(torn.read_bytes()[:-1])
    run(config(half))
    said = capsys.readouterr().err
    assert f"step-00000008 is not usable and is passed over: {torn}: has" in said
    assert "going on from" in said
    assert "after 4 steps" in said
    assert losses(half) == whole
    names = {path.name for path in (half / "checkpoints").iterdir()}
    assert names == {"step-00000004", "step-00000008", "step-00000008.unusable", "step-00000012"}


def test_no_whole_checkpoint_is_no_fresh_start(half: Path) -> None:
    for folder in (half / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is whole"):
        run(config(half))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"optimization__global_batch": 4}, "global_batch"),
        ({"data__sets__numbers__options__task": "vqa"}, "data"),
    ],
)
def test_a_change_that_repeats_or_misses_samples_is_refused(half: Path, change: dict[str, object], key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"samples would be repeated or missed.*allow_changed=\[{key}\]"):
        run(config(half, **change))
    assert run(config(half, **change, allow_changed=[key])).step == 12


def test_another_number_of_rows_is_another_order(half: Path) -> None:
    with pytest.raises(CheckpointError, match=r"data was \w+, and is \w+ now"):
        run(config(half), rows=96)


def test_another_rate_and_length_may_be_taken(half: Path) -> None:
    assert run(config(half, optimization__steps=14, optimization__learning_rate=1e-3)).step == 14
    assert [step for step, _ in losses(half)] == list(range(1, 15))


def test_fewer_steps_than_were_done_are_refused(half: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 8 finished steps, more than optimization\.steps=6"):
        run(config(half, optimization__steps=6))


def test_the_other_stage_does_not_resume_this_one(half: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is of stage 'pretrain', this run is of 'instruct'.*model.start_from"):
        run(config(half, "instruct"))


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run(config(tmp_path))
    before = losses(tmp_path), trained(tmp_path)
    assert run(config(tmp_path)) == Outcome(12, stopped=False)
    assert (losses(tmp_path), trained(tmp_path)) == before


def test_never_refuses_a_folder_with_checkpoints(half: Path) -> None:
    with pytest.raises(SpecError, match="--resume never"):
        run(config(half), resume_from="never")


@pytest.mark.parametrize("name", ["", "checkpoints/step-00000004"])
def test_a_path_is_resumed_in_another_folder(half: Path, tmp_path: Path, name: str) -> None:
    whole = losses(half)
    done = 4 if name else 8
    run(config(tmp_path / "other"), resume_from=str(half / name))
    assert losses(tmp_path / "other") == whole[done:]


def test_a_path_does_not_overwrite_newer_checkpoints(half: Path) -> None:
    with pytest.raises(SpecError, match=r"has a newer one \(step-00000008\); give another --out"):
        run(config(half), resume_from=str(half / "checkpoints" / "step-00000004"))


def test_a_path_that_is_no_checkpoint(half: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is neither a checkpoint"):
        run(config(tmp_path / "other"), resume_from=str(tmp_path))
    torn = half / "checkpoints" / "step-00000004"
    (torn / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state.json: has 2 bytes"):
        run(config(tmp_path / "other"), resume_from=str(torn))


def test_another_model_is_refused(half: Path) -> None:
    class Other(StandIn):
        def trainable_parameters(self, stage: str):
            found = super().trainable_parameters(stage)
            found.pop("extra").requires_grad_(False)
            return found

    with pytest.raises(
        CheckpointError, match=r"trainable.safetensors: its tensors .* 1 not of this model, such as extra"
    ):
        run(config(half), model=Other())


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    endless = long_run(out, "pretrain", optimization__steps=100_000, checkpoint__every_steps=None)
    child = Child(tmp_path / "a.txt", run, endless)
    while not (out / "log.jsonl").exists():
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="another process is training in this folder"):
        run(long_run(out, "pretrain"))
    child.kill()
    child.end(10)
    assert run(long_run(out, "pretrain", optimization__steps=20)).step == 20, "a killed process keeps nobody out"


def test_a_log_line_that_was_cut_off_is_dropped(half: Path) -> None:
    whole = losses(half)
    text = (half / "log.jsonl").read_text()
    (half / "log.jsonl").write_text(text[: len(text) - 30])
    run(config(half))
    assert losses(half) == whole
    for line in (half / "log.jsonl").read_text().splitlines():
        json.loads(line)
