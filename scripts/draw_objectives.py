"""Draw who sees whom in each stage-1 objective, from the plan that the attention kernels run.

    python scripts/draw_objectives.py [docs/pictures]

writes one SVG per objective and recipe. Each is the plan's dense mask for one sample: rows read columns; a filled cell
is seen.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from lyrics import BuildContext, default_registry
from lyrics.kernels import Layout, build_plan
from lyrics.types import PretrainBatch, Spatial, SpecialTokens, Stream, Text, merge

NUM_QUERIES = 3
SEGMENTS = ("V", "G", "S", "C")
COLORS = {"V": "#3b6ea5", "G": "#2f8f6b", "S": "#c77b30", "C": "#8a4f9e"}
SPECIAL = SpecialTokens(pad=0, cls=1, sep=2, mask=3, bos=4, dec=5, mlm=6)
SPELLED = {
    1: "[CLS]",
    2: "[SEP]",
    3: "[MASK]",
    4: "[BOS]",
    5: "[DEC]",
    6: "[MLM]",
    20: "dog",
    21: "box",
    30: "a",
    31: "dog",
}
CELL, LEFT, TOP = 20, 118, 112


def one_sample() -> PretrainBatch:
    """A dog with its box, and the caption "a dog"."""
    return PretrainBatch(Spatial.from_objects([[[[20], [21]]]]), Text.from_lists([[30, 31]]), torch.arange(1), SPECIAL)


def streams_of(name: str, recipe: str) -> list[Stream]:
    """What the objective declares for that sample; everything that may be masked is."""
    entry = default_registry().component("objective", name)
    options = {"recipe": recipe} | ({"mask_probability": 1.0} if name == "msp" else {})
    module, _, attribute = entry.component.build.partition(":")
    build = getattr(importlib.import_module(module), attribute)
    objective = build(entry.component.options(**options), BuildContext("random", query_dim=8, query_segments=SEGMENTS))
    return merge(objective.streams(one_sample()))


def picture(name: str, recipe: str) -> str:
    """The objective's mask as SVG."""
    streams = streams_of(name, recipe)
    layout, plan = build_plan([stream.group(NUM_QUERIES, NUM_QUERIES) for stream in streams])
    tokens = [token for segment in SEGMENTS for token in _tokens(streams, layout, segment)]
    mask = plan.dense_mask()
    size = len(tokens) * CELL
    width, height = LEFT + size + 12, TOP + size + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11">',
        f"<title>{name.upper()}, recipe {recipe}: rows see filled columns</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for row, (row_at, row_segment, row_label) in enumerate(tokens):
        for column, (column_at, column_segment, _) in enumerate(tokens):
            seen = bool(mask[row_at, column_at])
            fill = COLORS[column_segment] if seen else "#f1f1ee"
            x, y = LEFT + column * CELL, TOP + row * CELL
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{fill}"/>')
        y = TOP + row * CELL + CELL * 0.7
        parts.append(
            f'<text x="{LEFT - 8}" y="{y:g}" text-anchor="end" fill="{COLORS[row_segment]}">{row_label}</text>'
        )
        x = LEFT + row * CELL + CELL * 0.7
        parts.append(
            f'<text transform="translate({x:g},{TOP - 8}) rotate(-90)" fill="{COLORS[row_segment]}">{row_label}</text>'
        )
    edges = [i for i in range(1, len(tokens)) if tokens[i][1] != tokens[i - 1][1]]
    for edge in edges:
        at = edge * CELL - 0.5
        parts.append(
            f'<path d="M{LEFT} {TOP + at}h{size}M{LEFT + at} {TOP}v{size}" stroke="#333333" stroke-width="1"/>'
        )
    firsts = [0, *edges]
    for first, last in zip(firsts, [*edges, len(tokens)], strict=True):
        segment = tokens[first][1]
        middle = LEFT + (first + last) / 2 * CELL
        parts.append(
            f'<text x="{middle:g}" y="{TOP + size + 20}" text-anchor="middle" '
            f'fill="{COLORS[segment]}" font-weight="bold">'
            f"{segment}</text>"
        )
        parts.append(
            f'<text transform="translate(14,{TOP + (first + last) / 2 * CELL:g}) rotate(-90)" text-anchor="middle" '
            f'fill="{COLORS[segment]}" font-weight="bold">{segment}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _tokens(streams: list[Stream], layout: Layout, segment: str) -> list[tuple[int, str, str]]:
    """(packed position, segment, label) of the segment's tokens over all streams of the objective."""
    found = []
    for stream in streams:
        if (stream.name, segment) not in layout.starts:
            continue
        positions = layout.positions(stream.name, segment).tolist()
        for number, position in enumerate(positions):
            text = stream.text.get(segment)
            label = f"{segment.lower()}{number + 1}" if text is None else SPELLED[int(text.ids_RL[0, number])]
            found.append((position, segment, label))
    return found


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("itc", "itm", "icg", "msp"):
        for recipe in ("paper", "released"):
            (folder / f"{name}-{recipe}.svg").write_text(picture(name, recipe))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "pictures")
