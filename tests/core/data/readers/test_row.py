"""Whatever a record holds, reading a field gives the type that was asked for, or one short sentence that names the
field.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.data.readers import Row
from lyrics.core.data.readers.row import clean
from lyrics.core.errors import SampleError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=300)
    | st.text(st.characters(categories=["Cs"]), max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=8,
)
READ = {
    "text": lambda row: isinstance(row.text("f"), str),
    "words": lambda row: row.words("f") != "",
    "name": lambda row: row.name("f").strip() != "",
    "identity": lambda row: isinstance(row.identity("f"), str | int),
    "texts": lambda row: all(isinstance(each, str) for each in row.texts("f")),
    "whole": lambda row: isinstance(row.whole("f"), int),
    "number": lambda row: isinstance(row.number("f"), float),
    "items": lambda row: isinstance(row.items("f"), list),
    "rows": lambda row: all(isinstance(each, Row) for each in row.rows("f")),
    "row": lambda row: isinstance(row.row("f"), Row),
    "numbers": lambda row: len(row.numbers("f", 4)) == 4,
    "size": lambda row: min(row.size("f", "f")) >= 1,
}


@settings(max_examples=40, deadline=None)
@given(value=VALUES)
@pytest.mark.parametrize("method", READ)
def test_a_value_or_a_sentence(method: str, value: object) -> None:
    for row in (Row({"f": value, "g": 1}, "about"), Row({"f": value})):
        try:
            assert READ[method](row)
        except SampleError as error:
            message = str(error)
        else:
            continue
        assert "f" in message
        assert message.startswith("about.f" if row.at else "f")
        assert len(message) < 300
        message.encode("utf-8")


@pytest.mark.parametrize("fields", [None, "text", [1], {}, {"g" * 999: 1}, {str(n): n for n in range(99)}])
def test_what_has_no_such_field(fields: object) -> None:
    for method in READ:
        with pytest.raises(SampleError, match=r"there is no key 'f'|where a mapping of fields is expected") as raised:
            READ[method](Row(fields))
        assert len(str(raised.value)) < 300
    assert not Row(fields).has("f")
    assert Row(fields).text("f", "default") == "default"


def test_texts_are_such_as_utf_8_can_hold() -> None:
    assert clean(" a\ud83d\ude00b ") == "a\U0001f600b"
    assert clean("a\ud83d") == "a\ufffd"
    assert Row({"f": 7}).text("f") == "7"
    assert Row({"f": "7.5"}).number("f") == 7.5
    assert Row({"f": 10**400}).number("f") == math.inf
    assert Row({"f": 3.0}).whole("f") == 3
