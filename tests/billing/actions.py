"""What users, banks and the operator do in a run. No accident happens here: misfortune meets only our functions."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import stripe

from dev.stripe_double.errors import StripeRefusal
from tests.billing.scenario import Step
from tollgate.domain.billing import CheckoutWish, PlanChange
from tollgate.domain.errors import StaleAccountError, StripeRefusedError, TollgateError
from tollgate.domain.ledger import Ask, Settlement
from tollgate.domain.principals import CredentialKind, Principal, Profile
from tollgate.domain.subscriptions import Interval, OpenCheckout, RemoteSubscription
from tollgate.flows.ledger import account_key
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

    from tests.billing.world import Container, World

TENANT = "main"
OVERAGE_KEY = "tollgate_overage"
RETURN_URL = "https://app.example.com/billing"
PLANS = ("pro", "enterprise")


@cache
def the_desk() -> stripe.StripeClient:
    """Stripe's dashboard and portal, by its API, on the wire of the runs."""
    from tests.billing.world import the_wire

    return stripe.StripeClient("sk_test_desk", http_client=the_wire())


class DirectClient:
    """The table without any network between."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  one of boto3's operations
        operation = "".join(part.capitalize() for part in name.split("_"))

        def send(**request: Any) -> Any:  # noqa: ANN401
            self._world.network.sender = None
            return self._world.table.apply(operation, request, self._world.hub.now)

        return send


class Actions:
    """Each method is one kind of step; what does not apply just now is left out."""

    def __init__(self, world: World) -> None:
        self._world = world
        table = Table(cast("DynamoDBClient", DirectClient(world)), "tollgate")
        self.subscriptions = Subscriptions(table)
        self.users = Users(table)
        self._claims = 0
        self.foreign_price = ""
        self.first_keys: Counter[int] = Counter()

    # ---- the beginning

    def open_accounts(self) -> None:
        self._world.catch_up()
        self._make_prices()
        now = self._now()
        for user in range(self._world.scenario.users):
            self.users.create_profile(Profile(TENANT, f"user-{user}", "free", 1, now))

    def _make_prices(self) -> None:
        api = the_desk().v1
        meter = api.billing.meters.create(
            {
                "display_name": "Overage",
                "event_name": "tollgate_overage",
                "default_aggregation": {"formula": "last"},
                "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
                "value_settings": {"event_payload_key": "value"},
            }
        )
        overage = api.products.create({"name": "Overage"})
        api.prices.create(
            cast(
                "Any",
                {
                    "product": overage["id"],
                    "currency": "usd",
                    "unit_amount_decimal": "0.01",
                    "lookup_key": OVERAGE_KEY,
                    "recurring": {"interval": "month", "usage_type": "metered", "meter": meter["id"]},
                },
            )
        )
        for plan_id, cents in (("pro", 2_900), ("enterprise", 9_900)):
            product = api.products.create({"name": plan_id, "metadata": {"tollgate_plan": plan_id}})
            for interval in Interval:
                api.prices.create(
                    {
                        "product": product["id"],
                        "currency": "usd",
                        "unit_amount": cents * (10 if interval is Interval.YEAR else 1),
                        "lookup_key": f"tollgate_{plan_id}_{interval}",
                        "metadata": {"tollgate_plan": plan_id, "tollgate_interval": str(interval)},
                        "recurring": {"interval": cast("Any", str(interval))},
                    }
                )
        other = api.products.create({"name": "A mug every month"})
        recurring = api.prices.create(
            {"product": other["id"], "currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}}
        )
        self.foreign_price = str(recurring["id"])

    # ---- one step

    def do(self, step: Step) -> None:
        """Stripe's own refusals are answers, too: a card that is declined, a dispute that is closed already."""
        self._world.catch_up()
        self._world.seen[f"step_{step.action}"] += 1
        with suppress(StripeRefusal, StripeRefusedError, stripe.InvalidRequestError, stripe.CardError):
            getattr(self, step.action)(step)
            self._world.seen[f"did_{step.action}"] += 1
        self._world.catch_up()

    # ---- users

    def subscribe(self, step: Step) -> None:
        """Through a checkout, as our own does it: one open session, and only who has no subscription."""
        if self._live(step.user) is not None:
            return self.change_plan(step)
        customer_id = self._customer(step.user)
        session_id = self._open_checkout(step, customer_id)
        card = ("ok", "ok", "ok", "declined", "requires_action")[step.draw % 5]
        self._world.stripe.complete_checkout(session_id, card)
        if card == "requires_action" and step.draw % 2:
            self._world.stripe.complete_checkout(session_id, "ok")
        return None

    def open_checkout(self, step: Step) -> None:
        """And never finish it."""
        if self._live(step.user) is None:
            self._open_checkout(step, self._customer(step.user))

    def _open_checkout(self, step: Step, customer_id: str) -> str:
        from tests.billing.world import the_stripe

        self._claims += 1
        plan_id = PLANS[step.draw // 7 % 2]
        interval = Interval.YEAR if step.draw % 3 == 0 else Interval.MONTH
        expires_at = self._now() + timedelta(hours=2)
        checkout = OpenCheckout(f"claim-{self._claims}", plan_id, interval, expires_at)
        open_now = self.subscriptions.find(TENANT, f"user-{step.user}").checkout
        if open_now is not None and open_now.session_id is not None:
            the_stripe().expire_checkout(open_now.session_id)
        self.subscriptions.claim_checkout(
            TENANT, f"user-{step.user}", checkout, instead_of=None if open_now is None else open_now.claim
        )
        session = the_stripe().create_checkout(
            CheckoutWish(
                tenant_id=TENANT,
                user_id=f"user-{step.user}",
                customer_id=customer_id,
                claim=checkout.claim,
                plan_id=plan_id,
                interval=interval,
                overage_lookup_key=OVERAGE_KEY,
                success_url=RETURN_URL,
                cancel_url=RETURN_URL,
                expires_at=expires_at,
                trial_days=7 if step.draw // 11 % 3 == 0 else 0,
            ),
            idempotency_key=checkout.claim,
        )
        self.subscriptions.note_checkout(TENANT, f"user-{step.user}", checkout.claim, session.id, session.url or "")
        return session.id

    def change_plan(self, step: Step) -> None:
        subscription = self._live(step.user)
        if subscription is not None:
            from tests.billing.world import the_stripe

            the_stripe().change_plan(self._other_plan(subscription))

    def schedule_change(self, step: Step) -> None:
        subscription = self._live(step.user)
        if subscription is not None:
            from tests.billing.world import the_stripe

            the_stripe().schedule_change(self._other_plan(subscription))

    def _other_plan(self, subscription: RemoteSubscription) -> PlanChange:
        other = PLANS[1 - PLANS.index(subscription.plan_id or "pro")]
        return PlanChange(subscription, other, subscription.interval or Interval.MONTH, OVERAGE_KEY)

    def end_at_period_end(self, step: Step) -> None:
        self._keep(step, keep=False)

    def keep(self, step: Step) -> None:
        self._keep(step, keep=True)

    def _keep(self, step: Step, *, keep: bool) -> None:
        from tests.billing.world import the_stripe

        subscription = self._live(step.user)
        if subscription is not None:
            the_stripe().keep_at_period_end(subscription.id, keep=keep)

    def end_now(self, step: Step) -> None:
        from tests.billing.world import the_stripe

        subscription = self._live(step.user)
        if subscription is not None:
            the_stripe().cancel_subscription(subscription.id)

    def pause(self, step: Step) -> None:
        subscription = self._live(step.user)
        if subscription is not None and subscription.status == "active":
            self._world.stripe.pause(subscription.id)

    def resume(self, step: Step) -> None:
        subscription = self._live(step.user)
        if subscription is not None and subscription.status == "paused":
            self._world.stripe.resume(subscription.id)

    def call(self, step: Step) -> None:
        """A message to Claude: opens the meter of the usage period, and uses some of it."""

        def body(container: Container) -> None:
            principal = Principal(TENANT, f"user-{step.user}", CredentialKind.API_KEY, "key")
            for fresh in (False, True):
                with suppress(StaleAccountError, TollgateError):
                    account = container.accounts.find(principal, fresh=fresh)
                    now = datetime.fromtimestamp(container.now_seconds(), UTC)
                    ask = Ask(1_000, 5_000, 1_000, may_clamp=True, deadline_at_seconds=now.timestamp() + 60)
                    grant = container.ledger.reserve(account, account_key(account, now), ask)
                    container.pause(step.draw % 20)
                    container.ledger.settle(grant, Settlement(used_tokens=1_000 + step.draw % 5_000))
                    self._world.seen["calls_settled"] += 1
                    return

        self._world.start(f"call {step.user}", body)

    def sync(self, step: Step) -> None:
        """The return from a checkout, or a look at the billing page."""

        def body(container: Container) -> None:
            with suppress(TollgateError):
                container.sync.sync(TENANT, f"user-{step.user}")

        self._world.start(f"sync {step.user}", body)

    def first_key(self, step: Step) -> None:
        if self.subscriptions.take_first_key(TENANT, f"user-{step.user}"):
            self.first_keys[step.user] += 1

    # ---- banks

    def cards_fail(self, step: Step) -> None:
        for customer_id in self.customers(step.user):
            self._world.stripe.fail_payments(customer_id, True)

    def cards_work(self, step: Step) -> None:
        for customer_id in self.customers(step.user):
            self._world.stripe.fail_payments(customer_id, False)

    def pay_invoices(self, step: Step) -> None:
        self.cards_work(step)
        for invoice in self._world.stripe.all("invoice"):
            if invoice["status"] == "open" and invoice["customer"] in self.customers(step.user):
                the_desk().v1.invoices.pay(invoice["id"])

    def dispute(self, step: Step) -> None:
        if charges := self._charges(step.user):
            self._world.stripe.dispute(charges[step.draw % len(charges)])

    def close_dispute(self, step: Step) -> None:
        mine = set(self._charges(step.user))
        for dispute in self._world.stripe.all("dispute"):
            if dispute["charge"] in mine and dispute["status"] == "needs_response":
                self._world.stripe.close_dispute(dispute["id"], won=bool(step.draw % 2))
                return

    def refund(self, step: Step) -> None:
        if charges := self._charges(step.user):
            self._world.stripe.refund(charges[step.draw % len(charges)], 100)

    def fraud_warning(self, step: Step) -> None:
        if charges := self._charges(step.user):
            self._world.stripe.fraud_warning(charges[step.draw % len(charges)])

    # ---- the operator, in Stripe's dashboard

    def second_subscription(self, step: Step) -> None:
        """Made by hand, beside our checkout, which would not make it."""
        customer_id = self._customer(step.user)
        plan_id = PLANS[step.draw % 2]
        [price] = [one for one in self._world.stripe.all("price") if one["lookup_key"] == f"tollgate_{plan_id}_month"]
        the_desk().v1.subscriptions.create({"customer": customer_id, "items": [{"price": price["id"]}]})

    def other_product(self, step: Step) -> None:
        """Something that is no plan of ours, sold to the same customer."""
        items: Any = [{"price": self.foreign_price}]
        the_desk().v1.subscriptions.create({"customer": self._customer(step.user), "items": items})

    def delete_customer(self, step: Step) -> None:
        customer_id = self.subscriptions.find(TENANT, f"user-{step.user}").customer_id
        if customer_id is not None:
            self._world.stripe.delete_customer(customer_id)

    # ---- whose

    def _customer(self, user: int) -> str:
        """The user's customer, made and stored first where there is none."""
        from tests.billing.world import the_stripe

        seen = self.subscriptions.find(TENANT, f"user-{user}")
        if seen.customer_id is not None:
            return seen.customer_id
        key = f"customer-{user}-{seen.version}"
        made = the_stripe().create_customer(TENANT, f"user-{user}", f"user-{user}@example.com", idempotency_key=key)
        claimed = self.subscriptions.claim_customer(TENANT, f"user-{user}", made)
        assert claimed.customer_id is not None
        # Cards that fail go on failing for a new customer of the same person: only the bank makes them work again.
        return claimed.customer_id

    def customers(self, user: int) -> list[str]:
        return [
            one["id"]
            for one in self._world.stripe.all("customer")
            if (one.get("metadata") or {}).get("tollgate_user") == f"user-{user}"
        ]

    def _charges(self, user: int) -> list[str]:
        mine = self.customers(user)
        return [
            one["id"]
            for one in self._world.stripe.all("charge")
            if one["customer"] in mine and one["status"] == "succeeded"
        ]

    def _live(self, user: int) -> RemoteSubscription | None:
        """As our own routes would find it: by asking Stripe."""
        from tests.billing.world import the_stripe

        customer_id = self.subscriptions.find(TENANT, f"user-{user}").customer_id
        if customer_id is None:
            return None
        found = the_stripe().list_subscriptions(customer_id)
        live = [one for one in found if not one.status.ended and one.plan_id is not None]
        return min(live, key=lambda one: one.created_at, default=None)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._world.hub.now), UTC)
