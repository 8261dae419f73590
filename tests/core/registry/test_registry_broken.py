"""Every broken plugin at once: what is listed, what still works, and what using each of them says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lyrics.cli.parts import list_parts, show
from lyrics.core.errors import (
    AmbiguousNameError,
    ContractError,
    LyricsError,
    MissingRequirementError,
    PluginError,
    UnknownNameError,
)
from lyrics.core.inspection.inventory import rows
from lyrics.core.loading import build_model
from lyrics.core.registry.registry import Registry, default_registry
from lyrics.core.resolve import resolve, resolve_refiner
from lyrics.core.spec import ModelSpec
from tests.broken_plugins import BROKEN, DAMAGED, SLOW_SECONDS, Broken, install
from tests.core.small import drawn, small

ROOT = Path(__file__).parents[3]
DISTRIBUTION = "lyrics-vl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("broken") / "site")


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[Registry]:
    """What a process sees that has all of them installed."""
    default_registry()  # discovered while they are not there, as the rest of the tests expects
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield Registry.discover()
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.startswith("broken_"):
                del sys.modules[name]
        importlib.invalidate_caches()


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from lyrics.cli import main; main()", *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def listed(folder: Path) -> list[dict[str, Any]]:
    done = command(folder, "list", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def diagnosed(folder: Path) -> Mapping[str, Any]:
    done = command(folder, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    return {plugin["distribution"]: plugin for plugin in json.loads(done.stdout)["plugins"]}


def test_there_are_many_kinds() -> None:
    assert len({plugin.distribution for plugin in BROKEN}) == len(BROKEN) >= 14


@pytest.mark.parametrize("plugin", BROKEN, ids=str)
def test_every_one_is_listed(plugin: Broken, listed: list[dict[str, Any]]) -> None:
    found = [row for row in listed if row["distribution"] == plugin.distribution]
    assert len(found) == 1, f"{plugin} has {len(found)} rows"
    assert found[0]["version"] == "1.0"
    assert found[0]["status"].startswith(plugin.status)
    if plugin.status.startswith("broken"):
        assert plugin.cause in found[0]["status"]


def test_every_built_in_is_as_it_is_without_them(listed: list[dict[str, Any]]) -> None:
    """Ready, unless it needs a package that is not installed here."""
    ours = {(row["kind"], row["name"]): row["status"] for row in listed if row["distribution"] == DISTRIBUTION}
    assert ours == {(r.kind, r.name): r.status for r in rows(default_registry()) if r.distribution == DISTRIBUTION}
    assert list(ours.values()).count("ready") > 20
    assert not any(status.startswith("broken") for status in ours.values())


def test_table_is_printed_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: registry)
    list_parts()
    printed = capsys.readouterr().out
    assert all(plugin.distribution in printed for plugin in BROKEN)


@pytest.mark.parametrize("limit", [{}, {"LYRICS_PLUGINS": "none"}], ids=["all", "none"])
def test_damaged_metadata_are_one_broken_plugin(limit: dict[str, str], tmp_path: Path) -> None:
    """``importlib.metadata.entry_points`` raises as a whole for one entry_points.txt that cannot be read."""
    done = command(install(tmp_path / "site", (DAMAGED,)), "list", "--json", **limit)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    damaged = [row["status"] for row in found if row["distribution"] == DAMAGED.distribution]
    assert len(damaged) == (0 if limit else 1)
    assert all(DAMAGED.cause in status for status in damaged)
    assert len([row for row in found if row["status"] == "ready"]) > 20


def test_a_failure_is_listed_under_its_kind_or_as_a_plugin(registry: Registry) -> None:
    plugins = {row.distribution for row in rows(registry, "plugin")}
    detectors = {row.distribution for row in rows(registry, "detector")}
    assert {"broken-import", "broken-value", "broken-kind"} <= plugins
    assert {"broken-contract", "broken-options"} <= detectors - plugins


@pytest.mark.parametrize("plugin", BROKEN, ids=str)
def test_doctor_reports_every_one(plugin: Broken, diagnosed: Mapping[str, Any]) -> None:
    found = diagnosed[plugin.distribution]
    assert (found["version"], found["entry_point"]) == ("1.0", plugin.entry)
    assert bool(found["failures"]) == plugin.status.startswith("broken")
    if found["failures"]:
        assert plugin.cause in found["failures"][0]["cause"]


def test_doctor_gives_the_seconds_of_the_slow_one(diagnosed: Mapping[str, Any]) -> None:
    assert diagnosed["broken-slow"]["seconds"] >= SLOW_SECONDS
    assert diagnosed["broken-import"]["seconds"] < diagnosed["broken-slow"]["seconds"]


def test_doctor_keeps_the_traceback(diagnosed: Mapping[str, Any]) -> None:
    assert "acme_engine is too old" in diagnosed["broken-import"]["failures"][0]["traceback"]


def use(plugin: Broken, registry: Registry) -> None:
    """Compose a small model with the plugin's part or its words, and run it."""
    path = "query_transformer.options.builtin_tokenizer" if plugin.kind == "vocabulary" else f"refiner.{plugin.kind}"
    model = build_model(small(registry), overrides={path: plugin.asked}, weights="random", registry=registry)
    model.encode([drawn()], ["what?"], phrases=[["red circle"]])


EXPECTED: Mapping[str, type[LyricsError]] = {
    "lookup": PluginError,
    "requirement": MissingRequirementError,
    "options": PluginError,
    "build": PluginError,
    "run": ContractError,
}


@pytest.mark.parametrize("plugin", BROKEN, ids=str)
def test_use_names_distribution_version_entry_point_and_cause(plugin: Broken, registry: Registry) -> None:
    if plugin.stage == "works":
        use(plugin, registry)
        return
    expected = AmbiguousNameError if "write " in plugin.cause else EXPECTED[plugin.stage]
    with pytest.raises(expected) as caught:
        use(plugin, registry)
    message = str(caught.value)
    assert f"{plugin.distribution} 1.0 (entry point {plugin.entry!r})" in message
    assert plugin.cause in message
    where = "query_transformer.options.builtin_tokenizer" if plugin.kind == "vocabulary" else "refiner.detector"
    assert message.startswith(where) or plugin.stage == "run"


def test_qualified_name_chooses_between_twins(registry: Registry) -> None:
    for distribution in ("broken-twin-a", "broken-twin-b"):
        resolved = resolve(small(registry), {"refiner.detector": f"{distribution}/twin"}, registry=registry)
        assert resolved.parts["refiner.detector"].entry.source.distribution == distribution


def test_presets_keep_their_own_parts_when_one_is_shadowed(registry: Registry) -> None:
    """A stranger's tiny-detector does not disturb lyrics-tiny; asking for it by its bare name is ambiguous."""
    preset = registry.preset("lyrics-tiny")
    assert preset.refiner is not None
    assert preset.refiner.detector is not None
    assert preset.refiner.detector.use == "lyrics-vl/tiny-detector"
    assert preset.image_encoder.use == "tiny-vit"
    model = build_model(small(registry), weights="random", registry=registry)
    assert type(model.refiner.detector).__module__ == "lyrics.plugins.tiny.detector"
    encoded = model.encode([drawn()], ["what?"])
    assert encoded.soft_tokens_PQD.shape[0] == 1


def test_every_preset_still_resolves(registry: Registry) -> None:
    for preset, _ in registry.presets:
        is_model = isinstance(registry.preset(preset.name), ModelSpec)
        assert (resolve if is_model else resolve_refiner)(preset.name, registry=registry).parts


def test_unknown_name_mentions_what_failed_to_load(registry: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.component("detector", "acme-boxes")
    assert "broken-import 1.0 (entry point 'broken-import')" in str(caught.value)
    assert "lyrics doctor" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["broken-import", "unkind", "from-the-future", "broken-twin-a/twin", "twin", "broken-slow"]
)
def test_show_says_why(
    name: str, registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lyrics.core.registry.registry.default_registry", lambda: registry)
    if name in ("broken-slow", "broken-twin-a/twin"):
        show(name)
        assert name.rpartition("/")[2] in capsys.readouterr().out
        return
    with pytest.raises(LyricsError) as caught:
        show(name)
    assert "broken-" in str(caught.value)
    assert "image-encoder" not in str(caught.value)


def test_lyrics_plugins_none_leaves_third_parties_out(
    folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYRICS_PLUGINS", "none")
    found = Registry.discover()
    assert {plugin.source.distribution for plugin in found.plugins} == {DISTRIBUTION}
    assert not found.failures
    assert {e.component.name for e in found.entries} == {
        e.component.name for e in registry.entries if e.source.distribution == DISTRIBUTION
    }


def test_lyrics_plugins_lets_named_ones_in(folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYRICS_PLUGINS", " Broken_Import , broken-dims,")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Registry.discover()
    assert {plugin.source.distribution for plugin in found.plugins} == {DISTRIBUTION, "broken-import", "broken-dims"}


def test_lyrics_plugins_warns_of_a_name_that_is_not_installed(
    folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYRICS_PLUGINS", "acme-boxen")
    with pytest.warns(UserWarning, match="acme-boxen"):
        found = Registry.discover()
    assert {plugin.source.distribution for plugin in found.plugins} == {DISTRIBUTION}
