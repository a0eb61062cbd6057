"""Usage thresholds: what share is used, and which thresholds that passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.ledger_world import START
from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.notices import (
    QuotaShare,
    QuotaUnit,
    UsageNotice,
    passed_thresholds,
    quota_shares,
    used_percent,
)
from tollgate.domain.periods import period_at
from tollgate.domain.plans import UNLIMITED, PeriodKind

PERIOD = period_at(PeriodKind.CALENDAR_MONTH, START, START)


def a_meter(**changes: Any) -> Meter:  # noqa: ANN401  any field of Meter
    meter = Meter(
        key=MeterKey("main", "u1", PERIOD),
        quota_tokens=1000,
        overage_cap_tokens=0,
        remaining_tokens=1000,
        settled_tokens=0,
        written_off_tokens=0,
        quota_requests=UNLIMITED,
        remaining_requests=UNLIMITED,
        open_count=0,
        rate_tat_ms=0,
        plan_id="test",
        plan_version=1,
    )
    return replace(meter, **changes)


@pytest.mark.parametrize(
    ("used", "passed"),
    [
        (0, ()),
        (749, ()),
        (750, (75,)),
        (751, (75,)),
        (899, (75,)),
        (900, (75, 90)),
        (999, (75, 90)),
        (1000, (75, 90, 100)),
        (5000, (75, 90, 100)),
    ],
)
def test_a_threshold_is_passed_when_that_share_is_used_and_not_before(used: int, passed: tuple[int, ...]) -> None:
    assert passed_thresholds(QuotaShare(QuotaUnit.TOKENS, used, 1000), (75, 90, 100)) == passed


def test_what_running_calls_hold_is_not_used() -> None:
    [share] = quota_shares(a_meter(settled_tokens=100, remaining_tokens=0))
    assert share.percent == 10


def test_a_quota_of_requests_counts_those_that_have_ended() -> None:
    meter = a_meter(quota_tokens=UNLIMITED, quota_requests=10, remaining_requests=2, open_count=1)
    assert quota_shares(meter) == (QuotaShare(QuotaUnit.REQUESTS, 7, 10),)


def test_a_plan_without_quotas_has_no_share() -> None:
    meter = a_meter(quota_tokens=UNLIMITED)
    assert quota_shares(meter) == ()
    assert used_percent(meter) is None


def test_overage_of_an_earlier_plan_is_no_use_of_the_present_one() -> None:
    """1,500 of 1,000 were used, 500 of them as overage, when the plan became one of 10,000."""
    meter = a_meter(settled_tokens=1500, quota_tokens=10_500, banked_tokens=500, remaining_tokens=9000)
    assert used_percent(meter) == 10


def test_a_notice_has_the_same_id_whoever_finds_it_and_another_one_for_each_threshold_unit_and_period() -> None:
    def notice(percent: int, unit: QuotaUnit = QuotaUnit.TOKENS, used: int = 800, user: str = "u1") -> UsageNotice:
        return UsageNotice("main", user, PERIOD, "pro", percent, QuotaShare(unit, used, 1000), START)

    assert notice(75).id == notice(75, used=999).id
    ids = [notice(75).id, notice(90).id, notice(75, QuotaUnit.REQUESTS).id, notice(75, user="u2").id]
    assert len(set(ids)) == len(ids)
