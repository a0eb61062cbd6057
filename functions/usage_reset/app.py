"""The scheduled job: sweeps, looks again at subscribers who are due, closes periods that have ended, opens the next."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final, Protocol

from tollgate.edge.scheduled import Figures, run_parts
from tollgate.flows.sweep_meters import sweep_meters
from tollgate.flows.sync_due import sync_due
from tollgate.wiring import UsageResetTools, build_usage_reset

STOP_EARLY_SECONDS: Final = 40
"""Leave the run this long before the function is killed: more than one sweep or one look at Stripe under retries."""


class Context(Protocol):
    """The part of Lambda's context that is read."""

    def get_remaining_time_in_millis(self) -> int: ...


@lru_cache(maxsize=1)
def _tools() -> UsageResetTools:
    return build_usage_reset()


def handler(event: dict[str, object], context: Context) -> dict[str, int | bool]:
    """Do what is due, and say what was done; an error is left to the scheduler, which tries again and keeps the event.

    Every part may be late, doubled or killed: the next run goes on. One that fails keeps no other from its turn.
    """
    tools = _tools()
    tools.stripe_deadline.begin(context.get_remaining_time_in_millis())
    began_at_seconds = tools.clock.now_seconds()
    left_seconds = context.get_remaining_time_in_millis() // 1000 - STOP_EARLY_SECONDS
    parts = [(name, until_percent, partial(part, tools)) for name, until_percent, part in _PARTS]
    return run_parts(parts, began_at_seconds, left_seconds, tools.telemetry)


def _sweep(tools: UsageResetTools, deadline_at_seconds: float) -> Figures:
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
    return {
        "seen_meters": swept.seen_meters,
        "expired_reservations": swept.expired_reservations,
        "complete": swept.complete,
    }


def _sync(tools: UsageResetTools, deadline_at_seconds: float) -> Figures:
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
    return {"synced_subscribers": due.synced_subscribers}


def _close(tools: UsageResetTools, deadline_at_seconds: float) -> Figures:
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
    return {
        "closed_periods": closed.closed_periods,
        "left_periods": closed.left_periods,
        "complete": closed.complete,
    }


def _report(tools: UsageResetTools, deadline_at_seconds: float) -> Figures:
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
    return {"reported_users": reported.reported_users}


def _open_ahead(tools: UsageResetTools, deadline_at_seconds: float) -> Figures:
    return {"opened_periods": tools.closer.open_ahead(deadline_at_seconds)}


def _outcome(complete: bool) -> str:
    return "complete" if complete else "deadline"


_PARTS: Final[tuple[tuple[str, int, Callable[[UsageResetTools, float], Figures]], ...]] = (
    ("sweep", 35, _sweep),
    ("sync", 55, _sync),
    ("close", 80, _close),
    ("report", 95, _report),
    ("open_ahead", 100, _open_ahead),
)
"""Each with the percent of the run's time at which it ends. What is not reached by then waits for the next run; what a
part does not need, the next has."""
