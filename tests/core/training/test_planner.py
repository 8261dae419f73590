"""``lyrics plan``: what a run needs, before it is launched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lyrics.core.errors import SpecError
from lyrics.core.loading import build_model
from lyrics.core.runs.config import dump_config, load_config
from lyrics.core.training.planner import language_model_bytes, measured_throughput, plan_run
from tests.commands import Run
from tests.core.small import small
from tests.core.training.test_assemble import settings


def test_numbers_follow_from_the_configuration(tmp_path: Path) -> None:
    config = settings(tmp_path, "instruct", optimization__micro_batch=2)
    one, two = plan_run(config, 1), plan_run(config, 2, samples_per_s=3.0)
    assert (one.samples_per_device, one.micro_batches, two.samples_per_device, two.micro_batches) == (8, 4, 4, 2)
    assert one.samples == two.samples == 4 * 8
    assert (one.seconds, two.seconds) == (None, 32 / 6)
    assert one.memory == two.memory
    whole = plan_run(settings(tmp_path, "instruct"), 1)
    assert whole.memory.working > 2 * one.memory.working
    assert whole.memory.weights == one.memory.weights
    half = plan_run(settings(tmp_path, "instruct", optimization__precision="bf16"), 1)
    assert half.memory.weights == whole.memory.weights
    assert half.memory.working < whole.memory.working
    with pytest.raises(SpecError, match=r"global_batch=8 cannot be shared equally by 3 devices; take 6"):
        plan_run(config, 3)


def test_a_language_model_in_half_and_in_shares() -> None:
    """Vicuna-13B in stage 2, on the meta device: 40 layers, and embeddings and head of 32,000 words."""
    config = load_config("paper-stage2")
    slot = {"language_model": config.model.spec.language_model.model_dump()}
    model = build_model(small(**slot), weights="meta")
    model.trainable_parameters("instruct")
    layer, both_ends = 317_204_480, 2 * 32_000 * 5_120 + 5_120
    whole = 40 * layer + both_ends

    def counted(gpus: int, **changes: str) -> tuple[int, int]:
        overrides = {path.replace("__", "."): value for path, value in changes.items()}
        return language_model_bytes(config.with_overrides(overrides), model.language_model, gpus)

    assert counted(16) == (2 * whole, 0)
    assert counted(16, optimization__frozen_precision="fp32") == (4 * whole, 0)
    assert counted(1, strategy="fsdp2") == (2 * whole, 0)
    assert counted(16, strategy="fsdp2") == (2 * whole // 16, 2 * (both_ends + 2 * layer))
    assert counted(16, strategy="fsdp2", stage="pretrain") == (2 * whole // 16, 0), "stage 1 does not run it"


def test_shares_are_part_of_the_plan(tmp_path: Path) -> None:
    config = settings(tmp_path, "instruct")
    model = build_model(config.model.spec, weights="meta")
    model.trainable_parameters("instruct")
    alone = plan_run(config, 2).memory
    (whole, _), shared = (
        language_model_bytes(config, model.language_model, 2),
        config.model_copy(update={"strategy": "fsdp2"}),
    )
    held, gathered = language_model_bytes(shared, model.language_model, 2)
    found = plan_run(shared, 2).memory
    assert 0 < held < 0.6 * whole
    assert found.weights == alone.weights - whole + held
    assert found.working == alone.working + gathered > alone.working
    assert (found.gradients, found.optimizer) == (alone.gradients, alone.optimizer)
    full = {"strategy": "fsdp2", "model.spec.language_model.options.adaptation": "full"}
    with pytest.raises(SpecError, match="adaptation=full leaves none"):
        plan_run(config.with_overrides(full), 2)


def test_the_command(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(settings(tmp_path / "out", "pretrain")))
    done = run("plan", str(file), "--gpus", "2", "--throughput", "4", "--json")
    assert done.code == 0, done.err
    assert done.data["fits"]
    assert done.data["seconds"] == 4 * 8 / 8
    assert done.data["total_bytes"] == sum(done.data["memory"].values())
    text = run("plan", str(file)).out
    assert "4 steps of 8: 32 samples" in text
    assert "time: not known; give --throughput" in text
    done = run("plan", str(file), "--memory", "0.1", "--set", "optimization.global_batch=64")
    assert done.code in (0, 1)
    if done.code:
        assert "it does not fit" in done.err
    assert not (tmp_path / "out").exists()


def test_throughput_of_a_run(tmp_path: Path, run: Run) -> None:
    lines = [{"step": n, "samples_per_s": 100.0 if n == 0 else 8.0 + n % 2} for n in range(11)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "environment.json").write_text('{"ranks": 2}')
    assert measured_throughput(tmp_path) in (4.0, 4.25, 4.5)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "samples_per_s": 3}\n')
    with pytest.raises(SpecError, match="has 1 steps in its log"):
        measured_throughput(tmp_path)
    with pytest.raises(SpecError, match="is no run folder with a log"):
        measured_throughput(tmp_path / "nowhere")
    done = run("plan", "tiny-stage1", "--throughput", "4", "--measured", str(tmp_path))
    assert (done.code, "give one of them" in done.err) == (2, True)
