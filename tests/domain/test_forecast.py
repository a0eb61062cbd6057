"""The forecast: a straight line in whole numbers, and nothing at all while too little is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import pytest

from tollgate.domain.forecast import FEWEST_REQUESTS, forecast
from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import UNLIMITED

START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
TENTH_DAY = START + timedelta(days=10)


def a_meter(**changes: Any) -> Meter:  # noqa: ANN401  any field of Meter
    meter = Meter(
        key=MeterKey("main", "u1", UsagePeriod(START, END)),
        quota_tokens=1_000,
        overage_cap_tokens=0,
        remaining_tokens=900,
        settled_tokens=100,
        written_off_tokens=0,
        quota_requests=UNLIMITED,
        remaining_requests=UNLIMITED - 10,
        open_count=0,
        rate_tat_ms=0,
        plan_id="pro",
        plan_version=1,
        cost_picousd=7_000_000,
    )
    return replace(meter, **changes)


def test_what_was_used_in_a_third_is_three_times_as_much_in_the_whole() -> None:
    found = forecast(a_meter(), TENTH_DAY, START)
    assert found is not None
    assert (found.used_tokens, found.cost_picousd, found.quota_reached_at) == (300, 21_000_000, None)
    assert (found.overage_tokens, found.overage_nanousd) == (0, 0)


@pytest.mark.parametrize(("seconds", "known"), [(-1, False), (0, True), (1, True)])
def test_the_first_day_of_a_period_says_nothing(seconds: int, known: bool) -> None:
    assert (forecast(a_meter(), START + timedelta(days=1, seconds=seconds), START) is not None) is known


@pytest.mark.parametrize(("requests", "known"), [(-1, False), (0, True), (1, True)])
def test_neither_do_one_or_two_calls(requests: int, known: bool) -> None:
    meter = a_meter(remaining_requests=UNLIMITED - FEWEST_REQUESTS - requests)
    assert (forecast(meter, TENTH_DAY, START) is not None) is known


def test_a_period_that_is_over_has_no_forecast() -> None:
    assert forecast(a_meter(), END, START) is None


def test_it_says_when_the_quota_is_reached() -> None:
    found = forecast(a_meter(settled_tokens=500), TENTH_DAY, START)
    assert found is not None
    assert found.quota_reached_at == START + timedelta(days=20)
    assert forecast(a_meter(settled_tokens=1_000), TENTH_DAY, START).quota_reached_at is None  # type: ignore[union-attr]


def test_nobody_is_forecast_beyond_what_the_ledger_allows() -> None:
    found = forecast(a_meter(settled_tokens=900), TENTH_DAY, START)
    assert found is not None
    assert (found.used_tokens, found.overage_tokens) == (1_000, 0)


def test_overage_is_forecast_at_the_meters_price_up_to_the_cap_with_what_is_banked() -> None:
    soft = a_meter(
        settled_tokens=900,
        overage_cap_tokens=5_000,
        overage_price_nanousd=20,
        banked_tokens=7,
        banked_nanousd=70,
    )
    found = forecast(soft, TENTH_DAY, START)
    assert found is not None
    assert (found.used_tokens, found.overage_tokens, found.overage_nanousd) == (2_700, 1_707, 34_070)
    capped = forecast(replace(soft, overage_cap_tokens=100), TENTH_DAY, START)
    assert capped is not None
    assert (capped.used_tokens, capped.overage_tokens, capped.overage_nanousd) == (1_100, 107, 2_070)


def test_without_a_quota_there_is_none_to_reach() -> None:
    found = forecast(a_meter(quota_tokens=UNLIMITED, settled_tokens=5_000), TENTH_DAY, START)
    assert found is not None
    assert (found.used_tokens, found.overage_tokens, found.quota_reached_at) == (15_000, 0, None)


def test_nothing_used_stays_nothing() -> None:
    found = forecast(a_meter(settled_tokens=0, cost_picousd=0), TENTH_DAY, START)
    assert found is not None
    assert (found.used_tokens, found.cost_picousd, found.quota_reached_at) == (0, 0, None)


def a_meter_of_calls(used: int, **changes: Any) -> Meter:  # noqa: ANN401  any field of Meter
    return a_meter(quota_requests=90, remaining_requests=90 - used, **changes)


@pytest.mark.parametrize(
    ("used_requests", "requests", "tokens", "reached_at"),
    [
        (29, 87, 300, None),
        (30, 90, 300, END),
        (31, 90, 290, START + timedelta(seconds=ceil(10 * 86_400 * 90 / 31))),
        (89, 90, 101, START + timedelta(seconds=ceil(10 * 86_400 * 90 / 89))),
        (90, 90, 100, None),
    ],
)
def test_a_quota_of_calls_ends_the_line_too(
    used_requests: int, requests: int, tokens: int, reached_at: datetime | None
) -> None:
    """Tokens and cost grow no further than the calls that are left can make them."""
    found = forecast(a_meter_of_calls(used_requests, quota_tokens=UNLIMITED), TENTH_DAY, START)
    assert found is not None
    assert (found.used_requests, found.used_tokens, found.quota_reached_at) == (requests, tokens, reached_at)


def test_of_two_quotas_the_first_to_be_reached_is_told() -> None:
    tokens_first = forecast(a_meter_of_calls(40, settled_tokens=500), TENTH_DAY, START)
    assert tokens_first is not None
    assert tokens_first.quota_reached_at == START + timedelta(days=20)
    assert (tokens_first.used_tokens, tokens_first.used_requests) == (1_000, 80)
    calls_first = forecast(a_meter_of_calls(60, settled_tokens=500), TENTH_DAY, START)
    assert calls_first is not None
    assert calls_first.quota_reached_at == START + timedelta(days=15)
    assert (calls_first.used_tokens, calls_first.used_requests) == (750, 90)


def test_overage_goes_on_until_the_calls_are_used_up() -> None:
    """The quota of tokens was reached before; what ends the period's use is to come."""
    soft = a_meter_of_calls(45, settled_tokens=1_500, overage_cap_tokens=9_000, overage_price_nanousd=20)
    found = forecast(soft, TENTH_DAY, START)
    assert found is not None
    assert (found.used_tokens, found.overage_tokens, found.overage_nanousd) == (3_000, 2_000, 40_000)
    assert found.quota_reached_at == START + timedelta(days=20)


def test_calls_beyond_their_quota_are_forecast_to_stay() -> None:
    """A smaller plan leaves fewer calls than were made."""
    found = forecast(a_meter_of_calls(95), TENTH_DAY, START)
    assert found is not None
    assert (found.used_requests, found.used_tokens, found.quota_reached_at) == (95, 100, None)


def test_who_came_in_the_middle_of_a_period_is_counted_from_there() -> None:
    came_at = START + timedelta(days=20)
    found = forecast(a_meter(settled_tokens=300), came_at + timedelta(days=2), came_at)
    assert found is not None
    assert (found.used_tokens, found.quota_reached_at) == (1_000, came_at + timedelta(days=2) * 10 / 3)
    assert forecast(a_meter(), came_at + timedelta(days=1, seconds=-1), came_at) is None


def test_who_came_before_the_period_is_counted_from_its_start() -> None:
    assert forecast(a_meter(), TENTH_DAY, START - timedelta(days=300)) == forecast(a_meter(), TENTH_DAY, START)
