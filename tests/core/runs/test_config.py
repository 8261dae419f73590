"""Configurations: files, recipes, overrides, and what wrong ones are told. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lyrics import Recipe, hookimpl
from lyrics.core.errors import PluginError, SpecError
from lyrics.core.registry.registry import PluginSource, Registry, _installed, _limited, default_registry
from lyrics.core.runs.config import TrainConfig, digest, dump_config, load_config
from tests.fresh import fresh

MINIMAL: dict[str, Any] = {
    "stage": "pretrain",
    "out": "runs/a",
    "model": {"spec": "lyrics-tiny"},
    "data": {"sets": {"scenes": "scenes"}},
    "optimization": {"steps": 10, "global_batch": 4},
}


@pytest.mark.parametrize("name", [recipe.name for recipe, _ in default_registry().recipes])
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert digest(load_config(path)) == digest(config)


class Acme:
    @hookimpl
    def lyrics_recipes(self) -> Iterable[Recipe]:
        yield Recipe("acme-run", "tests.core.runs.test_config:acme_run", "short")
        yield Recipe("acme-number", "tests.core.runs.test_config:acme_number")


def acme_run() -> TrainConfig:
    return load_config(MINIMAL)


def acme_number() -> int:
    return 7


def test_recipes_of_plugins() -> None:
    """One is loaded as any other, with overrides; what is none is said to be none, with its name."""
    registry = Registry([*_limited(_installed()), (PluginSource("acme", "1.0", "acme"), Acme)])
    for name in ("acme-run", "acme/acme-run"):
        config = load_config(name, {"optimization.steps": 3}, registry=registry)
        assert (config.optimization.steps, str(config.out)) == (3, "runs/a")
    with pytest.raises(PluginError, match="recipe 'acme-number' returned a int, not a TrainConfig"):
        load_config("acme-number", registry=registry)


def test_loading_needs_no_torch() -> None:
    done = fresh(
        "from lyrics.core.runs.config import load_config; load_config('paper-stage1'); load_config('tiny-stage2')"
    )
    assert done.returncode == 0, done.stderr


def test_the_paper_s_numbers() -> None:
    """Section 4 of arXiv 2312.05278."""
    for name, stage, steps, batch in (
        ("paper-stage1", "pretrain", 800_000, 512),
        ("paper-stage2", "instruct", 300_000, 64),
    ):
        config = load_config(name)
        settings = config.optimization
        assert (config.stage, settings.steps, settings.global_batch) == (stage, steps, batch)
        assert (settings.learning_rate, settings.betas, settings.weight_decay) == (1e-4, (0.9, 0.98), 0.05)
        assert settings.warmup_share == 0.15
        assert config.data.augmentation is not None
        assert config.data.augmentation.flip == 0.5
        assert set(config.model.spec.objectives) == {"itc", "itm", "icg", "msp"}


def test_a_preset_with_overrides_is_written_out() -> None:
    model = {"spec": "lyrics-tiny", "overrides": {"query_transformer.options.num_visual": 8, "refiner.segmenter": None}}
    config = load_config({**MINIMAL, "model": model})
    spec = config.model.spec
    assert spec.query_transformer.options["num_visual"] == 8
    assert spec.refiner is not None
    assert spec.refiner.segmenter is None
    assert spec.query_transformer.options["num_heads"] == 4, "defaults are filled in"
    assert "overrides" not in dump_config(config)


def test_overrides_reach_everything() -> None:
    config = load_config(
        MINIMAL,
        {
            "model.spec.query_transformer.options.num_visual": 6,
            "model.spec.objectives.itc.weight": 0.5,
            "data.sets.more": {"use": "scenes", "weight": 2},
            "data.sets.scenes.weight": 1,
            "data.sets.scenes.options.task": "vqa",
            "data.augmentation.flip": 0,
            "optimization.learning_rate": "1e-3",  # what YAML 1.1 makes of it
            "checkpoint.keep": 5,
            "allow_changed": ["data"],
        },
    )
    assert config.model.spec.query_transformer.options["num_visual"] == 6
    assert config.model.spec.objectives["itc"].weight == 0.5
    assert {name: (slot.use, slot.weight) for name, slot in config.data.sets.items()} == {
        "scenes": ("scenes", 1),
        "more": ("scenes", 2),
    }
    assert config.data.sets["scenes"].options == {"task": "vqa"}
    assert config.data.augmentation is not None
    assert config.data.augmentation.flip == 0
    assert (config.optimization.learning_rate, config.checkpoint.keep) == (1e-3, 5)
    assert config.allow_changed == ("data",)


def test_another_model_drops_the_file_s_overrides() -> None:
    model = {"spec": "lyrics-tiny", "weights": "random", "overrides": {"query_transformer.options.num_visual": 8}}
    config = load_config({**MINIMAL, "model": model}, {"model.spec": "blip2-13b", "model.spec.refiner": None})
    assert config.model.spec.query_transformer.options["num_visual"] == 32
    assert config.model.weights == "random"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimization.stepz": 1}, r"there is no optimization\.stepz\. Did you mean 'steps'\?"),
        ({"optimizer.steps": 1}, r"there is no optimizer\. Did you mean 'optimization'\?"),
        ({"optimization.steps": 0}, r"optimization\.steps: 0 is not allowed; should be greater than or equal to 1"),
        ({"optimization.steps.a": 0}, r"optimization\.steps is \d+\. Set optimization\.steps as a whole"),
        ({"checkpoint.keep": 1}, r"checkpoint\.keep: 1 is not allowed; should be greater than or equal to 2"),
        ({"data.sets.scenez.weight": 1}, r"there is no data\.sets\.scenez\. Did you mean 'scenes'\?"),
        (
            {"data.augmentation": None, "data.augmentation.flip": 0.5},
            r"data\.augmentation is null\. Set data\.augmentation first",
        ),
        (
            {"data.augmentation.scale": [0.8, 0.2]},
            r"data\.augmentation.*scale must be two shares in \(0, 1\], the smaller first",
        ),
        ({"model.spec": "lyrics-tinny"}, r"model\.spec: no preset named 'lyrics-tinny'\. Did you mean 'lyrics-tiny'\?"),
        ({"model.spec.refiner.tager": "x"}, r"model\.spec: override 'refiner\.tager': there is no refiner\.tager"),
        (
            {"model.spec.query_transformer.options.num_visual": 0},
            r"query_transformer\.options\.num_visual: 0 is not allowed",
        ),
        ({"refiner.segmenter": None}, r"parts of the model are set by model\.spec\.refiner\.segmenter"),
        ({"stage": "pretraining"}, r"stage: 'pretraining' is not allowed; allowed: 'pretrain' or 'instruct'"),
        ({"optimization.precision": "fp16"}, r"optimization\.precision: 'fp16' is not allowed"),
        ({"seed": -1}, r"seed: -1 is not allowed"),
    ],
)
def test_a_wrong_value_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_config(MINIMAL, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: pretrain", r"run\.yaml: out: is required and was not given"),
        ("[1, 2]", r"run\.yaml: a training configuration is a mapping"),
        ("stage: pretrain\nstage: instruct", r"run\.yaml, line 2: the key 'stage' is given twice"),
        ("stage: [", r"run\.yaml, line \d+: not valid YAML"),
        ("model: {spec: lyrics-tiny, overrides: 3}", r"run\.yaml: model\.overrides: is a mapping"),
        (
            "model: {spec: lyrics-tiny, weight: random}",
            r"run\.yaml: model\.weight: unknown key\. Did you mean 'weights'\?",
        ),
        ("data: {sets: {}}", r"run\.yaml: data\.sets: "),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_config(tmp_path / "run.yaml")


def test_the_run_folder_may_be_given_beside_the_file(tmp_path: Path) -> None:
    fields = {key: value for key, value in MINIMAL.items() if key != "out"}
    (tmp_path / "run.json").write_text(json.dumps(fields))
    assert load_config(tmp_path / "run.json", {"out": "there"}).out == "there"


def test_what_is_neither_recipe_nor_file() -> None:
    with pytest.raises(
        SpecError, match=r"no recipe named 'paper-stage3'.*Did you mean 'paper-stage[12]'\?.*Installed: paper-stage1"
    ):
        load_config("paper-stage3")
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_config("nowhere.yaml")


def test_the_result_is_frozen() -> None:
    config = load_config(MINIMAL)
    assert isinstance(config, TrainConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
