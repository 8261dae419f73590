"""Any causal language model of transformers (Llama, Qwen, Gemma, Mistral, ...), read through embeddings and adapted
with LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lyrics.core.registry.component import Component, NamesVocabulary, NamesWeights, Options, hookimpl


class LoraOptions(Options):
    """Low-rank adaptation through PEFT."""

    rank: int = Field(8, ge=1, description="rank of the update matrices")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the update")
    target_modules: Literal["auto", "all-linear"] | tuple[str, ...] = Field(
        "auto",
        description="names of the adapted linear layers; auto: the projections to queries and values (W_q and W_v), or "
        "what the family has in their place; all-linear: every one but the output head",
    )

    @field_validator("target_modules")
    @classmethod
    def _some_are_named(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("names no layer; name some, or set auto or all-linear")
        return value


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
_FROM_CHECKPOINT = "null: the checkpoint's; without one {}, or the default of another architecture"


class CausalLMOptions(Options):
    """A checkpoint's own ``config.json`` says what the model is; options that are null are its numbers.

    Numbers are stated for random weights, where nothing is downloaded. Those that are null are then the ones of a local
    checkpoint (a folder, or its ``config.json`` alone), or Llama-7B's, or those that transformers gives the family that
    ``architecture`` names.
    """

    architecture: str | None = Field(
        None,
        pattern="^[A-Za-z0-9_.-]+$",
        description="model_type of the transformers configuration (qwen3, gemma3_text, ...), for random weights; null "
        "or auto: the checkpoint's, or llama",
    )
    checkpoint: Annotated[str | None, NamesWeights()] = Field(
        DEFAULT_CHECKPOINT,
        description="hub id, folder, GGUF file, or package:NAME/PATH, read with weights='pretrained'; null: random "
        "weights",
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
    layer_types: tuple[str, ...] | None = Field(
        None,
        description="what mixes the tokens in each layer, in families whose layers differ (lfm2: conv or "
        "full_attention); null: the checkpoint's; without one the family's, of lfm2 attention",
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
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="further entries of the transformers configuration by its own names (head_dim, num_experts, "
        "rope_parameters, ...), for random weights; a checkpoint must agree",
    )
    tie_word_embeddings: bool | None = Field(
        None,
        description="one matrix for the word embeddings and the output head; null: the checkpoint's; without one false",
    )
    builtin_tokenizer: Annotated[str, NamesVocabulary()] = Field(
        "bytes", description="the built-in tokenizer: bytes, or the name of a vocabulary that a plugin provides"
    )
    chat_template: str = Field(
        "auto",
        description="what stands around instructions and answers in a prompt: plain, vicuna-v1.1, chatml, released, a "
        "plugin's, or tokenizer for the one that the tokenizer brings; auto: tokenizer where it brings one, else plain",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="bitsandbytes loading of the pretrained weights; not with adaptation=full"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    compile: bool = Field(False, description="run the training forward pass through torch.compile")
    adaptation: Literal["lora", "frozen", "full"] = Field("lora", description="what is trained in the language model")
    lora: LoraOptions = Field(default_factory=LoraOptions, description="used with adaptation=lora")

    @field_validator("architecture")
    @classmethod
    def _auto_is_the_checkpoint_s(cls, value: str | None) -> str | None:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        # A family with head_dim has heads of that width, whatever hidden_size is.
        divided = "head_dim" not in self.config and self.architecture in (None, "llama", "qwen2", "opt", "lfm2")
        if divided and self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads and self.num_key_value_heads and self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
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
        build="lyrics.plugins.causal_lm.build:build",
        options=CausalLMOptions,
        summary="any causal language model of transformers, with LoRA, frozen or fully trained",
        license="code Apache-2.0; weights: the checkpoint's (Vicuna v1.5: Llama 2 Community License)",
        # Of checkpoints that presets name, as their model cards state it.
        weights_licenses={
            "lmsys/vicuna-7b-v1.5": "llama2",
            "lmsys/vicuna-13b-v1.5": "llama2",
            "Qwen/Qwen3-4B": "apache-2.0",
        },
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
