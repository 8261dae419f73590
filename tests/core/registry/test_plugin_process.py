"""Plugins that end, crash, hang or interrupt the process that imports them: each is named with its cause, and harms
nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.registry import plugin_process
from lyrics.core.registry.plugin_process import Trial, try_plugins
from lyrics.core.registry.registry import Registry, default_registry
from tests.broken_plugins import Broken, install
from tests.fresh import ROOT

HOOK = "from lyrics import Component, Preset, hookimpl\nimport os\n\n@hookimpl\ndef lyrics_components():\n    {}\n"
SOUND = 'return [Component("detector", "{}", build="a:b")]'


def _deadly(name: str, source: str, cause: str) -> Broken:
    return Broken(name, source, "lookup", cause)


DEADLY = (
    _deadly("dies-zero", "import os\nos._exit(0)", "ends the process that imports it, as os._exit(0) does"),
    _deadly("dies-seven", "import os\nos._exit(7)", "as os._exit(7) does"),
    _deadly("dies-segfault", "import ctypes\nctypes.string_at(0)", "crashes the process that imports it (SIGSEGV)"),
    _deadly("dies-abort", "import os\nos.abort()", "crashes the process that imports it (SIGABRT)"),
    _deadly("dies-killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "(SIGKILL)"),
    _deadly("dies-hang", "import time\ntime.sleep(10_000)", "its import did not end within"),
    _deadly("dies-closed", "import os, time\nos.closerange(0, 64)\ntime.sleep(10_000)", "did not end within"),
    _deadly("dies-hook", HOOK.format("os._exit(5)"), "as os._exit(5) does"),
    _deadly(
        "dies-preset",
        "import os\nfrom lyrics import Preset, hookimpl\n\n"
        '@hookimpl\ndef lyrics_presets():\n    return [Preset("dies", lambda: os._exit(6))]\n',
        "as os._exit(6) does",
    ),
)
HARMLESS = (
    _deadly("raises-interrupt", "raise KeyboardInterrupt", "it raised KeyboardInterrupt."),
    _deadly("raises-exit", "import sys\nsys.exit(0)", "it called sys.exit(0)."),
    _deadly("asks", "input('Do you agree? ')", "EOFError"),
    _deadly(
        "looks-itself",
        "import lyrics.core.registry.registry\nlyrics.core.registry.registry.default_registry()",
        "a manifest asks for other plugins",
    ),
)
#: Before, between and after the others, in whatever order these are tried; in the child they write among the messages.
NOISE = (
    "import os\nif 'LYRICS_PLUGIN_PROCESS' in os.environ:\n    os.write(1, b'noise\\n{\"begin\": 1}\\n')\n"
    "print('noise')\n"
)
FINE = tuple(
    Broken(name, NOISE + HOOK.format(SOUND.format(name)), "works", "") for name in ("aaa-fine", "dies-fine", "zzz-fine")
)
LIMITED = "import lyrics.core.registry.plugin_process as p\np.SECONDS = 6.0\nfrom lyrics.cli import main\nmain()"
ADVICE = "set LYRICS_PLUGINS=none"


def command(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("deadly") / "site", (*DEADLY, *HARMLESS, *FINE))


@pytest.fixture(scope="module")
def doctor(site: Path) -> subprocess.CompletedProcess[str]:
    done = command(site, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def found(doctor: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    return {plugin["distribution"]: plugin for plugin in json.loads(doctor.stdout)["plugins"]}


@pytest.mark.parametrize("plugin", [*DEADLY, *HARMLESS], ids=str)
def test_doctor_names_it_with_its_cause(plugin: Broken, found: Mapping[str, Any]) -> None:
    (failure,) = found[plugin.distribution]["failures"]
    assert plugin.cause in failure["cause"]
    assert found[plugin.distribution]["version"] == "1.0"
    assert (ADVICE in failure["cause"]) == (plugin in DEADLY)


def test_the_others_are_there(found: Mapping[str, Any]) -> None:
    assert [found[plugin.distribution]["components"] for plugin in FINE] == [1, 1, 1]
    ours = [plugin for plugin in default_registry().plugins if plugin.source.distribution == "lyrics-vl"]
    assert sum(plugin["distribution"] == "lyrics-vl" for plugin in found.values()) <= len(ours)
    assert not found["lyrics-vl"]["failures"]


def test_where_it_crashed_is_kept(found: Mapping[str, Any]) -> None:
    (failure,) = found["dies-segfault"]["failures"]
    assert "dies_segfault.py" in failure["traceback"]


def test_each_deadly_one_is_warned_of_once(doctor: subprocess.CompletedProcess[str]) -> None:
    warned = [line for line in doctor.stderr.splitlines() if "was left out" in line]
    assert len(warned) == len(DEADLY)
    assert all(any(plugin.distribution in line for line in warned) for plugin in DEADLY)


#: Without those that take their whole time.
QUICK = tuple(
    plugin
    for plugin in (*DEADLY, *HARMLESS, *FINE)
    if plugin.distribution in ("dies-seven", "dies-segfault", "raises-interrupt", "aaa-fine", "zzz-fine")
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("quick") / "site", QUICK)


def test_list_has_a_row_for_each_and_says_what_to_do(quick: Path) -> None:
    done = command(quick, "list", "plugin")
    assert done.returncode == 0, done.stderr
    for plugin in QUICK:
        assert (plugin.distribution in done.stdout) == (plugin not in FINE)
    assert "LYRICS_PLUGINS=none" in done.stderr


def test_another_command_works_beside_them(quick: Path) -> None:
    done = command(quick, "show", "aaa-fine", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "aaa-fine"
    refused = command(quick, "show", "dies-seven")
    assert refused.returncode == 1
    assert "dies-seven 1.0 (entry point 'dies-seven') is installed but broken" in refused.stderr


def test_left_out_they_are_not_imported(quick: Path) -> None:
    done = command(quick, "list", "plugin", "--json", LYRICS_PLUGINS="none")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [], "")


# --- what it costs ---


def test_no_process_is_started_for_built_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYRICS_PLUGINS", "none")

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    assert not Registry.discover().failures


def test_one_process_tries_all_that_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", FINE)))
    started = []
    real = subprocess.Popen

    def counted(*arguments: Any, **options: Any) -> Any:
        started.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(plugin_process.subprocess, "Popen", counted)
    found = Registry.discover()
    assert len(started) == 1
    assert {plugin.distribution for plugin in FINE} <= {plugin.source.distribution for plugin in found.plugins}
    assert not found.failures
    for plugin in FINE:
        sys.modules.pop(plugin.module, None)


def test_where_no_process_can_be_started_plugins_are_loaded_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("/nowhere/python", "", None):
        monkeypatch.setattr(plugin_process.sys, "executable", executable)
        assert try_plugins(["a"], "") == {}


def test_child_that_cannot_begin_does_not_go_round_for_ever() -> None:
    assert try_plugins(["a", "b"], "raise SystemExit(3)") == {}


def test_names_of_any_kind_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a b", "é\u2028\"'", "nul\0", "-c", "\udcff"]
    code = (
        "import json, sys\nfrom lyrics.core.registry.plugin_process import Messages, Trial\nmessages = Messages()\n"
        "for name in json.loads(sys.argv[1]):\n    messages.begin(name)\n    messages.finish(name, "
        "Trial(name))\nmessages.end()\n"
    )
    assert try_plugins(names, code) == {name: Trial(name) for name in names}


# --- started from beside a folder that has the package's name ---


def test_conformance_children_do_not_see_the_working_directory(tmp_path: Path) -> None:
    """From the parent of a checkout, the folder of the checkout must not stand in for the package."""
    (tmp_path / "lyrics").mkdir()
    site = install(tmp_path / "site", FINE[:1])
    code = (
        f"import sys\nsys.path.insert(0, {str(site)!r})\n"
        f"from lyrics.testing.base import manifest_is_light\nmanifest_is_light({FINE[0].module!r})"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
