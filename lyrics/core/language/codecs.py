"""Spatial representation: tags and boxes as text, and back (paper, section 3: the text form of the visual refiner's
output).

Five conventions, by name in ``CODECS``. All coordinates are those of the original image; conventions that other
projects use for a resized or padded one are used here for the original one.

========  ====================================================  ================================  ==========
codec     written                                               a coordinate is                   resolution
========  ====================================================  ================================  ==========
lyrics    ``<br><T>dog</T><Bbox>(5,20),(310,999)</Bbox></br>``  k / 999, k from 0 to 999          1/999
released  ``dog [ 0.005 0.02 0.31 1.0 ] [SEP]``                 a share, three decimals at most   0.001
shikra    ``dog[0.005,0.020,0.310,1.000]``                      a share, three decimals           0.001
qwen      ``<ref>dog</ref><box>(5,20),(310,999)</box>``         k / 1000, k from 0 to 999         0.002
pixel     ``<br><T>dog</T><Bbox>(3,10),(198,480)</Bbox></br>``  pixels; needs the image's size  1 pixel
========  ====================================================  ================================  ==========

``parse(format_objects(x)).objects == x`` for every tag whatever is in it, and for every box to within the resolution:

- *Tags.* ``\\ < [ ]``, control characters, line separators, and a space (or ``,;.:`` before a tag in ``shikra``) at
  either end are written as ``\\uXXXX``, four hexadecimal digits as in JSON. Everything else stands as it is, so
  ordinary tags are untouched, and no tag can imitate the markup around it.
- *Thin boxes.* Coordinates are rounded to the nearest step. Where both edges of a box would fall on one step, the
  edge that lies beyond it (the far one at the image's border) moves one step out: no box vanishes. Such a coordinate
  is off by up to the resolution, any other by half of it.
- *Scores* are not written. They set the order: best first.

``parse`` raises nothing, whatever the text: it returns what could be read and a list of problems. A wrong order of
corners and a coordinate a little outside of the image are repaired and reported; a box that could mean several things
is dropped and noted. The time taken is linear in the length of the text.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from lyrics.core.errors import GeometryError, UnknownNameError, did_you_mean
from lyrics.core.geometry import Box, Size, checked_size

# A text with so many problems is not a spatial representation: what follows is left unread, and the last problem says
# so.
MAX_PROBLEMS = 1_000
# A coordinate this far outside of the image (as a share of its side) is cut at the border; farther out, it must be of
# another frame, and nothing is known about the box. The released detector goes 0.03 beyond the border.
OVERSHOOT = 0.1
# Longer numbers and longer boxes are noise, such as endless nines.
_MAX_NUMBER_CHARS = 32
_MAX_BOX_CHARS = 256

# What follows a repetition in these patterns never begins with what it repeats, so that matching cannot backtrack far.
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_BLANK = " \t\n\r\f\v"
_UNSAFE = re.compile(r"[\\<\[\]\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Never a surrogate: it could not be encoded afterwards.
_ESCAPE = re.compile(r"\\u((?![dD][89a-fA-F])[0-9a-fA-F]{4})")


@dataclass(frozen=True, slots=True)
class SpatialObject:
    """A tag and its box in the original image; the score (larger is better) where something gave one."""

    tag: str
    box: Box
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in ``text[start:end]`` that could not be taken as it stands."""

    message: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """What ``parse`` found, in the order of the text.

    ``spans[i]`` is (start, end) of object i's whole markup, so that cutting all spans out leaves the prose around them.
    Spans do not overlap. The objects have no score.
    """

    objects: tuple[SpatialObject, ...]
    spans: tuple[tuple[int, int], ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to write objects as text.

    Attributes:
        name: what specifications call it.
        resolution: the largest error of a coordinate after writing and reading, as a share of the image's side;
            for ``pixel``, whose ``steps`` is None, in pixels. Half of it unless a box is thinner than a step.
        steps: the number that stands for the right and the lower border, or None for the image's width and height.
        largest: the largest number that is written, where that is not ``steps``.
        decimals: whether numbers are written divided by ``steps``, as a share.
        box_format, object_format, separator: templates for a box's four numbers, for ``tag`` and ``box``, and
            between objects.
        box_shape: a box's text inside its delimiters, each number replaced by 0.
        leading: characters that are no part of a tag at its beginning.
        box: matches that, with a group for each number and one for the blanks at the end.
        token: finds the next piece of markup.
        scan: reads a text of this form.
    """

    name: str
    resolution: float
    steps: int | None
    box_format: str
    object_format: str
    separator: str
    box_shape: str
    box: re.Pattern[str] = field(init=False, repr=False)
    token: re.Pattern[str]
    scan: Callable[[_Reading], None]
    largest: int | None = None
    decimals: bool = False
    leading: str = _BLANK

    def __post_init__(self) -> None:
        parts = {"0": rf"\s*({_NUMBER.pattern})", " ": r"\s"}
        pattern = "".join(parts.get(character, r"\s*" + re.escape(character)) for character in self.box_shape)
        object.__setattr__(self, "box", re.compile(pattern + r"(\s*)", re.ASCII))


def format_objects(objects: Iterable[SpatialObject], codec: str = "lyrics", size: Size | None = None) -> str:
    """Objects as text, in descending score; equal scores keep their order, objects without a score come last in theirs.

    ``size`` is the original image's (width, height); only ``pixel`` needs it, and raises ``GeometryError`` without
    it. Raises ``UnknownNameError`` for an unknown codec.
    """
    form = _codec(codec)
    ordered = sorted(objects, key=lambda one: math.inf if one.score is None or math.isnan(one.score) else -one.score)
    return form.separator.join(
        form.object_format.format(tag=_escape(one.tag, form), box=format_box(one.box, codec, size)) for one in ordered
    )


def format_box(box: Box, codec: str = "lyrics", size: Size | None = None) -> str:
    """Return a box alone, as an instruction quotes it; ``parse`` reads it as an object with an empty tag.

    Raises as ``format_objects``.
    """
    form = _codec(codec)
    steps_x, steps_y = _steps(form, size)
    x1, x2 = _on_grid(box.x1, box.x2, steps_x, form)
    y1, y2 = _on_grid(box.y1, box.y2, steps_y, form)
    if form.decimals:
        return form.box_format.format(x1 / steps_x, y1 / steps_y, x2 / steps_x, y2 / steps_y)
    return form.box_format.format(x1, y1, x2, y2)


def coordinate_share(text: str, codec: str = "lyrics") -> float | None:
    """Return one coordinate of a box as a share of the image's side; None for a text that is no number.

    Raises ``UnknownNameError`` for an unknown codec, and ``GeometryError`` for ``pixel``, whose numbers are no shares.
    """
    form = _codec(codec)
    steps, _ = _steps(form, None)
    number = text.strip()
    if not _NUMBER.fullmatch(number):
        return None
    return float(number) if form.decimals else float(number) / steps


def parse(text: str, codec: str = "lyrics", size: Size | None = None) -> Parsed:
    """Every object that can be read from a text, with its place, and every problem met. No text raises an exception.

    Boxes without a tag have the empty tag; several boxes behind one tag are several objects. ``size`` is the original
    image's (width, height); only ``pixel`` needs it, and raises ``GeometryError`` without it. Raises
    ``UnknownNameError`` for an unknown codec.
    """
    form = _codec(codec)
    reading = _Reading(text, form, _steps(form, size))
    with contextlib.suppress(_TooManyProblemsError):
        form.scan(reading)
    return Parsed(tuple(reading.objects), tuple(reading.spans), tuple(reading.problems))


def _codec(name: str) -> Codec:
    if name not in CODECS:
        raise UnknownNameError(
            f"there is no codec {name!r}; there are {', '.join(CODECS)}.{did_you_mean(name, CODECS)}"
        )
    return CODECS[name]


def _steps(codec: Codec, size: Size | None) -> tuple[int, int]:
    """Return the numbers that stand for the right and the lower border of the image."""
    if codec.steps is not None:
        return codec.steps, codec.steps
    if size is None:
        raise GeometryError(f"codec {codec.name!r} counts pixels of the original image: pass size=(width, height)")
    return checked_size(size)


def _on_grid(low: float, high: float, steps: int, codec: Codec) -> tuple[int, int]:
    """Both edges of an interval of [0, 1] in whole steps, never the same one."""
    largest = codec.largest or steps
    if codec.decimals:  # Python's rounding of decimals is exact and so is not that of 1000 * x: 0.2725 is 0.273
        first, last = round(round(low, 3) * steps), round(round(high, 3) * steps)
    else:
        first, last = min(round(low * steps), largest), min(round(high * steps), largest)
    if first == last:
        if last == largest or high * steps <= last:
            first -= 1
        else:
            last += 1
    return first, last


def _code(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _escape(tag: str, codec: Codec) -> str:
    text = _UNSAFE.sub(lambda found: _code(found[0]), tag)
    if text and text[0] in codec.leading:
        text = _code(text[0]) + text[1:]
    if text.endswith(" "):
        text = text[:-1] + _code(" ")
    return text


def _unescape(text: str, codec: Codec) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text.lstrip(codec.leading).rstrip(_BLANK))


class _TooManyProblemsError(Exception):
    """Ends a scan."""


class _Reading:
    """A text and what has been found in it so far."""

    def __init__(self, text: str, codec: Codec, steps: tuple[int, int]) -> None:
        self.text = text
        self.codec = codec
        self.border = (1, 1) if codec.decimals else steps
        self.objects: list[SpatialObject] = []
        self.spans: list[tuple[int, int]] = []
        self.problems: list[Problem] = []

    def found(self, tag: str, box: Box, start: int, end: int) -> None:
        self.objects.append(SpatialObject(tag, box))
        self.spans.append((start, end))

    def extend_last(self, end: int) -> None:
        self.spans[-1] = (self.spans[-1][0], end)

    def blank(self, start: int, end: int) -> bool:
        """Return whether there is nothing but blanks and the punctuation of a list."""
        return not self.text[start:end].strip(_BLANK + ",;")

    def problem(self, message: str, start: int, end: int) -> None:
        if len(self.problems) == MAX_PROBLEMS - 1:
            self.problems.append(Problem("too many problems: the rest was not read", start, len(self.text)))
            raise _TooManyProblemsError
        self.problems.append(Problem(message, start, end))

    def read_box(self, start: int, end: int, *, closed: bool = True) -> tuple[Box | None, int]:
        """Return the box written in ``text[start:end]``, or None after noting why not; and where it ends.

        Without its closing markup prose may follow, and then only the exact form counts: a number could be cut short.
        """
        found = self.codec.box.match(self.text, start, end)
        if found and (found.end() == end or not closed):
            return self._box(found.groups()[:4], start, found.start(5)), found.start(5)
        inside = self.text[start : min(end, start + _MAX_BOX_CHARS)]
        numbers = _NUMBER.findall(inside)
        punctuated = closed and len(inside) == end - start and not _NUMBER.sub("", inside).strip("(),;[]" + _BLANK)
        if punctuated and len(numbers) == 4:
            self.problem(f"a box has the form {self.codec.box_shape}", start, end)
            return self._box(numbers, start, end), end
        self.problem(f"no box of the form {self.codec.box_shape} here: {len(numbers)} numbers", start, end)
        return None, end

    def _box(self, numbers: Sequence[str], start: int, end: int) -> Box | None:
        """Return the box with these corners; repair what is clear, and report it."""
        if max(map(len, numbers)) > _MAX_NUMBER_CHARS:
            self.problem(f"a number of more than {_MAX_NUMBER_CHARS} characters is no coordinate", start, end)
            return None
        x1, y1, x2, y2 = map(float, numbers)
        if not self.codec.decimals and any("." in number for number in numbers):
            shares = max(x1, y1, x2, y2) <= 1
            what = "these look like shares of the sides" if shares else "read all the same"
            self.problem(f"coordinates are whole numbers here: {what}", start, end)
            if shares:
                return None
        if x1 > x2 or y1 > y2:
            self.problem("the corners are in the wrong order: put right", start, end)
            x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        right, bottom = self.border
        x1, y1, x2, y2 = x1 / right, y1 / bottom, x2 / right, y2 / bottom
        if min(x1, y1) < 0 or max(x2, y2) > 1:
            near = min(x1, y1) >= -OVERSHOOT and max(x2, y2) <= 1 + OVERSHOOT
            what = "cut at the image's border" if near else "this is a box of another frame"
            self.problem(f"x goes from 0 to {right} and y from 0 to {bottom}: {what}", start, end)
            if not near:
                return None
        box = Box.clip(x1, y1, x2, y2)
        if box is None:
            self.problem("a box without area", start, end)
        return box


_PARTS = {"br": "group", "t": "tag", "ref": "tag", "bbox": "box", "box": "box"}
_KINDS = {f"<{slash}{word}>": slash + part for word, part in _PARTS.items() for slash in ("", "/")}


class _Token(NamedTuple):
    """A piece of markup: "group", "tag" or "box" opens one, "/group", "/tag" or "/box" closes it.

    "end" is the end of the text.
    """

    kind: str
    start: int
    end: int


class _MarkupScan:
    """``<br><T>tag</T><Bbox>(x1,y1),(x2,y2)</Bbox></br>``, the paper's own ``</Box>``, and Qwen's ``<ref>`` and
    ``<box>``.
    """

    def __init__(self, reading: _Reading) -> None:
        self.reading = reading
        self.tag = ""  # of the boxes to come
        self.waiting: _Token | None = None  # the opening of a tag that has no box yet
        self.group: _Token | None = None  # the open <br>
        self.begin: int | None = None  # where the next object's markup begins, if before its box

    def run(self) -> None:
        before = ""
        for token, following in pairwise(self._tokens()):
            kind = token.kind
            if kind in ("/tag", "/box") and before != kind[1:]:
                self._problem("closes nothing", token)
            if kind == "tag":
                self._open_tag(token, following)
            elif kind == "box":
                self._read_box(token, following)
            elif kind == "/box":
                self._end_list(token.end, following.start)
            elif kind == "group":
                self._open_group(token, following)
            elif kind == "/group":
                self._close_group(token, empty=before == "group")
            before = kind
        self._end_tag()
        self._end_group()

    def _tokens(self) -> Iterator[_Token]:
        text = self.reading.text
        for found in self.reading.codec.token.finditer(text):
            yield _Token(_KINDS[found[0].lower()], found.start(), found.end())
        yield _Token("end", len(text), len(text))

    def _problem(self, message: str, token: _Token) -> None:
        self.reading.problem(f"{self.reading.text[token.start : token.end]} {message}", token.start, token.end)

    def _end_tag(self) -> None:
        if self.waiting:
            self._problem("names a tag without a box", self.waiting)
            self.begin = None
        self.tag, self.waiting = "", None

    def _open_tag(self, token: _Token, following: _Token) -> None:
        self._end_tag()
        if following.kind != "/tag":
            self._problem("is not closed", token)
        if following.kind in ("/tag", "box"):
            self.tag = _unescape(self.reading.text[token.end : following.start], self.reading.codec)
            self.waiting = token
            self.begin = token.start if self.begin is None else self.begin
        else:
            self.begin = None

    def _read_box(self, token: _Token, following: _Token) -> None:
        closed = following.kind == "/box"
        box, end = self.reading.read_box(token.end, following.start, closed=closed)
        if box is not None:
            if not closed:
                self._problem("is not closed", token)
            start = token.start if self.begin is None else self.begin
            self.reading.found(self.tag, box, start, following.end if closed else end)
        self.waiting, self.begin = None, None
        if not closed:
            self._end_list(end, following.start)

    def _end_list(self, start: int, end: int) -> None:
        """After a box: prose ends the list of boxes that share a tag."""
        if not self.waiting and not self.reading.blank(start, end):
            self.tag = ""

    def _end_group(self) -> None:
        if self.group:
            self._problem("is not closed", self.group)
        self.group = None

    def _open_group(self, token: _Token, following: _Token) -> None:
        self._end_tag()
        self._end_group()
        self.group = token
        self.begin = token.start if self.reading.blank(token.end, following.start) else None

    def _close_group(self, token: _Token, *, empty: bool) -> None:
        self._end_tag()
        if self.group is None:
            self._problem("closes nothing", token)
        elif empty:
            self._problem("has no object before it", token)
        elif self.reading.spans:
            start, end = self.reading.spans[-1]
            if start >= self.group.start and self.reading.blank(end, token.start):
                self.reading.extend_last(token.end)
        self.group, self.begin = None, None


def _scan_markup(reading: _Reading) -> None:
    _MarkupScan(reading).run()


def _scan_list(reading: _Reading) -> None:
    """``tag [ x1 y1 x2 y2 ] [SEP]``: a list and nothing else, so all text between the boxes is tags."""
    since = 0  # where the next tag begins
    state = ""  # since the last [SEP]: no box, one that was read, or one that was not
    for found in reading.codec.token.finditer(reading.text):
        start, end = found.span()
        if found[1] is None:  # [SEP]
            if not reading.blank(since, start):
                reading.problem("a tag without a box", since, start)
            elif state == "read":
                reading.extend_last(end)
            elif not state:
                reading.problem("[SEP] without an object", start, end)
            state = ""
        else:
            state = "read" if _read_bracket(reading, since, found, many=False) else "not read"
        since = end
    if not reading.blank(since, len(reading.text)):
        reading.problem("a tag without a box", since, len(reading.text))


def _scan_prose(reading: _Reading) -> None:
    """``tag[x1,y1,x2,y2;x1,y1,x2,y2]`` in running text: what stands before a bracket, on the same line, is its tag."""
    since = 0
    for found in reading.codec.token.finditer(reading.text):
        line = reading.text.rfind("\n", since, found.start()) + 1
        _read_bracket(reading, max(since, line), found, many=True)
        since = found.end()


def _read_bracket(reading: _Reading, since: int, found: re.Match[str], *, many: bool) -> bool:
    """Reads a bracket's box, or boxes, with the tag that stands between ``since`` and it. Whether there was one."""
    text = reading.text
    (start, stop), closed = found.span(1), found[2] is not None
    if not closed and stop == len(text) and not text[-1].isspace():
        reading.problem("the text ends in the middle of a box", found.start(), stop)
        return False
    name = text[since : found.start()]
    tag = _unescape(name, reading.codec)
    begin = since + len(name) - len(name.lstrip(reading.codec.leading))
    any_box = False
    while start <= stop:
        end = text.find(";", start, stop) if many else -1
        end = stop if end < 0 else end
        box, _ = reading.read_box(start, end)
        if box is not None:
            reading.found(tag, box, begin, found.end() if end == stop else end)
            any_box = True
        start = begin = end + 1
    if any_box and not closed:
        reading.problem("the bracket is not closed", found.start(), stop)
    return any_box


_BRACKET = r"\[(?=\s*[-+.]*[0-9])([-+0-9.,;\s]*)(\])?"

_FLAGS = re.IGNORECASE | re.ASCII

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        # The paper's markup, section 3, with its closing tag corrected. It says nothing of numbers; 999 for the border
        # makes the whole image (0,0),(999,999) exactly.
        Codec(
            "lyrics",
            resolution=1 / 999,
            steps=999,
            box_format="<Bbox>({},{}),({},{})</Bbox>",
            object_format="<br><T>{tag}</T>{box}</br>",
            separator="",
            box_shape="(0,0),(0,0)",
            token=re.compile(r"</?(?:br|t|bbox|box)>", _FLAGS),
            scan=_scan_markup,
        ),
        # The authors' code (Fengshenbang-LM, pull request 449): str(round(x, 3)) of each coordinate, one object after
        # the other.
        Codec(
            "released",
            resolution=0.001,
            steps=1000,
            decimals=True,
            box_format="[ {} {} {} {} ]",
            object_format="{tag} {box} [SEP]",
            separator=" ",
            box_shape="0 0 0 0",
            token=re.compile(r"\[SEP\]|" + _BRACKET, _FLAGS),
            scan=_scan_list,
        ),
        # shikras/shikra, mllm/dataset/process_function/box_process_function.py, PlainBoxFormatter: f"{x:.3f}", boxes of
        # one phrase joined by ";". (Shikra measures in the image padded to a square, we in the original.)
        Codec(
            "shikra",
            resolution=0.001,
            steps=1000,
            decimals=True,
            box_format="[{:.3f},{:.3f},{:.3f},{:.3f}]",
            object_format="{tag}{box}",
            separator=", ",
            box_shape="0,0,0,0",
            leading=_BLANK + ",;.:",
            token=re.compile(_BRACKET, _FLAGS),
            scan=_scan_prose,
        ),
        # Qwen-VL (arXiv 2308.12966): "normalized within [0, 1000)". Its tokenizer draws x / 1000 * width
        # (tokenization_qwen.py); eval_mm/evaluate_grounding.py of the same project divides by 999. Written numbers end
        # at 999: a border reads back as 0.999.
        Codec(
            "qwen",
            resolution=0.002,
            steps=1000,
            largest=999,
            box_format="<box>({},{}),({},{})</box>",
            object_format="<ref>{tag}</ref>{box}",
            separator="",
            box_shape="(0,0),(0,0)",
            token=re.compile(r"</?(?:ref|box)>", _FLAGS),
            scan=_scan_markup,
        ),
        # The markup of ``lyrics`` with whole pixels.
        Codec(
            "pixel",
            resolution=1.0,
            steps=None,
            box_format="<Bbox>({},{}),({},{})</Bbox>",
            object_format="<br><T>{tag}</T>{box}</br>",
            separator="",
            box_shape="(0,0),(0,0)",
            token=re.compile(r"</?(?:br|t|bbox|box)>", _FLAGS),
            scan=_scan_markup,
        ),
    )
}
