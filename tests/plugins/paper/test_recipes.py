"""The paper's two recipes against the paper's numbers, and against the page that lists them (docs/paper.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.errors import SpecError
from lyrics.core.registry.registry import default_registry
from lyrics.core.runs.config import load_config
from lyrics.core.training.assemble import run
from lyrics.core.training.begin import check_start

PAGE = (Path(__file__).parents[3] / "docs" / "paper.md").read_text(encoding="utf-8")
TASKS = (
    *("coco", "cc3m", "mmc4", "ai-challenger"),
    *("refcoco", "refcoco-plus", "refcocog", "grit", "vg"),
    *("vqav2", "gqa", "ok-vqa", "docvqa"),
    *("ai2d", "scienceqa", "textvqa"),
    *("chartqa", "dvqa"),
)
DIALOGUE = ("llava", "svit", "m3it", "llavar", "multiinstruct", "orca", "alpaca")

#: Section 4, "Implementation Detail" and "Training Data".
BOTH: Mapping[str, Any] = {
    "optimization.optimizer": "adamw",
    "optimization.betas": [0.9, 0.98],
    "optimization.weight_decay": 0.05,
    "optimization.learning_rate": 1e-4,
    "optimization.warmup_share": 0.15,
    "optimization.groups": {},
    "model.spec.train_image_encoder": False,
    "model.weights": "pretrained",
    "model.start_from": None,
    "data.augmentation.flip": 0.5,
    "data.group": 1,
}
OWN: Mapping[str, Mapping[str, Any]] = {
    "paper-stage1": {
        "stage": "pretrain",
        "optimization.steps": 800_000,
        "optimization.global_batch": 512,
        "model.allow_random_start": False,
        "data.sets.laion.at_least": {"similarity": 0.3},
        **{f"data.sets.{name}.at_least": {"itm": 0.5} for name in ("cc12m", "cc3m", "sbu")},
    },
    "paper-stage2": {
        "stage": "instruct",
        "optimization.steps": 300_000,
        "optimization.global_batch": 64,
        **{f"data.sets.{name}.during": [0.0, 1.0] for name in TASKS},
        **{f"data.sets.{name}.during": [0.75, 1.0] for name in DIALOGUE},
    },
}


def value(name: str, path: str) -> Any:
    found: Any = default_registry().recipe(name).model_dump(mode="json")
    for key in path.split("."):
        found = found[key]
    return found


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [(name, path, one) for name, own in OWN.items() for path, one in {**BOTH, **own}.items()],
)
def test_number_is_the_papers(name: str, path: str, expected: Any) -> None:
    assert value(name, path) == expected


def test_table_1_is_read_and_nothing_else() -> None:
    assert tuple(value("paper-stage1", "data.sets")) == ("laion", "cc12m", "cc3m", "sbu")
    assert tuple(value("paper-stage2", "data.sets")) == (*TASKS, *DIALOGUE)


def test_the_page_has_every_number_of_its_own() -> None:
    """The page's own test holds each of them against the recipes; here is that none is left out."""
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PAGE)}
    said = {(name, path) for span in spans for name, path in re.findall(r"^([a-z0-9-]+):([^=]+)=", span)}
    for name in OWN:
        for path in ("optimization.steps", "optimization.global_batch"):
            assert (name, path) in said
    assert ("paper-stage1", "model.allow_random_start") in said
    for data_set, kind in (("laion", "similarity"), ("cc12m", "itm"), ("cc3m", "itm"), ("sbu", "itm")):
        assert ("paper-stage1", f"data.sets.{data_set}.at_least.{kind}") in said
    assert {("paper-stage2", f"data.sets.{name}.during") for name in ("vqav2", "llava")} <= said


def test_stage_1_asks_for_blip2_first_and_then_for_relevance(tmp_path: Path) -> None:
    """In the order in which a user makes them: nothing large is read before both are there."""
    folders = {}
    for name in ("laion", "cc12m", "cc3m", "sbu"):
        (tmp_path / name).mkdir()
        rows = {"image_urls": ["http://x/1"], "captions": ["a dog"]}
        (tmp_path / name / "list.json").write_text(json.dumps(rows))
        if name.startswith("cc"):
            (tmp_path / name / "list.json").rename(tmp_path / name / "list.tsv")
            (tmp_path / name / "list.tsv").write_text("a dog\thttp://x/1\n")
        folders[f"data.sets.{name}.options.root"] = str(tmp_path / name)
    with pytest.raises(SpecError, match=r"blip2_pretrained_vitL\.pth FOLDER --from blip2-lavis"):
        run(load_config("paper-stage1", folders))
    begun = {**folders, "model.allow_random_start": True}
    check_start(load_config("paper-stage1", begun))
    with pytest.raises(SpecError, match=r"laion, cc12m, cc3m, sbu are read where image and text belong together"):
        run(load_config("paper-stage1", begun))
