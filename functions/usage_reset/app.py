"""The scheduled job on usage periods. Today it sweeps reservations that crashed calls left open."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from tollgate.flows.sweep_meters import sweep_meters
from tollgate.wiring import UsageReset, build_usage_reset

STOP_EARLY_SECONDS = 20
"""Leave the run this long before the function is killed: more than one sweep under retries takes."""


@lru_cache(maxsize=1)
def _reset() -> UsageReset:
    return build_usage_reset(os.environ)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401, ARG001  Lambda's own types
    """Sweep, and say what was done; an error is left to the scheduler, which tries again and then keeps the event."""
    reset = _reset()
    left_seconds = context.get_remaining_time_in_millis() / 1000
    report = sweep_meters(
        meters=reset.meters,
        ledger=reset.ledger,
        catalog=reset.catalog,
        clock=reset.clock,
        deadline_at_seconds=reset.clock.now_seconds() + left_seconds - STOP_EARLY_SECONDS,
    )
    reset.telemetry.event("meters_swept", swept_count=report.expired_reservations, outcome=_outcome(report.complete))
    return {
        "seen_meters": report.seen_meters,
        "expired_reservations": report.expired_reservations,
        "complete": report.complete,
    }


def _outcome(complete: bool) -> str:
    return "complete" if complete else "deadline"
