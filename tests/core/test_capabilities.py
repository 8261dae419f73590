"""What a component declares decides, not its name: the parts of a stranger."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import PluginError, SpecError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.registry import registry as loaded
from lyrics.core.registry.component import Component, NoOptions, Vocabulary, hookimpl
from lyrics.core.registry.registry import PluginSource, Registry, default_registry
from lyrics.core.resolve import declaring
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import Similarity
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Stream, StreamOutputs, full
from lyrics.core.training.assemble import read_refined
from lyrics.core.training.loop import check_negatives
from lyrics.workflows.ablations.variants import check_looks
from tests.core.small import drawn, small


class Contrast(nn.Module):
    """Compares images with each other."""

    def __init__(self, options: NoOptions, context: BuildContext) -> None:
        super().__init__()

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        rows = torch.arange(len(batch))
        return [Stream("images", full("V"), batch.sample_B, rows, wanted={"V": "all"})]

    def similarity(self, outputs: StreamOutputs, batch: PretrainBatch) -> Similarity:
        pooled_BD = outputs("images", "V").mean(1)
        return Similarity(pooled_BD @ pooled_BD.T, pooled_BD @ pooled_BD.T)

    def loss(self, state: StepState) -> Loss:
        assert state.similarity is not None
        return Loss(state.similarity.image_to_text_BN.logsumexp(1).sum(), len(state.batch))


class Plugin:
    def __init__(self, contrast: tuple[Any, ...] = ("compares_across_batch",)) -> None:
        self.contrast = contrast

    @hookimpl
    def lyrics_components(self) -> Iterable[Component]:
        yield Component("objective", "acme-contrast", f"{__name__}:Contrast", capabilities=self.contrast)
        for kind in ("tagger", "detector"):
            record = default_registry().component(kind, "cached").component
            yield Component(
                kind,  # type: ignore[arg-type]
                "acme-reader",
                record.build,
                options=record.options,
                capabilities=("reads_known_objects",),
            )

    @hookimpl
    def lyrics_vocabularies(self) -> Iterable[Vocabulary]:
        yield Vocabulary("acme-words", f"{__name__}:words")


def words() -> list[tuple[str, ...]]:
    return [("what", "dog", "tram")]


def strangers(plugin: Plugin) -> Registry:
    ours = [(found.source, lambda found=found: Again(found)) for found in default_registry().plugins]
    return Registry([*ours, (PluginSource("acme-parts", "1.0", "acme"), lambda: plugin)])


class Again:
    """The components and vocabularies of a plugin that was loaded already."""

    def __init__(self, plugin: loaded.Plugin) -> None:
        self.components, self.vocabularies = plugin.components, plugin.vocabularies

    @hookimpl
    def lyrics_components(self) -> Iterable[Component]:
        return self.components

    @hookimpl
    def lyrics_vocabularies(self) -> Iterable[Vocabulary]:
        return self.vocabularies


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with the stranger's parts, as if they were installed."""
    found = strangers(Plugin())
    monkeypatch.setattr("lyrics.core.resolve.default_registry", lambda: found)
    return found


def config(tmp_path: Path, registry: Registry, **changes: Any) -> TrainConfig:
    base = {
        "stage": "pretrain",
        "out": str(tmp_path / "run"),
        "model": {"spec": small().model_dump(mode="json"), "weights": "random"},
        "data": {"sets": {"scenes": "scenes"}},
        "optimization": {"steps": 1, "global_batch": 8, "micro_batch": 4},
    }
    overrides = {path.replace("__", "."): value for path, value in changes.items()}
    return load_config(base, overrides, registry=registry)


def test_a_strangers_contrastive_loss_is_caught_by_the_check_of_negatives(tmp_path: Path, registry: Registry) -> None:
    found = config(tmp_path, registry, model__spec__objectives={"mine": "acme-contrast"})
    with pytest.raises(SpecError, match="the loss 'mine' compares every sample"):
        check_negatives(found, 2)
    check_negatives(found, 1)
    check_negatives(config(tmp_path, registry, model__spec__objectives={"mine": "icg"}), 2)
    accepted = {"model__spec__objectives": {"mine": "acme-contrast"}, "optimization__itc_negatives": "micro-batch"}
    check_negatives(config(tmp_path, registry, **accepted), 2)


def test_similarity_that_is_not_declared_is_a_broken_promise() -> None:
    with pytest.raises(PluginError, match="does not declare the capability compares_across_batch"):
        build_model(
            small(), overrides={"objectives": {"a": "acme-contrast"}}, weights="random", registry=strangers(Plugin(()))
        )
    registry = strangers(Plugin())
    model = build_model(small(), overrides={"objectives": {"a": "acme-contrast"}}, weights="random", registry=registry)
    assert list(model.losses) == ["a"]


def test_a_strangers_annotation_reader_is_accepted_by_refined(tmp_path: Path, registry: Registry) -> None:
    file = tmp_path / "objects.jsonl"
    file.write_text("")
    changes = {"data__refined": str(file), "model__spec__refiner__detector": "acme-reader"}
    assert read_refined(config(tmp_path, registry, **changes)) == {}
    with pytest.raises(SpecError, match=r"no part of the refiner reads stored objects.*cached"):
        read_refined(config(tmp_path, registry, data__refined=str(file)))


def test_a_strangers_annotation_reader_does_not_look_at_blank_images(tmp_path: Path, registry: Registry) -> None:
    spec = config(tmp_path, registry, model__spec__refiner__detector="acme-reader").model.spec
    assert declaring(spec, "reads_known_objects") == ("refiner.detector",)
    with pytest.raises(SpecError, match=r"refiner.detector is 'acme-reader', which reads stored objects"):
        check_looks(spec, "w/o ODM", ["detector"])


def test_a_strangers_vocabulary_is_read_with_saved_and_loaded(tmp_path: Path, registry: Registry) -> None:
    """Its own words are one token each, and come first; those of ``words`` are bytes to it."""
    wanted = {
        "query_transformer.options.builtin_tokenizer": "acme-words",
        "query_transformer.options.vocab_size": 1344,
        "language_model.options.builtin_tokenizer": "acme-parts/acme-words",
        "language_model.options.vocab_size": 1344,
    }
    model = build_model(small(), overrides=wanted, weights="random", registry=registry)
    readers = (model.query_transformer, model.language_model)
    for reader in readers:
        ids = {text: reader.tokenizer(text, add_special_tokens=False).input_ids for text in (" tram", " circle")}
        assert [len(ids[text]) for text in (" tram", " circle")] == [1, len(" circle")]
    model.save_pretrained(tmp_path)
    again = LyricsModel.from_pretrained(tmp_path)
    answers = [one.generate(drawn(), "what tram", max_new_tokens=4).text for one in (model, again)]
    assert answers[0] == answers[1]
    with pytest.raises(
        SpecError, match=r"builtin_tokenizer: no vocabulary named 'acme-wrods'\. Did you mean 'acme-words'"
    ):
        build_model(small(), overrides={"query_transformer.options.builtin_tokenizer": "acme-wrods"}, registry=registry)


def test_an_unknown_capability_is_a_failure_of_its_record() -> None:
    registry = strangers(Plugin(("flies",)))
    (failure,) = [one for plugin in registry.plugins for one in plugin.failures]
    assert failure.cause.startswith("objective 'acme-contrast': capabilities must be a tuple of compares_across_batch,")
