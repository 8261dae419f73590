"""What stage 1 begins with, and what is read when: as the configuration says, from the command's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lyrics.core.data.relevance import write_scores
from lyrics.core.errors import CheckpointError, SpecError
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.training.assemble import run as assemble
from lyrics.core.training.batches import build_mixture
from lyrics.core.training.begin import check_start
from lyrics.core.training.loop import train
from tests.core.small import small
from tests.core.training.standin import COLLATE, Numbers, StandIn


def config(out: Path, stage: str = "pretrain", **changes: Any) -> TrainConfig:
    base = {
        "stage": stage,
        "out": str(out),
        "device": "cpu",
        "model": {"spec": small(objectives={"itc": "itc"}).model_dump(mode="json"), "weights": "random"},
        "data": {"sets": {"a": "scenes", "b": "scenes"}, "augmentation": None, "workers": 0},
        "optimization": {"steps": 8, "global_batch": 4},
        "checkpoint": {"every_steps": 2},
        "logging": {"trackers": []},
    }
    return load_config(base, {path.replace("__", "."): value for path, value in changes.items()})


# --- random weights


def test_a_random_start_is_refused_with_what_to_convert(tmp_path: Path) -> None:
    asked = config(tmp_path, model__weights="pretrained", model__allow_random_start=False)
    address = r"https://storage\.googleapis\.com/\S+/blip2_pretrained_vitL\.pth"
    with pytest.raises(
        SpecError,
        match=rf"'lyrics convert {address} FOLDER --from blip2-lavis' or .*"
        r"query_transformer\.options\.checkpoint=FOLDER.*--set model\.allow_random_start=true\.$",
    ):
        assemble(asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"model__allow_random_start": True},
        {"model__weights": "pretrained", "model__spec__query_transformer__options__checkpoint": "FOLDER"},
        {"model__start_from": "runs/before"},
        {"model__weights": "models/before"},
        {"stage": "instruct"},
    ],
)
def test_a_start_that_is_not_random_is_allowed(tmp_path: Path, changes: dict[str, Any]) -> None:
    stage = changes.pop("stage", "pretrain")
    check_start(config(tmp_path, stage, **{"model__allow_random_start": False, **changes}))


def test_random_weights_are_random_whatever_the_checkpoint(tmp_path: Path) -> None:
    path = "model__spec__query_transformer__options__checkpoint"
    with pytest.raises(SpecError, match="would begin with random weights"):
        check_start(config(tmp_path, **{path: "FOLDER", "model__allow_random_start": False}))


def test_a_part_without_a_checkpoint_of_its_own_is_named_without_one(tmp_path: Path) -> None:
    changes = {"model__spec__query_transformer": "mlp-projector", "model__spec__objectives": {}}
    asked = config(tmp_path, model__allow_random_start=False, **changes)
    with pytest.raises(SpecError, match=r"'mlp-projector' would begin with random weights\. Give --set"):
        check_start(asked)


# --- phases


def test_phases_are_shares_of_the_steps(tmp_path: Path) -> None:
    found = build_mixture(config(tmp_path, data__sets__b__during=[0.25, 0.75]), {"a": Numbers(9), "b": Numbers(7)})
    source_N, _ = found.many(np.arange(40))
    assert set(source_N[:8]) == set(source_N[24:]) == {0}  # steps 0 and 1, and from step 6 on
    assert set(source_N[8:24]) == {0, 1}


def test_a_share_without_a_step_is_refused(tmp_path: Path) -> None:
    asked = config(tmp_path, data__sets__b__during=[0.5, 0.55])
    with pytest.raises(SpecError, match=r"data\.sets\.b\.during=\[0\.5, 0\.55\]: holds no whole step of 8"):
        build_mixture(asked, {"a": Numbers(9), "b": Numbers(7)})


class Seen(Numbers):
    """Notes which rows were read."""

    def __init__(self, name: str, rows: int, seen: list[str]) -> None:
        super().__init__(rows)
        self.name, self.seen = name, seen

    def __getitem__(self, index: int) -> Any:
        self.seen.append(self.name)
        return super().__getitem__(index)


def test_a_run_goes_through_its_phases_and_is_another_without_them(tmp_path: Path) -> None:
    """The second set is read in the second half; a checkpoint of such a run is not gone on with in another order."""

    def trained(out: Path, **changes: Any) -> list[str]:
        seen: list[str] = []
        sets = {name: Seen(name, 20, seen) for name in ("a", "b")}
        asked = config(out, data__sets__b__during=[0.5, 1.0], **changes)
        train(asked, StandIn(), sets, COLLATE["pretrain"])  # type: ignore[arg-type]
        return seen

    seen = trained(tmp_path / "whole")
    assert set(seen[:16]) == {"a"}
    assert set(seen[16:32]) == {"a", "b"}
    facts = json.loads((tmp_path / "whole" / "data.json").read_text())
    assert facts["sets"]["b"]["rows"] == 20
    sets = {name: Seen(name, 20, []) for name in ("a", "b")}
    with pytest.raises(CheckpointError, match=r"data was .*samples would be repeated or missed"):
        train(config(tmp_path / "whole"), StandIn(), sets, COLLATE["pretrain"])  # type: ignore[arg-type]


# --- relevance


def test_rows_that_stay_together_are_not_filtered(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.group=2 keeps together would no longer be neighbors"):
        config(tmp_path, data__group=2, data__sets__a__at_least={"itm": 0.5})


def test_a_run_reads_the_rows_that_reach_the_threshold(tmp_path: Path) -> None:
    """From the file of scores to the run's account of its data; other rows are another run."""
    file = tmp_path / "scores.safetensors"
    write_scores(file, {"itm": np.linspace(0, 1, 64, dtype=np.float32)}, {})
    slot = {"use": "scenes", "options": {"task": "caption", "scenes": 64}, "scores": str(file)}
    cached = {"use": "cached", "options": {"missing": "empty"}}
    spec = small(objectives={"itc": "itc"}, refiner__tagger=cached, refiner__detector=cached, refiner__segmenter=cached)

    def asked(threshold: float) -> TrainConfig:
        base = {
            "stage": "pretrain",
            "out": str(tmp_path / "run"),
            "device": "cpu",
            "model": {"spec": spec.model_dump(mode="json"), "weights": "random"},
            "data": {"sets": {"s": {**slot, "at_least": {"itm": threshold}}}, "augmentation": None, "workers": 0},
            "optimization": {"steps": 1, "global_batch": 4},
            "logging": {"trackers": []},
        }
        return load_config(base)

    assert assemble(asked(0.75)).step == 1
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["sets"]["s"]["rows"] == 16
    assert len(facts["sets"]["s"]["kept"]) == 64
    with pytest.raises(CheckpointError, match="data was"):
        assemble(asked(0.5))
