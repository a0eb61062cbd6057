"""Paid invoices at Stripe's double: every page, every line, less what was discounted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tollgate.domain.errors import StripeRefusedError
from tollgate.domain.revenue import PaidInvoice
from tollgate.providers.stripe_client import StripeConnection
from tollgate.providers.stripe_invoices import StripeInvoices

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Shop:
    """A Stripe account with one plan and one stranger's price."""

    def __init__(self) -> None:
        self.world = StripeWorld(now=NOW, seed=1, webhook_secret="whsec_x", account_id="acct_1")
        self.api: Any = StripeConnection(lambda: "sk_test_x", http_client=InProcess(self.world)).client()
        self.pro = self.price(2_900, metadata={"tollgate_plan": "pro", "tollgate_interval": "month"})
        self.other = self.price(500)

    def price(self, cents: int, **more: Any) -> str:  # noqa: ANN401
        params = {
            "product_data": {"name": "x"},
            "currency": "usd",
            "unit_amount": cents,
            "recurring": {"interval": "month"},
            **more,
        }
        return str(self.api.v1.prices.create(params).id)

    def customer(self) -> str:
        made = str(self.api.v1.customers.create({"email": "x@example.com"}).id)
        self.world.add_card(made)
        return made

    def subscribe(self, customer: str, *prices: str, **more: Any) -> str:  # noqa: ANN401
        items = [{"price": price} for price in prices]
        return str(self.api.v1.subscriptions.create({"customer": customer, "items": items, **more}).id)

    def paid(self, since: datetime, until: datetime, customer: str | None = None) -> list[PaidInvoice]:
        return StripeInvoices(lambda: "sk_test_x", http_client=InProcess(self.world)).list_paid(since, until, customer)

    def pass_days(self, days: int) -> None:
        self.world.advance(self.world.now + timedelta(days=days))


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_a_line_is_its_plans_price_and_its_time(shop: Shop) -> None:
    customer = shop.customer()
    shop.subscribe(customer, shop.pro, shop.other)
    [invoice] = shop.paid(NOW, NOW)
    assert (invoice.customer_id, invoice.paid_cents) == (customer, 3_400)
    told = sorted((line.plan_id or "", line.amount_cents, line.start_at, line.end_at) for line in invoice.lines)
    month = NOW, datetime(2026, 12, 20, 12, tzinfo=UTC)
    assert told == [("", 500, *month), ("pro", 2_900, *month)]


@pytest.mark.parametrize(("seconds", "found"), [(-1, 0), (0, 1), (1, 1)])
def test_both_ends_of_the_time_are_included(shop: Shop, seconds: int, found: int) -> None:
    shop.subscribe(shop.customer(), shop.pro)
    shift = timedelta(seconds=seconds)
    assert len(shop.paid(NOW - timedelta(days=1), NOW + shift)) == found
    assert len(shop.paid(NOW - shift, NOW + timedelta(days=1))) == found


def test_what_was_not_paid_is_not_there(shop: Shop) -> None:
    customer = shop.customer()
    shop.subscribe(customer, shop.pro)
    shop.world.fail_payments(customer)
    shop.pass_days(40)
    assert len(shop.paid(NOW, shop.world.now)) == 1
    assert shop.api.v1.invoices.list({"customer": customer}).data[0].status == "open"


def test_a_discount_is_no_revenue(shop: Shop) -> None:
    coupon = shop.api.v1.coupons.create({"percent_off": 25, "duration": "forever"}).id
    shop.subscribe(shop.customer(), shop.pro, discounts=[{"coupon": coupon}])
    [invoice] = shop.paid(NOW, NOW)
    assert [line.amount_cents for line in invoice.lines] == [2_175]
    assert invoice.paid_cents == 2_175


def test_every_page_is_read_and_one_customers_alone_when_asked(shop: Shop) -> None:
    customers = [shop.customer() for _ in range(101)]
    for customer in customers:
        shop.subscribe(customer, shop.pro)
    assert sorted(invoice.customer_id for invoice in shop.paid(NOW, NOW)) == sorted(customers)
    assert [invoice.customer_id for invoice in shop.paid(NOW, NOW, customers[7])] == [customers[7]]


def test_an_invoice_of_many_lines_has_all_of_them(shop: Shop) -> None:
    prices = [shop.price(100 + number) for number in range(14)]
    shop.subscribe(shop.customer(), shop.pro, *prices)
    [invoice] = shop.paid(NOW, NOW)
    assert len(invoice.lines) == 15
    assert sum(line.amount_cents for line in invoice.lines) == invoice.paid_cents


def test_a_customer_whom_stripe_does_not_know_is_refused(shop: Shop) -> None:
    with pytest.raises(StripeRefusedError):
        shop.paid(NOW, NOW, "cus_nobody")
