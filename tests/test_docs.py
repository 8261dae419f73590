"""The documentation is executed: Python blocks run, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from lyrics.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md"), *DOCS.rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_readme_composes_and_swaps(tmp_path: Path) -> None:
    """The blocks run as written, in one process and in an empty folder."""
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert "build_model" in code
    code += "\nassert variant.query_transformer.num_queries == 16 + 8\nassert again.spec == variant.spec\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_offline()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "24"]


def test_the_first_pages_run(tmp_path: Path) -> None:
    """*Start here* and *Compose*, one after the other in one process."""
    code = "\n".join(block for page in ("index.md", "compose.md") for block in blocks(DOCS / page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_offline()
    )
    assert done.returncode == 0, done.stderr
    answer, queries, error, same = done.stdout.splitlines()
    assert re.fullmatch(r"circle \[\d+, \d+, \d+, \d+\]", answer)
    assert (queries, same) == ("24", "True")
    assert "Did you mean 'num_heads'?" in error


def test_the_refiner_page_runs(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "refiner.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_offline()
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_answers_page_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "answers.md", "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_offline()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "2"  # exchanges of the chat, before the options


def test_the_loops_of_the_training_page_run(tmp_path: Path) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "training.md", "python"))
    code += "\nassert lyrics.load_model(folder).spec == model.spec\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_offline()
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-2:]) == ("['answer']", ["tensor(True)", "1"])


def test_the_plugin_page_yields_a_component_that_passes_intake() -> None:
    from lyrics.core.registry.registry import Registry

    manifest, case, *_ = blocks(ROOT / "docs" / "plugins.md", "python")
    module = type(sys)("acme_boxes")
    exec(compile(manifest, "docs/plugins.md", "exec"), module.__dict__)
    registry = Registry.discover(module)
    entry = registry.component("detector", "acme-boxes")
    assert entry.component.options().feature_dim == 12
    exec(compile(case, "docs/plugins.md", "exec"), {"__name__": "docs"})


def test_the_resampler_on_the_plugin_page_is_that_of_the_example() -> None:
    folder = ROOT / "examples" / "third_party_resampler" / "acme_resampler"
    written = {line for file in folder.glob("*.py") for line in file.read_text(encoding="utf-8").splitlines()}
    _, _, options, part = blocks(ROOT / "docs" / "plugins.md", "python")
    assert set(options.splitlines()) - written <= {"", "    ..."}
    assert set(part.splitlines()) <= written
    code = {line for line in (folder / "model.py").read_text(encoding="utf-8").splitlines() if line.startswith("    ")}
    assert {line for line in code if '"""' not in line} <= set(part.splitlines()), "the page has all of it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8")
    used = set(re.findall(r"^lyrics ([a-z-]+)", "\n".join(blocks(page, "sh")), flags=re.MULTILINE))
    used |= set(re.findall(r"`lyrics ([a-z][a-z-]*)[ `]", text))
    assert used <= known, f"{page.name} speaks of commands that do not exist: {sorted(used - known)}"


def test_make_targets_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`?make ([a-z-]+)", "\n".join(blocks(page, "sh"))):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page.name}: make {target}"


def prose(page: Path) -> str:
    """The text of a page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """What links may name on a page: its headings as both the site and GitHub spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        on_github = re.sub(r"[^\w\s-]", "", words).strip().lower().replace(" ", "-")
        if on_github == re.sub(r"-+", "-", on_github):
            found.add(on_github)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file or folder that exists and a heading that it has. Pages of the site link within ``docs`` only."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {link}, and {file.name} has no such heading"
        if page.is_relative_to(DOCS):
            inside = file.is_relative_to(DOCS) and file.is_file()
            assert inside, f"{page.name} links to {link}, which is no part of the site: name it as `code` instead"


def test_headings_become_anchors(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# One `two`\n## 4. The [test](x.md)\n```sh\n# no heading\n```\n## a - b\n")
    assert anchors(tmp_path / "page.md") == {"one-two", "4-the-test"}, "the site writes a-b, GitHub a---b"
    (tmp_path / "links.md").write_text("[a](b.md) `[c](d.md)`\n```md\n[e](f.md)\n```\n![g](h.png)\n")
    assert re.findall(r"\]\(([^)]+)\)", prose(tmp_path / "links.md")) == ["b.md", "h.png"]


def test_every_command_is_in_the_readme_or_its_help_says_what_it_does() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.help, f"{name} has no help"
        assert f"lyrics {name}" in readme or name == "quickstart", f"{name} is not in the README"


def _offline() -> dict[str, str]:
    import os

    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
