"""Every part of its true type, small: both steps, answers, folders, memory. And the full sizes, on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lyrics.core.data.collate import Collator
from lyrics.core.data.stream import Example
from lyrics.core.errors import WeightsError
from lyrics.core.inspection import memory
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.types import Sample, Turn
from tests.core.small import drawn

TRUE_TYPES = {
    "encoder": "VitEncoder",
    "refiner.tagger": "RamTagger",
    "refiner.detector": "GroundingDino",
    "refiner.segmenter": "SamHq",
    "query_transformer": "MQFormer",
    "language_model": "CausalLM",
}
NO_DROPOUT = {
    "query_transformer.options.hidden_dropout": 0.0,
    "query_transformer.options.attention_dropout": 0.0,
    "language_model.options.lora.dropout": 0.0,
}


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    torch.manual_seed(0)
    return build_model("lyrics-mini", overrides=NO_DROPOUT, weights="random").eval()


def batch(model: LyricsModel, stage: Any, count: int = 2) -> Any:
    turns = (Turn("What is it?", "A circle."), Turn("And its color?", "Red."))
    examples = [
        Example(n, "toy", n, Sample(f"{n}.png", ("a red circle",), turns=turns), drawn(150 + 40 * n, 120))
        for n in range(count)
    ]
    return Collator(stage, model.processor, seed=0)(examples)


def test_parts_are_of_the_papers_types(model: LyricsModel) -> None:
    for path, name in TRUE_TYPES.items():
        assert type(model.get_submodule(path)).__name__ == name
    assert type(model.language_model.model.get_base_model()).__name__ == "LlamaForCausalLM"
    full = build_model("lyrics-13b", weights="meta")
    for path in TRUE_TYPES:
        assert type(full.get_submodule(path)) is type(model.get_submodule(path))


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_both_stages_step(model: LyricsModel, stage: Any) -> None:
    trained = model.trainable_parameters(stage)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    model.train()
    for step in range(2):
        loss = model(batch(model, stage), step=step).loss
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert moved <= set(trained)
    assert not any(module.training for part in (model.encoder, model.refiner) for module in part.modules())  # type: ignore[union-attr]


def test_the_refiner_has_something_to_do_and_answers_come(model: LyricsModel, tmp_path: Path) -> None:
    encoded = model.look([drawn(150, 120)], ["what?"])
    assert encoded.refinements[0].tags
    assert encoded.refinements[0].objects
    assert all(found.mask is not None for found in encoded.refinements[0].objects)
    asked = ([[drawn(150, 120)], [drawn(90, 200), drawn(64, 64)]], ["what is it?", "which one?"])
    answers = model.generate(*asked, max_new_tokens=8)
    model.save_pretrained(tmp_path)
    again = LyricsModel.from_pretrained(tmp_path).eval()
    assert again.generate(*asked, max_new_tokens=8) == answers


def test_what_experts_need_beside_tensors_travels_with_the_model(model: LyricsModel, tmp_path: Path) -> None:
    tagger: Any = model.refiner.tagger  # type: ignore[union-attr]
    tags, thresholds = tagger.tags, tagger.thresholds
    tagger.tags = tuple(f"sort {n}" for n in range(10))
    tagger.thresholds = (0.25,) * 10
    try:
        model.save_pretrained(tmp_path)
    finally:
        tagger.tags, tagger.thresholds = tags, thresholds
    again: Any = LyricsModel.from_pretrained(tmp_path).refiner
    assert again.tagger.tags[3] == "sort 3"
    assert again.tagger.thresholds == (0.0,) * 10  # the specification states one for all tags
    stated = json.loads((tmp_path / "spec.json").read_text())
    stated["refiner"]["tagger"]["options"]["threshold"] = None
    (tmp_path / "spec.json").write_text(json.dumps(stated))
    again = LyricsModel.from_pretrained(tmp_path).refiner
    assert again.tagger.thresholds == (0.25,) * 10
    assert again.detector.writer.tokens(["a dog"]) == model.refiner.detector.writer.tokens(["a dog"])  # type: ignore[union-attr]
    for file, complaint in (
        ("parts/tagger/classes.json", r"classes\.json: is not JSON"),
        ("parts/detector/delimiters.json", r"delimiters\.json: is not JSON"),
    ):
        kept = (tmp_path / file).read_text()
        (tmp_path / file).write_text("{")
        with pytest.raises(WeightsError, match=complaint):
            LyricsModel.from_pretrained(tmp_path)
        (tmp_path / file).write_text(kept)
    (tmp_path / "parts/tagger/classes.json").write_text('{"tags": ["a"], "thresholds": [1]}')
    with pytest.raises(WeightsError, match="has 1 tags and 1 thresholds; the tagger has 10"):
        LyricsModel.from_pretrained(tmp_path)


def test_generation_costs_the_language_model_s_own_and_no_more(model: LyricsModel) -> None:
    """Counted, not timed: every part runs once before the first token, and the language model once a token."""
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    watched = {"language model": model.language_model.model.get_base_model().model}
    watched |= {path: model.get_submodule(path) for path in list(TRUE_TYPES)[:-1]}
    hooks = [module.register_forward_hook(count(name)) for name, module in watched.items()]
    try:
        model.generate([drawn(150, 120)], ["what?"], max_new_tokens=7)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls.pop("language model") <= 7
    assert set(calls.values()) == {1}
    assert set(calls) == set(TRUE_TYPES) - {"language_model"}


# --- memory ---


def test_inference_memory_counts_weights_keys_and_values() -> None:
    shapes = build_model("lyrics-mini", weights="meta")
    short, long = memory.inference_memory(shapes, 1), memory.inference_memory(shapes, 200_001)
    assert short.total == short.weights + short.working
    assert long.working - short.working == pytest.approx(200_000 * 4 * 2 * 256 * 4, rel=0.02)


# --- the full sizes ---


@pytest.mark.parametrize("preset", ["lyrics-13b", "blip2-13b", "lyrics-released-14b"])
def test_full_sizes_go_through_both_stages_on_the_meta_device(preset: str) -> None:
    full = build_model(preset, weights="meta", dtype=torch.bfloat16)
    for stage in ("pretrain", "instruct"):
        assert memory.step_peak(full, stage, 2) > 2**28


def test_picture_of_another_size_does_not_reach_the_full_size_experts() -> None:
    """The frames that full-size experts ask for, from one photograph's size."""
    full = build_model("lyrics-13b", weights="meta")
    images = full.processor.images([Image.new("RGB", (640, 427))])
    shapes = {name: tuple(batch.pixels_BCHW.shape[2:]) for name, batch in images.by_expert.items()}
    assert shapes == {
        "image_encoder": (224, 224),
        "tagger": (384, 384),
        "detector": (800, 1199),
        "segmenter": (1024, 1024),
    }
