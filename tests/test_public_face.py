"""What users import: every name is there, cheap, and does what the command of that name does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import lyrics
import lyrics.types
from tests.fresh import ROOT, fresh

#: The smallest run of stage 2 that there is, on drawn scenes.
SMALL_RUN = {
    "optimization.steps": 2,
    "optimization.global_batch": 2,
    "data.workers": 0,
    "evaluation.every_steps": None,
    "checkpoint.every_steps": 2,
}


def test_records_come_from_where_they_are_defined() -> None:
    for name in lyrics.types.__all__:
        assert getattr(lyrics.types, name).__module__.startswith("lyrics.core."), name
    assert dir(lyrics.types) == lyrics.types.__all__
    with pytest.raises(AttributeError, match="no attribute 'Boxx'"):
        _ = lyrics.types.Boxx  # type: ignore[attr-defined]
    assert lyrics.types.Answer is lyrics.Answer


def test_types_and_lists_need_no_torch() -> None:
    done = fresh(
        "import lyrics, lyrics.types\n"
        "lyrics.types.Box, lyrics.types.Detection, lyrics.types.Sample, lyrics.types.BuildContext\n"
        "print(lyrics.list_presets(), lyrics.list_components('detector'), lyrics.list_recipes())\n"
        "lyrics.read_spec('lyrics-13b')"
    )
    assert done.returncode == 0, done.stderr
    assert "lyrics-tiny" in done.stdout
    assert "grounding-dino" in done.stdout
    assert "paper-stage1" in done.stdout


def test_lists_are_of_names_once() -> None:
    everything = lyrics.list_components()
    assert len(everything) == len(set(everything))
    assert set(lyrics.list_components("objective")) == {"icg", "itc", "itm", "msp"}
    with pytest.raises(lyrics.SpecError, match=r"no kind 'detectr'.*Did you mean 'detector'"):
        lyrics.list_components("detectr")


def test_a_run_and_its_evaluation_from_python(tmp_path: Path) -> None:
    result = lyrics.train("tiny-stage2", overrides={**SMALL_RUN, "out": str(tmp_path / "run")}, resume="never")
    assert (result.step, result.stopped, result.folder) == (2, False, tmp_path / "run")
    again = lyrics.train("tiny-stage2", overrides={**SMALL_RUN, "out": str(tmp_path / "run")})
    assert again == result
    model = lyrics.load_model(str(result.folder))
    assert isinstance(model.generate(None, "How many?", max_new_tokens=2), lyrics.Answer)
    scores = lyrics.evaluate(model, {"scenes": {"split": "test", "scenes": 2}}, tmp_path / "scores", limit=2)
    assert [one.name for one in scores] == ["scenes"]
    with pytest.raises(lyrics.LyricsError):
        lyrics.evaluate(model, {"scenes": {"split": "nowhere"}}, tmp_path / "other")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_examples_of_plugins_use_the_public_face(path: Path) -> None:
    """The evaluation toolkit's example stands between two libraries, and uses the function made for that."""
    found = [line for line in path.read_text(encoding="utf-8").splitlines() if "lyrics.core" in line]
    assert not found or path.parent.name == "vlmevalkit"


def test_old_places_warn_and_are_the_same(recwarn: pytest.WarningsRecorder) -> None:
    sys.modules.pop("lyrics.core.component", None)
    with pytest.warns(DeprecationWarning, match="lyrics.core.component is now lyrics;"):
        old = importlib.import_module("lyrics.core.component")
    assert old.Component is lyrics.Component
    for old_place, new_place, name in (
        ("lyrics.core.processor", "lyrics.core.pictures.processor", "Processor"),
        ("lyrics.core.spatial", "lyrics.core.language.codecs", "parse"),
    ):
        sys.modules.pop(old_place, None)
        with pytest.warns(DeprecationWarning, match=f"{old_place} is now {new_place}"):
            moved: Any = importlib.import_module(old_place)
        assert getattr(moved, name) is getattr(importlib.import_module(new_place), name)
    package: Any = importlib.import_module("lyrics.core.conversion")
    with pytest.warns(DeprecationWarning, match=r"conversion\.Plan is now lyrics\.core\.conversion\.plan\.Plan"):
        assert package.Plan.__name__ == "Plan"
    with pytest.raises(AttributeError, match="no attribute 'Plann'"):
        _ = package.Plann
