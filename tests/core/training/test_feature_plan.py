"""Online against stored features, in days, bytes and reads."""

from __future__ import annotations

import math
from pathlib import Path

from lyrics.core.inspection.memory import OBJECTS
from lyrics.core.loading import build_model
from lyrics.core.runs.config import dump_config
from lyrics.core.training.feature_plan import plan_features
from tests.commands import Run
from tests.core.refining.test_features import settings
from tests.core.small import small

SAMPLES = 8_000


def test_times_follow_from_the_speeds_that_are_known() -> None:
    model = build_model(small(), weights="meta")
    found = plan_features(model, SAMPLES, {"step": 100.0, "refiner": 25.0, "loader": 500.0}, 2, images=1_000)
    assert found is not None
    assert found.online_seconds is not None
    assert math.isclose(found.online_seconds, 8_000 / (20.0 * 2)), "experts and step take turns"
    assert (found.refine_seconds, found.train_seconds, found.reads_per_s) == (20.0, 40.0, 200.0)
    assert model.refiner is not None
    tokens = sum(
        (getattr(one, "num_tokens", OBJECTS)) * one.feature_dim for one in model.refiner.local_sources.values()
    )
    assert found.bytes_per_image == 2 * tokens + 32 * OBJECTS
    assert found.stored_bytes == 1_000 * found.bytes_per_image
    slow = plan_features(model, SAMPLES, {"step": 100.0, "refiner": 25.0, "loader": 10.0}, 2)
    assert slow is not None
    assert (slow.online_seconds, slow.train_seconds, slow.images) == (400.0, 400.0, 8_000), "the loader bounds both"
    unknown = plan_features(model, SAMPLES, {"loader": 10.0}, 2)
    assert unknown is not None
    assert (unknown.online_seconds, unknown.refine_seconds, unknown.train_seconds) == (None, None, None)
    assert plan_features(build_model(small(refiner=None), weights="meta"), SAMPLES, {}, 1) is None


def test_the_command_compares_both(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(settings(tmp_path / "out", tmp_path, "pretrain", data__features=None)))
    speeds = ("--throughput", "4", "--refiner", "2", "--loader", "100", "--images", "4")
    done = run("plan", str(file), *speeds)
    assert "experts in training (online): 0.0 days" in done.out
    assert "data.features: 4 images refined once in 0.0 days, then trained on in 0.0 days; 0.00 TB, " in done.out
    assert "data.features reads 4 images/s" in done.out
    assert "give --throughput (of the step without experts) and --refiner" in run("plan", str(file)).out
    assert run("plan", str(file), *speeds, "--json").data["features"]["refine_seconds"] == 2.0
