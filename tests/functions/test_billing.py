"""functions/billing, from API Gateway's event to the answer: what is sold, bought and shown.

Behind it stands Stripe's double, which refuses what Stripe would refuse; plan changes are in test_billing_changes.py,
what fails on the way in test_billing_faults.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest

from tests.support.billing_function import RETURN_URL, BillingFunction, billing_function
from tollgate.domain.api_keys import KeyWish
from tollgate.domain.principals import CredentialKind, Principal, Profile
from tollgate.storage.users import Users

numbers = count(1)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BillingFunction]:
    with billing_function(tmp_path_factory.mktemp("catalog")) as function:
        yield function


@pytest.fixture
def billing(container: BillingFunction) -> BillingFunction:
    """A warm container, and two users whom it has not seen."""
    return container.of_new_users(next(numbers))


# --- What there is to buy -------------------------------------------------------------------------------------------


def test_anybody_may_see_what_is_sold_and_stripe_is_not_asked(billing: BillingFunction) -> None:
    answer = billing.ask("GET", "/billing/plans", user=None)
    assert answer.status == 200
    assert [plan["id"] for plan in answer.body["data"]] == ["free", "pro", "team"]  # not the operator's gift
    free, pro, _ = answer.body["data"]
    assert (free["default"], free["sold"], free["price_cents"]) == (True, False, 0)
    assert (pro["default"], pro["sold"], pro["price_cents"]) == (False, True, 2900)
    assert (pro["annual_price_cents"], pro["trial_days"], pro["trial_quota_tokens"]) == (29000, 14, 200_000)
    assert (answer.body["currency"], answer.body["tax"], answer.body["promotion_codes"]) == ("usd", "none", True)
    assert billing.wire.asked == []
    assert billing.table.calls.total() == 0


def test_who_never_bought_anything_stands_on_the_default_plan(billing: BillingFunction) -> None:
    status = billing.status()
    assert (status["plan"]["id"], status["subscription"], status["checkout"]) == ("free", None, None)
    assert (status["portal_available"], status["first_key_available"], status["paid"]) == (False, False, True)
    assert status["overage"]["allowed"] is False
    assert billing.wire.asked == []  # and Stripe's package need not be imported for it


ROUTES = [
    ("GET", "/billing/status", None),
    ("POST", "/billing/checkout", {"plan": "pro", "success_url": RETURN_URL, "cancel_url": RETURN_URL}),
    ("POST", "/billing/portal", {"return_url": RETURN_URL}),
    ("POST", "/billing/change-plan", {"plan": "pro"}),
    ("GET", "/billing/invoices", None),
    ("POST", "/billing/overage", {"enabled": True}),
    ("POST", "/billing/first-key", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_nobody_is_served_without_a_verified_token(
    billing: BillingFunction, method: str, path: str, body: object
) -> None:
    answer = billing.ask(method, path, body, user=None)
    assert (answer.status, answer.code) == (401, "invalid_credentials")
    assert billing.wire.asked == []
    assert billing.table.calls.total() == 0


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_an_account_that_was_deleted_buys_nothing(
    billing: BillingFunction, method: str, path: str, body: object
) -> None:
    billing.status()
    Users(billing.table).bury_profile("main", billing.ada, datetime.now().astimezone())
    answer = billing.ask(method, path, body)
    assert (answer.status, answer.code) == (401, "account_deleted")
    assert billing.wire.asked == []


# --- Checkout -------------------------------------------------------------------------------------------------------


def test_a_payment_is_in_force_at_the_very_next_look(billing: BillingFunction) -> None:
    billing.world.complete_checkout(billing.checkout("team"))
    status = billing.status()
    assert status["plan"]["id"] == "team"
    assert status["tokens"]["remaining"] == 10_000_000
    subscription = status["subscription"]
    assert (subscription["state"], subscription["plan"], subscription["interval"]) == ("active", "team", "month")
    assert subscription["renews_at"] == status["period"]["end_at"]
    assert (subscription["ends_at"], subscription["trial_ends_at"], subscription["pending_change"]) == (None,) * 3
    assert (status["checkout"], status["portal_available"]) == (None, True)
    assert billing.account().plan.id == "team"


def test_a_checkout_names_the_user_by_a_customer_that_was_stored_first(billing: BillingFunction) -> None:
    session = billing.world.find(billing.checkout("team"))
    stored = billing.subscriber()
    assert session["customer"] == stored.customer_id
    assert billing.app.api.tools.subscriptions.find_customer(stored.customer_id) == ("main", billing.ada)
    assert billing.world.find(stored.customer_id or "")["metadata"] == {
        "tollgate_tenant": "main",
        "tollgate_user": billing.ada,
    }
    assert session["success_url"] == f"{RETURN_URL}/done"


def test_a_subscription_has_the_plans_price_and_the_overage_price(billing: BillingFunction) -> None:
    billing.subscribe("team")
    [subscription] = billing.subscriptions_alive()
    assert subscription["billing_mode"]["type"] == "flexible"
    keys = {item["price"]["lookup_key"]: item.get("quantity") for item in subscription["items"]["data"]}
    assert keys == {"tollgate_team_month": 1, "tollgate_overage": None}


def test_a_year_is_paid_at_once_and_counted_by_the_month(billing: BillingFunction) -> None:
    status = billing.subscribe("team", "year")
    subscription = status["subscription"]
    assert subscription["interval"] == "year"
    start, end = (datetime.fromisoformat(status["period"][name]) for name in ("start_at", "end_at"))
    assert timedelta(days=28) <= end - start <= timedelta(days=31)
    assert datetime.fromisoformat(subscription["renews_at"]) - start >= timedelta(days=365)


def test_each_user_has_one_trial(billing: BillingFunction) -> None:
    billing.subscribe("pro")
    [first] = billing.subscriptions_alive()
    billing.app.api.tools.stripe.cancel_subscription(first["id"])
    billing.sync()
    status = billing.subscribe("pro")
    assert (status["subscription"]["state"], status["subscription"]["trial_ends_at"]) == ("active", None)
    assert billing.subscribe("pro", user=billing.eve)["subscription"]["state"] == "trialing"


def test_a_customer_that_is_deleted_takes_no_second_trial(billing: BillingFunction) -> None:
    billing.subscribe("pro")
    customer_id = billing.subscriber().customer_id or ""
    billing.world.delete_customer(customer_id)
    billing.sync()
    status = billing.subscribe("pro")
    assert status["subscription"]["state"] == "active"
    assert billing.subscriber().customer_id != customer_id


def a_promotion(billing: BillingFunction, code: str = "SPRING26") -> str:
    client = billing.api()
    coupon = client.v1.coupons.create({"percent_off": 50, "duration": "forever"})
    made = client.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon["id"]}, "code": code})
    return str(made["id"])


def test_a_promotion_code_is_applied_from_the_start_or_typed_at_the_checkout(billing: BillingFunction) -> None:
    promotion_id = a_promotion(billing)
    billing.world.complete_checkout(billing.checkout("team", promotion="SPRING26"))
    [invoice] = billing.of_customer("invoice")
    assert invoice["total"] == 4950
    [subscription] = billing.subscriptions_alive()
    [discount] = subscription["discounts"]
    assert billing.world.find(discount)["promotion_code"] == promotion_id
    typed = billing.world.find(billing.checkout("team", user=billing.eve))
    assert typed["allow_promotion_codes"] is True


def test_a_promotion_code_that_nobody_made_is_refused_by_name(billing: BillingFunction) -> None:
    answer = billing.order("team", promotion="NOSUCH")
    assert (answer.status, answer.code) == (404, "promotion_not_found")


def test_a_promotion_code_for_another_customer_is_as_one_that_nobody_made(billing: BillingFunction) -> None:
    billing.checkout("team", user=billing.eve)
    eve = billing.subscriber(billing.eve).customer_id
    client = billing.api()
    coupon = client.v1.coupons.create({"percent_off": 20, "duration": "once"})
    promotion = {"type": "coupon", "coupon": coupon["id"]}
    code = f"ONLY{billing.eve.upper().replace('-', '')}"
    client.v1.promotion_codes.create({"promotion": promotion, "code": code, "customer": eve})

    for _ in range(2):  # without a customer, and with one
        answer = billing.order("team", promotion=code)
        assert (answer.status, answer.code) == (404, "promotion_not_found")
        billing.checkout("team")
    billing.world.complete_checkout(billing.checkout("team", user=billing.eve, promotion=code))
    assert [invoice["total"] for invoice in billing.of_customer("invoice", billing.eve)] == [7920]


def test_a_customer_that_was_deleted_is_not_given_to_the_next_order(billing: BillingFunction) -> None:
    """Stripe answers the same request under the same key with what it made the first time, for a day."""
    billing.checkout("team")
    first = billing.subscriber().customer_id
    assert first is not None
    billing.world.delete_customer(first)
    billing.world.complete_checkout(billing.checkout("pro", "year"))
    second = billing.subscriber().customer_id
    assert second not in {None, first}
    assert billing.status()["plan"]["id"] == "pro"


@pytest.mark.parametrize(
    ("plan", "interval"), [("free", "month"), ("gift", "month"), ("nosuch", "month"), ("free", "year")]
)
def test_what_is_not_sold_cannot_be_bought(billing: BillingFunction, plan: str, interval: str) -> None:
    answer = billing.order(plan, interval)
    assert (answer.status, answer.code) == (404, "plan_not_sold")
    assert billing.wire.asked == []


# --- One open checkout, one subscription ----------------------------------------------------------------------------


def test_the_same_order_again_is_the_same_checkout(billing: BillingFunction) -> None:
    first = billing.order("team")
    again = billing.order("team")
    assert again.body == first.body
    assert len(billing.of_customer("checkout.session")) == 1
    assert billing.status()["checkout"]["url"] == first.body["url"]


@pytest.mark.parametrize(
    "other",
    [
        {"plan": "pro"},
        {"interval": "year"},
        {"success_url": f"{RETURN_URL}/elsewhere"},
        {"cancel_url": f"{RETURN_URL}/elsewhere"},
    ],
)
def test_another_order_ends_the_checkout_before(billing: BillingFunction, other: dict[str, str]) -> None:
    first = billing.checkout("team")
    second = billing.checkout(**({"plan": "team"} | other))
    assert second != first
    assert billing.world.find(first)["status"] == "expired"
    assert billing.world.find(second)["status"] == "open"
    with pytest.raises(Exception, match="expired"):
        billing.world.complete_checkout(first)
    assert billing.subscriptions_alive() == []


def test_an_order_that_comes_when_the_one_before_was_paid_buys_nothing(billing: BillingFunction) -> None:
    """Nobody has told us of the payment yet: Stripe's own word counts."""
    billing.world.complete_checkout(billing.checkout("team"))
    for answer in (billing.order("pro"), billing.order("team"), billing.order("team", "year")):
        assert (answer.status, answer.code) == (409, "already_subscribed")
        assert "/billing/change-plan" in answer.body["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"
    assert len(billing.subscriptions_alive()) == 1
    assert billing.status()["plan"]["id"] == "team"
    assert billing.status()["checkout"] is None


def test_who_is_subscribed_by_stripes_word_alone_buys_nothing(billing: BillingFunction) -> None:
    """Our own record knows nothing of it: made in the dashboard, and its event was lost."""
    billing.world.complete_checkout(billing.checkout("team"))
    answer = billing.order("team")
    assert answer.status == 409
    assert len(billing.subscriptions_alive()) == 1


def test_after_the_end_one_may_buy_again(billing: BillingFunction) -> None:
    billing.subscribe("team")
    [subscription] = billing.subscriptions_alive()
    billing.app.api.tools.stripe.cancel_subscription(subscription["id"])
    assert billing.sync()["plan"]["id"] == "free"
    assert billing.subscribe("team")["plan"]["id"] == "team"


def test_a_subscription_of_something_else_is_nobodys_plan(billing: BillingFunction) -> None:
    """The seller may sell other things to the same customer."""
    billing.checkout("team")
    customer_id = billing.subscriber().customer_id
    client = billing.api()
    product = client.v1.products.create({"name": "Consulting"})
    price = client.v1.prices.create(
        {"product": product["id"], "currency": "usd", "unit_amount": 100, "recurring": {"interval": "month"}}
    )
    client.v1.subscriptions.create(
        {"customer": customer_id, "items": [{"price": price["id"]}], "payment_behavior": "default_incomplete"}
    )
    assert billing.subscribe("team")["plan"]["id"] == "team"


# --- Where users are sent back to -----------------------------------------------------------------------------------

FOREIGN = [
    "https://evil.example.com/billing",
    "https://app.example.com.evil.example/billing",
    "https://app.example.com@evil.example/billing",
    "https://app.example.com/billing/../../evil",
    "https://app.example.com/billingevil",
    "https://app.example.com/other",
    "http://app.example.com/billing",
    "https://app.example.com:8443/billing",
    "https://APP.example.com/billing",
    "https://app.example.com./billing",
    "https://app.example.com\\@evil.example/billing",
    "https:/\\app.example.com/billing",
    "//app.example.com/billing",
    "javascript:alert(1)",
    "https://app.example.com/billing\u2028/x",
    "https://app.example.com/billing ",
    "https://\uff41pp.example.com/billing",
    "https://app.example.com/billing/%2e%2e/%2e%2e/x",
]


@pytest.mark.parametrize("url", FOREIGN)
def test_no_user_is_sent_to_a_page_that_the_operator_has_not_listed(billing: BillingFunction, url: str) -> None:
    answers = [
        billing.order("team", success_url=url),
        billing.order("team", cancel_url=url),
        billing.ask("POST", "/billing/portal", {"return_url": url}),
    ]
    assert {answer.status for answer in answers} <= {400, 403}
    assert {answer.code for answer in answers} <= {"return_url_not_allowed", "invalid_field"}
    assert all("evil" not in answer.raw for answer in answers)
    assert billing.wire.asked == []


# --- Portal and invoices --------------------------------------------------------------------------------------------


def test_a_customer_visits_the_portal_that_the_sync_has_set_up(billing: BillingFunction) -> None:
    billing.subscribe("team")
    answer = billing.ask("POST", "/billing/portal", {"return_url": RETURN_URL})
    assert answer.status == 201
    assert answer.body["url"].startswith("https://")
    [visit] = billing.of_customer("billing_portal.session")
    assert visit["customer"] == billing.subscriber().customer_id
    assert visit["return_url"] == RETURN_URL
    [configuration] = billing.world.all("billing_portal.configuration")
    assert visit["configuration"] == configuration["id"]


def test_who_never_bought_anything_has_no_portal(billing: BillingFunction) -> None:
    answer = billing.ask("POST", "/billing/portal", {"return_url": RETURN_URL})
    assert (answer.status, answer.code) == (409, "not_subscribed")


def test_nobody_pages_into_the_invoices_of_somebody_else(billing: BillingFunction) -> None:
    billing.subscribe("team")
    billing.subscribe("team", user=billing.eve)
    [hers] = billing.ask("GET", "/billing/invoices", user=billing.eve).body["data"]
    for after in (hers["id"], "in_nosuch"):
        answer = billing.ask("GET", "/billing/invoices", query={"after": after})
        assert (answer.status, answer.code) == (404, "not_found")
    assert billing.ask("GET", "/billing/invoices", query={"after": "sub_1"}).status == 400
    assert billing.ask("GET", "/billing/invoices", query={"limit": "101"}).status == 400


# --- Overage --------------------------------------------------------------------------------------------------------


def test_overage_is_the_users_own_choice_and_cap(billing: BillingFunction) -> None:
    assert billing.subscribe("team")["overage"] == {
        "allowed": False,
        "chosen": None,
        "cap_cents": None,
        "plan_cap_cents": 7500,
        "tokens": 0,
        "cost_cents": 0,
        "cost_nanousd": 0,
    }
    on = billing.ask("POST", "/billing/overage", {"enabled": True})
    assert (on.status, on.body["allowed"], on.body["chosen"], on.body["cap_cents"]) == (200, True, True, 7500)
    assert billing.account().plan.overage_cap_tokens == 5_000_000

    capped = billing.ask("POST", "/billing/overage", {"enabled": True, "cap_cents": 150})
    assert capped.body["cap_cents"] == 150
    assert billing.account().plan.overage_cap_tokens == 100_000  # 1.50 at 15 micro-dollars a token

    off = billing.ask("POST", "/billing/overage", {"enabled": False})
    assert (off.body["allowed"], off.body["chosen"], off.body["cap_cents"]) == (False, False, None)
    assert billing.account().plan.overage_cap_tokens == 0


def test_no_cap_is_above_that_of_the_plan(billing: BillingFunction) -> None:
    billing.subscribe("team")
    billing.ask("POST", "/billing/overage", {"enabled": True, "cap_cents": 100_000})
    assert billing.account().plan.overage_cap_tokens == 5_000_000


def test_a_plan_without_overage_has_none_to_choose(billing: BillingFunction) -> None:
    answer = billing.ask("POST", "/billing/overage", {"enabled": True})
    assert (answer.status, answer.code) == (403, "overage_not_in_plan")
    assert billing.ask("POST", "/billing/overage", {"enabled": False}).status == 200


@pytest.mark.parametrize("cap_cents", [0, -1, 1.5, "10", 100_000_001, True])
def test_a_cap_is_a_whole_number_of_cents(billing: BillingFunction, cap_cents: object) -> None:
    assert billing.ask("POST", "/billing/overage", {"enabled": True, "cap_cents": cap_cents}).status == 400


# --- The first key --------------------------------------------------------------------------------------------------


def subscribe_without_trial(billing: BillingFunction) -> None:
    """To Pro: the trial was had before."""
    billing.subscribe("pro")
    [subscription] = billing.subscriptions_alive()
    billing.api().v1.subscriptions.cancel(subscription["id"])
    billing.sync()
    billing.subscribe("pro")


def test_the_first_payment_brings_a_key_that_is_shown_once(billing: BillingFunction) -> None:
    billing.subscribe("pro", user=billing.eve)
    trial = billing.ask("POST", "/billing/first-key", user=billing.eve)
    assert trial.code == "first_key_not_due"  # a trial is no payment
    subscribe_without_trial(billing)
    assert billing.status()["first_key_available"] is True
    answer = billing.ask("POST", "/billing/first-key")
    assert answer.status == 201
    assert answer.body["key"].startswith("tg_live_")
    assert (answer.body["name"], answer.body["state"]) == ("First key", "active")
    again = billing.ask("POST", "/billing/first-key")
    assert (again.status, again.code) == (409, "first_key_not_due")
    assert billing.sync()["first_key_available"] is False
    assert answer.body["key"] not in json.dumps(billing.table.items())


def test_a_plan_that_issues_no_key_has_none_due(billing: BillingFunction) -> None:
    assert billing.subscribe("team")["first_key_available"] is False
    assert billing.ask("POST", "/billing/first-key").code == "first_key_not_due"


def test_a_first_key_that_cannot_be_made_stays_due(billing: BillingFunction) -> None:
    subscribe_without_trial(billing)
    keys, account = billing.app.api.tools.keys, billing.account()
    made = [keys.create(account, KeyWish(f"key {number}")) for number in range(10)]
    refused = billing.ask("POST", "/billing/first-key")
    assert (refused.status, refused.code) == (403, "api_key_limit_reached")
    assert billing.status()["first_key_available"] is True
    keys.revoke(Principal("main", billing.ada, CredentialKind.ACCESS_TOKEN, "x"), made[0].key.id)
    assert billing.ask("POST", "/billing/first-key").status == 201


# --- What a client says of itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoof",
    [
        {"customer": "cus_of_eve"},
        {"customer_id": "cus_of_eve"},
        {"user_id": "eve-1"},
        {"tenant_id": "other"},
        {"metadata": {"tollgate_plan": "team"}},
        {"price": "price_1"},
        {"trial_days": 700},
        {"amount_cents": 1},
        {"coupon": "free"},
        {"quantity": 100},
    ],
)
def test_fields_that_nobody_asked_for_are_refused_and_change_nothing(
    billing: BillingFunction, spoof: dict[str, Any]
) -> None:
    for path, body in (
        ("/billing/checkout", {"plan": "pro", "success_url": RETURN_URL, "cancel_url": RETURN_URL}),
        ("/billing/portal", {"return_url": RETURN_URL}),
        ("/billing/change-plan", {"plan": "team"}),
        ("/billing/overage", {"enabled": True}),
    ):
        answer = billing.ask("POST", path, body | spoof)
        assert (answer.status, answer.code) == (400, "invalid_field")
        assert next(iter(spoof)) in answer.body["error"]["message"]
    assert billing.wire.asked == []


def test_a_plan_that_the_operator_gave_is_nothing_to_change_but_can_be_left_for_a_sold_one(
    billing: BillingFunction,
) -> None:
    anchor_at = datetime.fromisoformat("2026-11-01T00:00:00Z")
    Users(billing.table).create_profile(Profile("main", billing.ada, "gift", 1, anchor_at))
    assert billing.status()["plan"]["id"] == "gift"
    assert billing.change("team").code == "not_subscribed"
    assert billing.subscribe("team")["plan"]["id"] == "team"


def test_no_answer_and_no_log_line_holds_a_key_or_a_customer(
    billing: BillingFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        billing.order("team").raw,
        billing.ask("POST", "/billing/portal", {"return_url": RETURN_URL}).raw,
        json.dumps(billing.status()),
        billing.change("pro").raw,
    ]
    said = capsys.readouterr()
    for text in (*answers, said.out, said.err):
        assert "sk_test" not in text
        assert "cus_" not in text
