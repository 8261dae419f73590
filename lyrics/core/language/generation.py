"""Generation options under transformers' names and with its meaning; greedy decoding unless asked otherwise."""

from __future__ import annotations

import inspect
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch

from lyrics.core.errors import ContractError, PromptError, SpecError, did_you_mean
from lyrics.core.pictures.inputs import Phrases

if TYPE_CHECKING:
    from transformers import GenerationConfig

MAX_NEW_TOKENS = 64


class GenerationOptions(TypedDict, total=False):
    """Options of ``generate``, ``answer`` and ``ask``.

    See transformers' ``GenerationConfig`` for what each of them does.

    Penalties and n-grams count the tokens of the answer alone: the prompt reaches the language model as embeddings.
    """

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_new_tokens: int


class GenerateOptions(GenerationOptions, total=False):
    """Everything that ``generate`` takes beside images and text."""

    images_per_text: Sequence[int] | None
    phrases: Phrases
    max_new_tokens: int | None
    generation_config: GenerationConfig | None
    seed: int | None


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a value must be: the test, and the words for a message.
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": (lambda value: isinstance(value, bool), "True or False"),
    "temperature": (
        lambda value: _is_number(value) and value > 0,
        "a number above 0 (for greedy decoding, leave it out)",
    ),
    "top_k": (lambda value: _is_int(value, 0), "an integer, 0 (no limit) or more"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1"),
    "min_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "num_beams": (lambda value: _is_int(value, 1), "an integer, 1 or more"),
    "length_penalty": (_is_number, "a number"),
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", "True, False or 'never'"),
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "a number above 0 (1: no penalty)"),
    "no_repeat_ngram_size": (lambda value: _is_int(value, 0), "an integer, 0 (off) or more"),
    "min_new_tokens": (lambda value: _is_int(value, 0), "an integer, 0 or more"),
}
_ONLY_SAMPLED = ("temperature", "top_k", "top_p", "min_p")
# Of a GenerationConfig: what is met otherwise, or says nothing about how to decode.
_READ_ELSEWHERE = ("max_new_tokens", "eos_token_id", "bos_token_id", "pad_token_id", "transformers_version")


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Args:
        max_new_tokens: tokens of an answer at most.
        config: for the language model's ``generate``; None: greedy, which needs none.
        seed: of the samples; None without sampling.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    config: GenerationConfig | None = None
    seed: int | None = None

    @contextmanager
    def drawing(self, device: torch.device) -> Iterator[None]:
        """Inside, random numbers on ``device`` follow the seed; then generators are as if nothing had been drawn."""
        if self.seed is None:
            yield
            return
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(self.seed)
            for one in devices:
                with torch.cuda.device(one):
                    torch.cuda.manual_seed(self.seed)
            yield


def decoding(
    options: Mapping[str, Any],
    *,
    max_new_tokens: int | None = None,
    generation_config: GenerationConfig | None = None,
    seed: int | None = None,
    streamed: bool = False,
    default_tokens: int = MAX_NEW_TOKENS,
) -> Decoding:
    """Return settings from a ``GenerationConfig`` and from options, which take precedence.

    An option of sampling (``temperature``, ``top_k``, ``top_p``, ``min_p``) means ``do_sample=True`` where that is not
    given. Samples without a seed are new ones each time.

    Args:
        options: names of ``GenerationOptions``.
        max_new_tokens: tokens of an answer at most.
        generation_config: transformers' object with some of these options.
        seed: of sampling.
        streamed: whether the answer is followed as it is written.
        default_tokens: where neither ``max_new_tokens`` nor ``generation_config`` says it.

    Raises:
        TypeError: an option that does not exist; the message lists those that do.
        SpecError: a value out of range, or options that exclude each other.
        PromptError: ``max_new_tokens`` below 1.
    """
    _check_names(options)
    found: dict[str, Any] = {}
    ends = None
    if generation_config is not None:
        given = _of_config(generation_config)
        max_new_tokens = given.pop("max_new_tokens", None) if max_new_tokens is None else max_new_tokens
        ends = given.get("eos_token_id")
        found = {name: value for name, value in given.items() if name in _RULES}
    found |= {name: value for name, value in options.items() if value is not None}
    for name, value in found.items():
        test, wanted = _RULES[name]
        if not test(value):
            raise SpecError(f"{name}={value!r}: must be {wanted}.")
    if max_new_tokens is None:
        max_new_tokens = default_tokens
    if not _is_int(max_new_tokens, 1):
        raise PromptError(f"max_new_tokens must be 1 or more, not {max_new_tokens!r}.")
    if found.get("min_new_tokens", 0) > max_new_tokens:
        raise SpecError(f"min_new_tokens={found['min_new_tokens']}: is more than max_new_tokens={max_new_tokens}.")
    sampled = [name for name in _ONLY_SAMPLED if name in found]
    if sampled and found.setdefault("do_sample", True) is False:
        raise SpecError(
            f"{sampled[0]}={found[sampled[0]]}: is for sampling, and do_sample=False; leave one of them out."
        )
    if streamed and found.get("num_beams", 1) > 1:
        raise SpecError(
            f"num_beams={found['num_beams']}: several beams are compared at their ends, so none can be followed as "
            "it is written; leave out num_beams, or on_text."
        )
    if seed is not None and not (_is_int(seed, 0) and seed < 2**63):
        raise SpecError(f"seed={seed!r}: must be an integer, 0 or more, below 2^63.")
    sampling = found.get("do_sample", False)
    if seed is not None and not sampling:
        warnings.warn(
            f"seed={seed}: has no effect, as nothing is drawn; set do_sample=True or temperature to sample.",
            stacklevel=3,
        )
        seed = None
    if sampling and seed is None:
        seed = random.SystemRandom().getrandbits(63)
    if not found and ends is None:
        return Decoding(max_new_tokens)
    from transformers import GenerationConfig

    return Decoding(max_new_tokens, GenerationConfig(**{"do_sample": False, **found, "eos_token_id": ends}), seed)


def _check_names(options: Mapping[str, Any]) -> None:
    unknown = next((name for name in options if name not in _RULES), None)
    if unknown is not None:
        known = ("max_new_tokens", *_RULES, "seed", "generation_config")
        raise TypeError(
            f"there is no generation option {unknown!r}.{did_you_mean(unknown, known)} There are: {', '.join(known)}."
        )


def _of_config(config: GenerationConfig) -> dict[str, Any]:
    """Return what a ``GenerationConfig`` sets. Raises ``SpecError`` for what cannot be met."""
    if not callable(getattr(config, "to_dict", None)):
        raise SpecError(
            f"generation_config: must be transformers' GenerationConfig, not {type(config).__name__}; options "
            "can be given by name, too."
        )
    given = {name: value for name, value in config.to_dict().items() if value is not None}
    if given.pop("max_length", None) is not None and "max_new_tokens" not in given:
        warnings.warn(
            "generation_config.max_length: is not read, as it counts the prompt; set max_new_tokens.", stacklevel=4
        )
    for name, value in given.items():
        # Off, one, and the use of a cache are what happens anyway.
        idle = value is False or (value == 1 and (name == "use_cache" or not isinstance(value, bool)))
        if name not in _RULES and name not in _READ_ELSEWHERE and not name.startswith("_") and not idle:
            raise SpecError(f"generation_config.{name}={value!r}: is not supported. There are: {', '.join(_RULES)}.")
    return given


def check_takes_options(generate: Callable[..., object], name: str) -> None:
    """Raise ``ContractError`` where a language model's ``generate`` takes no ``generation_config``.

    ``name`` is what the message calls the language model.
    """
    parameters = inspect.signature(generate).parameters
    if "generation_config" in parameters or any(
        one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()
    ):
        return
    raise ContractError(
        f"language_model: {name!r} decodes greedily only: its generate takes no generation_config (see "
        "lyrics.core.contracts); leave out the generation options."
    )
