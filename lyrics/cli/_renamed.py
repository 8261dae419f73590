"""Options that have another name now, and still answer to the former one."""

from __future__ import annotations

import sys

from lyrics.core.errors import SpecError


def renamed_option(name: str, value: str | None, former: str, former_value: str | None) -> str | None:
    """The value of an option that may still be given under its former name, with a warning.

    Raises ``SpecError`` where both are given.
    """
    if former_value is None:
        return value
    if value is not None:
        raise SpecError(f"{former} is the former name of {name}; give {name} alone.")
    print(f"lyrics: warning: {former} is now called {name}; the former name will be removed.", file=sys.stderr)
    return former_value
