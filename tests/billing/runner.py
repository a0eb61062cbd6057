"""Runs seeds, one or many, and adds up what they reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tests.billing.scenario import Options, draw_scenario
from tests.billing.world import World
from tests.support import seeded_runs
from tests.support.seeded_runs import Outcome, over_processes


class Summary(seeded_runs.Summary):
    def figures(self) -> str:
        seen = self.seen
        faults = self.sum_of("fault_", "stripe_l", "queue_l")
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
    yield from over_processes(partial(run_seed, options=options), seeds, jobs=jobs, chunk=16, preload=__name__)
