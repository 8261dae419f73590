"""One table of floating-point types, read by every option and argument."""

from __future__ import annotations

import ast

import pytest
import torch
import typer

from lyrics.cli import app
from lyrics.core.dtypes import SHORT, dtype_name, torch_dtype
from lyrics.core.errors import UnknownNameError
from tests.fresh import ROOT


@pytest.mark.parametrize("name", SHORT)
def test_both_spellings(name: str) -> None:
    assert dtype_name(name) == dtype_name(SHORT[name]) == name
    assert torch_dtype(name) is torch_dtype(SHORT[name]) is torch_dtype(getattr(torch, name)) is getattr(torch, name)


def test_what_is_no_type() -> None:
    with pytest.raises(
        UnknownNameError, match=r"--dtype half: is one of float32 \(or fp32\), bfloat16 \(or bf16\), float16"
    ):
        dtype_name("half")
    with pytest.raises(UnknownNameError, match=r"--dtype fp16: is one of float32 \(or fp32\), bfloat16 \(or bf16\)\."):
        dtype_name("fp16", choices=("float32", "bfloat16"))


def test_no_command_has_a_list_of_types_of_its_own() -> None:
    """A tuple or mapping of type names in the command line's source would be a second table."""
    names = {*SHORT, *SHORT.values()}
    found = []
    for path in sorted((ROOT / "lyrics" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            items = [*node.elts] if isinstance(node, ast.Tuple | ast.List | ast.Set) else []
            items += [*node.keys] if isinstance(node, ast.Dict) else []
            values = {item.value for item in items if isinstance(item, ast.Constant)}
            if len(values & names) > 1 and path.name != "bench.py":
                found.append(f"{path.name}:{node.lineno}")
    assert not found


def commands_with_dtype() -> list[tuple[str, ...]]:
    group = typer.main.get_command(app)
    found = []

    def walk(command: object, path: tuple[str, ...]) -> None:
        for name, one in getattr(command, "commands", {}).items():
            walk(one, (*path, name))
        if any("--dtype" in option.opts for option in getattr(command, "params", [])):
            found.append(path)

    walk(group, ())
    return found


def test_every_command_says_torch_names_in_its_help() -> None:
    paths = commands_with_dtype()
    assert {
        ("ask",),
        ("chat",),
        ("check",),
        ("evaluate",),
        ("ablate",),
        ("bench", "step"),
        ("bench", "attention"),
    } <= set(paths)
    for path in paths:
        command = typer.main.get_command(app)
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        (option,) = [one for one in command.params if "--dtype" in one.opts]
        assert option.default in (None, *SHORT), path
