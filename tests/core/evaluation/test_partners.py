"""Who gets whose soft tokens: every sample those of another image, and where it can be, of the same task."""

from __future__ import annotations

import random

import pytest

from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.partners import exchange
from lyrics.core.types import Sample


def sample(image: str | None, task: str = "vqa") -> Sample:
    return Sample(image, source=f"toy {image}", extra={"task": task})


def check(samples: list[Sample], images: list[int] | None = None, seed: int = 0) -> dict[int, int]:
    counts = images or [int(one.image is not None) for one in samples]
    found = exchange("toy", samples, counts, seed)
    assert sorted(found.order) == list(range(len(samples)))
    rows = [row for row, count in enumerate(counts) if count]
    assert sorted(found.of) == rows == sorted(found.of.values()), "each gives once and gets once"
    for row, other in found.of.items():
        assert samples[row].image != samples[other].image
        assert counts[row] == counts[other]
    assert exchange("toy", samples, counts, seed) == found
    return dict(found.of)


def test_two_samples_exchange_theirs() -> None:
    assert check([sample("a"), sample("b")]) == {0: 1, 1: 0}


def test_samples_without_an_image_are_left_as_they_are() -> None:
    assert check([sample("a"), sample(None), sample("b"), sample(None)]) == {0: 2, 2: 0}
    assert exchange("toy", [sample(None)] * 2, [0, 0], 0).of == {}
    assert exchange("toy", [], [], 0).order == ()


def test_where_it_can_be_a_partner_is_asked_the_same_kind_of_question() -> None:
    tasks = ("caption", "vqa", "rec")
    samples = [sample(f"{scene}", task) for scene in range(30) for task in tasks]
    of = check(samples)
    same = sum(samples[row].extra["task"] == samples[other].extra["task"] for row, other in of.items())
    assert same >= len(samples) - len(tasks)


def test_another_seed_exchanges_otherwise() -> None:
    samples = [sample(f"{number}") for number in range(20)]
    assert check(samples, seed=0) != check(samples, seed=1)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_samples_are_nobody_gets_its_own_image(seed: int) -> None:
    drawn = random.Random(seed)
    samples = [sample(drawn.choice("abcdefg"), drawn.choice(("vqa", "rec"))) for _ in range(drawn.randint(2, 30))] + [
        sample("x"),
        sample("y"),
        sample("z", "rec"),
    ] * 12
    check(samples, [drawn.choice((1, 1)) for _ in samples], seed)


def test_half_of_the_samples_may_show_one_image() -> None:
    check([sample("a"), sample("a"), sample("b"), sample("c")])
    check([sample("a", "vqa"), sample("b", "rec"), sample("a", "rec"), sample("b", "vqa")])


def test_samples_of_several_images_exchange_among_their_like() -> None:
    assert check([sample("a"), sample("b"), sample("c"), sample("d")], [1, 2, 2, 1]) == {0: 3, 3: 0, 1: 2, 2: 1}


def test_what_has_no_partner_is_named() -> None:
    with pytest.raises(LyricsError, match=r"toy: toy a is the only sample with 1 image, so.*evaluate more samples"):
        exchange("toy", [sample("a")], [1], 0)
    with pytest.raises(LyricsError, match="toy b is the only sample with 2 images"):
        exchange("toy", [sample("a"), sample("b"), sample("c")], [1, 2, 1], 0)
    with pytest.raises(LyricsError, match="toy: 2 of 3 samples with 1 image show a, so not every sample"):
        exchange("toy", [sample("a"), sample("a"), sample("b")], [1, 1, 1], 0)
