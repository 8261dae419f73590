"""Any causal language model of transformers (Llama and Vicuna, Qwen, OPT), read through embeddings and adapted with
LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import Component, NamesVocabulary, NamesWeights, Options, hookimpl


class LoraOptions(Options):
    """Low-rank adaptation through PEFT."""

    rank: int = Field(8, ge=1, description="rank of the update matrices")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the update")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="names of the adapted linear layers"
    )


#: The numbers of Llama-7B (arXiv 2302.13971, table 2), which Vicuna-7B, the default checkpoint, shares.
LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "intermediate_size": 11008,
    "max_positions": 4096,
}
DEFAULT_CHECKPOINT = "lmsys/vicuna-7b-v1.5"
_FROM_CHECKPOINT = "null: the checkpoint's; without one {}"


class CausalLMOptions(Options):
    """A checkpoint's own ``config.json`` says what the model is; options that are null are its numbers.

    Numbers are stated for random weights, where nothing is downloaded. Those that are null are then the ones of a local
    checkpoint, or Llama-7B's.
    """

    architecture: Literal["llama", "qwen2", "opt", "lfm2"] | None = Field(
        None,
        description="family of the transformers configuration, for random weights; null: the checkpoint's, or llama",
    )
    checkpoint: Annotated[str | None, NamesWeights()] = Field(
        DEFAULT_CHECKPOINT,
        description="hub id, folder, or package:NAME/PATH, read with weights='pretrained'; null: random weights",
    )
    vocab_size: int | None = Field(
        None, ge=1, description=f"rows of the word embeddings; {_FROM_CHECKPOINT.format(LLAMA_7B['vocab_size'])}"
    )
    hidden_size: int | None = Field(
        None, ge=1, description=f"width of the embeddings; {_FROM_CHECKPOINT.format(LLAMA_7B['hidden_size'])}"
    )
    num_layers: int | None = Field(
        None, ge=1, description=f"transformer layers; {_FROM_CHECKPOINT.format(LLAMA_7B['num_layers'])}"
    )
    layer_types: tuple[Literal["conv", "full_attention"], ...] | None = Field(
        None,
        description="of lfm2: what mixes the tokens in each layer, a short convolution or attention; null: attention",
    )
    conv_kernel: int | None = Field(
        None, ge=1, description="of lfm2: tokens that a short convolution mixes, the last one included; null: 3"
    )
    num_heads: int | None = Field(
        None, ge=1, description=f"attention heads; {_FROM_CHECKPOINT.format(LLAMA_7B['num_heads'])}"
    )
    num_key_value_heads: int | None = Field(
        None, ge=1, description="heads of keys and values; null: the checkpoint's; without one as many as num_heads"
    )
    intermediate_size: int | None = Field(
        None,
        ge=1,
        description=f"width of the feed-forward layer; {_FROM_CHECKPOINT.format(LLAMA_7B['intermediate_size'])}",
    )
    max_positions: int | None = Field(
        None, ge=1, description=f"longest sequence in tokens; {_FROM_CHECKPOINT.format(LLAMA_7B['max_positions'])}"
    )
    tie_word_embeddings: bool | None = Field(
        None,
        description="one matrix for the word embeddings and the output head; null: the checkpoint's; without one false",
    )
    builtin_tokenizer: Annotated[str, NamesVocabulary()] = Field(
        "bytes", description="the built-in tokenizer: bytes, or the name of a vocabulary that a plugin provides"
    )
    chat_template: Literal["plain", "vicuna-v1.1", "chatml", "released"] = Field(
        "plain", description="what stands around instructions and answers in a prompt"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="bitsandbytes loading of the pretrained weights; not with adaptation=full"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    compile: bool = Field(False, description="run the training forward pass through torch.compile")
    adaptation: Literal["lora", "frozen", "full"] = Field("lora", description="what is trained in the language model")
    lora: LoraOptions = Field(default_factory=LoraOptions, description="used with adaptation=lora")

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        if self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads and self.num_key_value_heads and self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        family = self.architecture or "llama"
        if self.layer_types is not None and family != "lfm2":
            raise ValueError(f"layer_types is an option of lfm2; the layers of {family} are all alike")
        if self.conv_kernel not in (None, 3) and family != "lfm2":
            raise ValueError(f"conv_kernel is an option of lfm2; {family} has no convolutions")
        if self.layer_types is not None and self.num_layers and len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers, but num_layers is {self.num_layers}")
        if self.quantization != "none" and self.adaptation == "full":
            raise ValueError(
                f"quantization {self.quantization} cannot be trained with adaptation full; use lora or frozen"
            )
        return self


@hookimpl
def lyrics_components() -> Iterable[Component]:
    yield Component(
        kind="language-model",
        name="causal-lm",
        build="lyrics.plugins.causal_lm.model:build",
        options=CausalLMOptions,
        summary="any AutoModelForCausalLM of transformers, with LoRA, frozen or fully trained",
        license="code Apache-2.0; weights: the checkpoint's (Vicuna v1.5: Llama 2 Community License)",
        test_options={
            "vocab_size": 300,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 64,
            "max_positions": 128,
            "lora": {"rank": 2},
        },
    )
