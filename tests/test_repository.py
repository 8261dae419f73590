"""What stands around the package: workflows, forms, hooks, citation, changelog and what `make docs` builds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
PYTHONS = [
    name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", name) is not None
]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def triggers(workflow: Mapping[Any, Any]) -> Any:
    """The key ``on``, which YAML 1.1 reads as a truth value."""
    return workflow[True]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def called(text: str) -> set[str]:
    """Targets that a shell text calls make with."""
    return set(re.findall(r"^\s*make ([a-z-]+)", text, flags=re.MULTILINE))


def workflow_targets(path: Path) -> set[str]:
    return {target for text in strings(read(path)) for target in called(text)}


# --- workflows ---


def test_there_are_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "nightly", "docs", "release"}
    assert called("make one\n  make two-b X=1\nsomething make three") == {"one", "two-b"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    used = workflow_targets(path)
    assert used, f"{path.name} calls no make target"
    assert used <= TARGETS, f"{path.name} calls {sorted(used - TARGETS)}, which the Makefile does not have"


def test_every_test_target_runs_in_a_workflow() -> None:
    used = {target for path in WORKFLOWS for target in workflow_targets(path)}
    # What test-fast runs is part of what test runs.
    assert {target for target in TARGETS if target.startswith("test")} - {"test-fast"} | {"check", "docs"} <= used


def test_the_script_of_continuous_integration_calls_targets_that_exist() -> None:
    used = called((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"check", "docs", "test"} <= used <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_are_whole_bounded_and_may_only_read(path: Path) -> None:
    workflow = read(path)
    assert triggers(workflow)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] == "ubuntu-latest", name
        assert job["timeout-minutes"] <= 180, name
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"]), name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), f"{name}: {step}"
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1")), step
            # A name from outside (a tag, a branch, a title) in a script would be run; it goes through `env`.
            assert not re.search(r"\$\{\{\s*(github|inputs)\.", step.get("run", "")), step
        allowed = {"id-token": "write"} if (path.stem, name) == ("release", "publish") else None
        assert job.get("permissions") == allowed, f"{path.stem}/{name} asks for more than it needs"


def test_the_matrix_holds_the_versions_that_the_project_claims() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_a_release_is_a_tag_and_is_tested_before_it_is_published() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "release.yml")
    (pattern,) = triggers(workflow)["push"]["tags"]
    assert pattern.startswith("v")
    assert workflow["jobs"]["publish"]["needs"] == "build"
    run = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    places = [next(i for i, text in enumerate(run) if word in text) for word in ("make test", "build", "twine check")]
    assert places == sorted(places)


# --- forms and hooks ---


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_is_a_form_for_each_need_and_it_knows_all_kinds() -> None:
    from lyrics.testing import CONTRACTS

    assert {path.stem for path in FORMS} == {"bug", "feature", "plugin"}
    (kinds,) = [
        field for field in read(ROOT / ".github/ISSUE_TEMPLATE/plugin.yml")["body"] if field.get("id") == "kind"
    ]
    assert kinds["attributes"]["options"] == list(CONTRACTS)


def test_hooks_use_the_ruff_that_make_check_uses() -> None:
    (pinned,) = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    hooks = {repo["repo"].rpartition("/")[2]: repo for repo in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pinned}"


# --- the site ---


def test_the_navigation_has_every_page_once() -> None:
    """A page for each file below ``docs``, and for each notebook, which scripts/docs_notebooks.py makes into one."""
    named = [text for text in strings(read(ROOT / "mkdocs.yml")["nav"]) if text.endswith(".md")]
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")]
    assert sorted(named) == sorted(path.with_suffix(".md").as_posix() for path in pages)


def test_the_site_is_built_from_pinned_packages() -> None:
    """By an extra of its own; a new release of a package must not break the build."""
    pinned = set(
        re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    wanted = {re.split(r"[\[<>=]", requirement)[0] for requirement in PROJECT["optional-dependencies"]["docs"]}
    assert {"mkdocs", "mkdocs-material", "mkdocstrings"} <= wanted <= pinned


# --- citation ---


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Lu", "Zhang"]


# --- changelog ---


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog: releases, newest first, and kinds of changes in their order, each with an entry."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert releases[0] == "[Unreleased]", "entries go under [Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for section in re.split(r"^## .*\n", text, flags=re.MULTILINE)[1:]:
        loose, *groups = re.split(r"^### ", section, flags=re.MULTILINE)
        assert not loose.strip(), "an entry stands outside Added, Changed, Deprecated, Removed, Fixed and Security"
        found = [group.partition("\n")[0] for group in groups]
        assert found == [kind for kind in kinds if kind in found], f"groups {found} are not {kinds}, each once"
        assert all(re.search(r"^- ", group, flags=re.MULTILINE) for group in groups)


# --- where things are ---

ROWS = re.findall(
    r"^\| (.+\?) \| `(.+)` \| `(\w+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


def test_a_newcomers_questions_have_answers() -> None:
    assert len(ROWS) >= 12


@pytest.mark.parametrize(("question", "path", "name"), ROWS, ids=[path for _, path, _ in ROWS])
def test_things_are_where_contributing_says(question: str, path: str, name: str) -> None:
    code = (ROOT / "lyrics" / path).read_text(encoding="utf-8")
    assert re.search(rf"^\s*((def|class) {name}\b|{name}\s*[:=])", code, flags=re.MULTILINE), question


def test_every_folder_of_modules_is_a_package_that_says_what_it_holds() -> None:
    folders = {path.parent for path in (ROOT / "lyrics").rglob("*.py")}
    starts = {folder: (folder / "__init__.py").read_text(encoding="utf-8")[:3] for folder in folders}
    assert {folder for folder, start in starts.items() if start != '"""'} == set()
