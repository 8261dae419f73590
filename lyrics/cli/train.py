"""``lyrics pretrain`` and ``lyrics finetune``: the two stages of training."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lyrics.cli._output import print_text

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


def _train(
    stage: Literal["pretrain", "instruct"], source: str, settings: list[str] | None, resume: str, out: str | None
) -> None:
    from lyrics.cli._overrides import parse_overrides
    from lyrics.core.errors import SpecError
    from lyrics.core.training.config import load_config

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
        print_text(f"{what}: {outcome.step:,} of {config.optimisation.steps:,} steps, in {config.out}")


def _first_rank() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"
