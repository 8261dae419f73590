"""Reading the order: bad samples replaced and written down, storage waited for, mistakes in code let through."""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from lyrics.core.data import stream as stream_module
from lyrics.core.data.ledger import BadSample, Ledger, known_bad, read_ledger
from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.pictures import decode_picture, read_picture
from lyrics.core.data.sampler import StepSampler
from lyrics.core.data.stream import MAX_CONSECUTIVE, SampleStream
from lyrics.core.errors import DatasetError, GeometryError, ImageError, SampleError, StorageError
from lyrics.core.types import Sample


class Rows:
    """Rows that may raise; ``trouble(row)`` gives the exception or None."""

    def __init__(self, rows: int, trouble: Callable[[int], Exception | None]) -> None:
        self.rows, self.trouble = rows, trouble
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        return Sample(image=f"{index}.png", source=f"rows {index}")

    def picture(self, sample: Sample) -> Image.Image:
        row = int(sample.image.partition(".")[0])
        if error := self.trouble(row):
            raise error
        return Image.new("RGB", (2, 2), (row % 256, 0, 0))


def every_twentieth(row: int) -> Exception | None:
    return ImageError(f"{row}.png: is corrupt.", "corrupt", sha256="ab" * 32) if row % 20 == 3 else None


def good(row: int) -> None:
    return None


def a_stream(data: Rows, **options: object) -> SampleStream:
    return SampleStream(Mixture([Source("rows", len(data))], 9), {"rows": data}, **options)


def rows_read(stream: SampleStream, positions: range) -> list[int]:
    return [stream[position].row for position in positions]


def test_an_example_says_where_it_is_from() -> None:
    example = a_stream(Rows(50, good))[70]
    row = Mixture([Source("rows", 50)], 9).sample_at(70).row
    assert (example.position, example.data_set, example.row) == (70, "rows", row)
    assert example.sample.source == f"rows {row}"
    assert example.picture.getpixel((0, 0)) == (row, 0, 0)


def test_bad_samples_are_replaced_and_the_others_stay_where_they_are(tmp_path: Path) -> None:
    data, ledger = Rows(400, every_twentieth), Ledger(tmp_path / "run" / "bad.jsonl")
    clean = rows_read(a_stream(Rows(400, good)), range(400))
    found = rows_read(a_stream(data, ledger=ledger, max_bad_share=1.0), range(400))
    assert all(row % 20 != 3 for row in found)
    assert all(ours == theirs for ours, theirs in zip(found, clean, strict=True) if theirs % 20 != 3)
    entries = read_ledger(ledger.path)
    assert [entry.row for entry in entries] == list(range(3, 400, 20))
    assert entries[0] == BadSample("rows", 3, "rows 3", "corrupt", "ImageError: 3.png: is corrupt.", "ab" * 32)
    # One line each, although replacements meet bad rows too.
    assert len(ledger.path.read_text().splitlines()) == 20


def test_a_run_is_the_same_if_the_bad_rows_were_known(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl")
    found = rows_read(a_stream(Rows(400, every_twentieth), ledger=ledger, max_bad_share=1.0), range(900))
    data = Rows(400, every_twentieth)
    again = rows_read(a_stream(data, known_bad=known_bad(ledger.path)), range(900))
    assert again == found
    assert not any(row % 20 == 3 for row in data.reads), "a row that is known to be bad was read again"


def test_workers_write_one_ledger_and_read_the_same(tmp_path: Path) -> None:
    def read(workers: int, name: str) -> list[int]:
        stream = a_stream(Rows(400, every_twentieth), ledger=Ledger(tmp_path / name), max_bad_share=1.0)
        loader = torch.utils.data.DataLoader(
            stream, batch_sampler=StepSampler(20, start=0, stop=20), num_workers=workers, collate_fn=list
        )
        return [example.row for batch in loader for example in batch]

    assert read(2, "two.jsonl") == read(0, "none.jsonl")
    assert read_ledger(tmp_path / "two.jsonl") == read_ledger(tmp_path / "none.jsonl")
    assert len(read_ledger(tmp_path / "two.jsonl")) == 20


@pytest.mark.parametrize(
    ("error", "kind"),
    [(SampleError("row 3: no key 'image'", "record"), "record"), (GeometryError("a box is four numbers"), "box")],
)
def test_damaged_records_and_boxes_are_bad_samples_too(error: Exception, kind: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl")
    data = Rows(30, lambda row: error if row == 3 else None)
    rows_read(a_stream(data, ledger=ledger), range(30))
    assert [(entry.row, entry.kind) for entry in read_ledger(ledger.path)] == [(3, kind)]


def test_a_record_that_cannot_be_read_at_all_has_no_source(tmp_path: Path) -> None:
    class Broken(Rows):
        def __getitem__(self, index: int) -> Sample:
            if index == 3:
                raise SampleError("line 3 is no JSON", "record")
            return super().__getitem__(index)

    ledger = Ledger(tmp_path / "bad.jsonl")
    rows_read(a_stream(Broken(30, good), ledger=ledger), range(30))
    assert read_ledger(ledger.path) == [BadSample("rows", 3, "", "record", "SampleError: line 3 is no JSON", None)]


def test_a_hundred_bad_samples_in_a_row_stop_the_run(tmp_path: Path) -> None:
    data = Rows(1_000, lambda row: ImageError(f"{row}.png: no such file.", "missing"))
    with pytest.raises(
        DatasetError, match=r"100 bad samples in a row; .* data set 'rows': \d+.png: no such file.*bad.jsonl"
    ):
        a_stream(data, ledger=Ledger(tmp_path / "bad.jsonl"))[0]
    assert sum(data.reads.values()) == MAX_CONSECUTIVE


def test_one_good_sample_ends_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_CONSECUTIVE", 4)
    data = Rows(300, lambda row: ImageError("bad", "corrupt") if row % 2 else None)
    stream = a_stream(data, max_bad_share=1.0)
    with pytest.raises(DatasetError, match="4 bad samples in a row"):
        rows_read(stream, range(10_000))
    assert 8 < sum(data.reads.values()) < 400


def test_too_large_a_share_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WINDOW", 200)
    stream = a_stream(Rows(1_000, every_twentieth), max_bad_share=0.1)
    rows_read(stream, range(1_000))
    stream = a_stream(
        Rows(1_000, lambda row: ImageError("bad", "corrupt") if row % 4 == 0 else None), max_bad_share=0.1
    )
    with pytest.raises(DatasetError, match=r"21 of the last \d+ samples were bad, more than 10.0% of 200"):
        rows_read(stream, range(1_000))


def test_the_share_is_of_the_last_ones_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """19 bad ones per window are never too many at 10 % of 200, however many windows there are."""
    monkeypatch.setattr(stream_module, "WINDOW", 200)
    turns = iter(range(10**6))
    data = Rows(50, lambda row: ImageError("bad", "corrupt") if next(turns) % 11 == 0 else None)
    rows_read(a_stream(data, max_bad_share=0.1), range(3_000))


def test_nearly_everything_known_to_be_bad_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = a_stream(Rows(10, good), known_bad={"rows": frozenset(range(10))})
    with pytest.raises(DatasetError, match="'rows': nearly all rows are known to be bad"):
        stream[0]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error", "/data/7.tar"), TimeoutError("late"), ConnectionResetError("gone")],
)
def test_storage_that_recovers_changes_nothing(error: OSError, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    failures: Counter[int] = Counter()

    def flaky(row: int) -> Exception | None:
        failures[row] += 1
        return error if row % 10 == 0 and failures[row] <= 3 else None

    ledger = Ledger(tmp_path / "bad.jsonl")
    assert rows_read(a_stream(Rows(60, flaky), ledger=ledger), range(60)) == rows_read(
        a_stream(Rows(60, good)), range(60)
    )
    assert waited == [0.1, 0.5, 2.0] * 6
    assert not ledger.path.exists()


def test_storage_that_goes_on_failing_stops_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    broken = OSError(errno.EIO, "Input/output error", "/data/7.tar")
    with pytest.raises(
        StorageError, match=r"/data/7.tar \(data set 'rows', row \d+\) .* tried 4 times more: Input/output"
    ):
        a_stream(Rows(5, lambda row: broken))[0]
    assert waited == [0.1, 0.5, 2.0, 8.0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EACCES])
def test_storage_that_cannot_recover_stops_at_once(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda delay: pytest.fail("waited for what does not pass"))
    with pytest.raises(StorageError, match=r"/data/7\.tar"):
        a_stream(Rows(5, lambda row: OSError(code, "no", "/data/7.tar")))[0]


@pytest.mark.parametrize(
    "error", [KeyError("image"), TypeError("x"), MemoryError(), ImportError("y"), AssertionError()]
)
def test_mistakes_in_code_are_raised_as_they_are(error: Exception, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl")
    with pytest.raises(type(error)) as raised:
        a_stream(Rows(1, lambda row: error), ledger=ledger)[0]
    assert raised.value.__notes__ == ["while reading row 0 of data set 'rows' (rows 0)"]
    assert not ledger.path.exists()


def test_the_mixture_must_be_about_these_data_sets() -> None:
    with pytest.raises(DatasetError, match="names 'rows', but there is no such"):
        SampleStream(Mixture([Source("rows", 5)], 0), {})
    with pytest.raises(DatasetError, match="'rows' has 6 rows, but the mixture was made for 5"):
        SampleStream(Mixture([Source("rows", 5)], 0), {"rows": Rows(6, good)})


def test_a_torn_last_line_of_a_ledger_is_passed_over_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    assert read_ledger(path) == []
    Ledger(path).add(BadSample("a", 2, "", "corrupt", "x"))
    Ledger(path).add(BadSample("a", 1, "", "corrupt", "Bild \ud800 \u00e9"))
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"data_set": "a", "ro', encoding="utf-8")
    assert [entry.row for entry in read_ledger(path)] == [1, 2]
    assert known_bad(path) == {"a": frozenset({1, 2})}
    path.write_text(json.dumps({"data_set": "a"}) + "\n" + whole, encoding="utf-8")
    with pytest.raises(DatasetError, match="line 1: not an entry"):
        read_ledger(path)


def test_pictures_know_their_bytes_and_let_storage_errors_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = BytesIO()
    Image.new("RGB", (3, 2), "red").save(kept, "PNG")
    (tmp_path / "a.png").write_bytes(kept.getvalue())
    (tmp_path / "b.png").write_bytes(kept.getvalue()[:40])
    assert read_picture(tmp_path / "a.png").size == (3, 2)
    with pytest.raises(ImageError, match=r"b.png") as damaged:
        read_picture(tmp_path / "b.png")
    assert damaged.value.sha256 == hashlib.sha256(kept.getvalue()[:40]).hexdigest()
    with pytest.raises(ImageError, match="no such file") as missing:
        read_picture(tmp_path / "c.png")
    assert (missing.value.kind, missing.value.sha256) == ("missing", None)
    with pytest.raises(ImageError, match="folder"):
        read_picture(tmp_path)

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("lyrics.core.data.pictures.open_file", failing)
    with pytest.raises(OSError, match="Input/output error"):
        read_picture(tmp_path / "a.png")


def test_a_file_of_absurd_size_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyrics.core.data.pictures.MAX_BYTES", 10)
    with pytest.raises(ImageError, match="more than 10 bytes") as raised:
        decode_picture(b"x" * 11, "large.png")
    assert raised.value.kind == "large"
