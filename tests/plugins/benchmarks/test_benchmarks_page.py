"""docs/evaluation.md names benchmarks, splits, scores and prompts that are there."""

from __future__ import annotations

import re
from pathlib import Path

from lyrics.core.data.templates import IF_FOUND, TEMPLATES
from lyrics.core.evaluation.prompts import PROMPTS
from tests.plugins.benchmarks.conftest import REGISTRY

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SPLITS = {
    entry.component.name: entry.component.options.model_fields["split"].annotation.__args__
    for entry in REGISTRY.entries
}


def test_benchmarks_and_splits_exist() -> None:
    named = {
        tuple(one.partition(":")[::2])
        for names in re.findall(r"--benchmark (\S+?)[`\s]", PAGE)
        for one in names.split(",")
    }
    assert {name for name, _ in named} == set(SPLITS)
    for name, split in named:
        assert not split or split in SPLITS[name], f"{name}:{split}"


def test_all_eight_splits_of_table_3_are_in_its_command() -> None:
    names = ("refcoco", "refcoco-plus", "refcocog")
    assert all(f"{name}:{split}" in PAGE for name in names for split in SPLITS[name])
    assert sum(len(SPLITS[name]) for name in names) == 8


def test_prompts_are_those_that_are_used() -> None:
    for prompt in (*PROMPTS.values(), IF_FOUND):
        assert f"| {prompt}" in PAGE
        assert any(prompt in templates for templates in TEMPLATES.values())
