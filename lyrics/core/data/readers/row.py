"""``Row``: a record from a file that nobody has checked. What a field lacks is one sentence that names the field."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lyrics.core.errors import SampleError
from lyrics.core.geometry import MAX_SIDE, Box, Size

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60
_BRIEF.maxlist = _BRIEF.maxdict = 4
_BRIEF.maxlevel = 2
_MAX_LETTERS = 120
_MAX_KEYS = 12


def brief(value: object) -> str:
    """Return ``repr`` of a value for a message: short, however large the value is."""
    text = _BRIEF.repr(value)
    return text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS // 2]}...{text[-_MAX_LETTERS // 2 :]}"


def clean(text: str) -> str:
    """Return the text without blanks around it.

    Halves of surrogate pairs, which no UTF-8 text can hold, become U+FFFD.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()


@dataclass(frozen=True, slots=True)
class Row:
    """A mapping of fields, read with the type that each of them must have.

    Every method raises ``SampleError`` of kind ``record``: for a key that is missing, and for a value of another type.
    A null counts as missing where a default is given.

    Args:
        fields: the parsed record, which may be anything.
        at: what the record is called in messages, such as ``answers[2]``; empty for the record as a whole.
    """

    fields: Any
    at: str = ""

    def value(self, key: str) -> Any:
        """Return what stands under ``key``, unchecked."""
        if not isinstance(self.fields, Mapping):
            raise self._wrong(
                f"{self.at or 'the record'} is {brief(self.fields)}, where a mapping of fields is expected."
            )
        try:
            return self.fields[key]
        except KeyError:
            keys = ", ".join(brief(key).strip("'") for key in list(self.fields)[:_MAX_KEYS]) or "none"
            more = ", ..." if len(self.fields) > _MAX_KEYS else ""
            place = f" in {self.at}" if self.at else ""
            raise self._wrong(f"there is no key {key!r}{place}; it has {keys}{more}.") from None

    def has(self, key: str) -> bool:
        """Return True when there is something other than null under ``key``."""
        return isinstance(self.fields, Mapping) and self.fields.get(key) is not None

    def error(self, key: str, expected: str) -> SampleError:
        """Return the error for a field that is not what is ``expected``."""
        return self._wrong(f"{self._called(key)} is {brief(self.fields[key])}, where {expected} is expected.")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text, or a finite number as text."""
        if default is not None and not self.has(key):
            return default
        value = self.value(key)
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, "a text")
        return str(value)

    def words(self, key: str) -> str:
        """Return a text that is not empty."""
        text = self.text(key)
        if not text:
            raise self.error(key, "a text that is not empty")
        return text

    def name(self, key: str) -> str:
        """Return a text that is not empty, or a whole number as text: an identifier, or a part of a file's name."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.error(key, "a name or a number")
        return str(value)

    def identity(self, key: str) -> str | int:
        """Return what other records refer to this one by: a text that is not empty, or a whole number."""
        return self.name(key) if isinstance(self.value(key), str) else self.whole(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; a text alone is a list of one."""
        value = self.value(key)
        if not isinstance(value, list | tuple):
            return (self.text(key),)
        items = self._named_items(key)
        return tuple(items.text(each) for each in items.fields)

    def whole(self, key: str) -> int:
        """Return a whole number."""
        value = self.value(key)
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            raise self.error(key, "a whole number")
        return int(value)

    def number(self, key: str) -> float:
        """Return a number, or a text of one; beyond what a float holds it is infinite."""
        value = self.value(key)
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except OverflowError:
            return math.inf
        except (TypeError, ValueError):
            raise self.error(key, "a number") from None

    def items(self, key: str) -> list[Any]:
        """Return a list of anything."""
        value = self.value(key)
        if not isinstance(value, list | tuple):
            raise self.error(key, "a list")
        return list(value)

    def rows(self, key: str) -> list[Row]:
        """Return a list of mappings; their own fields are checked as they are read."""
        return [Row(each, f"{self._called(key)}[{number}]") for number, each in enumerate(self.items(key))]

    def row(self, key: str) -> Row:
        """Return a mapping."""
        value = self.value(key)
        if not isinstance(value, Mapping):
            raise self.error(key, "a mapping of fields")
        return Row(value, self._called(key))

    def numbers(self, key: str, count: int) -> list[float]:
        """Return a list of ``count`` numbers."""
        if len(self.items(key)) != count:
            raise self.error(key, f"a list of {count} numbers")
        items = self._named_items(key)
        return [items.number(each) for each in items.fields]

    def size(self, width: str = "width", height: str = "height") -> Size:
        """Return the width and height in pixels."""
        for key in (width, height):
            if not 1 <= self.whole(key) <= MAX_SIDE:
                raise self.error(key, f"a number of pixels from 1 to {MAX_SIDE:,}")
        return self.whole(width), self.whole(height)

    def xywh_px(self, key: str, size: Size) -> Box | None:
        """Return a box from (left, top, width, height) in pixels, as ``Box.from_xywh_px`` cuts it."""
        return Box.from_xywh_px(self.numbers(key, 4), size)

    def _called(self, key: str) -> str:
        return f"{self.at}.{key}" if self.at else key

    def _named_items(self, key: str) -> Row:
        """Return the items of a list as fields, each by its name in messages: ``answers[2]``."""
        return Row({f"{key}[{number}]": each for number, each in enumerate(self.items(key))}, self.at)

    def _wrong(self, sentence: str) -> SampleError:
        return SampleError(sentence, "record")


def kept(row: Row, keys: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a record that go into ``Sample.extra`` under their own names, those that are there."""
    return {key: row.fields[key] for key in keys if row.has(key)}
