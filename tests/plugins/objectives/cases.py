"""A small stage-1 model and batch that the tests of objectives and step share."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.streams import Features, Text
from lyrics.plugins.mqformer import MQFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer
from lyrics.plugins.mqformer.model import MQFormer
from lyrics.plugins.objectives import ICGOptions, ITCOptions, ITMOptions, MSPOptions

OPTIONS = {"itc": ITCOptions, "itm": ITMOptions, "icg": ICGOptions, "msp": MSPOptions}
IMAGE_DIM, LOCAL_DIMS = 24, {"detector": 20, "segmenter": 12}


def small_model(num_layers: int = 3, local_dims: dict[str, int] | None = None, **options: Any) -> MQFormer:
    sizes = {
        "num_visual": 4,
        "num_grounding": 3,
        "hidden_size": 48,
        "num_layers": num_layers,
        "num_heads": 3,
        "intermediate_size": 96,
        "vocab_size": 300,
        "max_positions": 64,
    }
    context = BuildContext("random", IMAGE_DIM, LOCAL_DIMS if local_dims is None else local_dims)
    torch.manual_seed(0)
    model = build_mqformer(MQFormerOptions(**(sizes | options)), context)
    with torch.no_grad():  # LayerNorm weights and biases that differ from 1 and 0, so that mixing them up shows
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def objectives(model: MQFormer, recipe: str = "paper", **options: dict[str, Any]) -> nn.ModuleDict:
    context = BuildContext("random", query_dim=model.hidden_size, query_segments=model.segments)
    torch.manual_seed(1)
    found = {}
    for name, cls in OPTIONS.items():
        if name == "msp" and "S" not in model.segments:
            continue
        build = importlib.import_module(f"lyrics.plugins.objectives.{name}").build
        extra = {"projection_dim": 16} if name == "itc" else {}
        found[name] = build(cls(recipe=recipe, **extra, **options.get(name, {})), context)
    return nn.ModuleDict(found).eval()


def features(
    size: int, num_local: tuple[int, int] = (6, 4), seed: int = 5, dtype: torch.dtype = torch.float64
) -> Features:
    generator = torch.Generator().manual_seed(seed)
    local = {}
    for (name, width), count in zip(LOCAL_DIMS.items(), num_local, strict=True):
        tokens = torch.randn(size, count, width, generator=generator, dtype=torch.float64).to(dtype)
        local[name] = (tokens, torch.rand(size, count, generator=generator) > 0.3)
    return Features(torch.randn(size, 9, IMAGE_DIM, generator=generator, dtype=torch.float64).to(dtype), local)


def batch(model: MQFormer, size: int, seed: int = 7, first_sample: int = 100) -> PretrainBatch:
    """Samples with 0 to 3 objects and captions of 0 to 6 words."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def word() -> int:
        return number(10, 260)

    samples = [
        [[[word() for _ in range(number(1, 2))] for _ in range(number(1, 4))] for _ in range(b % 4)]
        for b in range(size)
    ]
    captions = [[word() for _ in range(number(0, 6))] for _ in range(size)]
    return PretrainBatch(
        Spatial.from_objects(samples),
        Text.from_lists(captions),
        torch.arange(size) + first_sample,
        model.special,
        seed=11,
        step=3,
    )


def part_of(whole: PretrainBatch, feats: Features, rows: slice) -> tuple[PretrainBatch, Features]:
    """Some samples of a batch, as another rank would hold them."""
    index = torch.arange(len(whole))[rows]
    spatial = Spatial(whole.spatial.text.rows(index), whole.spatial.object_BL[index], whole.spatial.unit_BL[index])
    part = PretrainBatch(
        spatial, whole.caption.rows(index), whole.sample_B[index], whole.special, whole.seed, whole.step
    )
    local = {name: (tokens[index], mask[index]) for name, (tokens, mask) in feats.local.items()}
    return part, Features(feats.image_tokens_BND[index], local)


def gradients(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    found = {}
    for number, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            found[f"{number}.{name}"] = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            )
            parameter.grad = None
    return found
