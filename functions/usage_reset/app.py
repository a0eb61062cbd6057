"""The scheduled job on usage periods. Today it sweeps reservations that crashed calls left open."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from tollgate.flows.sweep_meters import sweep_meters
from tollgate.wiring import UsageResetTools, build_usage_reset

STOP_EARLY_SECONDS = 20
"""Leave the run this long before the function is killed: more than one sweep under retries takes."""


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
    report = sweep_meters(
        meters=tools.meters,
        ledger=tools.ledger,
        catalog=tools.catalog,
        clock=tools.clock,
        deadline_at_seconds=tools.clock.now_seconds() + left_seconds,
    )
    outcome = "complete" if report.complete else "deadline"
    tools.telemetry.event("meters_swept", swept_count=report.expired_reservations, outcome=outcome)
    return {
        "seen_meters": report.seen_meters,
        "expired_reservations": report.expired_reservations,
        "complete": report.complete,
    }
