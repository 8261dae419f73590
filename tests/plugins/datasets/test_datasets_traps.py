"""What is particular to each format, on files with its traps: box conventions, column orders, names that are no files,
missing halves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lyrics.core.data.readers import RecordDataset
from lyrics.core.errors import DatasetError, ImageError, SampleError
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import parse
from lyrics.core.pictures.images import FORMATS
from lyrics.core.types import Sample, Turn
from tests.plugins.datasets.conftest import built
from tests.plugins.datasets.files import GRIT, MAKERS, coco_image, parquet, picture, write

Made = Callable[..., RecordDataset]
#: (left 10, top 5, width 20, height 25) pixels of a picture of 100 x 50: what most of the small files hold.
BOX = Box(0.1, 0.1, 0.3, 0.6)


def boxes(sample: Sample) -> list[tuple[str, tuple[float, ...]]]:
    return [(found.tag, pytest.approx(found.box_norm.as_tuple())) for found in sample.objects]


# --- web ---


@pytest.mark.parametrize("name", ["laion", "cc12m", "cc3m", "sbu"])
def test_tar_shards_have_picture_caption_and_address(made: Made, name: str) -> None:
    data = made(name)
    assert [data[n].captions for n in range(4)] == [
        ("caption 0.0",),
        ("caption 0.1",),
        ("caption 1.0",),
        ("caption 1.1",),
    ]
    assert data[2].extra["url"] == "http://x/000010000"
    assert data.picture(data[2]).size == (8, 6)
    assert data.shard_sizes == [2, 2]


def test_the_two_tables_have_their_columns_in_opposite_order(tmp_path: Path) -> None:
    write(tmp_path / "cc3m/Train_GCC-training.tsv", "a dog\thttp://x/1\na cat\thttp://x/2\n")
    write(tmp_path / "cc12m/cc12m.tsv", "http://x/1\ta dog\nhttp://x/2\ta cat\n")
    for name in ("cc3m", "cc12m"):
        data = built(name, root=str(tmp_path / name))
        assert [(data[n].image, data[n].captions, data[n].extra["url"]) for n in range(2)] == [
            (None, ("a dog",), "http://x/1"),
            (None, ("a cat",), "http://x/2"),
        ]


def test_sbu_keeps_two_lists(tmp_path: Path) -> None:
    write(tmp_path / "sbu-captions-all.json", {"image_urls": ["http://x/1", "http://x/2"], "captions": ["a", "b"]})
    data = built("sbu", root=str(tmp_path))
    assert [(data[n].captions, data[n].extra["url"]) for n in range(2)] == [
        (("a",), "http://x/1"),
        (("b",), "http://x/2"),
    ]
    write(tmp_path / "sbu-captions-all.json", {"image_urls": ["http://x/1"], "captions": []})
    with pytest.raises(DatasetError, match="differ in length"):
        len(built("sbu", root=str(tmp_path)))


def test_laions_index(tmp_path: Path) -> None:
    parquet(
        tmp_path / "part-0.parquet", {"URL": ["http://x/1", "http://x/2"], "TEXT": ["a dog", None], "WIDTH": [3, 4]}
    )
    data = built("laion", root=str(tmp_path))
    assert [(data[n].captions, data[n].extra["url"]) for n in range(2)] == [
        (("a dog",), "http://x/1"),
        ((), "http://x/2"),
    ]


# --- captions ---


def test_coco(made: Made) -> None:
    data = made("coco")
    assert data[0].captions == ("c0", "c1")
    # The crowd is left out, and the box without an area counted.
    assert boxes(data[0]) == [("dog", BOX.as_tuple())]
    assert data[0].extra["boxes_dropped"] == 1
    assert data[1].captions == ("c2",)
    assert data[0].image == "000000000009.jpg"


@pytest.mark.parametrize("missing", ["captions", "instances"])
def test_coco_with_one_of_its_files(tmp_path: Path, missing: str) -> None:
    options = MAKERS["coco"](tmp_path)
    (tmp_path / f"annotations/{missing}_val2017.json").unlink()
    data = built("coco", **options)
    assert bool(data[0].captions) == (missing == "instances")
    assert bool(data[0].objects) == (missing == "captions")


def test_cocos_pictures_may_lie_apart(tmp_path: Path) -> None:
    options = MAKERS["coco"](tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    data = built("coco", **options)
    with pytest.raises(ImageError, match=r"val2017/000000000009.jpg: no such file"):
        data.picture(data[0])
    data = built("coco", **options, images=str(tmp_path / "elsewhere"))
    assert data.picture(data[0]).size == (100, 50)


def test_karpathys_splits(tmp_path: Path) -> None:
    """``train`` includes ``restval``. LAVIS's files have one caption a record for training, five for testing."""
    rows = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "split": split,
            "cocoid": n,
            "imgid": n,
            "sentences": [{"raw": f"c{n}"}],
        }
        for n, split in enumerate(("train", "restval", "val", "test"))
    ]
    write(tmp_path / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    for n in range(4):
        picture(tmp_path / "val2014" / f"COCO_val2014_{n:012d}.jpg")
    found = {part: built("coco", root=str(tmp_path), split=f"karpathy-{part}") for part in ("train", "val", "test")}
    assert {part: [data[n].captions[0] for n in range(len(data))] for part, data in found.items()} == {
        "train": ["c0", "c1"],
        "val": ["c2"],
        "test": ["c3"],
    }
    test = found["test"]
    assert test[0].extra["image_id"] == 3
    assert test.picture(test[0]).size == (100, 50)

    (tmp_path / "dataset_coco.json").unlink()
    image = "val2014/COCO_val2014_000000000003.jpg"
    write(tmp_path / "annotations/coco_karpathy_test.json", [{"image": image, "caption": ["a", "b"]}])
    write(tmp_path / "annotations/coco_karpathy_train.json", [{"image": image, "caption": "a", "image_id": "coco_3"}])
    lavis = {part: built("coco", root=str(tmp_path), split=f"karpathy-{part}") for part in ("train", "test")}
    assert lavis["test"][0].captions == ("a", "b")
    assert lavis["train"][0].captions == ("a",)
    assert lavis["train"].picture(lavis["train"][0]).size == (100, 50)


def test_nocaps(made: Made) -> None:
    data = made("nocaps")
    assert len(data[0].captions) == 10
    assert data[0].extra["domain"] == "near-domain"
    assert made("nocaps", split="test")[1].captions == ()


def test_ai_challenger_is_chinese(made: Made) -> None:
    data = made("ai-challenger")
    assert data[1].captions == tuple(f"一个男人{n}" for n in range(5))
    assert data[1].image == "b.jpg"


def test_mmc4_pairs_pictures_with_their_sentences(made: Made) -> None:
    data = made("mmc4")
    assert (data[0].image, data[0].captions) == ("b.jpg", ("First.",))
    assert data[0].extra["pairs"] == (("a.jpg", "Third."), ("b.jpg", "First."))
    assert (data[1].image, data[1].captions, data[1].extra["text"]) == (None, (), "Only words.")


def test_mmc4s_shards_are_published_packed(tmp_path: Path) -> None:
    write(tmp_path / "docs_shard_0_v2.jsonl.zip", "PK")
    with pytest.raises(DatasetError, match=r"docs_shard_0_v2.jsonl.zip: is packed, and is not read so. Unpack it"):
        built("mmc4", root=str(tmp_path))


@pytest.mark.parametrize("index", [3, -1])
def test_mmc4_with_a_sentence_that_is_not_there(tmp_path: Path, index: int) -> None:
    options = MAKERS["mmc4"](tmp_path)
    path = tmp_path / "docs_shard_0_v2.jsonl"
    path.write_text(path.read_text().replace('"matched_text_index": 2', f'"matched_text_index": {index}'))
    with pytest.raises(SampleError, match=r"docs_shard_0_v2.jsonl, line 1: an image's matched_text_index is beyond"):
        built("mmc4", **options)[0]


def test_flickr30k_and_its_entities(made: Made) -> None:
    """A chain of mentions has the name of its first; a box may belong to two chains; a scene has none."""
    data = made("flickr30k")
    assert len(data) == 2
    assert data[0].captions == ("c1.0", "c1.1", "c1.2", "c1.3", "c1.4")
    assert boxes(data[0]) == [
        ("Two young guys", BOX.as_tuple()),
        ("Two young guys", (0.5, 0.0, 1.0, 1.0)),
        ("their hands", (0.5, 0.0, 1.0, 1.0)),
    ]
    assert data[1].objects == ()
    assert len(made("flickr30k", split="all")) == 3


def test_flickr30ks_token_file(tmp_path: Path) -> None:
    write(tmp_path / "results_20130124.token", "1.jpg#0\tTwo guys .\n1.jpg#1\tMen stand .\n")
    data = built("flickr30k", root=str(tmp_path), split="all")
    assert [(data[n].image, data[n].captions) for n in range(2)] == [
        ("1.jpg", ("Two guys .",)),
        ("1.jpg", ("Men stand .",)),
    ]


def test_entities_of_xml_are_not_expanded(tmp_path: Path) -> None:
    options = MAKERS["flickr30k"](tmp_path)
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>'
    write(tmp_path / "Annotations/1.xml", bomb)
    with pytest.raises(SampleError, match=r"1.xml: declares entities of XML"):
        built("flickr30k", **options)[0]
    write(tmp_path / "Annotations/1.xml", "<annotation>")
    with pytest.raises(SampleError, match=r"1.xml: is not XML"):
        built("flickr30k", **options)[0]


# --- grounding ---


@pytest.mark.parametrize("name", ["refcoco", "refcoco-plus", "refcocog"])
def test_refs_give_a_sample_per_expression(made: Made, name: str) -> None:
    data = made(name)
    assert [data[n].objects[0].tag for n in range(len(data))] == ["Words 10", "Words 11", "Words 20", "Words 21"]
    # x, y, width, height in pixels; the picture's name without the annotation's number.
    assert boxes(data[0]) == [("Words 10", (0.1, 0.1, 0.31, 0.6))]
    assert data[0].image == "COCO_train2014_000000000009.jpg"
    assert data[0].extra["task"] == "rec"
    assert data.expected in (10_834, 10_758, 4_896)


def test_a_pickle_of_refs_is_not_opened(tmp_path: Path) -> None:
    options = MAKERS["refcoco"](tmp_path)
    (tmp_path / "refs(unc).json").rename(tmp_path / "refs(unc).p")
    with pytest.raises(DatasetError, match=r"refs\(unc\).p: is a pickle, .*lyrics data import-refs"):
        built("refcoco", **options)


def test_an_expression_whose_box_is_none_is_a_bad_sample(tmp_path: Path) -> None:
    options = MAKERS["refcoco"](tmp_path)
    path = tmp_path / "instances.json"
    path.write_text(path.read_text().replace("[10, 5, 21, 25]", "[10, 5, 0, 25]"))
    data = built("refcoco", **options)
    with pytest.raises(SampleError, match=r"refs\(unc\).json, ref 1, sentence 2: .*no area inside the image"):
        data[0]
    assert data[2].objects


def test_the_export_of_minigpt_4(tmp_path: Path) -> None:
    """Its names of pictures end in the number of the ref."""
    row = {
        "img_id": "COCO_train2014_000000000009_5",
        "sents": "guy",
        "bbox": [10, 5, 20, 25],
        "height": 50,
        "width": 100,
    }
    write(tmp_path / "refcoco+_testA.json", [row, {**row, "img_id": "../x"}])
    data = built("refcoco-plus", root=str(tmp_path), split="testA")
    assert boxes(data[0]) == [("guy", BOX.as_tuple())]
    assert data[0].image == "COCO_train2014_000000000009.jpg"
    with pytest.raises(SampleError, match=r"record 1: img_id is '../x', where a name like COCO"):
        data[1]


def test_grits_offsets_are_characters_and_its_boxes_shares(made: Made) -> None:
    data = made("grit")
    assert boxes(data[0]) == [("a paper cover", (0.019, 0.3, 0.99, 0.79)), ("a wire hanger", (0.02, 0.1, 0.98, 0.81))]
    assert (data[0].captions, data[0].extra["task"]) == ((GRIT["caption"],), "caption")
    whole = made("grit", part="ref_exps")[0]
    assert [found.tag for found in whole.objects] == ["a paper cover", "a wire hanger with a paper cover"]
    assert whole.extra["task"] == "rec"


def test_grits_index(tmp_path: Path) -> None:
    parquet(tmp_path / "coyo_0_snappy.parquet", {key: [value, value] for key, value in GRIT.items()})
    data = built("grit", root=str(tmp_path))
    assert [found.tag for found in data[1].objects] == ["a paper cover", "a wire hanger"]
    assert data[1].image is None


def test_grits_offsets_beyond_the_caption(tmp_path: Path) -> None:
    MAKERS["grit"](tmp_path)
    from lyrics.core.data.readers import write_index
    from tests.core.data.tars import sample_members, write_tar

    about = {key: value for key, value in GRIT.items() if key != "key"} | {"noun_chunks": [[90, 99, 0, 0, 1, 1, 0.5]]}
    write_index(write_tar(tmp_path / "00000.tar", sample_members("0", **about)))
    with pytest.raises(SampleError, match=r"00000.tar, sample 0: .*noun_chunks names the characters 90 to 99"):
        built("grit", root=str(tmp_path))[0]


def test_visual_genome(made: Made) -> None:
    """Three files, which spell width and height in two ways; the size stands in a fourth.

    Pictures lie in two folders.
    """
    regions, objects, questions = (made("vg", part=part) for part in ("regions", "objects", "questions"))
    assert [boxes(regions[n]) for n in range(2)] == [
        [("the clock is green", BOX.as_tuple())],
        [("shade", BOX.as_tuple())],
    ]
    assert regions[0].captions == ("the clock is green",)
    assert boxes(objects[0]) == [("clock", BOX.as_tuple())]
    assert objects[1].objects == ()
    assert [questions[n].turns for n in range(2)] == [(Turn("What color?", "Green."),)] * 2
    assert [regions[n].image for n in range(2)] == ["1.jpg", "2.jpg"]


# --- questions ---


def test_vqav2_joins_by_question_and_keeps_the_ten_records(made: Made) -> None:
    data = made("vqav2")
    assert [data[n].extra["question_id"] for n in range(2)] == [42000, 42001]
    assert data[0].turns == (Turn("What is it?", "dog"),)  # the multiple_choice_answer, not the most frequent
    assert data[0].extra["answers"] == ("cat", "dog", "cat")
    assert [record["answer_id"] for record in data[0].extra["answer_records"]] == [1, 2, 3]
    assert data[0].image == "COCO_val2014_000000000042.jpg"
    test = made("vqav2", split="test")
    assert (test[0].turns[0].answer, test[0].extra["answers"]) == ("", ())
    assert test.picture(test[0]).size == (100, 50)


def test_vqav2_without_an_annotation(tmp_path: Path) -> None:
    options = MAKERS["vqav2"](tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    path.write_text(path.read_text().replace("42001", "7"))
    with pytest.raises(
        SampleError, match=r"questions.json, record 1: .*annotations.json has no record with question_id 42001"
    ):
        built("vqav2", **options)[1]


def test_ok_vqa_trains_on_words_and_compares_stems(made: Made) -> None:
    data = made("ok-vqa")
    assert data[0].turns[0].answer == "racing"
    assert data[0].extra["answers"] == ("race", "race", "car")


def test_gqas_image_ids_are_texts(made: Made) -> None:
    data = made("gqa")
    assert data[0].image == "n578564.jpg"
    assert data[0].extra["question_id"] == "202218649"
    assert data[0].turns == (Turn("What is hanging?", "picture"),)
    everything = made("gqa", split="train-all")
    assert [everything[n].extra["question_id"] for n in range(2)] == ["0", "1"]


def test_vizwiz(made: Made) -> None:
    data = made("vizwiz")
    assert data[0].turns[0].answer == "basil"
    assert data[0].extra["answer_records"][9] == {"answer": "unanswerable", "answer_confidence": "no"}
    assert made("vizwiz", split="test")[0].extra["answers"] == ()


def test_docvqa(made: Made) -> None:
    data = made("docvqa")
    assert data[0].extra["answers"] == ("0.28", "0.28%")
    assert (data[0].extra["question_id"], data[0].extra["task"]) == (49153, "text-vqa")
    assert made("docvqa", split="test")[1].turns[0].answer == ""


def test_textvqas_ocr_boxes_are_shares(made: Made) -> None:
    data = made("textvqa")
    assert boxes(data[0]) == [("DAKOTA", (0.1, 0.2, 0.4, 0.3))]
    assert data[0].extra["boxes_dropped"] == 1
    assert data[0].turns == (Turn("what brand?", "dakota"),)


def test_ocr_vqas_splits_are_numbers(made: Made) -> None:
    data = made("ocr-vqa")
    assert [data[n].extra["question_id"] for n in range(len(data))] == [
        "1445720523-0",
        "1445720523-1",
        "1588984168-0",
        "1588984168-1",
    ]
    assert [data[n].image for n in (0, 2)] == ["1445720523.gif", "1588984168.jpg"]
    assert len(made("ocr-vqa", split="train")) == 2


@pytest.mark.parametrize("saved_as", ["gif", "jpg", "none"])
def test_ocr_vqas_covers_that_were_published_as_gif(tmp_path: Path, saved_as: str) -> None:
    """Many have saved all covers as ID.jpg, whatever they are."""
    options = MAKERS["ocr-vqa"](tmp_path)
    gif = tmp_path / "images/1445720523.gif"
    if saved_as == "none":
        gif.unlink()
    else:
        gif.rename(gif.with_suffix(f".{saved_as}"))
    data = built("ocr-vqa", **options)
    assert data[0].image == f"1445720523.{'jpg' if saved_as == 'jpg' else 'gif'}"
    if saved_as == "none":
        with pytest.raises(ImageError, match=r"1445720523.gif: no such file"):
            data.find_picture(data[0])
        return
    data.find_picture(data[0])
    if "GIF" in FORMATS:
        assert data.picture(data[0]).size == (100, 50)
    else:
        with pytest.raises(ImageError, match="is a GIF"):
            data.picture(data[0])


def test_ocr_vqa_with_an_answer_too_few(tmp_path: Path) -> None:
    options = MAKERS["ocr-vqa"](tmp_path)
    path = tmp_path / "dataset.json"
    books = json.loads(path.read_text())
    del books["1588984168"]["answers"][0]
    write(path, books)
    data = built("ocr-vqa", **options)
    assert data[1].extra["question_id"] == "1445720523-1"
    with pytest.raises(SampleError, match=r"dataset.json, record 2: 1588984168 has 2 questions and 1 answers"):
        data[2]


def test_ai2ds_letters_are_in_other_pictures(made: Made) -> None:
    data = made("ai2d")
    assert [(data[n].image, data[n].turns[0].answer) for n in range(2)] == [
        ("images/1.png", "soil"),
        ("abc_images/1.png", "B"),
    ]
    assert data[0].extra["options"] == ("sun", "soil", "leaf", "root")
    assert boxes(data[0]) == [("soil", BOX.as_tuple())]
    train = made("ai2d", split="train")
    assert train[0].image == "images/2.png"
    assert train[0].objects == ()


def test_scienceqas_pictures_lie_under_the_problems_own_split(made: Made) -> None:
    data = made("scienceqa")
    assert [data[n].extra["question_id"] for n in range(2)] == ["12", "5"]
    assert (data[0].image, data[0].turns[0].answer) == (None, "steam")
    small = made("scienceqa", split="minitest")
    assert (small[0].image, small[0].turns[0].answer) == ("test/5/image.png", "ice")
    assert small.picture(small[0]).size == (100, 50)
    with pytest.raises(DatasetError, match=r"pid_splits.json has no split 'minival'; it has train, test, minitest"):
        made("scienceqa", split="minival")


@pytest.mark.parametrize("number", [2, -1])
def test_a_right_answer_that_is_not_among_the_options(tmp_path: Path, number: int) -> None:
    options = MAKERS["scienceqa"](tmp_path)
    path = tmp_path / "problems.json"
    path.write_text(path.read_text().replace('"answer": 0', f'"answer": {number}'))
    with pytest.raises(SampleError, match=rf"the right answer is number {number} of 2"):
        built("scienceqa", **options)[1]


def test_chartqas_two_halves(made: Made) -> None:
    assert [made("chartqa")[n].turns[0] for n in range(2)] == [Turn("How many?", "14"), Turn("Which year?", "2017")]
    assert made("chartqa", part="augmented")[0].image == "b.png"


def test_dvqas_boxes_are_pixels_of_the_file(made: Made) -> None:
    data = made("dvqa")
    assert boxes(data[0]) == [("camp", BOX.as_tuple())]
    assert data[1].objects == ()


# --- instructions ---


@pytest.mark.parametrize("name", ["llava", "llavar"])
def test_llavas_mark_stands_in_the_first_turn_and_some_have_no_picture(made: Made, name: str) -> None:
    data = made(name)
    assert data[0].turns == (Turn("What is it?", "A bus."), Turn("What color?", "Red."))
    assert data[0].image == "000000033471.jpg"
    assert data[1].image is None
    assert data[1].turns[0].instruction == "What is a bus?"


def llava_sample(folder: Path, *roles: str, **about: object) -> Sample:
    """Of one record whose messages say their numbers."""
    messages = [{"from": role, "value": str(number)} for number, role in enumerate(roles)]
    row = {"id": "1", "conversations": messages, **about}
    write(folder / "llava_instruct_150k.json", [{key: value for key, value in row.items() if value is not None}])
    return built("llava", root=str(folder))[0]


@pytest.mark.parametrize(
    ("roles", "turns"),
    [
        ("gpt human gpt", [("1", "2")]),
        ("human gpt human", [("0", "1")]),
        ("gpt human gpt human", [("1", "2")]),
        ("system human gpt human gpt", [("0\n1", "2"), ("3", "4")]),
        ("system system user assistant", [("0\n1\n2", "3")]),
        ("system gpt human gpt", [("0\n2", "3")]),
    ],
)
def test_conversations_that_begin_or_end_otherwise(tmp_path: Path, roles: str, turns: list[tuple[str, str]]) -> None:
    """A leading answer and a trailing question go; a system message begins the first question."""
    assert llava_sample(tmp_path, *roles.split()).turns == tuple(Turn(*turn) for turn in turns)
    assert "id" not in llava_sample(tmp_path, *roles.split(), id=None).extra


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("", "has no question with an answer"),
        ("human", "has no question with an answer"),
        ("gpt human", "has no question with an answer"),
        ("human human gpt", "two messages in a row are from human and human"),
        ("human gpt gpt", "two messages in a row are from gpt and gpt"),
        ("human gpt system human gpt", "a system message stands in the middle"),
        ("human tool gpt", "a message is from 'tool'; system, human, user, gpt, assistant are known"),
    ],
)
def test_conversations_that_do_not_take_turns(tmp_path: Path, roles: str, message: str) -> None:
    with pytest.raises(SampleError, match=rf"json, record 0: .*{message}"):
        llava_sample(tmp_path, *roles.split())


def spoken(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def test_marks_of_the_pictures_place_are_taken_out_wherever_they_stand(tmp_path: Path) -> None:
    sample = llava_sample(
        tmp_path, image="a.jpg", conversations=spoken("Hi.", "Hi.", "And <image> this?", "An <image>")
    )
    assert sample.turns == (Turn("Hi.", "Hi."), Turn("And  this?", "An"))
    for image in ("", [], None):
        assert llava_sample(tmp_path, "human", "gpt", image=image).image is None
    assert llava_sample(tmp_path, "human", "gpt", image=["a.jpg"]).image == "a.jpg"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (["a.jpg", "b.jpg"], r"it has 2 images \(\['a.jpg', 'b.jpg'\]\); records with one image are read"),
        ("a.jpg", "the questions of its conversation have 2 marks <image>, and it names one image"),
        (None, "the questions of its conversation have 2 marks <image>, and it names no image"),
        ({"path": "a.jpg"}, "image is {'path': 'a.jpg'}, where a name or a number is expected"),
    ],
)
def test_several_pictures_are_refused_and_not_half_read(tmp_path: Path, image: object, message: str) -> None:
    with pytest.raises(SampleError, match=rf"record 0: {message}"):
        llava_sample(tmp_path, image=image, conversations=spoken("<image> <image> What differs?", "Much."))


def test_svits_boxes_become_markup_in_the_order_of_mention(made: Made) -> None:
    data = made("svit")
    (turn,) = data[0].turns
    assert turn.instruction == "What does the <br><T>man</T><Bbox>(100,200),(300,400)</Bbox></br> hold?"
    # The last one has no area: its words stay, its box does not.
    assert turn.answer.endswith("hold nothing.")
    spoken = parse(turn.instruction).objects + parse(turn.answer).objects
    assert [found.tag for found in spoken] == [found.tag for found in data[0].objects] == ["man", "kids", "kids"]
    assert boxes(data[0]) == [
        ("man", (0.1, 0.2, 0.3, 0.4)),
        ("kids", (0.5, 0.5, 0.75, 1.0)),
        ("kids", (0.0, 0.0, 0.25, 0.5)),
    ]
    for said, found in zip(spoken, data[0].objects, strict=True):
        assert said.box.iou(found.box_norm) > 0.99
    assert (data[0].extra["task"], data[0].extra["boxes_dropped"]) == ("referential", 1)
    assert (data[1].turns, data[1].extra["task"]) == ((Turn("Why?", "Because."),), "text")


def test_svit_mentions_without_words_or_boxes_stay_as_they_are(tmp_path: Path) -> None:
    said = "<st><ed> [0, 0, 1, 1] and the <st>dog<ed> and [0.1, 0.2]"
    content = [{"from": "user", "value": "What?"}, {"from": "gpt", "value": said}]
    write(tmp_path / "referring_qa.json", [{"image_id": 2, "conversations": [{"content": content}]}])
    sample = built("svit", root=str(tmp_path))[0]
    assert sample.turns[0].answer == "<st><ed> [0, 0, 1, 1] and the dog and [0.1, 0.2]"
    assert sample.objects == ()


def test_m3its_pictures_stand_in_its_records(made: Made) -> None:
    data = made("m3it")
    assert [data[n].turns[0] for n in range(3)] == [
        Turn("Answer the question.\nWhat is it?", "A bus."),
        Turn("Answer the question.\nWhat is it?", "A bus."),
        Turn("Answer the question.", "A bus."),
    ]
    assert [data[n].image for n in range(3)] == ["0", "1", None]
    assert data.picture(data[1]).size == (12, 7)


def test_m3it_with_a_picture_that_is_none(tmp_path: Path) -> None:
    options = MAKERS["m3it"](tmp_path)
    path = tmp_path / "data/captioning/coco/val.jsonl"
    row = json.loads(path.read_text())
    for text, error in (("@@@@", SampleError), ("bm8gcGljdHVyZQ==", ImageError)):
        write(path, [{**row, "image_base64_str": text}])
        data = built("m3it", **options)
        with pytest.raises(error, match=r"coco/val.jsonl, line 1"):
            data.picture(data[0])


def test_multiinstructs_regions_are_texts_of_pixels(made: Made) -> None:
    """One region's numbers begin another's; four numbers that are no region of the record stay as they are."""
    data = made("multiinstruct")
    one = "<br><T>region</T><Bbox>(100,100),(300,599)</Bbox></br>"
    assert data[0].turns[0].instruction == (
        f"Decide if the text is legible. Region {one} \n\n[Options]: not clear and complete||||clear"
    )
    assert boxes(data[0]) == [("region", BOX.as_tuple())]
    assert [found.box_norm.y2 for found in data[1].objects] == pytest.approx([0.6, 0.601, 0.601])
    assert "30.0" not in data[1].turns[0].instruction + data[1].turns[0].answer
    assert data[2].turns[0].instruction == "Say clear. 1 2 3 4"
    assert data[0].image == "raw_datasets/MSCOCO2014/train2014/COCO_train2014_000000287140.jpg"


def test_orcas_system_prompt_begins_the_instruction(made: Made) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    data = made("orca")
    assert [data[n].turns[0] for n in range(2)] == [
        Turn("You are an AI assistant.\nWhy?", "Because."),
        Turn("How?", "So."),
    ]


def test_alpacas_input_may_be_empty(made: Made) -> None:
    data = made("alpaca")
    assert [data[n].turns[0] for n in range(2)] == [Turn("Add.\n1, 2", "3"), Turn("Say hi.", "hi")]


def test_names_of_pictures_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    image = coco_image(1, "../../secret.jpg")
    picture(tmp_path / "secret.jpg")
    write(
        tmp_path / "set/annotations/captions_val2017.json",
        {"images": [image], "annotations": [{"id": 1, "image_id": 1, "caption": "c"}]},
    )
    data = built("coco", root=str(tmp_path / "set"), split="val2017")
    with pytest.raises(SampleError, match="is not the path of an image inside"):
        data.picture(data[0])
