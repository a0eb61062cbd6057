"""The command line of a proof that is driven by seeds.

--seed N [--trace]      one run; the same integer gives the same run, event by event
--seeds A:B | N         many runs, over --jobs processes
--mutants               every guard switched off, one at a time
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tests.support.mutants import Mutant, try_mutants
from tests.support.seeded_runs import Outcome, Summary

SHOWN_FAILURES = 20
Options = TypeVar("Options")
Given_contra = TypeVar("Given_contra", contravariant=True)


class RunSeed(Protocol[Given_contra]):
    def __call__(self, seed: int, options: Given_contra, trace: Callable[[str], None] | None, /) -> Outcome: ...


class RunSeeds(Protocol[Given_contra]):
    def __call__(self, seeds: range, options: Given_contra, /, *, jobs: int) -> Iterator[Outcome]: ...


@dataclass(frozen=True, slots=True)
class Proof(Generic[Options]):
    """What is run, and how it is asked for."""

    command: str
    """The package: `tests.billing`; its module `runner` has `run_seed`."""
    about: str
    seeds: int
    """Without any argument."""
    run_seed: RunSeed[Options]
    run_seeds: RunSeeds[Options]
    summary: type[Summary]
    mutants: tuple[Mutant, ...]
    add_arguments: Callable[[ArgumentParser], object]
    """Those of its own, from which `options_of` makes its options."""
    options_of: Callable[[Namespace], Options]
    replay_with: Callable[[Options], str] = lambda _: ""
    """The arguments that a replay needs beside the seed."""


def main(proof: Proof[Options]) -> int:
    arguments = _parser(proof).parse_args()
    options = proof.options_of(arguments)
    if arguments.mutants:
        return _mutants(proof, arguments.jobs, arguments.seeds)
    if arguments.seed is not None:
        return _one(proof, arguments.seed, options, trace=arguments.trace)
    return _many(proof, _seeds(arguments.seeds or str(proof.seeds)), options, arguments.jobs)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser(proof: Proof[Options]) -> ArgumentParser:
    parser = ArgumentParser(prog=f"python -m {proof.command}", description=proof.about)
    parser.add_argument("--seed", type=int, help="run this one seed and show what it reached")
    parser.add_argument("--trace", action="store_true", help="with --seed: every message and every misfortune")
    parser.add_argument("--seeds", help="A:B, or a number of seeds from 0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--mutants", action="store_true", help="switch every guard off; with --seeds: through all of them"
    )
    proof.add_arguments(parser)
    return parser


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    return range(int(first), int(last)) if colon else range(int(first))


def _one(proof: Proof[Options], seed: int, options: Options, *, trace: bool) -> int:
    outcome = proof.run_seed(seed, options, say if trace else None)
    for name, number in sorted(outcome.seen.items()):
        say(f"{number:>10,}  {name}")
    for violation in outcome.violations:
        say(str(violation))
    say(f"seed {seed}: {len(outcome.violations)} violations")
    return bool(outcome.violations)


def _many(proof: Proof[Options], seeds: range, options: Options, jobs: int) -> int:
    began = time.monotonic()
    summary = proof.summary()
    summary.add_all(proof.run_seeds(seeds, options, jobs=jobs))
    for name, number in sorted((summary.seen | summary.most).items()):
        say(f"{number:>14,}  {name}")
    for seed, violation in sorted(summary.failures, key=lambda failure: failure[0])[:SHOWN_FAILURES]:
        replay = f"python -m {proof.command} --seed {seed} --trace{proof.replay_with(options)}"
        say(f"seed {seed}: {violation}\n    replay: {replay}")
    say(f"seeds {seeds.start}:{seeds.stop}: {summary.figures()}, {time.monotonic() - began:.0f} s")
    return bool(summary.failures)


def _mutants(proof: Proof[Options], jobs: int, seeds: str | None) -> int:
    """Up to the first catch of each that must be caught; with `seeds`, all of them through as many from 0."""
    full_seeds = len(_seeds(seeds)) if seeds else None
    mutants = proof.mutants if seeds else tuple(mutant for mutant in proof.mutants if not mutant.survives_because)
    wrong = 0
    for verdict in try_mutants(mutants, f"{proof.command}.runner", jobs=jobs, full_seeds=full_seeds):
        note = f"  survives: {verdict.mutant.survives_because}" if verdict.mutant.survives_because else ""
        mark = "  " if verdict.right else "!!"
        wrong += not verdict.right
        figures = f"{verdict.caught}/{verdict.seeds}, first {verdict.first_seed} {verdict.kinds}"
        say(f"{mark} {verdict.mutant.name:44s} {figures}{note}")
    say(f"{len(mutants)} mutants, {wrong} not as expected")
    return bool(wrong)
