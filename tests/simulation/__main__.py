"""`python -m tests.simulation`: run the ledger's simulation.

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

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT)]
# Workers are started anew and find the code by this.
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

from tests.simulation.mutants import MUTANTS, try_mutants  # noqa: E402  the path first
from tests.simulation.runner import Summary, run_seed, run_seeds  # noqa: E402
from tests.simulation.scenario import Options  # noqa: E402
from tollgate.domain.plans import ExpiryPolicy  # noqa: E402

SHOWN_FAILURES = 20


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    arguments = _parser().parse_args()
    options = Options(
        policy=ExpiryPolicy(arguments.policy) if arguments.policy else None,
        adversarial=arguments.adversarial or None,
        relay=None if arguments.calls == "both" else arguments.calls == "relay",
    )
    if arguments.mutants:
        return _mutants(arguments.jobs, arguments.seeds)
    if arguments.seed is not None:
        return _one(arguments.seed, options, trace=arguments.trace)
    return _many(_seeds(arguments.seeds or "2000"), options, arguments.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="The ledger under every fault.")
    parser.add_argument("--seed", type=int, help="run this one seed and show what it reached")
    parser.add_argument("--trace", action="store_true", help="with --seed: every message and every misfortune")
    parser.add_argument("--seeds", help="A:B, or a number of seeds from 0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--mutants", action="store_true", help="switch every guard off; with --seeds: through all of them"
    )
    parser.add_argument("--adversarial", action="store_true", help="functions outlive their deadline in every run")
    parser.add_argument(
        "--policy", choices=[policy.value for policy in ExpiryPolicy], help="drawn by the seed if not given"
    )
    parser.add_argument("--calls", choices=["both", "ledger", "relay"], default="both")
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
    say(f"largest meter {summary.largest_item} bytes, most open reservations {summary.most_open}")
    for seed, violation in sorted(summary.failures, key=lambda failure: failure[0])[:SHOWN_FAILURES]:
        say(f"seed {seed}: {violation}\n    replay: python -m tests.simulation --seed {seed} --trace{_pinned(options)}")
    seconds = time.monotonic() - began
    say(f"seeds {seeds.start}:{seeds.stop}: {len(summary.failures)} of {summary.runs} runs failed, {seconds:.0f} s")
    return bool(summary.failures)


def _pinned(options: Options) -> str:
    """The arguments that a replay needs beside the seed."""
    policy = f" --policy {options.policy.value}" if options.policy else ""
    calls = "" if options.relay is None else f" --calls {'relay' if options.relay else 'ledger'}"
    return policy + calls + (" --adversarial" if options.adversarial else "")


def _mutants(jobs: int, seeds: str | None) -> int:
    """Up to the first catch of each that must be caught; with `seeds`, all of them through as many from 0."""
    full_seeds = len(_seeds(seeds)) if seeds else None
    mutants = MUTANTS if seeds else tuple(mutant for mutant in MUTANTS if not mutant.survives_because)
    wrong = 0
    for verdict in try_mutants(mutants, jobs=jobs, full_seeds=full_seeds):
        kinds = {kind: number for kind, number in sorted(verdict.kinds.items()) if kind != "any"}
        note = f"  survives: {verdict.mutant.survives_because}" if verdict.mutant.survives_because else ""
        mark = "  " if verdict.right else "!!"
        wrong += not verdict.right
        figures = f"{verdict.caught}/{verdict.seeds}, first {verdict.first_seed} {kinds}"
        say(f"{mark} {verdict.mutant.name:32s} {figures}{note}")
    say(f"{len(mutants)} mutants, {wrong} not as expected")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
