"""What a training run costs beyond its steps: ``python benchmarks/training.py --help``. Nothing is downloaded.

- *loop*: ``lyrics pretrain`` and ``lyrics finetune`` at tiny size (recipes ``tiny-stage1``, ``tiny-stage2``) against
  the bare step (forward and backward, clipping, AdamW in five lines) on the same batches and weights, in turns in one
  process. Compared are the medians of a step without the time that it waited for data. On a machine whose speed drifts
  by more than the loop costs, that says little, so
- *loop alone*: the same comparison for a model that has the same trained tensors and computes next to nothing: what
  the loop adds to its step, in milliseconds, as a share of the real bare step.
- *saving*: the same run with an asynchronous save every so many steps, and without.

Losses of the loop and of the bare steps are compared before anything is reported. Writes
``benchmarks/results/training.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lyrics import build_model
from lyrics.data import Collator, SampleStream, StepSampler
from lyrics.training import (
    MicroBatches,
    StepLoader,
    TrainConfig,
    TrainingOutput,
    build_datasets,
    build_mixture,
    build_optimizer,
    learning_rate,
    load_config,
    total_loss,
    train,
)
from lyrics.types import Loss
from lyrics.workflows.bench.machine import environment

RESULTS = Path(__file__).parent / "results"
# The first steps of a run are slower: memory is taken, kernels are chosen.
SETTLED = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of a run [20]")
    parser.add_argument("--batch", type=int, default=32, help="samples of a step [32, as in the recipes]")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each way gets [3]")
    parser.add_argument("--save-every", type=int, default=5, help="steps between saves, where there are any [5]")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    given = parser.parse_args()
    results: dict[str, Any] = {"benchmark": "training", "load_at_start": os.getloadavg(), **environment()}
    for recipe in ("tiny-stage1", "tiny-stage2"):
        results[recipe] = measure(recipe, given)
        print(recipe, json.dumps(results[recipe], indent=2))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=2) + "\n")


def measure(recipe: str, given: argparse.Namespace) -> dict[str, Any]:
    """All three ways in turns; who begins changes from turn to turn."""
    settings = {
        "optimization.steps": given.steps,
        "optimization.global_batch": given.batch,
        "model.weights": "random",  # which changes nothing about the cost
        "evaluation.every_steps": None,
        "data.workers": 0,
        "checkpoint.every_steps": None,
        # Dropout is drawn anew by every way, and losses are to be compared.
        "model.spec.query_transformer.options.hidden_dropout": 0.0,
        "model.spec.query_transformer.options.attention_dropout": 0.0,
        "model.spec.language_model.options.lora.dropout": 0.0,
    }
    config = load_config(recipe, settings)
    batches = collated(config)
    ways = {"bare": [], "loop": [], "loop with saves": []}
    losses: dict[str, list[float]] = {}
    for turn in range(given.rounds):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            if way == "bare":
                seconds, losses[way] = bare(config, batches)
            else:
                every = given.save_every if way == "loop with saves" else None
                seconds, losses[way] = loop(config.with_overrides({"checkpoint.every_steps": every}), batches)
            ways[way] += seconds[SETTLED:]
    for way in ("loop", "loop with saves"):
        worst = max(abs(one - other) / abs(one) for one, other in zip(losses["bare"], losses[way], strict=True))
        assert worst < 1e-4, f"the losses of {way} differ from the bare step's by {worst}"
    own = loop_alone(config, batches[0], given.rounds)
    median = {way: statistics.median(seconds) for way, seconds in ways.items()}
    mean = {way: statistics.fmean(seconds) for way, seconds in ways.items()}
    return {
        "batch": given.batch,
        "median_step_s": median,
        "mean_step_s": mean,
        "loop_alone_ms": own,
        "loop_alone_adds": own["difference"] / 1e3 / median["bare"],
        "loop_adds": median["loop"] / median["bare"] - 1,
        "saves_every_steps": given.save_every,
        "saving_adds_to_median": median["loop with saves"] / median["loop"] - 1,
        "saving_adds_to_mean": mean["loop with saves"] / mean["loop"] - 1,
        "all_seconds": ways,
    }


class Idle(nn.Module):
    """The trained tensors of a model, and a loss that reads one number of each."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.named = dict(parameters)
        self.kept = nn.ParameterList(self.named.values())

    def trainable_parameters(self, stage: str) -> dict[str, nn.Parameter]:
        return self.named

    def pretraining_step(self, batch: Any, *, seed: int, step: int) -> dict[str, Loss]:
        return self.instruction_step(batch)

    def instruction_step(self, batch: Any) -> dict[str, Loss]:
        return {"loss": Loss(torch.stack([one.flatten()[0] for one in self.named.values()]).sum(), 1)}

    def forward(self, batch: Any, *, seed: int, step: int) -> TrainingOutput:
        return TrainingOutput(loss=total_loss(self.instruction_step(batch))[0])


def loop_alone(config: TrainConfig, batch: Any, rounds: int, steps: int = 60) -> dict[str, float]:
    """Median milliseconds of a step of ``Idle``, bare and in the loop, and their difference."""
    idle = config.with_overrides({"optimization.steps": steps, "optimization.global_batch": 1})
    found: dict[str, list[float]] = {"bare": [], "loop": []}
    for _ in range(rounds):
        for way, run in (("bare", bare), ("loop", loop)):
            model = Idle(prepared(config).trainable_parameters(config.stage))
            found[way] += run(idle, [batch] * steps, model)[0][SETTLED:]
    median = {way: 1e3 * statistics.median(seconds) for way, seconds in found.items()}
    return {**median, "difference": median["loop"] - median["bare"]}


def prepared(config: TrainConfig) -> Any:
    """The model that a run begins with."""
    torch.manual_seed(config.seed)
    return build_model(config.model.spec, weights=config.model.weights)


def collated(config: TrainConfig) -> list[Any]:
    """The batches of all steps."""
    datasets = build_datasets(config.data.sets, "data.sets")
    model = prepared(config)
    collator = Collator(config.stage, model.processor, seed=config.seed, codec=model.spec.codec)
    sampler = StepSampler(config.optimization.global_batch, start=0, stop=config.optimization.steps)
    stream = SampleStream(build_mixture(config, datasets), datasets)
    return [batch for (batch,), _ in StepLoader(stream, MicroBatches(sampler, None), collator, 0)]


def bare(config: TrainConfig, batches: Sequence[Any], model: Any = None) -> tuple[list[float], list[float]]:
    """Seconds and total loss of each step, with nothing around it."""
    model = (model or prepared(config)).train()
    parameters = model.trainable_parameters(config.stage)
    optimizer = build_optimizer(parameters, config.optimization)
    seconds, losses = [], []
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(config, step)
        loss = model(batch, seed=config.seed, step=step).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.optimization.clip_norm)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def rate(config: TrainConfig, step: int) -> float:
    own = config.optimization
    return learning_rate(step, steps=own.steps, peak=own.learning_rate, warmup_share=own.warmup_share)


def loop(config: TrainConfig, batches: Sequence[Any], model: Any = None) -> tuple[list[float], list[float]]:
    """The same of a run's log: seconds without the wait for data."""
    waiting = iter(batches)
    with tempfile.TemporaryDirectory() as folder:
        config = config.with_overrides({"out": folder + "/run"})
        datasets = build_datasets(config.data.sets, "data.sets")
        train(config, model or prepared(config), datasets, lambda examples: next(waiting))
        lines = [json.loads(line) for line in Path(folder, "run", "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_s" in line]
    return [line["step_s"] - line["wait_s"] for line in steps], [line["losses"]["total"] for line in steps]


if __name__ == "__main__":
    main()
