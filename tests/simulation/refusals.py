"""Was a refusal right? Judged by what the process saw, which production code had before its eyes when it refused.

Reported: false_reject, when nothing that was seen was full, or only by reservations that had long expired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.simulation.containers import TENANT, Container, user_id
from tests.simulation.expressions import Item
from tests.simulation.oracle import Oracle, number, parse_reservation, room
from tests.simulation.scenario import Request, Scenario
from tollgate.domain.errors import QuotaExceededError, RateLimitedError
from tollgate.domain.ledger import MIN_OUTPUT_TOKENS, SKEW_SECONDS
from tollgate.domain.periods import period_at
from tollgate.domain.principals import KeyLimits
from tollgate.domain.tokens import TokenWeights
from tollgate.storage.table import user_pk


@dataclass(frozen=True, slots=True)
class Refusals:
    """Judges for one run."""

    oracle: Oracle
    scenario: Scenario
    weights: TokenWeights

    def judge(
        self, error: QuotaExceededError | RateLimitedError, container: Container, request: Request, bound_tokens: int
    ) -> None:
        """`bound_tokens`: the billable bound of the request's prompt."""
        if error.error_code == "free_pool_exhausted":
            self.oracle.seen["refused_pool"] += 1
            if not self.oracle.has_full_pool():
                self.oracle.report("false_reject", f"{container.process.name}: no pool is full")
            return
        sights = self._sights(container, request)
        if isinstance(error, QuotaExceededError):
            right = self._was_full(error, sights, request, bound_tokens)
        else:
            self.oracle.seen[f"refused_{error.error_code}"] += 1
            tests: dict[str, Callable[[float, Item], bool]] = {
                "rate_limited": self._is_too_early,
                "key_rate_limited": lambda reading, item: _is_too_early_for(request.limits, reading, item),
                "too_many_streams": lambda reading, item: self._has_no_slot(request, reading, item),
            }
            test = tests.get(error.error_code)  # contention shows nothing
            right = test is None or any(test(reading, item) for reading, item in sights)
        if not right:
            seen = [f"{_summary(item)} at {reading:.3f}" for reading, item in sights[-3:]]
            self.oracle.report("false_reject", f"{container.process.name}: {error.error_code}, but saw {seen}")

    def _was_full(
        self, error: QuotaExceededError, sights: list[tuple[float, Item]], request: Request, bound_tokens: int
    ) -> bool:
        if error.error_code == "key_budget_exceeded":
            self.oracle.seen["refused_key_budget"] += 1
            return any(self._has_no_budget(*sight, request, bound_tokens) for sight in sights)
        without_requests = any(self._has_no_request(reading, item) for reading, item in sights)
        self.oracle.seen["refused_requests" if without_requests else "refused_quota"] += 1
        return without_requests or any(self._has_no_room(*sight, request, bound_tokens) for sight in sights)

    def _sights(self, container: Container, request: Request) -> list[tuple[float, Item]]:
        """What it saw, each with its own clock.

        A process that saw nothing spoke from memory, which may only hold what the table still says.
        """
        process = container.process
        if process.sights:
            return process.sights
        self.oracle.seen["refused_from_memory"] += 1
        found = []
        for reading in {process.readings[0], process.readings[-1]}:  # a period may have ended in between
            now = datetime.fromtimestamp(reading, UTC)
            pk = user_pk(TENANT, user_id(request.user))
            for kind, anchor_at in self.oracle.standings.series(pk):  # the account in hand may be an older one
                item = self.oracle.network.table.find(pk, f"USAGE#{period_at(kind, anchor_at, now).id}")
                if item is not None:
                    found.append((process.readings[-1], item))
        return found

    def _has_no_request(self, reading: float, item: Item) -> bool:
        return number(item, "req_remaining") < 1 and not _has_overdue(reading, item)

    def _has_no_room(self, reading: float, item: Item, request: Request, bound_tokens: int) -> bool:
        return room(item) < self._least(item, request, bound_tokens) and not _has_overdue(reading, item)

    def _has_no_budget(self, reading: float, item: Item, request: Request, bound_tokens: int) -> bool:
        limits = request.limits
        if limits is None or limits.budget_tokens is None:
            return False
        name = f"k#{limits.id}"
        left = limits.budget_tokens - (number(item, name) if name in item else 0)
        return left < self._least(item, request, bound_tokens) and not _has_overdue(reading, item)

    def _least(self, item: Item, request: Request, bound_tokens: int) -> int:
        """Billable tokens without which the request is not served."""
        slice_tokens = self.oracle.plan_of(item).slice_output_tokens
        if self.oracle.relayed and request.limits is not None and request.limits.budget_tokens is not None:
            slice_tokens = None  # the relay reserves all of it, so that no answer can outgrow the budget
        output = request.max_tokens if slice_tokens is None else min(request.max_tokens, slice_tokens)
        least = min(MIN_OUTPUT_TOKENS, output) if request.may_clamp else output
        return bound_tokens + self.weights.billable_output(least)

    def _has_no_slot(self, request: Request, reading: float, item: Item) -> bool:
        """By the account's plan: a meter that a change of plan has left keeps its own, and slow clocks still use it."""
        profile = self.oracle.standings.profiles[user_pk(TENANT, user_id(request.user))]
        plans = self.oracle.plan_of(item), self.oracle.plan_of(profile)
        full = number(item, "open_count") >= min(plan.max_open_reservations for plan in plans)
        return full and not _has_overdue(reading, item)

    def _is_too_early(self, reading: float, item: Item) -> bool:
        """By any plan of the run: containers keep accounts for a while. No expiry of anything can help."""
        return any(
            number(item, "rate_tat") > int(reading * 1000) + (plan.burst_requests - 1) * -(-60_000 // limit)
            for plan in self.oracle.plans.values()
            if (limit := plan.requests_per_minute) is not None
        )


def _is_too_early_for(limits: KeyLimits | None, reading: float, item: Item) -> bool:
    if limits is None or limits.requests_per_minute is None:
        return False
    interval_ms, name = -(-60_000 // limits.requests_per_minute), f"q#{limits.id}"
    return name in item and number(item, name) > int(reading * 1000) + (limits.burst_requests - 1) * interval_ms


def _has_overdue(reading: float, item: Item) -> bool:
    """The process's own clock showed a reservation expired, with a second for the way."""
    due = reading - 2 * SKEW_SECONDS - 1
    return any(name[:2] == "r#" and parse_reservation(value["S"])[1] < due for name, value in item.items())


def _summary(item: Item) -> str:
    keys = [f"{name}={item[name]['N']}" for name in item if name[:2] in ("k#", "q#")]
    shown = ("remaining", "req_remaining", "open_count", "rate_tat", "overage_cap", "plan_version")
    held = [f"{name}={value['S']}" for name, value in item.items() if name[:2] == "r#"]
    return " ".join([*(f"{name}={item[name]['N']}" for name in shown), *keys, *held])
