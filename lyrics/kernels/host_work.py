"""Kinds of work that a step does on the host, marked where it is done, so that ``lyrics bench host`` can tell their
shares.

``@host_work("lay out")`` marks a function. While nobody measures, the mark costs one look at a variable.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Watch(Protocol):
    """Who measures: told when marked work begins and ends; work of one kind may lie within another's."""

    def begin(self, kind: str) -> None: ...

    def end(self, kind: str) -> None: ...


_watch: Watch | None = None


def host_work(kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as host work of a kind."""

    def marked(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def work(*args: P.args, **kwargs: P.kwargs) -> R:
            watch = _watch
            if watch is None:
                return function(*args, **kwargs)
            watch.begin(kind)
            try:
                return function(*args, **kwargs)
            finally:
                watch.end(kind)

        return work

    return marked


@contextlib.contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Tell ``watch`` of all marked work of this process in this context."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before
