"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.commands import Done, Run

# Small tensors on several threads spend their time waiting for each other, the more so beside another test process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is slow at any example; that is no failure of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

PARITY = Path(__file__).parents[1].parent / "shared" / "parity"


@pytest.fixture
def parity() -> Callable[[str], Path]:
    """``parity(name)`` is the file of that name among the parity fixtures; the test is skipped where they
    are absent.
    """

    def find(name: str) -> Path:
        path = PARITY / name
        if not path.is_file():
            pytest.skip(f"parity fixture {path} is not there")
        return path

    return find


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("list", "--json")`` in this process, as the ``lyrics`` command does it."""
    from lyrics.cli import main

    def command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["lyrics", *arguments])
        capsys.readouterr()
        code: Any = 0
        with warnings.catch_warnings():  # main changes how warnings are shown
            try:
                main()
            except SystemExit as exit_:
                code = exit_.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return command


def pytest_collection_finish() -> None:
    """Keep what is here by now out of later collections of garbage: thousands of tests and torch's modules stay."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take more than half a minute, too")


#: Files and folders whose tests train, start many processes, or build large parts; ``make test-fast`` leaves them out.
#: So it does with single tests that are marked ``long``: thousands of inputs, or a megabyte of one.
LONG = (
    "cli/test_ablate.py",
    "cli/test_cli.py",
    "cli/test_refine.py",
    "core/conversion/test_whole_model.py",
    "core/conversion/test_whole_model_beside.py",
    "core/inspection/test_memory.py",
    "core/pictures/test_images_real.py",
    "core/refining/test_features.py",
    "core/refining/test_refine_files_scale.py",
    "core/refining/test_refine_files_zoo.py",
    "core/registry/test_plugin_process.py",
    "core/stage1/test_step_distributed.py",
    "core/test_grid_sample.py",
    "core/test_model_true_parts.py",
    "core/test_trained.py",
    "core/training",
    "core/weights",
    "experts",
    "plugins/causal_lm/test_causal_lm_families.py",
    "plugins/causal_lm/test_causal_lm_round_trip.py",
    "plugins/datasets/test_datasets_training.py",
    "plugins/grounding_dino",
    "plugins/hf",
    "plugins/scenes",
    "plugins/tiny",
    "test_docs.py",
    "test_docs_notebooks.py",
    "test_docs_plugins.py",
    "test_evaluate_gpu.py",
    "test_imports.py",
    "test_tasks.py",
    "test_journeys.py",
    "test_public_face.py",
    "test_third_party.py",
    "weights",
    "workflows",
)


def _is_long(path: Path) -> bool:
    here = Path(__file__).parent
    return any(path.is_relative_to(here / name) for name in LONG)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _is_long(item.path):
            item.add_marker(pytest.mark.long)
    if config.getoption("--slow") or "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes more than half a minute; run with --slow"))


@pytest.fixture
def word_pieces(tmp_path: Path) -> Callable[[Sequence[str]], Any]:
    """``word_pieces(pieces)``: a BERT tokenizer that knows these pieces, with the special tokens where
    BERT has them.
    """

    from transformers import BertTokenizer

    from lyrics.core.language.phrase_prompts import BERT_DELIMITERS

    def make(pieces: Sequence[str]) -> Any:
        names = [f"[unused{index}]" for index in range(BERT_DELIMITERS[-1] + 1)]
        special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?", 1010: ","}
        for index, name in special.items():
            names[index] = name
        (tmp_path / "vocab.txt").write_text("\n".join([*names, *pieces]), encoding="utf-8")
        return BertTokenizer.from_pretrained(tmp_path)

    return make
