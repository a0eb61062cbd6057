"""What Stripe's double says of a customer's overage: which subscriptions ran when, whether or not they still do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tollgate.providers.stripe_client import StripeConnection
from tollgate.providers.stripe_meter import StripeMeter

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
END = datetime(2026, 12, 20, 12, tzinfo=UTC)
EVENT = "overage_units"


class Shop:
    """A Stripe account with one plan, its overage, and one customer who can pay."""

    def __init__(self) -> None:
        self.world = StripeWorld(now=NOW, seed=1, webhook_secret="whsec_x", account_id="acct_1")
        wire = InProcess(self.world)
        self.api: Any = StripeConnection(lambda: "sk_test_x", http_client=wire).client()
        self.meter = StripeMeter(lambda: "sk_test_x", EVENT, http_client=wire)
        meter = self.api.v1.billing.meters.create(
            {"display_name": "Overage", "event_name": EVENT, "default_aggregation": {"formula": "last"}}
        )
        product: Any = {"product_data": {"name": "x"}, "currency": "usd"}
        self.plan = self.api.v1.prices.create(product | {"unit_amount": 2_900, "recurring": {"interval": "month"}}).id
        metered = {"interval": "month", "usage_type": "metered", "meter": meter.id}
        self.overage = self.api.v1.prices.create(product | {"unit_amount": 1, "recurring": metered}).id
        self.customer = str(self.api.v1.customers.create({"email": "x@example.com"}).id)

    def subscribe(self, *prices: str, **more: Any) -> str:  # noqa: ANN401
        items = [{"price": price} for price in prices]
        return str(self.api.v1.subscriptions.create({"customer": self.customer, "items": items, **more}).id)

    def pass_time(self, time: timedelta) -> None:
        self.world.advance(self.world.now + time)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_a_subscription_that_runs_has_its_period_and_no_end(shop: Shop) -> None:
    shop.world.add_card(shop.customer)
    running = shop.subscribe(shop.plan, shop.overage)
    [item] = shop.meter.list_items(shop.customer)
    assert (item.subscription_id, item.customer_id) == (running, shop.customer)
    assert (item.since_at, item.start_at, item.end_at, item.ended_at) == (NOW, NOW, END, None)


def test_one_that_has_ended_is_told_with_its_last_period_and_its_end(shop: Shop) -> None:
    shop.world.add_card(shop.customer)
    ended = shop.subscribe(shop.plan, shop.overage)
    shop.pass_time(timedelta(days=3))
    shop.api.v1.subscriptions.cancel(ended)
    shop.pass_time(timedelta(hours=1))
    running = shop.subscribe(shop.plan, shop.overage)
    found = {item.subscription_id: item for item in shop.meter.list_items(shop.customer)}
    assert found.keys() == {ended, running}
    assert (found[ended].start_at, found[ended].ended_at) == (NOW, NOW + timedelta(days=3))
    assert found[running].ended_at is None


def test_one_without_the_overage_price_bills_none(shop: Shop) -> None:
    shop.world.add_card(shop.customer)
    shop.subscribe(shop.plan)
    assert shop.meter.list_items(shop.customer) == ()


@pytest.mark.parametrize("time", [timedelta(minutes=1), timedelta(days=2)])
def test_one_whose_first_payment_has_not_come_or_never_came_bills_none(shop: Shop, time: timedelta) -> None:
    """It must not end what another one bills."""
    unpaid = shop.subscribe(shop.plan, shop.overage, payment_behavior="default_incomplete")
    shop.pass_time(time)
    status = shop.api.v1.subscriptions.retrieve(unpaid).status
    assert status == ("incomplete" if time < timedelta(days=1) else "incomplete_expired")
    assert shop.meter.list_items(shop.customer) == ()


def test_a_customer_whom_nobody_knows_has_none(shop: Shop) -> None:
    assert shop.meter.list_items("cus_unknown") == ()
