"""Runs seeds, one or many, and adds up what they reached."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.billing.oracle import Violation
from tests.billing.scenario import Options, draw_scenario
from tests.billing.world import World


@dataclass(slots=True)
class Outcome:
    seed: int
    violations: list[Violation]
    seen: Counter[str]


@dataclass(slots=True)
class Summary:
    """Many runs added up."""

    runs: int = 0
    failures: list[tuple[int, Violation]] = field(default_factory=list)
    """(seed, first violation)."""
    seen: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.seen.update(outcome.seen)
        if outcome.violations:
            self.failures.append((outcome.seed, outcome.violations[0]))

    def figures(self) -> str:
        """One line for people."""
        seen = self.seen
        faults = sum(number for name, number in seen.items() if name.startswith(("fault_", "stripe_l", "queue_l")))
        return (
            f"{self.runs:,} schedules, {seen['deliveries']:,} deliveries, {seen['invocations']:,} invocations,"
            f" {seen['projections']:,} projections, {faults:,} faults, {seen['kills'] + seen['timeouts']:,} kills,"
            f" {len(self.failures)} failed"
        )


def run_seed(seed: int, options: Options = Options(), trace: Callable[[str], None] | None = None) -> Outcome:  # noqa: B008  frozen
    """One run. Equal seeds and options give equal runs, in any process."""
    world = World(draw_scenario(seed, options), trace)
    try:
        world.run()
    except Exception as error:  # noqa: BLE001  the seed must be told, whatever it is
        world.oracle.report("crash", repr(error))
    return Outcome(seed, world.oracle.violations, world.seen)


def run_seeds(seeds: Iterable[int], options: Options = Options(), *, jobs: int = 1) -> Iterator[Outcome]:  # noqa: B008
    """Outcomes in any order, over `jobs` processes."""
    if jobs == 1:
        yield from (run_seed(seed, options) for seed in seeds)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(jobs) as pool:
        yield from pool.imap_unordered(partial(run_seed, options=options), seeds, chunksize=16)
