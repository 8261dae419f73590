"""Ranks and micro-batches do not matter: the same samples, losses and gradients, and decisions that all ranks share."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.sampler import StepSampler
from lyrics.core.errors import SpecError, TrainingError
from lyrics.core.runs.checkpoint import finished
from lyrics.core.training import launch
from lyrics.core.training.batches import MicroBatches
from lyrics.core.training.loop import Outcome
from tests.core.training.processes import PATIENCE, all_end, ranks
from tests.core.training.runs import losses, run, trained
from tests.core.training.standin import StandIn, config


def values(out: Path) -> list[dict[str, float]]:
    return [{name: float.fromhex(text) for name, text in exact.items()} for _, exact in losses(out)]


def assert_close(found: list[dict[str, float]], wanted: list[dict[str, float]], tolerance: float) -> None:
    assert len(found) == len(wanted) > 0
    for have, want in zip(found, wanted, strict=True):
        assert have.keys() == want.keys()
        for name in want:
            assert math.isclose(have[name], want[name], rel_tol=tolerance, abs_tol=tolerance * 0.1), name


def plain_run(settings) -> Outcome:
    """Without dropout, whose masks depend on who sees a sample."""
    return run(settings, model=StandIn(dropout=0.0))


def double_run(settings) -> Outcome:
    return run(settings, model=StandIn(dropout=0.0, dtype=torch.float64))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    newest = max(finished(out / "checkpoints"))
    return load_file(newest / "trainable.safetensors") | load_file(newest / "optim.safetensors")


@pytest.mark.parametrize(("stage", "count"), [("pretrain", 2), ("instruct", 2), ("pretrain", 4)])
def test_ranks_equal_one(tmp_path: Path, stage: str, count: int) -> None:
    """T6, over 20 steps in fp32."""
    settings = {"optimization__steps": 20, "optimization__global_batch": 8}
    with ranks(count, tmp_path, plain_run, config(tmp_path / "many", stage, **settings)) as children:
        all_end(children, 90)
    plain_run(config(tmp_path / "one", stage, **settings))
    assert_close(values(tmp_path / "many"), values(tmp_path / "one"), 1e-6)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("micro", [None, 2])
def test_one_step_of_two_ranks_in_double(tmp_path: Path, stage: str, micro: int | None) -> None:
    """T6: Adam's first moment after a step is a tenth of the clipped gradient."""
    settings = {"optimization__steps": 1, "optimization__micro_batch": micro, "optimization__clip_norm": 1e9}
    with ranks(2, tmp_path, double_run, config(tmp_path / "two", stage, **settings)) as children:
        all_end(children, 90)
    double_run(config(tmp_path / "one", stage, **settings | {"optimization__micro_batch": None}))
    two, one = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    assert two.keys() == one.keys()
    moved = 0
    for name, want in one.items():
        assert torch.allclose(two[name], want, rtol=1e-12, atol=1e-12), name
        moved += name.endswith("exp_avg") and bool(want.any())
    assert moved > 5


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("micro", [16, 5, 4])
def test_accumulation_changes_nothing(tmp_path: Path, stage: str, micro: int) -> None:
    """T7: 1 x 64 = 4 x 16 = 13 x 5 = 16 x 4, with another number of words in each micro-batch."""
    settings = {"optimization__steps": 6, "optimization__global_batch": 64}
    plain_run(config(tmp_path / "whole", stage, **settings))
    plain_run(config(tmp_path / "parts", stage, **settings, optimization__micro_batch=micro))
    assert_close(values(tmp_path / "parts"), values(tmp_path / "whole"), 1e-6)


def test_negatives_of_a_micro_batch_are_accepted_only_when_asked_for(tmp_path: Path) -> None:
    """T7: the contrastive loss is no sum over micro-batches."""
    settings = {"model__spec__objectives": {"itc": "itc"}, "optimization__micro_batch": 4}
    with pytest.raises(SpecError, match=r"makes 2 micro-batches of a step, but the loss 'itc' compares every sample"):
        run(config(tmp_path, **settings))
    assert not list(tmp_path.iterdir()), "refused before anything is written"
    assert run(config(tmp_path, **settings, optimization__itc_negatives="micro-batch")).step == 12
    # One micro-batch per step is no accumulation.
    assert run(config(tmp_path / "b", **settings | {"optimization__micro_batch": 8})).step == 12


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_gradients_are_exchanged_once_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """All but the last of four micro-batches are run without an exchange."""
    entered = []
    original = Accelerator.no_sync
    monkeypatch.setattr(Accelerator, "no_sync", lambda self, model: entered.append(1) or original(self, model))
    run(config(tmp_path, stage, optimization__steps=5, optimization__micro_batch=2))
    assert len(entered) == 5 * 3


class Seeded(StandIn):
    """Writes down what the global generator was seeded with."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def instruction_step(self, batch):
        with (self.folder / f"{os.environ.get('RANK', '0')}").open("a") as file:
            file.write(f"{torch.initial_seed()}\n")
        return super().instruction_step(batch)


def seeded_run(settings, folder: Path) -> None:
    run(settings, model=Seeded(folder))


def test_dropout_differs_between_steps_micro_batches_and_ranks(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    settings = config(tmp_path / "run", "instruct", optimization__steps=3, optimization__micro_batch=2)
    with ranks(2, tmp_path, seeded_run, settings, tmp_path / "seeds") as children:
        all_end(children, 60)
    seeds = [line for file in (tmp_path / "seeds").iterdir() for line in file.read_text().split()]
    assert len(seeds) == 3 * 2 * 2
    assert len(set(seeds)) == len(seeds)


# --- T8: the same samples, whatever the ranks, workers and micro-batches ---


@pytest.mark.parametrize("micro", [None, 1, 5, 7, 100])
def test_micro_batches_share_out_a_step(micro: int | None) -> None:
    for count in (1, 2, 3):
        parts = [MicroBatches(StepSampler(24, start=3, stop=5, rank=r, ranks=count), micro) for r in range(count)]
        read = [list(part) for part in parts]
        assert all(len(found) == len(part) == 2 * part.per_step for found, part in zip(read, parts, strict=True))
        for step in range(2):
            of_step = [
                batch for rank in read for batch in rank[step * parts[0].per_step : (step + 1) * parts[0].per_step]
            ]
            assert max(map(len, of_step)) <= (micro or 24)
            assert sorted(chain.from_iterable(of_step)) == list(range((3 + step) * 24, (4 + step) * 24))


def test_micro_batches_keep_groups_whole_or_are_refused() -> None:
    def steps() -> StepSampler:
        return StepSampler(24, start=0, stop=1, rank=1, ranks=2, group=2)

    pieces = list(MicroBatches(steps(), 8))
    assert pieces == [[*range(12, 20)], [*range(20, 24)]]
    with pytest.raises(SpecError, match=r"micro-batch of 5 does not hold whole groups of 2 \(data.group\); take 4"):
        MicroBatches(steps(), 5)


def test_ten_million_samples_come_once_each() -> None:
    """Over ranks that change on the way: a bit for every row."""
    import numpy as np

    rows, batch = 10_000_000, 50_000
    mixture = Mixture([Source("a", rows)], seed=5)
    seen = np.zeros(rows, dtype=bool)
    for step in range(rows // batch):
        count = (1, 2, 5)[step * 3 // (rows // batch)]
        for rank in range(count):
            positions = StepSampler(batch, start=0, stop=1000, rank=rank, ranks=count).positions(step)
            _, found = mixture.many(np.arange(positions.start, positions.stop))
            assert not seen[found].any()
            seen[found] = True
    assert seen.all()


class Watched(StandIn):
    """Writes down which samples a step has seen."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def pretraining_step(self, batch, *, seed: int, step: int):
        with self.file.open("a") as file:
            file.write(json.dumps([step, list(batch.positions), list(batch.image_ids)]) + "\n")
        return super().pretraining_step(batch, seed=seed, step=step)


def watched_run(settings, file: Path) -> None:
    run(settings, model=Watched(file))


def test_ranks_and_workers_may_change_on_the_way(tmp_path: Path) -> None:
    """T8: 1 -> 2 -> 3 -> 1 ranks, 0 -> 2 -> 1 -> 0 workers; every step has the samples of an undisturbed run."""
    (tmp_path / "seen").mkdir()

    def part(number: int, count: int, workers: int, steps: int) -> None:
        settings = config(
            tmp_path / "run", optimization__steps=steps, optimization__global_batch=12, data__workers=workers
        )
        with ranks(count, tmp_path, watched_run, settings, tmp_path / "seen" / f"{number}") as children:
            all_end(children, 90)

    for number, (count, workers, steps) in enumerate([(1, 0, 3), (2, 2, 7), (3, 1, 9), (1, 0, 12)]):
        part(number, count, workers, steps)
    watched_run(
        config(tmp_path / "one", optimization__steps=12, optimization__global_batch=12), tmp_path / "undisturbed"
    )

    def by_step(files: list[Path]) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        for file in files:
            for line in file.read_text().splitlines():
                step, positions, rows = json.loads(line)
                found.setdefault(step, []).extend(zip(positions, rows, strict=True))
        return {step: sorted(pairs) for step, pairs in found.items()}

    wanted = by_step([tmp_path / "undisturbed"])
    assert by_step(sorted((tmp_path / "seen").iterdir())) == wanted
    assert sorted(wanted) == list(range(12))
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 13))


# --- T10: what is not finite on one rank is skipped by all ---


def poisoned_run(settings, poison: dict[int, str]) -> None:
    model = StandIn(dropout=0.0)
    model.poison = poison
    run(settings, model=model)


@pytest.mark.parametrize(
    ("stage", "loss", "micro"),
    [("pretrain", "icg", None), ("pretrain", "msp", 2), ("instruct", "answer", None), ("instruct", "answer", 2)],
)
@pytest.mark.parametrize("bad_rank", [0, 1])
def test_one_rank_s_bad_loss_is_skipped_by_all(
    tmp_path: Path, stage: str, loss: str, micro: int | None, bad_rank: int
) -> None:
    # Step 4 (the fourth) has positions 24 to 31; the second rank has the second half of them.
    position = 24 + bad_rank * 4
    settings = {"checkpoint__every_steps": 1, "checkpoint__keep": 20, "optimization__micro_batch": micro}
    with ranks(2, tmp_path, poisoned_run, config(tmp_path / "run", stage, **settings), {position: loss}) as children:
        all_end(children, 30)
    before, after = (
        load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "trainable.safetensors") for step in (3, 4)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["skipped"]] == [4]
    assert math.isfinite(lines[-1]["losses"]["total"])
    (anomaly,) = [json.loads(line) for line in (tmp_path / "run" / "anomalies.jsonl").read_text().splitlines()]
    assert (anomaly["step"], anomaly["rank"], anomaly["losses"]) == (4, bad_rank, [loss])
    first = 24 + bad_rank * 4
    assert anomaly["positions"] == list(range(first, first + (micro or 4)))


def test_five_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    poison = {8 * step + 3: "icg" for step in (1, 4, 5, 6, 7, 8, 9)}
    with pytest.raises(TrainingError, match=r"5 steps in a row, up to step 9, .*anomalies.jsonl names their samples"):
        poisoned_run(config(tmp_path), poison)
    # Had the run been resumed after step 8, the four before would count.
    assert trained(tmp_path)[0] == 8
    with pytest.raises(TrainingError, match="5 steps in a row, up to step 9"):
        poisoned_run(config(tmp_path), poison)
    assert run(config(tmp_path)).step == 12
    # Each step was recorded once, though some were run several times.
    noted = [json.loads(line)["step"] for line in (tmp_path / "anomalies.jsonl").read_text().splitlines()]
    assert noted == [2, 5, 6, 7, 8]


class Exploding(StandIn):
    """Finite losses, and a gradient that is not."""

    def pretraining_step(self, batch, *, seed: int, step: int):
        found = super().pretraining_step(batch, seed=seed, step=step)
        if step == 2:
            root = (self.extra.sum() - self.extra.sum().detach()).sqrt()  # 0, with an infinite slope
            found["icg"] = type(found["icg"])(found["icg"].sum + root, found["icg"].count)
        return found


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    model = Exploding()
    run(config(tmp_path), model=model)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [None, None, "gradient"] + [None] * 9
    (anomaly,) = [json.loads(line) for line in (tmp_path / "anomalies.jsonl").read_text().splitlines()]
    assert anomaly["not_finite"] == "gradient"
    assert anomaly["positions"] == list(range(16, 24))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# --- T15: a rank that is gone ---


def test_the_others_end_when_one_is_killed(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", optimization__steps=100_000, timeout_minutes=0.1, data__workers=1)
    with ranks(2, tmp_path, run, settings) as children:
        while not finished(tmp_path / "run" / "checkpoints"):
            assert children[0].process.is_alive(), children[0].text
            time.sleep(0.05)
        children[1].kill(signal.SIGKILL)
        assert children[1].end(5) == -signal.SIGKILL
        assert children[0].end(6 + 10) == 1
        assert "TrainingError: rank 0 of 2 lost the others" in children[0].text
        assert "Start all ranks again to go on from the newest checkpoint in" in children[0].text
        deadline = time.monotonic() + 14 * PATIENCE
        while any(children[rank].group_alive() for rank in (0, 1)):
            assert time.monotonic() < deadline, "loader workers outlive their rank"
            time.sleep(0.2)
    step, _ = trained(tmp_path / "run")
    again = config(tmp_path / "run", optimization__steps=step + 3)
    with ranks(2, tmp_path, run, again) as children:
        all_end(children, 60)
    assert f"after {step} steps" in children[0].text


def test_a_signal_to_one_rank_stops_both(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", optimization__steps=100_000, checkpoint__every_steps=None)
    with ranks(2, tmp_path, run, settings) as children:
        while not (tmp_path / "run" / "log.jsonl").exists():
            assert children[0].process.is_alive(), children[0].text
            time.sleep(0.05)
        children[1].kill(signal.SIGTERM)
        all_end(children, 20)
    assert trained(tmp_path / "run")[0] == len(losses(tmp_path / "run"))


def failing_disk_run(settings) -> None:
    from tests.core.training.runs import FaultyDisk

    run(settings, disk=FaultyDisk(at=1, how="ENOSPC", lasting=True))


def test_failing_saves_stop_all_ranks(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", optimization__steps=1000)
    with ranks(2, tmp_path, failing_disk_run, settings) as children:
        assert [child.end(60) for child in children] == [1, 1]
    assert "2 saves in a row failed: [Errno 28] No space left on device" in children[0].text
    assert "2 saves in a row failed; the first rank says why" in children[1].text
    assert not finished(tmp_path / "run" / "checkpoints")


def test_a_rank_that_cannot_start_ends_the_others(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    with ranks(2, tmp_path, run, config(tmp_path / "run")) as children:
        assert [child.end(30) for child in children] == [1, 1]
    assert "checkpoints is whole" in children[0].text
    assert "another rank could not start" in children[1].text


def looking_for_what_is_left(settings, at: int) -> None:
    """Train, and find no wrapped model afterwards: what is freed after the process group may wait for it for ever."""
    from lyrics.core.training.loop import train
    from tests.core.training.standin import COLLATE, Numbers

    class Breaking(StandIn):
        def pretraining_step(self, batch, *, seed: int, step: int):
            assert step != at, "broken on purpose"
            return super().pretraining_step(batch, seed=seed, step=step)

    arguments = (settings, Breaking(), {"numbers": Numbers()}, COLLATE["pretrain"])
    if at < 0:
        train(*arguments)
        assert wrapped_models() == 0
    else:
        with pytest.raises(AssertionError, match="on purpose") as caught:
            train(*arguments)
        assert wrapped_models() == 0, "the error that is still at hand keeps nothing"
        assert caught.value is not None
    assert torch.distributed.is_initialized()
    launch.leave()
    assert not torch.distributed.is_initialized()


def wrapped_models() -> int:
    return sum(type(one) is DistributedDataParallel for one in gc.get_objects())


@pytest.mark.parametrize("at", [-1, 3])
def test_nothing_of_a_run_outlives_it(tmp_path: Path, at: int) -> None:
    with ranks(2, tmp_path, looking_for_what_is_left, config(tmp_path / "run"), at) as children:
        all_end(children, 60)


# --- as many processes as were asked for ---


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    with ranks(3, tmp_path, run, config(tmp_path / "run")) as children:
        assert {child.end(30) for child in children} == {1}
    assert "a global batch of 8 cannot be shared equally by 3 ranks" in children[0].text


def test_sharded_parameters_are_refused() -> None:
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        launch.check_kind(kind)
    with pytest.raises(SpecError, match="accelerate is configured for FSDP"):
        launch.check_kind(DistributedType.FSDP)


def test_the_number_of_ranks_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"ranks: 2 processes were asked for, and 1 are running\. Start them with: torchrun"
    ):
        run(config(tmp_path, ranks=2))
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    launch.check_ranks(1, None)
    launch.check_ranks(1, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="2 processes were launched"):
        launch.check_ranks(1, None)
    launch.check_ranks(2, None)
    monkeypatch.delenv("WORLD_SIZE")
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment of its one process.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(SpecError, match="has started one"):
        launch.check_ranks(1, None)
    launch.check_ranks(1, 1)
