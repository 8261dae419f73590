"""The benchmarks as a plugin, whether or not the distribution is installed with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.evaluation.build import build_benchmark
from lyrics.core.registry.registry import PluginSource, Registry
from lyrics.plugins import benchmarks
from tests.plugins.datasets.files import MAKERS

REGISTRY = Registry([(PluginSource("lyrics-vl", "0", "benchmarks", "lyrics.plugins.benchmarks"), lambda: benchmarks)])
#: Data set -> benchmark, where they are called differently.
RENAMED = {"sciqa-img": "scienceqa"}


def files(name: str, folder: Path) -> Mapping[str, Any]:
    """Writes the small files of the benchmark's data set, and returns the options that lead to them."""
    options = MAKERS[RENAMED.get(name, name)](folder)
    if name == "ocr-vqa":  # one of the pictures is a GIF, which is not opened
        from PIL import Image

        Image.new("RGB", (10, 10)).save(folder / "images" / "1445720523.gif", format="PNG")
    return options


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Any]:
    """``made(name, **options)``: the benchmark on the small files of its data set."""

    def make(name: str, **options: Any) -> Any:
        return build_benchmark(name, {**files(name, tmp_path), **options}, registry=REGISTRY)

    return make


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pycocoevalcap is installed, starting Java for every score would take minutes; tests of the scores
    themselves do it once.
    """
    monkeypatch.setattr("lyrics.core.evaluation.judges.has_java", lambda: False)
