"""The gates of stage 1 on fine scenes: what is measured, on what, and when they are passed."""

from __future__ import annotations

import warnings

import pytest
import torch

from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.plugins.tiny import probe_experts, stage1_gates, train_experts, train_model
from lyrics.plugins.tiny.stage1_gates import ATTRIBUTES, LEAST, Gate, measure_gates, pooled_queries, probed


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    """Untrained throughout: of what it finds nothing matters here."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        overrides = {"language_model.options.checkpoint": None, "refiner.tagger": None}
        return build_model("lyrics-tiny", weights="random", overrides=overrides).eval()


def test_pooled_queries_are_means_of_each_kind_whatever_the_batch(
    model: LyricsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = train_experts.scenes("validation", 5, max_objects=1, fine=True)
    whole = pooled_queries(model, dataset, 5)
    assert whole.shape == (5, 2 * model.query_transformer.hidden_size)
    monkeypatch.setattr(stage1_gates, "_BATCH", 2)
    torch.testing.assert_close(pooled_queries(model, dataset, 5), whole, rtol=1e-4, atol=1e-4)
    encoded = []
    project = model.projection.forward
    monkeypatch.setattr(model.projection, "forward", lambda queries: encoded.append(queries) or project(queries))
    monkeypatch.setattr(model, "spec", model.spec.with_overrides({"sees": []}))
    model.encode([train_experts.drawn(dataset, [3])[0][0]])  # the same queries, without any text
    (queries_1QD,) = encoded
    count = model.query_transformer.num_visual
    by_hand = torch.cat([queries_1QD[0, :count].mean(0), queries_1QD[0, count:].mean(0)])
    torch.testing.assert_close(whole[3], by_hand, rtol=1e-4, atol=1e-4)


def test_probes_tell_what_is_there_and_nothing_else(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that hold the ground alone: its probe is right, that of the fill at chance."""
    from lyrics.plugins.scenes.names import GROUNDS

    dataset = train_experts.scenes("validation", 90, max_objects=1, fine=True)
    grounds = [GROUNDS.index(dataset[row].extra["ground"]) for row in range(90)]
    held = torch.nn.functional.one_hot(torch.tensor(grounds), 3) + 0.1 * torch.randn(90, 3)
    monkeypatch.setattr(stage1_gates, "pooled_queries", lambda model, dataset, scenes: held)
    found = probed(model, "validation", 90)
    assert set(found) == set(ATTRIBUTES) == {"color", "fill", "lean", "outline", "ground", "texture"}
    assert set(found["fill"]) == {"chance", *probe_experts.DESCRIBERS, "queries"}
    assert found["ground"]["queries"] > 0.95
    assert found["fill"]["queries"] < 0.6


def test_all_gates_are_measured_and_passed_where_shares_are_high_enough(
    model: LyricsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"chance": 0.3, "text": 0.3, "image encoder": 0.5, "detector": 0.4, "segmenter": 0.8, "queries": 0.73}
    probes = {name: dict(row) for name in ATTRIBUTES}
    probes["lean"]["queries"] = 0.71
    monkeypatch.setattr(stage1_gates, "probed", lambda model, split, scenes: probes)
    figures, found = measure_gates(model, "validation", scenes=4, probes=3)
    assert figures["samples"] == 4
    assert figures["ITM accuracy on twins"]["of"] == 8
    by_name = {gate.name: gate for gate in found}
    assert set(by_name) == set(LEAST) | {f"probe of pooled queries: {name}" for name in ATTRIBUTES}
    assert by_name["probe of pooled queries: fill"].passed
    assert not by_name["probe of pooled queries: lean"].passed
    assert figures["gates"]["probe of pooled queries: lean"] == {"share": 0.71, "least": 0.72, "passed": False}
    assert [Gate("a", 0.5, 0.5).passed, Gate("a", 0.499, 0.5).passed] == [True, False]


def test_stages_go_from_one_thing_to_all_with_twins_in_every_batch(tmp_path) -> None:
    configs = [train_model.stage_config(stage, tmp_path) for stage in train_model.FINE_STAGE1]
    most = [[one.options["max_objects"] for one in config.data.sets.values()] for config in configs]
    assert most == [[1], [1, 2], [2, 4, 8, 8]]
    seeds = [one.options["seed"] for config in configs for one in config.data.sets.values()]
    assert len(set(seeds)) == len(seeds), "no scene is seen twice"
    masked = [config.model.spec.objectives["msp"].options["mask_probability"] for config in configs]
    assert masked == [1.0, 0.5, 0.3]
    told = [[one.options["captions"] for one in config.data.sets.values()] for config in configs]
    assert told == [["dense"], ["dense"] * 2, ["dense"] * 3 + ["varied"]], "everything first"
    every = {"itc", "itm", "icg", "msp"}
    assert [set(config.model.spec.objectives) for config in configs] == [every - {"itm"}, every, every]
    for before, config in zip([None, *configs], configs, strict=False):
        assert config.model.start_from == (None if before is None else before.out)
        assert config.data.group == 2
        assert {one.options["attributes"] for one in config.data.sets.values()} == {"fine"}
        assert config.model.spec.refiner.detector.options["checkpoint"] == str(tmp_path / "weights")
        assert config.model.spec.query_transformer.options["box_features"] == "fourier"
    assert configs[-1].model.spec.objectives["itc"].options["drop_spatial"] == 0.5
