"""A transformers causal language model behind the `language-model` contract.

Shapes: B samples, L tokens, D width of the embeddings.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from lyrics.core.errors import WeightsError
from lyrics.core.finite import refuse
from lyrics.core.language.chat_templates import AUTO, TOKENIZER, end_ids
from lyrics.core.language.jinja_templates import own_template
from lyrics.core.language.past import Past
from lyrics.core.weights.transformers_files import compare_config, save_config
from lyrics.plugins.causal_lm import CausalLMOptions
from lyrics.plugins.causal_lm.configs import longest, text_config
from lyrics.plugins.causal_lm.kept import kept
from lyrics.plugins.causal_lm.packing import packs
from lyrics.plugins.causal_lm.running import RunningCache, can_run


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
        self._chat_template = options.chat_template
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
        return longest(self._network().config)

    @property
    def chat_template(self) -> str:
        """Name of the chat template; where the options leave it to the tokenizer, that is looked at each time."""
        if self._chat_template != AUTO:
            return self._chat_template
        return "plain" if own_template(self.tokenizer) is None else TOKENIZER

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
        """Tokens that end an answer: the tokenizer's, the checkpoint's, and those that end a turn of the chat
        template.
        """
        stated = getattr(self._network().generation_config, "eos_token_id", None)
        ends = {self.tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
        ends |= end_ids(self.chat_template, self.tokenizer)
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
        config = text_config(self._network().config)
        layers = range(config.num_hidden_layers)
        kinds = getattr(config, "layer_types", None) or ["full_attention" for _ in layers]
        each = getattr(config, "per_layer_config", None) or [config for _ in layers]  # they may differ (Gemma 4)
        return sum(_cached(one) for one, kind in zip(each, kinds, strict=True) if _attends(kind))

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


def _attends(kind: str) -> bool:
    """Whether a layer of that kind keeps something for every token; others keep a state (convolutions, linear
    attention).
    """
    return "attention" in kind and not kind.startswith("linear")


def _cached(config: Any) -> int:
    """Numbers that one layer keeps for each token."""
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:  # recurrent
        return 0
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention
        return int(config.kv_lora_rank) + int(config.qk_rope_head_dim)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        keys = 1
    else:
        keys = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * int(keys) * int(width)


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
