"""What the tests of ``lyrics convert`` share: checkpoints with the public names at small size, out of the parity
fixtures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lyrics.core.conversion.plan import ConversionPlan, Piece
from lyrics.core.registry.component import Component, Converter, hookimpl
from lyrics.core.spec import dump
from tests.core.small import small
from tests.plugins.mqformer.helpers import trunk_options

Find = Callable[[str], Path]
State = dict[str, torch.Tensor]


class Public:
    """A public checkpoint at small size: its state dict in upstream's names, the options that fit it, upstream's inputs
    and outputs.
    """

    def __init__(self, path: Path) -> None:
        self.tensors = load_file(path)
        with safe_open(path, "pt") as file:
            self.about: dict[str, Any] = {k: json.loads(v) if v[:1] in "{[" else v for k, v in file.metadata().items()}
        self.state = {key[6:]: tensor for key, tensor in self.tensors.items() if key.startswith("state.")}
        self.options: dict[str, Any] = {}


def write(path: Path, state: Mapping[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, path)
    return path


def write_spec(path: Path, **overrides: object) -> str:
    """A spec file of a small model with these parts; ``a__b`` stands for ``a.b``."""
    dump(small(**overrides), path)
    return str(path)


def blip2(parity: Find, which: str) -> Public:
    """``lavis`` or ``hf``; width 48 of the image tokens, 8 queries."""
    public = Public(parity(f"blip2_{which}.safetensors"))
    config = (
        public.about["config"]
        if which == "lavis"
        else public.about["config"].get("qformer_config", public.about["config"])
    )
    public.options = trunk_options(config)
    return public


def ram(parity: Find, which: str) -> Public:
    """``ram`` or ``ram_plus``, without its tag list and thresholds; ``write_lists`` puts those beside it."""
    public = Public(parity(f"{which}.safetensors"))
    swin, head = public.about["swin"], public.about["tagging_head"]
    public.options = {
        "backbone": {name: swin[name] for name in ("embed_dim", "depths", "num_heads")},
        "image_size": swin["image_res"],
        "window_size": swin["window_size"],
        "num_tags": len(public.about["tag_list"]),
        "head_width": head["hidden_size"],
        "head_layers": head["num_hidden_layers"],
        "head_heads": head["num_attention_heads"],
        "head_mlp_width": head["intermediate_size"],
    }
    if which == "ram_plus":
        public.options["num_descriptions"] = int(public.about["descriptions_per_tag"])
    return public


def write_lists(folder: Path, public: Public) -> None:
    """The tag list and the thresholds of RAM under upstream's names."""
    (folder / "ram_tag_list.txt").write_text("\n".join(public.about["tag_list"]) + "\n", encoding="utf-8")
    thresholds = "\n".join(str(threshold) for threshold in public.about["thresholds"])
    (folder / "ram_tag_list_threshold.txt").write_text(thresholds + "\n", encoding="utf-8")


def grounding_dino(parity: Find) -> Public:
    """With as many words as the built-in tokenizer, so that it can be built without one."""
    public = Public(parity("grounding_dino_upstream.safetensors"))
    public.state = {key: tensor.float() for key, tensor in public.state.items()}
    for key, original in public.about["aliases"].items():
        public.state[key] = public.state[original]
    words = "bert.embeddings.word_embeddings.weight"
    public.state[words] = torch.cat([public.state[words], torch.zeros(1286 - 16, public.state[words].shape[1])])
    config, swin, bert = (public.about[name] for name in ("config", "swin", "bert"))
    public.options = {
        "swin_width": swin["embed_dim"],
        "swin_depths": swin["depths"],
        "swin_heads": swin["num_heads"],
        "swin_window": swin["window_size"],
        "text_width": bert["hidden_size"],
        "text_layers": bert["num_hidden_layers"],
        "text_heads": bert["num_attention_heads"],
        "text_ffn": bert["intermediate_size"],
        "text_vocabulary": 1286,
        "text_positions": bert["max_position_embeddings"],
        "max_text_tokens": bert["max_position_embeddings"],
        "width": config["hidden_dim"],
        "queries": config["num_queries"],
        "encoder_layers": config["enc_layers"],
        "decoder_layers": config["dec_layers"],
        "heads": config["nheads"],
        "ffn": config["dim_feedforward"],
    }
    return public


def sam_hq(parity: Find) -> Public:
    public = Public(parity("sam_hq_upstream.safetensors"))
    config = public.about["config"]
    public.options = {
        "image_size": config["img"],
        "patch_size": config["patch_size"],
        "width": config["dim"],
        "layers": config["depth"],
        "heads": config["heads"],
        "mlp_ratio": config["mlp_ratio"],
        "window": config["window"],
        "global_layers": config["global"],
        "prompt_width": config["prompt_dim"],
        "decoder_layers": 2,
        "decoder_heads": config["dec_heads"],
        "decoder_ffn": config["mlp"],
    }
    return public


def convert_toy(source: Mapping[str, torch.Tensor], options: object, context: object) -> ConversionPlan:
    """A stranger's converter: one tensor renamed, one halved, one kept, the rest left."""
    return ConversionPlan(
        {
            "weight": Piece(("toy.weight",)),
            "top": Piece(("toy.both",), lambda tensor: tensor.chunk(2)[0]),
            "bottom": Piece(("toy.both",), lambda tensor: tensor.chunk(2)[1]),
            "bias": Piece(("bias",)),
        },
        new=("scale",),
        notes=("set nothing",),
    )


def convert_broken(source: object, options: object, context: object) -> ConversionPlan:
    raise SystemExit("no")


class ToyPlugin:
    """A component with a format of its own, and one whose converter fails."""

    @hookimpl
    def lyrics_components(self) -> Iterable[Component]:
        for name in ("toy", "broken"):
            format = Converter(
                f"{name}-format", f"{__name__}:convert_{name}", marks=(f"{name}.weight",), summary=f"a {name}"
            )
            yield Component(kind="detector", name=name, build=f"{__name__}:convert_toy", converters=(format,))


TOY = {
    "toy.weight": torch.arange(4.0),
    "toy.both": torch.arange(6).view(6, 1),
    "bias": torch.ones(2).half(),
    "other": torch.zeros(1),
}
