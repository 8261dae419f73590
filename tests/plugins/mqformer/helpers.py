"""What the parity tests share: reading a fixture and building the model that it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lyrics.core.contracts import BuildContext
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer, build_qformer
from lyrics.plugins.mqformer.convert import Converted, Naming, from_upstream, load_converted
from lyrics.plugins.mqformer.model import MQFormer


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) if value[:1] in "{[" else value for key, value in file.metadata().items()}


def fixture_state(tensors: dict[str, torch.Tensor], prefix: str = "state.") -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def trunk_options(config: dict[str, Any]) -> dict[str, Any]:
    """An upstream configuration in our option names, without dropout."""
    return {
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "max_positions": config["max_position_embeddings"],
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def released_model(config: dict[str, Any], **options: Any) -> MQFormer:
    sizes = trunk_options(config) | {
        "num_visual": config["num_vit_query_tokens"],
        "num_grounding": config["num_dino_query_tokens"],
    }
    context = BuildContext(
        "random", config["encoder_hidden_size"], {"detector": config["detection_encoder_hidden_size"]}
    )
    return build_mqformer(MQFormerOptions(**(sizes | options)), context)


def blip2_model(config: dict[str, Any], **options: Any) -> MQFormer:
    width = config.get("encoder_width", config.get("encoder_hidden_size"))
    count = config.get("query_length", config.get("num_query_tokens"))
    sizes = trunk_options(config) | {"num_visual": count, "normalize_image_tokens": True}
    return build_qformer(QFormerOptions(**(sizes | options)), BuildContext("random", width))


def load(model: MQFormer, state: dict[str, torch.Tensor], naming: Naming | None = None) -> Converted:
    converted = from_upstream(state, model, naming)
    load_converted(model, converted)
    return converted


def read(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)
