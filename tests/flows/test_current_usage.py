"""Looking at the running period: which period it is, and what looking ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.support.ledger_world import START, LedgerWorld, a_plan, an_ask
from tollgate.domain.plans import ExpiryPolicy, PeriodKind
from tollgate.domain.principals import Account
from tollgate.flows.current_usage import CurrentUsage, find_current_usage


def look(world: LedgerWorld, account: Account | None = None) -> CurrentUsage:
    return find_current_usage(account or world.account, world.meters, world.ledger, world)


def test_before_the_first_request_there_is_a_period_and_no_meter() -> None:
    world = LedgerWorld()
    usage = look(world)
    assert usage.meter is None
    assert usage.period == world.key.period
    assert usage.account == world.account


def test_a_live_reservation_is_shown_and_stays() -> None:
    world = LedgerWorld()
    world.ledger.reserve(world.account, world.key, an_ask(100))
    usage = look(world)
    assert usage.meter is not None
    assert usage.meter.reserved_tokens == 100
    assert world.meter.open_count == 1


@pytest.mark.parametrize(("offset_seconds", "reserved_tokens"), [(-1, 100), (0, 100), (1, 0)])
def test_looking_ends_a_reservation_once_its_owner_is_dead_for_sure(offset_seconds: int, reserved_tokens: int) -> None:
    world = LedgerWorld(a_plan(expiry_policy=ExpiryPolicy.VOID))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    # Ten seconds of possible clock difference after the stored expiry.
    world.seconds = grant.reservation.expires_at_seconds + 10 + offset_seconds
    usage = look(world)
    assert usage.meter is not None
    assert usage.meter.reserved_tokens == reserved_tokens
    assert usage.meter == world.meter


def test_what_looking_ends_is_charged_by_the_plans_policy() -> None:
    world = LedgerWorld(a_plan(expiry_policy=ExpiryPolicy.STRICT))
    world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 3600
    usage = look(world)
    assert usage.meter is not None
    assert (usage.meter.settled_tokens, usage.meter.reserved_tokens) == (100, 0)


@pytest.mark.parametrize(("offset_seconds", "period_id"), [(-1, "2026-11"), (0, "2026-12"), (1, "2026-12")])
def test_a_new_month_is_a_new_period_from_its_first_second_on(offset_seconds: int, period_id: str) -> None:
    world = LedgerWorld()
    world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds = datetime(2026, 12, 1, tzinfo=UTC).timestamp() + offset_seconds
    usage = look(world)
    assert usage.period.id == period_id
    assert (usage.meter is None) is (period_id == "2026-12")


def test_an_anchored_period_starts_where_the_profile_says() -> None:
    world = LedgerWorld(a_plan(period_kind=PeriodKind.ANCHORED_MONTH))
    profile = replace(world.profile, anchor_at=datetime(2026, 1, 31, 8, 30, tzinfo=UTC))
    usage = look(world, replace(world.account, profile=profile))
    assert usage.period.start_at == datetime(2026, 10, 31, 8, 30, tzinfo=UTC)
    assert usage.period.end_at == datetime(2026, 11, 30, 8, 30, tzinfo=UTC)
    assert START in usage.period
