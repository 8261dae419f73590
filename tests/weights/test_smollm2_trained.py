"""A real language model is trained with LoRA on drawn scenes, exported, and answers the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lyrics
from tests.commands import Run

QUESTION = "What is the capital of France?"
STEPS = 20


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of stage 2: ``lyrics-tiny`` with SmolLM2 in the place of its language model."""
    out = tmp_path_factory.mktemp("run") / "scenes"
    options = {"checkpoint": str(smollm2), "lora": {"target_modules": "all-linear", "rank": 4, "dropout": 0.0}}
    config = {
        "stage": "instruct",
        "out": str(out),
        "device": "cpu",
        "model": {"spec": "lyrics-tiny"},
        "data": {
            "sets": {"scenes": {"use": "scenes", "options": {"task": "vqa"}}},
            "augmentation": None,
            "workers": 0,
        },
        "optimization": {
            "steps": STEPS,
            "global_batch": 2,
            "learning_rate": 1e-3,
            "precision": "bf16",
            "frozen_precision": "bf16",
        },
        "logging": {"trackers": []},
    }
    changes = {
        "model.spec.language_model": {"use": "causal-lm", "options": options},
        "model.spec.refiner.max_objects": 2,
    }
    lyrics.train(config, overrides=changes)
    return out


def answers(model: Any) -> list[tuple[str, float]]:
    scene = lyrics.build_dataset("scenes", {"task": "vqa", "split": "test"})
    sample = scene[0]
    found = model.generate([None, scene.picture(sample)], [QUESTION, sample.turns[0].instruction], max_new_tokens=12)
    return [(one.text, one.confidence.mean_log_prob) for one in found]


@pytest.mark.filterwarnings("ignore")
def test_twenty_steps_teach_and_the_exported_model_answers_the_same(folder: Path, tmp_path: Path, run: Run) -> None:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["losses"]["total"] for line in lines if "losses" in line]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    trained = lyrics.load_model(str(folder)).eval()
    expected = answers(trained)
    assert "Paris" in expected[0][0]
    assert run("export", str(folder), str(tmp_path / "model")).code == 0
    exported = lyrics.load_model(str(tmp_path / "model")).eval()
    found = answers(exported)
    assert [text for text, _ in found] == [text for text, _ in expected]
    for (_, now), (_, before) in zip(found, expected, strict=True):
        assert now == pytest.approx(before, abs=1e-3)
    there, after = (
        {name: one for name, one in model.language_model.named_parameters() if "lora_B" in name}
        for model in (trained, exported)
    )
    assert len(after) == 30 * 7
    assert all(torch.equal(one, there[name]) for name, one in after.items())
    assert any(float(one.detach().abs().sum()) > 0 for one in after.values())
