"""The scheduled sweep over all meters."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.ledger_world import START, Counting, LedgerWorld, an_ask
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.plans import PeriodKind
from tollgate.domain.principals import Account, Profile
from tollgate.flows.sweep_meters import SweepReport, sweep_meters

CATALOG = load_catalog("default")


def run(world: LedgerWorld, *, seconds: float = 600) -> SweepReport:
    return sweep_meters(
        meters=world.meters,
        ledger=world.ledger,
        catalog=CATALOG,
        clock=world,
        deadline_at_seconds=world.seconds + seconds,
    )


def crash(world: LedgerWorld, user_id: str, *, at: datetime = START, anchor: datetime = START) -> MeterKey:
    """A call of this user that reserved and was never heard of again."""
    profile = world.users.create_profile(Profile("main", user_id, world.plan.id, 1, anchor))
    key = MeterKey("main", user_id, period_at(PeriodKind.ANCHORED_MONTH, anchor, at))
    world.new_ledger(Counting(f"r-{user_id}", f"n{user_id}")).reserve(Account(profile, world.plan), key, an_ask(100))
    return key


def test_ends_what_crashed_calls_left_open_and_nothing_else() -> None:
    world = LedgerWorld()
    keys = [crash(world, f"user{number}") for number in range(20)]
    running = world.ledger.reserve(world.account, world.key, an_ask(100, deadline_at_seconds=START.timestamp() + 600))
    world.seconds += 121
    assert run(world) == SweepReport(seen_meters=21, expired_reservations=20, complete=True)
    for key in keys:
        meter = world.meters.find(key)
        assert meter is not None
        assert meter.reservations == {}
    assert world.ledger.settle(running, Settlement(5)).charged_tokens == 5


def test_run_twice_does_nothing_more() -> None:
    world = LedgerWorld()
    crash(world, "user1")
    world.seconds += 121
    run(world)
    assert run(world).expired_reservations == 0


def test_stops_at_its_deadline_and_the_next_run_goes_on() -> None:
    world = LedgerWorld()
    crash(world, "user1")
    world.seconds += 121
    assert run(world, seconds=0) == SweepReport(seen_meters=0, expired_reservations=0, complete=False)
    assert run(world).expired_reservations == 1


@pytest.mark.parametrize("days_later", [0, 3, 30])
def test_finds_reservations_of_periods_that_have_ended(days_later: int) -> None:
    anchor = datetime(2026, 10, 31, 23, 59, tzinfo=UTC)
    end_of_period = datetime(2026, 11, 30, 23, 58, tzinfo=UTC)
    world = LedgerWorld()
    crash(world, "user1", at=end_of_period, anchor=anchor)
    world.seconds = (end_of_period + timedelta(days=days_later, minutes=10)).timestamp()
    assert run(world).expired_reservations == 1


def test_goes_on_past_a_user_whose_plan_is_no_longer_in_the_catalog() -> None:
    world = LedgerWorld()
    world.plan = replace(world.plan, id="gone")
    key = crash(world, "user1")
    world.seconds += 121
    assert run(world).expired_reservations == 1
    meter = world.meters.find(key)
    assert meter is not None
    assert (meter.settled_tokens, meter.written_off_tokens) == (10, 90)
