"""Marks of host work: told to whoever measures, and to nobody else."""

from __future__ import annotations

import pytest

from lyrics.kernels.host_work import host_work, watched_by


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, kind: str) -> None:
        self.said.append(f"+{kind}")

    def end(self, kind: str) -> None:
        self.said.append(f"-{kind}")


@host_work("inner")
def inner(value: int) -> int:
    """What it says."""
    if value < 0:
        raise ValueError("negative")
    return value + 1


@host_work("outer")
def outer(value: int) -> int:
    return inner(value) * 2


def test_marked_functions_are_what_they_were() -> None:
    assert (outer(1), inner.__name__, inner.__doc__) == (4, "inner", "What it says.")


def test_begin_and_end_in_order_errors_included() -> None:
    told, again = Told(), Told()
    with watched_by(told):
        assert outer(1) == 4
        with watched_by(again), pytest.raises(ValueError, match="negative"):
            inner(-1)
        inner(1)
    outer(1)
    assert told.said == ["+outer", "+inner", "-inner", "-outer", "+inner", "-inner"]
    assert again.said == ["+inner", "-inner"]
