"""JSON, JSON lines, COCO-style, refs and parquet: records, places, errors, and what travels to workers."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lyrics.core.data.readers import (
    Answers,
    CocoRecords,
    Fields,
    Home,
    JsonRecords,
    LineRecords,
    Lookup,
    ParquetRecords,
    PictureFolder,
    RecordDataset,
    RefRecords,
    Row,
    annotated,
    answers_of,
    captioned,
    columns_of,
    keyed,
    listed,
    question_and_answers,
    records_of,
)
from lyrics.core.data.readers import parquet as parquet_module
from lyrics.core.errors import DatasetError, ImageError, MissingRequirementError, SampleError
from lyrics.core.geometry import Box
from lyrics.core.types import DetectedObject, Sample, Turn


def written(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


# --- JSON ---


def test_records_of_several_files_follow_each_other(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{n}.json", {"data": [{"n": n, "i": i} for i in range(n)]}) for n in (2, 0, 3)]
    records = JsonRecords(paths, partial(listed, key="data"))
    assert [(r["n"], r["i"]) for r in map(records.__getitem__, range(len(records)))] == [
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (3, 2),
    ]
    assert [records.where(n) for n in (1, 2)] == [(paths[0], "record 1"), (paths[2], "record 0")]


def test_making_a_reader_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records = JsonRecords([path])
    lines = LineRecords([path])
    written(path, [1, 2])
    assert (len(records), len(lines)) == (2, 1)


def test_the_keys_of_a_mapping_become_part_of_its_records() -> None:
    assert keyed({"7": {"q": "?"}}, "id") == [{"q": "?", "id": "7"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", r"a.json: is not JSON: .* line 1 column 6. Was the download cut short\?"),
        ("[" * 100_000, "nested too deeply"),
        ('{"rows": 1}', "is not a list of records but a mapping with rows"),
        ("3", "is not a list of records but int"),
    ],
)
def test_a_file_that_is_no_list_of_records(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        len(JsonRecords([written(tmp_path / "a.json", text)]))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\xff"]')
    with pytest.raises(DatasetError, match=r"a.json: is not UTF-8 text at byte 2"):
        len(JsonRecords([tmp_path / "a.json"]))


def test_other_shapes_name_what_was_expected(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [{"a": 1}])
    with pytest.raises(DatasetError, match=r"a.json: is not a mapping with a list under 'data' but list"):
        len(JsonRecords([path], partial(listed, key="data")))
    with pytest.raises(DatasetError, match=r"a.json: is not a mapping from keys to records but list"):
        len(JsonRecords([path], partial(keyed, name="id")))
    with pytest.raises(SampleError, match=r"a.json has no record with b 1; of its record 0, there is no key 'b'"):
        Lookup(path, "b")[1]


def test_lookup(tmp_path: Path) -> None:
    lookup = Lookup(written(tmp_path / "a.json", [{"id": 1, "w": 3}]), "id")
    assert lookup[1].whole("w") == 3
    with pytest.raises(SampleError, match=r"a.json has no record with id 2") as raised:
        lookup[2]
    assert raised.value.kind == "missing"


def test_two_records_under_one_key(tmp_path: Path) -> None:
    """The same once more is harmless; where they differ, nobody knows which is meant."""
    rows = [{"id": 1, "w": 3}, {"id": 1, "w": 3}, {"id": "a", "w": 4}, {"id": "a", "w": 5}, {"w": 6}, {"id": [1]}]
    lookup = Lookup(written(tmp_path / "a.json", rows), "id")
    assert lookup[1].whole("w") == 3
    with pytest.raises(SampleError, match=r"a.json has more than one record with id 'a'"):
        lookup["a"]
    for value in (7, [1], {"a": 1}, None):
        with pytest.raises(
            SampleError, match=r"a.json has no record with id .*; of its record 4, there is no key 'id'"
        ):
            lookup[value]


def test_lists_of_columns() -> None:
    assert columns_of({"u": [1, 2], "c": [3, 4]}, {"u": "url", "c": "caption"}) == [
        {"url": 1, "caption": 3},
        {"url": 2, "caption": 4},
    ]
    with pytest.raises(DatasetError, match="differ in length: u 2, c 1"):
        columns_of({"u": [1, 2], "c": [3]}, {"u": "url", "c": "caption"})


# --- lines ---


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5), min_size=1, max_size=3),
    end=st.sampled_from(["", "\n", "\n\n  \n"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_are_what_was_written(tmp_path_factory: pytest.TempPathFactory, files, end: str, newline: str) -> None:
    folder = tmp_path_factory.mktemp("lines")
    paths = []
    for number, texts in enumerate(files):
        paths.append(folder / f"{number}.jsonl")
        paths[-1].write_bytes((newline.join(map(json.dumps, texts)) + end).encode())
    records = LineRecords(paths)
    assert [records[n] for n in range(len(records))] == [text for texts in files for text in texts]
    assert records.shard_sizes == [len(texts) for texts in files]
    places = [(path, f"line {n + 1}") for path, texts in zip(paths, files, strict=True) for n in range(len(texts))]
    assert [records.where(n) for n in range(len(records))] == places


def test_a_damaged_line_is_a_bad_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\n"\xff"\n{"a": 2}\n')
    records = LineRecords([path])
    assert len(records) == 4
    for index, line in ((1, 2), (2, 4)):
        with pytest.raises(SampleError, match=rf"a.jsonl, line {line}: cannot be read"):
            records[index]
    assert records[3] == {"a": 2}


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["", "  ", "1", "22"]), max_size=9),
    newline=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_blank_lines_and_a_mark_at_the_beginning_are_no_records(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], newline: str, bom: bool
) -> None:
    """Places still count every line."""
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * bom + newline.join(lines).encode())
    records = LineRecords([path])
    filled = [(int(line), f"line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    assert [(records[n], records.where(n)[1]) for n in range(len(records))] == filled


@pytest.mark.parametrize("header", ["Caption\tURL", "\ufeffcaption\turl", "url\tcaption"])
def test_a_line_that_names_the_columns_is_no_record(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.tsv"
    rows = "\n\ncat\thttp://x\n" if header != "url\tcaption" else "\nhttp://x\tcat\n"
    path.write_text(header + rows, encoding="utf-8")
    records = LineRecords([path], ("caption", "url"))
    assert [records[n] for n in range(len(records))] == [{"caption": "cat", "url": "http://x"}]
    assert records.where(0)[1] == f"line {rows.count(chr(10))}"


def test_columns_need_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("cat\thttp://x\nno tab\n")
    records = LineRecords([path], ("caption", "url"))
    assert records[0] == {"caption": "cat", "url": "http://x"}
    with pytest.raises(SampleError, match=r"line 2: cannot be read: 1 columns where 2 \(caption, url\)"):
        records[1]


def test_json_or_lines_by_the_ending(tmp_path: Path) -> None:
    assert isinstance(records_of([tmp_path / "a.json"]), JsonRecords)
    assert isinstance(records_of([tmp_path / "a.jsonl"]), LineRecords)


# --- the data set around them ---


def of(records: object, sample: object = None) -> RecordDataset:
    return RecordDataset("toy", records, sample or Fields("{image}", question="q", answers="a"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "x", "a": "b"}, r"record 0: there is no key 'q'; it has image, a\."),
        ({"image": "x", "q": None, "a": "b"}, "record 0: q is None, where a text is expected"),
        ({"image": "x", "q": True, "a": "b"}, "record 0: q is True, where a text is expected"),
        ({"image": "x", "q": float("nan"), "a": "b"}, "record 0: q is nan, where a text is expected"),
        ({"image": None, "q": "?", "a": "b"}, "record 0: image is None, where a name or a number is expected"),
        (
            {"image": "x", "q": "?", "a": [{"text": "b"}]},
            r"record 0: there is no key 'answer' in a\[0\]; it has text\.",
        ),
        (
            {"image": "x", "q": "?", "a": [["b" * 999]]},
            r"record 0: a\[0\] is \['b{20,30}\.\.\.b{20,30}'\], where a text is",
        ),
        (
            {"image": "x", "q": "?", "a": ["b", {"answer": "c"}]},
            r"record 0: a\[0\] is 'b', where a mapping of fields is",
        ),
        ("text", "record 0: the record is 'text', where a mapping of fields is expected"),
        (None, "record 0: the record is None, where a mapping of fields is expected"),
    ],
)
def test_a_record_that_is_wrong_names_file_place_and_key(tmp_path: Path, record: object, message: str) -> None:
    path = written(tmp_path / "a.json", [record])
    with pytest.raises(SampleError, match=message) as raised:
        of(JsonRecords([path]))[0]
    assert str(raised.value).startswith(f"{path}, ")
    assert raised.value.kind == "record"


def test_a_mistake_of_the_code_is_not_a_bad_sample(tmp_path: Path) -> None:
    def broken(record: object) -> Sample:
        raise NameError("no such name")

    with pytest.raises(NameError):
        of(JsonRecords([written(tmp_path / "a.json", [1])]), broken)[0]


def test_the_storage_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors come through as they are: they say nothing about the data."""
    path = written(tmp_path / "a.jsonl", '{"image": "x", "q": "?", "a": "b"}\n')
    data = of(LineRecords([path]))
    len(data)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        data[0]


def test_numbers_beyond_the_end(tmp_path: Path) -> None:
    data = of(JsonRecords([written(tmp_path / "a.json", [{"image": "x", "q": "?", "a": "b"}])]))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            data[index]


def test_the_source_names_set_file_and_place(tmp_path: Path) -> None:
    data = of(JsonRecords([written(tmp_path / "a.json", [{"image": "x", "q": "?", "a": "b"}])]))
    assert data[0].source == "toy a.json, record 0"
    assert data[0].turns == (Turn("?", "b"),)


def test_it_travels_without_what_it_has_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [{"image": "x", "q": "a rare word", "a": "b"}])
    data = of(JsonRecords([path]))
    before = data[0]
    assert b"rare" not in pickle.dumps(data)
    assert pickle.loads(pickle.dumps(data))[0] == before


# --- samples ---


def test_the_most_frequent_answer_is_trained_on_the_first_of_equals() -> None:
    records = [{"answer": text, "answer_id": n} for n, text in enumerate(["no", "yes", "yes", "no", "maybe"])]
    answers = answers_of(Row({"a": records}), "a")
    sample = question_and_answers("x", "?", answers)
    assert sample.turns[0].answer == "no"
    assert sample.extra["answers"] == ("no", "yes", "yes", "no", "maybe")
    assert [record["answer_id"] for record in sample.extra["answer_records"]] == [0, 1, 2, 3, 4]
    assert question_and_answers("x", "?", Answers()).turns[0].answer == ""


def test_empty_captions_are_left_out() -> None:
    assert captioned("x", [" a ", "", " "]).captions == ("a",)
    assert captioned("x", " ").captions == ()


def test_boxes_that_are_none_are_counted() -> None:
    objects, dropped = annotated([("a", None), (" ", Box(0, 0, 1, 1)), (" c", Box(0, 0, 1, 1))])
    assert (objects, dropped) == ((DetectedObject("c", Box(0, 0, 1, 1), 1.0),), {"boxes_dropped": 2})
    assert annotated([]) == ((), {})


# --- folders ---


def test_a_missing_file_names_itself_and_where_to_get_it(tmp_path: Path) -> None:
    written(tmp_path / "train_questions.json", [])
    home = Home.of("gqa", str(tmp_path))
    with pytest.raises(DatasetError) as raised:
        home.file("val_questions.json", "x/val_questions.json")
    message = str(raised.value)
    assert f"{tmp_path}: has no file val_questions.json or x/val_questions.json." in message
    assert "Did you mean 'train_questions.json'?" in message
    assert "docs/datasets.md, row 'gqa'" in message
    with pytest.raises(DatasetError, match="no such folder"):
        Home.of("gqa", str(tmp_path / "no"))
    with pytest.raises(DatasetError, match="no such folder of images"):
        home.pictures(str(tmp_path / "no"))


def test_pictures_are_looked_for_in_each_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "b" / "x.png")
    pictures = PictureFolder(tmp_path, ("a", "b"))
    assert pictures.read("x.png").size == pictures.size("x.png") == (4, 3)
    with pytest.raises(ImageError, match=str(tmp_path / "a" / "y.png")) as raised:
        pictures.read("y.png")
    assert raised.value.kind == "missing"


@pytest.mark.parametrize("key", ["0785.png", "COCO_val2014_0785.png", "val2014/0785.png"])
def test_pictures_may_be_called_otherwise_than_annotations_say(tmp_path: Path, key: str) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "coco_val2017_0785.png")
    home = Home.of("coco", str(tmp_path))
    pictures = home.pictures(str(tmp_path / "coco_val2017_*"), "val2017")
    assert pictures.read(key).size == pictures.size(key) == (4, 3)
    with pytest.raises(ImageError, match=r"coco_train2017_0785\.png: no such file"):
        home.pictures(str(tmp_path / "coco_train2017_*"), "val2017").read(key)
    with pytest.raises(SampleError, match="is not the path of an image inside"):
        pictures.read("../0785.png")
    with pytest.raises(DatasetError, match="no such folder of images"):
        home.pictures(str(tmp_path / "no" / "coco_*"))


@pytest.mark.parametrize("key", ["../x.png", "a/../../x.png", "/etc/passwd", "C:x.png", ""])
def test_names_in_annotations_do_not_lead_out_of_the_folder(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "x.png")
    for use in (PictureFolder(folder).read, PictureFolder(folder).size):
        with pytest.raises(SampleError, match="is not the path of an image inside"):
            use(key)


def test_the_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "x.jpg", exif=exif)
    pictures = PictureFolder(tmp_path)
    assert pictures.size("x.jpg") == pictures.read("x.jpg").size == (3, 4)


@pytest.mark.parametrize(("data", "kind"), [(None, "missing"), (b"text", "format"), (b"\xff\xd8\xff", "format")])
def test_a_size_that_cannot_be_read(tmp_path: Path, data: bytes | None, kind: str) -> None:
    if data is not None:
        (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"x.jpg") as raised:
        PictureFolder(tmp_path).size("x.jpg")
    assert raised.value.kind == kind


# --- COCO ---

IMAGES = [
    {"id": 7, "file_name": "7.jpg", "width": 10, "height": 20},
    {"id": 3, "file_name": "3.jpg", "width": 5, "height": 5},
]


def coco_files(folder: Path, image_of_caption: int = 3) -> CocoRecords:
    captions = [{"id": 1, "image_id": 7, "caption": "a"}, {"id": 2, "image_id": image_of_caption, "caption": "b"}]
    boxes = [
        {"id": 5, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 6, "image_id": 7, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ]
    return CocoRecords(
        written(folder / "captions.json", {"images": IMAGES, "annotations": captions}),
        written(
            folder / "instances.json",
            {"images": IMAGES, "annotations": boxes, "categories": [{"id": 2, "name": "dog"}]},
        ),
    )


def test_coco_joins_by_image_in_the_order_of_the_images(tmp_path: Path) -> None:
    records = coco_files(tmp_path)
    assert [records[n]["image"]["id"] for n in range(len(records))] == [7, 3]
    assert [records[n]["captions"] for n in range(2)] == [["a"], ["b"]]
    assert [(row["category"], row["bbox"]) for row in records[0]["annotations"]] == [("dog", [1, 2, 3, 4])]
    assert records[1]["annotations"] == []
    assert records.where(1) == (tmp_path / "captions.json", "image 3")


def test_an_annotation_of_no_image(tmp_path: Path) -> None:
    """It is a bad sample of its own, after the images."""
    records = coco_files(tmp_path, image_of_caption=99)
    assert [records[n]["captions"] for n in range(2)] == [["a"], []]
    assert len(records) == 3
    with pytest.raises(
        SampleError, match=r"captions.json, annotations\[1\]: image_id is 99, which is not the id of an"
    ):
        records[2]


def coco_odd(folder: Path, images: object, annotations: object, categories: object) -> CocoRecords:
    data = {"images": images, "annotations": annotations, "categories": categories}
    return CocoRecords(instances=written(folder / "instances.json", data))


def test_an_image_given_twice(tmp_path: Path) -> None:
    """Once more the same is once; another one of the same id, and nobody knows whose the annotations are."""
    box = {"id": 5, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]}
    names = [{"id": 2, "name": "dog"}]
    assert len(coco_odd(tmp_path, [*IMAGES, IMAGES[0]], [box], names)) == 2
    records = coco_odd(tmp_path, [*IMAGES, {**IMAGES[0], "file_name": "other.jpg"}], [box], names)
    assert len(records) == 3
    assert records[1]["image"]["id"] == 3
    for index, place in ((0, 0), (2, 2)):
        with pytest.raises(SampleError, match=rf"images\[{place}\]: another image has the id 7 too"):
            records[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 99}, r"category_id is 99; the file has no category with id 99"),
        ({"category_id": 3}, r"category_id is 3; the file has more than one category with id 3"),
        ({"iscrowd": "no"}, r"iscrowd is 'no', where 0 or 1 is expected"),
    ],
)
def test_an_annotation_that_cannot_be_read_is_named_by_its_image(tmp_path: Path, change: dict, message: str) -> None:
    box = {"id": 5, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]}
    names = [{"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 3, "name": "cow"}]
    records = coco_odd(tmp_path, IMAGES, [box, {**box, **change}], names)
    with pytest.raises(SampleError, match=rf"instances.json, image 7: instances.json, annotations\[1\]: {message}"):
        records[0]
    assert records[1]["annotations"] == []


# --- refs ---


def refs_files(folder: Path, ann_id: int = 5) -> RefRecords:
    refs = [
        {
            "ref_id": 1,
            "ann_id": ann_id,
            "image_id": 7,
            "split": "val",
            "file_name": "7_5.jpg",
            "sentences": [{"sent_id": 10, "sent": "dog", "raw": "Dog"}, {"sent_id": 11, "sent": "the dog"}],
        },
        {"ref_id": 2, "ann_id": 5, "image_id": 7, "split": "train", "sentences": [{"sent_id": 12, "sent": "x"}]},
    ]
    instances = {"images": IMAGES, "annotations": [{"id": 5, "image_id": 7, "bbox": [1, 2, 3, 4]}]}
    return RefRecords(written(folder / "refs.json", refs), written(folder / "instances.json", instances), "val")


def test_refs_give_a_record_per_expression(tmp_path: Path) -> None:
    records = refs_files(tmp_path)
    assert [records[n]["sentence"]["sent_id"] for n in range(len(records))] == [10, 11]
    assert records[1]["image"]["file_name"] == "7.jpg"
    assert records[1]["annotation"]["bbox"] == [1, 2, 3, 4]
    assert records.where(1) == (tmp_path / "refs.json", "ref 1, sentence 11")


def test_a_ref_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        SampleError, match=r"ref 1, sentence 10: ann_id is 99; .*instances.json has no annotation with id 99"
    ):
        refs_files(tmp_path, ann_id=99)[0]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    records = refs_files(tmp_path)
    with pytest.raises(DatasetError, match=r"refs.json: has no expression of split 'testA'; it has train, val\."):
        len(RefRecords(records.refs, records.instances, "testA"))


# --- parquet ---


@pytest.fixture
def parquet(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    import pyarrow
    import pyarrow.parquet

    def write(name: str, columns: dict[str, object], rows_per_group: int = 2) -> Path:
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=rows_per_group)
        return tmp_path / name

    return write


def test_rows_of_parquet_files(parquet, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        parquet("a.parquet", {"n": [0, 1, 2], "b": [[[0.5]], [], [[1.0], [2.0]]]}),
        parquet("b.parquet", {"n": [3], "b": [[]]}),
    ]
    records = ParquetRecords(paths)
    assert records.shard_sizes == [2, 1, 1]
    assert [records[n]["n"] for n in range(4)] == [0, 1, 2, 3]
    assert records[2]["b"] == [[1.0], [2.0]]
    assert records.where(2) == (paths[0], "row group 1, row 0")
    monkeypatch.setattr(parquet_module, "_KEPT_ROW_GROUPS", 1)
    again = pickle.loads(pickle.dumps(records))
    assert "_tables" not in vars(again)
    assert [again[n]["n"] for n in (3, 0, 2, 1)] == [3, 0, 2, 1]
    assert len(again._tables) == 1


def test_what_is_no_parquet(parquet, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1 and no more", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=r"a.parquet: is not a parquet file"):
            len(ParquetRecords([path]))


def test_types_with_code_of_their_own_are_refused(parquet) -> None:
    import pyarrow

    kind = pyarrow.list_(pyarrow.uuid())
    storage = pyarrow.array([[b"0" * 16]], pyarrow.list_(pyarrow.binary(16)))
    path = parquet("a.parquet", {"id": storage.cast(kind)})
    with pytest.raises(DatasetError, match=r"a.parquet: column 'id' is of type extension"):
        len(ParquetRecords([path]))


def test_without_pyarrow_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'lyrics-vl\[data\]'"):
        ParquetRecords([tmp_path / "a.parquet"])
