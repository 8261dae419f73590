"""Stage-2 prompts packed without padding, against padded: ``python benchmarks/prompts.py --help``. No network.

Prints processor seconds forward and backward through the language model of a preset with random weights, in turns,
after it has compared the losses, and writes ``benchmarks/results/prompts.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lyrics.workflows.bench.prompts import run_bench_prompts

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="lyrics-mini", help="whose language model [lyrics-mini]")
    parser.add_argument("--batch", type=int, action="append", help="prompts; may be given several times [8 16 32]")
    parser.add_argument("--rounds", type=int, default=3, help="turns; medians count [3]")
    parser.add_argument("--out", type=Path, default=RESULTS / "prompts.json")
    given = parser.parse_args()
    rows = run_bench_prompts(given.preset, given.batch or (8, 16, 32), given.rounds, out=given.out, say=print)
    for row in rows:
        ratios = ", ".join(f"{way} {ratio:.2f}x" for way, ratio in row["cpu_speedup_vs_padded"].items())
        print(f"batch {row['batch']}, {row['mean_length']:.0f} tokens a prompt, longest {row['longest']}: {ratios}")


if __name__ == "__main__":
    main()
