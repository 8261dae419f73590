"""An expert built from a checkpoint computes what its configuration says, and a saved model keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Blip2VisionModel,
    CLIPVisionModel,
    GroundingDinoForObjectDetection,
    PreTrainedModel,
    SamHQModel,
)

from lyrics.core.build import build_part
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import Part
from lyrics.core.spec import validate
from tests.core.small import drawn, small

#: Component -> (kind, transformers' class, what its configuration says beside numbers that options state).
PARTS: dict[str, tuple[str, type[PreTrainedModel], dict[str, Any]]] = {
    "clip-vit": ("image-encoder", CLIPVisionModel, {"hidden_act": "gelu", "layer_norm_eps": 1e-2}),
    "eva-vit-g": ("image-encoder", Blip2VisionModel, {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
    "grounding-dino": (
        "detector",
        GroundingDinoForObjectDetection,
        {"activation_function": "gelu", "layer_norm_eps": 1e-2},
    ),
    "sam-hq": ("segmenter", SamHQModel, {"vision_config": {"layer_norm_eps": 1e-2, "hidden_act": "relu"}}),
}


def part(name: str, options: dict[str, Any]) -> Part:
    kind = PARTS[name][0]
    entry = default_registry().component(kind, name)
    return Part(kind, entry, validate(options, entry.component.options))


def small_options(name: str) -> dict[str, Any]:
    return dict(default_registry().component(PARTS[name][0], name).component.test_options)


def checkpoint(name: str, folder: Path) -> None:
    """A random checkpoint of the part's test sizes, with a configuration that says more than the options do."""
    _, model_class, changes = PARTS[name]
    torch.manual_seed(0)
    built = build_part(part(name, small_options(name)), BuildContext("random"))
    folder.mkdir(exist_ok=True)
    built.save_files(folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    if name == "grounding-dino":
        (folder / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "red", "dog", "circle"])
        )
    network = model_class.from_pretrained(None, config=model_class.config_class.from_pretrained(folder), state_dict={})
    network.save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARTS)
def test_naming_a_checkpoint_is_enough_and_a_model_folder_keeps_it(name: str, tmp_path: Path) -> None:
    checkpoint(name, tmp_path / "checkpoint")
    kind = PARTS[name][0]
    how = {key: value for key, value in small_options(name).items() if key in ("box_threshold", "text_threshold")}
    options = {"checkpoint": str(tmp_path / "checkpoint"), **how}
    if name == "clip-vit":
        options["skip_layers"] = 0
    if name == "grounding-dino":
        options |= {"shortest_side": 64, "longest_side": 96}
    spec = _with(name, kind, options)
    model = build_model(spec).eval()
    expected = _seen(model)
    model.save_pretrained(tmp_path / "saved")
    again = LyricsModel.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(_seen(again), expected)
    own = json.loads((tmp_path / "saved" / "parts" / _folder(kind) / "config.json").read_text())
    for key, value in PARTS[name][2].items():
        assert own[key] == value or value.items() <= own[key].items()


def _with(name: str, kind: str, options: dict[str, Any]) -> Any:
    """A small model with that part; of the other experts only those that it needs, trained ones, since they are read
    too.
    """
    slot = {"use": name, "options": options}
    unread = {"query_transformer.options.tokenizer": None, "language_model.options.checkpoint": None}
    trained = {"image_encoder": "tiny-vit", "refiner.tagger": "tiny-tagger", "refiner.detector": "tiny-detector"}
    if kind == "image-encoder":
        return small(refiner=None).with_overrides({**unread, "image_encoder": slot})
    if kind == "detector":
        return small().with_overrides({**unread, **trained, "refiner.segmenter": None, "refiner.detector": slot})
    return small().with_overrides({**unread, **trained, "refiner.segmenter": slot})


def _folder(kind: str) -> str:
    return kind.replace("-", "_")


def _seen(model: LyricsModel) -> torch.Tensor:
    """Everything that the experts tell of an image, as one row."""
    images = model.processor.images([drawn()], model.device, dtype=model.dtype)
    phrases = None if model.refiner is None else [["circle", "dog"]]
    features, _ = model.features(images, phrases)
    local = [tokens.flatten() for tokens, _ in features.local.values()]
    return torch.cat([features.image_tokens_BND.flatten(), *local])


@pytest.mark.parametrize("name", PARTS)
def test_all_disagreements_are_one_error_before_a_tensor_is_read(name: str, tmp_path: Path) -> None:
    checkpoint(name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    numbers = {
        "clip-vit": {"layers": 5, "heads": 4},
        "eva-vit-g": {"layers": 5, "heads": 4},
        "grounding-dino": {"queries": 7, "text_layers": 3},
        "sam-hq": {"layers": 5, "decoder_layers": 3},
    }[name]
    with pytest.raises(WeightsError) as caught:
        build_part(part(name, {"checkpoint": str(tmp_path), **numbers}), BuildContext("pretrained"))
    for option, value in numbers.items():
        assert f"{option} is {value}, the checkpoint has " in str(caught.value)


@pytest.mark.parametrize("name", PARTS)
def test_random_weights_of_a_hub_checkpoint_need_its_sizes(name: str) -> None:
    with pytest.raises(SpecError, match=r"'owner/name' is not on this machine.*State .*or give a local folder"):
        build_part(part(name, {"checkpoint": "owner/name"}), BuildContext("meta"))


@pytest.mark.filterwarnings("ignore")
def test_ram_keeps_its_backbone(tmp_path: Path) -> None:
    """Its options describe it whole, but to the transformers of that day."""
    entry = default_registry().component("tagger", "ram-plus")
    options = dict(entry.component.test_options)
    model = build_model(small(refiner__tagger={"use": "ram-plus", "options": options}), weights="random").eval()
    file = tmp_path / "parts" / "tagger" / "config.json"
    assert model.refiner is not None
    model.refiner.tagger.visual_encoder.config.layer_norm_eps = 1e-2
    model.save_pretrained(tmp_path)
    assert json.loads(file.read_text())["layer_norm_eps"] == 1e-2
    again = LyricsModel.from_pretrained(tmp_path)
    assert again.refiner is not None
    assert again.refiner.tagger.visual_encoder.encoder.layers[0].blocks[0].layernorm_before.eps == 1e-2
