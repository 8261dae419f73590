"""Which layers of a language model LoRA adapts."""

from __future__ import annotations

from typing import Any

from torch import nn

from lyrics.core.errors import SpecError
from lyrics.plugins.causal_lm import LoraOptions

#: What holds the projections to queries and values, in the order in which a family's layers are looked at: separate
#: ones first, then those that make queries, keys and values at once, then what mixes tokens where nothing attends.
_QUERIES_AND_VALUES = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_b_proj", "kv_b_proj"),  # multi-head latent attention
    ("q_proj", "kv_b_proj"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
    ("kv_proj",),
    ("in_proj",),
    ("receptance", "value"),
)
# PEFT refuses these in families that run them inside of one kernel.
_NOT_ADAPTED = dict.fromkeys(("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj", "conv1d"))


def adapted(model: Any, lora: LoraOptions) -> nn.Module:
    """Return the model with low-rank updates beside its linear layers, wrapped by PEFT.

    Raises ``SpecError`` that lists the linear layers, where it has none of a name, or none that ``auto`` knows.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
        # transformers' Conv1D (GPT-2) holds its weight the other way around.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def linear_layers(model: Any) -> list[str]:
    """Return the full names of the linear layers, without the output head."""
    kinds = (nn.Linear, *_conv1d())
    head = model.get_output_embeddings()
    left_out = _NOT_ADAPTED.get(model.config.model_type, ())
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module is not head and name.rpartition(".")[2] not in left_out
    ]


def _conv1d() -> tuple[type, ...]:
    from transformers.pytorch_utils import Conv1D

    return (Conv1D,)


def _targets(model: Any, lora: LoraOptions) -> list[str]:
    layers = linear_layers(model)
    names = {layer.rpartition(".")[2] for layer in layers}
    wanted: tuple[str, ...]
    if lora.target_modules == "all-linear":
        wanted = tuple(sorted(names))
    elif lora.target_modules == "auto":
        wanted = next((group for group in _QUERIES_AND_VALUES if names.issuperset(group)), ())
        if not wanted:
            raise SpecError(_problem(model, names, "auto finds no projections to queries and values in it"))
    else:
        wanted = lora.target_modules
        if absent := [name for name in wanted if not any(f".{layer}".endswith(f".{name}") for layer in layers)]:
            raise SpecError(_problem(model, names, f"it has no linear layer {', '.join(absent)}"))
    return list(wanted)


def _problem(model: Any, names: set[str], problem: str) -> str:
    return (
        f"language_model.options.lora.target_modules: of {type(model).__name__}, {problem}; its linear layers are "
        f"{', '.join(sorted(names))}. Name some of them, or set all-linear."
    )
