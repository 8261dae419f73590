"""Soft tokens under a condition: what is put in their place, and that it depends on the seed and the sample alone."""

from __future__ import annotations

import torch

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.evaluation.impairment import impaired
from lyrics.core.language.prompting import Encoded
from lyrics.core.refining.refinement import Refinement

QUERIES, WIDTH = 8, 64


def encoded(pictures: int = 3) -> Encoded:
    drawn = torch.randn(pictures, QUERIES, WIDTH, generator=torch.Generator().manual_seed(1))
    scale = torch.arange(1, pictures + 1)[:, None, None]
    seen = tuple(Refinement((10 + number, 10)) for number in range(pictures))
    return Encoded(drawn * scale + 2 * scale, seen, tuple(f"text {number}" for number in range(pictures)))


def keys(*rows: int) -> list[tuple[int, int]]:
    return [(row, 0) for row in rows]


def test_only_the_soft_tokens_change() -> None:
    given = encoded()
    assert torch.equal(impaired(given, CLEAR, keys(0, 1, 2)).soft_tokens_PQD, given.soft_tokens_PQD)
    for condition in (Condition(soft="zero"), Condition(soft="noise"), Condition(drop_tokens=0.5)):
        found = impaired(given, condition, keys(0, 1, 2))
        assert (found.refinements, found.spatial_texts) == (given.refinements, given.spatial_texts)
        assert not torch.equal(found.soft_tokens_PQD, given.soft_tokens_PQD)
    assert not impaired(given, Condition(soft="zero"), keys(0, 1, 2)).soft_tokens_PQD.any()
    others = given.soft_tokens_PQD.flip(0)
    assert torch.equal(impaired(given, Condition(soft="shuffled"), keys(0, 1, 2), others).soft_tokens_PQD, others)


def test_noise_has_the_mean_and_the_spread_of_its_own_image() -> None:
    given = encoded()
    noise = impaired(given, Condition(soft="noise"), keys(0, 1, 2)).soft_tokens_PQD
    for before, after in zip(given.soft_tokens_PQD, noise, strict=True):
        assert torch.isclose(before.mean(), after.mean(), atol=0.2 * float(before.std()))
        assert torch.isclose(before.std(), after.std(), rtol=0.1)
        assert abs(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) < 0.15
    half = Encoded(given.soft_tokens_PQD.bfloat16(), given.refinements, given.spatial_texts)
    assert impaired(half, Condition(soft="noise"), keys(0, 1, 2)).soft_tokens_PQD.dtype == torch.bfloat16


def test_draws_are_functions_of_the_seed_and_the_sample() -> None:
    given = encoded()
    for condition in (Condition(soft="noise"), Condition(drop_tokens=0.5), Condition(soft="noise", drop_tokens=0.25)):
        whole = impaired(given, condition, keys(7, 8, 9)).soft_tokens_PQD
        alone = impaired(given.rows(1, 2), condition, keys(8)).soft_tokens_PQD
        assert torch.equal(whole[1:2], alone), "other samples of the batch change the draw"
        other = Condition(condition.soft, drop_tokens=condition.drop_tokens, seed=1)
        assert not torch.equal(impaired(given, other, keys(7, 8, 9)).soft_tokens_PQD, whole)
        assert not torch.equal(impaired(given.rows(1, 2), condition, [(8, 1)]).soft_tokens_PQD, alone)


def test_dropped_tokens_are_gone_and_the_others_stay_in_order() -> None:
    given = encoded()
    found = impaired(given, Condition(drop_tokens=0.3), keys(0, 1, 2))
    assert found.tokens_per_picture == QUERIES - 2
    for before, after in zip(given.soft_tokens_PQD, found.soft_tokens_PQD, strict=True):
        places = [next(n for n, row in enumerate(before) if torch.equal(row, one)) for one in after]
        assert places == sorted(set(places))
    kept = {tuple(one.nonzero()[:, 0].tolist()) for one in
            (found.soft_tokens_PQD[:, :, None, 0] == given.soft_tokens_PQD[:, None, :, 0]).any(dim=1)}  # fmt: skip
    assert len(kept) > 1, "the same tokens of every image"
    assert impaired(given, Condition(drop_tokens=1.0), keys(0, 1, 2)).soft_tokens_PQD.shape == (3, 0, WIDTH)


def test_without_images_there_is_nothing_to_change() -> None:
    none = encoded().rows(0, 0)
    for condition in (Condition(soft="noise", drop_tokens=0.5), Condition(soft="zero")):
        assert len(impaired(none, condition, []).soft_tokens_PQD) == 0
