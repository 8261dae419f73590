"""Looks that are kept: equal to those of one image at a time, bounded, and of no other image or model."""

from __future__ import annotations

import queue
from typing import Any

import pytest
import torch
from PIL import Image

from lyrics.core.errors import NotFiniteError
from lyrics.core.language.prompting import Encoded
from lyrics.core.model import LyricsModel
from lyrics.workflows.serve.jobs import Answered, Refined, RefineJob
from lyrics.workflows.serve.limits import Limits
from lyrics.workflows.serve.seen import SeenImages
from lyrics.workflows.serve.worker import Worker
from tests.core.small import drawn
from tests.core.test_model_steps import made
from tests.workflows.serve.helpers import last, submitted, working

IMAGES = (drawn(), drawn(64, 96, "blue"), drawn(120, 120, "green"))
MUCH = 2**30


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


@pytest.fixture
def looks(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images encoder and refiner were given, each time."""
    found: list[int] = []
    features = LyricsModel.features

    def counted(self: Any, images: Any, phrases: Any = None) -> Any:
        found.append(len(images))
        return features(self, images, phrases)

    monkeypatch.setattr(LyricsModel, "features", counted)
    return found


def same(found: Encoded, wanted: Encoded) -> None:
    torch.testing.assert_close(found.soft_tokens_PQD, wanted.soft_tokens_PQD, atol=1e-5, rtol=1e-4)
    assert [one.to_json() for one in found.refinements] == [one.to_json() for one in wanted.refinements]
    assert found.spatial_texts == wanted.spatial_texts


def test_looks_are_those_of_the_model_however_often_and_in_whatever_company(model: LyricsModel) -> None:
    seen = SeenImages(model, MUCH)
    for rows in ([0], [1, 2], [0, 1, 2, 0], [2], [1, 1], []):
        for question in ("what is this?", "how many?"):
            images = [IMAGES[row] for row in rows]
            same(seen.look(images, [question] * len(rows)), model.look(images, [question] * len(rows)))


def test_no_image_is_looked_at_twice(model: LyricsModel, looks: list[int]) -> None:
    seen = SeenImages(model, MUCH)
    a, b, c = IMAGES
    seen.look([a, b, a.copy()], ["x", "x", "x"])
    assert looks == [2]
    seen.look([b, a], ["another question", "x"])
    assert looks == [2]
    seen.look([c, a], ["x", "x"])
    assert looks == [2, 1]
    assert seen.looked == 3


def test_other_pixels_are_another_image(model: LyricsModel, looks: list[int]) -> None:
    """One value of one pixel, and the same bytes in another shape."""
    seen = SeenImages(model, MUCH)
    changed = IMAGES[1].copy()
    changed.putpixel((0, 0), (1, 2, 3))
    turned = Image.frombytes("RGB", (96, 64), IMAGES[1].tobytes())
    seen.look([IMAGES[1], changed, turned], ["x"] * 3)
    assert looks == [3]
    assert seen.recall(IMAGES[0]) is None
    assert seen.recall(changed) is not None


def test_what_was_used_longest_ago_goes_first(model: LyricsModel, looks: list[int]) -> None:
    one = SeenImages(model, MUCH)
    one.look(IMAGES[:1], ["x"])
    room = 2 * one.bytes + one.bytes // 2
    seen = SeenImages(model, room)
    seen.look(IMAGES[:1], ["x"])
    seen.look(IMAGES[1:2], ["x"])
    seen.look(IMAGES[:1], ["y"])
    for number in range(20):
        seen.look([drawn(40 + number, 40)], ["x"])
        assert seen.bytes <= room
        assert seen.bytes == sum(size for _, size in seen._kept.values())
    looks.clear()
    seen.look([drawn(40 + 19, 40)], ["x"])
    assert looks == []
    seen.look(IMAGES[:1], ["x"])
    assert looks == [1]


def test_more_images_at_once_than_there_is_room_for(model: LyricsModel, looks: list[int]) -> None:
    for room in (0, 1000, 50_000):
        seen = SeenImages(model, room)
        wanted = model.look(IMAGES, ["x"] * 3)
        same(seen.look(IMAGES, ["x"] * 3), wanted)
        same(seen.look(IMAGES, ["x"] * 3), wanted)
        assert seen.bytes <= room
    assert len(SeenImages(model, 0)) == 0


def test_nothing_that_is_not_finite_is_kept(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SeenImages(model, MUCH)
    with monkeypatch.context() as patch:
        patch.setattr(model.projection.weight, "data", model.projection.weight.data * float("nan"))
        with pytest.raises(NotFiniteError, match="projection"):
            seen.look(IMAGES[:1], ["x"])
    assert len(seen) == 0
    same(seen.look(IMAGES[:1], ["x"]), model.look(IMAGES[:1], ["x"]))


def test_the_worker_recalls_the_images_of_a_conversation(model: LyricsModel, looks: list[int]) -> None:
    """Asked about, asked about again, refined, and refined with phrases, which is another thing."""
    wanted = model.generate(IMAGES[0], "how many?", max_new_tokens=16).text
    refined = model.refiner(IMAGES[0]).to_json()  # type: ignore[misc]
    looks.clear()
    with working(Worker(model)) as worker:
        for _ in range(3):
            event = last(submitted(worker, "how many?", IMAGES[0])[1])[0]
            assert isinstance(event, Answered)
            assert event.answer.text == wanted
        assert looks == [1]
        assert "\nlyrics_recalled_images_total 2\n" in worker.metrics.text({})
        events: queue.Queue[Any] = queue.Queue()
        worker.submit(RefineJob([IMAGES[0]], events.put))
        found = last(events)[0]
        assert isinstance(found, Refined)
        assert found.refinement.to_json() == refined
        assert "\nlyrics_recalled_images_total 3\n" in worker.metrics.text({})
        worker.submit(RefineJob([IMAGES[0]], events.put, phrases=["red circle"]))
        assert isinstance(last(events)[0], Refined)
        assert "\nlyrics_recalled_images_total 3\n" in worker.metrics.text({})


def test_another_model_recalls_nothing_of_the_one_before(model: LyricsModel, looks: list[int]) -> None:
    worker = Worker(model, Limits())
    worker._seen.look(IMAGES[:1], ["x"])
    worker._take_model(model)
    assert len(worker._seen) == 0
