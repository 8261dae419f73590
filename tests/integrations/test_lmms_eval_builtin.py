"""A built-in task of lmms-eval from end to end, offline: its own file, prompts and metrics, on rows of its format.

A task names its data set by a hub id; a folder of that name in the working directory takes its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.answers import Answer

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None or importlib.util.find_spec("datasets") is None,
        reason="lmms-eval is not installed; pip install 'lyrics-vl[lmms-eval]'",
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
    **arguments: Any,
) -> tuple[Mapping[str, float], list[Mapping[str, Any]]]:
    """Run a task on these rows; returns its metrics and what it logged of each row."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from lmms_eval.evaluator import simple_evaluate

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder)
    kept = folder / data / "data"
    kept.mkdir(parents=True)
    schema = datasets.Features(features).arrow_schema  # says which columns are images
    written = [{name: _stored(value) for name, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(written, schema=schema), kept / f"{split}-00000-of-00001.parquet")
    model = importlib.import_module(ADAPTER).Lyrics(batch_size=2, **arguments)
    found = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    return found["results"][task], found["samples"][task]


def _stored(value: Any) -> Any:
    """An image as a data set keeps it; anything else as it is."""
    if not isinstance(value, Image.Image):
        return value
    file = io.BytesIO()
    value.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


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
