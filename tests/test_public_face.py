"""What users import: every name is there, cheap, and does what the command of that name does."""

from __future__ import annotations

import ast
import importlib
import json
import re
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
    assert set(lyrics.list_components("objective")) == {"icg", "itc", "itm", "msp", "regions"}
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


#: What everything around the package imports; ``lyrics.kernels`` and ``lyrics.testing`` are packages of their own.
PUBLIC = ("lyrics.data", "lyrics.evaluation", "lyrics.kernels", "lyrics.testing", "lyrics.training", "lyrics.types")
#: What some files import beside it, and why. May shrink only.
EXCEPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "benchmarks/loader.py": ("describes the machine as `lyrics bench` does", ("lyrics.workflows.bench",)),
    "benchmarks/photo.py": (
        "times what `lyrics refine` runs, and describes the machine as `lyrics bench` does",
        ("lyrics.core.refining.refine_files", "lyrics.workflows.bench"),
    ),
    "benchmarks/refiner.py": ("describes the machine as `lyrics bench` does", ("lyrics.workflows.bench",)),
    "benchmarks/test_attention.py": ("times the cases of `lyrics bench`", ("lyrics.workflows.bench",)),
    "benchmarks/test_step.py": ("times the cases of `lyrics bench`", ("lyrics.workflows.bench",)),
    "benchmarks/training.py": ("describes the machine as `lyrics bench` does", ("lyrics.workflows.bench",)),
    "benchmarks/prompts.py": ("times a case of `lyrics.workflows.bench`", ("lyrics.workflows.bench",)),
    "benchmarks/serving.py": ("loads the server of `lyrics serve`", ("lyrics.workflows.serve",)),
    "scripts/draw_quickstart.py": ("reads what `lyrics quickstart` wrote", ("lyrics.workflows.quickstart",)),
    "scripts/train_tiny.py": (
        "makes the package's own weights, with the options of the commands",
        ("lyrics.plugins.tiny", "lyrics.cli._overrides", "lyrics.cli.evaluate"),
    ),
}
AROUND = sorted(path for folder in ("benchmarks", "examples", "scripts") for path in (ROOT / folder).rglob("*.py"))
PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), ROOT / "README.md"]


def imported_in(code: str) -> set[str]:
    """Every module and name of the package that a text of Python imports, as ``module.name``, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "lyrics"}


def inner(names: set[str], allowed: tuple[str, ...] = ()) -> set[str]:
    """Those that are not of the public face."""

    def public(name: str) -> bool:
        module, _, last = name.rpartition(".")
        if name == "lyrics" or (module == "lyrics" and last in lyrics.__all__):
            return True
        return any(name == one or name.startswith(f"{one}.") for one in (*PUBLIC, *allowed))

    return {name for name in names if not public(name)}


@pytest.mark.parametrize("path", AROUND, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_stands_around_the_package_uses_the_public_face(path: Path) -> None:
    _, allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)), ("", ()))
    used = imported_in(path.read_text(encoding="utf-8"))
    assert not inner(used, allowed)
    for one in allowed:
        assert any(name.startswith(one) for name in used), f"{one} is used no more; take it off the list"


@pytest.mark.parametrize("path", sorted(PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_public_face(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        assert not inner(imported_in(code))
    if path.name != "paper.md":  # which says where in the code a sentence of the paper is
        prose = re.findall(r"lyrics\.(?:core|plugins|cli|workflows)\b[.\w]*", text)
        assert not prose, f"{path.name} sends its readers to {prose[0]}; name it as the public face does"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_use_the_public_face(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            code = "\n".join(line for line in lines if not line.startswith(("%", "!")))
            assert not inner(imported_in(code))


def test_what_is_not_of_the_public_face() -> None:
    code = (
        "import lyrics.core.model\nfrom lyrics import Boxx, Box\ndef f():\n    from lyrics.data import converse, core\n"
    )
    assert inner(imported_in(code)) == {"lyrics.core.model", "lyrics.Boxx"}
    assert inner({"lyrics.plugins.tiny_two.x"}, ("lyrics.plugins.tiny",)) == {"lyrics.plugins.tiny_two.x"}
    assert set(EXCEPTIONS) <= {str(path.relative_to(ROOT)) for path in AROUND}


@pytest.mark.parametrize("name", ["data", "evaluation", "training", "types"])
def test_modules_of_the_face_have_what_they_name(name: str) -> None:
    done = fresh(f"import sys, lyrics.{name}\nassert 'torch' not in sys.modules", blocked=())
    assert done.returncode == 0, done.stderr
    module = importlib.import_module(f"lyrics.{name}")
    assert dir(module) == sorted(module.__all__)
    for one in module.__all__:
        assert getattr(module, one) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


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
    with pytest.warns(DeprecationWarning, match=r"conversion\.Plan is now .*\.ConversionPlan"):
        assert package.Plan is lyrics.types.ConversionPlan
    plan: Any = importlib.import_module("lyrics.core.conversion.plan")
    with pytest.warns(DeprecationWarning, match=r"Checkpoint is now lyrics\.types\.SourceCheckpoint"):
        assert plan.Checkpoint is lyrics.types.SourceCheckpoint
    testing: Any = importlib.import_module("lyrics.testing")
    with pytest.warns(DeprecationWarning, match=r"Report is now lyrics\.testing\.ConformanceReport"):
        assert testing.Report is testing.ConformanceReport
    with pytest.raises(AttributeError, match="no attribute 'Plann'"):
        _ = package.Plann
