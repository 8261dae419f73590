"""Texts and the first pass made before a step: pickled and back, the same numbers as in the step."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lyrics.core.geometry import Box
from lyrics.core.refining.refinement import Refinement
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.texts import PreparesSteps, StepTexts, Texts, twin
from lyrics.core.types import DetectedObject
from tests.plugins.objectives.cases import batch, features, gradients, objectives, small_model

NUM_LOCAL = {"detector": 6, "segmenter": 4}


def refinements(counts: list[int]) -> list[Refinement]:
    boxes = [Box(0.1, 0.2, 0.5, 0.6), Box(0.3, 0.1, 0.9, 0.5), Box(0.0, 0.0, 1.0, 1.0)]
    return [
        Refinement((64, 48), objects=tuple(DetectedObject(f"dog {n}", boxes[n % 3], 1 - n / 9) for n in range(count)))
        for count in counts
    ]


def early(model: Any, losses: Any, planner: Any) -> PreparesSteps:
    twins = {name: twin(one, "meta") for name, one in losses.items()}
    return PreparesSteps(Texts.of(model, "lyrics"), twins, planner, seed=5, global_batch=3)


def prepared(steps: PreparesSteps, counts: list[int]) -> StepTexts:
    size = len(counts)
    captions = [("a red dog", "", "two dogs")[n % 3] for n in range(size)]
    found = refinements(counts)
    return steps(found, captions, range(4 * 3, 4 * 3 + size), range(size), NUM_LOCAL)


def same(a: Any, b: Any) -> bool:
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else bool(np.array_equal(a, b))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 0, 0], [1]])
def test_losses_and_gradients_are_those_of_a_step_that_lays_out_itself(counts: list[int], dropout: float) -> None:
    model = small_model(vocab_size=1200, hidden_dropout=dropout, attention_dropout=dropout).double().train()
    losses = objectives(model, itc={"drop_spatial": 0.5}).double().train()
    steps = pickle.loads(pickle.dumps(early(model, losses, model.planner(9))))
    ahead = pickle.loads(pickle.dumps(prepared(steps, counts)))
    assert (ahead.batch.seed, ahead.batch.step) == (5, 4)
    assert ahead.is_of(5, 4)
    assert not ahead.is_of(5, 3)
    feats = features(len(counts), seed=3)
    found = []
    for planned in (ahead.planned, None):
        torch.manual_seed(2)
        got = pretrain_losses(model, dict(losses.items()), feats, ahead.batch, planned=planned)
        sum(one.sum for one in got.values()).backward()
        found.append(({name: (one.sum.item(), one.count) for name, one in got.items()}, gradients([model, losses])))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_a_pass_laid_out_for_other_features_is_laid_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(vocab_size=1200).train()
    losses = objectives(model).train()
    ahead = prepared(early(model, losses, model.planner(9)), [2, 0, 3])
    ran = []
    run_planned = model.run_planned

    def kept(*arguments: Any) -> Any:
        ran.append(run_planned(*arguments) is not None)
        return run_planned(*arguments)

    monkeypatch.setattr(model, "run_planned", kept)
    for num_local in ((6, 4), (6, 5)):
        feats = features(3, num_local, dtype=torch.float32)
        got = pretrain_losses(model, dict(losses.items()), feats, ahead.batch, planned=ahead.planned)
        assert got.keys() == losses.keys()
    assert ran == [True, False]


def test_what_is_pickled_comes_back() -> None:
    model = small_model(vocab_size=1200).train()
    losses = objectives(model).train()
    ahead = prepared(early(model, losses, model.planner(9)), [2, 0, 3])
    again = pickle.loads(pickle.dumps(ahead))
    for one, other in ((ahead.batch.spatial, again.batch.spatial), (ahead.batch, again.batch)):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert same(value, getattr(other, name)), name
    assert same(ahead.batch.caption.ids_RL, again.batch.caption.ids_RL)
    assert isinstance(ahead.planned, type(again.planned))
    assert same(ahead.planned.tables.parcel.numbers, again.planned.tables.parcel.numbers)  # type: ignore[union-attr]
    assert len(pickle.dumps(ahead)) < 100_000, "tables are carried once"


def test_a_query_transformer_without_a_planner_has_its_texts_alone() -> None:
    model = small_model(vocab_size=1200).train()
    losses = objectives(model).train()
    ahead = prepared(early(model, losses, None), [1, 2, 0])
    assert ahead.planned is None
    assert ahead.pin_memory() is ahead
    assert len(ahead.batch) == 3


def test_a_twin_has_no_values_and_says_the_same_streams() -> None:
    model = small_model()
    losses = objectives(model)
    texts: PretrainBatch = replace(batch(model, 4), seed=1)
    for name, one in losses.items():
        copied = twin(one, "meta")
        assert all(parameter.is_meta for parameter in copied._parameters.values() if parameter is not None)
        assert all(not parameter.is_meta for parameter in one.parameters())
        copied.train()
        assert not one.training
        for ours, theirs in zip(one.streams(texts), twin(one, "meta").streams(texts), strict=True):
            assert (ours.name, dict(ours.visibility)) == (theirs.name, dict(theirs.visibility)), name
            for segment, text in ours.text.items():
                assert same(text.ids_RL, theirs.text[segment].ids_RL)


def test_negatives_given_by_hand_are_used_beside_a_plan() -> None:
    model = small_model(vocab_size=1200, hidden_dropout=0.0, attention_dropout=0.0).double().train()
    losses = objectives(model).double().train()
    ahead = prepared(early(model, losses, model.planner(9)), [2, 1, 3])
    given = Negatives(torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))
    feats = features(3)
    both = [
        pretrain_losses(model, dict(losses.items()), feats, ahead.batch, given, planned)
        for planned in (ahead.planned, None)
    ]
    assert {n: one.sum.item() for n, one in both[0].items()} == {n: one.sum.item() for n, one in both[1].items()}
