"""What the double's API refuses, remembers, lists, expands and delivers, as Stripe's does."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import stripe

from dev.stripe_double.faults import Fault, ScriptedFaults, SeededFaults
from dev.stripe_double.webhooks import eventbridge
from dev.stripe_double.world import StripeWorld
from tests.dev.stripe_account import DAY, NOW, Account, Thing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def account() -> Iterator[Account]:
    made = Account()
    yield made
    assert made.faults() == []


def ask(world: StripeWorld, method: str, path: str, body: str = "", **headers: str) -> tuple[int, Any]:
    given = {"Authorization": "Bearer sk_test_x"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = world.handle(method, path, given, body.encode())
    return answer.status, json.loads(answer.body)


# Who may ask, and how


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"Authorization": ""}, 401, "Invalid API Key"),
        ({"Authorization": "Bearer sk_live_x"}, 401, "Invalid API Key"),
        ({"Stripe_Version": "2025-09-30.clover"}, 400, "Invalid Stripe API version: 2025-09-30.clover"),
        ({"Stripe_Account": "acct_other"}, 403, "does not have access to account 'acct_other'"),
    ],
)
def test_a_wrong_key_version_or_account_is_refused(
    account: Account, headers: dict[str, str], status: int, says: str
) -> None:
    found, body = ask(account.world, "GET", "/v1/customers", **headers)
    assert found == status
    assert says in body["error"]["message"]


def test_what_the_contract_refuses_is_kept_for_the_product_s_tests(account: Account) -> None:
    status, body = ask(account.world, "POST", "/v1/customers", "emial=a&balance=x")
    assert (status, body["error"]["type"], body["error"]["param"]) == (400, "invalid_request_error", "emial")
    assert [(one.path, one.code, one.param) for one in account.world.refused] == [
        ("/v1/customers", "parameter_unknown", "emial"),
        ("/v1/customers", "parameter_invalid_integer", "balance"),
    ]


def test_what_is_not_served_is_said_and_kept(account: Account) -> None:
    assert ask(account.world, "POST", "/v1/charges", "amount=1&currency=usd")[0] == 501
    assert ask(account.world, "GET", "/v1/tokens")[0] == 404
    assert [one.code for one in account.world.refused] == ["unserved", "url_unknown"]


# Rules between parameters


def checkout(account: Account, **changes: Thing) -> Thing:
    lines = [{"price": account.prices["pro"], "quantity": 1}]
    return account.api.v1.checkout.sessions.create(
        {  # type: ignore[arg-type]
            "mode": "subscription",
            "customer": account.customer,
            "line_items": lines,
            "success_url": "https://shop.example/done",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"line_items": [{"price": "{overage}", "quantity": 1}]}, "Quantity should not be specified"),
        ({"line_items": [{"price": "{pro}"}]}, "Missing required param: line_items[0][quantity]"),
        ({"line_items": []}, "`line_items` is required"),
        ({"line_items": [{"price": "price_none", "quantity": 1}]}, "No such price: 'price_none'"),
        ({"customer_email": "a@example.com"}, "only specify one of these parameters: customer, customer_email"),
        ({"customer": "cus_none"}, "No such customer: 'cus_none'"),
        ({"success_url": "shop.example"}, "Not a valid URL"),
        ({"allow_promotion_codes": True, "discounts": [{"coupon": "c"}]}, "allow_promotion_codes, discounts"),
        ({"expires_at": int((NOW + 25 * timedelta(hours=1)).timestamp())}, "between 30 minutes and 24 hours"),
        ({"expires_at": int((NOW + timedelta(minutes=29)).timestamp())}, "between 30 minutes and 24 hours"),
        ({"automatic_tax": {"enabled": True}}, "requires a valid address on the Customer"),
        ({"tax_id_collection": {"enabled": True}}, "set `customer_update[name]` to `auto`"),
        ({"managed_payments": {"enabled": True}, "automatic_tax": {"enabled": False}}, "Managed Payments"),
        ({"payment_intent_data": {"description": "x"}}, "You can not pass `payment_intent_data`"),
        ({"subscription_data": {"trial_settings": {"end_behavior": {"missing_payment_method": "cancel"}}}}, "a trial"),
    ],
)
def test_checkout_refuses_what_does_not_go_together(account: Account, changes: dict[str, Any], says: str) -> None:
    for line in changes.get("line_items", []):
        line["price"] = line["price"].format(**account.prices)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        checkout(account, **changes)
    assert says in str(refused.value)


def test_customer_update_wants_a_customer(account: Account) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="can only be used with `customer`"):
        account.api.v1.checkout.sessions.create(
            {
                "mode": "subscription",
                "line_items": [{"price": account.prices["pro"], "quantity": 1}],
                "success_url": "https://shop.example/",
                "customer_update": {"address": "auto"},
            }
        )


def test_tax_is_taken_when_checkout_saves_the_address(account: Account) -> None:
    update = {"address": "auto", "name": "auto"}
    more = {"automatic_tax": {"enabled": True}, "tax_id_collection": {"enabled": True}, "customer_update": update}
    session = checkout(account, **more)
    assert (session.automatic_tax.enabled, session.tax_id_collection.enabled) == (True, True)
    account.world.complete_checkout(session.id)
    assert account.world.find(account.customer)["address"]["country"] == "US"
    assert checkout(account, managed_payments={"enabled": True}).managed_payments.enabled is True


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"items": [{"id": "{pro}", "deleted": True}, {"id": "{overage}", "deleted": True}]}, "at least one active"),
        ({"items": [{"price": "{price}"}]}, "multiple subscription items with the same price"),
        ({"items": [{"id": "{overage}", "quantity": 2}]}, "Quantity should not be specified"),
        ({"items": [{"id": "si_none", "quantity": 2}]}, "does not belong to the subscription"),
        ({"cancel_at_period_end": True, "cancel_at": "min_period_end"}, "cancel_at, cancel_at_period_end"),
        ({"payment_behavior": "pending_if_incomplete", "metadata": {"a": "b"}}, "Unsupported: metadata"),
        ({"items": [{"id": "{pro}", "quantity": 2}], "proration_date": 1}, "Invalid proration_date"),
        ({"cancel_at": 1}, "must be a time in the future"),
    ],
)
def test_an_update_refuses_what_does_not_go_together(account: Account, params: dict[str, Any], says: str) -> None:
    subscription = account.subscribe()
    names = {plan: account.item(subscription, plan)["id"] for plan in ("pro", "overage")}
    for item in params.get("items", []):
        for key in ("id", "price"):
            if key in item:
                item[key] = item[key].format(**names, price=account.prices["pro"])
    with pytest.raises(stripe.InvalidRequestError) as refused:
        account.api.v1.subscriptions.update(subscription, params)  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_what_has_ended_cannot_be_changed(account: Account) -> None:
    subscription = account.subscribe()
    account.api.v1.subscriptions.cancel(subscription)
    with pytest.raises(stripe.InvalidRequestError, match="can only update its cancellation_details and metadata"):
        account.api.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    account.api.v1.subscriptions.update(subscription, {"metadata": {"a": "b"}})


def test_a_subscription_without_a_card_is_refused(account: Account) -> None:
    params: Any = {"customer": account.customer, "items": [{"price": account.prices["pro"]}]}
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source"):
        account.api.v1.subscriptions.create(params)
    account.api.v1.payment_methods.attach("pm_card_visa", {"customer": account.customer})
    assert account.api.v1.subscriptions.create(params).status == "active"


def test_classic_billing_takes_one_interval_only(account: Account) -> None:
    account.world.add_card(account.customer)
    items: Any = [{"price": account.prices["pro_year"]}, {"price": account.prices["overage"]}]
    params: Any = {"customer": account.customer, "items": items, "billing_mode": {"type": "classic"}}
    with pytest.raises(stripe.InvalidRequestError, match=r"same `recurring.interval`"):
        account.api.v1.subscriptions.create(params)


def test_a_lookup_key_belongs_to_one_price_and_can_be_handed_over(account: Account) -> None:
    first = account.price(unit_amount=1, recurring={"interval": "month"}, lookup_key="plan")
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        account.price(unit_amount=2, recurring={"interval": "month"}, lookup_key="plan")
    second = account.price(unit_amount=2, recurring={"interval": "month"}, lookup_key="plan", transfer_lookup_key=True)
    assert account.api.v1.prices.retrieve(first).lookup_key is None
    assert [one.id for one in account.api.v1.prices.list({"lookup_keys": ["plan"]}).data] == [second]


# Idempotency


def test_the_same_key_with_the_same_request_is_answered_the_same(account: Account) -> None:
    options: Any = {"idempotency_key": "once"}
    first = account.api.v1.customers.create({"email": "b@example.com"}, options)
    again = account.api.v1.customers.create({"email": "b@example.com"}, options)
    assert again.id == first.id
    assert again.last_response is not None
    assert again.last_response.headers["idempotent-replayed"] == "true"
    with pytest.raises(stripe.IdempotencyError, match="same parameters"):
        account.api.v1.customers.create({"email": "c@example.com"}, options)
    account.wait(DAY)
    assert account.api.v1.customers.create({"email": "c@example.com"}, options).id != first.id


def test_a_refusal_is_remembered_too(account: Account) -> None:
    options: Any = {"idempotency_key": "once"}
    params: Any = {"customer": account.customer, "items": [{"price": account.prices["pro"]}]}
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError, match="no attached payment source"):
            account.api.v1.subscriptions.create(params, options)
        account.world.add_card(account.customer)


# Reading


def test_lists_are_paged_newest_first(account: Account) -> None:
    made = [account.api.v1.customers.create({"name": str(number)}).id for number in range(25)]
    page = account.api.v1.customers.list({"limit": 10})
    assert ([one.id for one in page.data], page.has_more) == (made[:14:-1], True)
    assert [one.id for one in page.auto_paging_iter()] == [*made[::-1], account.customer]
    back = account.api.v1.customers.list({"limit": 2, "ending_before": made[20]})
    assert [one.id for one in back.data] == [made[22], made[21]]
    with pytest.raises(stripe.InvalidRequestError, match="No such object"):
        account.api.v1.customers.list({"starting_after": "cus_none"})


def test_what_is_named_can_be_expanded_and_nothing_else(account: Account) -> None:
    subscription = account.subscribe()
    paths = ["customer", "latest_invoice.payments", "items.data.price.product"]
    found: Any = account.api.v1.subscriptions.retrieve(subscription, {"expand": paths})
    assert found.customer.email == "a@example.com"
    assert found.latest_invoice.payments.data[0].status == "paid"
    assert found["items"].data[0].price.product.name == "Plan"
    assert isinstance(account.subscription(subscription)["customer"], str)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        account.api.v1.subscriptions.retrieve(subscription, {"expand": ["invoice"]})
    with pytest.raises(stripe.InvalidRequestError, match="4 levels"):
        account.api.v1.subscriptions.retrieve(subscription, {"expand": ["a.b.c.d.e"]})


def test_an_invoice_can_be_made_by_hand(account: Account) -> None:
    account.world.add_card(account.customer)
    owed: Any = {"customer": account.customer, "amount": 700, "currency": "usd"}
    account.api.v1.invoice_items.create(owed)
    included: Any = {"customer": account.customer, "pending_invoice_items_behavior": "include"}
    made = account.api.v1.invoices.create(included)
    account.api.v1.invoice_items.create(owed | {"amount": 50, "invoice": made.id})
    assert account.api.v1.invoices.pay(made.id).amount_paid == 750
    with pytest.raises(stripe.InvalidRequestError, match="no longer editable"):
        account.api.v1.invoice_items.create(owed | {"invoice": made.id})


def test_reading_changes_nothing_that_comes_after(account: Account) -> None:
    """The local stack does what was done again after a restart, and keeps no note of what was read."""
    reader, other = Account(seed=9), Account(seed=9)
    subscription = reader.subscribe()
    assert other.subscribe() == subscription
    endpoint: Any = {"url": "https://shop.example/hook", "enabled_events": ["*"]}
    assert reader.api.v1.webhook_endpoints.create(endpoint).id == other.api.v1.webhook_endpoints.create(endpoint).id
    reads = [key.removeprefix("GET ") for key in reader.world.served if key.startswith("GET ")]
    for path in reads:
        status, _ = ask(reader.world, "GET", path.replace("{subscription_exposed_id}", subscription))
        assert status in (200, 400, 404), path
    assert reader.api.v1.customers.create().id == other.api.v1.customers.create().id
    assert (reader.api.v1.accounts.retrieve_current().id, reader.faults()) == ("acct_1", [])


def test_subscriptions_are_listed_by_status(account: Account) -> None:
    ended, live = account.subscribe(), account.subscribe()
    account.api.v1.subscriptions.cancel(ended)

    def listed(**params: Thing) -> list[str]:
        return [one.id for one in account.api.v1.subscriptions.list(params).data]  # type: ignore[arg-type]

    assert listed() == [live]
    assert listed(status="all") == [live, ended]
    assert listed(status="canceled") == listed(status="ended") == [ended]


# Events and their delivery


def test_deliveries_are_signed_and_understood_by_the_sdk(account: Account) -> None:
    account.subscribe()
    now = datetime.now(UTC)
    for event in account.world.take_events():
        snapshot = account.world.deliver(event, at=now)
        signature = snapshot.headers["Stripe-Signature"]
        assert account.api.construct_event(snapshot.body, signature, "whsec_test").id == event["id"]
        with pytest.raises(stripe.SignatureVerificationError):
            account.api.construct_event(snapshot.body + b" ", signature, "whsec_test")
        thin = account.world.deliver(event, "thin", at=now)
        told = account.api.parse_event_notification(thin.body, thin.headers["Stripe-Signature"], "whsec_test")
        assert told.type == f"v1.{event['type']}"
        assert b'"data"' not in thin.body
        assert account.api.v2.core.events.retrieve(told.id).to_dict()["snapshot_event"] == event["id"]


def test_a_rolled_secret_signs_beside_the_old_one(account: Account) -> None:
    account.world.webhook_secrets.insert(0, "whsec_new")
    account.subscribe()
    told = account.world.deliver(account.world.take_events()[0], at=datetime.now(UTC))
    for secret in ("whsec_new", "whsec_test"):
        account.api.construct_event(told.body, told.headers["Stripe-Signature"], secret)


def test_an_event_on_the_bus_is_the_same_event(account: Account) -> None:
    account.subscribe()
    event = account.world.take_events()[0]
    told = eventbridge(event, "acct_1", "2026-11-20T12:00:07Z")
    assert (told["detail"], told["detail-type"]) == (event, event["type"])


def test_events_are_kept_for_thirty_days(account: Account) -> None:
    account.subscribe()
    event = account.world.take_events()[0]
    assert account.api.v1.events.retrieve(event["id"]).type == event["type"]
    wanted: Any = {"types": ["customer.subscription.*"], "limit": 100}
    assert {one.type for one in account.api.v1.events.list(wanted).data} == {
        "customer.subscription.created",
        "customer.subscription.updated",
    }
    account.wait(30 * DAY)
    with pytest.raises(stripe.InvalidRequestError, match="No such event"):
        account.api.v1.events.retrieve(event["id"])


def test_an_endpoint_s_secret_is_told_once(account: Account) -> None:
    params: Any = {"url": "https://shop.example/hook", "enabled_events": ["invoice.paid"]}
    made = account.api.v1.webhook_endpoints.create(params)
    assert (made.secret or "").startswith("whsec_")
    assert "secret" not in account.api.v1.webhook_endpoints.retrieve(made.id)
    thin: Any = {
        "name": "meters",
        "type": "webhook_endpoint",
        "event_payload": "thin",
        "enabled_events": ["v1.billing.meter.error_report_triggered"],
        "webhook_endpoint": {"url": "https://shop.example/hook"},
        "include": ["webhook_endpoint.signing_secret"],
    }
    destination = account.api.v2.core.event_destinations.create(thin)
    assert destination.webhook_endpoint is not None
    assert account.world.events.secrets[destination.id] == destination.webhook_endpoint.signing_secret
    listed: Any = account.api.v2.core.event_destinations.list({"include": ["webhook_endpoint.url"]}).data
    assert [(one.id, one.event_payload) for one in listed] == [(made.id, "snapshot"), (destination.id, "thin")]
    assert {one.webhook_endpoint.signing_secret for one in listed} == {None}


def test_the_portal_wants_a_configuration_and_cancels_at_the_period_s_end(account: Account) -> None:
    subscription = account.subscribe()
    with pytest.raises(stripe.InvalidRequestError, match="No configuration provided"):
        account.api.v1.billing_portal.sessions.create({"customer": account.customer})
    features: Any = {"subscription_cancel": {"enabled": True}, "invoice_history": {"enabled": True}}
    account.api.v1.billing_portal.configurations.create({"features": features})
    session = account.api.v1.billing_portal.sessions.create({"customer": account.customer})
    flow: Any = {"type": "subscription_update", "subscription_update": {"subscription": subscription}}
    with pytest.raises(stripe.InvalidRequestError, match="usage-based"):
        account.api.v1.billing_portal.sessions.create({"customer": account.customer, "flow_data": flow})
    account.world.portal.cancel(session.id, subscription)
    assert account.subscription(subscription)["cancel_at_period_end"] is True
    account.world.portal.keep(session.id, subscription)
    assert account.subscription(subscription)["cancel_at_period_end"] is False


# The wire


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (Fault.LOST_BEFORE, stripe.APIConnectionError, False),
        (Fault.LOST_AFTER, stripe.APIConnectionError, True),
        (Fault.ERROR_BEFORE, stripe.APIError, False),
        (Fault.ERROR_AFTER, stripe.APIError, True),
        (Fault.CONFLICT, stripe.APIError, False),
        (Fault.RATE_LIMITED, stripe.RateLimitError, False),
    ],
)
def test_a_fault_is_before_or_after_the_deed(
    account: Account, fault: Fault, error: type[stripe.StripeError], done: bool
) -> None:
    api = account.client(ScriptedFaults(fault))
    with pytest.raises(error):
        api.v1.customers.create({"name": "new"}, {"idempotency_key": "k"})
    assert (len(account.world.all("customer")) == 2) is done
    api.v1.customers.create({"name": "new"}, {"idempotency_key": "k"})
    assert len(account.world.all("customer")) == 2, "the same key does it once"


def test_a_slow_answer_lets_others_act_first(account: Account) -> None:
    acted: list[int] = []
    api = account.client(ScriptedFaults(Fault.SLOW), lambda: acted.append(len(account.world.all("customer"))))
    api.v1.customers.create({"name": "slow"})
    assert acted == [2]


def test_a_seed_decides_what_goes_wrong() -> None:
    def drawn(seed: int) -> list[Fault | None]:
        plan = SeededFaults(seed, {Fault.LOST_AFTER: 0.2, Fault.ERROR_BEFORE: 0.2})
        return [plan("POST", "/v1/customers") for _ in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == {None, Fault.LOST_AFTER, Fault.ERROR_BEFORE}


def test_the_same_seed_and_calls_make_the_same_world() -> None:
    worlds = []
    for _ in range(2):
        account = Account(seed=5)
        account.subscribe()
        account.wait(40 * DAY)
        worlds.append((account.world.all("invoice"), account.world.take_events()))
        account.api.v1.customers.list()
    assert worlds[0] == worlds[1]


def test_many_threads_may_ask_at_once(account: Account) -> None:
    threads = [threading.Thread(target=account.session) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one["id"] for one in account.world.all("checkout.session")}) == 16


# The product's own calls


def test_every_call_of_ours_is_one_that_the_double_serves(account: Account) -> None:
    """Read from the source of our providers, so that a call no test makes is not missed either."""
    calls = set()
    for file in (ROOT / "layers/core/tollgate/providers").glob("stripe_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            chain = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if chain.startswith(("api.v1.", "api.v2.")):
                calls.add(chain)
    served = {
        operation.service: key
        for key, operation in account.world.contract.operations.items()
        if key in account.world.served
    }
    asked = []
    for chain in calls:
        found: Any = account.api
        for name in chain.split(".")[1:]:
            found = getattr(found, name)
        if callable(found) and getattr(found, "__self__", None) is not None:
            asked.append(f"{type(found.__self__).__module__}:{type(found.__self__).__name__}.{found.__name__}")
    assert len(asked) > 30
    assert [one for one in asked if one not in served] == []


def test_the_page_of_docs_names_what_is_served(account: Account) -> None:
    text = (ROOT / "docs/stripe-double.md").read_text()
    named = {line[3:-1] for line in text.splitlines() if line.startswith("- `") and " /v" in line}
    assert named == set(account.world.served)


def test_forms_arrive_as_the_sdk_sends_them(account: Account) -> None:
    body = urlencode({"line_items[0][price]": account.prices["overage"], "mode": "subscription", "success_url": "x:y"})
    status, found = ask(account.world, "POST", "/v1/checkout/sessions", body)
    assert (status, found["error"]["param"]) == (400, "success_url")
    assert dict(parse_qsl(urlsplit("?" + body).query))["mode"] == "subscription"


def test_the_example_of_the_docs_runs() -> None:
    text = (ROOT / "docs/stripe-double.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    exec(compile(code, "docs/stripe-double.md", "exec"), {})
