"""Every field of every data set missing, null, of another type, empty, huge; files with a byte order mark or CRLF.

Each is read right, or is one bad sample whose message is a sentence that names the file, the place in it and the field.
The good records that the mutations start from are those of ``files.py``.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.data.readers import write_index
from lyrics.core.errors import DatasetError, ImageError, SampleError
from lyrics.core.types import Sample
from tests.core.data.tars import jpeg, write_tar
from tests.plugins.datasets.conftest import REGISTRY, built
from tests.plugins.datasets.files import GRIT, MAKERS, parquet, write

NAMES = [entry.component.name for entry in REGISTRY.entries]
GONE = object()
MOST_LETTERS = 700
#: What a message calls a place.
PLACE = re.compile(r"(record|line|ref|image|row|sample|region|sentence|question|images\[|annotations\[)")
#: Messages about a value that does not fit another field; both stand in the record that is named.
RELATIONS = (
    "cannot be the name of a file",
    "the right answer is number",
    "no such file",
    "has no area inside",
    "is not the path",
    "has no question with an answer",
)

Path_ = tuple[str | int, ...]


def paths(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where something stands in a parsed file; of a list, its first item and what is in it."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths(each, (*at, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*at, 0))


def at(data: Any, path: Path_) -> Any:
    for key in path:
        data = data[key]
    return data


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    yield "missing", GONE
    yield "null", None
    yield "true", True
    if not isinstance(value, str):
        yield "a text", "word"
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield "a number", 7
    if not isinstance(value, list):
        yield "a list", [["x"]]
    if not isinstance(value, dict):
        yield "a mapping", {"a": {}}
    if isinstance(value, str):
        yield from (("empty", ""), ("huge", "x" * 100_000), ("no UTF-8", "\ud800\0"))
    elif isinstance(value, list):
        yield from (("empty", []), ("huge", value * 300))
    elif isinstance(value, dict):
        yield from (("empty", {}), ("huge", {str(number): value for number in range(200)}))
    else:
        yield from (("negative", -5), ("huge", 10**30), ("infinite", float("inf")))


def mutated(data: Any, path: Path_, value: Any) -> Any:
    new = copy.deepcopy(data)
    parent = at(new, path[:-1])
    if value is GONE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return new


class Reading:
    """Reads samples, and keeps what was said of the others. A picture that was good is not decoded again."""

    def __init__(self) -> None:
        self.pictures: set[tuple[object, ...]] = set()

    def __call__(self, name: str, options: dict[str, Any]) -> tuple[list[Sample], list[SampleError | ImageError]]:
        data = built(name, **options)
        good, bad = [], []
        for number in range(len(data)):
            try:
                sample = data[number]
                seen = (sample.image, sample.annotated_size, bool(sample.objects))
                if sample.image is not None and seen not in self.pictures:
                    data.picture(sample)
                    self.pictures.add(seen)
            except (SampleError, ImageError) as error:
                bad.append(error)
            else:
                good.append(sample)
        return good, bad


def check_message(error: Exception, folder: Path, what: str, field: str = "") -> None:
    """A sentence of bearable length about a file that is there, a place in it, and the field."""
    message = str(error)
    assert 0 < len(message) < MOST_LETTERS + len(str(folder)) * 4, what
    if isinstance(error, ImageError):
        assert str(folder) in message, what
        return
    assert any(path.name in message for path in folder.rglob("*") if path.is_file()), (what, message)
    assert PLACE.search(message), (what, message)
    relation = any(words in message for words in RELATIONS)
    assert relation or field.rstrip("s") in message, (what, field, message)


def attempted(read: Reading, name: str, options: dict[str, Any]) -> tuple[list[Sample], list[Any], str]:
    """What comes out, or why the set as a whole is refused."""
    try:
        return *read(name, options), ""
    except DatasetError as error:
        return [], [], str(error)


def is_container(data: Any, path: Path_) -> bool:
    """Whether it holds all records: without it the file is not of the format, and the set says so at once."""
    return isinstance(data, dict) and len(path) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("laion", "cc12m", "cc3m", "sbu", "grit", "orca")]
)
def test_a_field_of_a_json_record_that_is_not_as_expected(name: str, tmp_path: Path) -> None:
    options = MAKERS[name](tmp_path)
    read = Reading()
    before, _ = read(name, options)
    tried = 0
    for file in sorted(path for path in tmp_path.rglob("*.json*")):
        text = file.read_text(encoding="utf-8")
        lines = file.suffix == ".jsonl"
        data = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        for path in paths(data):
            named = isinstance(path[-1], str) and not isinstance(at(data, path), dict) and not is_container(data, path)
            field = str(path[-1]) if named else ""
            for how, value in mutations(at(data, path)):
                what = f"{file.name}, {path}: {how}"
                tried += 1
                write(file, mutated(data, path, value))
                good, bad, refused = attempted(read, name, options)
                if refused:
                    assert is_container(data, path), (what, refused)
                    assert str(tmp_path) in refused
                    assert str(path[0]) in refused or "has no image of split" in refused
                    continue
                for error in bad[:2]:
                    check_message(error, tmp_path, what, field)
                assert all(isinstance(sample, Sample) for sample in good)
        file.write_text(text, encoding="utf-8")
    assert tried > 10
    assert read(name, options)[0] == before


@pytest.mark.parametrize("name", NAMES)
def test_a_mark_and_other_line_ends_change_nothing(name: str, tmp_path: Path) -> None:
    """As editors and spreadsheets of some systems leave them, in every text file of a set."""
    if name == "orca":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    options = MAKERS[name](tmp_path)
    expected = Reading()(name, options)[0]
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".csv", ".tsv", ".xml", ".txt", ".token"):
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert Reading()(name, options)[0] == expected


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_tables_of_addresses(name: str, tmp_path: Path) -> None:
    columns = ("caption", "url") if name == "cc3m" else ("url", "caption")
    row = {"caption": "a dog", "url": "http://x/1"}
    good = "\t".join(row[column] for column in columns)
    huge = good.replace("a dog", "x" * 200_000)
    lines = ["\t".join(columns), good, "", "no tab", huge, "a\tb\tc", "\xff", good]
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode("latin-1"))
    samples, bad = Reading()(name, {"root": str(tmp_path)})
    assert [len(sample.captions[0]) for sample in samples] == [5, 200_000, 5]
    assert [sample.extra["url"] for sample in samples] == ["http://x/1"] * 3
    assert [str(error).split(": ")[0] for error in bad] == [f"{tmp_path}/a.tsv, line {n}" for n in (4, 6, 7)]


@pytest.mark.parametrize("name", ["laion", "cc12m", "cc3m", "sbu", "grit"])
def test_a_field_of_the_json_of_a_shard(name: str, tmp_path: Path) -> None:
    about = {key: value for key, value in GRIT.items() if key != "key"}
    tar = tmp_path / "00000.tar"
    read = Reading()
    for path in paths(about):
        for how, value in mutations(at(about, path)):
            if how == "huge" and isinstance(value, str):
                continue  # of a text it is only slow
            # Its caption stands in the json alone: a ``txt`` would be taken before it.
            record = json.dumps(mutated(about, path, value)).encode()
            first = [("0.jpg", jpeg()), ("0.json", record)]
            second = [("1.jpg", jpeg()), ("1.json", json.dumps(about).encode())]
            write_index(write_tar(tar, [*first, *second]))
            good, bad = read(name, {"root": str(tmp_path)})
            assert len(good) + len(bad) == 2
            assert good[-1].captions == (GRIT["caption"],)
            for error in bad:
                check_message(error, tmp_path, f"{path}: {how}", path[0] if isinstance(path[0], str) else "")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": [None, "How?"]}, "question is None"),
        ({"question": [7, 8]}, ""),
        ({"question": [["x"], ["y"]]}, r"question is \['x'\]"),
        ({"response": [None, "So."]}, "response is None"),
        ({"system_prompt": [None, None]}, ""),
        ({"question": GONE}, "there is no key 'question'"),
    ],
)
def test_a_column_of_a_parquet_file(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    good = {"id": ["a", "b"], "system_prompt": ["", ""], "question": ["Why?", "How?"], "response": ["Because.", "So."]}
    parquet(tmp_path / "a.parquet", {key: value for key, value in {**good, **columns}.items() if value is not GONE})
    _, bad = Reading()("orca", {"root": str(tmp_path)})
    assert bool(bad) == bool(message)
    for error in bad[:1]:
        assert re.search(rf"a\.parquet, row group 0, row 0: {message}", str(error))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<width>100</width>", "", "size/width is None, where a whole number is expected"),
        ("<width>100</width>", "<width>wide</width>", "size/width is 'wide'"),
        (
            "<width>100</width>",
            "<width>0</width>",
            "size.width is 0, where a number of pixels from 1 to 1,000,000 is expected",
        ),
        ("<xmin>10</xmin>", "<xmin></xmin>", "xmin is ''"),
        ("<xmin>10</xmin>", "<xmin>" + "9" * 5000 + "</xmin>", "xmin is '9{20,30}..."),
        ("</annotation>", "", "is not XML"),
    ],
)
def test_a_file_of_boxes_in_xml(tmp_path: Path, old: str, new: str, message: str) -> None:
    options = MAKERS["flickr30k"](tmp_path)
    file = tmp_path / "Annotations/1.xml"
    file.write_text(file.read_text().replace(old, new))
    good, bad = Reading()("flickr30k", options)
    assert len(good) == 1
    assert re.search(rf"dataset_flickr30k.json, record 1: .*/1\.xml: .*{message}", str(bad[0]))
    assert len(str(bad[0])) < MOST_LETTERS
    (tmp_path / "Sentences/1.txt").unlink()
    assert "1.txt: no such file" in str(Reading()("flickr30k", options)[1][0])
