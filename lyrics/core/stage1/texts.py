"""What a stage-1 step can have ready before it begins: texts as token ids, and its first pass laid out.

Once it is known what the refiner found, neither needs a device. So a loader's worker makes them where findings are
stored, and the process that trains does, beside the device's work, where they were made a step earlier.

Letters: B samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from lyrics.core.contracts import Objective, Planned, ReadsText
from lyrics.core.language.prompts import encode_texts
from lyrics.core.language.spatial_tokens import object_tokens
from lyrics.core.language.text_boxes import box_marks, find_regions
from lyrics.core.refining.refinement import Refinement
from lyrics.core.stage1.batch import ObjectTokens, PretrainBatch, Spatial
from lyrics.core.stage1.streams import SpecialTokens, Stream, Text, merge
from lyrics.kernels.host_work import host_work

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Texts:
    """How objects and captions become a query transformer's token ids; nothing becomes any for one without text.

    Two of its positions are left for special tokens.
    """

    tokenizer: Any
    codec: str
    longest: int

    @classmethod
    def of(cls, reader: ReadsText | None, codec: str) -> Texts:
        return cls(None, codec, 0) if reader is None else cls(reader.tokenizer, codec, reader.max_positions - 2)

    @host_work("tokenize objects")
    def objects(self, refinements: Sequence[Refinement]) -> ObjectTokens:
        """Return each image's objects as token ids."""
        if self.tokenizer is None:
            return ObjectTokens.none(len(refinements))
        seen = [(found.objects, found.size_px) for found in refinements]
        return object_tokens(seen, self.tokenizer, self.codec, self.longest)

    @host_work("tokenize captions")
    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the same of texts, cut where the query transformer's positions end."""
        if self.tokenizer is None:
            return [[] for _ in texts]
        return [ids[: self.longest] for ids in encode_texts(self.tokenizer, texts)]

    def special(self) -> SpecialTokens:
        return SpecialTokens.none() if self.tokenizer is None else SpecialTokens.from_tokenizer(self.tokenizer)

    def batch(
        self,
        refinements: Sequence[Refinement],
        captions: Sequence[str],
        positions: Sequence[int],
        image_ids: Sequence[int],
        seed: int,
        step: int,
        kinds: Callable[[ObjectTokens], Sequence[Sequence[Sequence[int]]]] | None = None,
    ) -> PretrainBatch:
        """Return what the objectives read of B samples beside their features.

        ``kinds`` gives, for the tokens of the objects, what each is, for measurements.
        """
        objects, caption = self.objects(refinements), Text.from_lists(self.words(captions))
        marks = None if self.tokenizer is None else box_marks(self.tokenizer)
        return PretrainBatch(
            Spatial.from_tokens(objects, None if kinds is None else kinds(objects)),
            caption,
            torch.tensor(positions, dtype=torch.int64),
            self.special(),
            seed,
            step,
            torch.tensor(image_ids, dtype=torch.int64),
            None if marks is None else find_regions(caption, marks),
        )


@host_work("lay out")
def first_streams(objectives: Mapping[str, Objective], batch: PretrainBatch) -> list[Stream]:
    """Return the streams of the first pass."""
    return merge([stream for objective in objectives.values() for stream in objective.streams(batch)])


@dataclass(frozen=True, eq=False)
class StepTexts:
    """Texts of a step, and its first pass as the query transformer's planner laid it out, where it has one."""

    batch: PretrainBatch
    planned: Planned | None

    def is_of(self, seed: int, step: int) -> bool:
        """Whether the random draws are those of this step."""
        return (self.batch.seed, self.batch.step) == (seed, step)

    def pin_memory(self) -> StepTexts:
        """Called by a loader whose batches go to a GPU."""
        return self if self.planned is None else replace(self, planned=self.planned.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        # The many small tensors of a step go in one piece, not each through shared memory of its own.
        return _unfolded, (_each_leaf((self.batch, self.planned), _fold),)


@dataclass(frozen=True, eq=False)
class _Folded:
    """A tensor on the way to another process."""

    values: np.ndarray


def _fold(leaf: Any) -> Any:
    return _Folded(leaf.numpy()) if type(leaf) is torch.Tensor else leaf


def _unfolded(both: tuple[Any, Any]) -> StepTexts:
    def unfold(leaf: Any) -> Any:
        return torch.from_numpy(leaf.values) if isinstance(leaf, _Folded) else leaf

    return StepTexts(*_each_leaf(both, unfold))


def _each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with every leaf changed: what is no data class, mapping, tuple or list of others."""
    if isinstance(value, _Folded):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {one.name: getattr(value, one.name) for one in fields(value)}
        return replace(value, **{name: _each_leaf(one, change) for name, one in own.items()})
    if isinstance(value, Mapping):
        return {key: _each_leaf(one, change) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_each_leaf(one, change) for one in value)
    return change(value)


@dataclass(frozen=True, eq=False)
class PreparesSteps:
    """Makes ``StepTexts`` of what a refiner found; may be pickled.

    Args:
        texts: of the query transformer.
        objectives: copies on the meta device (``twin``), in training mode.
        planner: the query transformer's (``PlansAhead``), or None.
        seed: of the run.
        global_batch: samples of a step over all ranks: a sample's position in the data order says its step.
    """

    texts: Texts
    objectives: Mapping[str, Objective]
    planner: Callable[[Sequence[Stream], int, Mapping[str, int]], Planned] | None
    seed: int
    global_batch: int

    def __call__(
        self,
        refinements: Sequence[Refinement],
        captions: Sequence[str],
        positions: Sequence[int],
        image_ids: Sequence[int],
        local_tokens: Mapping[str, int],
    ) -> StepTexts:
        """``local_tokens``: how many of each source an image has, padding included."""
        step = positions[0] // self.global_batch
        batch = self.texts.batch(refinements, captions, positions, image_ids, self.seed, step)
        if self.planner is None:
            return StepTexts(batch, None)
        return StepTexts(batch, self.planner(first_streams(self.objectives, batch), len(batch), local_tokens))


def twin(module: T, device: str) -> T:
    """Return a copy of a module whose tensors are on another device; all else it has is shared.

    On the meta device it has no values, and costs nothing.
    """
    found: Any = copy.copy(module)
    for name in ("_parameters", "_buffers"):
        tensors = getattr(module, name).items()
        setattr(found, name, {key: None if one is None else one.detach().to(device) for key, one in tensors})
    children = found._modules.items()
    found._modules = {key: None if one is None else twin(one, device) for key, one in children}
    made: T = found
    return made
