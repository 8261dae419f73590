"""Objects as tokens by tables: the ids of the definition, for every codec and tokenizer, whatever the tags
and boxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lyrics.core.errors import GeometryError, UnknownNameError
from lyrics.core.geometry import Box
from lyrics.core.language import spatial_tokens
from lyrics.core.language.codecs import CODECS, format_box
from lyrics.core.language.spatial_tokens import object_tokens, on_grid, spatial_units
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.stage1.batch import Spatial
from lyrics.core.types import DetectedObject
from tests.core.language import object_units
from tests.core.language.test_prompts_injections import LANGUAGE, QUERY, added_tokenizer

TOKENIZERS: dict[str, Any] = {
    **{f"language {name}": tokenizer for name, tokenizer in LANGUAGE.items()},
    **{f"query {name}": tokenizer for name, tokenizer in QUERY.items()},
    "added": added_tokenizer(),
}
#: Tags that look like what stands around them, or like nothing that is written.
ODD = (
    *(
        "",
        " ",
        "a",
        "dog",
        "red car",
        "DOG",
        "  two  spaces ",
        "[SEP]",
        "[CLS] [MASK]",
        "</T><Bbox>(1,2),(3,4)</Bbox></br>",
    ),
    *(
        "<br><T>dog</T>",
        "dog [ 0.1 0.2 0.3 0.4 ] [SEP]",
        "(5,20),(310,999)",
        "<tool_call>",
        "{tag}",
        "{}",
        "{0}",
        "\\u0041",
    ),
    *(
        "caf\u00e9",
        "\u72ac\u8f66",
        "\U0001f436",
        "e\u0301",
        "\u202etac",
        "caf\udce9",
        "\ud800",
        "\x00\x1f",
        "\n",
        "0.5",
        "12 dogs",
    ),
    "very long " * 300,
)
tags = st.one_of(st.sampled_from(ODD), st.text(max_size=20))
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
#: Shares of a side, with those where rounding is a matter of the last bit.
shares = st.one_of(
    st.floats(0, 1),
    st.integers(0, 2000).map(lambda number: number / 2000),
    st.integers(0, 1998).map(lambda number: number / 1998),
    st.integers(0, 2000).map(lambda number: float(np.nextafter(number / 2000, 1))),
)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    while True:
        x, y = (sorted((draw(shares), draw(shares))) for _ in range(2))
        if (found := Box.clip(x[0], y[0], x[1], y[1])) is not None:
            return found
        thin = draw(shares)
        if (found := Box.clip(thin, thin, thin + 2e-7, thin + 1e-3)) is not None:
            return found


objects = st.lists(st.builds(DetectedObject, tags, boxes(), st.floats(0, 1)), max_size=4).map(tuple)
images = st.lists(st.tuples(objects, sizes), max_size=4)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(sorted(CODECS)), images, st.sampled_from([0, 40, 110, 10**6])
)
def test_the_tables_give_the_definitions_ids(name: str, codec: str, seen: list[Any], longest: int) -> None:
    tokenizer = TOKENIZERS[name]
    found = object_tokens(seen, tokenizer, codec, longest)
    wanted = [object_units.spatial_units(one, tokenizer, codec, size, longest) for one, size in seen]
    assert [spatial_units(one, tokenizer, codec, size, longest) for one, size in seen] == wanted
    assert found.rows() == [[i for one in row for unit in one for i in unit] for row in wanted]
    assert found.objects_B.tolist() == [len(row) for row in wanted]
    # As a batch, against the same made of lists.
    tables, lists = Spatial.from_tokens(found), Spatial.from_objects(wanted)
    for ours, theirs in (
        (tables.text.ids_RL, lists.text.ids_RL),
        (tables.text.lengths_R, lists.text.lengths_R),
        (tables.object_BL, lists.object_BL),
        (tables.unit_BL, lists.unit_BL),
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_odd_tag(name: str, codec: str) -> None:
    seen = [DetectedObject(tag, Box(0.1, 0.2, 0.5, 0.7), 0.5) for tag in ODD]
    wanted = object_units.spatial_units(seen, TOKENIZERS[name], codec, (300, 200), 10**6)
    for _ in range(2):  # looked up the first time, known the second
        assert spatial_units(seen, TOKENIZERS[name], codec, (300, 200), 10**6) == wanted


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.lists(st.tuples(boxes(), sizes), max_size=5))
@example("released", [(Box(0.2725, 0.0005, 0.2735, 0.9995), (10, 10))])
@example("lyrics", [(Box(0.0, 0.0, 1e-6, 1.0), (1, 1)), (Box(1 - 1e-6, 0.5, 1.0, 0.5001), (1, 1))])
def test_numbers_are_those_that_are_written(codec: str, seen: list[tuple[Box, tuple[int, int]]]) -> None:
    corners = np.array([(b.x1, b.y1, b.x2, b.y2) for b, _ in seen]).reshape(-1, 4)
    numbers = on_grid(corners, codec, np.array([size for _, size in seen], np.int64).reshape(-1, 2))
    form = CODECS[codec]
    for (box, size), row in zip(seen, numbers.tolist(), strict=True):
        values = [number / (form.steps or 1) if form.decimals else number for number in row]
        assert form.box_format.format(*values) == format_box(box, codec, size)


def test_a_token_added_later_makes_new_tables() -> None:
    tokenizer = byte_tokenizer(("[PAD]", "[SEP]"))
    seen = [DetectedObject("dog", Box(0.1, 0.2, 0.5, 0.7), 0.5)]
    before = spatial_units(seen, tokenizer, "lyrics", (10, 10), 100)
    tokenizer.add_tokens(["dog"])
    after = spatial_units(seen, tokenizer, "lyrics", (10, 10), 100)
    assert after == object_units.spatial_units(seen, tokenizer, "lyrics", (10, 10), 100) != before


@pytest.mark.parametrize("codec", ["lyrics", "pixel"])
def test_the_cache_of_tags_is_bounded(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatial_tokens, "MAX_CACHED_TAGS", 5)
    tokenizer = byte_tokenizer(("[PAD]", "[SEP]"))
    for number in range(30):
        seen = [DetectedObject(f"dog {number + i}", Box(0.1, 0.2, 0.5, 0.7), 0.5) for i in range(3)]
        wanted = object_units.spatial_units(seen, tokenizer, codec, (1000 + number, 1000), 10**6)
        assert spatial_units(seen, tokenizer, codec, (1000 + number, 1000), 10**6) == wanted
        table = spatial_tokens._table(tokenizer, codec)
        assert len(table.tags) <= 5 + 3
        assert len(table.starts) <= 1100


def test_no_images_and_no_objects() -> None:
    tokenizer = TOKENIZERS["query words"]
    assert object_tokens([], tokenizer, "lyrics", 10).rows() == []
    found = object_tokens([((), (4, 4)), ((), (5, 5))], tokenizer, "lyrics", 10)
    assert (found.rows(), found.objects_B.tolist()) == ([[], []], [0, 0])


def test_mistakes_are_named() -> None:
    seen = [((DetectedObject("dog", Box(0, 0, 1, 1), 1.0),), (0, 5))]
    with pytest.raises(UnknownNameError, match="no codec 'lyric'"):
        object_tokens(seen, TOKENIZERS["query words"], "lyric", 10)
    with pytest.raises(GeometryError, match="from 1 to"):
        object_tokens(seen, TOKENIZERS["query words"], "pixel", 10)
