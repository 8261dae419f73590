"""Rows of a data set where lmms-eval looks for one of the hub: a folder of its name in the working directory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def publish(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    data: str,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    features: Mapping[str, Any],
) -> None:
    """Write the rows as Parquet, as the hub keeps them, and work in ``folder``; the hub is not reached."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder)
    kept = folder / data / "data"
    kept.mkdir(parents=True)
    schema = datasets.Features(features).arrow_schema  # says which columns are images
    written = [{name: _stored(value) for name, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(written, schema=schema), kept / f"{split}-00000-of-00001.parquet")


def _stored(value: Any) -> Any:
    """An image as a data set keeps it; anything else as it is."""
    if not isinstance(value, Image.Image):
        return value
    file = io.BytesIO()
    value.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
