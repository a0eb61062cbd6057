"""Every request that our code sends is right, and any fault in it would be noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from dev.stripe_double.contract import Operation
from dev.stripe_double.faults import NOTHING
from dev.stripe_double.forms import parse_form
from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.dev.stripe_account import DAY, NOW
from tests.dev.stripe_samples import params_class, sites_of, spoiled
from tests.dev.test_stripe_double_contract import forgiven, refusals
from tollgate.catalog.loader import load_catalog
from tollgate.domain.billing import CheckoutWish, PlanChange
from tollgate.domain.plans import TaxKind
from tollgate.domain.subscriptions import Interval
from tollgate.flows.sync_plans import PlansSync
from tollgate.providers.stripe_admin import StripeAdmin
from tollgate.providers.stripe_billing import StripeBilling

OVERAGE = "tollgate_overage"


class Recorder(InProcess):
    """Keeps what was sent: (method, url, body)."""

    def __init__(self, world: StripeWorld) -> None:
        super().__init__(world, NOTHING)
        self.sent: list[tuple[str, str, str]] = []

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,  # noqa: ANN401  the SDK's signature
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        body = post_data if isinstance(post_data, str) else (post_data or b"").decode()
        self.sent.append((method.upper(), url, body))
        return super().request(method, url, headers, post_data)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    """After the owner has brought the plans to Stripe, and a user has bought, changed and cancelled."""
    world = StripeWorld(now=NOW, seed=1, webhook_secret="whsec_x", account_id="acct_1")
    wire = Recorder(world)
    admin = StripeAdmin(lambda: "sk_test_x", http_client=wire)
    sync = PlansSync(load_catalog("default"), admin, "https://shop.example/stripe/webhook")
    sync.run(hand_over=lambda _: None, done=lambda _: None)
    billing = StripeBilling(lambda: "sk_test_x", http_client=wire)
    customer = billing.create_customer("main", "u1", "a@example.com", idempotency_key="c")
    for number, tax in enumerate(TaxKind):
        session = billing.create_checkout(_wish(customer, tax, trial_days=number), idempotency_key=f"s{number}")
        billing.expire_checkout(session.id)
    session = billing.create_checkout(_wish(customer, TaxKind.NONE), idempotency_key="s")
    billing.list_checkouts(customer)
    world.complete_checkout(session.id)
    world.advance(NOW + 3 * DAY)
    _change_often(billing, customer)
    billing.create_portal(customer, "https://shop.example/account")
    billing.list_invoices(customer, 5, None)
    for subscription in billing.list_subscriptions(customer):
        billing.keep_at_period_end(subscription.id, keep=False)
        billing.cancel_subscription(subscription.id, invoice_now=True)
    since = datetime(2026, 11, 1, tzinfo=UTC)
    billing.find_event(next(iter(billing.list_events(since, types=["invoice.paid"])))["id"])
    assert world.refused == []
    return wire


def _change_often(billing: StripeBilling, customer: str) -> None:
    def change(plan: str, interval: Interval, **more: bool) -> PlanChange:
        (subscription,) = billing.list_subscriptions(customer)
        return PlanChange(subscription, plan, interval, OVERAGE, **more)

    billing.change_plan(change("enterprise", Interval.MONTH, restarts=True, paid_or_refused=True))
    billing.change_plan(change("enterprise", Interval.YEAR, restarts=True))
    later = billing.schedule_change(change("pro", Interval.MONTH))
    assert later.schedule_id is not None
    billing.release_schedule(later.schedule_id)


def _wish(customer: str, tax: TaxKind, *, trial_days: int = 0) -> CheckoutWish:
    return CheckoutWish(
        tenant_id="main",
        user_id="u1",
        customer_id=customer,
        claim="claim",
        plan_id="pro",
        interval=Interval.MONTH,
        overage_lookup_key=OVERAGE,
        success_url="https://shop.example/done",
        cancel_url="https://shop.example/back",
        expires_at=NOW + timedelta(hours=1),
        trial_days=trial_days,
        promotion_codes=True,
        tax=tax,
    )


def _understood(recorder: Recorder, method: str, url: str, body: str) -> tuple[Operation, dict[str, Any]]:
    contract, split = recorder.world.contract, urlsplit(url)
    matched = contract.match(method, split.path)
    assert matched is not None
    form = not (split.path.startswith("/v2/") and method != "GET")
    given = parse_form(split.query) | (parse_form(body) if form else json.loads(body or "{}"))
    typed, violations = contract.check(matched[0], given, form=form)
    assert violations == [], (method, url, violations)
    return matched[0], typed


def test_every_fault_in_any_request_of_ours_is_caught(recorder: Recorder) -> None:
    seen: dict[str, int] = {}
    missed: list[tuple[str, str, str]] = []
    for method, url, body in recorder.sent:
        operation, params = _understood(recorder, method, url, body)
        for fault, where, broken in spoiled(params, list(sites_of(params_class(operation), params))):
            if forgiven(operation, fault, where):
                continue
            seen[fault] = seen.get(fault, 0) + 1
            if not refusals(operation, broken):
                missed.append((operation.key, fault, where))
    assert missed == []
    assert seen.keys() == {"unknown key", "missing required", "wrong type", "hash for text", "bad enum"}
    assert sum(seen.values()) > 400


def test_our_requests_are_of_many_operations(recorder: Recorder) -> None:
    asked = {_understood(recorder, *sent)[0].key for sent in recorder.sent}
    assert len(asked) > 25
    assert asked <= set(recorder.world.served)
