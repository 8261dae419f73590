"""Options of ``causal-lm`` and transformers' configurations: which entry is which number, and which configurations are
of causal language models.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lyrics.core.errors import SpecError, WeightsError, did_you_mean
from lyrics.core.weights.pretrained import PACKAGED, locate_checkpoint
from lyrics.core.weights.transformers_files import CONFIG_FILE, load_config, refuse_disagreements
from lyrics.plugins.causal_lm import DEFAULT_CHECKPOINT, LLAMA_7B, CausalLMOptions

# Option -> entries of transformers' configurations, of which a family has one. transformers itself translates the first
# for most families that call it otherwise (`attribute_map`).
_ENTRIES: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "max_positions": ("max_position_embeddings", "max_seq_len"),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "conv_kernel": ("conv_L_cache",),
    "layer_types": ("layer_types",),
}
# A checkpoint may have more rows than its tokenizer has words, read further than is wanted of it, and says by itself
# what is tied.
_MAY_DIFFER = frozenset({"vocab_size", "max_positions", "tie_word_embeddings"})
# Entries that say where something else is, or how a model is run, and not what it is.
_NOT_STATED = frozenset({"auto_map", "model_type", "quantization_config", "use_pretrained_backbone"})
#: Tokens that a family without a limit of its own (Mamba, ALiBi) is taken to read.
UNBOUNDED = 1_000_000


def text_config(config: PreTrainedConfig) -> Any:
    """Return the language model's part of a configuration, which is all of it where the model reads text alone."""
    return config.get_text_config(decoder=True)


def longest(config: PreTrainedConfig) -> int:
    """Return the longest sequence that a model of this configuration reads, in tokens."""
    found = _numbers_of(config)["max_positions"]
    return UNBOUNDED if found is None else int(found)


def causal_config(config: PreTrainedConfig, source: object, *, finished: bool = True) -> PreTrainedConfig:
    """Return the configuration of the causal language model that a checkpoint's configuration describes.

    It is that of the language model alone where the checkpoint also looks or listens. Of one that is not ``finished``
    only the family is looked at.

    Raises ``WeightsError`` unless transformers can write text with it, from left to right and from embeddings.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    problem = ""
    text = text_config(config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        config = text  # of a model that looks, too, and has no causal head of its own (LLaVA, BLIP-2)
    family = config.model_type
    # Encoders have a causal head, too, which reads from left to right only where they are configured as decoders.
    decodes = getattr(config, "is_decoder", None)
    encodes = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES or (
        decodes is False and hasattr(config, "add_cross_attention")
    )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = f"is a model of the type {family!r}, which has no causal language-model head"
    elif getattr(config, "is_encoder_decoder", False):
        problem = f"is an encoder-decoder ({family!r}), which does not go on from what it reads"
    elif encodes and not decodes:
        problem = f"is an encoder ({family!r}): every token sees those behind it, so it cannot write"
    else:
        text = text_config(config)
        if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
            config = text
        if not _takes_embeddings(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]):
            problem = f"is of the family {family!r}, which transformers lets write from token ids alone"
        elif finished and getattr(text, "hidden_size_per_layer_input", None):
            problem = f"is of the family {family!r} and looks up each token id in every layer, while images have none"
    if problem:
        raise WeightsError(f"{source} {problem}. Name another language model, such as {DEFAULT_CHECKPOINT!r}.")
    return config


def _takes_embeddings(model_class: Any) -> bool:
    """Whether a class of transformers generates from embeddings, told as transformers tells it."""
    return all(
        "inputs_embeds" in inspect.signature(method).parameters
        for method in (model_class.forward, model_class.prepare_inputs_for_generation)
    )


def compare(options: CausalLMOptions, config: PreTrainedConfig, source: object) -> None:
    """Raise one ``WeightsError`` that lists all that the options state otherwise than a checkpoint's configuration."""
    stated = {name: value for name, value in _stated(options).items() if name not in _MAY_DIFFER}
    found = _numbers_of(config)
    text = text_config(config)
    found |= {f"config.{name}": _entry(text, name) for name in options.config}
    stated |= {f"config.{name}": value for name, value in options.config.items()}
    if options.architecture is not None and text.model_type != _text_family(options.architecture):
        stated |= {"architecture": options.architecture}
        found |= {"architecture": config.model_type}
    refuse_disagreements(stated, found, source)


def _text_family(family: str) -> str:
    """The family of the language model in models of a family: ``gemma3_text`` of ``gemma3``."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return str(text_config(AutoConfig.for_model(family)).model_type) if family in CONFIG_MAPPING else family


def config_of_numbers(options: CausalLMOptions, tokenizer: Any) -> PreTrainedConfig:
    """Return the configuration of random weights: what the options state, and the rest from a local checkpoint.

    Without one the rest are Llama-7B's numbers, or those that transformers gives the family that ``architecture``
    names.

    Raises:
        SpecError: a number that the family does not have, or numbers that it refuses.
        WeightsError: the numbers of a checkpoint on the hub would be needed, since random weights download nothing; or
            the family has no causal head.
    """
    stated = {name: value for name, value in _stated(options).items() if value is not None}
    missing = [name for name in LLAMA_7B if name not in stated and name != "max_positions"]
    if missing or options.architecture is None:
        local = _local_config(options.checkpoint)
        if local is not None and options.architecture in (None, local.model_type):
            return _changed(causal_config(local, repr(options.checkpoint)), stated, options.config)
        if missing and options.checkpoint not in (None, DEFAULT_CHECKPOINT):
            raise WeightsError(
                f"language_model.options.checkpoint: {options.checkpoint!r} is not on this machine, and random weights "
                f"download nothing, so the sizes of the model are not known. State {', '.join(missing)}, or give a "
                "local folder."
            )
    family = options.architecture or "llama"
    default = _default_config(family)
    numbers = (LLAMA_7B if family == "llama" else {}) | stated
    if "num_heads" in numbers:
        numbers.setdefault("num_key_value_heads", numbers["num_heads"])
    if family == "lfm2" and "num_layers" in numbers:
        numbers.setdefault("layer_types", ["full_attention"] * int(numbers["num_layers"]))
    values = _entries(default, numbers, optional=numbers.keys() - stated.keys()) | _more(default, options.config)
    if family == "opt" and "hidden_size" in numbers:
        values.setdefault("word_embed_proj_dim", numbers["hidden_size"])
    if family == "lfm2" and "hidden_size" in numbers:
        values.setdefault("block_auto_adjust_ff_dim", False)  # intermediate_size as it is stated
        values.setdefault("initializer_range", numbers["hidden_size"] ** -0.5)  # keeps variance at any width
    made = _made(
        default.model_type,
        {
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
            **values,
        },
    )
    return causal_config(made, "language_model.options: the model")


def _default_config(family: str) -> PreTrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where = "language_model.options.architecture"
    if family not in CONFIG_MAPPING:
        hint = did_you_mean(family, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise SpecError(f"{where}: transformers knows no model_type {family!r}.{hint}")
    return causal_config(AutoConfig.for_model(family), f"{where}: it", finished=False)


def _made(family: str, values: Mapping[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(family, **values)
    except Exception as error:  # each family checks its numbers in its own way
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SpecError(
            f"language_model.options: transformers refuses these numbers for {family!r}: {': '.join(lines[:3])}"
        ) from error


def _changed(config: PreTrainedConfig, stated: Mapping[str, Any], more: Mapping[str, Any]) -> PreTrainedConfig:
    """A local checkpoint's configuration with other numbers, and what follows from those as its family makes it."""
    values = _entries(config, stated) | _more(config, more)
    layers = stated.get("num_layers", config.num_hidden_layers)
    if layers != config.num_hidden_layers and "layer_types" not in stated and getattr(config, "layer_types", None):
        kept = {name: value for name, value in config.to_dict().items() if name not in ("layer_types", "model_type")}
        own = {config.attribute_map.get(name, name): value for name, value in values.items()}
        return _made(config.model_type, {**kept, **own})
    for name, value in values.items():
        setattr(config, name, value)
    return config


def _entries(config: PreTrainedConfig, numbers: Mapping[str, Any], optional: Any = ()) -> dict[str, Any]:
    """Numbers by the names of a configuration. Raises ``SpecError`` for one that it has not, unless it is optional."""
    found = {}
    for option, value in numbers.items():
        name = next((one for one in _ENTRIES[option] if _has(config, one)), None)
        if name is not None:
            found[name] = list(value) if isinstance(value, tuple) else value
        elif option not in optional:
            raise SpecError(
                f"language_model.options.{option}: the configuration of {config.model_type} has no such number; leave "
                "it out."
            )
    return found


def _more(config: PreTrainedConfig, more: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that the option ``config`` states. Raises ``SpecError`` for those that it may not."""
    options = {name: option for option, names in _ENTRIES.items() for name in names}
    for name in more:
        where = f"language_model.options.config.{name}"
        if name in options:
            raise SpecError(f"{where}: state it as language_model.options.{options[name]}.")
        if name in _NOT_STATED or name.startswith("_"):
            raise SpecError(f"{where}: is no number of a model; leave it out.")
        if not _has(config, name) and name != "head_dim":  # which some families read without declaring it
            hint = did_you_mean(name, config.to_dict())
            raise SpecError(f"{where}: the configuration of {config.model_type} has no such entry.{hint}")
    return dict(more)


def _stated(options: CausalLMOptions) -> dict[str, Any]:
    """The numbers of the model as the options state them; None where they leave them to the checkpoint."""
    return {name: getattr(options, name) for name in _ENTRIES}


def _numbers_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration's numbers by the names of the options."""
    text = text_config(config)
    return {
        option: next((found for name in names if (found := _entry(text, name)) is not None), None)
        for option, names in _ENTRIES.items()
    }


def _entry(config: PreTrainedConfig, name: str) -> Any:
    """An entry of a configuration; None where it has none, or another one in each layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers' word for the latter
        return None


def _has(config: PreTrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except RuntimeError:
        return True


def _local_config(checkpoint: str | None) -> PreTrainedConfig | None:
    """The configuration of a checkpoint that is on this machine: a folder, its ``config.json``, or in an installed
    package.
    """
    if checkpoint is None:
        return None
    path = Path(checkpoint).expanduser()
    if not (checkpoint.startswith(PACKAGED) or path.is_dir() or (path.name == CONFIG_FILE and path.is_file())):
        return None
    found = locate_checkpoint(checkpoint)
    return load_config(found if found.is_dir() else found.parent)
