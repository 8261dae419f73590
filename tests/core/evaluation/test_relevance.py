"""Scores of pairs: a column of the records, and what a trained stage 1 says of right and of wrong captions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lyrics.core.contracts import ScoresPairs
from lyrics.core.data.build import build_dataset
from lyrics.core.errors import SampleError, SpecError
from lyrics.core.evaluation.relevance import column_scores, model_scores
from lyrics.core.loading import build_model
from lyrics.core.types import Sample
from tests.core.small import small


class Rows:
    """Drawn scenes; of every second one the caption is another scene's, and one row cannot be read."""

    def __init__(self, count: int, *, swapped: bool = True, bad: tuple[int, ...] = ()) -> None:
        self.scenes = build_dataset("scenes", {"task": "caption", "split": "validation", "scenes": count + 1})
        self.count, self.swapped, self.bad = count, swapped, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise SampleError("here: damaged", "checksum")
        sample = self.scenes[index]
        if self.swapped and index % 2:
            sample = replace(sample, captions=self.scenes[index + 1].captions)
        return replace(sample, extra={**sample.extra, "scores": {"similarity": index / 10}})

    def picture(self, sample: Sample) -> Any:
        return self.scenes.picture(sample)


@pytest.fixture(scope="module")
def trained() -> Iterator[Any]:
    """The stage 1 that ships with the package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield build_model("lyrics-tiny-stage1")


def test_a_column_is_read_and_what_cannot_be_read_has_no_score() -> None:
    found = column_scores(Rows(5, bad=(2,)), "similarity")
    assert np.array_equal(found.scores["similarity"], np.float32([0, 0.1, np.nan, 0.3, 0.4]), equal_nan=True)
    assert found.unread == {"checksum": 1}
    with pytest.raises(SpecError, match=r"no record has a number 'sim'; they have similarity\. img2dataset keeps"):
        column_scores(Rows(3), "sim")


def test_a_trained_model_tells_right_captions_from_wrong_ones(trained: Any) -> None:
    """As areas under the curve: how often a right pair scores higher than a wrong one."""
    rows = Rows(40)
    found = model_scores(trained, rows, batch=20)
    assert found.scores.keys() == {"itc", "itm"}
    assert found.unread == {}
    for name, scores in found.scores.items():
        right, wrong = scores[0::2], scores[1::2]
        area = (right[:, None] > wrong[None]).mean()
        assert area > 0.8, f"{name}: {area}"
    assert ((found.scores["itm"] >= 0) & (found.scores["itm"] <= 1)).all()
    assert (np.abs(found.scores["itc"]) <= 1 + 1e-5).all()


def test_batches_and_bad_rows_change_no_score(trained: Any) -> None:
    whole = model_scores(trained, Rows(5), batch=5)
    parts = model_scores(trained, Rows(5, bad=(1, 4)), batch=2)
    assert parts.unread == {"checksum": 2}
    for name, scores in parts.scores.items():
        assert np.isnan(scores[[1, 4]]).all()
        np.testing.assert_allclose(scores[[0, 2, 3]], whole.scores[name][[0, 2, 3]], atol=1e-4)


def test_a_model_that_scores_nothing_is_refused() -> None:
    model = build_model(small(objectives={"icg": "icg"}), weights="random")
    assert not any(isinstance(one, ScoresPairs) for one in model.losses.values())
    with pytest.raises(SpecError, match="no objective of this model tells how well"):
        model_scores(model, Rows(2))


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_both_recipes_score(recipe: str) -> None:
    torch.manual_seed(0)
    objectives = {name: {"use": name, "options": {"recipe": recipe}} for name in ("itc", "itm")}
    found = model_scores(build_model(small(objectives=objectives), weights="random"), Rows(3), batch=3)
    assert all(np.isfinite(scores).all() and len(np.unique(scores)) == 3 for scores in found.scores.values())
