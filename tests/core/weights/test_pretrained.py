"""Finding and reading public checkpoints: local first, safetensors only, every tensor accounted for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from lyrics.core.errors import WeightsError
from lyrics.core.weights.pretrained import first_line, load_module, load_transformers, locate_checkpoint, read_tensors

CONFIG = BertConfig(
    vocab_size=8,
    hidden_size=4,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=4,
    max_position_embeddings=4,
)


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that cannot be reached, and a list of what was asked of it."""
    asked = []

    def snapshot_download(repo_id, allow_patterns, local_files_only):
        asked.append((repo_id, tuple(allow_patterns)))
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_local_path_never_asks_the_hub(tmp_path, monkeypatch, no_hub):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate_checkpoint(str(tmp_path)) == tmp_path
    assert locate_checkpoint("owner/name").is_dir()
    assert no_hub == []


@pytest.mark.parametrize("checkpoint", ["/nowhere/x", "./x", "~/nowhere", "folder/sub/x", "x", "owner/x.safetensors"])
def test_a_path_that_does_not_exist_never_asks_the_hub(checkpoint, no_hub):
    with pytest.raises(WeightsError, match="there is no file or folder"):
        locate_checkpoint(checkpoint)
    assert no_hub == []


def test_a_hub_id_is_fetched_as_safetensors_only(no_hub):
    with pytest.raises(
        WeightsError, match=r"'owner/name' is no local path, and the hub did not give it: no connection"
    ):
        locate_checkpoint("owner/name", also=("vocab.txt",))
    assert no_hub == [("owner/name", ("*.safetensors", "*.safetensors.index.json", "vocab.txt"))]


def test_shards_are_read_together(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3, dtype=torch.float16)}, tmp_path / "model-00002-of-00002.safetensors")
    tensors = read_tensors(tmp_path)
    assert sorted(tensors) == ["a", "b"]
    assert tensors["b"].dtype == torch.float16
    assert read_tensors(tmp_path / "model-00001-of-00002.safetensors").keys() == {"a"}


def test_two_checkpoints_in_one_folder_are_not_mixed(tmp_path):
    for name in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="'a' is in more than one safetensors file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin"])
def test_a_pickle_is_never_opened(tmp_path, name):
    path = tmp_path / name
    torch.save({"a": torch.ones(2)}, path)
    for source in (path, tmp_path):
        with pytest.raises(WeightsError, match="holds no safetensors file"):
            read_tensors(source)


def test_a_broken_file_names_itself(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read as safetensors"):
        read_tensors(tmp_path)


def test_a_model_holds_exactly_what_it_was_given():
    state = BertModel(CONFIG).state_dict()
    model = load_transformers(BertModel, CONFIG, state, "here")
    assert not model.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_what_does_not_fit_is_named():
    state = BertModel(CONFIG).state_dict()
    state["extra"] = torch.zeros(1)
    state["pooler.dense.bias"] = torch.zeros(9)
    del state["embeddings.LayerNorm.weight"]
    with pytest.raises(WeightsError) as caught:
        load_transformers(BertModel, CONFIG, state, "/some/folder")
    for part in (
        "the weights of /some/folder do not fit a BertModel",
        "embeddings.LayerNorm.weight is missing",
        "extra is not part of the model",
        "pooler.dense.bias is [9], but the options need [4]",
    ):
        assert part in str(caught.value)


def test_only_the_files_asked_for_are_fetched(no_hub):
    with pytest.raises(WeightsError):
        locate_checkpoint("owner/name", also=("vocab.txt",), tensors=("model.safetensors",))
    assert no_hub == [("owner/name", ("model.safetensors", "vocab.txt"))]


class Twins(torch.nn.Module):
    """Two names for one layer, one layer alone, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(2, 2, bias=False)
        self.second = self.first
        self.alone = torch.nn.Linear(2, 1, bias=False)
        self.register_buffer("computed", torch.zeros(3))


STATE = {"first.weight": torch.full((2, 2), 3.0), "alone.weight": torch.full((1, 2), 4.0), "computed": torch.ones(3)}


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_a_module_is_filled_under_either_name(name):
    module = Twins()
    load_module(module, {**STATE, name: STATE["first.weight"]}, "here")
    renamed = {name if key == "first.weight" else key: tensor for key, tensor in STATE.items()}
    other = Twins()
    load_module(other, renamed, "here")
    for loaded in (module, other):
        assert (loaded.first.weight == 3).all()
        assert (loaded.alone.weight == 4).all()
        assert (loaded.computed == 1).all()


def test_what_is_unread_may_be_missing_or_left_over():
    module = Twins()
    state = {"first.weight": STATE["first.weight"], "alone.weight": STATE["alone.weight"], "head.weight": torch.ones(1)}
    load_module(module, state, "here", unread=r"computed|head\..*")
    assert (module.alone.weight == 4).all()
    with pytest.raises(
        WeightsError, match=r"weights of here do not fit a Twins.*computed is missing; head.weight is not part"
    ):
        load_module(Twins(), state, "here")
    with pytest.raises(WeightsError, match=r"head.weight is not part"):
        load_module(Twins(), state, "here", unread="computed|head")  # whole names


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alone.weight": torch.ones(2, 2)}, r"alone.weight is \[2, 2\], but the options need \[1, 2\]"),
        (
            {"second.weight": torch.ones(2, 2)},
            "second.weight differs from first.weight, but the model has one tensor for both",
        ),
        ({"third.weight": torch.ones(2, 2)}, "third.weight is not part of the model"),
    ],
)
def test_a_module_is_not_filled_with_what_does_not_fit(changed, message):
    module = Twins()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_module(module, {**STATE, **changed}, "here")
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("404 Client Error.\n\nLook there.", "404 Client Error"),
        (
            "Validation error for field 'size':\n    TypeError: expected int, got 'x'",
            "Validation error for field 'size': TypeError: expected int, got 'x'",
        ),
        ("Nothing follows:", "Nothing follows"),
        ("", "ValueError"),
    ],
)
def test_what_another_library_says_in_a_line(text, said):
    assert first_line(ValueError(text)) == said


def test_a_list_of_all_that_a_library_knows_is_cut():
    said = first_line(ValueError(f"Unknown type nope. Should be one of {', '.join(map(str, range(999)))}"))
    assert said.startswith("Unknown type nope. Should be one of 0, 1,")
    assert said.endswith("...")
    assert len(said) < 260
