"""A preset's trained weights: loaded by its name alone, and as far as they fit when parts are changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import lyrics
from lyrics.core.errors import WeightsError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.registry.component import hookimpl
from lyrics.core.registry.registry import Registry
from lyrics.core.weights.pretrained import locate_checkpoint
from lyrics.plugins.tiny.presets import lyrics_tiny


class _Boxed:
    """A plugin whose preset ``boxed`` has weights in a package."""

    @staticmethod
    @hookimpl
    def lyrics_presets() -> Iterable[lyrics.Preset]:
        yield lyrics.Preset("boxed", _spec, weights="package:a_box/inner/weights/boxed")


def _spec() -> lyrics.ModelSpec:
    return lyrics_tiny().with_overrides({"refiner": None, "language_model.options.checkpoint": None})


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    package = tmp_path / "a_box" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    metadata = tmp_path / "a_box-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: a-box\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lyrics]\nboxed = a_box.manifest\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry.discover(_Boxed)
    torch.manual_seed(7)
    trained = build_model("boxed", weights="random", registry=registry)
    trained.save_pretrained(package / "weights" / "boxed", trainable_only=True)
    return registry


def built(registry: Registry, **given: Any) -> LyricsModel:
    torch.manual_seed(8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="language_model.options.checkpoint is null")
        return build_model("boxed", registry=registry, **given)


def stored(registry: Registry) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return build_model("boxed", weights="random", registry=registry).state_dict()


def test_a_preset_by_its_name_is_the_trained_model(registry: Registry) -> None:
    own, then = built(registry).state_dict(), stored(registry)
    trained = [name for name in own if not name.startswith(("encoder.", "language_model.")) or "lora_" in name]
    assert len(trained) > 40
    assert all(torch.equal(own[name], then[name]) for name in trained)


def test_random_weights_and_a_specification_without_the_name_are_not(registry: Registry) -> None:
    then = stored(registry)["projection.weight"]
    assert not torch.equal(built(registry, weights="random").projection.weight, then)
    torch.manual_seed(8)
    assert not torch.equal(build_model(_spec(), weights="random").projection.weight, then)


def test_what_does_not_fit_stays_random_with_a_warning(registry: Registry) -> None:
    changed = {"language_model.options.lora.rank": 3}
    with pytest.warns(UserWarning, match=r"trained weights of boxed do not fit .* language_model \(\d+\)\."):
        model = built(registry, overrides=changed)
    assert torch.equal(model.projection.weight, stored(registry)["projection.weight"])


def test_what_is_not_trained_may_be_changed_in_silence(registry: Registry) -> None:
    with warnings.catch_warnings(record=True) as caught:
        build_model("boxed", registry=registry, overrides={"codec": "shikra"})
    assert not any("trained weights" in str(one.message) for one in caught)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("package:no_such_module/x", "no installed lyrics plugin has a package 'no_such_module'.*one of .*lyrics"),
        ("package:json/decoder.py", "no installed lyrics plugin has a package 'json'"),
        (
            "package:lyrics/plugins/tiny/weights/nothing",
            "weights/nothing.*install the package that it belongs to again",
        ),
        ("package:lyrics", "there is no ''"),
        ("package:", "no installed lyrics plugin has a package ''"),
        ("package:lyrics.plugins.tiny/weights", "no installed lyrics plugin has a package 'lyrics.plugins.tiny'"),
        ("package:lyrics/../pyproject.toml", "leads out of the package 'lyrics'|there is no"),
    ],
)
def test_what_no_package_holds_is_named(name: str, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        locate_checkpoint(name)


def test_weights_must_be_a_name() -> None:
    class Wrong:
        @staticmethod
        @hookimpl
        def lyrics_presets() -> Iterable[lyrics.Preset]:
            yield lyrics.Preset("wrong", _spec, weights=Path("x"))  # type: ignore[arg-type]

    failures = [failure.cause for failure in Registry.discover(Wrong).failures]
    assert any("preset 'wrong': weights must be a string or None" in problem for problem in failures)
