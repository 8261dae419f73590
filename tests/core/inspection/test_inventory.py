"""What ``lyrics list`` says of weights: told from declared options alone, and true of what a build then does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import LyricsError
from lyrics.core.inspection.inventory import InventoryRow, rows
from lyrics.core.registry.component import Component, Converter, NamesWeights, Options, Preset, hookimpl
from lyrics.core.registry.registry import PluginSource, Registry, _installed, _limited, default_registry
from lyrics.plugins.tiny.presets import lyrics_tiny
from tests.fresh import fresh


class NeedyOptions(Options):
    weights: Annotated[str | None, NamesWeights(required=True)] = Field(None, description="needed")
    extra: Annotated[str | None, NamesWeights()] = Field(None, description="not needed")
    plain: str = Field("/nowhere/at/all", description="not marked, so not looked at")


CONVERTERS = (Converter("whole", "a:b", whole_model=True), Converter("acme-pth", "a:b"))


def preset_of(**options: Any) -> Any:
    return lambda: lyrics_tiny().with_overrides({"refiner.tagger": {"use": "needy", "options": options}})


def _exit() -> Any:
    raise SystemExit(4)


class Acme:
    @hookimpl
    def lyrics_components(self) -> Iterable[Component]:
        yield Component("tagger", "needy", build="a:b", options=NeedyOptions, converters=CONVERTERS)
        yield Component("tagger", "needy-too", build="a:b", options=NeedyOptions, requires=("no-such-engine>=2",))
        yield Component("detector", "not-needy", build="a:b")

    @hookimpl
    def lyrics_presets(self) -> Iterable[Preset]:
        yield Preset("null", preset_of())
        yield Preset("gone", preset_of(weights="/nowhere/ram.safetensors"))
        yield Preset("gone-relative", preset_of(weights="./nowhere"))
        yield Preset("bare", preset_of(weights="nowhere"))
        yield Preset("hub", preset_of(weights="acme/ram", extra="acme/words"))
        yield Preset("hub-twice", preset_of(weights="acme/ram", extra="acme/ram"))
        yield Preset("folder", preset_of(weights=str(Path(__file__).parent)))
        yield Preset("extra-gone", preset_of(weights="acme/ram", extra="~/nowhere/words"))
        yield Preset("packaged", preset_of(weights="package:lyrics/plugins/tiny/weights"))
        yield Preset("packaged-gone", preset_of(weights="package:lyrics/nowhere"))
        yield Preset("trained-gone", preset_of(weights="acme/ram"), weights="package:lyrics/nowhere")
        yield Preset("package", lambda: lyrics_tiny().with_overrides({"refiner.tagger": "needy-too"}))
        yield Preset("unknown", lambda: lyrics_tiny().with_overrides({"refiner.tagger": "nobody"}))
        yield Preset("raises", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        yield Preset("exits", _exit)


@pytest.fixture(scope="module")
def found() -> dict[str, InventoryRow]:
    registry = Registry([*_limited(_installed()), (PluginSource("acme", "1.0", "acme"), Acme)])
    return {row.name: row for row in rows(registry) if row.distribution == "acme"}


SLOT = "refiner.tagger.options."
CONVERT = "lyrics convert FILE FOLDER --from acme-pth, then "
STATUS = {
    "needy": f"needs weights: {CONVERT}weights=FOLDER",
    "needy-too": "needs no-such-engine>=2 (not installed); needs weights: set weights",
    "not-needy": "ready",
    "null": f"needs weights: {CONVERT}{SLOT}weights=FOLDER",
    "gone": f"needs weights: {SLOT}weights=/nowhere/ram.safetensors is not there; {CONVERT}{SLOT}weights=FOLDER",
    "gone-relative": f"needs weights: {SLOT}weights=./nowhere is not there; {CONVERT}{SLOT}weights=FOLDER",
    "bare": f"needs weights: {SLOT}weights=nowhere is not there; {CONVERT}{SLOT}weights=FOLDER",
    "hub": "ready; downloads acme/ram, acme/words",
    "hub-twice": "ready; downloads acme/ram",
    "folder": "ready",
    "extra-gone": f"needs weights: {SLOT}extra=~/nowhere/words is not there; {CONVERT}{SLOT}extra=FOLDER",
    "packaged": "ready",
    "packaged-gone": "needs weights: 'package:lyrics/nowhere': there is no 'nowhere' in the installed package",
    "trained-gone": "needs weights: 'package:lyrics/nowhere': there is no 'nowhere' in the installed package",
    "package": "needs no-such-engine>=2 (not installed) for refiner.tagger; "
    "needs weights: set refiner.tagger.options.weights",
    "unknown": "broken: no tagger named 'nobody'.",
    "raises": "broken: preset 'acme/raises' of acme 1.0 (entry point 'acme') failed: ZeroDivisionError",
    "exits": "broken: it called sys.exit(4).",
}


@pytest.mark.parametrize("name", STATUS)
def test_status(name: str, found: dict[str, InventoryRow]) -> None:
    assert found[name].status.startswith(STATUS[name])
    if name not in ("packaged-gone", "trained-gone", "unknown", "raises"):
        assert found[name].status == STATUS[name]


def test_every_name_is_looked_at(found: dict[str, InventoryRow]) -> None:
    assert set(found) == set(STATUS)


def test_a_program_reads_option_value_and_advice(found: dict[str, InventoryRow]) -> None:
    (need,) = found["null"].weights
    assert (need.option, need.value, need.download) == (f"{SLOT}weights", None, False)
    assert need.advice == f"{CONVERT}{SLOT}weights=FOLDER"
    assert [(need.value, need.download) for need in found["hub"].weights] == [("acme/ram", True), ("acme/words", True)]


# --- the built-in parts ---


def test_paper_presets_need_the_tagger_s_weights() -> None:
    by_name = {row.name: row.status for row in rows(default_registry(), "preset")}
    for name in ("lyrics-13b", "lyrics-7b"):
        assert "lyrics convert FILE FOLDER --from ram-plus, then refiner.tagger.options.checkpoint=" in by_name[name]
    assert "--from ram, then refiner.tagger.options.checkpoint=" in by_name["lyrics-released-14b"]
    assert by_name["blip2-13b"].startswith("ready; downloads openai/clip-vit-large-patch14, ")
    assert by_name["lyrics-tiny"] == by_name["lyrics-tiny-stage1"] == "ready"


def marked(options: type[Options]) -> dict[str, NamesWeights]:
    return {
        name: mark
        for name, field in options.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, NamesWeights)
    }


OURS = [entry for entry in default_registry().entries if entry.source.distribution == "lyrics-vl"]


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: f"{entry.component.kind}-{entry.component.name}")
def test_options_that_name_weights_are_marked(entry: Any) -> None:
    named = {name for name in entry.component.options.model_fields if name in ("checkpoint", "tokenizer", "weights")}
    assert named <= set(marked(entry.component.options))


NULLABLE = [
    entry
    for entry in OURS
    if "checkpoint" in marked(entry.component.options)
    and type(None) in getattr(entry.component.options.model_fields["checkpoint"].annotation, "__args__", ())
    and not entry.unmet()
]


@pytest.mark.parametrize("entry", NULLABLE, ids=lambda entry: entry.component.name)
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_required_is_what_a_build_without_says(entry: Any) -> None:
    """The mark and the part agree, so that ``ready`` and ``needs weights`` are true."""
    from lyrics.core.build import build_part
    from lyrics.core.resolve import Part
    from lyrics.testing.base import no_network

    record = entry.component
    # The toy experts' weights are in the package, and of the sizes that the options have by themselves.
    sizes = {} if record.name.startswith("tiny-") else record.test_options
    given = {**sizes, "checkpoint": None}
    given |= {"tokenizer": None} if "tokenizer" in record.options.model_fields else {}
    part = Part(record.kind, entry, record.options.model_validate(given))
    context = BuildContext("pretrained", image_dim=8, local_dims={}, query_dim=8)
    with no_network():
        if not marked(record.options)["checkpoint"].required:
            build_part(part, context)
            return
        with pytest.raises(LyricsError, match=r"lyrics convert|names no checkpoint; set the option checkpoint"):
            build_part(part, context)


def test_list_needs_neither_torch_nor_network() -> None:
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "sys.argv = ['lyrics', 'list', 'preset', '--json']\n"
        "from lyrics.cli import main\n"
        "main()\n"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    by_name = {row["name"]: row for row in json.loads(done.stdout)}
    (need,) = [need for need in by_name["lyrics-13b"]["weights"] if not need["download"]]
    assert need["option"] == "refiner.tagger.options.checkpoint"
    assert "lyrics convert" in need["advice"]
