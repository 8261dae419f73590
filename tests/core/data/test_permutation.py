"""Random numbers without state, and the permutation that is computed and not stored."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.data.draws import generator
from lyrics.core.data.permutation import Permutation, Permutations


def keyed(size: int, seed: int, index: int = 0) -> Permutation:
    return Permutations(seed, "test")(size, index)


def test_draws_depend_on_each_argument_and_nothing_else() -> None:
    cases = [
        (0, "a", 0, 0),
        (1, "a", 0, 0),
        (0, "b", 0, 0),
        (0, "a", 1, 0),
        (0, "a", 0, 1),
        (2**64 - 1, "a", 2**64 - 1, 0),
    ]
    drawn = [generator(*case).random(4).tolist() for case in cases]
    assert len({tuple(numbers) for numbers in drawn}) == len(cases)
    assert drawn == [generator(*case).random(4).tolist() for case in reversed(cases)][::-1]


def test_streams_of_neighboring_indices_do_not_overlap() -> None:
    """Each has its own high word of the counter: a million draws of one never reach the next."""
    first, second = generator(0, "a", 5).random(2_000_000), generator(0, "a", 6).random(4)
    assert not np.isin(second, first).any()


@pytest.mark.parametrize("arguments", [(-1, "a"), (2**64, "a"), (0, "a", -1), (0, "a", 0, 2**64)])
def test_a_number_out_of_range_is_refused(arguments: tuple[int, str]) -> None:
    with pytest.raises(ValueError, match="must be from 0"):
        generator(*arguments)


def test_keys_depend_on_seed_purpose_number_and_part_and_not_on_what_was_asked_before() -> None:
    """Numbers on both sides of a group's end, and more of them than are kept."""
    images = {}
    for seed, purpose in ((0, "a"), (1, "a"), (0, "b")):
        permutations = Permutations(seed, purpose)
        for number, part in ((0, 0), (255, 0), (256, 0), (0, 1), (2**40, 0)):
            images[seed, purpose, number, part] = permutations(1_000, number, part).many(np.arange(20)).tolist()
    assert len({tuple(image) for image in images.values()}) == len(images)
    permutations = Permutations(0, "a")
    for number in range(5_000, 0, -1):
        permutations(1_000, number)
    assert permutations(1_000, 255).many(np.arange(20)).tolist() == images[0, "a", 255, 0]
    assert permutations(1_000, 0, 1).many(np.arange(20)).tolist() == images[0, "a", 0, 1]


def test_what_decides_the_order_may_go_to_another_process() -> None:
    permutations = Permutations(3, "a")
    permutations(10, 4)
    sent = pickle.loads(pickle.dumps(permutations))
    assert [sent(1_000, 5)(i) for i in range(9)] == [permutations(1_000, 5)(i) for i in range(9)]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5_000), seed=st.integers(0, 2**64 - 1))
def test_every_number_comes_once_and_both_forms_agree(size: int, seed: int) -> None:
    permutation = keyed(size, seed)
    many = permutation.many(np.arange(size))
    assert np.array_equal(np.sort(many), np.arange(size))
    assert [permutation(index) for index in range(min(size, 200))] == many[:200].tolist()


@pytest.mark.parametrize("size", [10**9, 2**32, 2**62])
def test_a_large_permutation_stays_in_range_and_repeats_nothing(size: int) -> None:
    permutation = keyed(size, 3)
    some = np.unique([0, size - 1, *np.random.default_rng(0).integers(0, size, 50_000)])
    images = permutation.many(some)
    assert images.min() >= 0
    assert images.max() < size
    assert len(np.unique(images)) == len(some)
    assert permutation(int(some[7])) == images[7]


@pytest.mark.parametrize("size", [2, 3, 6, 10, 24])
def test_small_permutations_are_even(size: int) -> None:
    """Over many keys each number is as likely at each place: chi-square within six standard deviations."""
    trials = 2_000
    counts = np.zeros((size, size))
    for trial in range(trials):
        counts[np.arange(size), keyed(size, 1, trial).many(np.arange(size))] += 1
    expected = trials / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 6 * (2 * freedom) ** 0.5 + 6


@pytest.mark.parametrize("size", [4_096, 65_536, 1_000_003])
def test_neighbors_are_torn_apart(size: int) -> None:
    images = keyed(size, 2).many(np.arange(size)).astype(float)
    bound = 5 / size**0.5
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < bound
    assert abs(np.corrcoef(images, np.arange(size))[0, 1]) < bound
    close = (np.abs(np.diff(images)) < size / 100).mean()
    assert close == pytest.approx(0.0199, abs=0.0199 * 0.35 if size < 10_000 else 0.0199 * 0.1)
