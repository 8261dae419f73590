"""What messages advise can be done: the overrides, commands and options that they name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from lyrics.cli import app
from lyrics.core.registry.registry import default_registry
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.spec import ModelSpec, set_path
from tests.fresh import ROOT

PACKAGE = ROOT / "lyrics"
KINDS = {path.rpartition(".")[2]: kind for path, kind, _ in default_registry().preset("lyrics-tiny").slots()}
#: What the messages of these are about is a run's configuration, in which a model's parts are below model.spec.
OF_RUNS = ("core/training/", "cli/train.py")
RECIPE = load_config("tiny-stage2")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def messages(path: Path) -> Iterator[str]:
    """The strings of a file, docstrings left out; what a formatted one fills in is written {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    about = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in about and node not in inside
        ):
            yield node.value


def advised(roots: type[ModelSpec | TrainConfig]) -> Iterator[tuple[str, str]]:
    """(file, override) of every ``path.to.value=`` in a message about models, or about runs."""
    fields = "|".join(roots.model_fields)
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name.startswith(OF_RUNS) == (roots is TrainConfig) and "ablat" not in name:
            for text in messages(path):
                for found in re.findall(rf"(?<![\w./{{}}])((?:{fields})(?:\.[a-z_]+)+)=", text):
                    yield name, found


FOR_MODELS, FOR_RUNS = sorted(set(advised(ModelSpec))), sorted(set(advised(TrainConfig)))


def check_option(path: str) -> None:
    """Some component of the kind has an option of that name."""
    found = re.search(r"(\w+)\.options\.(\w+)", path)
    if found is not None and found[1] in KINDS:
        components = [entry.component for entry in default_registry().entries]
        options = [one.options.model_fields for one in components if one.kind == KINDS[found[1]]]
        assert any(found[2] in fields for fields in options), path


def test_there_is_advice() -> None:
    assert len(FOR_MODELS) > 5
    assert len(FOR_RUNS) > 5


@pytest.mark.parametrize(("file", "path"), FOR_MODELS)
def test_overrides_of_models_exist(file: str, path: str) -> None:
    set_path(default_registry().preset("lyrics-tiny").model_dump(mode="json"), path, None, ModelSpec)
    check_option(path)


@pytest.mark.parametrize(("file", "path"), FOR_RUNS)
def test_overrides_of_runs_exist(file: str, path: str) -> None:
    inner = path.removeprefix("model.spec.")
    root, preset = (ModelSpec, default_registry().preset("lyrics-tiny")) if inner != path else (TrainConfig, RECIPE)
    set_path(preset.model_dump(mode="json"), inner, None, root)
    check_option(path)


def commands() -> Iterator[tuple[str, str, str]]:
    """(file, command, the rest of the sentence) of every command in a message."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in messages(path):
            for before, name, rest in re.findall(r"(?:^|([`'\"]|[Rr]un: |next: |: ))lyrics ([a-z-]+)([^`'.;]*)", text):
                if before not in ("", ": ") or name in COMMANDS:  # others may be words about the library
                    yield str(path.relative_to(PACKAGE)), name, rest


@pytest.mark.parametrize(("file", "name", "rest"), sorted(set(commands())))
def test_commands_and_their_options_exist(file: str, name: str, rest: str) -> None:
    assert name in COMMANDS
    command = COMMANDS[name]
    part, _, _ = rest.strip().partition(" ")
    command = getattr(command, "commands", {}).get(part, command)  # lyrics bench host
    options = {option for parameter in command.params for option in parameter.opts}
    for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
        assert option in options, f"{file}: lyrics {name} has no {option}"
