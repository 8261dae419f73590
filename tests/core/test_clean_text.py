"""What plugins say is printed as text: no escape sequence of theirs acts, and no row is as long as they like."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from lyrics.core.clean_text import json_printable, one_line, printable, reason_of
from lyrics.core.conversion.formats import formats
from lyrics.core.registry.component import Component, Converter, Options, Preset, hookimpl
from lyrics.core.registry.registry import PluginSource, Registry, describe
from lyrics.plugins.tiny.presets import lyrics_tiny
from tests.commands import Run

#: Clears the screen, sets the title, rings, moves the cursor back, turns the direction of writing, and is half a
#: character.
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\b\x00\u202eabc\u2066\ud800\u2028\n"
LONG = EVIL + "x" * 100_000
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


@pytest.mark.parametrize("text", [EVIL, LONG, "", "plain", "é\u200dß 犬 👩‍🚀", "a\tb\nc"])
def test_nothing_acts(text: str) -> None:
    assert not ACTS.search(printable(text).replace("\t", ""))
    assert not ACTS.search(one_line(text))
    assert "\n" not in one_line(text)
    assert len(one_line(text, 50)) <= 50
    data = json.dumps({"a": text}, ensure_ascii=False)
    assert not ACTS.search(json_printable(data))
    assert json.loads(json_printable(data)) == {"a": text}


@pytest.mark.parametrize("text", ["plain", "é\u200dß 犬 👩‍🚀", "a\tb\nc"])
def test_what_does_not_act_stays(text: str) -> None:
    assert printable(text) == text


def test_a_line_that_fits_is_whole() -> None:
    assert one_line("x" * 50, 50) == "x" * 50
    assert one_line("x" * 51, 50) == "x" * 47 + "..."
    assert one_line("a  b\n c", 50) == "a b c"


class LoudOptions(Options):
    size: int = Field(3, description=LONG)
    word: str = Field(LONG, description="a word")


class LoudError(Exception):
    def __str__(self) -> str:
        raise ValueError(LONG)


class Loud:
    """Says all that a plugin may say, as loudly as it can."""

    @hookimpl
    def lyrics_components(self) -> Iterable[Any]:
        loud = {"summary": LONG, "license": LONG, "install": LONG}
        yield Component(
            "detector",
            "loud",
            build="lyrics.core.errors:describe",
            options=LoudOptions,
            requires=("no-such-engine>=2; " + " or ".join(["python_version > '3'"] * 2000),),
            converters=(Converter("loud-format", "a:b", summary=LONG),),
            **loud,
        )
        yield Component("detector", LONG, build="a:b")
        yield Component("detector", "l" + "o" * 100_000, build="a:b")
        yield Component(LONG, "loud-kind", build="a:b")  # type: ignore[arg-type]
        yield Component("tagger", "loud-build", build=LONG)
        yield Component("tagger", "loud-requires", build="a:b", requires=(LONG,))
        yield Component("tagger", "loud-options", build="a:b", options=LONG)  # type: ignore[arg-type]

    @hookimpl
    def lyrics_presets(self) -> Iterable[Any]:
        yield Preset("loud-preset", lyrics_tiny, LONG, reported_trainable=1, reported_note=LONG)
        yield Preset(LONG, lyrics_tiny)
        yield Preset("loud-weights", lyrics_tiny, weights=[LONG])  # type: ignore[arg-type]
        yield Preset("loud-raise", self.fail)

    def fail(self) -> Any:
        raise RuntimeError(LONG)


def _raise(error: BaseException) -> Any:
    raise error


@pytest.fixture(scope="module")
def registry() -> Registry:
    from lyrics.core.registry import registry as module

    loud = [
        (PluginSource("loud-dist", "1.0", "loud"), Loud),
        (PluginSource("loud-value", "1.0", "value"), lambda: _raise(ValueError(LONG))),
        (PluginSource("loud-error", "1.0", "error"), lambda: _raise(LoudError())),
        (PluginSource("loud-exit", "1.0", "exit"), lambda: _raise(SystemExit(LONG))),
    ]
    return Registry([*module._limited(module._installed()), *loud])


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("list", "--json"),
        ("doctor",),
        ("doctor", "--verbose"),
        ("doctor", "--json"),
        ("show", "loud"),
        ("show", "loud", "--json"),
        ("show", "loud-raise"),
        ("show", "loud-build"),
        ("check", "loud-raise"),
        ("check", "lyrics-tiny", "--set", "refiner.detector=loud"),
        ("check", "lyrics-tiny", "--set", "refiner.detector=loud-dist/x"),
        ("test-plugin", "loud-dist"),
        ("convert", "--help"),
    ],
    ids=" ".join,
)
def test_commands_print_no_escapes_and_no_endless_lines(
    command: tuple[str, ...], registry: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in (
        "lyrics.core.registry.registry",
        "lyrics.core.resolve",
        "lyrics.core.conversion.formats",
        "lyrics.testing.base",
    ):
        monkeypatch.setattr(f"{user}.default_registry", lambda: registry)
    done = run(*command)
    printed = done.out + done.err
    assert "loud" in printed
    assert not ACTS.search(printed)
    lines = printed.splitlines() if "--json" not in command and "--verbose" not in command else []
    assert max(map(len, lines), default=0) < 1200


def test_install_command_of_an_error_is_clean(registry: Registry, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.component("detector", "loud")
    for text in (entry.component.summary, entry.component.license, entry.component.install, *entry.unmet()):
        assert not ACTS.search(text)
        assert len(text) <= 300
    found = next(known for known in formats(registry) if known.name == "loud-format")
    assert len(found.summary) <= 200


def test_a_plugin_s_own_names_are_clean(registry: Registry) -> None:
    for failure in registry.failures:
        assert not ACTS.search(f"{failure.source}{failure.cause}{failure.kind}{failure.name}")
        assert len(failure.cause) <= 400
    assert len(describe(ValueError(LONG))) < 400


def test_a_distribution_s_own_names_are_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyrics.core.registry import registry as module

    info = tmp_path / "loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: lo\x1b[2Jud{'x' * 9000}\nVersion: 1\x1b[2J{'0' * 9000}\n"
    )
    (info / "entry_points.txt").write_text(f"[lyrics]\nlo\x1b[2Jud{'y' * 9000} = loud\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [str(source) for source, _ in module._installed() if "ud" in source.distribution]
    assert len(found) == 1
    assert not ACTS.search(found[0])
    assert len(found[0]) < 400


def test_commands_print_through_one_place() -> None:
    """What is not a constant goes through ``print_text``, ``print_table`` or ``print_json``, which let nothing act on a
    terminal.
    """
    import ast

    from tests.fresh import ROOT

    found = []
    for path in sorted((ROOT / "lyrics" / "cli").glob("*.py")):
        if path.name == "_output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write"):
                first = ast.unparse(node.args[0])
                own = isinstance(node.args[0], ast.Constant) or first in ("HELP", "f'lyrics {__version__}'")
                if not own and not first.startswith(("printable(", "json_printable(")):
                    found.append(f"{path.name}: {first}")
    assert found == [
        # Numbers and the package's own names alone.
        "bench.py: text",
        "data.py: f'{failed} of {len(tars)} tars were not indexed'",
        "parity.py: f'parity: {stage}'",
        "quickstart.py: text",
        "refine.py: f'skipped: {count - _SHOWN} more'",
    ]


def test_a_reason_goes_on_within_a_sentence() -> None:
    assert reason_of(ValueError("it is\nbroken. It may be another file..")) == "it is broken. It may be another file"
    assert reason_of(ValueError()) == ""
