"""The host benchmark at toy size: the real step runs, its kinds of work are told apart, and it says what it counted."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lyrics.core.errors import SpecError
from lyrics.core.runs.config import load_config
from lyrics.kernels.attention import replaced_by
from lyrics.kernels.host_work import watched_by
from lyrics.workflows.bench import host as bench_host
from lyrics.workflows.bench import null_attention
from lyrics.workflows.bench.fake_device import fake_device
from tests.commands import Run


def test_a_row_for_each_case() -> None:
    rows = bench_host.measure(load_config("tiny-stage1"), (3, 8), rounds=1)
    assert [(row["batch"], row["lengths"]) for row in rows] == [(3, "true"), (3, "random"), (8, "true"), (8, "random")]
    for row in rows:
        assert tuple(row["ms"]) == bench_host.KINDS
        assert all(took >= 0 for took in row["ms"].values())
        for kind in ("tokenize objects", "lay out", "tiles", "second pass", "negatives", "recorder", "launch backward"):
            assert row["ms"][kind] > 0, kind
        assert row["own_ms"] == pytest.approx(sum(row["ms"][kind] for kind in bench_host.OWN))
        assert row["prepared_ms"]["tokenize objects"] == row["prepared_ms"]["tokenize captions"] == 0
        assert row["prepared_ms"]["second pass"] > 0
        assert row["prepared_own_ms"] == pytest.approx(sum(row["prepared_ms"][kind] for kind in bench_host.OWN))
        assert row["operations"] > 100
        assert row["copied_bytes"] > 0
        assert any("stage1/negatives.py" in place for place in row["waits"])
    shown = bench_host.table(rows)
    assert len(shown.splitlines()) == 5
    assert "second pass" in shown


def test_another_stage_is_refused() -> None:
    with pytest.raises(SpecError, match="stage=instruct"):
        bench_host.measure(load_config("tiny-stage2"), (2,))


def test_the_command_writes_rows_and_a_chart(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    done = run("bench", "host", "tiny-stage1", "--batch", 2, "--rounds", 1, "--out", out, "--json")
    assert done.code == 0, done.err
    written = json.loads(out.read_text())
    assert written["benchmark"] == "host"
    assert written["rows"] == json.loads(done.out)
    assert {"machine", "versions"} <= written["rows"][0].keys()
    text = "".join(ElementTree.parse(out.with_suffix(".svg")).getroot().itertext())
    assert "batch 2, random lengths" in text


def test_a_step_waits_for_the_draw_and_for_its_losses_and_for_nothing_else() -> None:
    (row,) = bench_host.measure(load_config("tiny-stage1"), (4,), ("random",), rounds=1)
    assert {place.partition(":")[0] + place.rpartition(" ")[2]: count for place, count in row["waits"].items()} == {
        "core/stage1/negatives.pydraw_negatives": 1,
        "core/stage1/reduction.pyread": 1,
    }
    assert row["waiting_copies"] == {}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_that_was_prepared_waits_as_rarely_and_lays_out_its_second_pass_alone(
    tmp_path: Path, ahead: bool
) -> None:
    config = load_config("tiny-stage1")
    with fake_device() as device, replaced_by(null_attention):
        host = bench_host.HostStep(config, tmp_path)
        for seed in (0, 1):
            batch = host.batch(4, "random", seed)
            if ahead:
                batch = host.prepared(batch)
                assert batch.ahead is not None
                assert batch.ahead.is_of(config.seed, seed)
            device.clear()
            told = Told()
            with watched_by(told):
                host.run(batch)
        host.folder.close()
    assert [place.partition(":")[0] for place in device.waits] == [
        "core/stage1/negatives.py",
        "core/stage1/reduction.py",
    ]
    assert device.waiting_copies == []
    assert ("tokenize objects" in told.said) == (not ahead)
    assert told.said[: told.said.index("negatives")].count("tiles") == (0 if ahead else told.first_tiles)


class Told:
    """Which kinds of work a step did, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, kind: str) -> None:
        self.said.append(kind)

    def end(self, kind: str) -> None:
        pass

    @property
    def first_tiles(self) -> int:
        """Before negatives were drawn."""
        count = self.said[: self.said.index("negatives")].count("tiles")
        assert count > 0
        return count


def test_the_plan_of_a_run_knows_what_bounds_it(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    rows = [
        {"batch": batch, "lengths": lengths, "own_ms": ms}
        for batch, lengths, ms in ((32, "true", 1), (32, "random", 16), (256, "random", 32))
    ]
    rows[1]["prepared_own_ms"] = 8
    out.write_text(json.dumps({"benchmark": "host", "rows": rows}))
    common = ("plan", "tiny-stage1", "--host", out, "--set", "optimization.global_batch=64", "--gpus", "2", "--json")
    alone = run(*common).data
    assert (alone["speeds"], alone["bound"], alone["samples_per_s"]) == ({"host": 2000.0}, "host", None)
    assert run(*common, "--set", "model.spec.refiner=null").data["speeds"] == {"host": 4000.0}, "workers prepare"
    both = run(*common, "--throughput", "500", "--refiner", "300", "--loader", "100", "--set", "data.workers=4").data
    assert both["speeds"] == {"step": 500.0, "host": 2000.0, "refiner": 300.0, "loader": 400.0}
    assert (both["bound"], both["samples_per_s"]) == ("refiner", 600.0)
    done = run("plan", "tiny-stage1", "--host", tmp_path / "nothing.json")
    assert done.code == 2
    assert "is not what 'lyrics bench host --out FILE' writes" in done.err
