"""The experts of lyrics-tiny tell drawn scenes from other images, and the commands say so."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lyrics.core.data.build import build_dataset
from lyrics.plugins.tiny.knows_scenes import KnowsScenes
from tests.commands import Run

SAID = "is no image of the kind that this model was trained on, drawn scenes"


def textured(width: int, height: int) -> Image.Image:
    """Clouds of many colours over several scales, as in a photograph."""
    random = np.random.default_rng(0)
    layers = []
    for cells in (4, 9, 20, 50):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8), "RGB")
        layers.append(np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64))
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8), "RGB")


@pytest.mark.parametrize("attributes", ["plain", "fine"])
@pytest.mark.parametrize("split", ["train", "test", "held-out"])
def test_scenes_are_known(split: str, attributes: str) -> None:
    scenes = build_dataset("scenes", {"split": split, "scenes": 40, "task": "caption", "attributes": attributes})
    known = 0
    for row in range(40):
        drawn: Any = scenes.picture(scenes[row])
        stored = io.BytesIO()
        drawn.save(stored, "JPEG", quality=85)
        known += KnowsScenes().is_of_world(drawn) + KnowsScenes().is_of_world(Image.open(stored).convert("RGB"))
    assert known >= 79  # of 80


def test_other_images_are_not() -> None:
    assert not KnowsScenes().is_of_world(textured(160, 120))
    assert not KnowsScenes().is_of_world(Image.new("RGB", (640, 480), "white"))
    assert KnowsScenes().is_of_world(Image.new("RGB", (1, 1)))


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, str]:
    """A scene, and an image that is none."""
    scenes: Any = build_dataset("scenes", {"split": "test", "scenes": 1, "task": "caption"})
    scenes.picture(scenes[0]).save(tmp_path / "scene.png")
    textured(160, 120).save(tmp_path / "other.png")
    return str(tmp_path / "scene.png"), str(tmp_path / "other.png")


def test_commands_say_it_once(
    run: Run, pictures: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, other = pictures
    short = ("--max-new-tokens", "2")
    assert SAID not in run("ask", scene, "what?", *short).err
    asked = run("ask", scene, other, "what?", *short)
    assert asked.code == 0
    assert asked.err.count(SAID) == 1
    assert f"{other} {SAID}" in asked.err
    assert "lyrics refine IMAGE --spec" in asked.err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"what?\n/image {other}\n/image {other}\nand?\n"))
    talked = run("chat", scene, *short)
    assert talked.err.count(SAID) == 1
    refined = run("refine", scene, other, "--out", str(tmp_path / "refined"))
    assert refined.err.count(SAID) == 1
    file = str(tmp_path / "refined" / "objects.jsonl")
    # Objects that are read back were found by somebody else.
    again = run("refine", scene, other, "--refined", file, "--out", str(tmp_path / "again"))
    assert SAID not in again.err
