"""The plan as it is for one user."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.ledger_world import START, a_plan
from tollgate.domain.plans import QuotaKind
from tollgate.domain.principals import Account, Profile, effective_plan
from tollgate.domain.subscriptions import Entitlements

PROFILE = Profile("main", "u1", "test", 1, START)
PLAN = a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=500, overage_price_microusd_per_1k_tokens=100_000)
"""A cent buys a hundred tokens."""


def cap(plan_changes: dict[str, Any], **profile_changes: Any) -> int:  # noqa: ANN401
    return effective_plan(replace(PLAN, **plan_changes), replace(PROFILE, **profile_changes)).overage_cap_tokens


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 500),
        ({"overage_cap_cents": 0}, 0),
        ({"overage_cap_cents": 1}, 100),
        ({"overage_cap_cents": 4}, 400),
        ({"overage_cap_cents": 5}, 500),
        ({"overage_cap_cents": 6}, 500),
        ({"overage_blocked": True}, 0),
        ({"overage_blocked": True, "overage_cap_cents": 5}, 0),
        ({"trial": True}, 0),
    ],
)
def test_overage_goes_as_far_as_plan_payment_and_user_allow(changes: dict[str, Any], tokens: int) -> None:
    assert cap({}, **changes) == tokens


@pytest.mark.parametrize(("cents", "tokens"), [(None, 0), (0, 0), (2, 200), (90, 500)])
def test_where_overage_must_be_asked_for_nobody_has_it_unasked(cents: int | None, tokens: int) -> None:
    assert cap({"overage_opt_in": True}, overage_cap_cents=cents) == tokens


def test_a_cap_in_money_buys_whole_tokens_and_never_more() -> None:
    assert cap({"overage_price_microusd_per_1k_tokens": 30_000}, overage_cap_cents=1) == 333


def test_overage_for_nothing_has_no_cap_in_money_but_off() -> None:
    free = {"overage_price_microusd_per_1k_tokens": 0}
    assert (cap(free, overage_cap_cents=1), cap(free, overage_cap_cents=0)) == (500, 0)


@pytest.mark.parametrize(("trial", "quota", "tokens"), [(True, 50, 50), (True, None, 1_000), (False, 50, 1_000)])
def test_a_trial_has_the_trials_quota_if_the_plan_has_one(trial: bool, quota: int | None, tokens: int) -> None:
    plan = effective_plan(replace(PLAN, trial_quota_tokens=quota), replace(PROFILE, trial=trial))
    assert plan.quota_tokens == tokens


def test_a_plan_that_nothing_is_special_about_is_the_catalogs_own() -> None:
    assert effective_plan(PLAN, PROFILE) is PLAN


def test_an_account_keeps_the_catalogs_plan_beside_its_own() -> None:
    account = Account.of(replace(PROFILE, overage_blocked=True), PLAN)
    assert (account.plan.overage_cap_tokens, account.listed_plan) == (0, PLAN)


def test_entitlements_change_what_they_name_and_leave_the_person() -> None:
    anchor_at = datetime(2026, 12, 1, tzinfo=UTC)
    profile = replace(PROFILE, email="ada@example.com", overage_cap_cents=7)
    changed = profile.entitled_to(Entitlements("pro", anchor_at, trial=True, overage_blocked=True, paid=False))
    assert changed == replace(profile, plan_id="pro", anchor_at=anchor_at, trial=True, overage_blocked=True, paid=False)
    assert changed.entitled_to(Entitlements("test", None)) == profile
