"""Spatial text: what is written comes back, and no text does harm."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open

from lyrics.core.errors import GeometryError, UnknownNameError
from lyrics.core.geometry import MIN_SIDE, Box
from lyrics.core.language.codecs import (
    CODECS,
    MAX_PROBLEMS,
    Parsed,
    SpatialObject,
    coordinate_share,
    format_box,
    format_objects,
    parse,
)

SIZE = (640, 480)
NAMES = ["lyrics", "released", "shikra", "qwen", "pixel"]

# Pieces of every codec's markup, and of what goes wrong in it.
FRAGMENTS = [
    *("<br>", "</br>", "<T>", "</T>", "<Bbox>", "</Bbox>", "<Box>", "</Box>", "<ref>", "</ref>", "<box>", "</box>"),
    *(
        "[",
        "]",
        " [ ",
        " ] ",
        "[SEP]",
        " [SEP] ",
        "[sep]",
        "[CLS]",
        ";",
        ",",
        ", ",
        "(",
        ")",
        "),(",
        ".",
        ":",
        "-",
        "+",
    ),
    *("(1,2),(30,40)", "(900,900),(1,2)", "(5,5),(5,9)", "(1,2,3)", "(0.1,0.2),(0.3,0.4)", "(1,2),(3,1050)", "1,2,3,4"),
    *("[0.1,0.2,0.3,0.4]", "[0.1,0.2,0.3,0.4;0.5,0.5,1,1]", "[ 0.1 0.2 0.3 0.4 ]", "[ -0.03 0.2 0.3 1.02 ]", "0.1 0.2"),
    *("9", "99999999999999999999999999999999999999999", "0", "0.5", ".5", "1.", "1e5", "-1", "\u0663", "nan", "inf"),
    *("dog", "red car", " ", "\n", "\t", "\\", "\\u003c", "\\ud800", "\\u00", "\u2028", "\x00", "\u00e9", "\U0001f415"),
    *("<", ">", "</", "<t>", "<BBOX>", "<T >", "{tag}", "{0}", "%s", "&lt;", "<br/>", "\ud83d", "\u017fep", "<image/>"),
]


def resolution(codec: str) -> tuple[float, float]:
    """Largest error along x and y, as shares of the sides."""
    stated = CODECS[codec].resolution
    return (stated / SIZE[0], stated / SIZE[1]) if CODECS[codec].steps is None else (stated, stated)


def random_box(rng: Random) -> Box:
    """Anywhere; one in three is thin, one in five touches a border."""
    edges = []
    for _ in range(2):
        low, high = sorted((rng.random(), rng.random()))
        if rng.random() < 0.3:
            high = low + 10 ** rng.uniform(-6.9, -2)
        if rng.random() < 0.1:
            high, low = 1.0, 1 - min(high - low, 1.0)
        elif rng.random() < 0.1:
            high, low = high - low, 0.0
        low = min(low, 1 - 2 * MIN_SIDE)
        edges.append((low, min(max(high, low + 2 * MIN_SIDE), 1.0)))
    (x1, x2), (y1, y2) = edges
    return Box(x1, y1, x2, y2)


def random_tag(rng: Random) -> str:
    """Half of the tags are ordinary words."""
    if rng.random() < 0.5:
        return rng.choice(
            ["dog", "red car", "man's hat", "salt & pepper", "t-shirt", "bat (animal)", "3/4 view", "caf\u00e9"]
        )
    return "".join(rng.choices(FRAGMENTS, k=rng.randrange(5)))


def assert_same(wanted: list[SpatialObject], parsed: Parsed, codec: str, text: str) -> None:
    assert not parsed.problems, (text, parsed.problems)
    assert [one.tag for one in parsed.objects] == [one.tag for one in wanted], text
    by_x, by_y = resolution(codec)
    for one, other in zip(wanted, parsed.objects, strict=True):
        a, b = one.box, other.box
        assert max(abs(a.x1 - b.x1), abs(a.x2 - b.x2)) <= by_x + 1e-12, text
        assert max(abs(a.y1 - b.y1), abs(a.y2 - b.y2)) <= by_y + 1e-12, text


# --- the forms -----------------------------------------------------------------------------------------------------


def test_the_codecs_are_these_five():
    assert list(CODECS) == NAMES
    assert all(name == codec.name for name, codec in CODECS.items())


def test_a_coordinate_alone_is_the_share_that_a_box_has_there() -> None:
    box = Box(0.125, 0.25, 0.5, 1.0)
    for codec in CODECS:
        if codec == "pixel":
            with pytest.raises(GeometryError, match="counts pixels"):
                coordinate_share("12", codec)
            continue
        texts = re.findall(r"\d+(?:\.\d+)?", format_box(box, codec))
        shares = [coordinate_share(text, codec) for text in texts]
        assert shares == pytest.approx(parse(format_box(box, codec), codec).objects[0].box.as_tuple(), abs=1.1e-3)
        assert coordinate_share(" 7 ", codec) is not None
        assert [coordinate_share(text, codec) for text in ("", "a", "1 2", "1,2", "nan")] == [None] * 5
    with pytest.raises(UnknownNameError, match="no codec 'other'"):
        coordinate_share("1", "other")


@pytest.mark.parametrize(
    "codec, objects, box",
    [
        (
            "lyrics",
            "<br><T>dog</T><Bbox>(5,20),(310,999)</Bbox></br><br><T>red car</T><Bbox>(250,0),(999,499)</Bbox></br>",
            "<Bbox>(5,20),(310,999)</Bbox>",
        ),
        (
            "released",
            "dog [ 0.005 0.02 0.31 1.0 ] [SEP] red car [ 0.25 0.0 1.0 0.499 ] [SEP]",
            "[ 0.005 0.02 0.31 1.0 ]",
        ),
        (
            "shikra",
            "dog[0.005,0.020,0.310,1.000], red car[0.250,0.000,1.000,0.499]",
            "[0.005,0.020,0.310,1.000]",
        ),
        (
            "qwen",
            "<ref>dog</ref><box>(5,20),(310,999)</box><ref>red car</ref><box>(250,0),(999,499)</box>",
            "<box>(5,20),(310,999)</box>",
        ),
        (
            "pixel",
            "<br><T>dog</T><Bbox>(3,10),(198,480)</Bbox></br><br><T>red car</T><Bbox>(160,0),(640,240)</Bbox></br>",
            "<Bbox>(3,10),(198,480)</Bbox>",
        ),
    ],
)
def test_written_forms(codec, objects, box):
    dog, car = Box(0.005, 0.02, 0.31, 1), Box(0.25, 0, 1, 0.4994)
    wanted = [SpatialObject("dog", dog), SpatialObject("red car", car)]
    assert format_objects(wanted, codec, SIZE) == objects
    assert format_box(dog, codec, SIZE) == box
    assert format_objects([], codec, SIZE) == ""
    assert parse("", codec, SIZE) == Parsed((), (), ())
    alone = parse(box, codec, SIZE)
    assert_same([SpatialObject("", dog)], alone, codec, box)
    assert alone.spans == ((0, len(box)),)


def test_qwen_writes_nothing_above_999():
    assert format_box(Box(0, 0, 1, 1), "qwen") == "<box>(0,0),(999,999)</box>"
    assert format_box(Box(0.9996, 0.9984, 1, 0.9986), "qwen") == "<box>(998,998),(999,999)</box>"


def test_default_codec_is_lyrics():
    box = Box(0, 0, 1, 1)
    assert format_box(box) == format_box(box, "lyrics") == "<Bbox>(0,0),(999,999)</Bbox>"
    assert parse(format_objects([SpatialObject("all", box)])).objects == (SpatialObject("all", box),)


def test_three_decimals_are_those_of_the_originals():
    """``released`` is str(round(x, 3)), ``shikra`` is f"{x:.3f}", also where 1000 * x ends in a half."""
    rng = Random(1)
    halves = [k / 10_000 for k in range(5, 10_000, 10)]
    for _ in range(5_000):
        x1, x2 = sorted(rng.sample(halves, 2) if rng.random() < 0.5 else (rng.random(), rng.random()))
        if round(x1, 3) < round(x2, 3):
            box = Box(x1, x1, x2, x2)
            a, b = round(x1, 3), round(x2, 3)
            assert format_box(box, "released") == f"[ {a} {a} {b} {b} ]"
            assert format_box(box, "shikra") == f"[{x1:.3f},{x1:.3f},{x2:.3f},{x2:.3f}]"


def test_released_text_is_that_of_the_released_model(parity: Callable[[str], Path]):
    """Token by token what the authors' code fed to its MQ-Former, for the images of the fixture that have objects."""
    with safe_open(parity("released_stage1.safetensors"), "np") as file:
        vocabulary = json.loads(file.metadata()["vocab"])
        logged = json.loads(file.metadata()["spatial_text"])
        captions = json.loads(file.metadata()["captions"])
        ids = file.get_tensor("text.text_input_tokens_ids")
    compared = 0
    for row, line, caption in zip(ids, logged, captions, strict=True):
        # the log has "name: [x1, y1, x2, y2]", three decimals
        objects = [
            SpatialObject(name.strip(": "), Box(*json.loads("[" + numbers)))
            for name, numbers in (part.split("[") for part in line.replace("]", "]\n").splitlines() if part.strip())
        ]
        pieces = "".join(vocabulary[i] for i in row if vocabulary[i] != "[PAD]").replace("##", "")
        text = format_objects(objects, "released")
        assert pieces == "[CLS]" + "".join((text + caption).split())
        compared += len(objects)
    assert compared == 5


def test_order_is_by_score():
    box = Box(0, 0, 1, 1)
    scores = [None, float("nan"), 0.2, 0.9, None, 0.2, 1]
    text = format_objects([SpatialObject(str(i), box, score) for i, score in enumerate(scores)])
    assert [one.tag for one in parse(text).objects] == ["6", "3", "2", "5", "0", "1", "4"]
    assert all(one.score is None for one in parse(text).objects)


def test_pixel_needs_the_size():
    box = Box(0, 0, 1, 1)
    for call in (
        lambda: format_box(box, "pixel"),
        lambda: parse("", "pixel"),
        lambda: format_objects([SpatialObject("a", box)], "pixel"),
    ):
        with pytest.raises(GeometryError, match=r"pass size=\(width, height\)"):
            call()
    with pytest.raises(GeometryError, match="pixels"):
        parse("", "pixel", (0, 4))


def test_unknown_codec_names_the_nearest():
    for call in (
        lambda: parse("", "quen"),
        lambda: format_objects([], "quen"),
        lambda: format_box(Box(0, 0, 1, 1), "quen"),
    ):
        with pytest.raises(UnknownNameError, match="Did you mean 'qwen'"):
            call()


# --- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("codec", NAMES)
def test_lists_come_back(codec, count):
    rng = Random(f"lists {codec}")
    for _ in range(count):
        wanted = [SpatialObject(random_tag(rng), random_box(rng)) for _ in range(rng.choice((0, 1, 1, 2)))]
        text = format_objects(wanted, codec, SIZE)
        assert_same(wanted, parse(text, codec, SIZE), codec, text)


boxes = st.builds(
    lambda x, y, w, h: Box.clip(x, y, x + w, y + h),
    *[st.floats(0, 1 - 2 * MIN_SIDE)] * 2,
    *[st.one_of(st.floats(2 * MIN_SIDE, 1), st.floats(2 * MIN_SIDE, 1e-3))] * 2,
).filter(bool)
tags = st.text(st.characters(exclude_categories=[]), max_size=12) | st.lists(
    st.sampled_from(FRAGMENTS), max_size=5
).map("".join)


@pytest.mark.parametrize("codec", NAMES)
@given(
    objects=st.lists(st.builds(SpatialObject, tags, boxes), max_size=4), size=st.tuples(*[st.integers(1, 10**6)] * 2)
)
@example(objects=[SpatialObject("", Box(0, 0, 1, 1))] * 2, size=(1, 1))
@example(objects=[SpatialObject(" ", Box(0, 0, 1, 1)), SpatialObject("  ", Box(0, 0, 1, 1))], size=(1, 1))
@example(objects=[SpatialObject("\\", Box(0, 0, 1, 1)), SpatialObject("\\u003c", Box(0, 0, 1, 1))], size=(1, 1))
@example(objects=[SpatialObject(",;.: ", Box(0, 0, 1, 1)), SpatialObject(".22 rifle", Box(0, 0, 1, 1))], size=(1, 1))
def test_any_tag_and_any_size_come_back(codec, objects, size):
    text = format_objects(objects, codec, size)
    parsed = parse(text, codec, size)
    assert not parsed.problems
    assert [one.tag for one in parsed.objects] == [one.tag for one in objects]
    assert format_objects(parsed.objects, codec, size) == text  # and stays what it is from then on
    covered = "".join(text[start:end] for start, end in parsed.spans)
    assert "".join(covered.split()).replace(",", "") == "".join(text.split()).replace(",", "")


@pytest.mark.parametrize("codec", NAMES)
def test_ordinary_tags_are_untouched(codec):
    for tag in [
        "dog",
        "salt & pepper",
        "bat (animal)",
        "man's hat",
        "3/4",
        "a, b; c.",
        "t-shirt: red",
        "caf\u00e9",
        "\u72ac",
        "{x}",
    ]:
        assert tag in format_objects([SpatialObject(tag, Box(0, 0, 1, 1))], codec, SIZE)


@pytest.mark.parametrize("codec", NAMES)
def test_tags_cannot_imitate_markup(codec):
    for tag in FRAGMENTS:
        text = format_objects([SpatialObject(tag, Box(0, 0, 1, 1))], codec, SIZE)
        plain = format_objects([SpatialObject("dog", Box(0, 0, 1, 1))], codec, SIZE)
        assert [text.count(mark) for mark in "<[]\n\x00"] == [plain.count(mark) for mark in "<[]\n\x00"]


@pytest.mark.parametrize("codec", NAMES)
def test_thin_boxes_keep_an_area(codec):
    """Thinner than a step, at every place of the step and at both borders; a thick box is off by half the resolution
    only.
    """
    rng = Random(5)
    by_x, by_y = resolution(codec)
    for _ in range(3_000):
        thin, at = 10 ** rng.uniform(-6.9, -3), rng.choice([0.0, 1.0, rng.random(), rng.randrange(1000) / 999])
        x1 = min(max(at - rng.random() * thin, 0.0), 1 - thin)
        box = Box(x1, x1, x1 + thin, x1 + thin)
        text = format_box(box, codec, SIZE)
        parsed = parse(text, codec, SIZE)
        assert_same([SpatialObject("", box)], parsed, codec, text)
        back = parsed.objects[0].box
        assert back.x2 - back.x1 <= by_x + 1e-12
        assert back.y2 - back.y1 <= by_y + 1e-12
        thick = Box(x1 / 2, x1 / 2, x1 / 2 + 0.3, x1 / 2 + 0.4)
        back = parse(format_box(thick, codec, SIZE), codec, SIZE).objects[0].box
        assert max(abs(thick.x1 - back.x1), abs(thick.x2 - back.x2)) <= by_x / 2 + 1e-12


# --- what others write ---------------------------------------------------------------------------------------------

GRID = {"lyrics": (999, 999), "qwen": (1000, 1000), "released": (1000, 1000), "shikra": (1000, 1000), "pixel": SIZE}


@pytest.mark.parametrize(
    "codec, text, objects, problems",
    [
        # the paper's mismatched closing tag, with and without its spaces, and an answer in prose
        ("lyrics", "<br><T>dog</T><Bbox>(10,20),(30,40)</Box></br>", [("dog", 10, 20, 30, 40)], []),
        ("lyrics", "<br><T> dog </T><Bbox>(10, 20),(30, 40)</Box></br>", [("dog", 10, 20, 30, 40)], []),
        ("lyrics", "The <T>dog</T><Box>(10,20),(30,40)</Bbox> runs.", [("dog", 10, 20, 30, 40)], []),
        ("lyrics", "It is at <Bbox>(10,20),(30,40)</Bbox>.", [("", 10, 20, 30, 40)], []),
        ("lyrics", "Nothing. 3 < 4, [1, 2], (5,6),(7,8)", [], []),
        ("lyrics", "<t>dog</t><bbox>(1,2),(3,4)</bbox>", [("dog", 1, 2, 3, 4)], []),
        # several boxes of one tag; prose or another group ends the list
        ("lyrics", "<T>dogs</T><Bbox>(1,2),(3,4)</Bbox>, <Bbox>(5,6),(7,8)</Bbox>",
         [("dogs", 1, 2, 3, 4), ("dogs", 5, 6, 7, 8)], []),
        ("lyrics", "<T>dog</T><Bbox>(1,2),(3,4)</Bbox> and <Bbox>(5,6),(7,8)</Bbox>",
         [("dog", 1, 2, 3, 4), ("", 5, 6, 7, 8)], []),
        ("lyrics", "<br><T>a</T><Bbox>(1,2),(3,4)</Bbox></br><br><Bbox>(5,6),(7,8)</Bbox></br>",
         [("a", 1, 2, 3, 4), ("", 5, 6, 7, 8)], []),
        ("lyrics", "<br><T>a</T><Bbox>(1,2),(3,4)</Bbox></br><Bbox>(5,6),(7,8)</Bbox>",
         [("a", 1, 2, 3, 4), ("", 5, 6, 7, 8)], []),
        ("lyrics", "<T>a</T><Bbox>(1,2),(3,4) and <Bbox>(5,6),(7,8)</Bbox>",
         [("a", 1, 2, 3, 4), ("", 5, 6, 7, 8)], ["<Bbox> is not closed"]),
        ("lyrics", "The <T>dog</T> there is at <Bbox>(1,2),(3,4)</Bbox>", [("dog", 1, 2, 3, 4)], []),
        # tags without boxes
        ("lyrics", "<T>dog</T>", [], ["<T> names a tag without a box"]),
        ("lyrics", "<br><T>dog</T></br>", [], ["<T> names a tag without a box"]),
        ("lyrics", "<T>a</T><T>b</T><Bbox>(1,2),(3,4)</Bbox>", [("b", 1, 2, 3, 4)], ["without a box"]),
        ("lyrics", "<br></br>", [], ["no object before"]),
        ("lyrics", "<T>a</T><br><Bbox>(1,2),(3,4)</Bbox></br>", [("", 1, 2, 3, 4)], ["without a box"]),
        ("lyrics", "<br><T>a</T></br><Bbox>(1,2),(3,4)</Bbox>", [("", 1, 2, 3, 4)], ["without a box"]),
        ("lyrics", "<T>a</T></Bbox> at <Bbox>(1,2),(3,4)</Bbox>", [("a", 1, 2, 3, 4)], ["</Bbox> closes nothing"]),
        # missing closing tags
        ("lyrics", "<br><T>dog</T><Bbox>(1,2),(3,4)",
         [("dog", 1, 2, 3, 4)], ["<Bbox> is not closed", "<br> is not closed"]),
        ("lyrics", "<T>dog<Bbox>(1,2),(3,4)</Bbox>", [("dog", 1, 2, 3, 4)], ["<T> is not closed"]),
        ("lyrics", "<T>dog and so on", [], ["<T> is not closed"]),
        ("lyrics", "<br><T>a</T><Bbox>(1,2),(3,4)</Bbox><br><T>b</T><Bbox>(5,6),(7,8)</Bbox></br>",
         [("a", 1, 2, 3, 4), ("b", 5, 6, 7, 8)], ["<br> is not"]),
        ("lyrics", "<Bbox>(1,2),(3,4) and 5 others", [("", 1, 2, 3, 4)], ["<Bbox> is not closed"]),
        ("lyrics", "<Bbox>(1,2),(3,4", [], ["no box of the form"]),
        ("lyrics", "</T></Bbox></br>", [], ["</T> closes nothing", "</Bbox> closes nothing", "</br> closes nothing"]),
        # corners, ranges, numbers
        ("lyrics", "<Bbox>(30,20),(10,40)</Bbox>", [("", 10, 20, 30, 40)], ["wrong order"]),
        ("lyrics", "<Bbox>(30,40),(10,20)</Bbox>", [("", 10, 20, 30, 40)], ["wrong order"]),
        ("lyrics", "<Bbox>(10,20),(30,1050)</Bbox>", [("", 10, 20, 30, 999)], ["cut at the image's border"]),
        ("lyrics", "<Bbox>(-9,20),(30,50)</Bbox>", [("", 0, 20, 30, 50)], ["cut at the image's border"]),
        ("lyrics", "<Bbox>(10,20),(1200,1050)</Bbox>", [], ["another frame"]),
        ("lyrics", "<Bbox>(-150,20),(30,50)</Bbox>", [], ["another frame"]),
        ("lyrics", "<Bbox>(10,20),(10,40)</Bbox>", [], ["without area"]),
        ("lyrics", "<Bbox>(10,20,30)</Bbox>", [], ["3 numbers"]),
        ("lyrics", "<Bbox></Bbox>", [], ["0 numbers"]),
        ("lyrics", "<Bbox>(1,2),(3,4),(5,6),(7,8)</Bbox>", [], ["8 numbers"]),
        ("lyrics", "<Bbox>10,20,30,40</Bbox>", [("", 10, 20, 30, 40)], ["a box has the form"]),
        ("lyrics", "<Bbox>about 10,20 and 30,40</Bbox>", [], ["no box of the form"]),
        ("lyrics", "<Bbox>(10.0,20),(30,40)</Bbox>", [("", 10, 20, 30, 40)], ["whole numbers"]),
        ("lyrics", "<Bbox>(0.1,0.2),(0.3,0.4)</Bbox>", [], ["shares of the sides"]),
        ("lyrics", f"<Bbox>(10,20),(30,{'9' * 5000})</Bbox>", [], ["32 characters"]),
        ("lyrics", f"<Bbox>(10,20),(30,40{' ' * 5000})</Bbox>", [("", 10, 20, 30, 40)], []),
        ("lyrics", f"<Bbox>10,20,30,40{' ' * 300}</Bbox>", [], ["no box of the form"]),
        ("lyrics", "<Bbox>(nan,20),(30,inf)</Bbox>", [], ["2 numbers"]),
        # what was damaged does not take its neighbors along
        ("lyrics", "<T>a</T><Bbox>(1,2)</Bbox>, <Bbox>(1,2),(3,4)</Bbox>", [("a", 1, 2, 3, 4)], ["2 numbers"]),
        # qwen
        ("qwen", "<ref>\u4e0a\u6d77</ref><box>(667,437),(760,874)</box>\u548c<ref>b</ref><box>(506,75),(582,946)</box>",
         [("\u4e0a\u6d77", 667, 437, 760, 874), ("b", 506, 75, 582, 946)], []),
        ("qwen", "<ref>dogs</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>",
         [("dogs", 1, 2, 3, 4), ("dogs", 5, 6, 7, 8)], []),
        ("qwen", "<box>(0,0),(1000,1000)</box>", [("", 0, 0, 1000, 1000)], []),
        ("qwen", "<T>dog</T><Bbox>(1,2),(3,4)</Bbox>", [], []),
        ("qwen", "<ref>dog</ref>", [], ["<ref> names a tag without a box"]),
        # pixel
        ("pixel", "<T>dog</T><Bbox>(0,0),(640,480)</Bbox>", [("dog", 0, 0, 640, 480)], []),
        ("pixel", "<Bbox>(10,20),(650,480)</Bbox>",
         [("", 10, 20, 640, 480)], ["x goes from 0 to 640 and y from 0 to 480"]),
        # released: coordinates slightly outside, as its detector gives them; the logged form; a cut end
        ("released", "dog [ -0.03 0.2 0.3 1.02 ] [SEP]", [("dog", 0, 200, 300, 1000)], ["cut at the image's border"]),
        ("released", "dog: [0.1, 0.2, 0.3, 0.4]", [("dog:", 100, 200, 300, 400)], ["a box has the form"]),
        ("released", "dog [ 0.1 0.2 0.3 0.4 ] [SEP] cat [ 0.1 0.2",
         [("dog", 100, 200, 300, 400)], ["ends in the middle"]),
        ("released", "dog [ 0.1 0.2 0.3 0.4 ] [SEP] cat [ 0.1 0.2 0.3 0.4",
         [("dog", 100, 200, 300, 400)], ["ends in the middle"]),
        ("released", "dog [ 0.1 0.2 0.3 0.4 [SEP] cat [ 0 0 1 1 ]",
         [("dog", 100, 200, 300, 400), ("cat", 0, 0, 1000, 1000)], ["bracket is not closed"]),
        ("released", "dog [ 0.1 0.2 0.3 ] [SEP] cat [ 0 0 1 1 ] [SEP]", [("cat", 0, 0, 1000, 1000)], ["3 numbers"]),
        ("released", "dog [ 0.1 0.2 0.3 0.4 0.5 ] [SEP]", [], ["5 numbers"]),
        ("released", "dog [SEP] cat [ 0 0 1 1 ] [SEP] mouse", [("cat", 0, 0, 1000, 1000)], ["a tag without a box"] * 2),
        ("released", "[SEP] [SEP]", [], ["[SEP] without an object"] * 2),
        ("released", "dog [ 10 20 300 400 ] [SEP]", [], ["another frame"]),
        # shikra: running text, several boxes in a bracket
        ("shikra", "The dog[0.1,0.2,0.3,0.4] sees cats[0.1,0.1,0.2,0.2;0.5,0.5,1,1].",
         [("The dog", 100, 200, 300, 400), ("sees cats", 100, 100, 200, 200), ("sees cats", 500, 500, 1000, 1000)], []),
        ("shikra", "One.\nThe dog[0.1, 0.2, 0.3, 0.4]", [("The dog", 100, 200, 300, 400)], []),
        ("shikra", "A dog[0,0,1,1]. A cat[0,0,1,1]: the cow[0,0,1,1]",
         [("A dog", 0, 0, 1000, 1000), ("A cat", 0, 0, 1000, 1000), ("the cow", 0, 0, 1000, 1000)], []),
        ("shikra", "No box [here] or [there].", [], []),
        ("shikra", "See [1] the dog[0.1,0.2,0.3,0.4]", [("the dog", 100, 200, 300, 400)], ["1 numbers"]),
        ("shikra", "dog[0.1,0.2,0.3;0.1,0.2,0.3,0.4]", [("dog", 100, 200, 300, 400)], ["3 numbers"]),
        ("shikra", "dog[0.1,0.2,0.3,0.", [], ["ends in the middle"]),
    ],
)  # fmt: skip
def test_foreign_text(codec, text, objects, problems):
    parsed = parse(text, codec, SIZE)
    width, height = GRID[codec]
    found = [
        (one.tag, one.box.x1 * width, one.box.y1 * height, one.box.x2 * width, one.box.y2 * height)
        for one in parsed.objects
    ]
    assert [one[0] for one in found] == [one[0] for one in objects]
    for one, wanted in zip(found, objects, strict=True):
        assert one[1:] == pytest.approx(wanted[1:], abs=1e-9)
    assert len(parsed.problems) == len(problems), parsed.problems
    for problem, part in zip(parsed.problems, problems, strict=True):
        assert part in problem.message
        assert 0 <= problem.start < problem.end <= len(text) or problem.start == text.find("</Bbox>")


@pytest.mark.parametrize(
    "codec, text, left",
    [
        ("lyrics", "The <br><T>dog</T><Bbox>(1,2),(3,4)</Bbox></br> sleeps.", "The @ sleeps."),
        ("lyrics", "<br> <T>dogs</T><Bbox>(1,2),(3,4)</Bbox> <Bbox>(5,6),(7,8)</Bbox> </br>!", "@ @!"),
        ("lyrics", "<br>a <T>dog</T><Bbox>(1,2),(3,4)</Bbox> b</br>", "<br>a @ b</br>"),
        ("lyrics", "<T>cat</T> and <T>dog</T><Bbox>(1,2),(3,4)</Bbox>", "<T>cat</T> and @"),
        ("lyrics", "a <Bbox>(1,2),(3,4) b", "a @ b"),
        ("lyrics", "<br><Bbox>(1,2),(3,4)</Bbox></br>x</br>", "@x</br>"),
        ("qwen", "The <ref>dog</ref><box>(1,2),(3,4)</box> sleeps", "The @ sleeps"),
        ("released", "dog [ 0 0 1 1 ] [SEP] cat [ 0 0 1 1 ]", "@ @"),
        ("shikra", "A dog[0,0,1,1], and cats[0,0,1,1;0,0,.5,.5].", "@, @;@."),
    ],
)
def test_spans_leave_the_prose(codec, text, left):
    for start, end in reversed(parse(text, codec).spans):
        text = text[:start] + "@" + text[end:]
    assert text == left


# --- hostile text --------------------------------------------------------------------------------------------------


def check(text: str, parsed: Parsed) -> None:
    """All that holds for any text: valid values, in order, with places inside of the text."""
    assert len(parsed.objects) == len(parsed.spans)
    assert len(parsed.problems) <= MAX_PROBLEMS
    for one in parsed.objects:
        assert type(one.tag) is str
        assert one == SpatialObject(one.tag, Box(*one.box.as_tuple()))
    last = 0
    for start, end in parsed.spans:
        assert last <= start < end <= len(text)
        last = end
    for problem in parsed.problems:
        assert type(problem.message) is str
        assert problem.message
        assert 0 <= problem.start <= problem.end <= len(text)


def test_fuzz():
    rng = Random(7)
    objects = problems = 0
    for turn in range(100_000):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 12)))
        codec = NAMES[turn % 5]
        parsed = parse(text, codec, SIZE)
        check(text, parsed)
        objects += len(parsed.objects)
        problems += len(parsed.problems)
    assert objects > 5_000
    assert problems > 50_000


@pytest.mark.parametrize("codec", ["lyrics", "qwen", "pixel"])
def test_damage_stays_where_it_is(codec):
    """Cut anything out of, or put anything into, the middle object: the first and the last one are read as before."""
    rng = Random(8)
    first, middle, last = (
        format_objects([SpatialObject(tag, box)], codec, SIZE)
        for tag, box in [("dog", Box(0.1, 0.2, 0.3, 0.4)), ("cat", Box(0.5, 0.5, 0.6, 0.7)), ("cow", Box(0, 0, 1, 0.5))]
    )
    outer = [parse(text, codec, SIZE).objects[0] for text in (first, last)]
    for _ in range(5_000):
        start, end = sorted((rng.randrange(len(middle) + 1), rng.randrange(len(middle) + 1)))
        text = first + middle[:start] + rng.choice(["", *FRAGMENTS]) + middle[end:] + last
        parsed = parse(text, codec, SIZE)
        check(text, parsed)
        assert parsed.objects[0] == outer[0], text
        assert parsed.objects[-1] == outer[1], text


@given(text=st.text(st.characters(exclude_categories=[])), codec=st.sampled_from(NAMES))
def test_any_text(text, codec):
    check(text, parse(text, codec, SIZE))


def test_escapes_never_make_a_surrogate():
    for one in parse(r"<T>\ud800 \uDFFF \u0041</T><Bbox>(1,2),(3,4)</Bbox>").objects:
        assert one.tag == r"\ud800 \uDFFF A"
        one.tag.encode()


def test_reading_ends_after_too_many_problems():
    text = "</T>" * 5_000 + "<Bbox>(1,2),(3,4)</Bbox>"
    parsed = parse(text)
    assert parsed.objects == ()
    assert len(parsed.problems) == MAX_PROBLEMS
    assert parsed.problems[-1].message == "too many problems: the rest was not read"
    assert (parsed.problems[-1].start, parsed.problems[-1].end) == (4 * (MAX_PROBLEMS - 1), len(text))


def assert_linear(make: Callable[[int], str], few: int, codec: str) -> None:
    """Four times the text takes four times as long; quadratic work would take sixteen times.

    Processor time, best of five.
    """
    best_short = best_long = float("inf")
    for _ in range(5):
        times = []
        for text in (make(few), make(4 * few)):
            start = time.process_time()
            parse(text, codec, SIZE)
            times.append(time.process_time() - start)
        best_short, best_long = min(best_short, times[0]), min(best_long, times[1])
        # Twice that, for memory caches that a short text still fits; and no ratios of next to nothing.
        if best_long <= 8 * max(best_short, 0.005):
            return
    raise AssertionError(
        f"{codec}, {make(5)[:60]!r}: {best_short:.4f} s, then {best_long:.4f} s for four times as much"
    )


HOSTILE = [
    *(
        "<T>",
        "(",
        "9",
        "<br><T>",
        "[ ",
        "[",
        "<",
        "<Bbox>",
        "<box>",
        "<ref>",
        "[SEP]",
        "[1",
        "9 ",
        "\\u003c",
        "1.",
        "[ -",
    ),
    *(
        " ",
        "\n",
        ";",
        "<br></T></br>",
        "[          ",
        "<br></br>",
        "<T>a</T>",
        "<Bbox>(1,2),(3,4)",
        "dog [ 0.1 0.2 0.3 0.4 ",
        ".",
        "-",
    ),
]
FRAMES = [
    ("", ""),
    ("<Bbox>", "</Bbox>"),
    ("<box>", ""),
    ("<T>", "</T><Bbox>(1,2),(3,4)</Bbox>"),
    ("dog[", "]"),
    ("[ 1", ""),
]


@pytest.mark.long
@pytest.mark.parametrize("codec", NAMES)
def test_a_megabyte_of_hostile_text_takes_linear_time(codec):
    for before, after in FRAMES:
        for piece in HOSTILE:
            assert_linear(lambda n, b=before, p=piece, a=after: b + p * (n // len(p)) + a, 250_000, codec)


@pytest.mark.parametrize(
    "codec, head, piece, tail",
    [
        ("lyrics", "", "<br><T>dog</T><Bbox>(1,2),(3,4)</Bbox></br>", ""),
        ("lyrics", f"<T>{'dog' * 30_000}</T>", "<Bbox>(1,2),(3,4)</Bbox>", ""),
        ("qwen", f"<ref>{'dog' * 30_000}</ref>", "<box>(1,2),(3,4)</box>", ""),
        ("released", "", "dog [ 0.1 0.2 0.3 0.4 ] [SEP] ", ""),
        ("shikra", "dog" * 30_000 + "[", "0.1,0.2,0.3,0.4;", "0,0,1,1]"),
        ("shikra", "\n" * 30_000, "a dog[0.1,0.2,0.3,0.4]\n", ""),
    ],
)
def test_time_is_linear_in_objects(codec, head, piece, tail):
    """Also with a long tag that thousands of boxes share."""
    assert len(parse(head + piece * 1_500 + tail, codec).objects) == 1_500 + bool(tail)
    assert_linear(lambda n: head + piece * n + tail, 1_500, codec)
