"""What usage periods came to: the same before their close as after it, and after their records are gone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.closing import CATALOG, END, ClosingWorld
from tests.support.request_records import a_record
from tests.support.subscriptions import a_subscriber, a_subscription
from tollgate.domain.money import PICOUSD_PER_CENT
from tollgate.domain.subscriptions import Interval, RemoteSubscription, SubscriptionStatus
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.close_period import CLOSE_LAG_SECONDS
from tollgate.flows.earnings import Earning, PeriodReader, estimated_price, usage_of
from tollgate.storage.meters import Meters
from tollgate.storage.period_summaries import PeriodSummaries, PeriodSummary
from tollgate.storage.requests import Requests
from tollgate.storage.rollups import DayRollUps

DUE = END + timedelta(seconds=CLOSE_LAG_SECONDS)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
PRO = CATALOG.plans["pro"]


def summary(world: ClosingWorld) -> PeriodSummary:
    table = world.table
    reader = PeriodReader(Meters(table), Requests(table), DayRollUps(table), PeriodSummaries(table), CATALOG, world)
    return reader.summary(world.meter("ada"))


def settled(told: PeriodSummary) -> PeriodSummary:
    """But for when it was looked at."""
    return replace(told, closed_at=END, first_closed_at=END)


def a_mixed_period() -> ClosingWorld:
    """A call, one that crashed, and one whose settlement never reached the ledger."""
    world = ClosingWorld()
    world.sweep()
    ada = world.sign_up("ada")
    world.call(ada, 1_000)
    world.begin(ada, 300)
    lost = world.begin(ada, 500)
    record = a_record(
        world.now,
        counts=TokenCounts(490, 10),
        charged_tokens=500,
        request_id="req_lost",
        user_id="ada",
        period_id=lost.key.period.id,
        reservation_id=lost.reservation.id,
        nonce=lost.reservation.nonce,
        booked=False,
        estimated=True,
    )
    Requests(world.table).put(record)
    return world


def test_a_period_is_told_alike_before_its_close_and_after_and_without_its_records() -> None:
    world = a_mixed_period()
    world.turn_to(world.now + timedelta(hours=1))
    world.sweep()
    unrolled = summary(world)
    assert (unrolled.expired_requests, unrolled.unbooked_requests, unrolled.estimated_requests) == (2, 1, 1)
    assert unrolled.unbooked_picousd > 0
    assert unrolled.reconciled

    world.roll_ups().roll_up_days("main", "ada")
    assert settled(summary(world)) == settled(unrolled)

    world.turn_to(DUE)
    world.run()
    assert world.meter("ada").closed_at is not None
    assert summary(world) == world.summary("ada")
    assert settled(summary(world)) == settled(unrolled)

    world.turn_to(DUE + timedelta(days=100))
    for partition in world.memory.partitions.values():
        for sk in [sk for sk in partition if sk.startswith(("REQUEST#", "EXPIRED#"))]:
            del partition[sk]
    assert settled(summary(world)) == settled(unrolled)


def test_reading_a_period_writes_nothing() -> None:
    world = a_mixed_period()
    before = world.state()
    summary(world)
    assert world.state() == before


def test_the_cost_of_a_period_has_what_no_meter_has() -> None:
    world = a_mixed_period()
    world.turn_to(world.now + timedelta(hours=1))
    world.sweep()
    meter, told = world.meter("ada"), summary(world)
    earned = usage_of(meter, told, CATALOG.billing, overage_payments=1)
    assert earned.cost_picousd == meter.cost_picousd + told.unbooked_picousd
    assert earned.fees_picousd == earned.overage_picousd == 0
    assert earned.margin_picousd == -earned.cost_picousd


@pytest.mark.parametrize(
    ("subscription", "cents"),
    [
        (a_subscription(), 2_900),
        (a_subscription(status=SubscriptionStatus.PAST_DUE), 2_900),
        (a_subscription(status=SubscriptionStatus.CANCELED), 0),
        (a_subscription(status=SubscriptionStatus.TRIALING), 0),
        (a_subscription(trial_unpaid=True), 0),
        (a_subscription(plan_id="enterprise"), 0),
        (a_subscription(created_at=DECEMBER - timedelta(seconds=1)), 2_900),
        (a_subscription(created_at=DECEMBER), 0),
        (a_subscription(trial_end_at=DECEMBER - timedelta(seconds=1)), 2_900),
        (a_subscription(trial_end_at=DECEMBER), 0),
        (None, 0),
    ],
)
def test_an_estimate_is_the_price_of_todays_subscription_from_when_it_was_bought(
    subscription: RemoteSubscription | None, cents: int
) -> None:
    earned = estimated_price(PRO, a_subscriber(subscription), CATALOG.billing, DECEMBER)
    assert earned.price_picousd == cents * PICOUSD_PER_CENT
    assert bool(earned.fees_picousd) is bool(cents)


def test_an_estimate_of_a_year_is_a_twelfth_of_it() -> None:
    assert PRO.annual_price_cents is not None
    yearly = a_subscriber(a_subscription(interval=Interval.YEAR))
    earned = estimated_price(PRO, yearly, CATALOG.billing, DECEMBER)
    assert earned.price_picousd == PRO.annual_price_cents * PICOUSD_PER_CENT // 12


@pytest.mark.parametrize(
    ("price", "cost", "permille"),
    [(-1, 5, None), (0, 5, None), (1, 5, -4_000), (1_000, 1, 999), (1_000, 1_001, -1), (3, 1, 666), (3, 5, -666)],
)
def test_a_margin_is_rounded_toward_zero(price: int, cost: int, permille: int | None) -> None:
    assert Earning(price_picousd=price, cost_picousd=cost).margin_permille == permille
