"""The one call that runs everything on a GPU, rehearsed without one: it goes on, and writes down, whatever happens."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.fresh import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_gpu", ROOT / "scripts" / "evaluate_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_gpu", module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def shell(script: ModuleType, name: str, code: str, limit_s: float = 30, **more):
    return script.Part(name, limit_s, lambda place: [[place.python, "-c", code]], **more)


def test_what_fails_or_hangs_does_not_keep_the_rest_from_running(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(place):
        raise RuntimeError("no such part")

    parts = (
        shell(script, "bad", "print('reason'); raise SystemExit(3)", facts=broken),
        shell(script, "hangs", "import time; print('begun', flush=True); time.sleep(600)", 1.5),
        script.Part("broken", 30, broken),
        shell(script, "good", "print('done')", facts=lambda place: {"number": 7}),
    )
    monkeypatch.setattr(script, "PARTS", parts)
    monkeypatch.setattr(script, "_REHEARSAL", 1)
    started = time.monotonic()
    assert script.run(tmp_path, wheels=None, rehearse=True, minutes=2) == 1
    assert time.monotonic() - started < 60
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["parts"]
    assert {name: part["status"] for name, part in found.items()} == {
        "bad": "failed",
        "hangs": "out of time",
        "broken": "failed",
        "good": "ok",
    }
    assert found["bad"]["last_lines"][-1] == "reason"
    assert "no such part" in found["bad"]["facts"]["unreadable"]
    assert "begun" in (tmp_path / "hangs.log").read_text()
    assert "no such part" in found["broken"]["reason"]
    assert found["good"]["facts"] == {"number": 7}
    assert summary["about"]["python"]
    assert script.run(tmp_path, wheels=None, rehearse=True, minutes=2, only=("good",)) == 0


def test_the_time_of_all_is_kept(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "PARTS", (shell(script, "first", "print(1)"),))
    assert script.run(tmp_path, wheels=None, rehearse=True, minutes=0.0) == 1
    (part,) = json.loads((tmp_path / "summary.json").read_text())["parts"].values()
    assert part["status"] == "not run"


def test_a_part_that_is_ended_takes_its_own_processes_along(script: ModuleType, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    place = script.Place(tmp_path, sys.executable, True)
    assert script.run_part(shell(script, "parent", code), place, 1.0)["status"] == "out of time"
    time.sleep(4)
    assert not mark.exists()


def test_on_a_gpu_the_parts_ask_for_the_paper_s_sizes(script: ModuleType, tmp_path: Path) -> None:
    """Every command line of the real run is one that the commands know."""
    place = script.Place(tmp_path, sys.executable, False)
    words = {part.name: [c for c in part.commands(place) if not callable(c)] for part in script.PARTS}
    assert all("--device" not in command or "cuda" in command for some in words.values() for command in some)
    (step,) = words["step"]
    assert [step[i + 1] for i, word in enumerate(step) if word == "--batch"] == ["128", "64", "32"]
    (experts,) = words["experts"]
    assert {"lyrics-13b", "float32", "bfloat16"} <= set(experts)
    assert sum(part.limit_s for part in script.PARTS) < 12 * 60


def test_installed_is_what_is_carried(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "some-1-py3-none-any.whl").touch()
    make, put = script.install(tmp_path, tmp_path / "out")
    assert "--system-site-packages" in make
    assert {"--no-index", "--no-deps", str(tmp_path / "some-1-py3-none-any.whl")} <= set(put)


def test_one_part_is_rehearsed(script: ModuleType, tmp_path: Path) -> None:
    assert script.run(tmp_path, wheels=None, rehearse=True, minutes=10, only=("attention",)) == 0
    part = json.loads((tmp_path / "summary.json").read_text())["parts"]["attention"]
    assert part["status"] == "ok"
    assert part["files"] == ["attention.json", "attention.log", "attention.svg"]
    assert json.loads((tmp_path / "attention.json").read_text())["rows"]


@pytest.mark.slow
def test_everything_is_rehearsed(script: ModuleType, tmp_path: Path) -> None:
    assert script.run(tmp_path, wheels=None, rehearse=True, minutes=60) == 0, (tmp_path / "summary.json").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {part["status"] for part in summary["parts"].values()} == {"ok"}
    assert summary["parts"]["training"]["facts"]["resumed_to_the_bit"]
    assert summary["parts"]["tests"]["facts"]["tests"] > 0
    for name in ("attention", "step", "host", "experts", "memory"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["rows"], name
