"""What a plan says about itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tollgate.domain.plans import UNLIMITED, ExpiryPolicy, PeriodKind, Plan, QuotaKind

PLAN = Plan(
    id="small",
    name="Small",
    quota_kind=QuotaKind.HARD,
    quota_tokens=1_000,
    quota_requests=None,
    overage_cap_tokens=0,
    overage_price_microusd_per_1k_tokens=0,
    price_cents=0,
    period_kind=PeriodKind.CALENDAR_MONTH,
    models=frozenset({"claude-haiku-5-5"}),
    requests_per_minute=None,
    burst_requests=0,
    max_open_reservations=1,
    max_output_tokens=None,
    slice_output_tokens=None,
    expiry_policy=ExpiryPolicy.STRICT,
)


def test_a_plan_allows_the_models_it_names_and_no_other() -> None:
    assert PLAN.allows_model("claude-haiku-5-5")
    assert not PLAN.allows_model("claude-haiku-5")
    assert not PLAN.allows_model("")


def test_a_plan_that_names_no_model_allows_all() -> None:
    assert replace(PLAN, models=frozenset()).allows_model("claude-fable-5-2")


@pytest.mark.parametrize(("kind", "hard"), [(QuotaKind.HARD, True), (QuotaKind.SOFT, False)])
def test_only_a_hard_quota_is_hard(kind: QuotaKind, hard: bool) -> None:
    assert replace(PLAN, quota_kind=kind).hard is hard


def test_a_quota_that_is_not_limited_is_stored_as_one_nobody_reaches() -> None:
    unlimited = replace(PLAN, quota_tokens=None, quota_requests=None)

    assert unlimited.stored_quota_tokens == unlimited.stored_quota_requests == UNLIMITED
    # A double, which is what JSON clients read numbers into, still tells it from its neighbour.
    assert float(UNLIMITED) != float(UNLIMITED - 1)


def test_a_quota_is_stored_as_it_is() -> None:
    assert PLAN.stored_quota_tokens == 1_000
    assert replace(PLAN, quota_requests=0).stored_quota_requests == 0
