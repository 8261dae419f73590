"""``lyrics ask`` and ``lyrics chat``: good and bad input, boxes in every form, drawings, conversations from standard
input.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject
from tests.commands import Run
from tests.core.small import drawn
from tests.core.test_model_steps import made

RED = Box(0.25, 0.25, 0.5, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    made().save_pretrained(path)
    return str(path)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    drawn(200, 100).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def refined(tmp_path: Path, picture: str) -> str:
    """What the refiner saw in the picture."""
    seen = Refinement((200, 100), objects=(DetectedObject("red circle", RED, 0.75),), name=picture)
    file = tmp_path / "objects.jsonl"
    file.write_text(json.dumps(seen.to_json()) + "\n")
    return str(file)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the language model say something of use: ``says(text)``. The rest of the model runs as it is.

    Every token has the log-probability ``sure``.
    """

    def speak(text: str, sure: float = -0.25) -> list[list[int]]:
        read: list[list[int]] = []

        def generate(self: Any, embeddings: Any, mask: Any, settings: Any, on_token: Any = None, **more: Any) -> Any:
            import torch

            ids = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
            read.append([int(mask.sum()), settings.max_new_tokens])
            for token in ids if on_token is not None else ():
                on_token(token)
            return torch.tensor([ids]), torch.full((1, len(ids)), sure)

        monkeypatch.setattr("lyrics.plugins.causal_lm.model.CausalLM._generate", generate)
        return read

    return speak


def pointing() -> str:
    there = format_objects([SpatialObject("circle", RED)], "lyrics")
    nothing = format_objects([SpatialObject("dog", Box(0.6, 0.6, 0.9, 0.9))], "lyrics")
    return f"A {there} and a {nothing}."


@pytest.mark.parametrize(
    ("form", "key", "expected"),
    [
        ("original", "box_px", [50, 25, 100, 50]),
        ("norm", "box_norm", [0.25, 0.25, 0.5, 0.5]),
        ("0-999", "box_999", [250, 250, 500, 500]),
    ],
)
def test_ask_gives_boxes_with_evidence(
    form: str,
    key: str,
    expected: list[float],
    run: Run,
    folder: str,
    picture: str,
    says: Any,
    refined: str,
) -> None:
    says(pointing())
    done = run("ask", picture, "what?", "--model", folder, "--refined", refined, "--boxes", form, "--json")
    assert done.code == 0, done.err
    data = done.data
    circle, dog = data["objects"]
    assert circle[key] == pytest.approx(expected, abs=1)
    assert (circle["supported"], circle["score"], circle["detected_as"]) == (True, 0.75, "red circle")
    assert (dog["supported"], dog["score"], dog["detected_as"]) == (False, None, None)
    assert data["plain_text"] == "A circle and a dog."
    assert [name for name in circle if name.startswith("box")] == [key]


def test_ask_prints_for_people_and_draws(
    run: Run,
    folder: str,
    picture: str,
    says: Any,
    tmp_path: Path,
    refined: str,
) -> None:
    says(pointing())
    out = tmp_path / "new" / "drawn.png"
    done = run("ask", picture, "what?", "--model", folder, "--refined", refined, "--draw", str(out))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "A circle and a dog."
    assert lines[1].startswith("  circle: ")
    assert "seen as 'red circle', score 0.75" in lines[1]
    assert lines[2].endswith("(not seen by the refiner)")
    assert lines[3] == f"drawn in {out}"
    assert Image.open(out).size == (200, 100)


def test_ask_about_several_pictures_or_none(run: Run, folder: str, picture: str, says: Any) -> None:
    read = says("fine")
    for pictures in ([], [picture], [picture, picture]):
        done = run("ask", *pictures, "how?", "--model", folder, "--max-new-tokens", "9")
        assert (done.code, done.out) == (0, "fine\n")
    lengths = [length for length, _ in read]
    assert lengths[2] - lengths[1] == lengths[1] - lengths[0] > 0
    assert {tokens for _, tokens in read} == {9}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.png", "what?"], "nowhere.png: no such image. The last argument is the question"),
        (["PICTURE"], "picture.png: is an image; write the question after it"),
        (["PICTURE", "  "], "the prompt is empty; ask something"),
        (["PICTURE", "what?", "--boxes", "pixels"], "--boxes pixels: is one of original, norm, 0-999"),
        (["PICTURE", "what?", "--dtype", "float23"], "Did you mean 'float32'?"),
        (["PICTURE", "in <box 1 2 3>?"], "a box is four numbers in pixels"),
        (["PICTURE", "in <box 0 0 500 50>?"], "does not lie in the image, which is 200 x 100 pixels"),
        (["PICTURE", "x" * 100_000], "the language model reads 512, 128 of which are kept for the answer"),
        (["what?", "--draw", "a.png"], "--draw a.png: there is no image to draw on"),
        (["what?", "--set", "codecs=qwen"], "there is no codecs. Did you mean 'codec'?"),
        (["what?", "--weights", "random"], "is a saved model, which brings its own; leave weights out"),
    ],
)
def test_ask_says_what_is_wrong(
    arguments: list[str],
    complaint: str,
    run: Run,
    folder: str,
    picture: str,
) -> None:
    done = run("ask", *[picture if one == "PICTURE" else one for one in arguments], "--model", folder)
    assert done.code == 2
    assert complaint in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_ask_with_another_model(run: Run, picture: str) -> None:
    done = run("ask", picture, "what?", "--model", "lyrics-tinny")
    assert done.code != 0
    assert "lyrics-tiny" in done.err
    done = run("ask", picture, "what?", "--model", "./nowhere/model")
    assert done.code != 0
    assert "nowhere" in done.err


# --- chat ---


def test_chat_talks_line_by_line(
    run: Run,
    folder: str,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    says: Any,
) -> None:
    says("fine")
    looked: list[int] = []
    look = LyricsModel.look
    monkeypatch.setattr(LyricsModel, "look", lambda self, p, *a, **k: looked.append(len(p)) or look(self, p, *a, **k))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"how?\n\nand now?\n/image {picture}\nand this?\n/quit\nnever\n"))
    done = run("chat", picture, "--model", folder, "--json")
    assert done.code == 0, done.err
    said = [json.loads(line) for line in done.out.splitlines()]
    assert [one["question"] for one in said] == ["how?", "and now?", "and this?"]
    assert {one["text"] for one in said} == {"fine"}
    assert looked == [1, 1]


def test_generation_options(run: Run, folder: str, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*options: str) -> str:
        done = run("ask", picture, "what?", "--model", folder, "--max-new-tokens", "8", "--json", *options)
        assert done.code == 0, done.err
        return str(json.loads(done.out)["text"])

    greedy = said()
    assert said("--num-beams", "1") == greedy
    hot = ("--temperature", "5", "--top-p", "0.95")
    samples = [said(*hot, "--seed", str(seed)) for seed in (1, 1, 2)]
    assert samples[0] == samples[1]
    assert len({greedy, *samples}) > 1
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("lyrics.core.chat.Chat.ask", lambda self, question, **o: seen.append(o) or Answer("x", ()))
    said("--num-beams", "3", "--repetition-penalty", "1.5")
    assert seen == [{"num_beams": 3, "repetition_penalty": 1.5, "max_new_tokens": 8, "abstaining": None}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "0"), "temperature=0.0: must be a number above 0"),
        (("--top-p", "2"), "top_p=2.0: must be a number above 0 and up to 1"),
        (("--num-beams", "0"), "num_beams=0: must be an integer, 1 or more"),
        (("--repetition-penalty", "-1"), "repetition_penalty=-1.0: must be a number above 0"),
        (("--seed", "3"), "--seed 3: nothing is drawn without --temperature or --top-p"),
        (("--seed", "-3", "--top-p", "0.5"), "seed=-3: must be an integer, 0 or more"),
        (("--dtype", "float8"), "--dtype float8: is one of float32 (or fp32), bfloat16 (or bf16), float16 (or fp16)"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "chat"])
def test_generation_options_that_cannot_be_met(
    command: str, options: tuple[str, ...], message: str, run: Run, picture: str
) -> None:
    question = ("what?",) if command == "ask" else ()
    done = run(command, picture, *question, "--model", "./nowhere/model", *options)
    assert done.code == 2
    assert done.err.startswith(f"lyrics: {message}")
    assert done.err.count("\n") == 1


def test_a_chat_with_beams_prints_whole_answers(
    run: Run, folder: str, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
    done = run("chat", picture, "--model", folder, "--num-beams", "2", "--max-new-tokens", "6", "--dtype", "fp32")
    assert done.code == 0, done.err
    model = LyricsModel.from_pretrained(folder)
    assert not model.training
    answer = model.chat(picture).ask("what?", num_beams=2, max_new_tokens=6)
    assert done.out.startswith(answer.text)


def test_chat_streams_and_draws(
    run: Run,
    folder: str,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    says: Any,
    tmp_path: Path,
) -> None:
    says(pointing())
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
    done = run("chat", picture, "--model", folder, "--draw", str(tmp_path / "d.png"))
    assert done.code == 0, done.err
    assert done.out.startswith(pointing())
    assert "circle: " in done.out
    assert (tmp_path / "d.png").exists()


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    run: Run,
    folder: str,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    says: Any,
) -> None:
    says("fine")
    from lyrics.core.chat import Chat

    ask, asked = Chat.ask, []

    def interrupted(self: Chat, question: str, *arguments: Any, **options: Any) -> Answer:
        asked.append(question)
        if question == "long?":
            raise KeyboardInterrupt
        return ask(self, question, *arguments, **options)

    monkeypatch.setattr(Chat, "ask", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("how?\nlong?\nand?\n"))
    done = run("chat", picture, "--model", folder, "--json")
    assert done.code == 0
    assert asked == ["how?", "long?", "and?"]
    assert len(done.out.splitlines()) == 2
    assert "stopped; this question is not part of the conversation" in done.err


def test_chat_from_a_file_stops_at_what_cannot_be_done(
    run: Run,
    folder: str,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("in <box 0 0 900 900>?\nnever\n"))
    done = run("chat", picture, "--model", folder)
    assert done.code == 2
    assert done.err.count("does not lie in the image") >= 1
    done = run("chat", "nowhere.png", "--model", folder)
    assert (done.code, done.err) == (2, "lyrics: nowhere.png: no such image.\n")


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_what_nobody_saw_or_is_not_sure_is_withheld(
    command: str, run: Run, folder: str, picture: str, says: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said(*options: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
        question = ("what?",) if command == "ask" else ()
        done = run(command, picture, *question, "--model", folder, "--json", *options)
        assert done.code == 0, done.err
        return dict(json.loads(done.out))

    nothing = format_objects([SpatialObject("dog", Box(0.6, 0.6, 0.9, 0.9))], "lyrics")
    says(f"A {nothing}.")
    plain = said()
    assert (plain["seen"], plain["confidence"]) == (False, {"mean_log_prob": -0.25, "min_log_prob": -0.25})
    hidden = said("--abstain")
    assert (hidden["text"], hidden["objects"], hidden["withheld"]) == ("I cannot see that.", [], plain["text"])
    says("Fine.")
    assert said("--abstain")["text"] == "Fine."
    assert said("--abstain-below", "-0.3")["text"] == "Fine."
    assert said("--abstain-below", "-0.2")["text"] == "I cannot see that."
    (tmp_path / "abstaining.json").write_text('{"threshold": -0.2}')
    assert said("--abstain-below", str(tmp_path / "abstaining.json"))["withheld"] == "Fine."


def test_a_chat_that_may_abstain_prints_whole_answers(
    run: Run, folder: str, picture: str, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    says("Fine.")
    for options, text in (((), "Fine."), (("--abstain-below", "0"), "I cannot see that.")):
        monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
        done = run("chat", picture, "--model", folder, *options)
        assert (done.code, done.out.strip()) == (0, text)


@pytest.mark.parametrize("command", ["ask", "chat"])
@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ("0.5", "--abstain-below 0.5: threshold=0.5: is the logarithm of a probability, 0 at most"),
        ("nowhere.json", "--abstain-below nowhere.json: is neither a number nor an existing file."),
    ],
)
def test_thresholds_that_are_none(command: str, threshold: str, message: str, run: Run, picture: str) -> None:
    question = ("what?",) if command == "ask" else ()
    done = run(command, picture, *question, "--model", "./nowhere/model", "--abstain-below", threshold)
    assert done.code == 2
    assert done.err.startswith(f"lyrics: {message}")
    assert done.err.count("\n") == 1
