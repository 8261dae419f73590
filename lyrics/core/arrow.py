"""pyarrow, where it is installed."""

from __future__ import annotations

from typing import Any

from lyrics.core.errors import MissingRequirementError


def import_arrow() -> Any:
    """Return ``pyarrow`` with ``pyarrow.parquet`` loaded. Raises ``MissingRequirementError`` without it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingRequirementError(
            "parquet files need pyarrow, which is not installed. Run: pip install 'lyrics-vl[data]'"
        ) from None
    return pyarrow
