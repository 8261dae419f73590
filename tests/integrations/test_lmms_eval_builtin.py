"""Built-in tasks of lmms-eval from end to end, offline: their own files, prompts and metrics, on rows of their format.

Run by ``make test-toolkits``; skipped where lmms-eval is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lyrics
from lyrics.core.answers import Answer
from lyrics.core.evaluation.metrics.yes_no import yes_no_scores, yes_or_no
from lyrics.core.evaluation.toolkits import rewritten
from tests.integrations.published import publish

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None or importlib.util.find_spec("datasets") is None,
        reason="lmms-eval is not installed; make test-toolkits has it",
    ),
    pytest.mark.filterwarnings("ignore"),
]
ADAPTER = "lyrics.integrations.lmms_eval"


def evaluated(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    task: str,
    data: str,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    features: Mapping[str, Any],
    file: str | None = None,
    **arguments: Any,
) -> tuple[Mapping[str, float], list[Mapping[str, Any]]]:
    """Run a task on these rows; returns its metrics and what it logged of each row. ``file`` is the task's, if own."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    publish(monkeypatch, folder, data, split, rows, features)
    model = importlib.import_module(ADAPTER).Lyrics(batch_size=2, **arguments)
    manager = None
    if file is not None:
        (folder / "tasks").mkdir()
        (folder / "tasks" / f"{task}.yaml").write_text(file)
        manager = TaskManager(include_path=str(folder / "tasks"))
    found = simple_evaluate(model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0)
    return found["results"][task], found["samples"][task]


#: The built-in task, asked in the words of its rows alone: what docs/evaluation.md shows.
PLAIN_POPE = """include: {folder}/pope/pope.yaml
task: pope_plain
lmms_eval_specific_kwargs: {{default: {{pre_prompt: "", post_prompt: ""}}}}
"""


def test_pope_in_the_words_that_the_model_was_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model on drawn scenes: the task's scores are this library's of the same answers."""
    import datasets
    import lmms_eval.tasks

    scenes = lyrics.build_dataset("scenes", {"task": "vqa", "split": "test"})
    rows: list[dict[str, Any]] = []
    for number in range(len(scenes)):
        sample = scenes[number]
        turn = sample.turns[0]
        if turn.answer in ("yes", "no") and [row["answer"] for row in rows].count(turn.answer) < 4:
            name = {"id": str(number), "question_id": str(number), "image_source": "scene", "category": "random"}
            rows.append({"question": turn.instruction, "answer": turn.answer, "image": scenes.picture(sample), **name})
        if len(rows) == 8:
            break
    model = lyrics.load_model("lyrics-tiny")
    said = [
        model.generate(row["image"], row["question"], max_new_tokens=128).plain_text.lower().strip() for row in rows
    ]
    text = datasets.Value("string")
    features = {"image": datasets.Image()} | dict.fromkeys(
        ("id", "question_id", "question", "answer", "image_source", "category"), text
    )
    scores, samples = evaluated(
        monkeypatch,
        tmp_path,
        "pope_plain",
        "lmms-lab-encoder/POPE",
        "test",
        rows,
        features,
        file=PLAIN_POPE.format(folder=Path(lmms_eval.tasks.__file__).parent),
        model=model,
    )
    answers = {sample["doc"]["question_id"]: sample["filtered_resps"][0].lower() for sample in samples}
    assert [answers[row["question_id"]] for row in rows] == said
    assert set(said) <= {"yes", "no"}, "the model answers such questions with one word"
    ours = yes_no_scores([yes_or_no(one) for one in said], [row["answer"] == "yes" for row in rows])
    for theirs, name in (
        ("accuracy", "accuracy"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1_score", "F1"),
    ):
        assert scores[f"pope_{theirs},none"] == pytest.approx(ours[name]), name
    assert ours["accuracy"] > 0.5


PLANTS = ("moss", "fern", "DNA", "a tall pine")
#: Answers of which MMMU's parser knows what they choose.
CLEAR = (
    *("A", "B.", "(B)", "(B) fern", "B. fern", "The answer is (C).", "(A) is wrong, it is (B)", "A or B", "Answer: D"),
    *("It is DNA that is shown in the image here", "(B), since moss has no leaves", "A fern, so the answer is B"),
    "The tree of the image is certainly a tall pine",
)
#: This library's own forms, and answers in a few words: the parser would draw one, or read another letter in "DNA".
OWN = {"(b) fern": "B", "b": "B", "fern": "B", "Moss.": "A", "(c) DNA": "C", "(d)": "D", "the answer is (d)": "D"}
#: Nothing is chosen: the parser draws.
UNCLEAR = ("", "grass", "I do not know", "(f)")


def test_mmmus_parser_reads_the_same_in_rewritten_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.tasks.mmmu import utils

    def parsed(text: str) -> str:
        index, letters = utils.get_multi_choice_info(list(PLANTS))
        return str(utils.parse_multi_choice_response(text, letters, index))

    listed = "\n".join(f"{letter}. {plant}" for letter, plant in zip("ABCD", PLANTS, strict=True))
    prompt = f"Which?\n{listed}\n\nAnswer with the option's letter from the given choices directly."
    monkeypatch.setattr("random.choice", lambda letters: "drawn")

    def sent(text: str) -> str:
        return rewritten(Answer(text, plain_text=text), prompt)

    for text in CLEAR:
        assert parsed(text) != "drawn", text
        assert parsed(sent(text)) == parsed(text), text
    for text, letter in OWN.items():
        assert parsed(sent(text)) == letter, text
    for text in UNCLEAR:
        assert parsed(sent(text)) == parsed(text) == "drawn", text


class Known:
    """Answers by the first words of a question, in this library's own forms."""

    SAID = {  # noqa: RUF012
        "Which plant": "(b) fern",
        "Which color": "blue",
        "Which of both": "(a) the first",
        "How long": "It is 7.5 cm.",
    }

    def __init__(self) -> None:
        self.shown: dict[str, int] = {}

    def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Answer]:
        found = []
        for own, instruction in zip(pictures, instructions, strict=True):
            words = next(words for words in self.SAID if instruction.startswith(words))
            self.shown[words] = len(own)
            found.append(Answer(self.SAID[words], plain_text=self.SAID[words]))
        return found


def test_mmmu_by_its_official_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options by letter and by word, a wrong one, a number in a sentence, and a question with two images."""
    import datasets

    def row(name: str, question: str, options: list[str], answer: str, images: int = 1) -> dict[str, Any]:
        picture = Image.new("RGB", (8, 8), "red")
        shown = {f"image_{n}": picture if n <= images else None for n in range(1, 8)}
        kind = "multiple-choice" if options else "open"
        return {
            "id": name,
            "question": question,
            "options": repr(options),
            "answer": answer,
            "question_type": kind,
            **shown,
        }

    rows = [
        row("validation_Art_1", "Which plant? <image 1>", ["moss", "fern"], "B"),
        row("validation_Art_2", "Which color? <image 1>", ["red", "green", "blue"], "A"),
        row("validation_Math_1", "Which of both? <image 1> <image 2>", ["the first", "the second"], "A", images=2),
        row("validation_Math_2", "How long? <image 1>", [], "7.5"),
    ]
    text = datasets.Value("string")
    features = dict.fromkeys(("id", "question", "options", "answer", "question_type"), text) | {
        f"image_{n}": datasets.Image() for n in range(1, 8)
    }
    model = Known()
    scores, samples = evaluated(
        monkeypatch, tmp_path, "mmmu_val", "lmms-lab-encoder/MMMU", "validation", rows, features, model=model
    )
    assert {sample["doc"]["id"]: sample["filtered_resps"][0] for sample in samples} == {
        "validation_Art_1": "B",
        "validation_Art_2": "C",
        "validation_Math_1": "A",
        "validation_Math_2": "It is 7.5 cm.",
    }
    assert scores["mmmu_acc,none"] == pytest.approx(0.75)
    assert model.shown == {"Which plant": 1, "Which color": 1, "Which of both": 2, "How long": 1}
