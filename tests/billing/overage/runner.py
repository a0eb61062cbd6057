"""Runs seeds, one or many, and adds up what they reached."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from tests.billing.overage.scenario import Options, draw_scenario
from tests.billing.overage.world import OverageWorld
from tests.billing.runner import Outcome, Summary

__all__ = ["Outcome", "Summary", "figures", "run_seed", "run_seeds"]


def run_seed(seed: int, options: Options = Options(), trace: Callable[[str], None] | None = None) -> Outcome:  # noqa: B008  frozen
    """One run. Equal seeds and options give equal runs, in any process."""
    world = OverageWorld(draw_scenario(seed, options), trace)
    world.run()
    return Outcome(seed, world.oracle.violations, world.seen)


def run_seeds(seeds: Iterable[int], options: Options = Options(), *, jobs: int = 1) -> Iterator[Outcome]:  # noqa: B008
    """Outcomes in any order, over `jobs` processes."""
    if jobs == 1:
        yield from (run_seed(seed, options) for seed in seeds)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(jobs) as pool:
        yield from pool.imap_unordered(partial(run_seed, options=options), seeds, chunksize=4)


def figures(summary: Summary) -> str:
    """One line for people."""
    seen = summary.seen
    faults = sum(
        number for name, number in seen.items() if name.startswith(("fault_", "stripe_", "delayed", "second_"))
    )
    return (
        f"{summary.runs:,} runs, {seen['meter_events']:,} meter events, {faults:,} faults, {seen['kills']:,} kills,"
        f" {seen['judged_windows']:,} windows judged alone, {seen['owed_units']:,} units owed,"
        f" {seen['billed_units']:,} billed, {seen['written_off_units']:,} written off,"
        f" {seen['unbillable_units']:,} unbillable, {seen['left_open_units']:,} left open by ended subscriptions,"
        f" {seen['over_billed_units']:,} lowered after they were billed, {len(summary.failures)} failed"
    )
