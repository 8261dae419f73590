"""``lyrics pretrain`` and ``lyrics finetune``: the two stages of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lyrics.cli._output import JsonFlag, print_json, print_text
from lyrics.core.errors import TrainingError

if TYPE_CHECKING:
    from lyrics.core.training.feature_plan import FeaturePlan

ConfigArgument = Annotated[str, typer.Argument(help="A YAML file, or a recipe's name, such as tiny-stage1.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a value of the configuration; may be given several times."
    ),
]
Resume = Annotated[
    str, typer.Option(help="auto: the newest whole checkpoint of the run folder; never; or a checkpoint's path.")
]
Out = Annotated[str | None, typer.Option(help="Run folder; short for --set out=FOLDER.")]


def pretrain(config: ConfigArgument, settings: Settings = None, resume: Resume = "auto", out: Out = None) -> None:
    """Stage 1: align the query transformer with ITC, ITM, ICG and MSP. Also under torchrun.

    SIGTERM and Ctrl-C save and exit with 0; the same command then goes on.
    """
    _train("pretrain", config, settings, resume, out)


def finetune(config: ConfigArgument, settings: Settings = None, resume: Resume = "auto", out: Out = None) -> None:
    """Stage 2: instruction tuning with the language model. Also under torchrun.

    SIGTERM and Ctrl-C save and exit with 0; the same command then goes on.
    """
    _train("instruct", config, settings, resume, out)


def plan(
    config: ConfigArgument,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that the run has.")] = 1,
    memory: Annotated[float, typer.Option(min=0.1, help="Memory of a device in GB.")] = 80.0,
    throughput: Annotated[
        float | None, typer.Option(min=1e-6, help="Samples a second of one device, if known.")
    ] = None,
    measured: Annotated[Path | None, typer.Option(help="A run folder whose log gives the throughput.")] = None,
    host: Annotated[
        Path | None, typer.Option(help="What 'lyrics bench host' wrote where it will train. [stage 1: measured here]")
    ] = None,
    refiner: Annotated[float | None, typer.Option(min=1e-6, help="Images a second of one device's refiner.")] = None,
    loader: Annotated[float | None, typer.Option(min=1e-6, help="Samples a second of one loader process.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Different images of the data sets.  [default: one for each sample]")
    ] = None,
    settings: Settings = None,
    json: JsonFlag = False,
) -> None:
    """What a run will need, before it is launched, and what bounds it. Exit code 1 when it does not fit."""
    import dataclasses

    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import SpecError
    from lyrics.core.runs.config import load_config

    if throughput is not None and measured is not None:
        raise SpecError("--throughput and --measured: give one of them.")
    loaded = load_config(config, parse_overrides(settings))

    from lyrics.core.training.planner import measured_throughput, plan_run

    speed = measured_throughput(measured) if measured is not None else throughput
    beside = {} if refiner is None else {"refiner": refiner}
    if loader is not None:
        beside["loader"] = loader * max(1, loaded.data.workers)
    if host is not None or loaded.stage == "pretrain":
        from lyrics.workflows.bench.host import host_speed

        beside["host"] = host_speed(loaded, gpus, host)
    found = plan_run(loaded, gpus, samples_per_s=speed, beside=beside, images=images)
    fits = found.memory.total <= memory * 1e9
    if json:
        print_json(
            dataclasses.asdict(found)
            | {"total_bytes": found.memory.total, "seconds": found.seconds, "fits": fits, "bound": found.bound}
        )
    else:
        needed = dataclasses.asdict(found.memory)
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in needed.items())
        accumulated = f" in {found.micro_batches} micro-batches" if found.micro_batches > 1 else ""
        print_text(f"{found.steps:,} steps of {loaded.optimization.global_batch:,}: {found.samples:,} samples")
        print_text(f"on each of {gpus}: {found.samples_per_device:,} samples a step{accumulated}")
        print_text(f"memory of a device: {found.memory.total / 1e9:.2f} GB of {memory:g} GB ({parts})")
        if found.seconds is None:
            print_text("time: not known; give --throughput, or --measured with the folder of a short run")
        else:
            print_text(f"time: {found.seconds / 3600:,.1f} hours at {found.samples_per_s:,.1f} samples/s")
        if found.speeds:
            known = ", ".join(f"{name} {speed:,.0f}" for name, speed in sorted(found.speeds.items()))
            unknown = [name for name in ("step", "host", "refiner", "loader") if name not in found.speeds]
            missing = f"; not known: {', '.join(unknown)}" if unknown else ""
            print_text(f"samples/s of a device from each part: {known}{missing}")
            print_text(f"of these the {found.bound} bounds the run")
        for name, size in found.stored.items():
            print_text(f"stored for every sample view, {name}: {size / 1e9:,.1f} GB")
        if found.features is not None:
            _print_features(found.features)
    if not fits:
        short = found.memory.total / 1e9 - memory
        raise TrainingError(
            f"it does not fit: {short:.2f} GB too much. Set optimization.micro_batch lower (stage 2), "
            "optimization.frozen_precision=bf16, strategy=fsdp2 with more devices, "
            "model.spec.language_model.options.gradient_checkpointing=true, "
            "model.spec.language_model.options.quantization=4bit, or a smaller language model."
        )


def _print_features(plan: FeaturePlan) -> None:
    """The refiner in training against data.features, in days, terabytes and reads a second."""

    def days(seconds: float | None) -> str:
        return "not known" if seconds is None else f"{seconds / 86_400:,.1f} days"

    print_text(f"experts in training (online): {days(plan.online_seconds)}")
    stored = f"{plan.stored_bytes / 1e12:,.2f} TB, {plan.bytes_per_image:,} bytes each"
    print_text(
        f"data.features: {plan.images:,} images refined once in {days(plan.refine_seconds)}, then trained on in "
        f"{days(plan.train_seconds)}; {stored}"
    )
    if plan.reads_per_s is not None and plan.read_bytes_per_s is not None:
        print_text(f"data.features reads {plan.reads_per_s:,.0f} images/s, {plan.read_bytes_per_s / 1e6:,.1f} MB/s")
    if plan.online_seconds is None or plan.train_seconds is None:
        print_text("for these times give --throughput (of the step without experts) and --refiner")


def _train(
    stage: Literal["pretrain", "instruct"], source: str, settings: list[str] | None, resume: str, out: str | None
) -> None:
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import SpecError
    from lyrics.core.runs.config import load_config

    overrides = parse_overrides(settings)
    if out is not None:
        overrides["out"] = out
    config = load_config(source, overrides)
    if config.stage != stage:
        right = {"pretrain": "lyrics pretrain", "instruct": "lyrics finetune"}[config.stage]
        raise SpecError(f"{source}: is a configuration of stage {config.stage!r}. Run: {right} {source}")

    # A mistake in the configuration has been reported by now; what follows imports torch.
    from lyrics.core.training.assemble import run
    from lyrics.core.training.launch import leave

    outcome = run(config, resume_from=resume)
    leave()
    if _first_rank():
        what = "stopped; the same command goes on" if outcome.stopped else "done"
        print_text(f"{what}: {outcome.step:,} of {config.optimization.steps:,} steps, in {config.out}")
        if not outcome.stopped:
            then = "finetune CONFIG --set model.start_from=" if stage == "pretrain" else 'ask IMAGE "QUESTION" --model '
            print_text(f"next: lyrics {then}{config.out}")


def _first_rank() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"
