"""The data sets as a plugin, whether or not the distribution is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.data.build import build_dataset
from lyrics.core.data.readers import RecordDataset
from lyrics.core.registry.registry import PluginSource, Registry
from lyrics.plugins import datasets
from tests.plugins.datasets.files import MAKERS

REGISTRY = Registry([(PluginSource("lyrics-vl", "0", "datasets", "lyrics.plugins.datasets"), lambda: datasets)])


def built(name: str, **options: Any) -> RecordDataset:
    data = build_dataset(name, options, registry=REGISTRY)
    assert isinstance(data, RecordDataset)
    return data


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., RecordDataset]:
    """``made(name, **options)``: the small files of that set are written, and it is built on them."""

    def make(name: str, **options: Any) -> RecordDataset:
        return built(name, **{**MAKERS[name](tmp_path), **options})

    return make
