"""Both stages train over damaged records: every bad one is in the ledger, and the losses are numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.data.build import build_dataset
from lyrics.core.data.fitting import Fitting
from lyrics.core.data.known import Stage
from lyrics.core.data.ledger import read_ledger
from lyrics.core.data.readers import write_index
from lyrics.core.errors import ImageError, SampleError
from lyrics.core.runs.config import load_config
from lyrics.core.training.assemble import run
from tests.core.data.tars import jpeg, sample_members, write_tar
from tests.core.small import small
from tests.core.training.runs import losses
from tests.plugins.datasets.files import conversation, picture, write
from tests.plugins.datasets.test_datasets_damage import mutated, mutations, paths


def llava(folder: Path) -> dict[str, Any]:
    """A good record, then one with a field that is not as expected, and so on."""
    good = conversation("000000033471.jpg")
    rows: list[Any] = [None, "a text", {}]
    for path in paths(good):
        value: Any = good
        for key in path:
            value = value[key]
        rows += [mutated(good, path, new) for _, new in mutations(value)]
    write(folder / "llava.json", [each for row in rows for each in (row, good)])
    picture(folder / "train2017/000000033471.jpg")
    return {"use": "llava", "options": {"root": str(folder), "file": "llava.json"}}


def shards(folder: Path) -> dict[str, Any]:
    """Samples with two pictures, none, an empty or damaged one, or no caption; among good ones."""
    folder.mkdir()
    odd = [
        [("0.left.jpg", jpeg()), ("0.right.jpg", jpeg()), ("0.txt", b"two")],
        [("1.txt", b"none")],
        [("2.jpg", b""), ("2.txt", b"empty")],
        [("3.jpg", jpeg()[:200]), ("3.txt", b"cut off")],
        [("4.tiff", b"II*\0"), ("4.txt", b"another format")],
        [("5.jpg", jpeg())],
        [("6.jpg", jpeg()), ("6.txt", b"\xff\xfe")],
        [("7.jpg", jpeg()), ("7.json", b"[" * 50_000)],
        [("8.gif", b"GIF89a"), ("8.txt", b"a damaged animation")],
    ]
    good = [sample_members(f"good{number}", f"caption {number}") for number in range(len(odd))]
    members = [each for pair in zip(odd, good, strict=True) for sample in pair for each in sample]
    write_index(write_tar(folder / "0.tar", members))
    return {"use": "laion", "options": {"root": str(folder)}}


def pages(folder: Path) -> dict[str, Any]:
    """Web pages, the first without a picture, which stage 1 cannot use."""
    one = {"image_name": "a.jpg", "matched_text_index": 0, "matched_sim": 0.5}
    rows = [
        {"text_list": ["Words."], "image_info": []},
        *({"text_list": [f"A sentence {number}."], "image_info": [one]} for number in range(5)),
        {"text_list": [], "image_info": [one]},
    ]
    write(folder / "docs.jsonl", rows)
    picture(folder / "images/a.jpg")
    return {"use": "mmc4", "options": {"root": str(folder)}}


def bad_rows(slot: dict[str, Any], stage: Stage) -> set[int]:
    data = Fitting(build_dataset(slot["use"], slot["options"]), stage)
    found = set()
    for row in range(len(data)):
        try:
            sample = data[row]
            if sample.image is not None:
                data.picture(sample)
        except (SampleError, ImageError):
            found.add(row)
    return found


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_run_goes_through_damaged_records(stage: Stage, tmp_path: Path) -> None:
    makers = {"llava": llava} if stage == "instruct" else {"laion": shards, "mmc4": pages}
    sets = {name: make(tmp_path / name) for name, make in makers.items()}
    rows = sum(len(build_dataset(slot["use"], slot["options"])) for slot in sets.values())
    batch = 8
    objectives = {name: name for name in ("itc", "itm", "icg", "msp")}
    spec = small(objectives=objectives, query_transformer__options__max_positions=256, refiner=None)
    config = {
        "stage": stage,
        "out": str(tmp_path / "run"),
        "device": "cpu",
        "model": {"spec": spec.model_dump(mode="json"), "weights": "random"},
        "data": {"sets": sets, "workers": 0},
        "optimization": {"steps": math.ceil(rows / batch), "global_batch": batch},
        "checkpoint": {"every_steps": 1000},
        "logging": {"trackers": []},
    }
    outcome = run(load_config(config))
    assert outcome.step == math.ceil(rows / batch)
    logged = [float.fromhex(value) for _, step in losses(tmp_path / "run") for value in step.values()]
    assert logged
    assert all(math.isfinite(value) for value in logged)
    ledger = read_ledger(tmp_path / "run" / "bad_samples.jsonl")
    # Every row was drawn once at least.
    expected = {(name, row) for name, slot in sets.items() for row in bad_rows(slot, stage)}
    assert {(bad.data_set, bad.row) for bad in ledger} == expected
    assert len(expected) > 8
    assert all(json.dumps(bad.error) and bad.kind for bad in ledger)
