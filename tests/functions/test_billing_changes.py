"""functions/billing: another plan, at once or when the paid period is over; what it costs is Stripe's own reckoning."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import Any

import pytest

from tests.support.billing_function import RETURN_URL, BillingFunction, billing_function

numbers = count(1)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BillingFunction]:
    with billing_function(tmp_path_factory.mktemp("catalog")) as function:
        yield function


@pytest.fixture
def billing(container: BillingFunction) -> BillingFunction:
    """A warm container, and two users whom it has not seen."""
    return container.of_new_users(next(numbers))


def on_pro(billing: BillingFunction, interval: str = "month") -> Any:  # noqa: ANN401  the status
    """Paid, without the trial that was had before."""
    billing.subscribe("pro")
    [subscription] = billing.subscriptions_alive()
    billing.api().v1.subscriptions.cancel(subscription["id"])
    billing.sync()
    return billing.subscribe("pro", interval)


def changed(billing: BillingFunction, plan: str, interval: str | None = None) -> Any:  # noqa: ANN401
    answer = billing.change(plan, interval)
    assert answer.status == 200, answer.raw
    return answer.body


# --- Dearer: at once ------------------------------------------------------------------------------------------------


def test_a_dearer_plan_is_there_at_the_very_next_look_and_paid_at_once(billing: BillingFunction) -> None:
    on_pro(billing)
    before = len(billing.of_customer("invoice"))
    body = changed(billing, "team")
    assert (body["effect"], body["plan"], body["interval"]) == ("now", "team", "month")
    assert (body["effective_at"], body["payment_url"]) == (None, None)
    assert billing.account().plan.id == "team"
    status = billing.status()
    assert (status["plan"]["id"], status["tokens"]["quota"]) == ("team", 10_000_000)
    assert len(billing.of_customer("invoice")) == before + 1
    [subscription] = billing.subscriptions_alive()
    assert len(subscription["items"]["data"]) == 2  # its price in the place of the other, and that of overage


def test_the_preview_tells_what_is_charged_and_changes_nothing(billing: BillingFunction) -> None:
    on_pro(billing)
    answer = billing.change("team", preview=True).body
    assert (answer["preview"], answer["effect"]) == (True, "now")
    assert answer["each_period"]["amount_cents"] == 9900
    assert sum(line["amount_cents"] for line in answer["due_now"]["lines"]) == answer["due_now"]["amount_cents"]
    assert {line["amount_cents"] < 0 for line in answer["due_now"]["lines"]} == {True, False}  # a credit and a charge
    assert billing.status()["plan"]["id"] == "pro"

    changed(billing, "team")
    latest = max(billing.of_customer("invoice"), key=lambda invoice: (invoice["created"], invoice["number"] or ""))
    # Stripe reckons by the second.
    assert abs(latest["total"] - answer["due_now"]["amount_cents"]) <= 1


def test_from_months_to_a_year_is_at_once_and_starts_anew(billing: BillingFunction) -> None:
    on_pro(billing)
    answer = billing.change("pro", "year", preview=True).body
    assert (answer["effect"], answer["interval"], answer["each_period"]["amount_cents"]) == ("now", "year", 29_000)
    body = changed(billing, "pro", "year")
    assert body["effect"] == "now"
    subscription = billing.status()["subscription"]
    assert subscription["interval"] == "year"
    assert (datetime.fromisoformat(subscription["renews_at"]) - datetime.now().astimezone()).days >= 364


def test_while_one_request_changes_the_plan_another_is_told_to_wait(billing: BillingFunction) -> None:
    """Each would begin a usage period of its own, and the second would cost nothing."""
    on_pro(billing)
    invoices = len(billing.of_customer("invoice"))
    subscriptions = billing.app.api.tools.subscriptions
    assert subscriptions.take_turn("main", billing.ada, "another", datetime.now().astimezone())
    answer = billing.change("team")
    assert (answer.status, answer.code) == (409, "conflict")
    assert billing.change("team", preview=True).status == 200
    assert len(billing.of_customer("invoice")) == invoices
    assert subscriptions.give_back_turn("main", billing.ada, "another")
    assert changed(billing, "team")["effect"] == "now"
    assert billing.subscriber().changer is None


def test_asking_again_for_what_is_so_already_changes_and_costs_nothing(billing: BillingFunction) -> None:
    on_pro(billing)
    changed(billing, "team")
    invoices = len(billing.of_customer("invoice"))
    assert changed(billing, "team")["effect"] == "none"
    assert billing.change("team", preview=True).body["due_now"] is None
    assert len(billing.of_customer("invoice")) == invoices


def test_a_change_whose_payment_fails_changes_nothing_until_it_is_paid(billing: BillingFunction) -> None:
    on_pro(billing)
    customer_id = billing.subscriber().customer_id or ""
    billing.world.fail_payments(customer_id, True)
    body = changed(billing, "team")
    assert body["effect"] == "now"
    assert body["payment_url"].startswith("https://")
    assert billing.status()["plan"]["id"] == "pro"
    assert billing.account().plan.id == "pro"

    billing.world.fail_payments(customer_id, False)
    [owed] = [invoice for invoice in billing.of_customer("invoice") if invoice["status"] == "open"]
    assert owed["hosted_invoice_url"] == body["payment_url"]
    billing.api().v1.invoices.pay(owed["id"])
    assert billing.sync()["plan"]["id"] == "team"


def test_a_dearer_plan_takes_the_end_back_that_was_to_come(billing: BillingFunction) -> None:
    on_pro(billing)
    changed(billing, "free")
    assert billing.status()["subscription"]["ends_at"] is not None
    changed(billing, "team")
    status = billing.status()
    assert (status["plan"]["id"], status["subscription"]["ends_at"]) == ("team", None)


# --- Cheaper: when the paid period is over --------------------------------------------------------------------------


def test_a_cheaper_plan_waits_for_the_end_of_what_is_paid(billing: BillingFunction) -> None:
    ends_at = billing.subscribe("team")["subscription"]["renews_at"]
    preview = billing.change("pro", preview=True).body
    assert (preview["effect"], preview["effective_at"], preview["due_now"]) == ("at_period_end", ends_at, None)
    assert preview["each_period"]["amount_cents"] == 2900
    assert billing.status()["subscription"]["pending_change"] is None

    body = changed(billing, "pro")
    assert (body["effect"], body["effective_at"]) == ("at_period_end", ends_at)
    status = billing.status()
    assert status["plan"]["id"] == "team"
    assert status["subscription"]["pending_change"] == {"plan": "pro", "at": ends_at}
    assert status["tokens"]["quota"] == 10_000_000


def test_changing_back_forgets_the_change_that_was_to_come(billing: BillingFunction) -> None:
    billing.subscribe("team")
    changed(billing, "pro")
    assert changed(billing, "team")["effect"] == "keep"
    status = billing.status()
    assert (status["plan"]["id"], status["subscription"]["pending_change"]) == ("team", None)
    assert changed(billing, "team")["effect"] == "none"


def test_the_last_word_about_what_is_to_come_counts(billing: BillingFunction) -> None:
    """Pro by the year, then Pro by the month, then nothing any more, then Pro again."""
    billing.subscribe("team", "year")
    for plan, interval, ends in (
        ("pro", "year", False),
        ("team", "month", False),
        ("free", None, True),
        ("pro", "month", False),
    ):
        assert changed(billing, plan, interval)["effect"] == "at_period_end"
        subscription = billing.status()["subscription"]
        pending = subscription["pending_change"]
        assert (None if pending is None else pending["plan"]) == (None if ends else plan)
        assert (subscription["ends_at"] is not None) is ends
    assert len(billing.subscriptions_alive()) == 1


def test_from_a_year_to_months_waits_for_the_years_end(billing: BillingFunction) -> None:
    billing.subscribe("team", "year")
    body = changed(billing, "team", "month")
    assert body["effect"] == "at_period_end"
    assert (datetime.fromisoformat(body["effective_at"]) - datetime.now().astimezone()).days >= 364


def test_a_dearer_plan_forgets_the_cheaper_one_that_was_to_come(billing: BillingFunction) -> None:
    on_pro(billing, "year")
    changed(billing, "pro", "month")
    changed(billing, "team", "year")
    status = billing.status()
    assert (status["plan"]["id"], status["subscription"]["pending_change"]) == ("team", None)
    assert status["subscription"]["interval"] == "year"


def test_the_interval_stays_when_none_is_named(billing: BillingFunction) -> None:
    on_pro(billing, "year")
    assert changed(billing, "team")["interval"] == "year"


# --- Nothing any more -----------------------------------------------------------------------------------------------


def test_the_default_plan_ends_what_is_paid_for_when_it_is_paid_up(billing: BillingFunction) -> None:
    ends_at = billing.subscribe("team")["subscription"]["renews_at"]
    preview = billing.change("free", preview=True).body
    assert (preview["effect"], preview["effective_at"]) == ("at_period_end", ends_at)
    assert (preview["due_now"], preview["each_period"]) == (None, None)
    assert changed(billing, "free")["effect"] == "at_period_end"
    status = billing.status()
    assert (status["plan"]["id"], status["subscription"]["ends_at"]) == ("team", ends_at)
    assert status["subscription"]["renews_at"] is None
    assert changed(billing, "free")["effect"] == "none"
    assert changed(billing, "team")["effect"] == "keep"
    assert billing.status()["subscription"]["ends_at"] is None


# --- Trials ---------------------------------------------------------------------------------------------------------


def test_in_a_trial_a_plan_without_one_is_paid_at_once(billing: BillingFunction) -> None:
    billing.subscribe("pro")
    assert billing.change("team", preview=True).body["due_now"]["amount_cents"] == 9900
    changed(billing, "team")
    status = billing.status()
    assert (status["plan"]["id"], status["subscription"]["state"]) == ("team", "active")
    assert status["tokens"]["quota"] == 10_000_000


def test_in_a_trial_the_same_plan_by_the_year_costs_nothing_yet(billing: BillingFunction) -> None:
    trial_ends_at = billing.subscribe("pro")["subscription"]["trial_ends_at"]
    changed(billing, "pro", "year")
    subscription = billing.status()["subscription"]
    assert (subscription["state"], subscription["interval"]) == ("trialing", "year")
    assert subscription["trial_ends_at"] == trial_ends_at
    assert sum(invoice["total"] for invoice in billing.of_customer("invoice")) == 0


def test_a_trial_that_is_given_up_ends_without_a_payment(billing: BillingFunction) -> None:
    trial_ends_at = billing.subscribe("pro")["subscription"]["trial_ends_at"]
    body = changed(billing, "free")
    assert (body["effect"], body["effective_at"]) == ("at_period_end", trial_ends_at)
    assert billing.status()["subscription"]["ends_at"] == trial_ends_at


# --- Refused --------------------------------------------------------------------------------------------------------


def test_without_a_subscription_there_is_nothing_to_change(billing: BillingFunction) -> None:
    for preview in (True, False):
        answer = billing.change("team", preview=preview)
        assert (answer.status, answer.code) == (409, "not_subscribed")
        assert "/billing/checkout" in answer.body["error"]["message"]


@pytest.mark.parametrize(("plan", "interval"), [("gift", None), ("nosuch", None), ("gift", "year")])
def test_what_is_not_sold_cannot_be_changed_to(billing: BillingFunction, plan: str, interval: str | None) -> None:
    billing.subscribe("team")
    answer = billing.change(plan, interval)
    assert (answer.status, answer.code) == (404, "plan_not_sold")
    assert billing.status()["plan"]["id"] == "team"


@pytest.mark.parametrize("body", [{}, {"plan": "Team"}, {"plan": "team", "interval": "week"}, {"plan": "team;"}])
def test_a_wish_that_is_malformed_is_refused_by_field(billing: BillingFunction, body: dict[str, str]) -> None:
    answer = billing.ask("POST", "/billing/change-plan", body)
    assert (answer.status, answer.headers["x-should-retry"]) == (400, "false")


def test_changes_go_through_our_own_route_because_the_portal_offers_none(billing: BillingFunction) -> None:
    """Stripe's portal cannot switch a subscription that has a metered price."""
    billing.subscribe("team")
    billing.ask("POST", "/billing/portal", {"return_url": RETURN_URL})
    [configuration] = billing.world.all("billing_portal.configuration")
    assert configuration["features"]["subscription_update"]["enabled"] is False
