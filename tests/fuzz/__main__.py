"""`python -m tests.fuzz`: odd inputs for the data plane. The result goes onto the scorecard, bench/results/chaos.json.

--inputs N              how many (100,000)
--seed N --only TARGET --number N    one input again, with its error as it was raised
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT / "layers" / "stream_runtime"), str(ROOT)]

from tests.chaos import scorecard  # noqa: E402  the path first
from tests.chaos.campaigns import new_part  # noqa: E402
from tests.fuzz.data_plane import data_plane  # noqa: E402
from tests.fuzz.runner import MOST_GROWTH_MB, Summary, run, run_one  # noqa: E402
from tests.fuzz.targets import TARGETS, spread  # noqa: E402


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.number is not None:
        with data_plane() as plane:
            say(run_one(plane, arguments.only, arguments.seed, arguments.number))
        return 0
    counts = spread(arguments.inputs) if arguments.only is None else Counter({arguments.only: arguments.inputs})
    summary = run(counts, arguments.seed)
    for name, number in sorted(summary.outcomes.items()):
        say(f"{number:>10,}  {name}")
    for failure in summary.failures[:20]:
        say(f"  {failure}")
    say(
        f"{summary.inputs:,} inputs, {len(summary.failures)} failures, {summary.growth_mb} MB more memory,"
        f" {summary.seconds:.0f} s"
    )
    if not arguments.dry:
        _write(summary, arguments.seed)
    return bool(summary.failures) or summary.growth_mb > MOST_GROWTH_MB


def _write(summary: Summary, seed: int) -> None:
    part = new_part("fuzz", seed)
    part.figures = Counter({"inputs": summary.inputs, "most_memory_growth_kb": int(summary.growth_mb * 1024)})
    part.figures.update(summary.outcomes)
    part.seconds = summary.seconds
    for failure in summary.failures:
        part.found("fuzz", failure)
    scorecard.write(part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Odd inputs for the data plane.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--number", type=int, help="with --only: this one input")
    parser.add_argument("--dry", action="store_true", help="leaves the scorecard alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
