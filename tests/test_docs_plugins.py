"""The pages on plugins: the examples are packages that pass the conformance suite of their kind, or of vocabularies."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics import Registry
from lyrics.testing import CONTRACTS as OF_KINDS
from lyrics.testing import Contract, VocabularyContract, checks_of

#: What has a page: every kind of component, and vocabularies.
CONTRACTS: Mapping[str, type[Contract]] = {**OF_KINDS, "vocabulary": VocabularyContract}
PAGES = Path(__file__).parents[1] / "docs" / "plugins"
TEST = "tests/test_contract.py"


def example(kind: str) -> dict[str, str]:
    """The files of a page's example by their names."""
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    return dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the packages of all pages, which can be imported while the tests of this module run."""

    made = tmp_path_factory.mktemp("plugins")
    for kind in CONTRACTS:
        for name, text in example(kind).items():
            if name != TEST:
                (made / name).parent.mkdir(exist_ok=True)
                (made / name).write_text(text, encoding="utf-8")
    data = made / "tests" / "data"  # what the data set's example reads
    data.mkdir(parents=True)
    for name, color in (("sky", "blue"), ("grass", "green")):
        Image.new("RGB", (8, 6), color).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"the {name} is {color}\n", encoding="utf-8")
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(made))
    yield made
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0].startswith("acme_"):
            del sys.modules[name]


@pytest.mark.parametrize("kind", CONTRACTS)
def test_the_example_of_a_page_passes_conformance(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    files = example(kind)
    (package,) = {name.partition("/")[0] for name in files if name != TEST}
    manifest = importlib.import_module(package)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(files[TEST], f"{kind}.md: {TEST}", "exec"), names)
    (case,) = (value for name, value in names.items() if name.startswith("Test"))
    assert issubclass(case, CONTRACTS[kind])
    # Installed, it would be found by its entry point.
    case.registry = Registry.discover(manifest)
    failures: Mapping[str, str] = {name: failure for name in checks_of(case) if (failure := outcome(case(), name))}
    assert not failures


def outcome(case: Any, check: str) -> str:
    """An empty string, or what a check raised."""
    try:
        getattr(case, check)()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("kind", CONTRACTS)
def test_a_page_has_the_contract_an_example_and_the_checks(kind: str) -> None:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["The contract", "A minimal example", "What conformance checks"]
    assert f"({CONTRACTS[kind].__name__}):" in example(kind)[TEST]


def test_there_is_a_page_for_each_kind() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(CONTRACTS)
