"""The ways of a stage-1 step at toy size: losses are compared before times, for the paper's and for BLIP-2's."""

from __future__ import annotations

import pytest
import torch

from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.state import Loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.workflows.bench import step_compare
from lyrics.workflows.bench.baselines import dense_losses
from lyrics.workflows.bench.blip2 import Blip2Rival, blip2_losses
from lyrics.workflows.bench.step import table
from lyrics.workflows.bench.step_cases import blip2_model, build_case, drawn_lengths, longest

SMALL = {
    "sizes": {
        "num_visual": 4,
        "num_grounding": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
        "max_positions": 64,
    },
    "image": (5, 16),
    "local": (7, 12),
    "padded": (32, 12),
}
OLD = {"labels": ("padded", "true"), "true": (16, 6)}
LONG = {**SMALL, "sizes": {**SMALL["sizes"], "max_positions": 300}}


def test_rows_compare_all_variants() -> None:
    rows = step_compare.compare(3, "fp32", 1, profile=True, **OLD, **SMALL)
    assert [(row["variant"], row["lengths"]) for row in rows] == [
        ("N1", "padded"),
        ("N3", "padded"),
        ("packed", "padded"),
        ("packed", "true"),
    ]
    n1, n3, padded, true = rows
    assert n1["speedup_vs_N1"] == n1["saved_vs_N1"] == 1.0
    assert true["flops"] < padded["flops"] < n3["flops"] < n1["flops"]
    assert true["saved_bytes"] < padded["saved_bytes"] < n1["saved_bytes"]
    for name, value in padded["losses"].items():
        assert value == pytest.approx(n1["losses"][name], rel=1e-4)
    for row in rows:
        assert row["cpu_seconds_forward_backward"] > 0
        assert {"attention", "matrix product", "normalization", "elementwise"} <= row["profile_seconds"].keys()
        assert all(seconds > 0 for seconds in row["profile_seconds"].values())
    shown = table(rows)
    assert len(shown.splitlines()) == 1 + 2 * 4
    assert "packed" in shown


def test_rivals_may_be_padded_to_the_longest_text_or_not_at_all() -> None:
    rows = step_compare.compare(3, "fp32", 1, labels=("drawn", "equal"), true=(16, 6), **LONG)
    assert [(row["variant"], row["lengths"]) for row in rows] == [
        (name, label) for label in ("equal", "drawn") for name in ("N1", "N3", "packed")
    ]
    flops = {(row["variant"], row["lengths"]): row["flops"] for row in rows}
    assert flops["packed", "equal"] < flops["N3", "equal"] < flops["N1", "equal"]
    for row in rows:
        assert row["flops_ratio_vs_N1"] == flops["N1", row["lengths"]] / row["flops"]
    drawn = drawn_lengths(64)
    assert {(spatial - 1) % 12 for spatial, _ in drawn} == {0}
    assert {(spatial - 1) // 12 for spatial, _ in drawn} <= set(range(1, 21))
    assert longest(drawn) == (max(s for s, _ in drawn), max(c for _, c in drawn))
    assert sum(caption - 2 for _, caption in drawn) / 64 == pytest.approx(10.5, abs=1)


def test_transformers_q_former_is_a_rival_with_the_same_losses() -> None:
    rows = step_compare.compare(3, "fp32", 1, recipe="blip2", true=(0, 6), **LONG)
    assert [(row["variant"], row["lengths"]) for row in rows] == [
        ("transformers", "padded"),
        ("packed", "padded"),
        ("packed", "true"),
        ("transformers", "equal"),
        ("packed", "equal"),
        ("transformers", "drawn"),
        ("packed", "drawn"),
    ]
    flops = {(row["variant"], row["lengths"]): row["flops"] for row in rows}
    assert flops["packed", "padded"] < flops["transformers", "padded"]
    assert flops["packed", "true"] == flops["packed", "equal"] < flops["transformers", "equal"]
    assert set(rows[0]["losses"]) == {"itc", "itm", "icg"}
    assert rows[2]["flops_ratio_vs_transformers"] == flops["transformers", "padded"] / flops["packed", "true"]
    assert "transformers" in table(rows)


def test_the_rival_has_the_same_gradients() -> None:
    sizes = {name: value for name, value in SMALL["sizes"].items() if name != "num_grounding"}
    model = blip2_model(sizes, 16)
    rival = Blip2Rival(*model)
    _, objectives, *rest = build_case(3, [(0, 5), (0, 9), (0, 3)], model=model, image=(5, 16), padded=(0, 12))
    total_loss(pretrain_losses(model[0], objectives, *rest))[0].backward()
    total_loss(blip2_losses(rival, objectives, *rest))[0].backward()
    for ours, theirs in (
        (model[0].query_tokens_QD.grad, rival.query_tokens.grad[0]),
        (model[0].word_embeddings.weight.grad, rival.embeddings.word_embeddings.weight.grad),
        (model[0].image_norm.weight.grad, rival.ln_vision.weight.grad),
        (
            model[0].layers[0].query_ffn.up.weight.grad,
            rival.qformer.encoder.layer[0].intermediate_query.dense.weight.grad,
        ),
        (objectives["itc"].temperature.grad, rival.temp.grad),
        (objectives["itm"].classifier.weight.grad, rival.itm_head.weight.grad),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_compiled_blocks_are_a_variant_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by a backend that runs what it was given as it is."""
    compiled = []
    original = torch.nn.Module.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, dynamic: original(self, backend=backend, dynamic=dynamic)
    )
    rows = step_compare.compare(2, "fp32", 1, **OLD, compiled=True, **SMALL)
    assert compiled
    assert [row["variant"] for row in rows] == ["N1", "N3", "packed", "compiled", "packed", "compiled"]
    assert rows[3]["losses"] == pytest.approx(rows[2]["losses"], rel=1e-5)
    assert rows[3]["flops"] == rows[2]["flops"]


def test_unequal_losses_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments):
        losses = dense_losses(*arguments)
        return losses | {"icg": Loss(losses["icg"].sum * 1.01, losses["icg"].count)}

    monkeypatch.setattr(step_compare, "pretrain_losses", wrong)
    with pytest.raises(AssertionError, match="icg of packed"):
        step_compare.compare(2, "fp32", 1, **OLD, **SMALL)


def test_the_packed_step_uses_the_attention_it_is_told() -> None:
    rows = step_compare.compare(2, "fp32", 1, **OLD, attention="reference", **SMALL)
    assert {row["attention"] for row in rows} == {"reference"}
    with pytest.raises(ValueError, match="'flash' cannot run here"):
        step_compare.compare(2, "fp32", 1, **OLD, attention="flash", **SMALL)
