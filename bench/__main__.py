"""`make bench`: every benchmark in one run, results as data in bench/results, the page in docs/benchmarks.md.

    python -m bench                    all of it
    python -m bench claude peers       some of it
    python -m bench --small --into /tmp/x   everything in a minute, to see that it works; the figures mean nothing

A measurement, not a test: what misses its target is said, and the status is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table as Grid

from bench import claude, costs, peers, quota, results, starts
from bench.function import Surroundings, surroundings
from bench.page import write_page

PARTS: Final = ("starts", "claude", "peers", "quota", "costs")
SMALL_STARTS, STARTS = 1, 5


def main(arguments: Sequence[str]) -> int:
    """Runs the parts that were asked for, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the product.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only to see that it works")
    parser.add_argument("--into", type=Path, default=results.FOLDER, help="folder of the results")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    wanted = options.parts or PARTS
    console = Console()
    with surroundings() as around:
        runs = _runs(around, small=options.small, folder=options.into, say=console.log)
        for part in (part for part in PARTS if part in wanted):
            began = time.monotonic()
            console.rule(part)
            found = {"measured_on": results.machine(around.engine)} | runs[part]()
            path = results.write(part, found, options.into)
            console.log(f"{part}: {time.monotonic() - began:.0f} s, written to {path.name}")
            _show(console, part, found)
    if options.into == results.FOLDER:
        write_page()
    return 0


def _runs(
    around: Surroundings, *, small: bool, folder: Path, say: Callable[[str], None]
) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "starts": lambda: starts.measure(SMALL_STARTS if small else STARTS, say),
        "claude": lambda: claude.measure(around, claude.SMALL if small else claude.Size(), say),
        "peers": lambda: peers.measure(around, peers.SMALL if small else peers.Size(), say),
        "quota": lambda: quota.measure(around, quota.SMALL if small else quota.Size(), say),
        "costs": lambda: _costs(folder),
    }


def _costs(folder: Path) -> dict[str, Any]:
    """From the results of the other parts: nothing is measured here."""
    counted, compared = results.read("claude", folder), results.read("peers", folder)
    if counted is None or compared is None:
        return {"skipped": "nothing is measured yet: claude and peers come first"}
    short = compared["short"]
    own_ms = short[peers.OURS]["billed_ms"] - short[peers.DIRECT]["billed_ms"]
    return {
        "prices": costs.PRICES_OF,
        "formula": costs.FORMULA,
        "own_ms": round(own_ms, 2),
        "log_bytes": counted["log_bytes_per_request"],
        "units": counted["table"]["capacity_units_per_request"],
        "usd_per_million_by_model_seconds": costs.of_results(counted, own_ms),
    }


def _show(console: Console, part: str, found: dict[str, Any]) -> None:
    if "targets" in found:
        grid = Grid("figure", "measured", "target", "", title=found["measured_on"])
        for name, target in found["targets"].items():
            grid.add_row(name, str(target["figure"]), f"<= {target['target']}", "met" if target["met"] else "MISSED")
        console.print(grid)
    console.print_json(json.dumps({name: value for name, value in found.items() if name != "targets"}))
    console.log(f"end of {part}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
