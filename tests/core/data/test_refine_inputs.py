"""What ``lyrics refine`` may be given: the same pictures from folders, lists, tars, tables and object stores."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lyrics.core.data.readers import write_index
from lyrics.core.data.refine_inputs import RefineInputs
from lyrics.core.errors import DatasetError, ImageError, LyricsError
from lyrics.core.refining.inputs import find_images
from lyrics.core.refining.refine_files import OBJECTS_FILE, refine_files
from lyrics.core.refining.rows import read_refinements
from lyrics.core.refining.shards import Shard, merge_shards
from lyrics.core.refining.stored import StoredRefinements
from tests.core.data.tars import write_tar
from tests.core.refining.scale import AtOnce


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20 + number, 16), (number, 40, 90)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures at three depths, one of them damaged."""
    for number, name in enumerate(("a.png", "b/c.png", "b/d/e.png", "b.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"hello")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def sizes(inputs: RefineInputs) -> list[tuple[int, int] | str]:
    """Each picture's size, or the kind of what is wrong with it."""
    found: list[tuple[int, int] | str] = []
    for one in inputs:
        try:
            found.append(one.open().size)
        except ImageError as error:
            found.append(error.kind)
    return found


def test_a_folder_is_gone_through_in_the_order_of_its_list(folder: Path) -> None:
    inputs = RefineInputs([str(folder)])
    assert [one.name for one in inputs] == [str(path) for path in find_images([folder])]
    assert [one.name for one in inputs] == [str(path) for path in sorted(find_images([folder]))], "and again"
    assert sizes(inputs) == [(20, 16), (21, 16), (22, 16), (23, 16), "format"]


def test_a_list_has_a_picture_on_each_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["in/b.png", "", str(folder / "a.png"), "in/gone.png", "in/b.png"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    inputs = RefineInputs(["list.txt"])
    assert [one.name for one in inputs] == ["in/b.png", str(folder / "a.png"), "in/gone.png", "in/b.png"]
    assert sizes(inputs) == [(23, 16), (20, 16), "missing", (23, 16)]
    done = refine_files(AtOnce(), inputs, tmp_path / "out", draw=False)
    assert (done.refined, done.reasons) == (2, {"missing": 1}), "a line that comes twice is done once"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_list_may_hold_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(png(1))
    (tmp_path / "list.txt").write_bytes(name + b"\n")
    assert sizes(RefineInputs([str(tmp_path / "list.txt")])) == [(21, 16)]


def shard(path: Path) -> Path:
    members = []
    for number in range(6):
        members += [(f"{number:05}.png", png(number)), (f"{number:05}.txt", b"a caption")]
    members[4:6] = [("00002.txt", b"without a picture")]
    write_tar(path, members)
    write_index(path)
    return path


def test_a_tar_shard_is_read_in_place_under_the_names_that_its_data_set_has(tmp_path: Path) -> None:
    tar = shard(tmp_path / "00000.tar")
    inputs = RefineInputs([str(tar)])
    assert sizes(inputs) == [(20, 16), (21, 16), "missing", (23, 16), (24, 16), (25, 16)]
    done = refine_files(AtOnce(), inputs, tmp_path / "out", draw=False, batch_size=2)
    assert (done.refined, done.reasons) == (5, {"missing": 1})
    assert refine_files(AtOnce(), inputs, tmp_path / "out", draw=False).done_before == 5
    stored = StoredRefinements(read_refinements(tmp_path / "out" / OBJECTS_FILE), "out")
    from lyrics.core.data.readers import TarRecords

    for record in (one for one in TarRecords([tar]) if one["image"]):
        assert stored[record["image"]].name == str(tar.parent / record["image"])
    for index in range(3):
        refine_files(AtOnce(), inputs, tmp_path / "many", draw=False, shard=Shard(index, 3))
    merge_shards(tmp_path / "many", ["jsonl"])
    assert (tmp_path / "many" / OBJECTS_FILE).read_bytes() == (tmp_path / "out" / OBJECTS_FILE).read_bytes()


def test_a_tar_that_changed_is_skipped_sample_by_sample(tmp_path: Path) -> None:
    tar = shard(tmp_path / "00000.tar")
    data = bytearray(tar.read_bytes())
    place = data.index(png(3))
    data[place + 20] ^= 255
    tar.write_bytes(data)
    assert sizes(RefineInputs([str(tar)])) == [(20, 16), (21, 16), "missing", "corrupt", (24, 16), (25, 16)]
    tar.with_name("00000.tar.index").unlink()
    with pytest.raises(DatasetError, match=r"has no index\. Run: lyrics data index"):
        RefineInputs([str(tar)])


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Any]:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def write(**columns: Any) -> str:
        pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "table.parquet", row_group_size=2)
        return str(tmp_path / "table.parquet")

    return write  # type: ignore[return-value]


def test_a_table_of_paths(folder: Path, table: Any) -> None:
    path = table(caption=["x"] * 4, path=[str(folder / "b.png"), None, str(folder / "gone.png"), str(folder / "a.png")])
    inputs = RefineInputs([path])
    assert sizes(inputs) == [(23, 16), "empty", "missing", (20, 16)]
    assert next(one.name for one in inputs) == str(folder / "b.png")


@pytest.mark.parametrize("form", ["bytes", "records"])
def test_a_table_of_bytes(form: str, table: Any, tmp_path: Path) -> None:
    data = [png(0), b"hello", None, png(3), png(4)]
    column = data if form == "bytes" else [one and {"bytes": one, "path": "x.png"} for one in data]
    path = table(image=column, other=[1] * 5)
    inputs = RefineInputs([path])
    expected = [(20, 16), "format", "empty", (23, 16), (24, 16)]
    if form == "records":
        expected[2] = "empty"
    assert sizes(inputs) == expected
    done = refine_files(AtOnce(), inputs, tmp_path / "out", draw=False, batch_size=2)
    assert (done.refined, done.reasons) == (3, {"format": 1, "empty": 1})
    names = [json.loads(line)["image"] for line in (tmp_path / "out" / OBJECTS_FILE).read_text().splitlines()]
    assert names == [f"{path}/{row}" for row in (0, 3, 4)]


def test_a_table_that_cannot_be_read_is_a_sentence(table: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none of its columns is called like one of images.*there are number, text"):
        RefineInputs([table(number=[1], text=["a"])])
    with pytest.raises(DatasetError, match=r"column 'number' is of int64, not of paths"):
        RefineInputs([table(number=[1], text=["a"])], column="number")
    with pytest.raises(DatasetError, match=r"has no column 'texts'. Did you mean 'text'\?"):
        RefineInputs([table(number=[1], text=["a"])], column="texts")
    (tmp_path / "table.parquet").write_bytes(b"PAR1, cut off")
    with pytest.raises(DatasetError, match=r"is not a parquet file, or is damaged: [^.]*\.( [^.]*\.)*$"):
        RefineInputs([str(tmp_path / "table.parquet")])


@pytest.fixture
def store() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for number, name in enumerate(("a.png", "b/c.png", "b/d/e.png", "b.png")):
        system.pipe(f"/bucket/{name}", png(number))
    system.pipe("/bucket/bad.jpg", b"hello")
    system.pipe("/bucket/notes.txt", b"no picture")
    yield system
    system.rm("/bucket", recursive=True)


def test_a_folder_in_an_object_store_is_one_on_the_disk(store: Any, folder: Path, tmp_path: Path) -> None:
    inputs = RefineInputs(["memory://bucket"])
    assert sizes(inputs) == sizes(RefineInputs([str(folder)]))
    names = [one.name for one in inputs]
    assert names == [f"memory:///bucket/{path.relative_to(folder)}" for path in find_images([folder])]
    done = refine_files(AtOnce(), inputs, tmp_path / "out", draw=False, formats=["coco", "yolo"])
    assert (done.refined, done.reasons) == (4, {"format": 1})
    assert refine_files(AtOnce(), inputs, tmp_path / "out", draw=False).done_before == 4
    (tmp_path / "list.txt").write_text("memory://bucket/b.png\nmemory://bucket/gone.png\n")
    assert sizes(RefineInputs([str(tmp_path / "list.txt")])) == [(23, 16), "missing"]
    assert sizes(RefineInputs(["memory://bucket/a.png"])) == [(20, 16)]


def test_a_store_that_refuses_for_a_while_is_asked_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyrics.core.data import refine_inputs

    waited: list[float] = []
    monkeypatch.setattr(refine_inputs.time, "sleep", waited.append)
    opened, answers = store.open, [TimeoutError("slow down"), ConnectionError("reset")]

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if answers:
            raise answers.pop()
        return opened(*args, **kwargs)

    monkeypatch.setattr(store, "open", flaky)
    assert sizes(RefineInputs(["memory://bucket/a.png"])) == [(20, 16)]
    assert waited == [0.5, 2.0]
    answers += [OSError("no")] * 10
    assert sizes(RefineInputs(["memory://bucket/a.png"])) == ["unreadable"]


def test_what_is_not_there_or_not_followed_is_said_at_once(store: Any, tmp_path: Path) -> None:
    for given, message in (
        (str(tmp_path / "gone"), "no such file or folder"),
        ("memory://bucket/gone", "no such file or folder"),
        ("https://example.org/a.png", "addresses that begin with https:// are not followed"),
    ):
        with pytest.raises(ImageError, match=message):
            RefineInputs([given])
    (tmp_path / "list.txt").write_text("http://169.254.169.254/a.png\nfile::memory://bucket/a.png\n")
    assert sizes(RefineInputs([str(tmp_path / "list.txt")])) == ["missing", "missing"]


def test_a_store_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def missing(where: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(LyricsError, match="s3:// needs a package that is not installed: Install s3fs to access S3"):
        RefineInputs(["s3://bucket/a"])
