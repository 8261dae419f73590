"""What every ablation is made of: two stages of training for a variant, and its evaluation.

What is finished is not done again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.contracts import Benchmark
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.evaluation.benchmark import Answerer
from lyrics.core.evaluation.runner import Result, evaluate, evaluate_under
from lyrics.core.json_reading import read_text
from lyrics.core.loading import build_model
from lyrics.core.resolve import resolve, wire
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.spec import parse_yaml
from lyrics.core.trained import start_from
from lyrics.core.training import assemble
from lyrics.core.training.loop import say
from lyrics.workflows.ablations.variants import show_blank

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

#: What may differ between two calls: where a run is, and how it is carried out, not what comes of it.
_INCIDENTAL = (
    *("out", "device", "ranks", "strategy", "timeout_minutes", "allow_changed", "checkpoint", "logging"),
    *("model.start_from", "data.workers", "optimization.micro_batch", "optimization.compile"),
)
Progress = Callable[[str, int, int], None]


class StoppedError(LyricsError):
    """A signal ended a training run; it was saved, and the same call goes on."""


@dataclass(frozen=True)
class Stages:
    """The two configurations that all variants are made from, before their own changes."""

    pretrain: TrainConfig
    finetune: TrainConfig

    def seeds(self, count: int) -> range:
        """Return the seeds of ``count`` repetitions.

        Both stages of one have the same, for random weights are drawn from it.
        """
        return range(self.pretrain.seed, self.pretrain.seed + count)

    def facts(self) -> dict[str, str]:
        start = self.finetune.model.start_from
        return {
            "stage 1": _budget(self.pretrain) if start is None else f"not trained here: {start}",
            "stage 2": _budget(self.finetune),
        }


def _budget(config: TrainConfig) -> str:
    settings, sets = config.optimization, ", ".join(slot.use for slot in config.data.sets.values())
    return f"{settings.steps:,} steps of {settings.global_batch:,} samples of {sets}"


@dataclass(frozen=True)
class Evaluating:
    """How every variant is evaluated.

    Args:
        benchmarks: by the name of their folder.
        about: of each, its ``benchmark`` and ``split``.
        bars: gives what is called with (benchmark, samples answered, samples in all).
        batch, limit: as for ``lyrics.core.evaluation.runner.evaluate``.
        device, dtype: of trained models.
    """

    benchmarks: Mapping[str, Benchmark]
    about: Mapping[str, Mapping[str, str]]
    bars: Callable[[], AbstractContextManager[Progress]]
    batch: int = 8
    limit: int | None = None
    device: str | None = None
    dtype: torch.dtype | None = None

    def __call__(
        self, model: Callable[[], Answerer], out: Path, described: str, condition: Condition = CLEAR
    ) -> list[Result]:
        """Scores of one model, which is built only if an answer is missing. Raises as ``evaluate``."""
        about = {name: {**self.about.get(name, {}), "model": described} for name in self.benchmarks}
        ask = evaluate if condition.changes_nothing else functools.partial(evaluate_under, condition)
        with self.bars() as progress:
            return ask(model, self.benchmarks, out, batch=self.batch, limit=self.limit, about=about, progress=progress)

    def facts(self, samples: Mapping[str, int]) -> dict[str, str]:
        first = "" if self.limit is None else f", of each the first {self.limit:,} at most"
        return {"samples": ", ".join(f"{name} {count:,}" for name, count in samples.items()) + first}


def open_stages(
    pretrain: str, finetune: str, overrides: Mapping[str, Mapping[str, Any]], *, own_start: bool = False
) -> Stages:
    """Both configurations, with the overrides of ``pretrain`` and of ``finetune``.

    Args:
        pretrain, finetune: recipes or files.
        overrides: dotted paths by stage.
        own_start: whether stage 2 may name what it starts from, in place of a stage 1 of its own.

    Raises ``SpecError`` for a model folder, a configuration of the other stage, and two stages of different models.
    """
    found: dict[str, TrainConfig] = {}
    for flag, stage, source in (("--pretrain", "pretrain", pretrain), ("--finetune", "instruct", finetune)):
        if Path(source).is_dir():
            raise SpecError(
                f"{flag} {source}: is a folder; variants are trained, and that takes a configuration: a YAML file, or "
                "a recipe such as tiny-stage1."
            )
        config = load_config(source, overrides.get(flag.removeprefix("--"), {}))
        if config.stage != stage:
            raise SpecError(f"{flag} {source}: is a configuration of stage {config.stage!r}, not {stage!r}.")
        found[stage] = config
    stages = Stages(found["pretrain"], found["instruct"])
    one, two = (config.model.spec.model_dump(mode="json") for config in (stages.pretrain, stages.finetune))
    for key in ("image_encoder", "refiner", "query_transformer", "codec"):
        if one[key] != two[key]:
            raise SpecError(
                f"--pretrain and --finetune are of different models: model.spec.{key} is {_short(one[key])} and "
                f"{_short(two[key])}. Set both alike, for instance with --set both.model.spec...."
            )
    for name in ("device", "precision"):
        values = [getattr(config, name, None) or getattr(config.optimization, name, None) for config in found.values()]
        if values[0] != values[1]:
            raise SpecError(
                f"--pretrain and --finetune: {name} is {values[0]} and {values[1]}, and one process trains both; set "
                "both alike."
            )
    start = stages.finetune.model.start_from
    if start is not None and not own_start:
        raise SpecError(
            f"finetune.model.start_from={start}: every variant starts from a stage 1 of its own; leave it out."
        )
    return stages


def changed(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with changes, resolved and wired.

    So what does not fit shows before anything is trained.
    """
    found = load_config(config.model_dump(mode="json"), overrides)
    wire(resolve(found.model.spec))
    return found


def train_once(config: TrainConfig, what: str, blank: Collection[str] = ()) -> None:
    """Train a stage to its end, unless that was done.

    Args:
        config: of the run.
        what: for the line that is printed.
        blank: experts that see a blank image.

    Raises ``LyricsError`` where the run folder has a run of another configuration, ``StoppedError`` after a signal.
    """
    if is_trained(config):
        return
    say(f"{what}: training in {config.out}")
    outcome = assemble.run(config, adapt=functools.partial(show_blank, experts=blank))
    if outcome.stopped:
        raise StoppedError(
            f"stopped after {outcome.step:,} of {config.optimization.steps:,} steps of {what}; the same command goes "
            "on."
        )


def is_trained(config: TrainConfig) -> bool:
    """Return whether the run is at its end. Raises ``LyricsError`` for a run of another configuration."""
    out = Path(config.out)
    if (out / "config.yaml").is_file():
        _check_same(config, out / "config.yaml")
    newest = checkpoints.newest_valid(out / "checkpoints", say)
    return newest is not None and (checkpoints.step_of(newest) or 0) >= config.optimization.steps


def _check_same(config: TrainConfig, file: Path) -> None:
    there = parse_yaml(read_text(file, LyricsError), source=str(file))
    before, now = dict(_flat(there)), dict(_flat(config.model_dump(mode="json")))
    for path in sorted(before.keys() | now.keys()):
        incidental = any(path == one or path.startswith(f"{one}.") for one in _INCIDENTAL)
        if not incidental and before.get(path) != now.get(path):
            raise LyricsError(
                f"{file}: was trained with {path}={_short(before.get(path))}, not {_short(now.get(path))}: variants "
                "would not be comparable. Write to another folder."
            )


def _flat(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, data


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def trained_model(config: TrainConfig, evaluating: Evaluating, blank: Collection[str] = ()) -> LyricsModel:
    """Return the model that a run of stage 2 has made.

    Its frozen parts are those that it was trained with: random ones come from its seed.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model.spec, weights=config.model.weights)
    start_from(model, config.out, say)
    if blank:
        show_blank(model, blank)
    return model.to(device=evaluating.device, dtype=evaluating.dtype).eval()
