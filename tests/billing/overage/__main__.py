"""`python -m tests.billing.overage`: run overage schedules.

--seed N [--trace]      one run; the same integer gives the same run, event by event
--seeds A:B | N         many runs, over --jobs processes
--mutants               every guard switched off, one at a time
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT)]
# Workers are started anew and find the code by this.
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

from tests.billing.overage.mutants import MUTANTS, try_mutants  # noqa: E402  the path first
from tests.billing.overage.runner import Summary, figures, run_seed, run_seeds  # noqa: E402
from tests.billing.overage.scenario import READINGS, Options  # noqa: E402

SHOWN_FAILURES = 20


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    arguments = _parser().parse_args()
    options = Options(last_by=arguments.last_by)
    if arguments.mutants:
        return _mutants(arguments.jobs)
    if arguments.seed is not None:
        return _one(arguments.seed, options, trace=arguments.trace)
    return _many(_seeds(arguments.seeds or "200"), options, arguments.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.billing.overage", description="Overage under every fault.")
    parser.add_argument("--seed", type=int, help="run this one seed and show what it reached")
    parser.add_argument("--trace", action="store_true", help="with --seed: every message and every misfortune")
    parser.add_argument("--seeds", help="A:B, or a number of seeds from 0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--last-by", choices=READINGS, help="one reading of `last` for all; else by turns")
    parser.add_argument("--mutants", action="store_true", help="switch every guard off, one at a time")
    return parser


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    return range(int(first), int(last)) if colon else range(int(first))


def _one(seed: int, options: Options, *, trace: bool) -> int:
    outcome = run_seed(seed, options, say if trace else None)
    for name, number in sorted(outcome.seen.items()):
        say(f"{number:>10,}  {name}")
    for violation in outcome.violations:
        say(str(violation))
    say(f"seed {seed}: {len(outcome.violations)} violations")
    return bool(outcome.violations)


def _many(seeds: range, options: Options, jobs: int) -> int:
    began = time.monotonic()
    summary = Summary()
    for outcome in run_seeds(seeds, options, jobs=jobs):
        summary.add(outcome)
    for name, number in sorted(summary.seen.items()):
        say(f"{number:>14,}  {name}")
    for seed, violation in sorted(summary.failures, key=lambda failure: failure[0])[:SHOWN_FAILURES]:
        say(f"seed {seed}: {violation}\n    replay: python -m tests.billing.overage --seed {seed} --trace")
    say(f"seeds {seeds.start}:{seeds.stop}: {figures(summary)}, {time.monotonic() - began:.0f} s")
    return bool(summary.failures)


def _mutants(jobs: int) -> int:
    wrong = 0
    for verdict in try_mutants(MUTANTS, jobs=jobs):
        wrong += verdict.first_seed is None
        mark = "!!" if verdict.first_seed is None else "  "
        say(f"{mark} {verdict.mutant.name:44s} first seed {verdict.first_seed} of {verdict.seeds} {verdict.kinds}")
    say(f"{len(MUTANTS)} mutants, {wrong} not caught")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
