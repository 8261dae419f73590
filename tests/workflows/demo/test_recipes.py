"""The command and the program that the page shows do what the page did."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lyrics.workflows.demo.recipes import command, program
from tests.commands import Run
from tests.core.small import drawn

SWAPS: list[dict[str, Any]] = [{}, {"refiner.segmenter": None}, {"refiner.detector": None, "refiner.segmenter": None}]
HARD = """It's "that" $HOME `id` <box 1 2 30 40>; \\ & é?"""


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("question", ["What is this?", HARD])
def test_a_command_holds_the_question_as_it_is(swap: dict[str, Any], question: str) -> None:
    words = shlex.split(command("runs/my model", swap, [question]))
    assert words[:4] == ["lyrics", "ask", "image.png", question]
    assert words[4:6] == ["--model", "runs/my model"]
    assert words[6:] == [word for path in swap for word in ("--set", f"{path}=null")]


def test_a_conversation_is_read_from_standard_input() -> None:
    written = command("lyrics-tiny", {}, ["one?", HARD])
    assert written == f"lyrics chat image.png <<'END'\none?\n{HARD}\nEND"


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("questions", [(), ("What is this?",), ("What is this?", HARD)])
def test_a_program_is_one(swap: dict[str, Any], questions: tuple[str, ...]) -> None:
    written = program("a 'model'", swap, questions)
    calls: list[Any] = []

    class Module:
        """Stands in for the library, and notes what is asked of it."""

        def load_model(self, *given: Any, **more: Any) -> Any:
            calls.append((given, more))
            return self

        def chat(self, image: str) -> Any:
            assert image == "image.png"
            return self

        def ask(self, question: str) -> Any:
            calls.append(question)
            return self

        def refiner(self, image: str) -> Any:
            return self

        plain_text, objects = "", ()

    code = compile(written.replace("import lyrics", ""), "program", "exec")
    exec(code, {"lyrics": Module(), "print": lambda *_: None})
    assert calls == [(("a 'model'",), {"overrides": swap} if swap else {}), *questions]


def test_the_commands_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn().save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    for questions in ((), ("Where is the red circle?",)):
        done = run(*shlex.split(command("lyrics-tiny", SWAPS[1], questions))[1:])
        assert done.code == 0, done.err
    assert (tmp_path / "refined" / "objects.jsonl").is_file()
