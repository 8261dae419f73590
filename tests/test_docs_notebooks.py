"""The notebooks of the documentation: their cells run in order, they have no outputs, and the site shows them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[Mapping[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]  # type: ignore[no-any-return]


def executed(path: Path) -> dict[str, Any]:
    """The names that the code cells leave, run in order in one namespace and in the current folder.

    ``%%writefile PATH`` is the one magic that they may use.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] != "code":
            continue
        text = "".join(cell["source"])
        if text.startswith("%%writefile "):
            first, _, rest = text.partition("\n")
            Path(first.split(maxsplit=1)[1]).write_text(rest + "\n", encoding="utf-8")
        else:
            exec(compile(text, f"{path.name}, cell {number}", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; afterwards nothing of it can be imported any more."""

    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("acme_"):
            del sys.modules[name]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), f"{path.name}: clear its outputs"


@pytest.mark.usefixtures("folder")
def test_a_variant_is_composed() -> None:
    names = executed(ROOT / "docs" / "notebooks" / "compose_a_variant.ipynb")
    assert {found.tag for found in names["seen"].objects} == {"circle", "square"}
    where, how_many = names["answers"]
    assert [found.supported for found in where.objects] == [True]
    assert how_many.plain_text == "1"
    assert names["variant"].query_transformer.num_queries == 16 + 8
    assert len(names["messages"]) == len(names["mistakes"]), "a mistake passed"
    assert names["before"] == names["after"]
    assert names["again"].spec == names["variant"].spec


def test_a_detector_is_written_and_passes_conformance(folder: Path) -> None:
    names = executed(ROOT / "docs" / "notebooks" / "write_a_detector.ipynb")
    assert names["report"].checks > 10
    assert not names["report"].failures
    found = {one.tag: one.box_norm.to_px((160, 120)) for one in names["seen"].objects}
    assert found["dark box"] == pytest.approx((20, 20, 60, 80), abs=3)
    assert found["bright box"] == pytest.approx((100, 40, 140, 100), abs=3)
    assert set(found) == {"dark box", "bright box"}
    assert names["model"].spec.refiner.detector.use == "acme-contrast"
    assert sorted(path.name for path in folder.iterdir()) == ["acme_contrast"]


def test_every_notebook_is_executed_by_a_test() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"compose_a_variant", "write_a_detector"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_site_shows_all_of_a_notebook(path: Path) -> None:
    hook = importlib.util.spec_from_file_location("docs_notebooks", ROOT / "scripts" / "docs_notebooks.py")
    assert hook is not None
    assert hook.loader is not None
    module = importlib.util.module_from_spec(hook)
    hook.loader.exec_module(module)
    page = module.as_markdown(json.loads(path.read_text(encoding="utf-8")), path.name)
    assert page.startswith("# ")
    assert f"]({path.name})" in page
    for cell in cells(path):
        assert all(line.rstrip("\n") in page for line in cell["source"])
    assert page.count("```") == 2 * sum(cell["cell_type"] == "code" for cell in cells(path))
