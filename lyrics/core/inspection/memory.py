"""How much memory a model needs, counted before anything is allocated: for answering, and for a step of either stage.

The model is built on the meta device, where tensors have shapes and no values, and run there; every storage that is
made is counted while it lives. What the counting assumes:

- attention is fused: scores are never stored (flash attention, or PyTorch's own on a CPU without attention dropout);
- AdamW keeps two fp32 numbers for every trained parameter;
- the refiner runs before the step, one expert after the other, without gradients. An expert whose code looks at
  values (thresholds, matching) is counted up to there: its backbone, which needs the most, comes first.

Shapes: B samples, N image tokens, M local tokens, S spatial tokens, C caption tokens, L tokens of the language model, D
width.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lyrics.core.contracts import Expert, WithNumTokens
from lyrics.core.geometry import Box, Frame
from lyrics.core.model import LyricsModel
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.step import pretrain_losses
from lyrics.core.stage1.streams import Features, SpecialTokens, Text
from lyrics.core.types import ImageBatch

#: Objects of an image and lengths of texts that a step is counted with.
OBJECTS, SPATIAL_TOKENS, CAPTION_TOKENS, PROMPT_TOKENS = 10, 128, 32, 400
_ADAM_BYTES = 8


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        weights: of all parts.
        gradients, optimizer: of what is trained.
        working: the most that everything else takes at one moment: saved activations, keys and values, temporaries.
    """

    weights: int
    gradients: int
    optimizer: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.working


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside it, for as long as they live. ``peak`` is the most at one moment."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def known(self, tensors: Sequence[torch.Tensor]) -> None:
        """Tensors that were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True  # "Is nothing padded?" and the like; there are no values to ask
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _FusedAttention(torch.autograd.Function):
    """Attention's memory without its work: the output and one number a row are kept, scores never exist."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _FuseAttention(TorchFunctionMode):
    """On the meta device ``scaled_dot_product_attention`` would be counted with all its scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and args and args[0].is_meta:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **kwargs)


@contextlib.contextmanager
def counting(model: torch.nn.Module) -> Iterator[LiveBytes]:
    """Count what is made inside, beside the model itself."""
    with LiveBytes() as counter:
        counter.known([*model.parameters(), *model.buffers()])
        yield counter


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def training_memory(model: LyricsModel, stage: str, batch_size: int, experts: int | None = None) -> Memory:
    """Count the memory of one step of a stage (``pretrain`` or ``instruct``), with AdamW.

    The model is on the meta device; forward and backward pass are run.

    The batch has ``batch_size`` images with texts of ``SPATIAL_TOKENS`` and ``CAPTION_TOKENS``, or prompts of
    ``PROMPT_TOKENS``. ``experts`` is ``experts_peak``, where it is known already.
    """
    trained = model.trainable_parameters(stage)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained.values())
    # What the step itself makes of gradients is counted here, once.
    experts = experts_peak(model, batch_size) if experts is None else experts
    working = max(experts, step_peak(model, stage, batch_size) - gradients)
    optimizer = sum(parameter.numel() for parameter in trained.values()) * _ADAM_BYTES
    return Memory(weight_bytes(model), gradients, optimizer, working)


def inference_memory(model: LyricsModel, new_tokens: int = 128, experts: int | None = None) -> Memory:
    """Count the memory of an answer of ``new_tokens`` about one image.

    The prompt has ``PROMPT_TOKENS``, and the model is on the meta device.
    """
    model.eval()
    with torch.no_grad(), _FuseAttention(), counting(model) as counter:
        prompts = _prompts(model, 1)
        kept = model.abilities.cache.cache_numbers_per_token if model.abilities.cache is not None else 0
        # What is kept for the whole answer; the prompt's pass is the largest.
        cache = torch.empty(prompts.shape[1] + new_tokens, kept, dtype=model.dtype, device="meta")
        model.language_model(prompts, torch.ones(prompts.shape[:2], dtype=torch.long, device="meta"))
        del cache
    experts = experts_peak(model, 1) if experts is None else experts
    return Memory(weight_bytes(model), 0, 0, max(experts, counter.peak))


def step_peak(model: LyricsModel, stage: str, batch_size: int) -> int:
    """Return the most that a step's forward and backward pass hold at one moment, gradients included."""
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    try:
        with _FuseAttention(), counting(model) as counter:
            step_loss(model, stage, batch_size).backward()
        return counter.peak
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        model.eval()


def step_loss(model: LyricsModel, stage: str, batch_size: int) -> torch.Tensor:
    """Return the loss of the step that is counted, on the model's device; its features are zeros."""
    return {"pretrain": _pretraining, "instruct": _instruction}[stage](model, batch_size)


def _pretraining(model: LyricsModel, batch_size: int) -> torch.Tensor:
    reader = model.abilities.text
    special = SpecialTokens.none() if reader is None else SpecialTokens.from_tokenizer(reader.tokenizer)
    spatial_tokens, caption_tokens = (min(number, _longest(model)) for number in (SPATIAL_TOKENS, CAPTION_TOKENS))
    spatial = Spatial.from_objects([[[[7]] * (spatial_tokens // OBJECTS)] * OBJECTS] * batch_size)
    caption = Text.from_lists([[7] * caption_tokens] * batch_size)
    batch = PretrainBatch(spatial, caption, torch.arange(batch_size), special)
    shifted = (torch.arange(batch_size) + 1) % batch_size
    negatives = (
        Negatives(shifted, shifted)
        if batch_size > 1
        else Negatives(-torch.ones_like(shifted), -torch.ones_like(shifted))
    )
    losses = pretrain_losses(model.query_transformer, model.losses, features_like(model, batch_size), batch, negatives)
    return total_loss(losses)[0]


def _instruction(model: LyricsModel, batch_size: int) -> torch.Tensor:
    prompts = _prompts(model, batch_size)
    logits = model.language_model(prompts, torch.ones(prompts.shape[:2], dtype=torch.long, device=prompts.device))
    return F.cross_entropy(
        logits[:, -CAPTION_TOKENS:].flatten(0, 1).float(), _no_ids(model, batch_size * CAPTION_TOKENS)
    )


def _no_ids(model: LyricsModel, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device=model.device)


def _prompts(model: LyricsModel, batch_size: int) -> torch.Tensor:
    """Return prompts as the model assembles them, from images whose features are not there: embeddings [B,L,D]."""
    longest = _longest(model)
    spatial, instruction = [7] * min(SPATIAL_TOKENS, longest), [7] * min(CAPTION_TOKENS, longest)
    stream = model.stage2_stream([spatial] * batch_size, [instruction] * batch_size)
    outputs = model.query_transformer([stream], features_like(model, batch_size))
    queries = torch.cat([outputs(stream.name, segment) for segment in stream.wanted], dim=1)
    soft = model.projection(queries)
    words = max(1, min(PROMPT_TOKENS, model.language_model.max_positions) - soft.shape[1])
    return torch.cat([soft, model.language_model.embed(_no_ids(model, batch_size, words)).to(soft.dtype)], dim=1)


def _longest(model: LyricsModel) -> int:
    """Tokens of a text that the query transformer reads at most, without the two that stand around it."""
    return 0 if model.abilities.text is None else model.abilities.text.max_positions - 2


def features_like(model: LyricsModel, batch_size: int) -> Features:
    """Return zeros of the shapes that the encoder and the refiner give, on the model's device."""
    preprocessing = model.encoder.preprocessing
    side = preprocessing.crop or preprocessing.size
    with torch.set_grad_enabled(model.trains_encoder and torch.is_grad_enabled()):
        tokens = model.encoder(torch.zeros(batch_size, 3, side, side, device=model.device, dtype=model.dtype))
    local: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    sources = {} if model.refiner is None else model.refiner.local_sources
    for source, expert in sources.items():
        rows = expert.num_tokens if isinstance(expert, WithNumTokens) else OBJECTS
        local[source] = (
            torch.zeros(batch_size, rows, expert.feature_dim, device=model.device, dtype=model.dtype),
            torch.ones(batch_size, rows, dtype=torch.bool, device=model.device),
        )
    return Features(tokens.to(model.dtype), local)


def experts_peak(model: LyricsModel, batch_size: int) -> int:
    """Return the most that any frozen expert holds at one moment."""
    peaks = [0]
    for expert in _experts(model).values():
        with torch.no_grad(), _FuseAttention(), counting(expert) as counter, contextlib.suppress(Exception):
            # On the meta device an expert stops where it looks at a value; what it held until then is counted.
            expert(model, batch_size)
        peaks.append(counter.peak)
    return max(peaks)


class _Run(torch.nn.Module):
    def __init__(self, expert: Expert, call: Callable[[Any, ImageBatch], object]) -> None:
        super().__init__()
        self.expert, self.call = expert, call

    def forward(self, model: LyricsModel, batch_size: int) -> None:
        preprocessing = self.expert.preprocessing
        side = preprocessing.pad_to or preprocessing.crop or preprocessing.size
        pixels = torch.empty(batch_size, 3, side, side, device="meta", dtype=model.dtype)
        self.call(self.expert, ImageBatch(pixels, (Frame.of(side, side),) * batch_size))


def _experts(model: LyricsModel) -> dict[str, _Run]:
    found = {"image_encoder": _Run(model.encoder, lambda expert, images: expert(images.pixels_BCHW))}
    experts = model.refiner.experts if model.refiner is not None else {}
    calls: dict[str, Callable[[Any, ImageBatch], object]] = {
        "tagger": lambda expert, images: expert(images),
        "detector": lambda expert, images: expert(images, [["thing"] * OBJECTS] * len(images)),
        "segmenter": lambda expert, images: expert(images, [[Box(0, 0, 1, 1)] * OBJECTS] * len(images)),
    }
    return found | {name: _Run(expert, calls[name]) for name, expert in experts.items()}


@dataclass(frozen=True)
class MemoryRow:
    """What one way of using a model needs: ``use`` is ``answering``, ``stage 1`` or ``stage 2``."""

    use: str
    precision: str
    memory: Memory


# NF4 with one fp32 factor for every 64 weights.
_BYTES_4BIT = 0.5 + 4 / 64


def memory_table(model: LyricsModel, batch_size: int = 1) -> list[MemoryRow]:
    """Return what answering and both stages need in fp32, in bf16, and with the language model in 4 bits.

    With 4 bits, what is around the language model is bf16, and of it nothing is trained but LoRA.

    ``model`` is on the meta device, in fp32 or a type of two bytes; it is run once, and the other precisions follow
    from their width.
    """
    alone = experts_peak(model, 1)
    found = {"answering": inference_memory(model, experts=alone)}
    experts = alone if batch_size == 1 else experts_peak(model, batch_size)
    if model.objectives:
        found["stage 1"] = training_memory(model, "pretrain", batch_size, experts)
    found["stage 2"] = training_memory(model, "instruct", batch_size, experts)
    rows = []
    for precision, width in (("fp32", 4), ("bf16", 2)):
        ratio = width / model.dtype.itemsize
        rows += [
            MemoryRow(
                use,
                precision,
                replace(
                    memory,
                    weights=int(memory.weights * ratio),
                    gradients=int(memory.gradients * ratio),
                    working=int(memory.working * ratio),
                ),
            )
            for use, memory in found.items()
        ]
    in_4bit = model.abilities.in_4bit
    if in_4bit is not None and model.language_model.adaptation != "full":
        saved = int(in_4bit.weights_in_4bit() * (2 - _BYTES_4BIT))
        rows += [
            MemoryRow(row.use, "4-bit", replace(row.memory, weights=row.memory.weights - saved))
            for row in rows
            if row.precision == "bf16"
        ]
    return rows
