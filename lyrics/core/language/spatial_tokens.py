"""An image's objects as token ids of a query transformer: its text segment S (paper, section 3.2).

An object is a list of *units*: its tag with the markup around it, each coordinate, and what stands between and after
them, each encoded by itself. Masked spatial prediction hides whole objects, or units; both stages encode objects in the
same way.

As every piece is encoded by itself, its ids can be kept: those of numbers and markup in tables made once for a
tokenizer and a codec, those of tags in a cache that is emptied when it is full. What is left for each batch is
arithmetic on arrays (``object_tokens``).

Letters: N objects, T tokens, B images.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from lyrics.core.geometry import Box, Size, checked_size
from lyrics.core.language.codecs import CODECS, SpatialObject, format_box, format_objects
from lyrics.core.language.prompts import encode_texts, encode_words, reserved_ids
from lyrics.core.stage1.batch import ObjectTokens
from lyrics.core.types import DetectedObject

#: What a token of an object's text is.
KINDS = ("markup", "names", "coordinates")
MARKUP, NAME, COORDINATE = range(len(KINDS))
_NUMBERS = re.compile(r"(\d+(?:\.\d+)?)")
#: The cache of tags is emptied when it holds more tags or tokens than these.
MAX_CACHED_TAGS, MAX_CACHED_TOKENS = 100_000, 1_000_000


def object_tokens(
    images: Sequence[tuple[Sequence[DetectedObject], Size]], tokenizer: Any, codec: str, longest: int
) -> ObjectTokens:
    """Return the objects of each image (with its size in pixels), as many as fit into ``longest`` tokens.

    No object is cut through.

    A unit is encoded as ``encode_words`` does it. The codec ``released`` ends an object with BERT's own [SEP]; that one
    is written by us and becomes the token.
    """
    table = _table(tokenizer, codec)
    sizes = [checked_size(size) if CODECS[codec].steps is None else (0, 0) for _, size in images]
    ordered = [sorted(objects, key=_worst_first) for objects, _ in images]
    counts = np.fromiter(map(len, ordered), np.int64, len(ordered))
    found = list(itertools.chain.from_iterable(ordered))
    pieces_NP = table.pieces_of(found, np.repeat(np.array(sizes, np.int64).reshape(-1, 2), counts, axis=0))
    lengths_NP = table.lengths[pieces_NP]
    lengths_N = lengths_NP.sum(1)
    image_N = np.repeat(np.arange(len(counts)), counts)
    kept_N = _within(lengths_N, image_N, len(counts)) <= longest
    pieces_NP, lengths_NP, lengths_N, image_N = (
        pieces_NP[kept_N],
        lengths_NP[kept_N],
        lengths_N[kept_N],
        image_N[kept_N],
    )
    objects_B = np.bincount(image_N, minlength=len(counts))
    starts_NP, flat = table.starts[pieces_NP].reshape(-1), lengths_NP.reshape(-1)
    ids_T = table.ids[_ragged(starts_NP, flat)]
    number_N = _within(np.ones_like(image_N), image_N, len(counts)) - 1
    unit_N = (lengths_NP > 0).sum(1)
    units_before_N = _within(unit_N, image_N, len(counts)) - unit_N
    unit_NP = units_before_N[:, None] + np.cumsum(lengths_NP > 0, axis=1) - 1
    return ObjectTokens(
        ids_T,
        np.repeat(number_N, lengths_N),
        np.repeat(unit_NP.reshape(-1), flat),
        np.bincount(image_N, lengths_N, len(counts)).astype(np.int64),
        objects_B,
    )


def _worst_first(found: DetectedObject) -> float:
    return -found.score


def _within(values_N: np.ndarray, image_N: np.ndarray, images: int) -> np.ndarray:
    """Sums from each image's first object up to and with each of its objects."""
    summed = np.cumsum(values_N)
    before_B = np.bincount(image_N, values_N, images).astype(np.int64)
    before_B = np.cumsum(before_B) - before_B
    return summed - before_B[image_N]


def _ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start_0, start_0 + 1, ... (length_0 of them), start_1, ..."""
    firsts = np.cumsum(lengths) - lengths
    return np.repeat(starts - firsts, lengths) + np.arange(int(lengths.sum()))


def spatial_units(
    objects: Sequence[DetectedObject], tokenizer: Any, codec: str, size_px: Size, longest: int
) -> list[list[list[int]]]:
    """``object_tokens`` of one image as lists: objects of units of ids."""
    found = object_tokens([(objects, size_px)], tokenizer, codec, longest)
    units: list[list[list[int]]] = [[] for _ in range(int(found.objects_B[0]))]
    last = -1
    for index, one, unit in zip(found.ids_T.tolist(), found.object_T.tolist(), found.unit_T.tolist(), strict=True):
        if unit != last:
            units[one].append([])
        units[one][-1].append(index)
        last = unit
    return units


# --- tables ----------------------------------------------------------------------------------------------------------


class _Table:
    """The ids of all pieces met with one tokenizer and codec.

    Piece p is ``ids[starts[p] : starts[p] + lengths[p]]``.
    """

    def __init__(self, tokenizer: Any, codec: str) -> None:
        self.tokenizer, self.codec = tokenizer, codec
        self.ids, self.starts, self.lengths = (np.zeros(0, np.int64) for _ in range(3))
        self.tags: dict[str, int] = {}
        _, box, ending = _around_the_box(_object("a"), codec, (10, 10))
        markup = encode_texts(tokenizer, _NUMBERS.split(box)[::2])
        ended = "[SEP]" in ending and tokenizer.sep_token_id is not None
        markup.append([int(tokenizer.sep_token_id)] if ended else encode_words(tokenizer, ending))
        first = self._add(markup)
        #: Pieces of an object: its tag, each number after the markup before it, the markup after the last, and the
        #: ending.
        self.between, self.last = range(first, first + 4), (first + 4, first + 5)
        steps = CODECS[codec].steps
        self.numbers = np.full(0 if steps is None else steps + 1, -1, np.int64)
        self._know_numbers(np.arange(len(self.numbers)))
        self.fixed = len(self.starts), len(self.ids)

    def _add(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the number of the first of these pieces."""
        first, lengths = len(self.starts), np.fromiter(map(len, rows), np.int64, len(rows))
        self.starts = np.concatenate([self.starts, len(self.ids) + np.cumsum(lengths) - lengths])
        self.lengths = np.concatenate([self.lengths, lengths])
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
        self.ids = np.concatenate([self.ids, ids])
        return first

    def pieces_of(self, found: Sequence[DetectedObject], sizes_N2: np.ndarray) -> np.ndarray:
        """Return the pieces of each object in their order: [N, 11]."""
        if len(self.tags) > MAX_CACHED_TAGS or len(self.ids) > MAX_CACHED_TOKENS:
            self._forget()
        pieces = np.empty((len(found), 11), np.int64)
        pieces[:, 0] = self._tags([one.tag for one in found])
        boxes = [one.box_norm for one in found]
        corners = np.array([(box.x1, box.y1, box.x2, box.y2) for box in boxes], np.float64).reshape(-1, 4)
        pieces[:, 2:10:2] = self._numbers(on_grid(corners, self.codec, sizes_N2))
        pieces[:, 1:9:2] = self.between
        pieces[:, 9:] = self.last
        return pieces

    def _forget(self) -> None:
        """All tags, and numbers that the codec has too many of to know them all from the start."""
        self.tags.clear()
        if CODECS[self.codec].steps is None:
            self.numbers = self.numbers[:0]
        pieces, ids = self.fixed
        self.starts, self.lengths, self.ids = self.starts[:pieces], self.lengths[:pieces], self.ids[:ids]

    def _tags(self, tags: Sequence[str]) -> list[int]:
        known = self.tags
        try:
            return [known[tag] for tag in tags]
        except KeyError:
            new = list(dict.fromkeys(tag for tag in tags if tag not in known))
        before = [_around_the_box(_object(tag), self.codec, (10, 10))[0] for tag in new]
        first = self._add(encode_texts(self.tokenizer, before))
        known.update(zip(new, range(first, first + len(new)), strict=True))
        return [known[tag] for tag in tags]

    def _numbers(self, numbers_N4: np.ndarray) -> np.ndarray:
        largest = int(numbers_N4.max(initial=0))
        if largest >= len(self.numbers):
            grown = np.full(largest + 1, -1, np.int64)
            grown[: len(self.numbers)] = self.numbers
            self.numbers = grown
        pieces = self.numbers[numbers_N4]
        if (pieces < 0).any():
            self._know_numbers(np.unique(numbers_N4[pieces < 0]))
            pieces = self.numbers[numbers_N4]
        return pieces

    def _know_numbers(self, numbers: np.ndarray) -> None:
        codec = CODECS[self.codec]
        values = [number / (codec.steps or 1) if codec.decimals else number for number in numbers.tolist()]
        texts = [_NUMBERS.split(codec.box_format.format(value, value, value, value))[1] for value in values]
        first = self._add(encode_texts(self.tokenizer, texts))
        self.numbers[numbers] = np.arange(first, first + len(texts))


#: Tokenizer -> codec -> what the tokenizer was like, and the table made with it.
_tables: WeakKeyDictionary[Any, dict[str, tuple[Any, _Table]]] = WeakKeyDictionary()


def _table(tokenizer: Any, codec: str) -> _Table:
    """Return the table of a tokenizer and codec; a new one where tokens have been added since."""
    state = (reserved_ids(tokenizer), len(tokenizer), tokenizer.sep_token_id)
    of_tokenizer = _tables.setdefault(tokenizer, {})
    known = of_tokenizer.get(codec)
    if known is None or known[0] != state:
        known = of_tokenizer[codec] = (state, _Table(tokenizer, codec))
    return known[1]


def on_grid(boxes_N4: np.ndarray, codec: str, sizes_N2: np.ndarray) -> np.ndarray:
    """The numbers that ``format_box`` writes for boxes (normalized xyxy, float64), shares in steps: int64 [N, 4].

    ``sizes_N2`` are (width, height) in pixels of each box's image, which a codec that counts pixels needs.
    """
    form = CODECS[codec]
    steps_N4 = np.tile(sizes_N2, 2) if form.steps is None else np.full(boxes_N4.shape, form.steps)
    largest_N4 = steps_N4 if form.largest is None else np.full(boxes_N4.shape, form.largest)
    scaled = boxes_N4 * steps_N4
    numbers = np.rint(scaled).astype(np.int64)
    if form.decimals:
        # Python's rounding of decimals is exact; a product with 1000 may fall on the other side of a half.
        unsure = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-6
        exact = [round(round(value, 3) * (form.steps or 1)) for value in boxes_N4[unsure].tolist()]
        numbers[unsure] = exact
    else:
        numbers = np.minimum(numbers, largest_N4)
    first, last = numbers[:, :2], numbers[:, 2:]
    alike = first == last
    back = alike & ((last == largest_N4[:, 2:]) | (scaled[:, 2:] <= last))
    return np.concatenate([first - back, last + (alike & ~back)], axis=1)


# --- what each token is ----------------------------------------------------------------------------------------------


def _object(tag: str) -> DetectedObject:
    return DetectedObject(tag, Box(0.0, 0.0, 1.0, 1.0), 0.0)


def _around_the_box(found: DetectedObject, codec: str, size_px: Size) -> tuple[str, str, str]:
    """Return an object's text before its box, the box, and after it."""
    box = format_box(found.box_norm, codec, size_px)
    whole = format_objects([SpatialObject(found.tag, found.box_norm, found.score)], codec, size_px)
    # The box's text comes after the tag's in every codec, and a tag cannot hold a box's text unescaped.
    start = whole.rindex(box)
    return whole[:start], box, whole[start + len(box) :]


def object_kinds(found: DetectedObject, tokenizer: Any, codec: str, size_px: Size) -> list[int]:
    """Return for each token of an object's units, in their order, which of ``KINDS`` it is (its number there)."""
    before, box, ending = _around_the_box(found, codec, size_px)
    kinds = _kinds_before_the_box(found, before, tokenizer, codec, size_px)
    for index, piece in enumerate(_NUMBERS.split(box)):
        kinds += [COORDINATE if index % 2 else MARKUP] * len(encode_words(tokenizer, piece))
    if "[SEP]" in ending and tokenizer.sep_token_id is not None:
        return [*kinds, MARKUP]
    return kinds + [MARKUP] * len(encode_words(tokenizer, ending))


def _kinds_before_the_box(found: DetectedObject, before: str, tokenizer: Any, codec: str, size_px: Size) -> list[int]:
    """The tag's tokens stand between those that are there whatever the tag is."""
    first, second = (_around_the_box(replace(found, tag=letter), codec, size_px)[0] for letter in "ab")
    opening, closing = first[: _shared(first, second)], first[len(first) - _shared(first[::-1], second[::-1]) :]
    ids = encode_words(tokenizer, before)
    left = _shared(ids, encode_words(tokenizer, opening))
    right = _shared(ids[left:][::-1], encode_words(tokenizer, closing)[::-1])
    return [MARKUP] * left + [NAME] * (len(ids) - left - right) + [MARKUP] * right


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many items two sequences begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def spatial_kinds(
    objects: Sequence[DetectedObject], count: int, tokenizer: Any, codec: str, size_px: Size
) -> list[list[int]]:
    """``object_kinds`` of the first ``count`` objects, best first, in the order of ``spatial_units``."""
    best = sorted(objects, key=lambda one: -one.score)[:count]
    return [object_kinds(one, tokenizer, codec, size_px) for one in best]
