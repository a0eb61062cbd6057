"""The scheduled delivery of notices: every minute, to the operator's address and to users by mail."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Protocol

from tollgate.wiring import NoticesTools, build_notices

STOP_EARLY_SECONDS = 20
"""Leave the run this long before the function is killed: more than one notice takes when nobody answers."""


class Context(Protocol):
    """The part of Lambda's context that is read."""

    def get_remaining_time_in_millis(self) -> int: ...


@lru_cache(maxsize=1)
def _tools() -> NoticesTools:
    return build_notices()


def handler(event: dict[str, object], context: Context) -> dict[str, int | bool]:
    """Deliver what is due, and say what was done; after an error the next minute resumes."""
    tools = _tools()
    left_seconds = context.get_remaining_time_in_millis() // 1000 - STOP_EARLY_SECONDS
    done = tools.delivery.run(tools.clock.now_seconds() + left_seconds)
    if done.delivered or done.put_off or done.dead:
        outcome = "complete" if done.complete else "deadline"
        tools.telemetry.event("notices_delivered", swept_count=done.delivered, outcome=outcome)
    return asdict(done)
