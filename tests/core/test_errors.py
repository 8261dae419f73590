"""One tree of errors, and the hint they share."""

from __future__ import annotations

import inspect

import pytest

from lyrics.core import errors
from lyrics.core.errors import LyricsError, SpecError, did_you_mean, nearest

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_a_value_error_with_a_purpose(error: type[Exception]) -> None:
    """Callers of other libraries catch ValueError; each class says in its docstring when it is raised."""
    assert issubclass(error, ValueError)
    assert issubclass(error, LyricsError)
    assert error.__doc__
    assert error.__doc__ != ValueError.__doc__


def test_what_a_user_wrote_wrongly_is_a_spec_error() -> None:
    """The command line exits with 2 for these, with 1 for the others."""
    wrong = {error.__name__ for error in CLASSES if issubclass(error, SpecError)}
    assert wrong == {"SpecError", "UnknownNameError", "AmbiguousNameError", "WiringError"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("groundng-dino", "grounding-dino"),
        ("GROUNDING-DINO", "grounding-dino"),
        ("tiny-detecter", "tiny-detector"),
        ("x", None),
        ("", None),
    ],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, ["grounding-dino", "tiny-detector", "tiny-tagger"]) == expected


def test_hint_is_a_sentence_or_nothing() -> None:
    assert did_you_mean("detekt", iter(["detector", "tagger"])) == " Did you mean 'detector'?"
    assert did_you_mean("detekt", []) == ""
