"""The next item fetched early: the same items and errors, in the same order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lyrics.core.training.ahead import Ahead


def items(taken: list[int]) -> Iterator[int]:
    for number in range(3):
        taken.append(number)
        yield number
    raise OSError("the disk is gone")


@pytest.mark.parametrize("early", [False, True])
def test_the_same_items_and_errors(early: bool) -> None:
    taken: list[int] = []
    ahead = Ahead(items(taken))
    for number in range(3):
        assert next(ahead) == number
        assert len(taken) == number + 1
        if early:
            ahead.fetch()
            ahead.fetch()  # nothing more
            assert len(taken) == min(number + 2, 3)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_the_end() -> None:
    ahead = Ahead(iter([1]))
    ahead.fetch()
    assert next(ahead) == 1
    ahead.fetch()
    assert list(ahead) == []
