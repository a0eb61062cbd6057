"""The three parts of a run: storms (everything at once), cuts (every byte of every stream), webhook schedules."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.billing.runner import Summary, run_seeds
from tests.chaos.plans import CUTS, LONGEST_SECONDS, WIDE, Call, draw_call
from tests.chaos.shapes import LINE_ENDS, shape
from tests.chaos.world import Report, World, running_world
from tests.support.recorded_streams import STREAMS

Say = Callable[[str], None]
CALLS_A_ROUND = 16
"""Of each slot."""
MOST_ROUNDS = 400
CUTS_A_ROUND = 120
KINDS = {
    "over_quota": "tokens_over_a_hard_quota_or_cap",
    "over_budget": "tokens_over_a_key_budget",
    "double_bill": "billed_twice",
    "double_call": "sent_upstream_twice",
    "lost_tokens": "lost",
    "conservation": "sums_wrong",
    "leftover": "open_after_the_sweep",
    "unreserved_call": "sent_without_reservation",
    "hang": "hangs",
    "unhandled": "unhandled",
    "changed_bytes": "bytes_changed",
    "leak": "leaks",
    "cut": "cuts_booked_wrong",
    "webhook": "webhook_schedules_failed",
    "fuzz": "fuzz_failures",
}
"""Kind of violation to its name on the scorecard."""


@dataclass(slots=True)
class Part:
    """What one part of a run did and found."""

    name: str
    seed: int
    measured_on: str = ""
    ran_at: str = ""
    seconds: float = 0.0
    longest_call_seconds: float = 0.0
    figures: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report) -> None:
        self.figures.update(report.figures)
        self.figures["rounds"] += 1
        self.longest_call_seconds = max(self.longest_call_seconds, round(report.longest_seconds, 2))
        for violation in report.violations:
            self.found(violation.kind, f"round seed {report.seed}: {violation}")

    def found(self, kind: str, text: str) -> None:
        self.kinds[KINDS.get(kind, kind)] += 1
        self.violations.append(text)

    def total(self, prefix: str) -> int:
        return sum(number for name, number in self.figures.items() if name.startswith(prefix))

    def document(self) -> dict[str, Any]:
        found = asdict(self)
        found["figures"] = dict(sorted(self.figures.items()))  # asdict makes nonsense of a Counter
        found["kinds"] = dict(self.kinds)
        found["violations"] = self.violations[:50]
        return found


def storm(
    folder: Path,
    seed: int,
    *,
    kills: int,
    faults: int,
    slots: int,
    most_rounds: int = MOST_ROUNDS,
    mutant: str | None = None,
    say: Say,
) -> Part:
    """Rounds until so many kills and table faults have happened. One round is replayed by its own seed."""
    part, began = new_part("storm", seed), time.monotonic()
    with running_world(folder, slots=slots, seed=seed, mutant=mutant) as world:
        part.measured_on += f", table on {world.engine}, {slots} function processes"
        for number in range(most_rounds):
            report = world.run(seed + number, _calls_of(seed + number))
            part.add(report)
            say(
                f"storm {seed + number}: {part.figures['kills']:,} kills, {part.total('table_'):,} table faults,"
                f" {len(part.violations)} violations"
            )
            if part.figures["kills"] >= kills and part.total("table_") >= faults:
                break
        _look_at_logs(world, part)
    part.seconds = round(time.monotonic() - began, 1)
    return part


def _calls_of(seed: int) -> Callable[[int], Iterator[Call]]:
    return lambda slot: (draw_call(seed, slot, number) for number in range(CALLS_A_ROUND))


def cuts(folder: Path, seed: int, *, slots: int, step: int = 1, line_ends: Iterable[str] = LINE_ENDS, say: Say) -> Part:
    """Every recorded stream cut after each byte (each `step`-th, beginning at `seed`), in every line end."""
    part, began = new_part("cuts", seed), time.monotonic()
    calls = list(cut_calls(seed, step, line_ends))
    with running_world(folder, slots=slots, seed=seed) as world:
        part.measured_on += f", table on {world.engine}, {slots} function processes"
        batch = slots * CUTS_A_ROUND
        for first in range(0, len(calls), batch):
            dealt = _deal(calls[first : first + batch], slots)
            report = world.run(seed, lambda slot, dealt=dealt: dealt[slot], (WIDE,) * slots)  # type: ignore[misc]
            part.add(report)
            say(f"cuts: {min(first + batch, len(calls)):,} of {len(calls):,}, {len(part.violations)} violations")
        _look_at_logs(world, part)
    part.figures["shapes"], part.figures["stream_cuts"] = len(STREAMS), len(calls)
    part.seconds = round(time.monotonic() - began, 1)
    return part


def cut_calls(seed: int, step: int, line_ends: Iterable[str]) -> Iterator[Call]:
    """One call for each place; how the connection ends there goes round."""
    number = 0
    for line_end in line_ends:
        for name in STREAMS:
            for position in range(seed % step, len(shape(name, line_end).data) + 1, step):
                number += 1
                yield Call(
                    id=f"{seed}.0.{number}",
                    user=0,
                    max_tokens=600,
                    shape=name,
                    line_end=line_end,
                    fate=CUTS[number % len(CUTS)],
                    at=position,
                    status=200,
                    seconds=LONGEST_SECONDS,
                    kill=None,
                    calm=True,
                )


def _deal(calls: list[Call], slots: int) -> list[list[Call]]:
    """Each slot its share, each with a user of its own."""
    return [[replace(call, user=slot) for call in calls[slot::slots]] for slot in range(slots)]


def webhooks(seed: int, *, schedules: int, jobs: int, say: Say) -> Part:
    """Schedules of tests/billing: its own seeds, its own oracle."""
    part, began = new_part("webhooks", seed), time.monotonic()
    summary = Summary()
    for outcome in run_seeds(range(seed, seed + schedules), jobs=jobs):
        summary.add(outcome)
        if summary.runs % 1000 == 0:
            say(f"webhooks: {summary.figures()}")
    part.figures = summary.seen + Counter(schedules=summary.runs)
    for failed, violation in summary.failures:
        part.found("webhook", f"python -m tests.billing --seed {failed} --trace: {violation}")
    part.seconds = round(time.monotonic() - began, 1)
    return part


def _look_at_logs(world: World, part: Part) -> None:
    for line in world.unhandled():
        part.found("unhandled", line)
    for line in world.leaks():
        part.found("leak", line)
    part.figures.update({f"told_{name}": number for name, number in world.told().items()})


def new_part(name: str, seed: int) -> Part:
    """Nothing run yet, on this machine, now."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return Part(name, seed, machine, f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}")
