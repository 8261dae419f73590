"""docs/paper.md: every name on it exists, every number on it is the preset's or the recipe's, and the paper says what
it quotes.

Text in code style on the page is one of these, and nothing else:

- ``path=value``: what ``lyrics-13b`` (a path of a model) or both ``paper-stage1`` and ``paper-stage2`` (a path of a
  run) have; ``NAME:path=value`` for another preset or recipe; ``CONSTANT=value`` for a constant of the package;
- ``path`` alone, and ``--set path=value``: a path that exists, and a value that it takes;
- ``Class``, ``Class.member``, ``function()``, ``CONSTANT``: defined somewhere in the package, wherever that is;
- a command with its options; a name of a component, preset, recipe or codec; a file of the repository;
- literal text, in double quotes or with "<" or "[" in it.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml

from lyrics.cli import app
from lyrics.core.data.templates import TEMPLATES
from lyrics.core.language.codecs import CODECS
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import read_spec, resolve
from lyrics.core.runs.config import TrainConfig
from lyrics.core.spec import ModelSpec, validate

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENTRIES = {
    title: " ".join(body.split())
    for title, body in re.findall(r"^#{2,4} (.+?)\n(.*?)(?=^#{2,4} |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
}
SPANS = sorted({" ".join(span.split()) for span in re.findall(r"`([^`]+)`", TEXT)})
PAPER = ROOT.parent / "shared" / "paper" / "000_04e0d56cb2b261b7.txt"


def recipes() -> set[str]:
    return {recipe.name for recipe, _ in default_registry().recipes}


PAPER_RECIPES = ("paper-stage1", "paper-stage2")
_PATH = r"[a-z_]+(?:\.[A-Za-z0-9_-]+)*"


# --- what there is
# -----------------------------------------------------------------------------------------------------


@cache
def model(name: str) -> Mapping[str, Any]:
    """A preset with every default, as plain data."""
    return resolve(name).spec.model_dump(mode="json")


@cache
def run(name: str) -> Mapping[str, Any]:
    """A recipe as plain data."""
    return default_registry().recipe(name).model_dump(mode="json")


def value(data: Mapping[str, Any], path: str) -> Any:
    found: Any = data
    for key in path.split("."):
        found = found[key]
    return found


def presets() -> set[str]:
    return {preset.name for preset, _ in default_registry().presets}


def is_of_model(path: str) -> bool:
    return path.partition(".")[0] in ModelSpec.model_fields


def is_of_run(path: str) -> bool:
    return path.partition(".")[0] in TrainConfig.model_fields


@cache
def definitions() -> tuple[Mapping[str, set[str]], set[str], Mapping[str, list[Any]]]:
    """Classes with their members, functions and methods, and module-level constants with their literal values."""
    classes: dict[str, set[str]] = defaultdict(set)
    functions: set[str] = set()
    constants: dict[str, list[Any]] = defaultdict(list)
    for file in (ROOT / "lyrics").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                classes[node.name] |= {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                targets = [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    constants[target.id].append(_literal(node.value))  # type: ignore[attr-defined]
    return classes, functions, constants


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


@cache
def names() -> set[str]:
    registry = default_registry()
    components = {entry.component.name for entry in registry.entries}
    return components | presets() | recipes() | set(CODECS)


# --- one span
# ----------------------------------------------------------------------------------------------------------


def check_fact(name: str, path: str, written: str) -> None:
    expected = yaml.safe_load(written)
    if re.fullmatch(r"\d(\.\d+)?e-?\d+", written):
        expected = float(written)  # YAML 1.1 reads 1e-4 as a word
    if name:
        holders = [model(name) if name in presets() else run(name)]
    else:
        holders = [model("lyrics-13b")] if is_of_model(path) else [run(recipe) for recipe in PAPER_RECIPES]
    for holder in holders:
        assert value(holder, path) == expected, f"{path} is {value(holder, path)!r}, the page says {written}"


def check_constant(name: str, written: str) -> None:
    found = definitions()[2].get(name)
    assert found, f"there is no constant {name}"
    assert all(one == ast.literal_eval(written) for one in found), f"{name} is {found}, the page says {written}"


def check_path(path: str) -> None:
    holder = model("lyrics-13b") if is_of_model(path) else run("paper-stage2")
    value(holder, path)


def check_other_value(path: str, written: str) -> None:
    """A path and a value that ``--set`` takes."""
    setting = {path: yaml.safe_load(written)}
    if is_of_model(path):
        changed = resolve("lyrics-13b", setting).spec.model_dump(mode="json")
        assert value(changed, path) == setting[path]
        assert value(changed, path) != value(model("lyrics-13b"), path), f"{path} is {written} already"
        return
    slots = default_registry().recipe("paper-stage2").with_overrides(setting).data.sets
    if found := re.fullmatch(r"data\.sets\.([a-z0-9-]+)\.options\.\w+", path):
        slot = slots[found[1]]
        options = default_registry().component("dataset", slot.use).component.options
        validate({"root": "anywhere", **slot.options}, options)


def check_command(words: list[str]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert words[1] in commands, f"there is no command {words[1]}"
    flags = {flag for parameter in commands[words[1]].params for flag in parameter.opts}
    missing = [word for word in words[2:] if word.startswith("--") and word not in flags]
    assert not missing, f"lyrics {words[1]} has no {missing}"
    for word, after in pairwise(words):
        if word == "--from":
            assert after in {one.format for entry in default_registry().entries for one in entry.component.converters}
        if word in ("pretrain", "finetune", "plan"):
            assert after in recipes()
        if word in ("check", "show"):
            assert after in names()
        if word == "--set":
            check_path(after.partition("=")[0])


def check_span(span: str) -> None:
    classes, functions, constants = definitions()
    if span.startswith("lyrics "):
        check_command(span.split())
    elif found := re.fullmatch(rf"--set ({_PATH})=(.+)", span):
        check_other_value(found[1], found[2])
    elif found := re.fullmatch(rf"(?:([a-z0-9-]+):)?({_PATH})=(.+)", span):
        check_fact(found[1] or "", found[2], found[3])
    elif found := re.fullmatch(r"([A-Z_]+)=(.+)", span):
        check_constant(found[1], found[2])
    elif span.startswith('"') or "<" in span or "[" in span:
        pass
    elif found := re.fullmatch(r"([a-z_]+)\(\)", span):
        assert found[1] in functions, f"there is no function {span}"
    elif found := re.fullmatch(r"([A-Z]\w*)\.(\w+)", span):
        assert found[2] in classes.get(found[1], set()), f"there is no {span}"
    elif span in classes or span in constants or span in names():
        pass
    elif "/" in span:
        assert (ROOT / span).is_file(), f"there is no file {span}"
    elif re.fullmatch(_PATH, span) and (is_of_model(span) or is_of_run(span)):
        check_path(span)
    else:
        raise AssertionError(f"{span!r} is none of the forms that this page may have, or names nothing that exists")


@pytest.mark.parametrize("span", [span for span in SPANS if "..." not in span])
def test_what_is_in_code_style_exists_and_has_the_value(span: str) -> None:
    check_span(span)


@pytest.mark.parametrize(
    "span",
    [
        "query_transformer.options.activation=relu",
        "query_transformer.options.activations=gelu",
        "--set query_transformer.options.activation=swish",
        "--set query_transformer.options.activation=gelu",
        "--set data.sets.coco.options.split=test",
        "lyrics-released-14b:query_transformer.options.num_grounding=32",
        "optimization.steps=800000",
        "paper-stage1:optimization.steps=300000",
        "SHOTS=(0, 1, 5)",
        "PromptReader",
        "PromptWriter.reads",
        "write_prompts()",
        "lyrics evaluate --greedy",
        "lyrics pretrain paper-stage3",
        "mq-former",
        "refiner.describer",
        "tests/test_no_page.py",
    ],
)
def test_what_does_not_exist_is_found_out(span: str) -> None:
    """The check above can fail, for each of its forms."""
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check_span(span)


# --- the page as a whole
# -----------------------------------------------------------------------------------------------


def links() -> Iterator[str]:
    yield from re.findall(r"\]\(#([^)]+)\)", TEXT)


def test_links_within_the_page_lead_to_an_entry() -> None:
    titles = re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    assert len(set(slugs)) == len(slugs)
    assert set(links()) <= set(slugs)


def test_every_entry_says_which_it_is_and_where() -> None:
    """Same, Open or Differs, and a place; a difference has its reason."""
    titles = re.findall(r"^#### (.+)$", TEXT, flags=re.MULTILINE)
    assert len(titles) > 60
    for title in titles:
        body = ENTRIES[title]
        assert len(re.findall(r"- \*\*(?:Same|Open|Differs)\b", body)) == 1, title
        assert "- Where: " in body, title
        if "**Differs" in body and title != "Trained parameters":
            assert "- Why: " in body, f"{title} differs without a reason"


def test_what_differs_is_in_the_summary() -> None:
    summary = TEXT[TEXT.index("**Different on purpose**") : TEXT.index("**Left open by the paper**")]
    linked = set(re.findall(r"\(#([^)]+)\)", summary))
    differing = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in ENTRIES if "**Differs" in ENTRIES[title]
    }
    assert differing - {"trained-parameters"} == linked


def test_the_data_sets_are_those_of_the_recipes() -> None:
    first, second = ENTRIES["Table 1"].split("`paper-stage2` reads")
    read = [set(re.findall(r"`([a-z0-9-]+)`", part)) for part in (first, second.partition(". -")[0])]
    expected = [set(run(name)["data"]["sets"]) for name in PAPER_RECIPES]
    assert read[0] - {"paper-stage1"} == expected[0]
    assert read[1] == expected[1]


def test_the_count_of_trained_parameters_is_the_models() -> None:
    """In stage 2, in millions; what LoRA adds is counted from the sizes."""
    spec = read_spec("lyrics-13b", default_registry())
    body = ENTRIES["Trained parameters"]
    language_model = model("lyrics-13b")["language_model"]["options"]
    lora, width, layers = language_model["lora"], language_model["hidden_size"], language_model["num_layers"]
    per_rank = layers * len(lora["target_modules"]) * 2 * width

    from lyrics.core.contracts import BuildContext
    from lyrics.plugins.mqformer import MQFormerOptions
    from lyrics.plugins.mqformer.build import build_mqformer

    context = BuildContext("meta", image_dim=1024, local_dims={"detector": 260, "segmenter": 260})
    with torch.device("meta"):
        mqformer = build_mqformer(MQFormerOptions(**spec.query_transformer.options), context)
    trunk = sum(one.numel() for name, one in mqformer.named_parameters() if not name.startswith("token_head."))
    projection = mqformer.hidden_size * width + width
    for count in (
        trunk,
        projection,
        per_rank * lora["rank"],
        trunk + projection + per_rank * lora["rank"],
        trunk + projection + per_rank * 128,
    ):
        assert f"{count / 1e6:.1f}M" in body, f"{count:,}"


def test_the_templates_are_counted_right() -> None:
    assert f"All {sum(map(len, TEMPLATES.values()))} templates" in ENTRIES["Table 7"]


def test_the_page_is_short_in_its_lines() -> None:
    assert max(map(len, TEXT.splitlines())) <= 120


# --- the paper
# ---------------------------------------------------------------------------------------------------------


def quotations() -> list[str]:
    blocks = re.findall(r"(?:^> .*\n)+", TEXT, flags=re.MULTILINE)
    return [" ".join(block.replace("\n> ", " ").removeprefix("> ").split()).strip('"') for block in blocks]


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text lies beside the repository, and is not there")
def test_the_paper_says_what_is_quoted() -> None:
    paper = " ".join(PAPER.read_text(encoding="utf-8").split())
    assert len(quotations()) > 60
    for quotation in quotations():
        place = 0
        for piece in quotation.split("..."):
            place = paper.find(piece.strip(), place)
            assert place >= 0, f"not in the paper: {piece!r} of {quotation!r}"
            place += len(piece.strip())


def test_no_quotation_is_longer_than_a_sentence() -> None:
    for quotation in quotations():
        assert not re.search(r"[a-z\]]\. [A-Z]", quotation), quotation
