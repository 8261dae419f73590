"""Files of scores, and the rows that reach a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lyrics.core.data.fitting import Fitting
from lyrics.core.data.relevance import Kept, read_scores, relevant, rows_reaching, write_scores
from lyrics.core.errors import DatasetError, SpecError
from lyrics.core.runs.config import DataSlot
from lyrics.core.types import Sample
from tests.core.training.standin import Numbers

SCORES = {"itm": np.asarray([0.9, 0.1, np.nan, 0.5, 0.7], np.float32), "itc": np.asarray([0, 1, 1, 1, 0], np.float32)}


class Sharded(Numbers):
    @property
    def shard_sizes(self) -> Sequence[int]:
        return (2, 0, 3)


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.safetensors", SCORES, {"by": "a test"})
    found = read_scores(tmp_path / "s.safetensors")
    assert found.keys() == SCORES.keys()
    assert all(np.array_equal(found[name], SCORES[name], equal_nan=True) for name in SCORES)
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no\.safetensors: no such file; 'lyrics data filter' writes it"):
        read_scores(tmp_path / "no.safetensors")
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DatasetError, match="is no file of scores"):
        read_scores(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_scores(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("at_least", "kept"),
    [({"itm": 0.5}, [0, 3, 4]), ({"itm": 0.5, "itc": 1.0}, [3]), ({"itm": -1.0}, [0, 1, 3, 4]), ({}, [0, 1, 2, 3, 4])],
)
def test_rows_that_reach_all_thresholds(at_least: dict[str, float], kept: list[int]) -> None:
    """A row without a score reaches none; 0.7 as written is reached by 0.7 in float32."""
    assert rows_reaching(SCORES, at_least, 5, "here").tolist() == kept
    assert 4 in rows_reaching(SCORES, {"itm": 0.7}, 5, "here")


@pytest.mark.parametrize(
    ("at_least", "rows", "message"),
    [
        ({"itn": 0.5}, 5, r"^here: has no scores 'itn'. Did you mean 'itm'\? It has itm, itc\.$"),
        ({"itm": 0.5}, 6, r"^here: has scores of 5 rows, and the data set has 6\.$"),
        ({"itm": 0.95}, 5, r"^here: no row has itm >= 0\.95; lower the threshold\.$"),
    ],
)
def test_what_does_not_fit_is_said(at_least: dict[str, float], rows: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        rows_reaching(SCORES, at_least, rows, "here")


def test_kept_rows_are_a_data_set(tmp_path: Path) -> None:
    data = Kept(Sharded(5), np.asarray([1, 2, 4]))
    assert (len(data), data.shard_sizes) == (3, [1, 0, 2])
    samples: list[Sample] = [data[index] for index in range(3)]
    assert [one.image for one in samples] == ["1", "2", "4"]
    assert data.picture(samples[2]).tobytes() == Numbers(5).picture(samples[2]).tobytes()
    assert Kept(Numbers(5), np.asarray([1])).shard_sizes is None
    assert Fitting(data, "pretrain").shard_sizes == [1, 0, 2]
    assert data.fingerprint() != Kept(Sharded(5), np.asarray([1, 2, 3])).fingerprint()


def test_data_sets_are_filtered_as_their_slots_say(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    write_scores(file, SCORES, {})
    slots = {
        "a": DataSlot(use="x", scores=str(file), at_least={"itm": 0.5}),
        "b": DataSlot(use="x"),
    }
    found = relevant({"a": Numbers(5), "b": Numbers(5)}, slots)
    assert (len(found["a"]), len(found["b"])) == (3, 5)
    with pytest.raises(SpecError, match=r"data\.sets\.a\.scores: .*s\.safetensors: has scores of 5 rows"):
        relevant({"a": Numbers(4), "b": Numbers(5)}, slots)


def test_all_sets_that_have_no_scores_yet_are_named_at_once() -> None:
    slots = {
        "web": DataSlot(use="laion", at_least={"similarity": 0.3}),
        "b": DataSlot(use="coco"),
        "c": DataSlot(use="cc3m", at_least={"itm": 0.5}),
    }
    with pytest.raises(SpecError, match=r"^data\.sets: web, c are read where .*'lyrics data filter laion --root"):
        relevant({name: Numbers(5) for name in slots}, slots)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": "x"}, "say which rows are read"),
        ({"during": (0.5, 0.5)}, "is two shares of the steps"),
        ({"during": (-0.1, 0.5)}, "is two shares of the steps"),
        ({"during": (0.2, 1.5)}, "is two shares of the steps"),
    ],
)
def test_a_slot_that_says_half_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSlot(use="x", **fields)  # type: ignore[arg-type]
