"""The scripts in benchmarks/ that are no benchmarks themselves."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.fresh import ROOT


@pytest.fixture(scope="module")
def ratios() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ratios", ROOT / "benchmarks" / "ratios.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder: Path, speedup: float) -> Path:
    packed = {"recipe": "paper", "variant": "packed", "batch": 2, "lengths": "equal", "cpu_speedup_vs_N1": speedup}
    packed |= {"saved_vs_N1": 0.5, "flops_ratio_vs_N1": 1.5, "speedup_vs_N1": 9.0}
    rows = [packed, {**packed, "variant": "N1"}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text(json.dumps({"benchmark": "step", "rows": rows}))
    return folder


def test_ratios_are_compared_and_seconds_are_not(ratios: ModuleType, tmp_path: Path) -> None:
    found = ratios.read(written(tmp_path, 2.0))
    where = "step, paper, batch 2, equal lengths"
    assert found == {
        f"{where}: times as fast as N1": 2.0,
        f"{where}: times fewer operations than N1": 1.5,
        f"{where}: times less kept than N1": 2.0,
    }
    for speedup, fine in ((2.0, True), (1.75, True), (1.6, False), (3.0, True)):
        lines, verdict = ratios.compare(ratios.read(written(tmp_path, speedup)), found, 0.15)
        assert verdict == fine, lines
    lines, verdict = ratios.compare({}, found, 0.15)
    assert not verdict
    assert all("MISSING" in line for line in lines)
    lines, verdict = ratios.compare(found, {}, 0.15)
    assert verdict
    assert all("new" in line for line in lines)


def test_the_script_says_what_is_worse_and_updates(
    ratios: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = tmp_path / "ratios.json"

    def run(speedup: float, *flags: str) -> int:
        folder = written(tmp_path / "bench", speedup)
        monkeypatch.setattr(sys, "argv", ["ratios.py", str(folder), "--committed", str(committed), *flags])
        return ratios.main()

    assert run(2.0, "--update") == 0
    assert run(2.0) == 0
    assert run(1.0) == 1
    assert "WORSE" in capsys.readouterr().out


def test_some_benchmarks_alone_are_compared_and_updated(
    ratios: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = tmp_path / "ratios.json"
    others = {"host, batch 32, true lengths: one over waits": 0.5, "step, blip2, batch 2, true lengths: x": 1.0}
    before = ratios.read(written(tmp_path / "before", 2.0))
    committed.write_text(json.dumps(others | before))

    def run(speedup: float, *flags: str) -> int:
        folder = written(tmp_path / "bench", speedup)
        monkeypatch.setattr(sys, "argv", ["ratios.py", str(folder), "--committed", str(committed), *flags])
        return ratios.main()

    assert run(2.0) == 1, "others are missing"
    capsys.readouterr()
    assert run(2.0, "--partial") == 0
    assert "host" not in capsys.readouterr().out
    assert run(1.0, "--partial") == 1
    assert run(3.0, "--partial", "--update") == 0
    now = json.loads(committed.read_text())
    assert now == others | ratios.read(tmp_path / "bench")
    assert now != others | before


def test_what_is_committed_can_be_read(ratios: ModuleType) -> None:
    committed = json.loads(ratios.COMMITTED.read_text())
    assert {name.partition(",")[0].partition(":")[0] for name in committed} == {"step", "host", "prompts", "loader"}
    assert all(value > 0 for value in committed.values())
