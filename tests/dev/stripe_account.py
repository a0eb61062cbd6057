"""One account of the double with a small catalog, and the real SDK talking to it without sockets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import stripe

from dev.stripe_double.faults import NOTHING, FaultPlan
from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld

NOW = datetime(2026, 11, 20, 12, 0, 7, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
EVENT_NAME = "overage"
Thing: TypeAlias = Any
"""An object of the SDK, whose fields are known at run time; or parameters of one."""


class Account:
    """Prices: pro (29.00), enterprise (99.00) and pro by the year (290.00), and overage at 1/100 cent a unit."""

    def __init__(self, *, last_by: str = "arrival", seed: int = 1) -> None:
        self.world = StripeWorld(now=NOW, seed=seed, webhook_secret="whsec_test", account_id="acct_1", last_by=last_by)
        self.api = self.client()
        self.meter = self.api.v1.billing.meters.create(
            {"display_name": "Overage", "event_name": EVENT_NAME, "default_aggregation": {"formula": "last"}}
        )
        self.prices = {
            "pro": self.price(unit_amount=2900, recurring={"interval": "month"}),
            "enterprise": self.price(unit_amount=9900, recurring={"interval": "month"}),
            "pro_year": self.price(unit_amount=29000, recurring={"interval": "year"}),
            "overage": self.price(
                unit_amount_decimal="0.01",
                recurring={"interval": "month", "usage_type": "metered", "meter": self.meter.id},
            ),
        }
        self.customer: str = self.api.v1.customers.create({"email": "a@example.com"}).id
        self.world.take_events()

    def client(self, faults: FaultPlan = NOTHING, on_slow: Callable[[], None] = lambda: None) -> stripe.StripeClient:
        stripe.enable_telemetry = False
        wire = InProcess(self.world, faults, on_slow)
        return stripe.StripeClient("sk_test_x", http_client=wire, max_network_retries=0)

    def price(self, **fields: Thing) -> str:
        product = self.api.v1.products.create({"name": "Plan"})
        params: Thing = {"product": product.id, "currency": "usd", **fields}
        return str(self.api.v1.prices.create(params).id)

    def session(self, plan: str = "pro", **more: Thing) -> Thing:
        params: Thing = {
            "mode": "subscription",
            "customer": self.customer,
            "line_items": [{"price": self.prices[plan], "quantity": 1}, {"price": self.prices["overage"]}],
            "success_url": "https://shop.example/done",
            **more,
        }
        return self.api.v1.checkout.sessions.create(params)

    def subscribe(self, plan: str = "pro", *, card: str = "ok", **more: Thing) -> str:
        """Through Checkout; the subscription's id."""
        session = self.session(plan, **more)
        self.world.complete_checkout(session.id, card)
        return str(self.api.v1.subscriptions.list({"customer": self.customer, "status": "all"}).data[0].id)

    def subscription(self, identifier: str) -> Thing:
        return self.world.find(identifier)

    def item(self, subscription: str, plan: str) -> dict[str, Any]:
        data = self.subscription(subscription)["items"]["data"]
        return next(item for item in data if item["price"]["id"] == self.prices[plan])

    def change(self, subscription: str, old: str, new: str, **more: Thing) -> Thing:
        item = {"id": self.item(subscription, old)["id"], "price": self.prices[new]}
        params: Thing = {"items": [item], "proration_behavior": "always_invoice", **more}
        return self.api.v1.subscriptions.update(subscription, params)

    def report(self, value: int, *, at: datetime | None = None, identifier: str | None = None) -> Thing:
        params: Thing = {
            "event_name": EVENT_NAME,
            "payload": {"stripe_customer_id": self.customer, "value": str(value)},
        }
        if at is not None:
            params["timestamp"] = int(at.timestamp())
        if identifier is not None:
            params["identifier"] = identifier
        return self.api.v1.billing.meter_events.create(params)

    def wait(self, how_long: timedelta) -> None:
        self.world.advance(self.world.now + how_long)

    def wait_until(self, moment: int, after: timedelta = timedelta()) -> None:
        self.world.advance(datetime.fromtimestamp(moment, UTC) + after)

    def happened(self) -> list[str]:
        return [str(event["type"]) for event in self.world.take_events()]

    def invoices(self) -> list[dict[str, Any]]:
        return self.world.all("invoice")

    def amounts(self, invoice: dict[str, Any]) -> list[int]:
        return [line["amount"] for line in invoice["lines"]["data"]]

    def faults(self) -> list[str]:
        """Where any object, or any event, is not what this version of Stripe has."""
        contract, found = self.world.contract, []
        for kind, name in contract.by_object.items():
            for thing in self.world.all(kind):
                found += contract.answer_faults({"$": name}, thing, kind)
        for event in self.world.store.events:
            about = event["data"]["object"]
            found += contract.answer_faults({"$": contract.by_object["event"]}, event, event["type"])
            found += contract.answer_faults({"$": contract.by_object[about["object"]]}, about, event["type"])
        return found
