"""Runs seeds, one or many, and adds up what they reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tests.simulation.scenario import Options, draw_scenario
from tests.simulation.world import World
from tests.support import seeded_runs
from tests.support.seeded_runs import Outcome, over_processes


class Summary(seeded_runs.Summary):
    @property
    def largest_item(self) -> int:
        """Bytes of a meter."""
        return self.most["largest_item"]

    @property
    def most_open(self) -> int:
        """Reservations in one meter."""
        return self.most["most_open"]

    def figures(self) -> str:
        seen = self.seen
        return (
            f"{self.runs:,} runs, {seen['invocations']:,} calls, {seen['reserved']:,} reservations,"
            f" {self.sum_of('fault_'):,} message faults, {seen['kills']:,} kills, {seen['swept']:,} expiries,"
            f" {len(self.failures)} failed runs"
        )


def run_seed(seed: int, options: Options = Options(), trace: Callable[[str], None] | None = None) -> Outcome:  # noqa: B008  frozen
    """One run. Equal seeds and options give equal runs, in any process."""
    world = World(draw_scenario(seed, options), trace)
    world.run()
    oracle = world.oracle
    most = Counter(largest_item=oracle.largest_item, most_open=oracle.most_open)
    return Outcome(seed, oracle.violations, world.seen, most)


def run_seeds(seeds: Iterable[int], options: Options = Options(), *, jobs: int = 1) -> Iterator[Outcome]:  # noqa: B008
    """Outcomes in any order, over `jobs` processes."""
    yield from over_processes(partial(run_seed, options=options), seeds, jobs=jobs, chunk=32, preload=__name__)
