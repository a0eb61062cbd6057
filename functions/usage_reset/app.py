"""The scheduled job: sweeps, looks again at subscribers who are due, closes periods that have ended, opens the next."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol

from tollgate.flows.close_period import CloseReport
from tollgate.flows.sweep_meters import SweepReport, sweep_meters
from tollgate.flows.sync_due import sync_due
from tollgate.wiring import UsageResetTools, build_usage_reset

STOP_EARLY_SECONDS: Final = 40
"""Leave the run this long before the function is killed: more than one sweep or one look at Stripe under retries."""
SWEPT_AT_PERCENT: Final = 35
SYNCED_AT_PERCENT: Final = 55
CLOSED_AT_PERCENT: Final = 80
REPORTED_AT_PERCENT: Final = 95
"""Of the run's time. What is not reached by then waits for the next run, so that no part keeps another from its turn;
what a part does not need, the next has."""


class Context(Protocol):
    """The part of Lambda's context that is read."""

    def get_remaining_time_in_millis(self) -> int: ...


@lru_cache(maxsize=1)
def _tools() -> UsageResetTools:
    return build_usage_reset()


def handler(event: dict[str, object], context: Context) -> dict[str, int | bool]:
    """Do what is due, and say what was done; an error is left to the scheduler, which tries again and keeps the event.

    Every part may be late, doubled or killed: the next run goes on.
    """
    tools = _tools()
    tools.stripe_deadline.begin(context.get_remaining_time_in_millis())
    began_at_seconds = tools.clock.now_seconds()
    left_seconds = context.get_remaining_time_in_millis() // 1000 - STOP_EARLY_SECONDS
    swept = _sweep(tools, began_at_seconds + left_seconds * SWEPT_AT_PERCENT // 100)
    synced = _sync(tools, began_at_seconds + left_seconds * SYNCED_AT_PERCENT // 100)
    closed = _close(tools, began_at_seconds + left_seconds * CLOSED_AT_PERCENT // 100)
    return {
        "seen_meters": swept.seen_meters,
        "expired_reservations": swept.expired_reservations,
        "synced_subscribers": synced,
        "closed_periods": closed.closed_periods,
        "left_periods": closed.left_periods,
        "reported_users": _report(tools, began_at_seconds + left_seconds * REPORTED_AT_PERCENT // 100),
        "opened_periods": tools.closer.open_ahead(began_at_seconds + left_seconds),
        "complete": swept.complete and closed.complete,
    }


def _sweep(tools: UsageResetTools, deadline_at_seconds: float) -> SweepReport:
    swept = sweep_meters(
        activity=tools.activity,
        meters=tools.meters,
        ledger=tools.ledger,
        catalog=tools.catalog,
        clock=tools.clock,
        report=tools.telemetry.report,
        deadline_at_seconds=deadline_at_seconds,
    )
    tools.telemetry.event("meters_swept", swept_count=swept.expired_reservations, outcome=_outcome(swept.complete))
    return swept


def _sync(tools: UsageResetTools, deadline_at_seconds: float) -> int:
    due = sync_due(
        subscriptions=tools.subscriptions,
        sync=tools.sync,
        clock=tools.clock,
        report=tools.telemetry.report,
        deadline_at_seconds=deadline_at_seconds,
    )
    tools.telemetry.event(
        "subscribers_synced",
        swept_count=due.synced_subscribers,
        refused_count=due.refused_subscribers,
        outcome=_outcome(due.complete),
    )
    if due.refused_subscribers:
        tools.telemetry.measure({"DueSubscribersRefused": due.refused_subscribers, "StripeAlarms": 1})
    return due.synced_subscribers


def _close(tools: UsageResetTools, deadline_at_seconds: float) -> CloseReport:
    closed = tools.closer.close_due(deadline_at_seconds)
    tools.telemetry.event(
        "periods_closed",
        closed_count=closed.closed_periods,
        left_count=closed.left_periods,
        unreconciled_count=closed.unreconciled_periods,
        outcome=_outcome(closed.complete),
    )
    tools.telemetry.measure(
        {"PeriodsLeftOpen": closed.left_periods, "PeriodsUnreconciled": closed.unreconciled_periods}
    )
    return closed


def _report(tools: UsageResetTools, deadline_at_seconds: float) -> int:
    """After the closes, which say whose last overage there is to report."""
    reported = tools.report_overage(deadline_at_seconds)
    tools.telemetry.event(
        "overage_run",
        reported_count=reported.reported_users,
        refused_count=reported.refused_users,
        outcome=_outcome(reported.complete),
    )
    if reported.refused_users:
        tools.telemetry.measure({"OverageUsersRefused": reported.refused_users, "StripeAlarms": 1})
    return reported.reported_users


def _outcome(complete: bool) -> str:
    return "complete" if complete else "deadline"
