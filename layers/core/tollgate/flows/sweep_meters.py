"""Sweep what crashed calls left open, over all meters that can still have an open reservation.

Harmless when late, doubled or killed half way: each expiry is one exact conditional write, and a run that stops early
is made up for by the next. Nothing waits for it: a call of the same user sweeps that user's meter by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tollgate.catalog.loader import Catalog
from tollgate.domain.plans import ExpiryPolicy
from tollgate.domain.sources import Clock
from tollgate.flows.ledger import Ledger
from tollgate.storage.meters import SHARDS, Meters

MONTHS_BACK = 2
"""A period that starts on the 31st ends a month later, and a call that crossed its end is open for minutes more."""

POLICY_WITHOUT_PLAN = ExpiryPolicy.INPUT
"""For a meter whose plan is no longer in the catalog: one such user must not stop the sweep of all the others."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one run did."""

    seen_meters: int
    expired_reservations: int
    complete: bool
    """False: the deadline came first; the next run goes on."""


def sweep_meters(
    *, meters: Meters, ledger: Ledger, catalog: Catalog, clock: Clock, deadline_at_seconds: float
) -> SweepReport:
    """End every expired reservation. Raises StoreUnavailableError; running it again is always right."""
    seen = expired = 0
    now = datetime.fromtimestamp(clock.now_seconds(), UTC)
    for month, shard in _partitions(now):
        for pk, sk in meters.list_shard(month, shard):
            if clock.now_seconds() >= deadline_at_seconds:
                return SweepReport(seen, expired, complete=False)
            meter = meters.find_item(pk, sk)
            if meter is None:
                continue
            seen += 1
            plan = catalog.plans.get(meter.plan_id)
            expired += ledger.sweep(meter, plan.expiry_policy if plan else POLICY_WITHOUT_PLAN)
    return SweepReport(seen, expired, complete=True)


def _partitions(now: datetime) -> list[tuple[str, int]]:
    """Every month and shard, beginning somewhere else each hour: a run cut short never misses the same ones again."""
    partitions = [(month, shard) for month in _months(now) for shard in range(SHARDS)]
    first = int(now.timestamp()) // 3600 % len(partitions)
    return partitions[first:] + partitions[:first]


def _months(now: datetime) -> Iterator[str]:
    """`2026-11`, `2026-10`, …, newest first."""
    months = now.year * 12 + now.month - 1
    for number in range(months, months - MONTHS_BACK - 1, -1):
        yield f"{number // 12:04d}-{number % 12 + 1:02d}"
