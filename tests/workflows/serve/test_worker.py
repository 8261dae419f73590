"""The worker: results equal those of one by one, places are freed, and one job's failure is its own."""

from __future__ import annotations

import functools
import queue
import threading
import time
from typing import Any

import pytest
import torch

from lyrics.core.errors import NotFiniteError, PromptError
from lyrics.core.language.generation import decoding
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject
from lyrics.plugins.causal_lm.model import CausalLM
from lyrics.workflows.serve.jobs import Answered, Event, Failed, Refined, RefineJob
from lyrics.workflows.serve.limits import LateError, Limits, QueueFullError, StoppingError
from lyrics.workflows.serve.seen import SeenImages
from lyrics.workflows.serve.worker import Worker
from tests.core.small import drawn
from tests.core.test_model_steps import RED, made
from tests.workflows.serve.helpers import job, last, submitted, until, working

QUESTIONS = ("what is this?", "where is the red circle?", "how many?", "is there a dog in it, and what is it doing?")
IMAGES = (drawn(), drawn(64, 96, "blue"), drawn(120, 120, "green"))


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Tokens come only while this is set, ten a second otherwise."""
    go = threading.Event()
    forward = CausalLM.embed

    def embed(self: Any, ids: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == 1 and not go.is_set():
            time.sleep(0.1)
        return forward(self, ids)

    monkeypatch.setattr(CausalLM, "embed", embed)
    return go


def answered(events: queue.Queue[Event]) -> Answered:
    event, _ = last(events)
    assert isinstance(event, Answered), event
    return event


def failed(events: queue.Queue[Event]) -> Exception:
    event, _ = last(events)
    assert isinstance(event, Failed), event
    return event.error


def cases(count: int) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Questions about one, several or no images, greedy and sampled, of several lengths."""
    found = []
    for number in range(count):
        images = IMAGES[: number % 3] if number % 4 else (IMAGES[number % 3],)
        options = {"temperature": 2.0, "seed": number} if number % 3 == 2 else {}
        found.append((QUESTIONS[number % 4], images, {"max_new_tokens": 3 + number % 12, **options}))
    return found


def alone(model: LyricsModel, question: str, images: Any, options: Any) -> Any:
    return model.generate(list(images) or None, question, **options)


def how_of(options: dict[str, Any]) -> Any:
    rest = {name: value for name, value in options.items() if name not in ("seed", "max_new_tokens")}
    return decoding(rest, max_new_tokens=options["max_new_tokens"], seed=options.get("seed"))


@pytest.mark.parametrize("runs", [True, False])
def test_answers_are_those_of_one_by_one(runs: bool, model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a language model that goes on with prompts together, and of one that writes whole batches."""
    wanted = [alone(model, *case) for case in cases(24)]
    if not runs:
        monkeypatch.setattr(CausalLM, "running", lambda self: None)
    worker = Worker(model, Limits(batch=6, looks=4))
    events = [
        submitted(worker, question, *images, how=how_of(options), follow=number % 2 == 0)[1]
        for number, (question, images, options) in enumerate(cases(24))
    ]
    with working(worker):
        found = [last(one) for one in events]
    for number, ((event, told), answer) in enumerate(zip(found, wanted, strict=True)):
        assert isinstance(event, Answered), event
        assert event.answer.to_json() == answer.to_json(), number
        assert told == ("" if number % 2 else answer.text)
        assert event.answer_tokens <= cases(24)[number][2]["max_new_tokens"]
        assert event.prompt_tokens > 0
    assert len({event.answer.text for event, _ in found if isinstance(event, Answered)}) > 8
    assert worker.writing == worker.waiting == 0


def test_answers_of_many_clients_are_their_own(model: LyricsModel) -> None:
    """Sixteen threads with questions of their own, eight each."""
    wanted = [alone(model, *case) for case in cases(24)]
    wrong: list[int] = []

    def client(first: int) -> None:
        for number in range(first, first + 8):
            question, images, options = cases(24)[number % 24]
            event = answered(submitted(worker, question, *images, how=how_of(options))[1])
            if event.answer.text != wanted[number % 24].text:
                wrong.append(number)

    with working(Worker(model)) as worker:
        threads = [threading.Thread(target=client, args=(3 * number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert "lyrics_step_answers_count" in worker.metrics.text({})


def test_a_new_question_joins_answers_that_are_being_written(model: LyricsModel, slow: threading.Event) -> None:
    """It does not wait for a long one to end."""
    with working(Worker(model)) as worker:
        long, events = submitted(worker, QUESTIONS[0], how=how_of({"max_new_tokens": 200}))
        until(lambda: len(long.writing.ids) >= 2)
        short = answered(submitted(worker, QUESTIONS[1], how=how_of({"max_new_tokens": 2}))[1])
        assert short.answer_tokens <= 2
        assert long.writing.end is None
        slow.set()
        assert answered(events).answer.text == alone(model, QUESTIONS[0], (), {"max_new_tokens": 200}).text


@pytest.mark.parametrize("runs", [True, False])
def test_texts_that_end_an_answer(runs: bool, model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs:
        monkeypatch.setattr(CausalLM, "running", lambda self: None)
    whole = alone(model, QUESTIONS[0], IMAGES[:1], {"max_new_tokens": 24}).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    with working(Worker(model)) as worker:
        how = how_of({"max_new_tokens": 24})
        for follow in (False, True):
            one, events = submitted(worker, QUESTIONS[0], IMAGES[0], how=how, stop=[stop], follow=follow)
            event, told = last(events)
            assert isinstance(event, Answered)
            assert event.answer.text == whole.partition(stop)[0].strip()
            assert (event.finish, told) == ("stop", event.answer.text if follow else "")
            assert len(one.writing.ids) < 24


def test_an_answer_that_is_cut_off_says_so(model: LyricsModel) -> None:
    with working(Worker(model)) as worker:
        event = answered(submitted(worker, QUESTIONS[0], how=how_of({"max_new_tokens": 2}))[1])
        assert (event.finish, event.answer_tokens) == ("length", 2)


def test_what_cannot_be_met_harms_nobody_else(model: LyricsModel) -> None:
    """A prompt that is too long, in one batch with others."""
    worker = Worker(model)
    good = [submitted(worker, QUESTIONS[0], IMAGES[0])[1] for _ in range(2)]
    bad = submitted(worker, "word " * 600, IMAGES[1])[1]
    good.append(submitted(worker, QUESTIONS[0], IMAGES[0])[1])
    with working(worker):
        assert isinstance(failed(bad), PromptError)
        assert len({answered(one).answer.text for one in good}) == 1


def test_a_model_that_fails_in_one_request(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    look = SeenImages.look

    def broken(self: Any, images: Any, questions: Any) -> Any:
        if "break" in questions:
            raise RuntimeError("injected")
        return look(self, images, questions)

    monkeypatch.setattr(SeenImages, "look", broken)
    worker = Worker(model)
    good = submitted(worker, QUESTIONS[0], IMAGES[0])[1]
    bad = submitted(worker, "break", IMAGES[0])[1]
    also = submitted(worker, QUESTIONS[1], IMAGES[0])[1]
    with working(worker):
        assert str(failed(bad)) == "injected"
        answered(good)
        answered(also)
        assert worker.alive


def test_numbers_that_are_not_finite_in_one_request(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = LyricsModel.encode_features

    def poisoned(self: Any, features: Any, seen: Any, instructions: Any, dropped: Any) -> Any:
        found = encode(self, features, seen, instructions, dropped)
        for row, text in enumerate(instructions):
            if text == "poison":
                found.soft_tokens_PQD[row] = torch.nan
        return found

    monkeypatch.setattr(LyricsModel, "encode_features", poisoned)
    worker = Worker(model)
    good = submitted(worker, QUESTIONS[0], IMAGES[0])[1]
    bad = submitted(worker, "poison", IMAGES[0])[1]
    with working(worker):
        assert isinstance(failed(bad), NotFiniteError)
        answered(good)


@pytest.mark.parametrize("runs", [True, False])
def test_a_step_that_fails_ends_what_it_was_writing(
    runs: bool, model: LyricsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not runs:
        monkeypatch.setattr(CausalLM, "running", lambda self: None)
    network = type(model.language_model._network())  # type: ignore[attr-defined]
    forward, broken = network.forward, threading.Event()

    @functools.wraps(forward)  # what it takes is looked at
    def sometimes(self: Any, *given: Any, **more: Any) -> Any:
        embeddings = more.get("inputs_embeds")
        if broken.is_set() and (embeddings is None or embeddings.shape[1] == 1):
            raise RuntimeError("out of memory")
        return forward(self, *given, **more)

    monkeypatch.setattr(network, "forward", sometimes)
    with working(Worker(model)) as worker:
        broken.set()
        assert "out of memory" in str(failed(submitted(worker, QUESTIONS[0])[1]))
        broken.clear()
        answered(submitted(worker, QUESTIONS[0])[1])


def test_a_full_queue_takes_no_more_and_has_room_again(model: LyricsModel) -> None:
    worker = Worker(model, Limits(waiting=3))
    jobs = [submitted(worker, QUESTIONS[0]) for _ in range(3)]
    with pytest.raises(QueueFullError):
        worker.check_room()
    with pytest.raises(QueueFullError):
        submitted(worker, QUESTIONS[0])
    worker.cancel(jobs[1][0])
    assert worker.waiting == 2
    jobs.append(submitted(worker, QUESTIONS[1]))
    with working(worker):
        for number in (0, 2, 3):
            answered(jobs[number][1])
    assert jobs[1][1].empty()


@pytest.mark.parametrize("waited, seconds", [(0.0, 1), (20.0, 10), (9_000.0, 60)])
def test_a_full_queue_says_when_to_come_again(model: LyricsModel, waited: float, seconds: int) -> None:
    """When half of it will be gone: half the time for which the first in it has waited, within bounds."""
    worker = Worker(model, Limits(waiting=2))
    first, _ = submitted(worker, QUESTIONS[0])
    submitted(worker, QUESTIONS[1])
    first.came -= waited
    with pytest.raises(QueueFullError, match=rf"try again in {seconds} seconds?\.") as caught:
        worker.check_room()
    assert caught.value.seconds == seconds


@pytest.mark.parametrize("runs", [True, False])
def test_who_goes_away_frees_their_place(
    runs: bool, model: LyricsModel, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not runs:
        monkeypatch.setattr(CausalLM, "running", lambda self: None)
    with working(Worker(model, Limits(batch=1))) as worker:
        long, _ = submitted(worker, QUESTIONS[0], how=how_of({"max_new_tokens": 400}), follow=True)
        until(lambda: len(long.writing.ids) >= 2)
        worker.cancel(long)
        slow.set()
        answered(submitted(worker, QUESTIONS[1], how=how_of({"max_new_tokens": 2}))[1])
        assert len(long.writing.ids) < 400
        assert worker.writing == 0


def test_what_comes_too_late(model: LyricsModel, slow: threading.Event) -> None:
    """In the queue, and while it is written."""
    worker = Worker(model)
    waited = submitted(worker, QUESTIONS[0], seconds=0.0)[1]
    with working(worker):
        assert isinstance(failed(waited), LateError)
        one, events = submitted(worker, QUESTIONS[0], how=how_of({"max_new_tokens": 400}), seconds=1.0)
        assert isinstance(failed(events), LateError)
        assert len(one.writing.ids) < 50
        slow.set()
        answered(submitted(worker, QUESTIONS[1])[1])


def test_stopping_meets_what_has_come(model: LyricsModel) -> None:
    worker = Worker(model, Limits(batch=2))
    events = [submitted(worker, question)[1] for question in QUESTIONS]
    worker.start()
    worker.stop()
    for one in events:
        answered(one)
    assert not worker.alive
    with pytest.raises(StoppingError):
        worker.submit(job("too late", tell=print))


def test_another_model_takes_over_between_two_answers(model: LyricsModel, slow: threading.Event) -> None:
    """What is being written is written to its end by the model that began it."""
    other = made(language_model__options__chat_template="vicuna-v1.1")
    done = threading.Event()
    with working(Worker(model)) as worker:
        one, before = submitted(worker, QUESTIONS[0], how=how_of({"max_new_tokens": 30}))
        until(lambda: len(one.writing.ids) >= 2)
        worker.exchange(other, done.set)
        after = submitted(worker, QUESTIONS[0], how=how_of({"max_new_tokens": 30}))[1]
        slow.set()
        wanted = [alone(one, QUESTIONS[0], (), {"max_new_tokens": 30}).text for one in (model, other)]
        assert [answered(before).answer.text, answered(after).answer.text] == wanted
        assert wanted[0] != wanted[1]
        assert done.is_set()
        assert worker.model is other


def test_images_are_refined_together(monkeypatch: pytest.MonkeyPatch, model: LyricsModel) -> None:
    """Those with phrases of their own, too; each gets what is its own."""
    called: list[tuple[int, Any]] = []

    def refiner(images: Any, phrases: Any = None) -> list[Refinement]:
        called.append((len(images), phrases))
        names = phrases or [["red"]] * len(images)
        return [
            Refinement(image.size, objects=tuple(DetectedObject(name, RED.box_norm, 0.5) for name in own))
            for image, own in zip(images, names, strict=True)
        ]

    class Other:
        spec, language_model = model.spec, model.language_model

        def eval(self) -> Any:
            return self

    other: Any = Other()
    other.refiner = refiner
    worker = Worker(other, Limits(looks=8))
    events: list[queue.Queue[Event]] = []
    for number in range(6):
        told: queue.Queue[Event] = queue.Queue()
        phrases = [f"thing {number}"] if number % 2 else None
        worker.submit(RefineJob([IMAGES[number % 3]], told.put, phrases=phrases))
        events.append(told)
    with working(worker):
        found = [last(one)[0] for one in events]
    for number, event in enumerate(found):
        assert isinstance(event, Refined)
        assert event.refinement.size_px == IMAGES[number % 3].size
        assert event.refinement.objects[0].tag == (f"thing {number}" if number % 2 else "red")
    assert called == [(3, None), (3, [["thing 1"], ["thing 3"], ["thing 5"]])]
