"""Options of the commands that answer: when "I cannot see that." is said instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lyrics.core.abstaining import Abstaining

AbstainFlag = Annotated[
    bool,
    typer.Option("--abstain", help="Answer 'I cannot see that.' where nobody saw what the answer points at."),
]
AbstainBelowOption = Annotated[
    str | None,
    typer.Option(
        "--abstain-below",
        metavar="THRESHOLD",
        help="The same, and where the answer's mean log-probability is below this number (0 at most), or the threshold "
        "in the abstaining.json that evaluate --choose-threshold writes.",
    ),
]


def asked_abstaining(abstain: bool, below: str | None) -> Abstaining | None:
    """When to abstain; None for never. Raises ``SpecError`` for a threshold that is none."""
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
        raise SpecError(f"--abstain-below {below}: is neither a number nor a file that is there.")
    from lyrics.core.evaluation.selective import read_threshold

    return read_threshold(Path(below))
