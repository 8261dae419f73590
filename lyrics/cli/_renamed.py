"""Options that have another name now, and still answer to the former one."""

from __future__ import annotations

from typing import Any

from lyrics.core.errors import SpecError
from lyrics.core.renaming import current_names


def renamed_option(name: str, value: Any, former: str, former_value: Any) -> Any:
    """Return the value of an option that may still be given under its former name, with a warning.

    Raises ``SpecError`` where both are given.
    """
    given = {option: found for option, found in ((name, value), (former, former_value)) if found is not None}
    return current_names(given, {former: name}, error=SpecError).get(name)
