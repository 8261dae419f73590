"""The pictures in the documentation are the ones that the plan gives today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_documented_pictures_are_current(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw_objectives", ROOT / "scripts" / "draw_objectives.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "docs" / "pictures").glob("*-paper.svg")}
    kept |= {path.name: path.read_text() for path in (ROOT / "docs" / "pictures").glob("*-released.svg")}
    assert drawn == kept, "run python scripts/draw_objectives.py"


@pytest.mark.parametrize("name", ["itc", "itm", "icg", "msp"])
def test_the_page_shows_every_picture(name: str) -> None:
    page = (ROOT / "docs" / "objectives.md").read_text()
    for link in re.findall(r"\]\((pictures/[^)]+)\)", page):
        assert (ROOT / "docs" / link).is_file(), link
    assert f"pictures/{name}-paper.svg" in page
