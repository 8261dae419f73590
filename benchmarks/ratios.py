"""Do the benchmarks still win what they won? Compares ratios of files that ``make bench`` has just written with those
committed in ``benchmarks/results/ratios.json``: ``python benchmarks/ratios.py FOLDER``.

Ratios only, of runs that took turns in one process, and counts: seconds of two machines, or of one machine on two days,
say nothing about each other. Exit code 1 where a ratio is worse by more than its share (``--tolerance``), or where one
that is committed is missing. With ``--partial`` only those of the benchmarks that were run are compared (``host``,
``loader``, ``prompts``, and ``step`` by recipe). ``--update`` writes what was found instead; with ``--partial``, too,
it keeps the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).parent / "results" / "ratios.json"
Found = Iterator[tuple[str, float]]


def step(written: Any) -> Found:
    """Ours against each rival: processor time, and what is kept for the backward pass (there less is better)."""
    for row in written["rows"]:
        if row["variant"] != "packed":
            continue
        where = f"step, {row['recipe']}, batch {row['batch']}, {row['lengths']} lengths"
        for key, value in row.items():
            kind, _, rival = key.partition("_vs_")
            if kind == "cpu_speedup":
                yield f"{where}: times as fast as {rival}", value
            elif kind == "flops_ratio":
                yield f"{where}: times fewer operations than {rival}", value
            elif kind == "saved":
                yield f"{where}: times less kept than {rival}", 1 / value


def host(written: Any) -> Found:
    """Counts of one step, and how little more a greater batch costs."""
    rows = {(row["batch"], row["lengths"]): row for row in written["rows"]}
    for (batch, lengths), row in rows.items():
        where = f"host, batch {batch}, {lengths} lengths"
        yield f"{where}: one over waits", 1 / sum(row["waits"].values())
        yield f"{where}: one over copies", 1 / row["copies"]
        yield f"{where}: one over operations", 1 / row["operations"]
    small, great = min(batch for batch, _ in rows), max(batch for batch, _ in rows)
    if great > small:
        per_sample = {batch: rows[batch, "random"]["own_ms"] / batch for batch in (small, great)}
        yield f"host: a sample at batch {small} over one at {great}", per_sample[small] / per_sample[great]


def prompts(written: Any) -> Found:
    for row in written["rows"]:
        yield f"prompts, batch {row['batch']}: times as fast as padded", row["cpu_speedup_vs_padded"]["packed"]


def loader(written: Any) -> Found:
    """Damaged pictures against rows known to be bad."""
    yield "loader: known bad samples over met ones", 1 / (1 + written["bad samples"]["cost"])


READERS: dict[str, Callable[[Any], Found]] = {"step": step, "host": host, "prompts": prompts, "loader": loader}


def read(folder: Path) -> dict[str, float]:
    """All ratios of the files of a folder; greater is better."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        written = json.loads(path.read_text(encoding="utf-8"))
        found |= READERS[written["benchmark"]](written)
    return found


def part_of(name: str) -> str:
    """Return which benchmark a ratio is of: ``host``, or ``step, blip2``."""
    words = name.partition(":")[0].split(", ")
    return ", ".join(words[:2]) if words[0] == "step" else words[0]


def compare(found: dict[str, float], committed: dict[str, float], tolerance: float) -> tuple[list[str], bool]:
    """Lines to print, and whether nothing is worse."""
    lines, fine = [], True
    for name in sorted(found.keys() | committed.keys()):
        now, then = found.get(name), committed.get(name)
        if now is None:
            verdict, fine = "MISSING", False
        elif then is None:
            verdict = "new"
        elif now < then * (1 - tolerance):
            verdict, fine = "WORSE", False
        else:
            verdict = "better" if now > then * (1 + tolerance) else "as before"
        values = ("-" if value is None else f"{value:.3g}" for value in (then, now))
        lines.append(f"{verdict:>9}  {' -> '.join(values):>18}  {name}")
    return lines, fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the JSON files of the benchmarks")
    parser.add_argument("--tolerance", type=float, default=0.15, help="share by which a ratio may be worse [0.15]")
    parser.add_argument("--committed", type=Path, default=COMMITTED)
    parser.add_argument("--partial", action="store_true", help="only some of the benchmarks were run")
    parser.add_argument("--update", action="store_true", help="write what was found, compare nothing")
    given = parser.parse_args()
    found = read(given.folder)
    committed: dict[str, float] = {}
    if given.partial or not given.update:
        committed = json.loads(given.committed.read_text(encoding="utf-8"))
    if given.partial:
        ran = {part_of(name) for name in found}
        others = {name: value for name, value in committed.items() if part_of(name) not in ran}
        committed = {name: value for name, value in committed.items() if name not in others}
        if given.update:
            found = dict(sorted((others | found).items()))
    if given.update:
        given.committed.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return 0
    lines, fine = compare(found, committed, given.tolerance)
    print("\n".join(lines))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
