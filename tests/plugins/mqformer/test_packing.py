"""Packing: all tables of a call go to the device in one copy that nobody waits for, those of the attention kernels
included.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from lyrics.core.stage1.streams import Features, Stream, full
from lyrics.kernels import Plan
from lyrics.kernels import tiles as kernel_tiles
from lyrics.kernels.attention import replaced_by
from lyrics.kernels.tiles import host_tiles
from lyrics.plugins.mqformer import packing
from lyrics.workflows.bench import null_attention
from lyrics.workflows.bench.fake_device import fake_device
from tests.plugins.mqformer.test_model import QUERIES, ROWS, TEXT
from tests.plugins.objectives.cases import features, small_model

MSP = Stream(
    "msp",
    full("VGS"),
    ROWS,
    ROWS,
    {"S": TEXT["S"]},
    wanted={"V": "all", "S": torch.tensor([[True, False]] * 2 + [[False] * 2])},
)
CAPTION = Stream("icg", {("C", "C"): "causal"}, ROWS, None, {"C": TEXT["C"]}, prefix="queries", wanted={"C": "all"})
TEXTS = Stream("text", full("SC"), ROWS, None, TEXT, wanted=dict.fromkeys("SC", "all"))


def on(device: str, feats: Features) -> Features:
    local = {name: (tokens.to(device), mask.to(device)) for name, (tokens, mask) in feats.local.items()}
    return Features(feats.image_tokens_BND.to(device), local)


def test_one_copy_and_no_wait() -> None:
    model = small_model().to("meta")
    feats = on("meta", features(3, dtype=torch.float32))
    memory = model.project(feats)
    with fake_device() as device, replaced_by(null_attention):
        outputs = model([QUERIES, MSP, CAPTION, TEXTS], memory)
        outputs("icg", "C").sum().backward()
    assert (device.waits, device.waiting_copies) == ([], [])
    assert device.copies == 1


def test_a_pass_that_was_laid_out_before_lays_out_nothing_and_has_the_same_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = [QUERIES, MSP, CAPTION, TEXTS]
    model = small_model().to("meta")
    memory = model.project(on("meta", features(3, dtype=torch.float32)))
    with replaced_by(null_attention):
        planned = pickle.loads(pickle.dumps(model.planner(9)))(streams, 3, {"detector": 6, "segmenter": 4})
        planned = pickle.loads(pickle.dumps(planned))
        there: list[packing.Tables] = []
        run = model._run
        monkeypatch.setattr(model, "_run", lambda tables, memory: there.append(tables) or run(tables, memory))
        model(streams, memory)
        monkeypatch.setattr(packing, "lay_out", None)
        monkeypatch.setattr(null_attention, "host_tiles", None)
        monkeypatch.setattr(kernel_tiles, "host_tiles", None)
        monkeypatch.setattr(kernel_tiles, "_make_blocks", None)
        with fake_device() as device:
            outputs = model.run_planned(planned, memory)
            assert outputs is not None
            outputs("icg", "C").sum().backward()
        assert (device.waits, device.waiting_copies, device.copies) == ([], [], 1)
        assert model.run_planned(planned, replace(memory, num_images=4)) is None
    now, before = there
    assert now.num_sets == before.num_sets
    for rows, others in ((now.every, before.every), (now.last, before.last)):
        assert rows.num_query_rows == others.num_query_rows
        for one, other in ((rows.plan, others.plan), (rows.visual, others.visual), (rows.grounding, others.grounding)):
            assert one is not None
            assert other is not None
            tables, again = (
                next(found for key, found in plan.derived.items() if isinstance(key, tuple)) for plan in (one, other)
            )
            for name in ("rows", "row_tiles", "cols", "key_tiles", "entries", "row_id", "col_id"):
                assert getattr(tables, name).shape == getattr(again, name).shape, name


def test_the_numbers_that_were_packed_before_are_those_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [QUERIES, MSP, CAPTION, TEXTS]
    model = small_model()
    memory = model.project(features(3, dtype=torch.float32))
    there: list[packing.Tables] = []
    run = model._run
    with replaced_by(null_attention):
        planned = pickle.loads(pickle.dumps(model.planner(9)(streams, 3, {"detector": 6, "segmenter": 4})))
        monkeypatch.setattr(model, "_run", lambda tables, memory: there.append(tables) or run(tables, memory))
        model(streams, memory)
        model.run_planned(planned, memory)
    now, before = there
    assert torch.equal(now.ids_T, before.ids_T)
    assert torch.equal(now.positions_T, before.positions_T)
    assert now.where.keys() == before.where.keys()
    for key, (found, shape) in now.where.items():
        assert torch.equal(found, before.where[key][0])
        assert shape == before.where[key][1]
    for rows, others in ((now.every, before.every), (now.last, before.last)):
        for one, other in ((rows.plan, others.plan), (rows.visual, others.visual), (rows.grounding, others.grounding)):
            assert one is not None
            assert other is not None
            tables, again = (
                next(found for key, found in plan.derived.items() if isinstance(key, tuple)) for plan in (one, other)
            )
            for name in ("rows", "row_tiles", "cols", "key_tiles", "entries", "row_id", "col_id", "key_exists"):
                ours, theirs = getattr(tables, name), getattr(again, name)
                assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    assert torch.equal(now.every.plan.table, before.every.plan.table)


def test_the_tables_that_were_sent_are_those_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(plan: object, *sizes: int) -> object:
        made.append(plan)
        return host_tiles(plan, *sizes)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_tiles, "host_tiles", counted)
    monkeypatch.setattr(null_attention, "host_tiles", counted)
    model = small_model()
    seen: list[packing.Tables] = []
    lower = packing.lower

    def kept(*arguments: object) -> packing.Tables:
        seen.append(lower(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr("lyrics.plugins.mqformer.model.lower", kept)
    with replaced_by(null_attention):
        model([QUERIES, MSP, CAPTION, TEXTS], features(3, dtype=torch.float32))
    (tables,) = seen
    plans = [tables.every.plan, tables.last.plan, tables.every.visual, tables.every.grounding]
    plans += [plan for plan in (tables.last.visual, tables.last.grounding) if plan is not None]
    assert len(made) == len(plans), "none was made again by a layer"
    for plan in plans:
        assert plan is not None
        (key,) = [key for key in plan.derived if isinstance(key, tuple) and key[0] == "tiles"]
        found, fresh = plan.derived[key], host_tiles(plan, *key[1:4])
        for ours, theirs in zip(
            (found.rows, found.row_tiles, found.cols, found.key_tiles, found.entries), fresh.arrays, strict=True
        ):
            assert np.array_equal(ours.numpy(), theirs)
        ids = plan.row_id_T if isinstance(plan, Plan) else plan.row_id_SQ.reshape(-1)
        assert torch.equal(found.row_id, ids)


def test_nothing_wanted_and_no_rows() -> None:
    model = small_model()
    feats = features(3, dtype=torch.float32)
    nothing = Stream("text", full("SC"), ROWS, None, TEXT)
    outputs = model([QUERIES, nothing], feats)
    assert outputs("queries", "V").shape[0] == 3
    alone = model([Stream("text", full("SC"), ROWS, None, TEXT, wanted={"C": "all"})], feats)
    assert alone("text", "C").shape[0] == int(TEXT["C"].lengths_R.sum())
