"""Region words: by hand, with little in the batch, and learned."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from lyrics.core.box_waves import side_waves
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.stage1.batch import PretrainBatch, Regions
from lyrics.core.stage1.step import pretrain_accuracy, pretrain_losses, pretrain_state
from lyrics.core.stage1.streams import Text
from lyrics.plugins.mqformer.model import MQFormer
from lyrics.plugins.objectives import RegionOptions
from lyrics.plugins.objectives.regions import RegionWords, build
from lyrics.plugins.objectives.texts import QUERIES
from tests.plugins.objectives.cases import batch, features, small_model

SIDES = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.4, 0.9]])
REGIONS = Regions(torch.tensor([0, 0, 2]), SIDES, Text.from_lists([[20, 21], [22], [20, 23, 24]]))


def made() -> tuple[MQFormer, RegionWords]:
    model = small_model().double()
    torch.manual_seed(2)
    context = BuildContext("random", query_dim=model.hidden_size, query_segments=model.segments)
    return model, build(RegionOptions(num_heads=3), context).double().eval()


def given(model: MQFormer, regions: Regions | None = REGIONS) -> PretrainBatch:
    whole = batch(model, 3)
    return replace(whole, regions=regions)


def test_the_loss_is_that_of_each_region_by_itself() -> None:
    model, objective = made()
    feats, whole = features(3), given(model)
    loss = pretrain_losses(model, {"regions": objective}, feats, whole)["regions"]
    state = pretrain_state(model, {"regions": objective}, feats, whole)
    queries = torch.cat([state.outputs(QUERIES, name) for name in "VG"], dim=1)
    expected = torch.zeros((), dtype=torch.float64)
    for sample, sides, words in zip((0, 0, 2), SIDES, ([20, 21], [22], [20, 23, 24]), strict=True):
        asked = objective.question(side_waves(sides[None]).double())[:, None]
        for layer in objective.layers:
            asked = layer(asked, queries[sample : sample + 1])
        log = model.token_logits(asked[:, 0]).log_softmax(dim=1)[0]
        expected = expected - torch.stack([log[word] for word in words]).mean()
    assert loss.count == 3
    torch.testing.assert_close(loss.sum, expected)


def test_gradients_reach_queries_and_decoder_and_change_with_the_box() -> None:
    model, objective = made()
    feats, whole = features(3), given(model)
    loss = pretrain_losses(model, {"regions": objective}, feats, whole)["regions"]
    loss.sum.backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in objective.parameters())
    assert model.query_tokens_QD.grad.abs().sum() > 0
    moved = replace(REGIONS, sides_norm_R4=SIDES.flip(0))
    other = pretrain_losses(model, {"regions": objective}, feats, given(model, moved))["regions"]
    assert abs(float(other.sum - loss.sum)) > 1e-6


@pytest.mark.parametrize(
    "regions", [None, Regions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), Text.from_lists([]))]
)
def test_without_a_box_the_loss_is_zero_and_has_a_gradient_of_zero(regions: Regions | None) -> None:
    model, objective = made()
    with nullcontext() if regions else pytest.warns(UserWarning, match="regions: has no effect, as the query"):
        loss = pretrain_losses(model, {"regions": objective}, features(3), given(model, regions))["regions"]
    assert (float(loss.sum), loss.count) == (0.0, 0)
    loss.sum.backward()
    assert all(one.grad is not None and not one.grad.any() for one in objective.parameters())
    assert not pretrain_accuracy(model, {"regions": objective}, features(3), given(model, regions))


def test_heads_divide_the_width() -> None:
    context = BuildContext("random", query_dim=50, query_segments=("V", "G", "S", "C"))
    with pytest.raises(SpecError, match="num_heads 4 does not divide the query transformer's width 50"):
        build(RegionOptions(), context)


def test_it_learns_what_is_said_of_which_box() -> None:
    model, objective = made()
    feats, whole = features(3), given(model)
    before = pretrain_accuracy(model, {"regions": objective}, feats, whole)["region words"]
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        pretrain_losses(model, {"regions": objective}, feats, whole)["regions"].sum.backward()
        optimizer.step()
    assert before[1] == 6
    assert before[0] < 6
    assert pretrain_accuracy(model, {"regions": objective}, feats, whole)["region words"] == (6, 6)
