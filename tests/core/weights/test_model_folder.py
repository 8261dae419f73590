"""Model folders: trained parts alone, shards, tokenizers, the hub; and folders that lie."""

from __future__ import annotations

import copy
import json
import re
import shutil
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyrics.core.changes import part_of
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.loading import build_model, load_model
from lyrics.core.model import LyricsModel
from lyrics.core.weights.tensors import INDEX_FILE, WEIGHTS_FILE, digest
from tests.core.small import drawn, small
from tests.core.test_model_steps import made


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


@pytest.fixture(scope="module")
def whole(model: LyricsModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return folder


def same(first: LyricsModel, second: LyricsModel) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


# --- trained parts alone ---


def test_trained_parts_alone_come_back_onto_the_frozen_ones(model: LyricsModel, whole: Path, tmp_path: Path) -> None:
    trained = made()
    with torch.no_grad():
        for stage in ("pretrain", "instruct"):
            for parameter in trained.trainable_parameters(stage).values():
                parameter.add_(0.25)
    trained.save_pretrained(tmp_path, trainable_only=True)
    stored = set(load_file(tmp_path / WEIGHTS_FILE))
    names = {*trained.trainable_parameters("pretrain"), *trained.trainable_parameters("instruct")}
    buffers = {name for name in stored if name not in dict(trained.named_parameters())}
    assert stored - buffers <= names
    assert not any(name.startswith(("encoder.", "refiner.")) for name in stored)
    references = json.loads((tmp_path / "frozen.json").read_text())["parts"]
    assert set(references) == {"image_encoder", "language_model"}  # cached experts have no tensors
    assert references["image_encoder"]["component"] == "tiny-vit"
    assert len(references["language_model"]["sha256"]) == 64
    again = LyricsModel.from_pretrained(tmp_path, base=whole)
    assert same(again, trained)
    assert not same(again, model)
    trained.save_pretrained(tmp_path)
    assert not (tmp_path / "frozen.json").exists()
    assert same(LyricsModel.from_pretrained(tmp_path), trained)


def test_other_frozen_parts_are_refused(model: LyricsModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "trained", trainable_only=True)
    other = made()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        WeightsError, match=r"frozen\.json: image_encoder is not the part that this model was trained with"
    ):
        LyricsModel.from_pretrained(tmp_path / "trained", base=tmp_path / "other")
    with pytest.raises(WeightsError, match="completes a folder of trained parts"):
        build_model(model.spec, weights="random", base=tmp_path / "other")


def test_frozen_parts_come_from_the_checkpoints_of_the_specification(tmp_path: Path) -> None:
    """An image encoder and a language model from checkpoints: only what was trained is stored."""
    from tests.plugins.causal_lm.test_causal_lm import make
    from tests.plugins.clip_vit.test_clip_vit import SMALL, folder_of, whole_clip

    base = make(adaptation="frozen", architecture="llama")
    base.model.save_pretrained(tmp_path / "llama")
    base.tokenizer.save_pretrained(tmp_path / "llama")
    language_model = {**_numbers(base), "checkpoint": str(tmp_path / "llama"), "lora": {"rank": 2}}
    (tmp_path / "clip").mkdir()
    clip = folder_of(whole_clip(tiny_clip()), tmp_path / "clip")
    first = made(
        image_encoder={"use": "clip-vit", "options": {**SMALL, "layers": 3, "checkpoint": clip}},
        language_model__options=language_model,
    )
    # What training starts from: the checkpoints, and new trained parts.
    random_parts = {n for n in first.state_dict() if n.startswith(("query_transformer", "projection", "objectives"))}
    first.save_pretrained(tmp_path / "start", trainable_only=True)
    (tmp_path / "start" / "frozen.json").write_text('{"parts": {}}')
    with pytest.raises(WeightsError, match="is not the part that this model was trained with"):
        LyricsModel.from_pretrained(tmp_path / "start")
    from lyrics.core.weights import model_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_folder, "_compare", lambda *arguments: None)
        trained = LyricsModel.from_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in trained.trainable_parameters("instruct").values():
            parameter.add_(0.5)
    trained.save_pretrained(tmp_path / "trained", trainable_only=True)
    references = json.loads((tmp_path / "trained" / "frozen.json").read_text())["parts"]
    assert references["language_model"]["checkpoint"] == str(tmp_path / "llama")
    assert references["image_encoder"]["checkpoint"] == clip
    again = LyricsModel.from_pretrained(tmp_path / "trained")
    assert same(again, trained)
    assert random_parts <= set(load_file(tmp_path / "trained" / WEIGHTS_FILE))

    # Another language model is refused; but quantized weights are other numbers by their nature, and are not compared.
    with torch.no_grad():
        base.model.get_input_embeddings().weight.add_(1)
    base.model.save_pretrained(tmp_path / "llama")
    with pytest.raises(WeightsError, match="language_model is not the part that this model was trained with"):
        LyricsModel.from_pretrained(tmp_path / "trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lyrics.plugins.causal_lm.build._quantization", lambda name: None
        )  # bitsandbytes need not be there
        folder = tmp_path / "trained"
        build_model(folder / "spec.json", overrides={"language_model.options.quantization": "4bit"}, weights=folder)


def tiny_clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **sizes)).eval()


def _numbers(base: Any) -> dict[str, Any]:
    config = base.model.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_positions": config.max_position_embeddings,
    }


def test_merged_lora_is_not_saved(tmp_path: Path) -> None:
    merged = made()
    merged.merge_lora()
    with pytest.raises(WeightsError, match=r"unmerge_lora\(\) before saving"):
        merged.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    frozen = made(language_model__options__adaptation="frozen")
    with pytest.raises(WeightsError, match="no LoRA to merge: its adaptation is 'frozen'"):
        frozen.merge_lora()


# --- shards ---


def sharded(source: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    (folder / "spec.json").write_bytes((source / "spec.json").read_bytes())
    tensors = load_file(source / WEIGHTS_FILE)
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return index


def test_shards_are_read_as_one(model: LyricsModel, whole: Path, tmp_path: Path) -> None:
    sharded(whole, tmp_path / "shards")
    assert same(LyricsModel.from_pretrained(tmp_path / "shards"), model)
    model.save_pretrained(tmp_path / "shards")
    assert not (tmp_path / "shards" / INDEX_FILE).exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda index: index["weight_map"].update({"projection.bias": "../else.safetensors"}),
            "not the name of a safetensors",
        ),
        (
            lambda index: index["weight_map"].update({"projection.bias": "weights.bin"}),
            "not the name of a safetensors file",
        ),
        (
            lambda index: index["weight_map"].update({"projection.bias": "gone.safetensors"}),
            r"gone\.safetensors: no such file",
        ),
        (lambda index: index["weight_map"].pop("projection.bias"), "1 missing: projection.bias"),
        (lambda index: index.pop("weight_map"), "not an index of shards"),
        (lambda index: index.update(weight_map=[1]), "not an index of shards"),
    ],
)
def test_indices_that_lie(change: Any, complaint: str, whole: Path, tmp_path: Path) -> None:
    index = sharded(whole, tmp_path / "shards")
    change(index)
    (tmp_path / "shards" / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=complaint):
        LyricsModel.from_pretrained(tmp_path / "shards")


# --- folders that lie ---


def header(folder: Path, change: Any) -> None:
    """Rewrite the header of the weights."""
    data = (folder / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    written = json.loads(data[8 : 8 + length])
    new = change(written)
    text = new if isinstance(new, bytes) else json.dumps(new).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header | {"projection.bias": header["projection.bias"] | {"shape": [10**9]}},
        lambda header: header | {"projection.bias": header["projection.bias"] | {"data_offsets": [0, 10**12]}},
        lambda header: header | {"projection.bias": header["projection.bias"] | {"dtype": "PICKLE"}},
        lambda header: b" " * (100 * 2**20 + 1),
        lambda header: b"{" * 5000,
        lambda header: b'{"__metadata__": {"a": 1}}',
    ],
    ids=["shape", "offsets", "dtype", "oversize", "nested", "metadata"],
)
def test_headers_that_lie_name_the_file(change: Any, model: LyricsModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    header(tmp_path, change)
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable safetensors file"):
        LyricsModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_pickles_are_named_and_never_opened(name: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_bytes((whole / "spec.json").read_bytes())
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'echo broken > /tmp/broken'\ntR.")
    with pytest.raises(WeightsError, match=f"{name} is a pickle, which could run code and is never read"):
        LyricsModel.from_pretrained(tmp_path)


def test_specification_of_another_model(whole: Path, tmp_path: Path) -> None:
    other = made(query_transformer__options__num_visual=2)
    other.save_pretrained(tmp_path)
    (tmp_path / "spec.json").write_bytes((whole / "spec.json").read_bytes())
    with pytest.raises(WeightsError, match=r"does not fit the model of spec\.json: 1 of another shape"):
        LyricsModel.from_pretrained(tmp_path)


def test_pictures_prepared_in_another_way_are_mentioned(whole: Path, tmp_path: Path, model: LyricsModel) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "preprocessing.json"
    file.write_text(file.read_text().replace('"bicubic"', '"nearest"').replace('"bilinear"', '"nearest"'))
    with pytest.warns(UserWarning, match="prepares images in another way"):
        LyricsModel.from_pretrained(tmp_path)


# --- tokenizers ---


def test_tokenizers_travel_with_the_model(tmp_path: Path) -> None:
    from tests.core.language.test_prompts import merging_tokenizer

    other = made(language_model__options__vocab_size=400)
    other.language_model.tokenizer = merging_tokenizer()
    expected = other.generate([drawn()], ["what is it?"], max_new_tokens=5)
    other.save_pretrained(tmp_path)
    again = LyricsModel.from_pretrained(tmp_path).eval()
    assert again.language_model.tokenizer.get_vocab() == other.language_model.tokenizer.get_vocab()
    assert again.query_transformer.special == other.query_transformer.special
    assert again.generate([drawn()], ["what is it?"], max_new_tokens=5) == expected
    (tmp_path / "tokenizers" / "language_model" / "tokenizer.json").write_text("{")
    with pytest.raises(Exception, match="language_model") as caught:
        LyricsModel.from_pretrained(tmp_path)
    assert isinstance(caught.value, WeightsError)


# --- overrides ---


def equal_parts(first: LyricsModel, second: LyricsModel) -> set[str]:
    """Spec paths of the parts whose tensors are all the same in both."""
    one, two = first.state_dict(), second.state_dict()
    parts = {part_of(name) for name in two}
    return parts - {part_of(name) for name in two if name not in one or not torch.equal(one[name], two[name])}


@pytest.mark.parametrize("trainable_only", [False, True])
def test_overrides_of_a_folder_build_only_what_they_change(trainable_only: bool, tmp_path: Path) -> None:
    """With all tensors in the folder, and with trained ones alone (the others are then in another folder)."""
    experts = {"image_encoder": "tiny-vit", **{f"refiner__{one}": f"tiny-{one}" for one in ("tagger", "segmenter")}}
    model = made(**experts, refiner__detector="tiny-detector")
    model.save_pretrained(tmp_path / "saved", trainable_only=trainable_only)
    base = None
    if trainable_only:
        model.save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    everything = {part_of(name) for name in model.state_dict()}

    def again(overrides: dict[str, Any]) -> LyricsModel:
        return LyricsModel.from_pretrained(tmp_path / "saved", overrides=overrides, base=base)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Options that change no tensor, a part that is left out, a tagger that nothing was trained with.
        assert equal_parts(model, again({"codec": "shikra", "refiner.max_objects": 3})) == everything
        quieter = again({"refiner.detector.options.score_threshold": 0.9})
        assert equal_parts(model, quieter) == everything
        assert quieter.refiner is not None
        assert quieter.refiner.detector.score_threshold == 0.9  # type: ignore[union-attr]
        without = again({"refiner.tagger": {"use": "cached", "options": {"missing": "empty"}}})
        assert equal_parts(model, without) == everything - {"refiner.tagger"}
        # Stored objects stand in for experts, whose local tokens the query transformer then goes without.
        cached = {"use": "cached", "options": {"missing": "empty"}}
        stored = again({"refiner.detector": cached, "refiner.segmenter": cached})
        assert equal_parts(model, stored) == everything - {"refiner.detector", "refiner.segmenter"}
        assert stored.spec.refiner is not None
        assert stored.spec.refiner.detector is not None
        assert stored.spec.refiner.detector.options["stand_in_dim"] == model.refiner.detector.feature_dim  # type: ignore[union-attr]
        encoded = stored.encode([drawn()], ["What is it?"], phrases=[["red circle"]])
        assert torch.isfinite(encoded.soft_tokens_PQD).all()
    cached = {"use": "cached", "options": {"missing": "empty", "stand_in_dim": None}}  # a token is a box
    with pytest.warns(UserWarning, match=r"built anew: refiner\.detector \(cached, was tiny-detector\)") as caught:
        other = again({"refiner.detector": cached, "refiner.segmenter": cached})
    said = [str(one.message) for one in caught if "stay random" in str(one.message)]
    assert len(said) == 1
    assert "Tensors that stay random: query_transformer (" in said[0]
    assert equal_parts(model, other) == everything - {"refiner.tagger", "refiner.detector", "refiner.segmenter"} - {
        "query_transformer"
    } | {"refiner.tagger"}
    kept = [name for name in other.state_dict() if name.startswith("query_transformer.")]
    changed = [name for name in kept if not _same_tensor(model, other, name)]
    assert changed
    assert len(changed) * 2 < len(kept)
    with pytest.warns(UserWarning, match=r"stay random: .*projection \(1\), query_transformer \("):
        again({"query_transformer.options.hidden_size": 48, "query_transformer.options.num_heads": 4})
    with pytest.raises(SpecError, match="Did you mean 'tiny-detector'"):
        again({"refiner.detector": "tiny-detectr"})


def _same_tensor(first: LyricsModel, second: LyricsModel, name: str) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return name in one and torch.equal(one[name], two[name])


# --- names and the hub ---


def test_model_by_whatever_name(
    model: LyricsModel, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(load_model(str(whole)), model)
    assert load_model("lyrics-tiny", weights="random").spec.image_encoder.use == "tiny-vit"
    assert load_model(str(whole), overrides={"codec": "qwen"}).spec.codec == "qwen"
    with pytest.raises(SpecError, match="is a saved model, which brings its own; leave weights out"):
        load_model(str(whole), weights="random")
    fetched: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        fetched.append((name, options))
        return str(whole)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    again = LyricsModel.from_pretrained("someone/model", revision="v1", local_files_only=True)
    assert same(again, model)
    assert fetched[0][0] == "someone/model"
    assert fetched[0][1]["revision"] == "v1"
    assert not any("bin" in pattern or pattern == "*" for pattern in fetched[0][1]["allow_patterns"])
    assert same(load_model("someone/model"), model)
    assert load_model("someone/model", overrides={"codec": "qwen"}).spec.codec == "qwen"
    with pytest.raises(WeightsError, match=r"no model folder './nowhere/model'"):
        LyricsModel.from_pretrained("./nowhere/model")
    assert len(fetched) == 5, "load_model asks what it is first, without its tensors"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked of the hub, and the files that were uploaded: no network."""
    seen: dict[str, Any] = {}

    class HfApi:
        def __init__(self, token: Any = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            seen["repo"] = (repo_id, options)
            return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> Any:
            seen["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            seen["card"] = (Path(folder_path) / "README.md").read_text()
            seen["options"] = options
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", HfApi)
    return seen


def test_push_uploads_what_save_writes_and_a_card(model: LyricsModel, uploads: dict[str, Any]) -> None:
    assert model.push_to_hub("someone/model", private=True, token="t") == "https://hub/someone/model/commit/1"
    assert (uploads["token"], uploads["repo"]) == ("t", ("someone/model", {"private": True, "exist_ok": True}))
    saved = ["licenses.json", "model.safetensors", "parts", "preprocessing.json", "spec.json", "tokenizers"]
    assert uploads["files"] == ["README.md", *saved]
    model.push_to_hub("someone/model", trainable_only=True)
    assert "frozen.json" in uploads["files"]


@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_hub_that_cannot_be_reached_is_one_sentence(
    call: str, model: LyricsModel, uploads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub's client raises without a network has no common base, and is no ``OSError``."""
    import huggingface_hub

    class ConnectError(Exception):
        pass

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        raise ConnectError("[Errno 111] Connection refused\nmore lines")

    monkeypatch.setattr(huggingface_hub.HfApi, call, fail)
    with pytest.raises(WeightsError) as caught:
        model.push_to_hub("someone/model")
    message = str(caught.value)
    assert message.startswith("'someone/model' cannot be uploaded: [Errno 111] Connection refused. Check the name")
    assert "\n" not in message


def test_a_model_is_one_of_the_hubs_mixin(model: LyricsModel, uploads: dict[str, Any], tmp_path: Path) -> None:
    """Its arguments are accepted; what it would add to a folder, a ``config.json`` of constructor arguments, is not
    there.
    """
    from huggingface_hub import ModelHubMixin

    assert isinstance(model, ModelHubMixin)
    assert model._hub_mixin_config is None
    model.push_to_hub(
        "model", branch="small", commit_message="hello", create_pr=True, ignore_patterns="*.txt", delete_patterns=["*"]
    )
    assert uploads["options"] == {
        "revision": "small",
        "commit_message": "hello",
        "create_pr": True,
        "allow_patterns": None,
        "ignore_patterns": "*.txt",
        "delete_patterns": ["*"],
    }
    model.push_to_hub("model", revision="small")
    assert uploads["options"]["revision"] == "small"
    with pytest.raises(ValueError, match=r"revision='a' and branch='b' name the same thing"):
        model.push_to_hub("model", revision="a", branch="b")
    with pytest.raises(TypeError, match="config"):
        model.push_to_hub("model", config={})
    address = model.save_pretrained(tmp_path / "one", push_to_hub=True, private=False)
    assert address == "https://hub/me/one/commit/1"
    assert uploads["repo"] == ("one", {"private": False, "exist_ok": True})
    assert model.save_pretrained(tmp_path / "two", push_to_hub=True, repo_id="me/other", trainable_only=True)
    assert uploads["repo"][0] == "me/other"
    assert "frozen.json" in uploads["files"]
    with pytest.raises(TypeError, match="private is for push_to_hub=True"):
        model.save_pretrained(tmp_path / "three", private=True)
    assert not (tmp_path / "three").exists()
    assert not any(tmp_path.glob("*/config.json"))


def test_the_card_says_how_to_load_the_model_and_what_it_is_made_of(
    model: LyricsModel, uploads: dict[str, Any]
) -> None:
    from huggingface_hub import ModelCard

    model.push_to_hub("model", model_card_kwargs={"model_id": "me/renamed"})
    card = ModelCard(uploads["card"])
    assert card.data.library_name == "lyrics"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert {"lyrics", "model_hub_mixin"} <= set(card.data.tags or [])
    assert 'LyricsModel.from_pretrained("me/renamed")' in card.text
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", card.text, flags=re.MULTILINE)
    assert rows == [(path, slot.use) for path, _, slot in model.spec.slots()]
    assert 'from_pretrained("me/model")' in (model.push_to_hub("model") and uploads["card"])


def test_a_model_without_parts_writes_no_config(tmp_path: Path) -> None:
    """The mixin takes arguments that JSON can hold for a configuration: no refiner (None), no objectives (an empty
    dict).
    """
    plain = build_model(small(refiner=None), weights="random")
    assert plain.refiner is None
    assert plain._hub_mixin_config is None
    plain.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "licenses.json", "model.safetensors", "parts", "preprocessing.json", "spec.json", "tokenizers",
    ]  # fmt: skip
    assert same(LyricsModel.from_pretrained(tmp_path), plain)
    assert same(copy.deepcopy(plain), plain)


def test_a_config_in_the_folder_is_not_read(whole: Path, model: LyricsModel, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"refiner": null, "architectures": ["Other"]}')
    assert same(LyricsModel.from_pretrained(tmp_path / "model"), model)


def test_downloads_are_of_text_and_safetensors_only(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options)
        return str(whole)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    LyricsModel.from_pretrained("me/model", token="t", cache_dir=Path("/cache"), force_download=True)
    assert (asked["token"], asked["cache_dir"], asked["force_download"]) == ("t", Path("/cache"), True)
    needed = [path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()]
    others = [
        "model-00001-of-00002.safetensors",
        INDEX_FILE,
        "parts/detector/vocab.txt",
        "tokenizers/a/tokenizer.model",
    ]
    refused = ["pytorch_model.bin", "model.pt", "parts/x/a.pkl", "tokenizers/a/model.bin", "tokenizers/a/code.py"]
    found = list(filter_repo_objects([*needed, *others, *refused], allow_patterns=asked["allow_patterns"]))
    assert found == [*needed, *others]


def test_digest_sees_every_change() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.zeros(2, 2)}
    first = digest(tensors.items())
    assert first == digest(reversed(list(tensors.items())))
    for change in (
        {"a": torch.arange(6.0).view(2, 3)},
        {"a": torch.arange(6.0).double()},
        {"a": torch.arange(6.0) + 1e-6},
        {"c": torch.zeros(0)},
    ):
        assert digest((tensors | change).items()) != first
    assert digest([("a", torch.zeros(3, dtype=torch.bfloat16)), ("b", torch.tensor(1.0))])
