"""A transformers causal language model behind the `language-model` contract.

Shapes: B samples, L tokens, D width of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.core.tokenizers import byte_tokenizer
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
_NAMES = {"llama": _LLAMA_NAMES, "qwen2": _LLAMA_NAMES, "opt": _OPT_NAMES}
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")


class CausalLM(nn.Module):
    """Embeds, reads embeddings, and generates from embeddings.

    Args:
        model: a transformers causal language model, wrapped by PEFT where ``adaptation`` is ``lora``.
        tokenizer: its tokenizer, with a padding token.
        adaptation: ``lora``, ``frozen`` or ``full``.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, adaptation: str) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.adaptation = adaptation
        if adaptation == "frozen":
            self.requires_grad_(False)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """Token ids [B,L] -> embeddings [B,L,D]."""
        return self.model.get_input_embeddings()(input_ids_BL)  # type: ignore[operator,no-any-return]

    def forward(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """Embeddings and their mask (1 = read) -> logits [B,L,vocabulary]."""
        output = self.model(inputs_embeds=embeddings_BLD, attention_mask=attention_mask_BL, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor, *, max_new_tokens: int
    ) -> torch.Tensor:
        """Left-padded embeddings -> ids of the new tokens only [B, at most max_new_tokens], greedy (paper, section 5.1)."""
        return self.model.generate(  # type: ignore[operator,no-any-return]
            inputs_embeds=embeddings_BLD,
            attention_mask=attention_mask_BL,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )


def build(options: CausalLMOptions, context: BuildContext) -> CausalLM:
    """The language model that the options describe.

    Raises ``WeightsError`` when the checkpoint cannot be had or is not of the sizes that the options state.
    """
    if context.weights == "pretrained":
        model, tokenizer = _from_checkpoint(options)
    else:
        model, tokenizer = _from_numbers(options)
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
    return CausalLM(model, tokenizer, options.adaptation)


def _from_numbers(options: CausalLMOptions) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
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
    config = AutoConfig.for_model(
        options.architecture,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **values,
    )
    return AutoModelForCausalLM.from_config(config), tokenizer


def _from_checkpoint(options: CausalLMOptions) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(options.checkpoint, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"language_model.options.checkpoint: {options.checkpoint!r} cannot be loaded: {reason} "
            "Give a hub id or a folder with safetensors, or build with weights='random'."
        ) from error
    for option, name in _NAMES[options.architecture].items():
        stated, found = getattr(options, option), getattr(model.config, name, None)
        if stated is not None and option not in {"vocab_size", "max_positions"} and stated != found:
            raise WeightsError(
                f"language_model.options.checkpoint: {options.checkpoint!r} has {option} {found}, the spec says {stated}; "
                f"set language_model.options.{option}={found}."
            )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return model, tokenizer
