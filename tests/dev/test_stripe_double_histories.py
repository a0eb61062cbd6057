"""Whatever people do in whatever order, the double stays a whole account: no answer breaks, every sum adds up."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import stripe

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.world import Dunning
from tests.dev.stripe_account import Account

SEEDS = 40
STEPS = 40
PLANS = ("pro", "enterprise", "pro_year")


class History:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.account = Account(seed=seed, last_by=self.rng.choice(["arrival", "timestamp"]))
        outcome = self.rng.choice(["canceled", "unpaid", "past_due", "paused"])
        self.account.world.invoices.dunning = Dunning(outcome=outcome, pause_at_first_failure=self.rng.random() < 0.2)
        offer: Any = {"percent_off": 33, "duration": "repeating", "duration_in_months": 3}
        self.coupon = self.account.api.v1.coupons.create(offer)

    def step(self) -> None:
        """One thing that somebody does. Stripe may refuse it; the double must not break."""
        action: Callable[[], object] = self.rng.choice(
            3 * [self.change, self.wait]
            + 2 * [self.buy]
            + [self.end, self.schedule, self.fail, self.use, self.take_back, self.pause]
        )
        with suppress(stripe.StripeError, StripeRefusal):
            action()

    def any_subscription(self) -> str:
        found = [str(one["id"]) for one in self.account.world.all("subscription")]
        return self.rng.choice(found or ["sub_none"])

    def buy(self) -> None:
        trial: Any = {"subscription_data": {"trial_period_days": self.rng.randint(1, 20)}}
        offer: Any = {"discounts": [{"coupon": self.coupon.id}]}
        more = (trial if self.rng.random() < 0.3 else {}) | (offer if self.rng.random() < 0.3 else {})
        session = self.account.session(self.rng.choice(PLANS), **more)
        card = self.rng.choice(["ok", "ok", "ok", "declined", "requires_action", "delayed"])
        self.account.world.complete_checkout(session.id, card)
        if card == "delayed":
            self.account.world.settle_delayed(session.id, paid=self.rng.random() < 0.5)

    def change(self) -> None:
        subscription = self.any_subscription()
        found: Any = self.account.api.v1.subscriptions.retrieve(subscription)
        item = self.rng.choice(found["items"].data)
        params: Any = {
            "items": [{"id": item.id, "price": self.account.prices[self.rng.choice(PLANS)]}],
            "proration_behavior": self.rng.choice(["always_invoice", "create_prorations", "none"]),
        }
        if self.rng.random() < 0.2:
            params["trial_end"] = "now"
        self.account.api.v1.invoices.create_preview({"subscription": subscription, "subscription_details": params})
        behaviours = ["allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"]
        params["payment_behavior"] = self.rng.choice(behaviours)
        self.account.api.v1.subscriptions.update(subscription, params)

    def end(self) -> None:
        subscription = self.any_subscription()
        if self.rng.random() < 0.2:
            self.account.api.v1.subscriptions.cancel(subscription, {"invoice_now": self.rng.random() < 0.5})
        else:
            at_end = {"cancel_at_period_end": self.rng.random() < 0.5}
            self.account.api.v1.subscriptions.update(subscription, at_end)  # type: ignore[arg-type]

    def schedule(self) -> None:
        subscription = self.any_subscription()
        made = self.account.api.v1.subscription_schedules.create({"from_subscription": subscription})
        phase: Any = made.phases[0]
        running = {
            "start_date": phase.start_date,
            "end_date": phase.end_date,
            "items": [
                {"price": one.price, **({"quantity": one.quantity} if "quantity" in one else {})}
                for one in phase["items"]
            ],
        }
        items = [{"price": self.account.prices[self.rng.choice(PLANS)]}, {"price": self.account.prices["overage"]}]
        later = {"items": items, "proration_behavior": "none"}
        params: Any = {"phases": [running, later], "end_behavior": self.rng.choice(["release", "cancel"])}
        self.account.api.v1.subscription_schedules.update(made.id, params)
        if self.rng.random() < 0.3:
            self.account.api.v1.subscription_schedules.release(made.id)

    def fail(self) -> None:
        self.account.world.fail_payments(self.account.customer, on=self.rng.random() < 0.5)

    def use(self) -> None:
        now = self.account.world.now
        self.account.report(self.rng.randint(0, 10**6), at=now - timedelta(minutes=self.rng.randint(0, 5000)))

    def take_back(self) -> None:
        charges = self.account.world.all("charge")
        if charges:
            charge = self.rng.choice(charges)["id"]
            self.account.world.refund(charge, self.rng.choice([None, 1]))
            self.account.world.close_dispute(self.account.world.dispute(charge)["id"], won=self.rng.random() < 0.5)

    def pause(self) -> None:
        subscription = self.any_subscription()
        self.account.api.v1.subscriptions.pause(subscription)
        self.account.wait(timedelta(days=self.rng.randint(0, 40)))
        self.account.api.v1.subscriptions.resume(subscription)

    def wait(self) -> None:
        self.account.wait(timedelta(seconds=self.rng.randint(1, 40 * 86_400)))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_history_leaves_a_whole_account(seed: int) -> None:
    history = History(seed)
    for _ in range(STEPS):
        history.step()
    account = history.account
    assert account.world.refused == [], "only rules refuse: the requests themselves are right"
    assert account.faults() == []
    for invoice in account.invoices():
        lines = account.world.invoices.list_lines({"limit": 100}, invoice["id"])["data"]
        discount = sum(one["amount"] for one in invoice["total_discount_amounts"])
        assert sum(line["amount"] for line in lines) == invoice["subtotal"]
        assert invoice["subtotal"] - discount == invoice["total"]
        assert (invoice["status"] == "paid") == (invoice["status_transitions"]["paid_at"] is not None)
        assert invoice["amount_due"] == max(0, invoice["total"] + invoice["starting_balance"])
    now = int(account.world.now.timestamp())
    for subscription in account.world.all("subscription"):
        if subscription["status"] in ("active", "past_due", "unpaid", "trialing"):
            items = subscription["items"]["data"]
            assert all(item["current_period_start"] <= now < item["current_period_end"] for item in items)
            assert subscription["ended_at"] is None
        else:
            ended = subscription["status"] in ("canceled", "incomplete_expired")
            assert ended == (subscription["ended_at"] is not None)
    times = [event["created"] for event in account.world.store.events]
    assert times == sorted(times)
