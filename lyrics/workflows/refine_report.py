"""``lyrics report FOLDER``: what ``lyrics refine`` found, on one HTML page that needs no other file and no network.

One pass over the rows, which holds counts and the few rows that are shown.
"""

from __future__ import annotations

import base64
import heapq
import html
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lyrics.core.data.readers.tar import TarRecords
from lyrics.core.data.refine_inputs import picture_at
from lyrics.core.errors import LyricsError
from lyrics.core.files import name_as_text, name_for_messages
from lyrics.core.refining.index import key_of
from lyrics.core.refining.refinement import Refinement, name_from_json
from lyrics.core.refining.rows import OBJECTS_FILE, SKIPPED_FILE, read_rows, read_skipped, refinement_of, written_whole
from lyrics.core.refining.shards import SHARDS_FOLDER

REPORT_FILE = "report.html"
#: Images that are drawn, and boxes at either end that are listed.
SAMPLES, BOXES = 20, 10
#: Of a histogram of scores from 0 to 1.
BINS = 20
_TAGS, _HISTOGRAMS, _FAILURES = 100, 12, 20
_SIDE_PX = 480
# Nothing on the page may run or be fetched, whatever an image is called.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """body{font:15px/1.45 sans-serif;margin:1rem auto;max-width:70rem;padding:0 1rem;color:#222}
figure{display:inline-block;vertical-align:top;margin:0 1rem 1rem 0;width:min(20rem,100%)}
figcaption{font-size:.8rem;overflow-wrap:anywhere}img{max-width:100%}svg text{font:10px sans-serif;fill:#555}
table{border-collapse:collapse;font-size:.85rem}td,th{text-align:left;border-top:1px solid #ddd;padding:.1rem .6rem;
overflow-wrap:anywhere}td.n{text-align:right}"""


@dataclass(frozen=True, order=True)
class _SizedBox:
    """A box and its share of the image's area; compared by the share, then by the image's name."""

    share: float
    image: str
    tag: str = field(compare=False)
    score: float = field(compare=False)
    size_px: tuple[float, float] = field(compare=False)


@dataclass
class Findings:
    """What the rows of a folder hold: counts, and the few rows and boxes that are shown."""

    images: int = 0
    without_objects: int = 0
    masks: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    #: Images that have an object of the tag.
    images_with: Counter[str] = field(default_factory=Counter)
    scores: dict[str, list[int]] = field(default_factory=dict)
    smallest: list[_SizedBox] = field(default_factory=list)
    largest: list[_SizedBox] = field(default_factory=list)
    samples: list[Refinement] = field(default_factory=list)
    refiners: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    failure_reasons: list[str] = field(default_factory=list)


def find(folder: Path) -> Findings:
    """Read what ``lyrics refine`` wrote into ``folder``. The samples do not depend on the order of the rows.

    Raises ``LyricsError`` where there are no rows, or a row is damaged.
    """
    rows = folder / OBJECTS_FILE
    if not rows.is_file():
        shards = (folder / SHARDS_FOLDER).is_dir()
        raise LyricsError(
            f"{name_for_messages(folder)}: holds shards that were not brought together; run lyrics data merge "
            f"{name_for_messages(folder)} first."
            if shards
            else f"{name_for_messages(folder)}: has no {OBJECTS_FILE}; give the --out of lyrics refine."
        )
    found = Findings()
    chosen: list[tuple[int, int, Any, str]] = []  # a heap whose first is the next to go
    for where, row in read_rows(rows):
        try:
            _add(found, row)
            key = -int.from_bytes(key_of(name_from_json(row)), "big")
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise LyricsError(f"{where}: not a line of {OBJECTS_FILE}: {type(error).__name__}: {error}.") from None
        if len(chosen) < SAMPLES or key > chosen[0][0]:
            (heapq.heappush if len(chosen) < SAMPLES else heapq.heapreplace)(chosen, (key, found.images, row, where))
    found.samples = [refinement_of(row, where) for _, _, row, where in sorted(chosen, reverse=True, key=lambda x: x[0])]
    for _, failure in read_skipped(folder / SKIPPED_FILE):
        found.failures[failure.kind] += 1
        if len(found.failure_reasons) < _FAILURES:
            found.failure_reasons.append(str(failure))
    return found


def _add(found: Findings, row: Mapping[str, Any]) -> None:
    found.images += 1
    found.refiners[str(row.get("refiner", "unknown"))] += 1
    area, name = float(row["width"] * row["height"]), str(row["image"])
    objects: Sequence[Mapping[str, Any]] = row["objects"]
    found.without_objects += not objects
    found.images_with.update({str(one["tag"]) for one in objects})
    for one in objects:
        tag, score = str(one["tag"]), float(one.get("score", 1.0))
        found.objects[tag] += 1
        found.masks += bool(one.get("mask"))
        counts = found.scores.setdefault(tag, [0] * BINS)
        counts[min(max(int(score * BINS), 0), BINS - 1)] += 1
        x1, y1, x2, y2 = one["box_px"]
        share = (x2 - x1) * (y2 - y1) / area
        few = len(found.smallest) < BOXES
        if few or share < found.smallest[-1].share or share > found.largest[-1].share:
            box = _SizedBox(share, name, tag, score, (x2 - x1, y2 - y1))
            found.smallest = sorted([*found.smallest, box])[:BOXES]
            found.largest = sorted([*found.largest, box], reverse=True)[:BOXES]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a refined folder, and return its path: ``report.html`` there unless ``out`` is given.

    Raises:
        LyricsError: as ``find``.
        OSError: the page cannot be written.
    """
    found = find(folder)
    target = out or folder / REPORT_FILE
    with written_whole(target) as file:
        file.write(page(found, name_for_messages(folder)).encode("utf-8", "backslashreplace"))
    return target


def page(found: Findings, title: str) -> str:
    """Return the page."""
    objects = found.objects.total()
    refiners = ", ".join(f"{name} ({count:,})" for name, count in found.refiners.most_common(3))
    facts = {
        "images": f"{found.images:,}, {found.without_objects:,} of them without objects",
        "objects": f"{objects:,}, {found.masks:,} with a mask; {objects / max(1, found.images):.2f} an image",
        "tags": f"{len(found.objects):,}",
        "skipped": f"{found.failures.total():,}",
        "refiner": refiners or "-",
    }
    common = found.objects.most_common(_TAGS)
    everything = [sum(column) for column in zip(*found.scores.values(), strict=True)] or [0] * BINS
    histograms = [("all", everything)] + [(tag, found.scores[tag]) for tag, _ in common[:_HISTOGRAMS]]
    more = len(found.objects) - len(common)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>"
        + _table((), facts.items())
        + "<h2>Counts by tag</h2>"
        + _table(
            ("tag", "objects", "images", ""),
            ((tag, count, found.images_with[tag], _bar(count / common[0][1])) for tag, count in common),
        )
        + (f"<p>and {more:,} more tags</p>" if more > 0 else "")
        + "<h2>Scores</h2>"
        + "".join(
            f"<figure>{_histogram(counts)}<figcaption>{_text(tag)}</figcaption></figure>\n"
            for tag, counts in histograms
        )
        + "<h2>Smallest boxes</h2>"
        + _boxes(found.smallest)
        + "<h2>Largest boxes</h2>"
        + _boxes(found.largest)
        + "<h2>Samples</h2>"
        + "".join(map(_figure, found.samples))
        + "<h2>Failures</h2>"
        + _table(("kind", "images"), found.failures.most_common())
        + "".join(f"<p>{_text(reason)}</p>" for reason in found.failure_reasons)
        + "</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(name_as_text(text))


@dataclass(frozen=True)
class _Markup:
    """Text that is HTML already."""

    text: str


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def cell(value: object) -> str:
        if isinstance(value, _Markup):
            return f"<td>{value.text}</td>"
        return f"<td class=n>{value:,}</td>" if isinstance(value, int) else f"<td>{_text(str(value))}</td>"

    head = "<tr>" + "".join(f"<th>{_text(name)}</th>" for name in names) + "</tr>" if names else ""
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    return f"<table>{head}{body}</table>" if body else "<p>none</p>"


def _bar(share: float) -> _Markup:
    return _Markup(f"<svg width=200 height=10><rect width='{200 * share:.1f}' height=10 fill='#0072b2'/></svg>")


def _histogram(counts: Sequence[int]) -> str:
    """Bars of a distribution over scores from 0 to 1."""
    width, height, most = 240, 80, max(counts) or 1
    each = width / len(counts)
    bars = "".join(
        f"<rect x='{number * each:.1f}' y='{height - height * count / most:.1f}' width='{each - 1:.1f}' "
        f"height='{height * count / most:.1f}' fill='#0072b2'><title>{number / len(counts):.2f} to "
        f"{(number + 1) / len(counts):.2f}: {count:,}</title></rect>"
        for number, count in enumerate(counts)
    )
    return (
        f"<svg viewBox='0 0 {width} {height + 14}' width='{width}' height='{height + 14}' role='img'>{bars}"
        f"<text x='0' y='{height + 12}'>0</text><text x='{width}' y='{height + 12}' text-anchor='end'>1</text>"
        f"<text x='{width / 2}' y='{height + 12}' text-anchor='middle'>most: {most:,}</text></svg>"
    )


def _boxes(boxes: Sequence[_SizedBox]) -> str:
    return _table(
        ("tag", "score", "width x height, px", "share of the image", "image"),
        (
            (one.tag, f"{one.score:.2f}", f"{one.size_px[0]:.0f} x {one.size_px[1]:.0f}", f"{one.share:.4%}", one.image)
            for one in boxes
        ),
    )


def _figure(sample: Refinement) -> str:
    shown = "<p>(the image is not here)</p>"
    image = _opened(sample)
    if image is not None:
        drawn = sample.draw(image)
        drawn.thumbnail((_SIDE_PX, _SIDE_PX))
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=80)
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
    seen = Counter(one.tag for one in sample.objects)
    words = ", ".join(f"{count} {tag}" if count > 1 else tag for tag, count in seen.most_common()) or "nothing"
    return f"<figure>{shown}<figcaption>{_text(sample.name)}: {_text(words)}</figcaption></figure>\n"


def _opened(sample: Refinement) -> Image.Image | None:
    """The image of a row; None where it is no longer there, or is another one by now."""
    for read in _readers(sample.name):
        try:
            image: Image.Image = read()
        except (LyricsError, OSError):
            continue
        if image.size == sample.size_px:
            return image
    return None


def _readers(name: str) -> Iterator[Callable[[], Image.Image]]:
    """Ways to read an image by its name in a row: a file, an address, a member of a tar."""
    yield picture_at(name).open
    for parent in Path(name).parents:
        if parent.suffix.lower() == ".tar" and parent.is_file():
            yield partial(_read_member, parent, str(Path(name).relative_to(parent.parent)))


def _read_member(tar: Path, member: str) -> Image.Image:
    return TarRecords([tar]).read(member)
