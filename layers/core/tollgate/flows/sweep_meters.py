"""Sweep what crashed calls left open, over the meters that had a call since the last look.

Harmless when late, doubled or killed half way: each expiry is one exact conditional write, and a shard whose run stops
early is looked at from the same hour again. Nothing waits for it: a call of the same user sweeps that user's meter by
itself, and what escapes both is ended when the period is closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tollgate.catalog.loader import Catalog
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import Meter, MeterName
from tollgate.domain.plans import ExpiryPolicy
from tollgate.domain.shards import rotated
from tollgate.domain.sources import Clock, UserReport
from tollgate.flows.ledger import Ledger
from tollgate.storage.activity import KEPT_SECONDS, SHARDS, Activity
from tollgate.storage.meters import Meters

HOUR: Final = timedelta(hours=1)
OPEN_AT_MOST: Final = timedelta(minutes=20)
"""After an hour's end every call that began in it has ended or expired: ten minutes for the call, one until its
reservation is swept. The rest is margin."""

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
    *,
    activity: Activity,
    meters: Meters,
    ledger: Ledger,
    catalog: Catalog,
    clock: Clock,
    report: UserReport,
    deadline_at_seconds: float,
) -> SweepReport:
    """End the expired reservations of every meter that was active. Raises StoreUnavailableError; safe to repeat.

    Whatever else is wrong with one user's meter is reported, and that user's shard is looked at again.
    """
    now = datetime.fromtimestamp(int(clock.now_seconds()), UTC)
    seen = expired = 0
    for shard in rotated(SHARDS, now):
        looked_at: set[MeterName] = set()
        done: datetime | None = None
        all_swept = True
        for hour in _hours(activity.find_swept(shard), now):
            for active in activity.list_active(hour, shard):
                if active in looked_at:
                    continue
                if clock.now_seconds() >= deadline_at_seconds:
                    if done is not None:
                        activity.note_swept(shard, done)
                    return SweepReport(seen, expired, complete=False)
                looked_at.add(active)
                try:
                    meter = meters.find_named(active)
                    if meter is not None:
                        seen += 1
                        expired += ledger.sweep(meter, expiry_policy(catalog, meter))
                except StoreUnavailableError:
                    raise
                except Exception as error:  # noqa: BLE001  one user's broken item must not keep all the others
                    report("meter_not_swept", error, tenant_id=active.tenant_id, user_id=active.user_id)
                    all_swept = False
            if all_swept and hour + HOUR + OPEN_AT_MOST <= now:
                done = hour
        if done is not None:  # once, and not for each hour: a run that is days late has 72 of them in each shard
            activity.note_swept(shard, done)
    return SweepReport(seen, expired, complete=True)


def expiry_policy(catalog: Catalog, meter: Meter) -> ExpiryPolicy:
    plan = catalog.plans.get(meter.plan_id)
    return plan.expiry_policy if plan else POLICY_WITHOUT_PLAN


def _hours(swept: datetime | None, now: datetime) -> Iterator[datetime]:
    """The hours to look at, oldest first: those after the last one that is done, as far as marks are kept.

    One hour ahead of our clock as well: the one that wrote the mark may have been a little faster.
    """
    this_hour = now.replace(minute=0, second=0, microsecond=0)
    oldest = this_hour - timedelta(seconds=KEPT_SECONDS)
    hour = oldest if swept is None else max(oldest, swept + HOUR)
    last = (now + timedelta(minutes=1)).replace(minute=0, second=0, microsecond=0)
    while hour <= last:
        yield hour
        hour += HOUR
