"""Close usage periods that have ended: sweep, roll up, reconcile, hand over the last overage, keep a summary.

A period is due CLOSE_LAG after its end, when nothing that began in it can be under way any more. A stream that crosses
the end is billed in the period in which it was reserved, because it settles there and the close comes after it.

Every step but the last may be done any number of times; the last is one transaction that writes the summary and takes
the meter out of the index, under the condition that the meter is the one that the summary tells. So a run may die
anywhere, come twice at once or days late, and what stands in the end is the same. A correction that comes later still
puts the meter back into the index: the period is closed again, and its summary says what came late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from tollgate.catalog.loader import Catalog
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import SKEW_SECONDS, TOMBSTONE_SECONDS, Meter, MeterName
from tollgate.domain.principals import Account
from tollgate.domain.rollups import PeriodUse
from tollgate.domain.shards import rotated
from tollgate.domain.sources import Clock
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.message_calls import Journal
from tollgate.flows.roll_up_usage import LONGEST_CALL_SECONDS, ROLL_UP_LAG_SECONDS, UsageRollUps
from tollgate.flows.sweep_meters import expiry_policy
from tollgate.storage.meters import SHARDS, TOMBSTONES_A_WRITE, Meters, Opening
from tollgate.storage.period_summaries import PeriodSummaries, PeriodSummary, summary_of
from tollgate.storage.users import Users

CLOSE_LAG_SECONDS: Final = 35 * 60
"""After a period's end its last calls have ended (LONGEST_CALL_SECONDS), what they sent has landed (TOMBSTONE_SECONDS)
and their records can be rolled up (ROLL_UP_LAG_SECONDS)."""
AHEAD_SECONDS: Final = 2 * 3600
"""How long before their beginning periods are opened: two hourly runs may fail."""
ONE_AT_MOST_SECONDS: Final = 120
"""Spent on one period in a run; what is left of a very long one waits, so that the others are not kept waiting."""
ROUNDS: Final = 4
"""Looks at a meter that moves while it is closed; its own sweep moves it once."""


class Closing(StrEnum):
    """What became of one period in a run."""

    CLOSED = "closed"
    NOT_DUE = "not_due"
    """It is closed already, or goes on: the index was behind."""
    LEFT = "left"
    """Something is not through yet; the next run goes on."""
    UNRECONCILED = "unreconciled"
    """Closed, with a difference between meter and records, which the summary keeps."""


@dataclass(frozen=True, slots=True)
class CloseReport:
    """What one run did."""

    closed_periods: int
    left_periods: int
    unreconciled_periods: int
    """Of the closed ones, those with a difference between meter and records; their summaries keep it."""
    complete: bool
    """False: the deadline came first; the next run goes on."""


@dataclass(slots=True)
class _Run:
    """What one run has come to so far."""

    deadline_at_seconds: float
    counts: dict[Closing, int] = field(default_factory=lambda: dict.fromkeys(Closing, 0))
    store_silent: bool = False
    """The table did not answer for the last period. For one that is a busy user, for two it is an outage."""

    def so_far(self, *, complete: bool) -> CloseReport:
        unreconciled = self.counts[Closing.UNRECONCILED]
        return CloseReport(
            self.counts[Closing.CLOSED] + unreconciled, self.counts[Closing.LEFT], unreconciled, complete=complete
        )


class PeriodCloser:
    """Closes periods and opens the next ones. Raises StoreUnavailableError; everything is safe to repeat."""

    def __init__(
        self,
        *,
        meters: Meters,
        ledger: Ledger,
        roll_ups: UsageRollUps,
        summaries: PeriodSummaries,
        users: Users,
        catalog: Catalog,
        clock: Clock,
        journal: Journal,
        hand_over_overage: Callable[[Meter], None],
    ) -> None:
        """`hand_over_overage`: sees to it that what a meter with a price for overage says is reported, whatever happens
        to this process. Raises StoreUnavailableError.
        """
        self._meters = meters
        self._ledger = ledger
        self._roll_ups = roll_ups
        self._summaries = summaries
        self._users = users
        self._catalog = catalog
        self._clock = clock
        self._journal = journal
        self._hand_over_overage = hand_over_overage

    def close_due(self, deadline_at_seconds: float) -> CloseReport:
        """Close every period that is due, earliest end first in each shard."""
        now = self._now()
        run = _Run(deadline_at_seconds)
        for shard in rotated(SHARDS, now):
            for name in self._meters.list_ending(shard, now - timedelta(seconds=CLOSE_LAG_SECONDS - 1)):
                if self._clock.now_seconds() >= deadline_at_seconds:
                    return run.so_far(complete=False)
                run.counts[self._close_or_leave(name, run)] += 1
        return run.so_far(complete=True)

    def open_ahead(self, deadline_at_seconds: float) -> int:
        """Open the meters of periods that begin soon, for those who pay; how many were opened."""
        now = self._now()
        opened = 0
        for shard in rotated(SHARDS, now):
            for name in self._meters.list_ending(shard, now + timedelta(seconds=AHEAD_SECONDS), since=now):
                if self._clock.now_seconds() >= deadline_at_seconds:
                    return opened
                opened += self._open_ahead(name)
        return opened

    def _open_ahead(self, name: MeterName) -> bool:
        """Where that fails the next call opens the period, so one user's trouble is only told."""
        try:
            meter = self._meters.find_named(name)
            return meter is not None and meter.closed_at is None and self._open_next(meter)
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  as in _close_or_leave
            self._tell_left("period_not_opened", error, name)
            return False

    def _close_or_leave(self, name: MeterName, run: _Run) -> Closing:
        """One user's trouble must not keep all the others' periods from being closed."""
        try:
            closing = self._close(name, run)
        except StoreUnavailableError as error:
            if run.store_silent:
                raise
            run.store_silent = True
            self._tell_left("period_left", error, name)
            return Closing.LEFT
        except Exception as error:  # noqa: BLE001  whatever is wrong with one user's items, the alarm tells it
            self._tell_left("period_left", error, name)
            return Closing.LEFT
        run.store_silent = False
        return closing

    def _close(self, name: MeterName, run: _Run) -> Closing:
        for _ in range(ROUNDS):
            meter = self._meters.find_named(name)
            if meter is None or meter.closed_at is not None or not self._is_due(meter):
                return Closing.NOT_DUE
            if meter.reservations:
                if not self._ledger.sweep(meter, expiry_policy(self._catalog, meter)):
                    # Not expired, by a clock far from ours, or somebody else is at it.
                    return self._leave(name, "open_reservations")
                continue
            use = self._recorded(meter, run)
            if use is None:
                return self._leave(name, "records_not_rolled_up")
            if meter.overage_price_nanousd or meter.banked_nanousd:
                self._hand_over_overage(meter)
            self._open_next(meter)
            summary = summary_of(meter, use, self._now(), self._closed_before(meter))
            if self._finish(meter, summary):
                return self._told(summary)
        return self._leave(name, "moving")

    def _leave(self, name: MeterName, outcome: str) -> Closing:
        self._journal.event(
            "period_left", tenant_id=name.tenant_id, user_id=name.user_id, period_id=name.period_id, outcome=outcome
        )
        return Closing.LEFT

    def _is_due(self, meter: Meter) -> bool:
        return meter.key.period.end_at + timedelta(seconds=CLOSE_LAG_SECONDS) <= self._now()

    def _recorded(self, meter: Meter, run: _Run) -> PeriodUse | None:
        """What the records say of the period, rolled up to its end; None when that is not through yet."""
        tenant_id, user_id, period = meter.key.tenant_id, meter.key.user_id, meter.key.period
        until_seconds = min(run.deadline_at_seconds, self._clock.now_seconds() + ONE_AT_MOST_SECONDS)
        while True:
            rolled = self._roll_ups.roll_up_days(
                tenant_id, user_id, until=period.end_at, deadline_at_seconds=until_seconds
            )
            if rolled.through_at >= period.end_at:
                break
            if not rolled.records or self._clock.now_seconds() >= until_seconds:
                return None  # a call that is not over yet, or more than there is time for
        use = self._roll_ups.period_use(tenant_id, user_id, period)
        return use if use.exact else None

    def _open_next(self, meter: Meter) -> bool:
        """The meter of the period after this one, or of the one that runs now, for who is on a plan that is sold.

        Others open theirs with their first call: whoever does not return costs nothing. Nor does anybody who may not
        come take room out of a pool.
        """
        plan = self._catalog.plans.get(meter.plan_id)
        if plan is None or not plan.sold:
            return False
        profile = self._users.find_profile(meter.key.tenant_id, meter.key.user_id)
        plan = self._catalog.plans.get(profile.plan_id) if profile is not None else None
        if profile is None or plan is None or profile.deleted_at is not None:
            return False
        if not plan.sold or plan.pool_tokens is not None:
            return False
        account = Account.of(profile, plan)
        key = account_key(account, max(self._now(), meter.key.period.end_at))
        if self._meters.find(key) is not None:
            return False
        return self._meters.create(key, account.plan, profile.plan_version, listed=plan) is Opening.OPEN

    def _closed_before(self, meter: Meter) -> PeriodSummary | None:
        """A change of plan may have made the period longer since: then it is another one, and closed from the start."""
        key = meter.key
        before = self._summaries.find(key.tenant_id, key.user_id, key.period.id)
        return before if before is not None and before.period == key.period else None

    def _finish(self, meter: Meter, summary: PeriodSummary) -> bool:
        """Prune, and then at once: the summary is kept, the meter is marked and leaves the index."""
        while len(meter.tombstones) > TOMBSTONES_A_WRITE:
            pruned = self._meters.drop_tombstones(meter).meter
            if pruned is None:
                return False
            meter = replace(meter, tombstones=pruned.tombstones)
        return self._meters.close(meter, summary.closed_at, [self._summaries.part_of_transaction(summary)])

    def _tell_left(self, event: str, error: Exception, name: MeterName) -> None:
        self._journal.failure(event, error, tenant_id=name.tenant_id, user_id=name.user_id, period_id=name.period_id)

    def _told(self, summary: PeriodSummary) -> Closing:
        self._journal.event(
            "period_closed",
            user_id=summary.user_id,
            period_id=summary.period.id,
            plan_id=summary.plan_id,
            charged_tokens=summary.charged_tokens,
            unrecorded_tokens=summary.unrecorded_tokens,
            late_tokens=summary.late_tokens,
            outcome=str(Closing.CLOSED if summary.reconciled else Closing.UNRECONCILED),
        )
        return Closing.CLOSED if summary.reconciled else Closing.UNRECONCILED

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)


assert max(ROLL_UP_LAG_SECONDS, LONGEST_CALL_SECONDS + TOMBSTONE_SECONDS + 2 * SKEW_SECONDS) < CLOSE_LAG_SECONDS
