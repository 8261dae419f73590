"""Batches with little in them: losses and gradients stay finite, and mean what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives, Similarity, draw_negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features, SpecialTokens, Text
from lyrics.plugins.objectives import ICGOptions, ITCOptions, MSPOptions
from lyrics.plugins.objectives.icg import ICG
from lyrics.plugins.objectives.itc import build as build_itc
from lyrics.plugins.objectives.msp import MSP
from tests.plugins.objectives.cases import batch, features, gradients, objectives, part_of, small_model


def step(model, heads, feats: Features, whole: PretrainBatch, negatives: Negatives | None = None):
    losses = pretrain_losses(model, heads, feats, whole, negatives)
    total, means = total_loss(losses)
    total.backward()
    grads = gradients([model, heads])
    assert all(torch.isfinite(loss.sum) for loss in losses.values())
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    return losses, means, grads


def texts(samples: list, captions: list, special: SpecialTokens) -> PretrainBatch:
    return PretrainBatch(Spatial.from_objects(samples), Text.from_lists(captions), torch.arange(len(captions)), special)


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_single_sample_has_no_negatives(recipe: str) -> None:
    model = small_model().double()
    heads = objectives(model, recipe).double()
    losses, means, _ = step(model, heads, features(1), batch(model, 1))
    assert losses["itm"].count == 1
    if recipe == "paper":
        assert float(means["itc"]) == 0.0, "one candidate leaves nothing to choose"


def test_no_detections_in_the_whole_batch_and_nothing_masked() -> None:
    model = small_model().double()
    heads = objectives(model).double()
    nothing = features(2, num_local=(0, 0))
    whole = texts([[], []], [[20, 21], [22]], model.special)
    losses, means, _ = step(model, heads, nothing, whole)
    assert losses["msp"].count == 0
    assert float(means["msp"]) == 0.0
    assert losses["msp"].sum == 0


def test_all_local_tokens_masked_is_as_good_as_none() -> None:
    model = small_model().double()
    heads = objectives(model).double()
    whole = batch(model, 3)
    some = features(3)
    masked = Features(some.image_tokens_BND, {n: (t, torch.zeros_like(m)) for n, (t, m) in some.local.items()})
    none = Features(some.image_tokens_BND, {n: (t[:, :0], m[:, :0]) for n, (t, m) in some.local.items()})
    negatives = Negatives(torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))
    first, second = (step(model, heads, feats, whole, negatives) for feats in (masked, none))
    for name in first[0]:
        torch.testing.assert_close(first[0][name].sum, second[0][name].sum, rtol=1e-12, atol=0)


def test_msp_without_any_masked_token_is_exactly_zero_with_zero_gradients() -> None:
    model = small_model().double()
    heads = objectives(model, msp={"mask_probability": 0.0}).double()
    only = torch.nn.ModuleDict({"msp": heads["msp"]})
    losses, means, grads = step(model, only, features(3), batch(model, 3))
    assert losses["msp"].count == 0
    assert float(means["msp"]) == 0.0
    assert all((grad == 0).all() for grad in grads.values())


def test_an_empty_caption_still_learns_to_stop() -> None:
    model = small_model().double()
    heads = objectives(model).double()
    whole = texts([[[[30]]], [[[31]]]], [[], [40, 41]], model.special)
    losses, _, _ = step(model, heads, features(2), whole)
    assert losses["icg"].count == 1 + 3, "[SEP] of the empty caption; two words and [SEP]"


def test_released_icg_has_no_target_for_an_empty_caption() -> None:
    model = small_model().double()
    heads = objectives(model, "released").double()
    losses, _, _ = step(model, heads, features(2), texts([[[[30]]], []], [[], [40, 41]], model.special))
    assert losses["icg"].count == 2


def test_icg_targets_are_the_caption_and_the_end_token() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    icg = ICG(ICGOptions(), ("V", "G", "S", "C"))
    stream = icg.streams(texts([[], []], [[20, 21], [22]], special))[1]
    assert stream.text["C"].ids_RL.tolist() == [[5, 20, 21, 2], [5, 22, 2, 0]]
    assert stream.wanted["C"].tolist() == [[True, True, True, False], [True, True, False, False]]
    assert set(stream.text) == {"C"}, "no spatial text"
    assert stream.prefix == "queries"


def test_msp_masks_whole_objects_and_nothing_else() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    msp = MSP(MSPOptions(mask_probability=0.5), ("V", "G", "S", "C"))
    objects = [[[100 + 10 * number], [101 + 10 * number, 102 + 10 * number]] for number in range(8)]
    whole = texts([objects] * 50, [[]] * 50, special)
    masked = msp.masked(whole)
    per_object = masked.view(50, 8, 3)
    assert ((per_object.sum(-1) == 0) | (per_object.sum(-1) == 3)).all()
    assert 0.4 < float(masked.float().mean()) < 0.6
    stream = msp.streams(whole)[0]
    shown = stream.text["S"].ids_RL
    assert (shown[:, 0] == special.mlm).all()
    assert (shown[:, 1:][masked] == special.mask).all()
    assert torch.equal(shown[:, 1:][~masked], whole.spatial.text.ids_RL[~masked])
    assert torch.equal(stream.wanted["S"][:, 1:], masked)
    assert not stream.wanted["S"][:, 0].any()


def test_released_msp_masks_units() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    msp = MSP(MSPOptions(recipe="released", mask_probability=0.5), ("V", "G", "S", "C"))
    whole = texts([[[[100], [101, 102], [103]]]] * 200, [[]] * 200, special)
    masked = msp.masked(whole)
    assert torch.equal(masked[:, 1], masked[:, 2]), "tokens of one unit fall together"
    for a, b in ((0, 1), (0, 3), (1, 3)):
        assert 0.35 < float((masked[:, a] == masked[:, b]).float().mean()) < 0.65, "units fall independently"


def test_masks_depend_on_seed_step_and_sample_alone() -> None:
    model = small_model()
    msp = MSP(MSPOptions(mask_probability=0.5), ("V", "G", "S", "C"))
    whole = batch(model, 8)
    index = torch.tensor([6, 3])
    spatial = Spatial(whole.spatial.text.rows(index), whole.spatial.object_BL[index], whole.spatial.unit_BL[index])
    part = PretrainBatch(
        spatial, whole.caption.rows(index), whole.sample_B[index], whole.special, whole.seed, whole.step
    )
    assert torch.equal(msp.masked(part), msp.masked(whole)[index])
    later = PretrainBatch(whole.spatial, whole.caption, whole.sample_B, whole.special, whole.seed, whole.step + 1)
    assert not torch.equal(msp.masked(later), msp.masked(whole))


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_itc_drops_spatial_texts_in_training_alone(recipe: str) -> None:
    model = small_model().double()
    whole = batch(model, 64)

    def lengths(share: float, step_number: int = 3, rows: slice = slice(None), training: bool = True) -> list[int]:
        itc = objectives(model, recipe, itc={"drop_spatial": share})["itc"].train(training)
        part, _ = part_of(whole, features(64), rows)
        (_, texts_of) = itc.streams(replace(part, step=step_number))
        assert torch.equal(texts_of.text["C"].ids_RL, itc.eval().streams(part)[1].text["C"].ids_RL)
        return (texts_of.text["S"].lengths_R - 1).tolist()  # [BOS], or [CLS], stays

    full = whole.spatial.text.lengths_R.tolist()
    assert lengths(0.0) == lengths(1.0, training=False) == full
    assert lengths(1.0) == [0] * 64
    half = lengths(0.5)
    assert all(kept in (0, before) for kept, before in zip(half, full, strict=True))
    with_text = [kept > 0 for kept, before in zip(half, full, strict=True) if before]
    assert 0.3 < sum(with_text) / len(with_text) < 0.7
    assert lengths(0.5, rows=slice(20, 40)) == half[20:40], "by sample, whatever the batch"
    assert lengths(0.5, step_number=4) != half


def test_itc_without_any_spatial_text_is_what_an_empty_one_gives() -> None:
    model = small_model().double()
    heads = torch.nn.ModuleDict({"itc": objectives(model, itc={"drop_spatial": 1.0})["itc"]}).double()
    whole = batch(model, 5)
    empty = replace(whole, spatial=Spatial.from_objects([[]] * 5))
    dropped = pretrain_losses(model, heads.train(), features(5), whole)["itc"].sum
    torch.testing.assert_close(dropped, pretrain_losses(model, heads.eval(), features(5), empty)["itc"].sum)


def test_dropping_what_is_not_read_warns() -> None:
    with pytest.warns(UserWarning, match="drop_spatial: has no effect"):
        build_itc(ITCOptions(drop_spatial=0.5), BuildContext("random", query_dim=8, query_segments=("V", "C")))


# --- hard negatives --------------------------------------------------------------------------------------------------


def test_negatives_follow_the_similarities() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    size = 4
    whole = texts([[]] * size, [[20 + i] for i in range(size)], special)
    logits = torch.full((size, size), -50.0)
    for row, column in enumerate((2, 3, 1, 0)):
        logits[row, column] = 50.0
    drawn = draw_negatives(whole, Similarity(logits, logits.roll(1, 0)), torch.device("cpu"))
    assert drawn.text_B.tolist() == [2, 3, 1, 0]
    assert drawn.image_B.tolist()[1:] == [2, 3, 1]
    assert drawn.image_B[0] != 0, "its own image (which is the most similar) is excluded"


def test_draws_are_proportional_to_softmax() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    whole = texts([[]] * 3, [[20], [21], [22]], special)
    logits = torch.tensor([[9.0, math.log(3.0), 0.0]] * 3, dtype=torch.float64)
    counts = torch.zeros(3)
    for number in range(2000):
        moved = PretrainBatch(whole.spatial, whole.caption, whole.sample_B, special, seed=1, step=number)
        counts[draw_negatives(moved, Similarity(logits, logits), torch.device("cpu")).text_B[0]] += 1
    weights = torch.softmax(logits[0], 0)[1:] + 1e-4
    assert counts[0] == 0
    assert float(counts[1] / 2000) == pytest.approx(float(weights[0] / weights.sum()), abs=0.04)


def test_twins_are_not_each_others_negatives() -> None:
    """Samples 0 and 1 have the same words; 2 and 3 the same picture."""
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    whole = texts([[]] * 4, [[20, 21], [20, 21], [22], [23]], special)
    whole = PretrainBatch(whole.spatial, whole.caption, whole.sample_B, special, image_B=torch.tensor([5, 6, 7, 7]))
    for step_number in range(50):
        moved = PretrainBatch(whole.spatial, whole.caption, whole.sample_B, special, 0, step_number, whole.image_B)
        drawn = draw_negatives(moved, None, torch.device("cpu"))
        for chosen in (drawn.image_B, drawn.text_B):
            assert set(chosen[:2].tolist()) <= {2, 3}
            assert set(chosen[2:].tolist()) <= {0, 1}
    pair = texts([[]] * 2, [[20], [20]], special)
    drawn = draw_negatives(pair, None, torch.device("cpu"))
    assert drawn.image_B.tolist() == drawn.text_B.tolist() == [-1, -1], "nothing is left to draw"


def test_twins_with_captions_of_their_own_may_be_each_others_hardest_negatives() -> None:
    """Two pictures of one layout: the spatial text is the same letter for letter, so that similarities are nearly the
    same, too.
    """
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    objects = [[[[30 + pair]]] for pair in (0, 0, 1, 1)]
    whole = texts(objects, [[20], [21], [20], [20]], special)
    whole = replace(whole, image_B=torch.tensor([5, 6, 7, 8]))
    logits = torch.tensor([[9.0, 8.0, 0.0, 0.0], [8.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 8.0], [0.0, 0.0, 8.0, 9.0]])
    for step_number in range(20):
        moved = replace(whole, step=step_number)
        drawn = draw_negatives(moved, Similarity(logits, logits), torch.device("cpu"))
        assert drawn.image_B[:2].tolist() == drawn.text_B[:2].tolist() == [1, 0]
        # A caption that is true of both twins tells nothing apart.
        assert set(drawn.image_B[2:].tolist()) <= {0, 1}


def test_padding_does_not_make_equal_words_different() -> None:
    special = SpecialTokens(0, 1, 2, 3, 4, 5, 6)
    whole = texts([[]] * 2, [[20], [20]], special)
    ids = torch.cat([whole.caption.ids_RL, torch.tensor([[9], [8]])], dim=1)
    padded = PretrainBatch(whole.spatial, Text(ids, whole.caption.lengths_R), whole.sample_B, special)
    assert draw_negatives(padded, None, torch.device("cpu")).image_B.tolist() == [-1, -1]


def test_matching_skips_samples_without_a_negative() -> None:
    model = small_model().double()
    heads = objectives(model).double()
    whole = batch(model, 3)
    losses, _, _ = step(
        model, heads, features(3), whole, Negatives(torch.tensor([1, -1, 0]), torch.tensor([-1, -1, 1]))
    )
    assert losses["itm"].count == 3 + 2 + 1


def test_matching_alone_draws_uniformly_and_runs() -> None:
    model = small_model().double()
    heads = objectives(model).double()
    losses, _, _ = step(model, torch.nn.ModuleDict({"itm": heads["itm"]}), features(3), batch(model, 3))
    assert set(losses) == {"itm"}
    assert losses["itm"].count == 9


def test_weights_scale_the_sum() -> None:
    model = small_model().double()
    heads = objectives(model).double()
    losses = pretrain_losses(model, heads, features(3), batch(model, 3))
    total, means = total_loss(losses, {"itc": 2.0, "itm": 0.0, "icg": 1.0, "msp": 0.5})
    want = 2 * means["itc"] + means["icg"] + 0.5 * means["msp"]
    torch.testing.assert_close(total.detach(), want)
