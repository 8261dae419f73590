"""A transformers causal language model behind the `language-model` contract.

Shapes: B samples, L tokens, D width of the embeddings.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedConfig
from transformers.generation.streamers import BaseStreamer

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import MissingRequirementError, SpecError, WeightsError
from lyrics.core.finite import refuse
from lyrics.core.language.past import Past
from lyrics.core.language.tokenizers import builtin_tokenizer, numbers_in_order
from lyrics.core.registry.registry import Registry
from lyrics.core.weights.pretrained import PACKAGED, locate_checkpoint
from lyrics.core.weights.transformers_files import (
    CONFIG_FILES,
    MODEL_TENSORS,
    TOKENIZER_PATTERNS,
    compare_config,
    load_causal_lm,
    load_config,
    load_generation_config,
    load_tokenizer,
    refuse_disagreements,
    save_config,
    stored_config,
)
from lyrics.plugins.causal_lm import DEFAULT_CHECKPOINT, LLAMA_7B, CausalLMOptions, LoraOptions
from lyrics.plugins.causal_lm.kept import kept
from lyrics.plugins.causal_lm.packing import packs
from lyrics.plugins.causal_lm.running import RunningCache, can_run

# Option -> name in the transformers configuration, per architecture.
_LLAMA_NAMES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}
_OPT_NAMES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "ffn_dim",
    "max_positions": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}
# Families whose names are not Llama's.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "opt": _OPT_NAMES,
    "lfm2": {**_LLAMA_NAMES, "conv_kernel": "conv_L_cache"},
}
# A checkpoint may have more rows than its tokenizer has words, read further than is wanted of it, and says by itself
# what is tied.
_MAY_DIFFER = frozenset({"vocab_size", "max_positions", "tie_word_embeddings"})
# Says at the first token that lfm2's convolutions would be faster with a package for CUDA, to those who never chose
# lfm2 as well.
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
        self.compiled = options.compile
        self._packs: bool | None = None
        self._read = torch.compile(self._logits, dynamic=True) if options.compile else self._logits

    @property
    def hidden_size(self) -> int:
        # Not the configuration's, which in a few families (OPT) is the width of the layers and not of the embeddings.
        return int(self._words().shape[1])

    def _words(self) -> torch.Tensor:
        return self.model.get_input_embeddings().weight  # type: ignore[operator,union-attr,no-any-return]

    @property
    def max_positions(self) -> int:
        return int(self.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """Token ids [B,L] -> embeddings [B,L,D]."""
        return self.model.get_input_embeddings()(input_ids_BL)  # type: ignore[operator,no-any-return]

    def forward(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor | None,
        positions_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings and their mask (1 = read) -> logits [B,L,vocabulary].

        With ``positions_BL`` and no mask a row may hold several prompts, where the model ``packs``.
        """
        if positions_BL is not None:
            return self._packed(embeddings_BLD, positions_BL)
        assert attention_mask_BL is not None
        return self._read(embeddings_BLD, attention_mask_BL)

    def _logits(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        output = self.model(inputs_embeds=embeddings_BLD, attention_mask=attention_mask_BL, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    def _packed(self, embeddings_BLD: torch.Tensor, positions_BL: torch.Tensor) -> torch.Tensor:
        # transformers sees from the positions where a prompt begins: as a mask for SDPA, as lengths for flash
        # attention.
        output = self.model(inputs_embeds=embeddings_BLD, position_ids=positions_BL, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    @property
    def packs(self) -> bool:
        """Whether prompts in one row are read as if each stood alone: asked of the model itself, once, with seven
        tokens.

        Not where layers mix neighboring places by other means than attention (convolutions, recurrent states), and not
        when compiled, as transformers then does not look at the positions.
        """
        if self._packs is None:
            self._packs = not self.compiled and self._takes("position_ids") and packs(self, self._words())
        return self._packs

    @torch.no_grad()
    def generate(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> torch.Tensor:
        """Left-padded embeddings -> ids of the new tokens only [B, at most max_new_tokens].

        ``on_token`` is called with each id as it is chosen; only with a batch of one and a single beam. Decoding is
        greedy (paper, section 5.1) unless ``generation_config`` says otherwise; samples come from torch's global
        generators.
        """
        settings = self._settings(max_new_tokens, generation_config)
        return self._generate(embeddings_BLD, attention_mask_BL, settings, on_token)[0]

    @torch.no_grad()
    def generate_scored(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: GenerationConfig | None = None,
        keys: Sequence[Hashable] = (),
        past: Past | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``generate`` (with ``past`` as ``resume``), and the log-probability of each new token, float [B, as many].

        It is that of the distribution after penalties and before temperature and cuts; of several beams, of the
        distribution that these were followed with. Behind the end of an answer it is NaN.
        """
        settings = self._settings(max_new_tokens, generation_config)
        if past is None:
            return self._generate(embeddings_BLD, attention_mask_BL, settings, on_token)
        return self._resume(embeddings_BLD, keys, past, settings, on_token)

    @torch.no_grad()
    def resume(
        self,
        embeddings_1LD: torch.Tensor,
        keys: Sequence[Hashable],
        past: Past,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> torch.Tensor:
        """``generate`` for one prompt, of which only what ``past`` has not read is read.

        Everything is read where the weights have changed since, where the families' caches cannot be cut to what two
        prompts share (convolutions and sliding windows keep only the latest tokens), and where there is no cache
        (Mamba) or there are several beams.
        """
        settings = self._settings(max_new_tokens, generation_config)
        return self._resume(embeddings_1LD, keys, past, settings, on_token)[0]

    def _resume(
        self,
        embeddings_1LD: torch.Tensor,
        keys: Sequence[Hashable],
        past: Past,
        settings: GenerationConfig,
        on_token: Callable[[int], None] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask_1L = torch.ones(embeddings_1LD.shape[:2], dtype=torch.long, device=embeddings_1LD.device)
        if (settings.num_beams or 1) > 1 or not self._takes("past_key_values"):
            past.forget()
            return self._generate(embeddings_1LD, mask_1L, settings, on_token)
        cache = kept(past, keys, self._weights()) or DynamicCache(config=self._network().config)
        past.forget()  # generation writes to the cache, and may be interrupted
        ids_1L, log_probs_1L = self._generate(embeddings_1LD, mask_1L, settings, on_token, past_key_values=cache)
        # The last token was chosen, and not read.
        past.keys = (*keys, *ids_1L[0].tolist())[: cache.get_seq_length()]
        past.state, past.weights = cache, self._weights()
        return ids_1L, log_probs_1L

    def running(self) -> RunningCache | None:
        """Return a running batch; None where the cache of this family cannot hold prompts of different lengths, and
        where there is none.
        """
        if not (self._takes("past_key_values") and self._takes("position_ids")):
            return None
        return RunningCache(self.model, self.embed, self._network()) if can_run(self._network().config) else None

    def _settings(self, max_new_tokens: int, generation_config: GenerationConfig | None) -> GenerationConfig:
        settings = GenerationConfig(do_sample=False) if generation_config is None else copy.deepcopy(generation_config)
        settings.max_new_tokens = max_new_tokens
        settings.pad_token_id = self.tokenizer.pad_token_id
        settings.bos_token_id = self.tokenizer.bos_token_id
        if settings.eos_token_id is None:
            settings.eos_token_id = self.ends
        return settings

    def _generate(
        self,
        embeddings_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        settings: GenerationConfig,
        on_token: Callable[[int], None] | None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the new tokens and their log-probabilities; see ``generate_scored``."""
        beams = (settings.num_beams or 1) > 1
        settings.return_dict_in_generate, settings.output_scores = True, beams
        scores = _Scores(keep=not beams)
        training = self.training
        self.eval()
        try:
            found = self.model.generate(  # type: ignore[operator]
                inputs_embeds=embeddings_BLD,
                attention_mask=mask_BL,
                generation_config=settings,
                logits_processor=[scores],
                streamer=None if on_token is None else _TokenStreamer(on_token),
                **more,
            )
        finally:
            self.train(training)
        ids_BL = found.sequences
        if beams:
            log_probs_BL = self._network().compute_transition_scores(
                ids_BL, found.scores, found.beam_indices, normalize_logits=True
            )
        else:
            log_probs_BL = scores.of(ids_BL)
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        is_end_BL = torch.isin(ids_BL, torch.tensor(ends, device=ids_BL.device))
        behind_BL = is_end_BL.cumsum(dim=1) - is_end_BL.long() > 0
        return ids_BL, log_probs_BL[:, : ids_BL.shape[1]].masked_fill(behind_BL, torch.nan)

    def _takes(self, name: str) -> bool:
        return name in inspect.signature(self._network().forward).parameters

    def _weights(self) -> Hashable:
        """Changes whenever a weight is written to or exchanged."""
        written = tuple((id(one), one._version, one.dtype, one.device) for one in self.model.parameters())
        return written, self.lora_merged  # which PEFT does behind the versions' back

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, the checkpoint's, and the one that ends a turn of the chat
        template.
        """
        stated = getattr(self._network().generation_config, "eos_token_id", None)
        ends = {self.tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
        if self.chat_template == "chatml":
            ends.add(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        return sorted(end for end in ends if end is not None)

    def save_files(self, folder: Path) -> None:
        """The configuration of the model and of its generation, from which ``build`` makes it again."""
        save_config(self._network(), folder)

    def load_files(self, folder: Path) -> None:
        """Compare the stored configuration with this model's. Raises ``WeightsError`` that lists what differs."""
        compare_config(self._network().config, folder)

    def _network(self) -> Any:
        """The transformers model, without PEFT around it."""
        return self.model.get_base_model() if self.adaptation == "lora" else self.model  # type: ignore[operator]

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

    @property
    def cache_numbers_per_token(self) -> int:
        """Keys and values of all layers that attend; a convolution keeps the same few numbers however long the text."""
        config: Any = self.model.config
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * int(heads) * int(width) * sum("attention" in kind for kind in kinds)

    def weights_in_4bit(self) -> int:
        """What bitsandbytes quantizes: linear layers, without the head and LoRA."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        return sum(
            module.weight.numel()
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
        )

    def _adapter(self) -> Any:
        if self.adaptation != "lora":
            raise WeightsError(f"this language model has no LoRA to merge: its adaptation is {self.adaptation!r}.")
        return self.model


class _Scores(LogitsProcessor):
    """Notes the log-probability of each token that is chosen, and holds one step's distribution at a time.

    It stops generation where there is nothing to choose from: the arg max of NaN is a token like any other.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.chosen: list[torch.Tensor] = []
        self.log_probs_BV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Minus infinity is how other processors forbid a token.
        if bool((scores.isnan() | scores.isposinf()).any()):
            raise refuse("language_model (logits)")
        if self.keep:
            self._note(input_ids)
            self.log_probs_BV = scores.float().log_softmax(dim=-1)
        return scores

    def _note(self, ids_BL: torch.Tensor) -> None:
        """The prompt has no ids, so the last of these was chosen from the distribution before."""
        if self.log_probs_BV is not None and len(self.chosen) < ids_BL.shape[1]:
            self.chosen.append(self.log_probs_BV.gather(1, ids_BL[:, -1:])[:, 0])

    def of(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Of all tokens of finished answers: float [B,L]."""
        self._note(ids_BL)
        if not self.chosen:
            return ids_BL.new_zeros(ids_BL.shape, dtype=torch.float32)
        return torch.stack(self.chosen, dim=1)


class _TokenStreamer(BaseStreamer):
    """Passes on the ids that ``generate`` chooses.

    With embeddings as the prompt there are no ids of the prompt to leave out.
    """

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
        model = _adapted(model, options.lora)
    return CausalLM(model, tokenizer, options)


def _adapted(model: nn.Module, lora: LoraOptions) -> nn.Module:
    """The model with low-rank updates beside the linear layers of those names.

    Raises ``SpecError`` where it has none of a name.
    """
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()  # type: ignore[operator]
    }
    if absent := [name for name in lora.target_modules if name.rpartition(".")[2] not in linear]:
        raise SpecError(
            f"language_model.options.lora.target_modules: {type(model).__name__} has no linear layer "
            f"{', '.join(absent)}; it has {', '.join(sorted(linear))}."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # type: ignore[arg-type]


def _from_stored(
    config: PreTrainedConfig, folder: Path, options: CausalLMOptions, registry: Registry | None
) -> tuple[nn.Module, Any]:
    """The model that a model folder describes, before its tensors are read. Its tokenizer is read with them."""
    _compare(options, config, folder)
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
    config = _config_of_numbers(options, tokenizer)
    vocab_size = int(config.get_text_config().vocab_size)
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


def _config_of_numbers(options: CausalLMOptions, tokenizer: Any) -> PreTrainedConfig:
    """The configuration of random weights: what the options state, the rest from a local checkpoint, or else Llama-7B's
    numbers.

    Raises ``WeightsError`` where the numbers of a checkpoint on the hub would be needed, since random weights download
    nothing.
    """
    from transformers import AutoConfig

    stated = {name: value for name, value in _stated(options).items() if value is not None}
    if missing := [name for name in LLAMA_7B if name not in stated and name != "max_positions"]:
        local = _local_config(options.checkpoint)
        if local is not None and options.architecture in (None, local.model_type):
            for name, value in stated.items():
                setattr(local.get_text_config(), _names(local)[name], value)
            return local
        if options.checkpoint not in (None, DEFAULT_CHECKPOINT):
            raise WeightsError(
                f"language_model.options.checkpoint: {options.checkpoint!r} is not on this machine, and random weights "
                f"download nothing, so the sizes of the model are not known. State {', '.join(missing)}, or give a "
                "local folder."
            )
    architecture = options.architecture or "llama"
    numbers = LLAMA_7B | stated
    names = _names_of(architecture)
    values = {names[name]: value for name, value in numbers.items() if name in names}
    if "num_key_value_heads" in names:
        values["num_key_value_heads"] = options.num_key_value_heads or numbers["num_heads"]
    if architecture == "opt":
        values["word_embed_proj_dim"] = numbers["hidden_size"]
    if architecture == "lfm2":
        values["layer_types"] = list(options.layer_types or ["full_attention"] * int(numbers["num_layers"]))
        values["block_auto_adjust_ff_dim"] = False  # intermediate_size as it is stated
        values["initializer_range"] = numbers["hidden_size"] ** -0.5  # keeps variance at any width
    return AutoConfig.for_model(
        architecture,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"tie_word_embeddings": False, **values},
    )


def _stated(options: CausalLMOptions) -> dict[str, Any]:
    """The numbers of the model as the options state them; None where they leave them to the checkpoint."""
    return {name: getattr(options, name) for name in _LLAMA_NAMES} | {
        "conv_kernel": options.conv_kernel,
        "layer_types": options.layer_types,
    }


def _compare(options: CausalLMOptions, config: PreTrainedConfig, source: object) -> None:
    """Raise one ``WeightsError`` that lists all that the options state otherwise than a checkpoint's configuration."""
    stated = {name: value for name, value in _stated(options).items() if name not in _MAY_DIFFER}
    found = _numbers_of(config) | {"architecture": config.model_type}
    refuse_disagreements(stated | {"architecture": options.architecture}, found, source)


def _names(config: PreTrainedConfig) -> Mapping[str, str]:
    return _names_of(str(config.get_text_config().model_type))


def _names_of(architecture: str) -> Mapping[str, str]:
    """Option -> name in the transformers configuration. Most families have Llama's names."""
    return _NAMES.get(architecture, _LLAMA_NAMES)


def _numbers_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration's numbers by the names of the options."""
    text = config.get_text_config()
    numbers = {option: getattr(text, name, None) for option, name in _names(config).items()}
    return numbers | {"layer_types": getattr(text, "layer_types", None)}


def _local_config(checkpoint: str | None) -> PreTrainedConfig | None:
    """The configuration of a checkpoint that is on this machine: a folder, or in an installed package."""
    if checkpoint is None or not (checkpoint.startswith(PACKAGED) or Path(checkpoint).expanduser().is_dir()):
        return None
    return load_config(locate_checkpoint(checkpoint))


def _model_of(config: PreTrainedConfig) -> Any:
    """A model with random weights, in the type that is in force and not the one that the checkpoint was saved in."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype(), trust_remote_code=False)


def _quiet_about_convolutions(config: PreTrainedConfig) -> None:
    if config.model_type == "lfm2":
        _LOG_OF_KERNELS.addFilter(_not_of_convolutions)


def _not_of_convolutions(record: logging.LogRecord) -> bool:
    return "causal_conv1d" not in record.getMessage()


def _from_checkpoint(checkpoint: str, options: CausalLMOptions, context: BuildContext) -> tuple[nn.Module, Any]:
    quantization = _quantization(options.quantization)
    try:
        folder = locate_checkpoint(
            checkpoint,
            also=(*CONFIG_FILES, *TOKENIZER_PATTERNS),
            tensors=MODEL_TENSORS,
            downloads=context.downloads,
        )
        config = load_config(folder)
        _compare(options, config, repr(checkpoint))
        _quiet_about_convolutions(config)
        with _no_progress_bar() if checkpoint.startswith(PACKAGED) else nullcontext():
            model = load_causal_lm(
                folder,
                config,
                quantization_config=quantization,
                # What the caller builds in, and not what the checkpoint was saved in.
                dtype=torch.get_default_dtype(),
            )
        tokenizer = load_tokenizer(folder)
    except WeightsError as error:
        raise WeightsError(
            f"language_model.options.checkpoint: {checkpoint!r} cannot be loaded: {error} "
            "Give a hub id or a folder with safetensors, or build with weights='random'."
        ) from error
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
            f"language_model.options.quantization={name} needs bitsandbytes (not installed). Run: pip install "
            "'lyrics-vl[quant]'"
        )
    from transformers import BitsAndBytesConfig

    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.get_default_dtype()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
