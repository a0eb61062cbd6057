"""The running period as it is told: its forecast begins when the account did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.request_records import CATALOG
from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import UNLIMITED
from tollgate.domain.principals import Account, Profile
from tollgate.domain.rollups import PeriodUse, Sums
from tollgate.edge.usage_views import current_usage_view
from tollgate.flows.current_usage import CurrentUsage

PERIOD = UsagePeriod(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
NOW = datetime(2026, 11, 23, tzinfo=UTC)
METER = Meter(
    key=MeterKey("main", "u1", PERIOD),
    quota_tokens=100_000,
    overage_cap_tokens=0,
    remaining_tokens=90_000,
    settled_tokens=10_000,
    written_off_tokens=0,
    quota_requests=UNLIMITED,
    remaining_requests=UNLIMITED - 10,
    open_count=0,
    rate_tat_ms=0,
    plan_id="free",
    plan_version=1,
)


def heading(came_at: datetime, anchor_at: datetime) -> Any:  # noqa: ANN401  the document or None
    profile = Profile("main", "u1", "free", 1, anchor_at, created_at=came_at)
    usage = CurrentUsage(Account.of(profile, CATALOG.plan("free")), PERIOD, METER)
    return current_usage_view(usage, PeriodUse(Sums(), Sums(), Sums(), exact=True), NOW)["forecast"]


@pytest.mark.parametrize(
    ("came", "tokens", "requests"),
    [
        (timedelta(days=-400), 13_636, 13),
        (timedelta(0), 13_636, 13),
        (timedelta(days=20), 50_000, 50),
        (timedelta(days=21), 90_000, 90),
    ],
)
def test_who_came_in_the_middle_of_a_month_is_forecast_from_then_on(
    came: timedelta, tokens: int, requests: int
) -> None:
    """Ten calls of 1,000 tokens so far; a subscription, which moves the anchor, changes nothing about that."""
    came_at = PERIOD.start_at + came
    for anchor_at in (came_at, NOW - timedelta(hours=1)):
        found = heading(came_at, anchor_at)
        assert (found["used_tokens"], found["used_requests"]) == (tokens, requests)


def test_in_the_first_day_of_an_account_there_is_none() -> None:
    came_at = NOW - timedelta(days=1)
    assert heading(came_at, came_at) is not None
    assert heading(came_at + timedelta(seconds=1), came_at) is None
