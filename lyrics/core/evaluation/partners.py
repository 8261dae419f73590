"""Who gets whose soft tokens under ``shuffled``: an exchange that gives every sample those of another image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lyrics.core.data.draws import generator
from lyrics.core.errors import LyricsError
from lyrics.core.types import Sample


@dataclass(frozen=True)
class Partners:
    """``of[row]`` is the row whose soft tokens the sample of a row gets. Rows without images are in ``order`` alone.

    ``order`` is one in which a sample is close to its partner, so that few soft tokens must be kept at a time.
    """

    of: Mapping[int, int]
    order: tuple[int, ...]


def exchange(name: str, samples: Sequence[Sample], images: Sequence[int], seed: int) -> Partners:
    """Who gets whose soft tokens: a function of the samples and of the seed.

    A partner has as many images and shows another one; where that can be had for all, it is also asked the same kind of
    question.

    Args:
        name: of the benchmark, for messages.
        samples: all that are evaluated.
        images: how many each of them shows.
        seed: of the order of the images.

    Raises ``LyricsError`` where a sample has no partner.
    """
    of: dict[int, int] = {}
    order: list[int] = []
    for count in sorted(set(images)):
        rows = [row for row, number in enumerate(images) if number == count]
        if count:
            rows, shift = _rotation(name, samples, rows, count, seed)
            of |= {row: rows[(place + shift) % len(rows)] for place, row in enumerate(rows)}
        order += rows
    return Partners(of, tuple(order))


def _rotation(name: str, samples: Sequence[Sample], rows: list[int], count: int, seed: int) -> tuple[list[int], int]:
    """Return rows in an order, and the number of places by which they are rotated."""
    shown = f"{count} image{'s' * (count != 1)}"
    if len(rows) == 1:
        raise LyricsError(
            f"{name}: {samples[rows[0]].source or 'a sample'} is the only sample with {shown}, so there are no soft "
            "tokens of another one for --soft shuffled; evaluate more samples."
        )
    images = {row: samples[row].image for row in rows}
    image, most = Counter(images.values()).most_common(1)[0]
    if 2 * most > len(rows):
        raise LyricsError(
            f"{name}: {most} of {len(rows)} samples with {shown} show {image}, so not every sample can get the soft "
            "tokens of another image for --soft shuffled; evaluate more samples."
        )
    distinct = list(dict.fromkeys(images.values()))
    drawn = generator(seed, "exchange of soft tokens", count).permutation(len(distinct)).tolist()
    rank = dict(zip(distinct, drawn, strict=True))
    tasks = list(dict.fromkeys(str(samples[row].extra.get("task", "")) for row in rows))
    by_task = sorted(
        rows, key=lambda row: (tasks.index(str(samples[row].extra.get("task", ""))), rank[images[row]], row)
    )
    for shift in range(1, min(2 * most, len(rows) - 1) + 1):
        if all(images[row] != images[by_task[(place + shift) % len(rows)]] for place, row in enumerate(by_task)):
            return by_task, shift
    # Those of one image side by side, and none of them longer than the rotation.
    return sorted(rows, key=lambda row: (rank[images[row]], row)), most
