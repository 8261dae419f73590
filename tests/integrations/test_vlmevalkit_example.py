"""The model of VLMEvalKit without VLMEvalKit: what it asks and what it answers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from lyrics.core.answers import Answer
from tests.fresh import ROOT

NAMES = ("lyrics_vlm", "run_lyrics")


@pytest.fixture(scope="module", autouse=True)
def _beside_the_example() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "examples" / "vlmevalkit"))
    yield
    sys.path.pop(0)
    for name in NAMES:
        sys.modules.pop(name, None)


def built(*arguments: Any, **more: Any) -> Any:
    return importlib.import_module("lyrics_vlm").LyricsVLM(*arguments, **more)


class Parrot:
    """Says one thing; keeps what it was asked."""

    def __init__(self, text: str, plain_text: str | None = None) -> None:
        self.answer = Answer(text, plain_text=text if plain_text is None else plain_text)
        self.asked: list[tuple[Any, str, int]] = []

    def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Answer]:
        self.asked += [(one, text, max_new_tokens) for one, text in zip(pictures, instructions, strict=True)]
        return [self.answer] * len(instructions)


Q_BENCH = (
    "Question: How is the sharpness of this image?\nOptions:\nA. Blurry\nB. Sharp\nC. Neither\n"
    "Please select the correct answer from the options above. \n"
)


def message(text: str, *pictures: str) -> list[dict[str, str]]:
    return [*({"type": "image", "value": path} for path in pictures), {"type": "text", "value": text}]


@pytest.mark.parametrize(
    ("said", "expected"), [("(b) Sharp", "B"), ("Neither", "C"), ("B.", "B"), ("Hard to say", "Hard to say")]
)
def test_q_bench_gets_a_letter(said: str, expected: str) -> None:
    parrot = Parrot(said)
    model = built(parrot, max_new_tokens=9)
    assert not model.use_custom_prompt("Q-Bench1_TEST")
    assert model.generate(message(Q_BENCH, "a.jpg"), dataset="Q-Bench1_TEST") == expected
    assert parrot.asked == [(["a.jpg"], Q_BENCH.strip(), 9)]


@pytest.mark.parametrize("question", ["Who wrote this book?", "Name the author"])
def test_ocr_vqa_is_asked_as_lyrics_evaluate_does(question: str) -> None:
    from lyrics.core.evaluation.prompts import PROMPTS, prompt_of
    from lyrics.core.types import Sample, Turn

    parrot = Parrot("<br>Jane</br>", "Jane")
    model = built(parrot)
    assert model.use_custom_prompt("OCRVQA_TEST")
    model.set_dump_image(lambda line: [f"{line['index']}.jpg"])
    asked = model.build_prompt({"index": 3, "question": question}, dataset="OCRVQA_TEST")
    expected = prompt_of(Sample("3.jpg", turns=(Turn(question, ""),)), PROMPTS["text-vqa"])
    assert asked == message(expected, "3.jpg")
    assert model.generate(asked, dataset="OCRVQA_TEST") == "Jane"


def test_texts_alone_several_pictures_and_videos() -> None:
    parrot = Parrot("yes")
    model = built(parrot)
    assert model.generate("Is it?") == "yes"
    assert model.generate(message("<image> Are they?", "a.jpg", "b.jpg")) == "yes"
    assert [asked[:2] for asked in parrot.asked] == [([], "Is it?"), (["a.jpg", "b.jpg"], "Are they?")]
    with pytest.raises(ValueError, match="has video"):
        model.generate([{"type": "video", "value": "a.mp4"}], dataset="Video-MME")


def test_it_is_put_into_the_table_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for VLMEvalKit's ``run`` and ``vlmeval.config``."""
    run_lyrics = importlib.import_module("run_lyrics")
    table: dict[str, Any] = {}
    config, run = ModuleType("vlmeval.config"), ModuleType("run")
    config.supported_VLM = table  # type: ignore[attr-defined]
    called: list[list[str]] = []
    run.GPU_LIST, run.main = [], lambda: called.append(sys.argv[1:])  # type: ignore[attr-defined]
    for name, module in (("vlmeval", ModuleType("vlmeval")), ("vlmeval.config", config), ("run", run)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["run_lyrics.py", "runs/mine", "--data", "OCRVQA_TEST", "--model", "lyrics"])
    run_lyrics.main()
    assert called == [["--data", "OCRVQA_TEST", "--model", "lyrics"]]
    assert (table["lyrics"].func, table["lyrics"].args) == (
        importlib.import_module("lyrics_vlm").LyricsVLM,
        ("runs/mine",),
    )
    monkeypatch.setattr(sys, "argv", ["run_lyrics.py", "--data"])
    with pytest.raises(SystemExit, match="usage"):
        run_lyrics.main()
