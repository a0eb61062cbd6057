"""The scheduled job: sweeps reservations that crashed calls left open, and looks again at subscribers who are due."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from tollgate.flows.sweep_meters import sweep_meters
from tollgate.flows.sync_due import sync_due
from tollgate.wiring import UsageResetTools, build_usage_reset

STOP_EARLY_SECONDS = 40
"""Leave the run this long before the function is killed: more than one sweep or one look at Stripe under retries."""


class Context(Protocol):
    """The part of Lambda's context that is read."""

    def get_remaining_time_in_millis(self) -> int: ...


@lru_cache(maxsize=1)
def _tools() -> UsageResetTools:
    return build_usage_reset()


def handler(event: dict[str, object], context: Context) -> dict[str, int | bool]:
    """Sweep, and say what was done; an error is left to the scheduler, which tries again and then keeps the event."""
    tools = _tools()
    left_seconds = context.get_remaining_time_in_millis() // 1000 - STOP_EARLY_SECONDS
    deadline_at_seconds = tools.clock.now_seconds() + left_seconds
    swept = sweep_meters(
        meters=tools.meters,
        ledger=tools.ledger,
        catalog=tools.catalog,
        clock=tools.clock,
        deadline_at_seconds=deadline_at_seconds,
    )
    tools.telemetry.event("meters_swept", swept_count=swept.expired_reservations, outcome=_outcome(swept.complete))
    return {
        "seen_meters": swept.seen_meters,
        "expired_reservations": swept.expired_reservations,
        "synced_subscribers": _sync(tools, deadline_at_seconds),
        "complete": swept.complete,
    }


def _sync(tools: UsageResetTools, deadline_at_seconds: float) -> int:
    due = sync_due(
        subscriptions=tools.subscriptions,
        sync=tools.sync,
        clock=tools.clock,
        report=tools.telemetry.report,
        deadline_at_seconds=deadline_at_seconds,
    )
    tools.telemetry.event("subscribers_synced", swept_count=due.synced_subscribers, outcome=_outcome(due.complete))
    return due.synced_subscribers


def _outcome(complete: bool) -> str:
    return "complete" if complete else "deadline"
