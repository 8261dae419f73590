"""Damaged pictures of every kind on their way through the loader: replaced, written down, and no other sample is
touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lyrics.core.data.ledger import Ledger, known_bad, read_ledger
from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.readers import Fields, PictureFolder, RecordDataset
from lyrics.core.data.sampler import StepSampler
from lyrics.core.data.stream import Example, SampleStream
from tests.core.pictures.test_images_corrupt import BAD, GOOD, encode

ROWS = 440
#: Five in a hundred: every kind of damage and of odd but good ones, one file of each.
KINDS = dict(zip(range(7, ROWS, 20), [*BAD, *GOOD], strict=True))
BAD_ROWS = {row: kind for row, kind in KINDS.items() if kind in BAD}
BATCH, STEPS = 20, 30


class Listed:
    """Records by number, as a reader gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"file": f"{index}.{suffix(index)}", "caption": f"picture {index}"}

    def where(self, index: int) -> tuple[Path, str]:
        return self.folder / "list.json", f"record {index}"


def suffix(row: int) -> str:
    kind = KINDS.get(row)
    return "png" if kind is None else {**BAD, **GOOD}[kind][0].partition(".")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    for row in range(ROWS):
        kind = KINDS.get(row)
        data = encode("PNG", row, size=(12, 9)) if kind is None else {**BAD, **GOOD}[kind][1](3)
        (made / f"{row}.{suffix(row)}").write_bytes(data)
    return made


def a_run(
    folder: Path, workers: int, *, ledger: Ledger | None = None, known: Mapping[str, frozenset[int]] | None = None
) -> list[Example]:
    """Thirty steps: one and a half epochs, so that bad rows are met twice."""
    data = RecordDataset("list", Listed(folder), Fields(image="{file}", captions="caption"), PictureFolder(folder))
    mixture = Mixture([Source("list", ROWS)], seed=4)
    stream = SampleStream(mixture, {"list": data}, ledger=ledger, known_bad=known, max_bad_share=1.0)
    loader = torch.utils.data.DataLoader(
        stream, batch_sampler=StepSampler(BATCH, start=0, stop=STEPS), num_workers=workers, collate_fn=list
    )
    batches = list(loader)
    assert [len(batch) for batch in batches] == [BATCH] * STEPS
    return [example for batch in batches for example in batch]


def bits(run: list[Example]) -> list[tuple[object, ...]]:
    """Everything about each example, the picture's pixels included."""
    found = []
    for example in run:
        assert example.picture is not None
        pixels = np.asarray(example.picture)
        found.append((example.position, example.data_set, example.row, example.sample, pixels.shape, pixels.tobytes()))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_bad_samples_is_the_run_that_knew_them(folder: Path, tmp_path: Path, workers: int) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl")
    found = a_run(folder, workers, ledger=ledger)
    rows = {example.row for example in found}
    assert [example.position for example in found] == list(range(BATCH * STEPS))
    assert not rows & BAD_ROWS.keys()
    assert rows >= KINDS.keys() - BAD_ROWS.keys(), "odd but good pictures are kept"

    again = a_run(folder, 2 - workers, known=known_bad(ledger.path))
    assert bits(again) == bits(found)
    by_hand = a_run(folder, 0, known={"list": frozenset(BAD_ROWS)})
    assert bits(by_hand) == bits(found)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_damage_is_in_the_ledger_with_its_bytes(folder: Path, tmp_path: Path, workers: int) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl")
    a_run(folder, workers, ledger=ledger)
    entries = {entry.row: entry for entry in read_ledger(ledger.path)}
    assert entries.keys() == BAD_ROWS.keys()
    for row, kind in BAD_ROWS.items():
        entry, file = entries[row], folder / f"{row}.{suffix(row)}"
        assert entry.kind in BAD[kind][2], f"{kind}: {entry.error}"
        assert entry.sha256 == hashlib.sha256(file.read_bytes()).hexdigest(), kind
        assert (entry.data_set, entry.source) == ("list", f"list list.json, record {row}")
        assert str(file) in entry.error


def test_the_other_samples_stay_where_they_are(folder: Path) -> None:
    """As they are in a run over the same list without any damage."""
    order = Mixture([Source("list", ROWS)], seed=4)
    for example in a_run(folder, 0):
        row = order.sample_at(example.position).row
        if row not in BAD_ROWS:
            assert example.row == row
            assert example.picture is not None
            if row not in KINDS:
                own = Image.open(folder / f"{row}.png")
                assert np.array_equal(np.asarray(example.picture), np.asarray(own))
