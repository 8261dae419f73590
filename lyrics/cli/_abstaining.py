"""Options of the commands that answer: when "I cannot see that." is said instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lyrics.core.abstaining import Abstaining

AbstainFlag = Annotated[
    bool,
    typer.Option(
        "--abstain", help="Answer 'I cannot see that.' where the refiner did not see what the answer points at."
    ),
]
AbstainBelowOption = Annotated[
    str | None,
    typer.Option(
        "--abstain-below",
        metavar="THRESHOLD",
        help="As --abstain, and also where the answer's mean log-probability is below this number (at most 0), or "
        "below the threshold in the abstaining.json that evaluate --choose-threshold writes.",
    ),
]


def asked_abstaining(abstain: bool, below: str | None) -> Abstaining | None:
    """Return when to abstain, or None for never. Raises ``SpecError`` for an invalid threshold."""
    from lyrics.core.abstaining import Abstaining
    from lyrics.core.errors import SpecError

    if below is None:
        return Abstaining() if abstain else None
    try:
        return Abstaining(float(below))
    except SpecError as error:
        raise SpecError(f"--abstain-below {below}: {error}") from None
    except ValueError:
        pass
    if not Path(below).is_file():
        raise SpecError(f"--abstain-below {below}: is neither a number nor an existing file.")
    from lyrics.core.evaluation.selective import read_threshold

    return read_threshold(Path(below))
