"""functions/billing when time passes: trials end, paid periods end, payments fail. Each test has a Stripe of its own.

Only Stripe's clock moves here; the function's own is the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dev.stripe_double.faults import Fault
from tests.support.billing_function import RETURN_URL, BillingFunction, billing_function

MONTH = timedelta(days=31, hours=2)


@pytest.fixture
def billing(tmp_path: Path) -> Iterator[BillingFunction]:
    with billing_function(tmp_path) as function:
        yield function


def test_a_plan_may_begin_with_a_trial_of_a_smaller_quota_and_no_overage(billing: BillingFunction) -> None:
    status = billing.subscribe("pro")
    assert (status["subscription"]["state"], status["tokens"]["quota"]) == ("trialing", 200_000)
    ends_at = datetime.fromisoformat(status["subscription"]["trial_ends_at"])
    assert timedelta(days=13, hours=23) < ends_at - datetime.now().astimezone() <= timedelta(days=14)
    billing.ask("POST", "/billing/overage", {"enabled": True})
    assert billing.status()["overage"]["allowed"] is False

    billing.pass_time(timedelta(days=14, hours=2))
    assert (billing.sync()["subscription"]["state"], billing.status()["tokens"]["quota"]) == ("active", 2_000_000)
    assert billing.status()["overage"]["allowed"] is True  # as was chosen


def test_a_trial_that_never_pays_stays_one_and_a_payment_gives_the_plan(billing: BillingFunction) -> None:
    ends_at = datetime.fromisoformat(billing.subscribe("pro")["subscription"]["trial_ends_at"])
    billing.ask("POST", "/billing/overage", {"enabled": True})
    billing.world.fail_payments(billing.subscriber().customer_id or "")
    for seconds, state in ((-1, "trialing"), (0, "active"), (1, "active"), (20 * 60, "active"), (7200, "past_due")):
        billing.pass_time(ends_at + timedelta(seconds=seconds) - billing.world.now)
        status = billing.sync()
        assert (status["subscription"]["state"], status["plan"]["id"]) == (state, "pro"), seconds
        assert (status["tokens"]["quota"], status["overage"]["allowed"]) == (200_000, False), seconds
        assert status["first_key_available"] is False

    billing.world.fail_payments(billing.subscriber().customer_id or "", on=False)
    [invoice] = [one for one in billing.of_customer("invoice") if one["status"] == "open"]
    billing.api().v1.invoices.pay(invoice["id"])
    status = billing.sync()
    assert (status["subscription"]["state"], status["tokens"]["quota"]) == ("active", 2_000_000)
    assert (status["overage"]["allowed"], status["first_key_available"]) == (True, True)


def test_a_trial_whose_first_month_a_coupon_pays_is_over(billing: BillingFunction) -> None:
    client = billing.api()
    coupon = client.v1.coupons.create({"percent_off": 100, "duration": "forever"})
    client.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon["id"]}, "code": "ALL"})
    billing.world.complete_checkout(billing.checkout("pro", promotion="ALL"))
    assert billing.sync()["tokens"]["quota"] == 200_000
    billing.pass_time(timedelta(days=14, hours=2))
    status = billing.sync()
    assert (status["subscription"]["state"], status["tokens"]["quota"]) == ("active", 2_000_000)
    assert sum(one["amount_paid"] for one in billing.of_customer("invoice")) == 0


def test_a_checkout_that_ran_out_makes_room_for_another(billing: BillingFunction) -> None:
    first = billing.checkout("team")
    billing.pass_time(timedelta(hours=3))
    # Stripe's clock is ahead of ours here, so the record still says that the checkout is open.
    assert billing.world.find(first)["status"] == "expired"
    second = billing.order("team")
    assert second.status in {201, 503}, second.raw


def test_without_a_list_nothing_is_sold(tmp_path: Path) -> None:
    with billing_function(tmp_path, BILLING_RETURN_URLS="") as billing:
        assert billing.order("team").code == "return_url_not_allowed"


def test_invoices_are_paged_newest_first(billing: BillingFunction) -> None:
    assert billing.ask("GET", "/billing/invoices").body == {"data": [], "has_more": False, "last_id": None}
    billing.subscribe("team")
    billing.pass_time(timedelta(days=70))
    first = billing.ask("GET", "/billing/invoices", query={"limit": "2"}).body
    assert (len(first["data"]), first["has_more"], first["last_id"]) == (2, True, first["data"][1]["id"])
    rest = billing.ask("GET", "/billing/invoices", query={"limit": "2", "after": first["last_id"]}).body
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    shown = [*first["data"], *rest["data"]]
    assert [invoice["created_at"] for invoice in shown] == sorted(
        (invoice["created_at"] for invoice in shown), reverse=True
    )
    assert {(invoice["state"], invoice["total_cents"], invoice["due_cents"]) for invoice in shown} == {
        ("paid", 9900, 0)
    }


# --- A dearer plan begins anew --------------------------------------------------------------------------------------

HOUR = timedelta(hours=1)


def paid_pro(billing: BillingFunction) -> None:
    """Without the trial, which was had before."""
    billing.subscribe("pro")
    [subscription] = billing.subscriptions_alive()
    billing.api().v1.subscriptions.cancel(subscription["id"])
    billing.sync()
    billing.subscribe("pro")


def test_an_hour_before_the_renewal_a_dearer_plan_costs_its_price_and_not_an_hours_share(
    billing: BillingFunction,
) -> None:
    """Else ten cents would buy eight million tokens, every month again."""
    paid_pro(billing)
    ends_at = datetime.fromisoformat(billing.status()["subscription"]["renews_at"])
    billing.pass_time(ends_at - HOUR - billing.world.now)
    preview = billing.change("team", preview=True).body
    assert preview["due_now"]["amount_cents"] == 9900 - 4  # an hour of Pro is left
    assert billing.change("team").body["effect"] == "now"
    status = billing.status()
    assert (status["plan"]["id"], status["tokens"]["used"]) == ("team", 0)
    assert datetime.fromisoformat(status["subscription"]["renews_at"]) - billing.world.now > timedelta(days=27)
    assert max(invoice["total"] for invoice in billing.of_customer("invoice")) == 9900 - 4

    billing.change("pro")
    billing.pass_time(3 * HOUR)
    assert billing.sync()["plan"]["id"] == "team"


def test_what_was_used_before_a_dearer_plan_stays_in_the_period_that_ended(billing: BillingFunction) -> None:
    paid_pro(billing)
    billing.use(1_500_000)
    billing.pass_time(HOUR)
    billing.change("team")
    # Stripe's clock is ahead of ours here: we look at the period before the new one until ours is there, too.
    assert billing.account().profile.anchor_at == billing.world.now
    assert billing.account().plan.quota_tokens == 10_000_000


def test_overage_so_far_is_on_the_invoice_of_the_dearer_plan(tmp_path: Path) -> None:
    with billing_function(tmp_path, behind=2 * HOUR) as billing:
        paid_pro(billing)
        billing.ask("POST", "/billing/overage", {"enabled": True})
        billing.pass_time(2 * HOUR)
        billing.use(2_100_000)
        assert billing.status()["overage"]["cost_cents"] == 200
        assert billing.change("team").body["effect"] == "now"
        latest = max(billing.of_customer("invoice"), key=lambda invoice: int(invoice["created"]))
        lines = [line["amount"] for line in latest["lines"]["data"]]
        assert 200 in lines
        assert 9900 in lines
        billing.use(10)
        status = billing.status()
        assert (status["tokens"]["used"], status["overage"]["cost_cents"]) == (10, 0)


def test_a_dearer_plan_comes_also_when_overage_cannot_be_told(tmp_path: Path) -> None:
    """It stays owed."""
    with billing_function(tmp_path, behind=2 * HOUR) as billing:
        paid_pro(billing)
        billing.ask("POST", "/billing/overage", {"enabled": True})
        billing.pass_time(2 * HOUR)
        billing.use(2_100_000)
        billing.wire.faults = refuses_meter_events
        assert billing.change("team").body["effect"] == "now"
        assert billing.status()["plan"]["id"] == "team"
        assert ("POST", "/v1/billing/meter_events") in billing.wire.asked


def refuses_meter_events(method: str, path: str) -> Fault | None:
    return Fault.ERROR_BEFORE if path.startswith("/v1/billing/meter_events") and method == "POST" else None


def test_where_the_card_is_declined_the_cheaper_plan_still_comes(billing: BillingFunction) -> None:
    billing.subscribe("team")
    assert billing.change("pro").body["effect"] == "at_period_end"
    coming = billing.status()["subscription"]["pending_change"]
    billing.world.fail_payments(billing.subscriber().customer_id or "", True)
    answer = billing.change("team", "year")
    assert (answer.status, answer.code) == (402, "payment_failed")
    assert billing.sync()["subscription"]["pending_change"] == coming
    assert billing.change("pro").status == 200

    billing.world.fail_payments(billing.subscriber().customer_id or "", False)
    billing.pass_time(MONTH)
    status = billing.sync()
    assert (status["plan"]["id"], status["subscription"]["interval"]) == ("pro", "month")
    assert [invoice["total"] for invoice in billing.of_customer("invoice") if invoice["status"] == "paid"] == [
        9900,
        2900,
    ]


# --- Paid periods end -----------------------------------------------------------------------------------------------


def test_the_cheaper_plan_comes_when_the_paid_period_is_over(billing: BillingFunction) -> None:
    billing.subscribe("team")
    assert billing.change("pro").body["effect"] == "at_period_end"
    billing.pass_time(MONTH)
    status = billing.sync()
    assert (status["plan"]["id"], status["subscription"]["state"]) == ("pro", "active")
    assert status["subscription"]["pending_change"] is None
    assert [invoice["total"] for invoice in billing.of_customer("invoice")] == [9900, 2900]


def test_after_a_cheaper_plan_has_come_another_one_can_be_put_in_its_place(billing: BillingFunction) -> None:
    """The schedule of the first change is still there, in its last phase, for a period."""
    billing.subscribe("team", "year")
    billing.change("team", "month")
    billing.pass_time(timedelta(days=366))
    ends_at = billing.sync()["subscription"]["renews_at"]
    assert billing.change("pro").status == 200
    subscription = billing.status()["subscription"]
    assert (subscription["plan"], subscription["interval"]) == ("team", "month")
    assert subscription["pending_change"] == {"plan": "pro", "at": ends_at}
    billing.pass_time(MONTH)
    assert billing.sync()["plan"]["id"] == "pro"
    # Between them are those of the overage price, a month each, for nothing.
    assert [invoice["total"] for invoice in billing.of_customer("invoice") if invoice["total"]] == [99000, 9900, 2900]


def test_what_the_portal_ends_does_not_become_a_cheaper_plan(billing: BillingFunction) -> None:
    billing.subscribe("team")
    billing.change("pro")
    billing.cancel_in_portal()
    subscription = billing.sync()["subscription"]
    assert (subscription["pending_change"], subscription["renews_at"]) == (None, None)
    billing.pass_time(datetime.fromisoformat(subscription["ends_at"]) - billing.world.now + timedelta(hours=2))
    assert billing.sync()["subscription"]["state"] == "canceled"


@pytest.mark.parametrize(("wish", "effect"), [("pro", "at_period_end"), ("team", "keep"), ("free", "none")])
def test_after_an_end_in_the_portal_any_wish_is_heard(billing: BillingFunction, wish: str, effect: str) -> None:
    billing.subscribe("team")
    billing.change("pro")
    billing.cancel_in_portal()
    assert billing.change(wish).body["effect"] == effect
    billing.pass_time(MONTH)
    assert billing.sync()["plan"]["id"] == wish


def test_a_change_that_was_forgotten_does_not_come(billing: BillingFunction) -> None:
    billing.subscribe("team")
    billing.change("pro")
    billing.change("team")
    billing.pass_time(MONTH)
    assert billing.sync()["plan"]["id"] == "team"


def test_what_is_given_up_ends_with_what_is_paid_for(billing: BillingFunction) -> None:
    billing.subscribe("team")
    billing.change("free")
    billing.pass_time(MONTH)
    status = billing.sync()
    assert (status["plan"]["id"], status["subscription"]["state"]) == ("free", "canceled")
    assert (status["subscription"]["ends_at"], status["subscription"]["renews_at"]) == (None, None)


# --- A payment fails ------------------------------------------------------------------------------------------------


def test_who_owes_a_payment_pays_it_before_anything_else_is_bought(billing: BillingFunction) -> None:
    billing.subscribe("team")
    billing.world.fail_payments(billing.subscriber().customer_id or "", True)
    billing.pass_time(MONTH)
    status = billing.sync()
    assert status["subscription"]["state"] == "past_due"
    assert status["plan"]["id"] == "team"  # the grace
    assert status["overage"]["allowed"] is False
    grace = datetime.fromisoformat(status["subscription"]["grace_ends_at"]) - billing.world.now
    assert timedelta(days=5) < grace <= timedelta(days=7)
    for answer in (billing.change("pro"), billing.change("team", "year", preview=True)):
        assert (answer.status, answer.code) == (409, "subscription_not_active")
        assert "/billing/portal" in answer.body["error"]["message"]
    assert billing.order("team").code == "already_subscribed"
    assert billing.ask("POST", "/billing/portal", {"return_url": RETURN_URL}).status == 201
    assert billing.change("free").body["effect"] == "at_period_end"
