"""A transformers causal language model behind the `language-model` contract.

Shapes: B samples, L tokens, D width of the embeddings.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import MissingRequirementError, WeightsError
from lyrics.core.pretrained import PACKAGED, packaged
from lyrics.core.tokenizers import builtin_tokenizer, numbers_in_order
from lyrics.plugins.causal_lm import CausalLMOptions

# Option -> name in the transformers configuration, per architecture.
_LLAMA_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
_OPT_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "ffn_dim",
    "max_positions": "max_position_embeddings",
}
_NAMES = {
    "llama": _LLAMA_NAMES,
    "qwen2": _LLAMA_NAMES,
    "opt": _OPT_NAMES,
    "lfm2": {**_LLAMA_NAMES, "conv_kernel": "conv_L_cache"},
}
# Says at the first token that lfm2's convolutions would be faster with a package for CUDA, to those who never chose lfm2 as well.
_LOG_OF_KERNELS = logging.getLogger("transformers.integrations.hub_kernels")
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")


class CausalLM(nn.Module):
    """Embeds, reads embeddings, and generates from embeddings.

    Args:
        model: a transformers causal language model, wrapped by PEFT where ``adaptation`` is ``lora``.
        tokenizer: its tokenizer, with a padding token.
        options: what it was built from.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, options: CausalLMOptions) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.adaptation: str = options.adaptation
        self.chat_template: str = options.chat_template
        if options.adaptation == "frozen":
            self.requires_grad_(False)
        self._read = torch.compile(self._logits, dynamic=True) if options.compile else self._logits

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def max_positions(self) -> int:
        return int(self.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """Token ids [B,L] -> embeddings [B,L,D]."""
        return self.model.get_input_embeddings()(input_ids_BL)  # type: ignore[operator,no-any-return]

    def forward(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """Embeddings and their mask (1 = read) -> logits [B,L,vocabulary]."""
        return self._read(embeddings_BLD, attention_mask_BL)

    def _logits(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        output = self.model(inputs_embeds=embeddings_BLD, attention_mask=attention_mask_BL, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Left-padded embeddings -> ids of the new tokens only [B, at most max_new_tokens], greedy (paper, section 5.1).

        ``on_token`` is called with each id as it is chosen; only with a batch of one.
        """
        training = self.training
        self.eval()
        try:
            return self.model.generate(  # type: ignore[operator,no-any-return]
                inputs_embeds=embeddings_BLD,
                attention_mask=attention_mask_BL,
                generation_config=GenerationConfig(
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                    bos_token_id=self.tokenizer.bos_token_id,
                    eos_token_id=self._ends(),
                ),
                streamer=None if on_token is None else _TokenStreamer(on_token),
            )
        finally:
            self.train(training)

    def _ends(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, and the one that ends a turn of the chat template."""
        ends = {self.tokenizer.eos_token_id}
        if self.chat_template == "chatml":
            ends.add(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        return sorted(end for end in ends if end is not None)

    def merge_lora(self) -> None:
        """Add the low-rank updates to the weights they adapt, in place, for faster answers. Undone by ``unmerge_lora``.

        Raises ``WeightsError`` unless ``adaptation`` is ``lora``.
        """
        self._adapter().merge_adapter()

    def unmerge_lora(self) -> None:
        """Take the low-rank updates out of the weights again; exact to rounding (1e-5 in fp32)."""
        self._adapter().unmerge_adapter()

    @property
    def lora_merged(self) -> bool:
        return self.adaptation == "lora" and any(getattr(module, "merged", False) for module in self.model.modules())

    def _adapter(self) -> Any:
        if self.adaptation != "lora":
            raise WeightsError(f"this language model has no LoRA to merge: its adaptation is {self.adaptation!r}.")
        return self.model


class _TokenStreamer(BaseStreamer):
    """Passes on the ids that ``generate`` chooses. With embeddings as the prompt there are no ids of the prompt to leave out."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self.on_token = on_token

    def put(self, value: torch.Tensor) -> None:
        for token in value.flatten().tolist():
            self.on_token(token)

    def end(self) -> None:
        pass


def build(options: CausalLMOptions, context: BuildContext) -> CausalLM:
    """The language model that the options describe.

    Raises ``WeightsError`` when the checkpoint cannot be had or is not of the sizes that the options state,
    ``MissingRequirementError`` when ``quantization`` needs bitsandbytes and it is not installed.
    """
    if context.weights == "pretrained" and options.checkpoint is not None:
        model, tokenizer = _from_checkpoint(options.checkpoint, options)
    else:
        if context.weights == "pretrained":
            warnings.warn(
                "language_model.options.checkpoint is null: the language model has random weights, and until it is trained its answers "
                "mean nothing.",
                stacklevel=2,
            )
        model, tokenizer = _from_numbers(options)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if options.adaptation == "lora":
        from peft import LoraConfig, get_peft_model

        lora = options.lora
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
    return CausalLM(model, tokenizer, options)


def _from_numbers(options: CausalLMOptions) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    if options.quantization != "none":
        raise WeightsError(
            f"language_model.options.quantization={options.quantization}: random weights are not quantized; "
            "set it to none, or build with weights='pretrained'."
        )
    tokenizer = builtin_tokenizer(options.builtin_tokenizer, SPECIAL_TOKENS)
    if len(tokenizer) > options.vocab_size:
        raise WeightsError(
            f"the built-in tokenizer needs {len(tokenizer)} words, but vocab_size is {options.vocab_size}; "
            f"set language_model.options.vocab_size={len(tokenizer)} or more."
        )
    values = {name: getattr(options, option) for option, name in _NAMES[options.architecture].items()}
    if values.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = options.num_heads
    if options.architecture == "opt":
        values["word_embed_proj_dim"] = options.hidden_size
    if options.architecture == "lfm2":
        _LOG_OF_KERNELS.addFilter(_not_of_convolutions)
        values["layer_types"] = list(options.layer_types or ["full_attention"] * options.num_layers)
        values["block_auto_adjust_ff_dim"] = False  # intermediate_size as it is stated
        values["initializer_range"] = options.hidden_size**-0.5  # keeps variance at any width
    config = AutoConfig.for_model(
        options.architecture,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=options.tie_word_embeddings,
        **values,
    )
    model = AutoModelForCausalLM.from_config(config)
    for weight in dict.fromkeys((model.get_input_embeddings().weight, model.get_output_embeddings().weight)):
        if not weight.is_meta:
            numbers_in_order(weight, tokenizer)
    return model, tokenizer


def _not_of_convolutions(record: logging.LogRecord) -> bool:
    return "causal_conv1d" not in record.getMessage()


def _from_checkpoint(checkpoint: str, options: CausalLMOptions) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantization = _quantization(options.quantization)
    if options.architecture == "lfm2":
        _LOG_OF_KERNELS.addFilter(_not_of_convolutions)
    in_package = checkpoint.startswith(PACKAGED)
    source = str(packaged(checkpoint)) if in_package else checkpoint
    try:
        with _no_progress_bar() if in_package else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(
                source,
                use_safetensors=True,
                quantization_config=quantization,
                # What the caller builds in, and not what the checkpoint was saved in.
                dtype=torch.get_default_dtype(),
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if (checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1) and not Path(checkpoint).exists():
            reason = "there is no such folder."
        raise WeightsError(
            f"language_model.options.checkpoint: {checkpoint!r} cannot be loaded: {reason} "
            "Give a hub id or a folder with safetensors, or build with weights='random'."
        ) from error
    for option, name in _NAMES[options.architecture].items():
        stated, found = getattr(options, option), getattr(model.config, name, None)
        if stated is not None and option not in {"vocab_size", "max_positions"} and stated != found:
            raise WeightsError(
                f"language_model.options.checkpoint: {checkpoint!r} has {option} {found}, the spec says {stated}; "
                f"set language_model.options.{option}={found}."
            )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return model, tokenizer


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """What is in a package is small: a bar would come and go among a command's output."""
    from transformers.utils import logging as library

    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


def _quantization(name: str) -> Any:
    if name == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingRequirementError(
            f"language_model.options.quantization={name} needs bitsandbytes (not installed). Run: pip install 'lyrics-vl[quant]'"
        )
    from transformers import BitsAndBytesConfig

    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.get_default_dtype()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
