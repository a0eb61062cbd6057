"""`python -m tests.chaos`: the whole run, or a part of it; the scorecard is bench/results/chaos.json.

(nothing)               all parts, as `make chaos` does; each part replaces its entry on the scorecard
--only PART             storm, cuts or webhooks
--seed N --rounds 1     replays one round of the storm: the same calls, faults, kills and clocks
--dry                   leaves the scorecard alone
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT / "layers" / "stream_runtime"), str(ROOT)]

from tests.chaos import campaigns, scorecard  # noqa: E402  the path first
from tests.chaos.campaigns import Part  # noqa: E402
from tests.chaos.mutants import MUTANTS  # noqa: E402

PARTS = ("cuts", "storm", "webhooks")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    arguments = _parser().parse_args()
    bad = 0
    for name in PARTS if arguments.only is None else (arguments.only,):
        with tempfile.TemporaryDirectory(prefix="tollgate-chaos-") as folder:
            part = _run(name, arguments, Path(folder))
        for violation in part.violations[:20]:
            say(f"  {violation}")
        say(f"{name}: {len(part.violations)} violations in {part.seconds:.0f} s")
        bad += len(part.violations)
        if not arguments.dry:
            scorecard.write(part)
    if not arguments.dry:
        say(scorecard.summary())
    return bool(bad)


def _run(name: str, arguments: argparse.Namespace, folder: Path) -> Part:
    seed: int = arguments.seed
    runs: dict[str, Callable[[], Part]] = {
        "storm": lambda: campaigns.storm(
            folder,
            seed,
            kills=arguments.kills,
            faults=arguments.faults,
            slots=arguments.slots,
            most_rounds=arguments.rounds,
            mutant=arguments.mutant,
            say=say,
        ),
        "cuts": lambda: campaigns.cuts(folder, seed, slots=arguments.slots, step=arguments.step, say=say),
        "webhooks": lambda: campaigns.webhooks(seed, schedules=arguments.schedules, jobs=arguments.jobs, say=say),
    }
    return runs[name]()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Everything fails, and the books hold.")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=campaigns.MOST_ROUNDS, help="of the storm, at most")
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--faults", type=int, default=10_000, help="of the table")
    parser.add_argument("--step", type=int, default=1, help="cut at every n-th byte only")
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=12, help="function processes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="a guard switched off in the storm; use with --dry")
    parser.add_argument("--dry", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
