"""What is made of a batch before its step begins, by the loader's workers or beside what the device computes.

Three things need nothing that the step before changes: what frozen experts find in the images, the texts that follow
from it, and the tables of the first pass over these texts. Where experts look their findings up (``data.refined``), or
these were stored (``data.features``), or there are none, workers make all three. Otherwise a GPU looks at the next
step's images while it computes this one's, on a stream of its own, and the texts follow on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from lyrics.core.composed import ComposedModel
from lyrics.core.contracts import Objective, WithNumTokens
from lyrics.core.data.collate import InstructionExamples, PretrainExamples
from lyrics.core.pictures.model_inputs import ModelImages, SeenTogether
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.refiner import RefinerOutput, VisualRefiner
from lyrics.core.resolve import declaring
from lyrics.core.stage1.texts import PreparesSteps, twin

if TYPE_CHECKING:
    from lyrics.core.runs.config import TrainConfig


@dataclass(frozen=True, eq=False)
class Early:
    """A loader's ``collate`` with what can be made early of its batches; may be pickled.

    Args:
        collate: examples -> a batch.
        looks_up: a refiner on the host all of whose experts look their findings up; None where they look for
            themselves.
        sees_nothing: there is no refiner.
        steps: prepares texts and tables of stage 1; None where that cannot be done.
    """

    collate: Callable[[list[Any]], Any]
    looks_up: VisualRefiner | None = None
    sees_nothing: bool = False
    steps: PreparesSteps | None = None

    @classmethod
    def of(cls, collate: Callable[[list[Any]], Any], model: Any, config: TrainConfig) -> Early:
        """For a model as it is trained: on its device, in training mode, under its autocast."""
        if not isinstance(model, ComposedModel):
            return cls(collate)
        refiner = model.refiner
        known = set(declaring(model.spec, "reads_known_objects"))
        looks_up = refiner is not None and refiner.experts and {f"refiner.{name}" for name in refiner.experts} <= known
        steps = _steps(model, config) if config.stage == "pretrain" and model.objectives else None
        return cls(collate, twin(refiner, "cpu") if refiner is not None and looks_up else None, refiner is None, steps)

    def __call__(self, examples: list[Any]) -> Any:
        batch = self.collate(examples)
        if self.looks_up is not None and isinstance(batch, PretrainExamples | InstructionExamples):
            own = {name: batch.images.by_expert[name] for name in self.looks_up.experts}
            found = self.looks_up.refine(replace(batch.images, by_expert=own))
            batch = replace(batch, images=seen_by(batch.images, found))
        return self.with_texts(batch)

    def with_texts(self, batch: Any) -> Any:
        """The batch with its texts and tables, where it is known what was found in its images."""
        if self.steps is None or not isinstance(batch, PretrainExamples) or batch.ahead is not None:
            return batch
        images, seen = batch.images, batch.images.seen
        if seen is not None:
            tokens = {source: int(own.shape[1]) for source, (own, _) in seen.local.items()}
            found = tuple(map(Refinement, images.sizes_px, seen.tags, seen.objects, images.names))
        elif self.sees_nothing:
            tokens = {}
            found = tuple(Refinement(size, name=name) for size, name in zip(images.sizes_px, images.names, strict=True))
        else:
            return batch
        ahead = self.steps(found, batch.captions, batch.positions, batch.image_ids, tokens)
        return replace(batch, ahead=ahead)


def findings_are_known(config: TrainConfig) -> bool:
    """Whether workers know what the refiner of a configuration finds, so that they prepare texts and tables."""
    spec = config.model.spec
    if spec.refiner is None or config.data.features is not None:
        return True
    experts = {path for path, _, _ in spec.slots() if path.startswith("refiner.")}
    return bool(experts) and experts <= set(declaring(spec, "reads_known_objects"))


def _steps(model: ComposedModel, config: TrainConfig) -> PreparesSteps:
    planner = None
    if model.abilities.ahead is not None and isinstance(model.encoder, WithNumTokens):
        planner = model.abilities.ahead.planner(model.encoder.num_tokens)
    twins = {name: twin(model.objectives[name], "meta").train() for name in model.computed_losses()}
    return PreparesSteps(
        model.texts, cast(dict[str, Objective], twins), planner, config.seed, config.optimization.global_batch
    )


def seen_by(images: ModelImages, found: RefinerOutput) -> ModelImages:
    """The images with what a refiner found in them; it is not asked again, and its experts' pixels are let go."""
    own = {name: batch for name, batch in images.by_expert.items() if name == "image_encoder"}
    tags, objects = (tuple(getattr(one, what) for one in found.refinements) for what in ("tags", "objects"))
    return replace(images, by_expert=own, seen=SeenTogether(tags, objects, found.local))


class LooksAhead:
    """Has the refiner look at a batch's images before its step, on the current stream of a device.

    Where memory is short (an allocation fails, or had to be tried again since the run began), it looks no longer: the
    step does so itself, and what the device keeps for another stream is free again.

    Args:
        model: whose refiner looks; its images are brought to the model's device and type.
        autocast: as in the step.
        retries: how many allocations of the device had to be tried again so far.
        say: told once if memory is short.
    """

    def __init__(
        self,
        model: ComposedModel,
        autocast: Callable[[], AbstractContextManager[Any]],
        retries: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self.model, self.autocast, self.retries, self.say = model, autocast, retries, say
        self.began_with = retries()
        self.short = False

    def __call__(self, batch: Any) -> Any:
        refiner = self.model.refiner
        if self.short or refiner is None or not refiner.experts or batch.images.seen is not None:
            return batch
        if not len(batch.images):
            return batch
        if self.retries() > self.began_with:
            return self._short(batch)
        try:
            with self.autocast():
                found = refiner.refine(batch.images.to(self.model.device, self.model.dtype))
        except torch.OutOfMemoryError:
            return self._short(batch)
        return replace(batch, images=seen_by(batch.images, found))

    def _short(self, batch: Any) -> Any:
        self.short = True
        self.say("memory is short: the refiner looks at a step's images in that step, not beside the one before")
        return batch


def looks_ahead(
    model: Any, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]], say: Callable[[str], None]
) -> LooksAhead | None:
    """Return what looks ahead on a GPU; None where nothing is gained by it."""
    if device.type != "cuda" or not isinstance(model, ComposedModel):
        return None

    def retries() -> int:
        return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))

    return LooksAhead(model, autocast, retries, say)


def all_of(makers: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One after another."""

    def make(batch: Any) -> Any:
        for one in makers:
            batch = one(batch)
        return batch

    return make
