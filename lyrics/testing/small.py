"""A whole small model around one component, and batches for it: what the checks train, save, load, count and ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.registry.component import Component, Vocabulary, hookimpl
from lyrics.core.registry.registry import Entry, PluginSource, Registry, default_registry
from lyrics.core.resolve import Part, declared_segments
from lyrics.core.spec import ModelSpec, ObjectiveSlot, RefinerSpec, Slot
from lyrics.core.types import Sample, Turn
from lyrics.testing.base import no_network
from lyrics.testing.tools import noise

if TYPE_CHECKING:
    import torch

    from lyrics.core.data.stream import Example
    from lyrics.core.model import LyricsModel

_SOURCE = PluginSource("lyrics-testing", "1", "parts", __name__)
PARTS = {
    "image_encoder": Component("image-encoder", "small", "lyrics.testing.parts:Encoder"),
    "refiner.tagger": Component("tagger", "small", "lyrics.testing.parts:FixedTagger"),
    "refiner.detector": Component("detector", "small", "lyrics.testing.parts:FixedDetector"),
    "refiner.segmenter": Component("segmenter", "small", "lyrics.testing.parts:FixedSegmenter"),
    "query_transformer": Component("query-transformer", "small", "lyrics.testing.parts:Resampler"),
    "language_model": Component("language-model", "small", "lyrics.testing.parts:WordModel"),
}
#: With this seed some of the objects of ``examples`` are masked.
SEED = 1
SIZE = 4


class Provides:
    """A plugin of given components and vocabularies."""

    def __init__(self, components: Iterable[Component], vocabularies: Iterable[Vocabulary] = ()) -> None:
        self.components, self.vocabularies = tuple(components), tuple(vocabularies)

    @hookimpl
    def lyrics_components(self) -> Iterable[Component]:
        return self.components

    @hookimpl
    def lyrics_vocabularies(self) -> Iterable[Vocabulary]:
        return self.vocabularies


@dataclass(frozen=True)
class SmallModel:
    """The specification of a model around one part, the components that it names, and the vocabularies there are.

    It can be sent to another process.
    """

    spec: ModelSpec
    entries: tuple[Entry, ...]
    vocabularies: tuple[tuple[Vocabulary, PluginSource], ...] = ()

    @classmethod
    def around(cls, part: Part) -> SmallModel:
        """With every objective of this library that the part allows, if it is a query transformer; else without."""
        entries = [part.entry, *(Entry(component, _SOURCE) for component in PARTS.values())]
        slots = {path: Slot(use=f"{_SOURCE.distribution}/{component.name}") for path, component in PARTS.items()}
        kind = part.entry.component.kind
        path = next(path for path, component in PARTS.items() if component.kind == kind)
        slots[path] = Slot(use=part.entry.qualified_name, options=part.options.model_dump(mode="json"))
        objectives = _objectives(part) if kind == "query-transformer" else ()
        spec = ModelSpec(
            image_encoder=slots["image_encoder"],
            refiner=RefinerSpec(
                tagger=slots["refiner.tagger"],
                detector=slots["refiner.detector"],
                segmenter=slots["refiner.segmenter"],
            ),
            query_transformer=slots["query_transformer"],
            language_model=slots["language_model"],
            objectives={
                entry.component.name: ObjectiveSlot(
                    use=entry.qualified_name, options=dict(entry.component.test_options)
                )
                for entry in objectives
            },
        )
        vocabularies = (part.registry or default_registry()).vocabularies
        return cls(spec, (*entries, *objectives), tuple(vocabularies))

    @property
    def registry(self) -> Registry:
        by_source: dict[PluginSource, list[Component]] = {}
        for entry in self.entries:
            by_source.setdefault(entry.source, []).append(entry.component)
        for _, source in self.vocabularies:
            by_source.setdefault(source, [])
        plugins = {
            source: Provides(found, [one for one, origin in self.vocabularies if origin == source])
            for source, found in by_source.items()
        }
        return Registry([(source, lambda found=found: found) for source, found in plugins.items()])  # type: ignore[misc]

    def build(self, weights: str | Path = "random", seed: int = 0) -> LyricsModel:
        """In evaluation mode, without a network."""
        import torch

        from lyrics.core.loading import build_model

        torch.manual_seed(seed)
        with no_network():
            return build_model(self.spec, weights=weights, registry=self.registry).eval()

    def kept(self, model: LyricsModel) -> LyricsModel:
        """Return the model as it comes back from its folder."""
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return SmallModel(model.spec, self.entries, self.vocabularies).build(folder, seed=1)


def _objectives(part: Part) -> tuple[Entry, ...]:
    """This library's objectives, where the segments of the built query transformer allow them.

    Without those that read boxes in captions, which those here do not have.
    """
    from lyrics.core.build import build_part
    from lyrics.core.contracts import BuildContext
    from lyrics.core.spec import validate

    with no_network():
        segments = build_part(part, BuildContext("random", image_dim=6, image_tokens=4, local_dims={})).segments
    found = []
    for entry in default_registry().entries:
        if entry.component.kind != "objective" or "reads_boxes_in_captions" in entry.component.capabilities:
            continue
        if entry.source.distribution == "lyrics-vl":
            options = validate(dict(entry.component.test_options), entry.component.options)
            needs = declared_segments(Part(entry.component.name, entry, options), "needs_segments") or ()
            if set(needs) <= set(segments):
                found.append(entry)
    return tuple(found)


def examples(start: int = 0, stop: int = SIZE) -> list[Example]:
    """Return samples with an image, a caption and a question each; lengths differ."""
    from lyrics.core.data.stream import Example

    return [
        Example(
            index,
            "small",
            index,
            Sample(
                str(index),
                captions=(f"thing {index} of {'very ' * index}many",),
                turns=(Turn(f"which {'exact ' * index}thing is it?", f"thing {index}"),),
                source=f"small {index}",
            ),
            noise(index),
        )
        for index in range(start, stop)
    ]


def pretraining_losses(model: LyricsModel, start: int = 0, stop: int = SIZE) -> Mapping[str, Any]:
    """Sums and counts of a stage-1 step on samples ``start`` to ``stop``."""
    from lyrics.core.data.collate import Collator, PretrainExamples

    batch = Collator("pretrain", model.processor, seed=SEED, codec=model.spec.codec)(examples(start, stop))
    assert isinstance(batch, PretrainExamples)
    return model.pretraining_step(batch, seed=SEED, step=0)


def instruction_losses(model: LyricsModel) -> Mapping[str, Any]:
    """Sum and count of a stage-2 step."""
    from lyrics.core.data.collate import Collator, InstructionExamples

    batch = Collator("instruct", model.processor, seed=SEED, codec=model.spec.codec)(examples())
    assert isinstance(batch, InstructionExamples)
    return model.instruction_step(batch)


def what_it_computes(model: LyricsModel) -> dict[str, torch.Tensor]:
    """Soft tokens of two images, and the language model's logits after them."""
    import torch

    with torch.no_grad():
        soft_PQD = model.look([noise(0), noise(1)], ["what is it?", "which one is large?"]).soft_tokens_PQD
        ids_BL = torch.tensor([[5, 6, 7], [8, 9, 5]])
        embeddings_BLD = torch.cat([soft_PQD, model.language_model.embed(ids_BL)], dim=1)
        mask_BL = torch.ones(embeddings_BLD.shape[:2], dtype=torch.long)
        return {"soft tokens": soft_PQD, "logits": model.language_model(embeddings_BLD, mask_BL)}


def reached(trained: Mapping[str, torch.nn.Parameter]) -> None:
    """Every one of them has a gradient, all are finite, and some are not 0."""
    import torch

    without = [name for name, parameter in trained.items() if parameter.grad is None]
    assert not without, f"no gradient reaches {', '.join(without[:3])}"
    gradients = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    broken = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    assert not broken, f"the gradient of {', '.join(broken[:3])} is not finite"
    assert any(gradient.any() for gradient in gradients.values()), "all gradients are 0"


def trains_in_stage_2(small: SmallModel) -> None:
    """A step: the loss has terms, and its gradient reaches everything that the stage trains."""
    from lyrics.core.stage1.reduction import total_loss

    model = small.build()
    trained = model.trainable_parameters("instruct")
    losses = instruction_losses(model)
    assert losses["answer"].count, "there is nothing to learn"
    total_loss(losses)[0].backward()
    reached(trained)
    reached({name: parameter for name, parameter in trained.items() if name.startswith("query_transformer.")})


def saves_loads_and_answers(small: SmallModel) -> None:
    """What a model computes after it was saved and loaded is what it computed before, to the bit.

    It answers in both.
    """
    import torch

    model = small.build()
    again = small.kept(model)
    found = what_it_computes(again)
    for name, value in what_it_computes(model).items():
        assert torch.equal(found[name], value), f"{name} differ after saving and loading"
    answers = [one.generate([noise(0)], ["what is it?"], max_new_tokens=3)[0].text for one in (model, again)]
    assert answers[0] == answers[1], f"it answers {answers[0]!r}, and {answers[1]!r} after saving and loading"


def memory_is_counted(small: SmallModel) -> None:
    """What ``lyrics check`` does: parts are summed up, and memory is counted for all uses, without weights."""
    from lyrics.core.inspection.memory import memory_table
    from lyrics.core.inspection.summary import summarize
    from lyrics.core.resolve import resolve

    model = small.build("meta")
    summary = summarize(model, resolve(small.spec, registry=small.registry))
    assert summary.stage2_trainable > 0, "nothing is trained in stage 2"
    uses = {row.use for row in memory_table(model, batch_size=2)}
    assert uses == {"answering", "stage 2"} | ({"stage 1"} if model.objectives else set()), uses
