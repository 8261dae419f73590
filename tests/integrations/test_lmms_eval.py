"""The model ``lyrics`` of lmms-eval: its arguments everywhere, a whole run where lmms-eval is installed.

``make test-toolkits`` runs all of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lyrics.core.answers import Answer
from lyrics.core.errors import SpecError
from tests.integrations.published import publish

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
needs_lmms_eval = pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed; make test-toolkits has it")
ADAPTER = "lyrics.integrations.lmms_eval"
COLORS = ("red", "green", "blue")


class Seer:
    """Names the color of each picture, in the letter's place where one is asked for."""

    def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Answer]:
        names = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue"}
        said = [" and ".join(names[one.getpixel((0, 0))] for one in own) or "nothing" for own in pictures]
        return [Answer(text, plain_text=text) for text in said]


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The adapter's module, over lmms-eval's base class or, where that is not installed, one with the same
    attributes.
    """
    if not INSTALLED:

        class Base:
            def __init__(self) -> None:
                self._rank, self._world_size, self.task_dict = 0, 1, {}
                self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)

        model = ModuleType("lmms_eval.api.model")
        model.lmms = Base  # type: ignore[attr-defined]
        for name, module in (
            ("lmms_eval", ModuleType("lmms_eval")),
            ("lmms_eval.api", ModuleType("api")),
            (model.__name__, model),
        ):
            monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module(ADAPTER)
    if not INSTALLED:
        sys.modules.pop(ADAPTER, None)


def test_it_answers_duck_typed_requests(adapter: Any) -> None:
    lyrics = adapter.Lyrics(model=Seer(), batch_size="2", max_new_tokens="4", max_batch_size=None)
    assert (lyrics.batch_size, lyrics.max_new_tokens) == (2, 4)
    lyrics.task_dict = {"toy": {"test": [[Image.new("RGB", (2, 2), name)] for name in COLORS] + [[]]}}
    kept: list[Any] = []
    lyrics.cache_hook = SimpleNamespace(add_partial=lambda *entry: kept.append(entry))
    letters = "Which?\nA. blue\nB. green\nAnswer with the option's letter from the given choices directly."
    requests = [
        SimpleNamespace(args=(context, {}, lambda row: row, row, "toy", "test"))
        for context, row in (("What?", 0), (letters, 1), (letters, 2), ("Well?", 3))
    ]
    assert lyrics.generate_until(requests) == ["red", "B", "A", "nothing"]
    assert kept[0] == ("generate_until", ("What?", {}), "red")


def test_it_refuses_in_a_sentence(adapter: Any) -> None:
    for arguments, word in (
        ({"pretraind": "x"}, "Did you mean 'pretrained'"),
        ({"dtype": "bf17"}, r"dtype bf17: is one of float32 .or fp32., bfloat16"),
        ({"batch_size": "auto"}, "batch_size=auto"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ):
        with pytest.raises(SpecError, match=word):
            adapter.Lyrics(model=Seer(), **arguments)
    lyrics = adapter.Lyrics(model=Seer())
    with pytest.raises(NotImplementedError, match="generate_until variant"):
        lyrics.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        lyrics.generate_until_multi_round([])


def test_a_real_model_is_loaded(adapter: Any) -> None:
    lyrics = adapter.Lyrics(pretrained="lyrics-tiny", weights="random", max_new_tokens=2)
    lyrics.task_dict = {"toy": {"test": [[Image.new("RGB", (32, 32), "red")]]}}
    (text,) = lyrics.generate_until([SimpleNamespace(args=("What?", {}, lambda row: row, 0, "toy", "test"))])
    assert isinstance(text, str)


def test_the_package_imports_without_lmms_eval() -> None:
    module = importlib.import_module("lyrics.integrations")
    if not INSTALLED:
        with pytest.raises(ModuleNotFoundError, match="lmms_eval"):
            module.lmms_eval_models()


TASK = """dataset_path: acme/colors
task: lyrics_colors
test_split: test
output_type: generate_until
doc_to_visual: !function colors.visuals
doc_to_text: !function colors.text
doc_to_target: "answer"
generation_kwargs: {max_new_tokens: 4, temperature: 0, do_sample: false, until: ["!"]}
process_results: !function colors.results
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
metadata: {version: 0.0}
"""
FUNCTIONS = """
def visuals(doc):
    return [doc["image"].convert("RGB")] * doc["times"]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, answers):
    return {"right": float(answers[0] == doc["answer"])}
"""


@needs_lmms_eval
def test_lmms_eval_finds_the_model() -> None:
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(importlib.import_module("lyrics.integrations").lmms_eval_models())
    found = registry.get_model_class("lyrics")
    assert found is importlib.import_module(ADAPTER).Lyrics
    assert registry.resolve("lyrics").model_type == "simple"


@needs_lmms_eval
def test_a_task_of_lmms_eval_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task file and a data set: one picture, two, none, and a choice; one answer is wrong."""
    import datasets
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    letter = "Which?\nA. blue\nB. red\nAnswer with the option's letter from the given choices directly."
    rows = [
        {"image": Image.new("RGB", (8, 8), color), "question": question, "answer": answer, "times": times}
        for color, question, answer, times in (
            ("red", "What color?", "red", 1),
            ("blue", "What colors?", "blue and blue", 2),
            ("green", "Anything?", "nothing", 0),
            ("red", letter, "B", 1),
            ("green", "What color?", "grue", 1),
        )
    ]
    text = datasets.Value("string")
    features = {"image": datasets.Image(), "question": text, "answer": text, "times": datasets.Value("int64")}
    publish(monkeypatch, tmp_path, "acme/colors", "test", rows, features)
    (tmp_path / "colors.py").write_text(FUNCTIONS)
    (tmp_path / "lyrics_colors.yaml").write_text(TASK)
    lyrics = importlib.import_module(ADAPTER).Lyrics(model=Seer(), batch_size=2)
    found = simple_evaluate(
        model=lyrics,
        tasks=["lyrics_colors"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        log_samples=True,
        bootstrap_iters=0,
    )
    assert found["results"]["lyrics_colors"]["right,none"] == pytest.approx(0.8)
    assert len(found["samples"]["lyrics_colors"]) == 5
