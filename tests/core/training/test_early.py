"""What is made of batches before their step: by workers where findings are known, else on a GPU's second stream."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lyrics.core.data.collate import Collator, PretrainExamples
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.training import early as early_module
from lyrics.core.training.ahead import Ahead, ImagesToDevice
from lyrics.core.training.assemble import run
from lyrics.core.training.early import Early, LooksAhead, all_of
from tests.core.small import small
from tests.core.test_model_steps import BLUE, RED, example, made
from tests.core.training.runs import losses, trained
from tests.core.training.test_assemble import settings

OBJECTIVES = {name: name for name in ("itc", "itm", "icg", "msp")}


def config_of(model: LyricsModel, stage: str = "pretrain") -> Any:
    config = settings(Path("never"), stage)
    return config.model_copy(update={"model": config.model.model_copy(update={"spec": model.spec})})


def early_of(model: LyricsModel, stage: Any = "pretrain", **options: Any) -> Early:
    return Early.of(Collator(stage, model.processor, seed=0, **options), model, config_of(model, stage))


@pytest.fixture(scope="module")
def looking() -> LyricsModel:
    """A model whose experts look for themselves."""
    torch.manual_seed(0)
    return build_model(small(objectives=OBJECTIVES), weights="random").train()


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_run_is_the_same_to_the_bit_whoever_looks_and_lays_out(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {
        "model__spec__query_transformer__options__hidden_dropout": 0.1,
        "model__spec__query_transformer__options__attention_dropout": 0.1,
        "optimization__steps": 2,
    }
    run(settings(tmp_path / "worker", stage, data__workers=1, **dropout))
    monkeypatch.setattr(early_module.Early, "__call__", lambda self, examples: self.collate(examples))
    run(settings(tmp_path / "step", stage, **dropout))
    assert losses(tmp_path / "worker") == losses(tmp_path / "step")
    assert trained(tmp_path / "worker") == trained(tmp_path / "step")


def test_workers_look_up_and_lay_out_and_the_step_does_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(query_transformer__options__hidden_dropout=0.1).train()
    early = pickle.loads(pickle.dumps(early_of(model)))
    batch = pickle.loads(pickle.dumps(early([example(0), example(1, ()), example(2, (RED,))])))
    assert batch.images.seen is not None
    assert [[one.tag for one in objects] for objects in batch.images.seen.objects] == [
        [RED.tag, BLUE.tag],
        [],
        [RED.tag],
    ]
    assert batch.ahead.planned is not None
    assert list(batch.images.by_expert) == ["image_encoder"]
    plain = Collator("pretrain", model.processor, seed=0)([example(0), example(1, ()), example(2, (RED,))])
    found = []
    for one in (batch, plain):
        if one is batch:

            def refuse(*args: Any, **kwargs: Any) -> None:
                raise AssertionError("this was done before")

            monkeypatch.setattr(type(model.texts), "batch", refuse)
            monkeypatch.setattr(VisualRefiner, "_what_the_detector_knows", refuse)
        torch.manual_seed(3)
        found.append({n: (loss.sum.item(), loss.count) for n, loss in _step(model, one).items()})
        monkeypatch.undo()
    assert found[0] == found[1]
    # Draws of another step are drawn in that step.
    torch.manual_seed(3)
    other = {n: loss.sum.item() for n, loss in model.pretraining_step(batch, seed=0, step=7).items()}
    torch.manual_seed(3)
    assert other == {n: loss.sum.item() for n, loss in model.pretraining_step(plain, seed=0, step=7).items()}


def _step(model: LyricsModel, batch: PretrainExamples) -> Any:
    return model.pretraining_step(batch, seed=0, step=0)


def test_experts_that_look_for_themselves_are_left_to_the_step(looking: LyricsModel) -> None:
    early = early_of(looking)
    batch = early([example(0), example(1)])
    assert early.looks_up is None
    assert (batch.images.seen, batch.ahead) == (None, None)
    assert early.with_texts("another batch") == "another batch"


def test_without_a_refiner_texts_are_known_too() -> None:
    model = build_model(small(objectives=OBJECTIVES, refiner=None), weights="random").train()
    batch = early_of(model)([example(0), example(1)])
    assert batch.ahead.planned is not None
    plain = Collator("pretrain", model.processor, seed=0)([example(0), example(1)])
    found = []
    for one in (batch, plain):
        torch.manual_seed(0)
        found.append({name: loss.sum.item() for name, loss in _step(model, one).items()})
    assert found[0] == found[1]


def looks(model: LyricsModel, said: list[str], retries: Any = lambda: 0) -> LooksAhead:
    return LooksAhead(model, contextlib.nullcontext, retries, said.append)


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_what_is_seen_ahead_is_what_the_step_would_have_seen(looking: LyricsModel, stage: str) -> None:
    early = early_of(looking, stage)
    said: list[str] = []
    plain = early([example(0), example(1), example(2)])
    ahead = all_of([looks(looking, said), early.with_texts])(plain)
    assert ahead.images.seen is not None
    assert list(ahead.images.by_expert) == ["image_encoder"]
    assert looks(looking, said)(ahead) is ahead, "once is enough"
    one, other = (looking.features(batch.images.to("cpu")) for batch in (plain, ahead))
    assert one[1] == other[1]
    for source, (tokens, mask) in one[0].local.items():
        assert torch.equal(tokens, other[0].local[source][0])
        assert torch.equal(mask, other[0].local[source][1])
    if stage == "pretrain":
        assert ahead.ahead is not None
        found = []
        for batch in (plain, ahead):
            torch.manual_seed(1)
            found.append({name: loss.sum.item() for name, loss in _step(looking, batch).items()})
        assert found[0] == found[1]
    assert said == []


def test_where_memory_is_short_the_step_looks(looking: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = early_of(looking)([example(0)])
    said: list[str] = []
    retried = iter([3, 3, 4, 3])
    one = looks(looking, said, lambda: next(retried))
    assert one(batch).images.seen is not None
    assert one(batch) is batch, "an allocation had to be tried again"
    assert one(batch) is batch
    assert len(said) == 1
    assert "memory is short" in said[0]

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    other = looks(looking, said)
    monkeypatch.setattr(VisualRefiner, "refine", full)
    assert other(batch) is batch
    monkeypatch.undo()
    assert other(batch) is batch
    assert len(said) == 2


class FakeStream:
    """Of a device that does everything at once: it notes who waits for whom."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def wait_stream(self, other: FakeStream) -> None:
        self.order.append(f"{self.name} waits for {other.name}")


def test_on_a_second_stream_images_go_are_looked_at_and_laid_out(
    looking: LyricsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    main, side = FakeStream("main", order), FakeStream("side", order)
    current = [main]

    @contextlib.contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append(tensor))
    refine = VisualRefiner.refine

    def noted(self: VisualRefiner, *args: Any) -> Any:
        order.append(f"refiner on {current[-1].name}")
        return refine(self, *args)

    monkeypatch.setattr(VisualRefiner, "refine", noted)
    early = early_of(looking)
    early_batches = [[early([example(n), example(n + 1)])] for n in range(2)]
    said: list[str] = []
    sender = ImagesToDevice(
        iter([(batches, 0.0) for batches in early_batches]),
        torch.device("cpu"),
        all_of([looks(looking, said), early.with_texts]),
    )
    ahead = Ahead(iter(sender))
    for number, (batches, _) in enumerate(ahead):
        sender.arrived(batches)
        order.append(f"step {number}")
        ahead.fetch()
        assert batches[0].ahead is not None
    assert order == [
        "side waits for main",
        *("refiner on side", "main waits for side", "step 0"),
        *("refiner on side", "main waits for side", "step 1"),
    ]
    sent = [tensor.data_ptr() for tensor in batches[0].images.tensors()]
    assert {tensor.data_ptr() for tensor in kept[-len(sent) :]} == set(sent), "local tokens are not freed too early"
    assert len(sent) == 1 + 2 * len(batches[0].images.seen.local)


def test_two_micro_batches_have_ahead_what_is_theirs() -> None:
    model = made().train()
    early = early_of(model)
    whole = [example(n) for n in range(8, 12)]
    first, second = early(whole[:2]), early(whole[2:])
    assert {one.ahead.batch.step for one in (first, second)} == {1}
    assert second.ahead.batch.sample_B.tolist() == [10, 11]
