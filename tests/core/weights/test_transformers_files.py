"""Everything that transformers loads goes through one file, and that file runs nothing that a folder brings."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

import lyrics
from lyrics.core.errors import WeightsError
from lyrics.core.weights.pretrained import load_module, load_transformers
from lyrics.core.weights.tensors import bounded, check_finite, headers_of
from lyrics.core.weights.transformers_files import disagreements, load_config, load_tokenizer, refuse_code

PACKAGE = Path(lyrics.__file__).parent
#: Calls that may run code of a folder, ask on the terminal, or fetch something.
LOADERS = {"from_pretrained", "from_config", "snapshot_download", "hf_hub_download", "cached_file", "pipeline"}
#: Where they stand, and why: (file, function that holds the call).
ALLOWED = {
    ("core/weights/transformers_files.py", "load_config"): "checked by refuse_code",
    ("core/weights/transformers_files.py", "load_generation_config"): "checked by refuse_code",
    ("core/weights/transformers_files.py", "load_tokenizer"): "checked by refuse_code",
    ("core/weights/transformers_files.py", "load_causal_lm"): "checked by refuse_code",
    ("core/weights/transformers_files.py", "load_gguf_config"): "checked by refuse_code",
    ("core/weights/transformers_files.py", "load_gguf"): "checked by refuse_code",
    (
        "core/weights/pretrained.py",
        "load_transformers",
    ): "a class of transformers, its configuration and tensors: no folder is named",
    ("core/weights/pretrained.py", "locate_checkpoint"): "fetches what the user names, safetensors and text alone",
    ("core/weights/published.py", "_from_hub"): "one file that the user names, for the converter's process alone",
    ("core/weights/hub.py", "_fetched"): "fetches what the user names, safetensors and text alone",
    ("plugins/causal_lm/build.py", "_model_of"): "a configuration that load_config read; trust_remote_code=False",
}


def _calls(file: Path) -> list[tuple[str, str, int]]:
    """(called name, function around it, line) of every call in a file whose last name is a loader's."""
    found = []

    def walk(node: ast.AST, inside: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = node.name
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
            if name in LOADERS and owner not in ("cls", "self", "LyricsModel", "lyrics.LyricsModel", "super()"):
                found.append((name, inside, node.lineno))
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(file.read_text(encoding="utf-8")), "")
    return found


def test_nothing_is_loaded_past_the_one_place() -> None:
    bare = []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        bare += [f"{where}:{line}: {name} in {at}" for name, at, line in _calls(file) if (where, at) not in ALLOWED]
    assert not bare, "use lyrics.core.weights.transformers_files: " + "; ".join(bare)


def test_every_exception_is_still_there() -> None:
    found = {(file.relative_to(PACKAGE).as_posix(), at) for file in PACKAGE.rglob("*.py") for _, at, _ in _calls(file)}
    assert set(ALLOWED) <= found


def test_nothing_trusts_remote_code() -> None:
    """The word may only be passed as False."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_auto_map_is_refused_by_name_wherever_it_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"sub": [{"auto_map": {"AutoConfig": "evil.Evil"}}]}))
    with pytest.raises(WeightsError, match=rf"{name}: has an auto_map"):
        refuse_code(tmp_path)


def test_a_word_called_auto_map_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"auto_map": 7}')
    refuse_code(tmp_path)


def test_folders_without_files_say_which_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    with pytest.raises(WeightsError, match=r"holds no tokenizer; it should have one of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_disagreements_are_of_what_both_state() -> None:
    stated = {"a": 1, "b": None, "c": (1, 2), "d": 4, "e": 5}
    assert disagreements(stated, {"a": 2, "b": 3, "c": [1, 2], "d": None}) == ["a is 1, the checkpoint has 2"]


def test_a_part_far_larger_than_its_file_is_stopped() -> None:
    headers = headers_of({"weight": torch.zeros(4, 4)}).values()
    with bounded(headers, "here"):
        torch.nn.Linear(4, 4)
    with pytest.raises(WeightsError, match="here: holds 1 tensors of 16 numbers"), bounded(headers, "here"):
        torch.nn.Linear(100_000, 100_000, device="meta")
    with pytest.raises(WeightsError, match="far more"), bounded(headers, "here"):
        torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(100_000)))
    torch.nn.Linear(100_000, 100_000, device="meta")  # the bound is gone


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    check_finite([("whole", torch.tensor([1])), ("none", torch.empty(0)), ("good", torch.ones(3))], "here")
    with pytest.raises(WeightsError, match="here: bad holds values that are not finite"):
        check_finite([("good", torch.ones(3)), ("bad", torch.tensor([1.0, value, 2.0]))], "here")


def test_public_checkpoints_are_checked_as_saved_ones_are() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    state = {name: tensor.clone() for name, tensor in CLIPVisionModel(config).state_dict().items()}
    name = next(name for name in state if name.endswith("fc1.weight"))
    with pytest.raises(WeightsError, match="not finite"):
        load_transformers(CLIPVisionModel, config, {**state, name: state[name] * float("nan")}, "here")
    with pytest.raises(WeightsError, match=r"not of a floating-point type: .*fc1\.weight"):
        load_transformers(CLIPVisionModel, config, {**state, name: state[name].view(torch.int32)}, "here")
    module = torch.nn.Linear(2, 2)
    for weight, complaint in (
        (torch.full((2, 2), torch.nan), "not finite"),
        (torch.ones(2, 2).int(), "is of torch.int"),
    ):
        with pytest.raises(WeightsError, match=complaint):
            load_module(module, {"weight": weight, "bias": torch.ones(2)}, "here")
