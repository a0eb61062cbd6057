"""Runs seeds, one or many, and adds up what they reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tests.billing.overage.scenario import Options, draw_scenario
from tests.billing.overage.world import OverageWorld
from tests.support import seeded_runs
from tests.support.seeded_runs import Outcome, over_processes


class Summary(seeded_runs.Summary):
    def figures(self) -> str:
        seen = self.seen
        faults = self.sum_of("fault_", "stripe_", "delayed", "second_")
        return (
            f"{self.runs:,} runs, {seen['meter_events']:,} meter events, {faults:,} faults, {seen['kills']:,} kills,"
            f" {seen['judged_windows']:,} windows judged alone, {seen['owed_units']:,} units owed,"
            f" {seen['billed_units']:,} billed, {seen['written_off_units']:,} written off,"
            f" {seen['unbillable_units']:,} unbillable, {seen['left_open_units']:,} left open by ended subscriptions,"
            f" {seen['over_billed_units']:,} lowered after they were billed, {len(self.failures)} failed"
        )


def run_seed(seed: int, options: Options = Options(), trace: Callable[[str], None] | None = None) -> Outcome:  # noqa: B008  frozen
    """One run. Equal seeds and options give equal runs, in any process."""
    world = OverageWorld(draw_scenario(seed, options), trace)
    world.run()
    return Outcome(seed, world.oracle.violations, world.seen)


def run_seeds(seeds: Iterable[int], options: Options = Options(), *, jobs: int = 1) -> Iterator[Outcome]:  # noqa: B008
    """Outcomes in any order, over `jobs` processes."""
    yield from over_processes(partial(run_seed, options=options), seeds, jobs=jobs, chunk=4, preload=__name__)
