"""A language model from its options: from a checkpoint, from a model folder, or with random weights."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import MissingRequirementError, WeightsError
from lyrics.core.language.chat_templates import check_template_name
from lyrics.core.language.tokenizers import builtin_tokenizer, numbers_in_order
from lyrics.core.registry.registry import Registry
from lyrics.core.weights.pretrained import PACKAGED, locate_checkpoint
from lyrics.core.weights.transformers_files import (
    CONFIG_FILE,
    CONFIG_FILES,
    MODEL_TENSORS,
    TOKENIZER_PATTERNS,
    gguf_file,
    load_causal_lm,
    load_config,
    load_generation_config,
    load_gguf,
    load_gguf_config,
    load_tokenizer,
    stored_config,
    without_a_bar,
)
from lyrics.plugins.causal_lm import CausalLMOptions
from lyrics.plugins.causal_lm.configs import causal_config, compare, config_of_numbers, text_config
from lyrics.plugins.causal_lm.lora import adapted
from lyrics.plugins.causal_lm.model import CausalLM

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
# Says at the first token that lfm2's convolutions would be faster with a package for CUDA, to those who never chose
# lfm2 as well.
_LOG_OF_KERNELS = logging.getLogger("transformers.integrations.hub_kernels")
# Says at every product of two matrices in 8 bits what it is cast to.
_LOG_OF_CASTS = logging.getLogger("bitsandbytes.autograd._functions")
_said: set[str] = set()


def build(options: CausalLMOptions, context: BuildContext) -> CausalLM:
    """The language model that the options describe.

    Raises:
        WeightsError: the checkpoint cannot be had, is no causal language model, or not of the sizes that the options
            state.
        SpecError: numbers that no model of the family can have, or layers for LoRA that it has not.
        UnknownNameError: there is no such chat template.
        MissingRequirementError: ``quantization`` needs bitsandbytes and it is not installed.
    """
    check_template_name(options.chat_template, registry=context.registry)
    stored = stored_config(context.files)
    if context.weights == "pretrained" and options.checkpoint is not None:
        model, tokenizer = _from_checkpoint(options.checkpoint, options, context)
    elif stored is not None:
        assert context.files is not None
        model, tokenizer = _from_stored(stored, context.files, options, context.registry)
    else:
        if context.weights == "pretrained":
            warnings.warn(
                "language_model.options.checkpoint is null: the language model has random weights, and until it is "
                "trained its answers mean nothing.",
                stacklevel=2,
            )
        model, tokenizer = _from_numbers(options, context.registry)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if options.adaptation == "lora":
        model = adapted(model, options.lora)
    return CausalLM(model, tokenizer, options)


def _from_stored(
    config: PreTrainedConfig, folder: Path, options: CausalLMOptions, registry: Registry | None
) -> tuple[nn.Module, Any]:
    """The model that a model folder describes, before its tensors are read. Its tokenizer is read with them."""
    compare(options, config, folder)
    _quiet_about_convolutions(config)
    model = _model_of(config)
    generation = load_generation_config(folder)
    if generation is not None:
        model.generation_config = generation
    return model, builtin_tokenizer(options.builtin_tokenizer, SPECIAL_TOKENS, registry)


def _from_numbers(options: CausalLMOptions, registry: Registry | None) -> tuple[nn.Module, Any]:
    if options.quantization != "none":
        raise WeightsError(
            f"language_model.options.quantization={options.quantization}: random weights are not quantized; "
            "set it to none, or build with weights='pretrained'."
        )
    tokenizer = builtin_tokenizer(options.builtin_tokenizer, SPECIAL_TOKENS, registry)
    config = config_of_numbers(options, tokenizer)
    vocab_size = int(text_config(config).vocab_size)
    if len(tokenizer) > vocab_size:
        raise WeightsError(
            f"the built-in tokenizer needs {len(tokenizer)} words, but vocab_size is {vocab_size}; "
            f"set language_model.options.vocab_size={len(tokenizer)} or more."
        )
    _quiet_about_convolutions(config)
    model = _model_of(config)
    for weight in dict.fromkeys((model.get_input_embeddings().weight, model.get_output_embeddings().weight)):
        if not weight.is_meta:
            numbers_in_order(weight, tokenizer)
    return model, tokenizer


def _model_of(config: PreTrainedConfig) -> Any:
    """A model with random weights, in the type that is in force and not the one that the checkpoint was saved in."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype(), trust_remote_code=False)


def _quiet_about_convolutions(config: PreTrainedConfig) -> None:
    if config.model_type == "lfm2":
        _LOG_OF_KERNELS.addFilter(_not_of_convolutions)


def _once(record: logging.LogRecord) -> bool:
    """Whether a message has not been said before."""
    message = record.getMessage()
    new = message not in _said
    _said.add(message)
    return new


def _not_of_convolutions(record: logging.LogRecord) -> bool:
    return "causal_conv1d" not in record.getMessage()


def _from_checkpoint(checkpoint: str, options: CausalLMOptions, context: BuildContext) -> tuple[nn.Module, Any]:
    quantization = _quantization(options.quantization)
    try:
        # The configuration first: a hub id of the wrong kind is told before its tensors are fetched.
        place = locate_checkpoint(checkpoint, also=CONFIG_FILES, tensors=(), downloads=context.downloads)
        if place.name == CONFIG_FILE:
            raise WeightsError("a configuration alone has no tensors.")
        packed = gguf_file(place)
        whole = load_config(place) if packed is None else load_gguf_config(packed)
        config = causal_config(whole, repr(checkpoint))
        compare(options, whole, repr(checkpoint))
        _quiet_about_convolutions(config)
        dtype = torch.get_default_dtype()  # what the caller builds in, and not what the checkpoint was saved in
        if packed is not None:
            if quantization is not None:
                raise WeightsError(
                    f"quantization={options.quantization}: the weights of a GGUF file are quantized already."
                )
            model, tokenizer = load_gguf(packed, config, dtype)
        else:
            folder = locate_checkpoint(
                checkpoint,
                also=(*CONFIG_FILES, *TOKENIZER_PATTERNS),
                tensors=MODEL_TENSORS,
                downloads=context.downloads,
            )
            with without_a_bar() if checkpoint.startswith(PACKAGED) else nullcontext():
                model = load_causal_lm(
                    folder, config, part_of_whole=config is not whole, quantization_config=quantization, dtype=dtype
                )
            _keep_differentiable(model)
            tokenizer = load_tokenizer(folder)
    except WeightsError as error:
        raise WeightsError(
            f"language_model.options.checkpoint: {checkpoint!r} cannot be loaded: {error} "
            "Give a hub id, a folder with safetensors or a GGUF file, or build with weights='random'."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return model, tokenizer


def _keep_differentiable(model: nn.Module) -> None:
    """Let gradients pass weights in 4 bits also after an answer.

    On processors that multiply bfloat16, bitsandbytes lays weights out anew when they are first read without a gradient
    (``Linear4bit.forward``), and none passes them from then on.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _quantization(name: str) -> Any:
    if name == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingRequirementError(
            f"language_model.options.quantization={name} needs bitsandbytes (not installed). Run: pip install "
            "'lyrics-vl[quant]'"
        )
    from transformers import BitsAndBytesConfig

    _LOG_OF_CASTS.addFilter(_once)
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.get_default_dtype()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
