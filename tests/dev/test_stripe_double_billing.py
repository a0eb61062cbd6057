"""A subscription of the double lives as one of Stripe's does: paid, metered, changed, past due, ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from dev.stripe_double.periods import boundary, prorated, shared_out
from dev.stripe_double.world import Dunning
from tests.dev.stripe_account import DAY, HOUR, NOW, Account, Thing


@pytest.fixture
def account() -> Iterator[Account]:
    made = Account()
    yield made
    assert made.faults() == [], "every object and event is of the pinned version"


def end_of(account: Account, subscription: str, plan: str = "pro") -> int:
    return int(account.item(subscription, plan)["current_period_end"])


# Checkout


def test_a_completed_checkout_makes_an_active_subscription_and_a_paid_invoice(account: Account) -> None:
    session = account.session(client_reference_id="user-1", metadata={"a": "b"})
    account.world.complete_checkout(session.id)
    found = account.api.v1.checkout.sessions.retrieve(session.id, {"expand": ["line_items", "subscription"]})
    assert (found.status, found.payment_status, found.client_reference_id) == ("complete", "paid", "user-1")
    assert found.url is None
    subscription: Any = found.subscription
    assert subscription.status == "active"
    assert [line.price.id for line in found.line_items.data] == [account.prices["pro"], account.prices["overage"]]  # type: ignore[union-attr]
    assert [(one["status"], one["total"], one["billing_reason"]) for one in account.invoices()] == [
        ("paid", 2900, "subscription_create")
    ]
    events = account.happened()
    assert events.index("customer.subscription.created") < events.index("invoice.paid")
    assert events[-1] == "checkout.session.completed"


def test_a_declined_card_leaves_the_session_open_and_makes_nothing(account: Account) -> None:
    session = account.session()
    assert account.world.complete_checkout(session.id, "declined")["status"] == "open"
    assert account.world.all("subscription") == []
    account.world.complete_checkout(session.id)
    assert [one["status"] for one in account.world.all("subscription")] == ["active"]


def test_a_payment_that_wants_3d_secure_is_incomplete_until_it_is_confirmed(account: Account) -> None:
    session = account.session()
    account.world.complete_checkout(session.id, "requires_action")
    assert [one["status"] for one in account.world.all("subscription")] == ["incomplete"]
    assert "invoice.payment_action_required" in account.happened()
    account.world.complete_checkout(session.id)
    assert [one["status"] for one in account.world.all("subscription")] == ["active"]


@pytest.mark.parametrize(("paid", "status", "event"), [(True, "active", "succeeded"), (False, "past_due", "failed")])
def test_a_bank_debit_is_trusted_until_the_bank_speaks(account: Account, paid: bool, status: str, event: str) -> None:
    session = account.session()
    done = account.world.complete_checkout(session.id, "delayed")
    assert (done["status"], done["payment_status"]) == ("complete", "unpaid")
    assert account.world.all("subscription")[0]["status"] == "active"
    account.wait(3 * DAY)
    account.world.settle_delayed(session.id, paid=paid)
    assert account.world.all("subscription")[0]["status"] == status
    assert f"checkout.session.async_payment_{event}" in account.happened()


def test_a_first_payment_that_never_comes_expires_the_subscription_after_23_hours(account: Account) -> None:
    session = account.session()
    account.world.complete_checkout(session.id, "requires_action")
    account.wait(23 * HOUR - timedelta(seconds=1))
    assert account.world.all("subscription")[0]["status"] == "incomplete"
    account.wait(timedelta(seconds=1))
    assert account.world.all("subscription")[0]["status"] == "incomplete_expired"
    assert account.invoices()[0]["status"] == "void"


def test_a_session_expires_by_itself_or_when_it_is_told_to_and_cannot_be_paid_then(account: Account) -> None:
    forgotten, closed = account.session(), account.session()
    account.api.v1.checkout.sessions.expire(closed.id)
    account.wait(DAY)
    for session in (forgotten, closed):
        assert account.world.find(session.id)["status"] == "expired"
        with pytest.raises(Exception, match="expired"):
            account.world.complete_checkout(session.id)
    with pytest.raises(stripe.InvalidRequestError, match="Only Checkout Sessions"):
        account.api.v1.checkout.sessions.expire(closed.id)
    assert account.happened().count("checkout.session.expired") == 2


def test_a_promotion_code_lowers_the_first_invoice_only(account: Account) -> None:
    coupon = account.api.v1.coupons.create({"percent_off": 25, "duration": "once"})
    account.api.v1.promotion_codes.create({"code": "AUTUMN", "promotion": {"type": "coupon", "coupon": coupon.id}})
    session = account.session(allow_promotion_codes=True)
    with pytest.raises(Exception, match="invalid"):
        account.world.complete_checkout(session.id, promotion_code="SPRING")
    account.world.complete_checkout(session.id, promotion_code="autumn")
    done = account.world.find(session.id)
    assert (done["amount_total"], done["total_details"]["amount_discount"]) == (2175, 725)
    account.wait(32 * DAY)
    assert [one["total"] for one in account.invoices()] == [2175, 2900]


# Renewals and usage


def test_a_renewal_is_a_draft_for_an_hour_and_takes_usage_reported_in_it(account: Account) -> None:
    subscription = account.subscribe()
    end = end_of(account, subscription)
    account.report(50_000)
    account.wait_until(end)
    draft = account.invoices()[-1]
    assert (draft["status"], draft["total"], draft["automatically_finalizes_at"]) == ("draft", 3400, end + 3600)
    account.report(70_000, at=datetime.fromtimestamp(end - 1, UTC))
    account.report(9, at=datetime.fromtimestamp(end, UTC))
    account.wait_until(end + 3599)
    assert account.invoices()[-1]["status"] == "draft"
    account.wait_until(end + 3600)
    final = account.invoices()[-1]
    assert (final["status"], account.amounts(final)) == ("paid", [2900, 700])
    details = final["lines"]["data"][1]["pricing"]["price_details"]
    assert details["price"] == account.prices["overage"]
    assert final["parent"]["subscription_details"]["subscription"] == subscription


@pytest.mark.parametrize(("last_by", "billed"), [("arrival", 1), ("timestamp", 2)])
def test_the_last_value_is_the_last_that_arrived_or_the_latest_by_its_timestamp(last_by: str, billed: int) -> None:
    account = Account(last_by=last_by)
    subscription = account.subscribe()
    account.wait(DAY)
    account.report(20_000, at=NOW + 2 * HOUR)
    account.report(10_000, at=NOW + HOUR)
    account.wait_until(end_of(account, subscription), 2 * HOUR)
    assert account.amounts(account.invoices()[-1]) == [2900, billed * 100]


def test_an_identifier_is_remembered_for_a_day(account: Account) -> None:
    account.subscribe()
    account.report(1, identifier="a")
    with pytest.raises(stripe.InvalidRequestError, match="An event already exists with identifier a") as refused:
        account.report(2, identifier="a")
    assert (refused.value.headers or {})["stripe-should-retry"] == "false"
    account.wait(DAY)
    account.report(2, identifier="a")


@pytest.mark.parametrize(
    ("offset", "taken"),
    [
        (-35 * DAY - timedelta(seconds=1), False),
        (-35 * DAY, True),
        (timedelta(seconds=300), True),
        (timedelta(seconds=301), False),
    ],
)
def test_usage_is_taken_from_35_days_ago_to_5_minutes_ahead(account: Account, offset: timedelta, taken: bool) -> None:
    if taken:
        account.report(1, at=NOW + offset)
    else:
        with pytest.raises(stripe.InvalidRequestError, match="timestamp must"):
            account.report(1, at=NOW + offset)


def test_one_call_at_a_time_for_a_customer_and_meter(account: Account) -> None:
    account.world.meters.busy[account.customer] = 1
    with pytest.raises(stripe.RateLimitError) as refused:
        account.report(1)
    body: Any = refused.value.json_body
    assert body["error"]["code"] == "lock_timeout"
    account.report(1)


def test_usage_of_an_unknown_customer_is_taken_and_reported_by_a_thin_event(account: Account) -> None:
    account.customer = "cus_nobody"
    account.report(5, identifier="lost")
    (event,) = account.world.take_events()
    told = account.world.deliver(event, "thin", at=datetime.now(UTC))
    notification = account.api.parse_event_notification(told.body, told.headers["Stripe-Signature"], "whsec_test")
    assert notification.type == "v1.billing.meter.error_report_triggered"
    errors = account.api.v2.core.events.retrieve(event["id"]).to_dict()["data"]["reason"]["error_types"]
    assert errors[0]["code"] == "meter_event_customer_not_found"
    assert errors[0]["sample_errors"][0]["request"]["identifier"] == "lost"


def test_summaries_are_of_whole_minutes(account: Account) -> None:
    account.report(7)
    start = int(NOW.timestamp()) // 60 * 60
    params: Any = {"customer": account.customer, "start_time": start, "end_time": start + 60}
    (row,) = account.api.v1.billing.meters.event_summaries.list(account.meter.id, params).data
    assert row.aggregated_value == 7.0
    params["end_time"] += 1
    with pytest.raises(stripe.InvalidRequestError, match="minute"):
        account.api.v1.billing.meters.event_summaries.list(account.meter.id, params)


def test_a_monthly_meter_runs_beside_an_annual_plan(account: Account) -> None:
    subscription = account.subscribe("pro_year")
    account.report(10_000)
    account.wait(40 * DAY)
    assert [(one["billing_reason"], one["total"]) for one in account.invoices()] == [
        ("subscription_create", 29000),
        ("subscription_cycle", 100),
    ]
    assert end_of(account, subscription, "pro_year") == boundary(int(NOW.timestamp()), _pace("year"), 1)
    assert end_of(account, subscription, "overage") == boundary(int(NOW.timestamp()), _pace("month"), 2)


# Plan changes


def test_an_upgrade_charges_the_difference_for_the_seconds_that_are_left(account: Account) -> None:
    subscription = account.subscribe()
    start, end = int(NOW.timestamp()), end_of(account, subscription)
    account.wait(10 * DAY + 5 * HOUR)
    left = end - (start + 10 * 86_400 + 5 * 3600)
    preview = account.api.v1.invoices.create_preview(_preview(account, subscription, "pro", "enterprise"))
    account.change(subscription, "pro", "enterprise")
    invoice = account.invoices()[-1]
    expected = [-prorated(2900, left, end - start), prorated(9900, left, end - start)]
    assert account.amounts(invoice) == expected == [line.amount for line in preview.lines.data]
    assert (invoice["status"], invoice["billing_reason"]) == ("paid", "subscription_update")
    assert preview.amount_due == invoice["amount_paid"] == sum(expected)
    assert end_of(account, subscription, "enterprise") == end, "the period goes on"


def test_a_preview_changes_nothing(account: Account) -> None:
    subscription = account.subscribe()
    account.wait(DAY)
    account.happened()
    before = account.subscription(subscription)
    account.api.v1.invoices.create_preview(_preview(account, subscription, "pro", "enterprise"))
    assert (account.subscription(subscription), account.happened(), len(account.invoices())) == (before, [], 1)


def test_a_preview_of_each_period_has_neither_credits_nor_usage(account: Account) -> None:
    subscription = account.subscribe()
    account.wait(3 * DAY)
    params = _preview(account, subscription, "pro", "pro_year") | {"preview_mode": "recurring"}
    assert [line.amount for line in account.api.v1.invoices.create_preview(params).lines.data] == [29000]


def test_another_interval_begins_new_periods_and_bills_usage_so_far(account: Account) -> None:
    subscription = account.subscribe()
    account.wait(10 * DAY)
    account.report(4_000)
    account.wait(HOUR)
    account.change(subscription, "pro", "pro_year")
    invoice = account.invoices()[-1]
    assert sorted(account.amounts(invoice))[1:] == [40, 29000]
    now = int(account.world.now.timestamp())
    assert account.subscription(subscription)["billing_cycle_anchor"] == now
    assert account.item(subscription, "overage")["current_period_start"] == now
    assert end_of(account, subscription, "pro_year") == boundary(now, _pace("year"), 1)


def test_a_change_whose_payment_fails_waits_for_it(account: Account) -> None:
    subscription = account.subscribe()
    account.wait(DAY)
    account.world.fail_payments(account.customer)
    found = account.change(subscription, "pro", "enterprise", payment_behavior="pending_if_incomplete")
    assert found.pending_update is not None
    assert (found.status, found["items"].data[0].price.id) == ("active", account.prices["pro"])
    account.world.fail_payments(account.customer, on=False)
    account.api.v1.invoices.pay(found.latest_invoice)
    after = account.subscription(subscription)
    assert (after["pending_update"], after["items"]["data"][0]["price"]["id"]) == (None, account.prices["enterprise"])
    assert "customer.subscription.pending_update_applied" in account.happened()


def test_a_change_that_waits_too_long_is_forgotten_and_its_invoice_void(account: Account) -> None:
    subscription = account.subscribe()
    account.world.fail_payments(account.customer)
    account.change(subscription, "pro", "enterprise", payment_behavior="pending_if_incomplete")
    account.wait(23 * HOUR)
    after = account.subscription(subscription)
    assert (after["pending_update"], after["items"]["data"][0]["price"]["id"]) == (None, account.prices["pro"])
    assert account.invoices()[-1]["status"] == "void"
    assert "customer.subscription.pending_update_expired" in account.happened()


def test_a_change_that_must_be_paid_is_refused_without_payment(account: Account) -> None:
    subscription = account.subscribe()
    account.wait(DAY)
    before = account.subscription(subscription)
    account.world.fail_payments(account.customer)
    with pytest.raises(stripe.CardError):
        account.change(subscription, "pro", "enterprise", payment_behavior="error_if_incomplete")
    assert account.subscription(subscription) == before


def test_prorations_wait_for_the_renewal_unless_they_are_invoiced_at_once(account: Account) -> None:
    subscription = account.subscribe()
    end = end_of(account, subscription)
    account.wait(10 * DAY)
    account.change(subscription, "pro", "enterprise", proration_behavior="create_prorations")
    assert len(account.invoices()) == 1
    account.wait_until(end, 2 * HOUR)
    credit, debit, plan, _ = account.amounts(account.invoices()[-1])
    assert credit < 0 < debit < plan == 9900


def test_what_a_downgrade_gives_back_pays_later_invoices(account: Account) -> None:
    subscription = account.subscribe("enterprise")
    account.wait(10 * DAY)
    account.change(subscription, "enterprise", "pro")
    refunded = account.invoices()[-1]
    assert refunded["total"] < 0
    assert (refunded["status"], refunded["amount_due"]) == ("paid", 0)
    assert account.world.find(account.customer)["balance"] == refunded["total"]
    account.wait(31 * DAY)
    renewal = account.invoices()[-1]
    assert renewal["amount_paid"] == max(0, 2900 + refunded["total"])


def test_a_schedule_changes_the_plan_at_the_period_s_end(account: Account) -> None:
    subscription = account.subscribe("enterprise")
    end = end_of(account, subscription, "enterprise")
    account.wait(3 * DAY)
    schedule = account.api.v1.subscription_schedules.create({"from_subscription": subscription})
    later: Any = {
        "items": [{"price": account.prices["pro"], "quantity": 1}, {"price": account.prices["overage"]}],
        "proration_behavior": "none",
    }
    phases: Any = [_running(schedule), later]
    account.api.v1.subscription_schedules.update(schedule.id, {"end_behavior": "release", "phases": phases})
    account.report(1_000)
    account.wait_until(end, 2 * HOUR)
    assert account.amounts(account.invoices()[-1]) == [2900, 10], "the new price, and the old period's usage"
    assert account.item(subscription, "pro")["current_period_start"] == end
    account.wait(31 * DAY)
    assert account.subscription(subscription)["schedule"] is None
    assert account.world.find(schedule.id)["status"] == "released"


def test_a_schedule_that_is_released_leaves_everything_as_it_is(account: Account) -> None:
    subscription = account.subscribe("enterprise")
    schedule = account.api.v1.subscription_schedules.create({"from_subscription": subscription})
    with pytest.raises(stripe.InvalidRequestError, match="managed by the subscription schedule"):
        account.api.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    account.api.v1.subscription_schedules.release(schedule.id)
    account.api.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    with pytest.raises(stripe.InvalidRequestError, match="released"):
        account.api.v1.subscription_schedules.release(schedule.id)


# Trials


def test_a_trial_is_free_warned_of_three_days_before_its_end_and_then_paid(account: Account) -> None:
    subscription = account.subscribe(subscription_data={"trial_period_days": 14})
    assert account.subscription(subscription)["status"] == "trialing"
    assert [one["total"] for one in account.invoices()] == [0]
    account.happened()
    account.wait(11 * DAY)
    assert account.happened() == ["customer.subscription.trial_will_end"]
    account.report(500)
    account.wait(3 * DAY + 2 * HOUR)
    after = account.subscription(subscription)
    assert (after["status"], after["billing_cycle_anchor"]) == ("active", after["trial_end"])
    assert [one["total"] for one in account.invoices()] == [0, 2900], "usage in the trial costs nothing"


@pytest.mark.parametrize(
    ("behaviour", "status"), [("cancel", "canceled"), ("pause", "paused"), ("create_invoice", "past_due")]
)
def test_a_trial_without_a_card_ends_as_it_was_told_to(account: Account, behaviour: str, status: str) -> None:
    data = {"trial_period_days": 3, "trial_settings": {"end_behavior": {"missing_payment_method": behaviour}}}
    more: Any = {"payment_method_collection": "if_required", "subscription_data": data}
    subscription = account.subscribe(card="none", **more)
    account.wait(3 * DAY + 2 * HOUR)
    assert account.subscription(subscription)["status"] == status


def test_a_trial_can_be_ended_by_a_change_which_is_paid_at_once(account: Account) -> None:
    subscription = account.subscribe(subscription_data={"trial_period_days": 14})
    account.wait(DAY)
    found = account.change(subscription, "pro", "enterprise", trial_end="now")
    assert (found.status, account.invoices()[-1]["amount_paid"]) == ("active", 9900)
    now = int(account.world.now.timestamp())
    assert found["items"].data[0].current_period_end == boundary(now, _pace("month"), 1)


# Failures and ends


@pytest.mark.parametrize("outcome", ["canceled", "unpaid", "past_due", "paused"])
def test_a_renewal_that_is_never_paid_is_tried_four_times(account: Account, outcome: str) -> None:
    account.world.invoices.dunning = Dunning(outcome=outcome)
    subscription = account.subscribe()
    account.world.fail_payments(account.customer)
    account.wait_until(end_of(account, subscription), 2 * HOUR)
    assert account.subscription(subscription)["status"] == "past_due"
    account.wait(15 * DAY - timedelta(seconds=2))
    account.wait(2 * HOUR)
    invoice = account.invoices()[-1]
    assert (invoice["attempt_count"], invoice["next_payment_attempt"]) == (4, None)
    found = account.subscription(subscription)
    assert found["status"] == outcome
    if outcome == "paused":
        assert found["status_details"]["paused"]["subscription"]["type"] == "final_payment_failure"


def test_a_late_payment_makes_the_subscription_active_again(account: Account) -> None:
    subscription = account.subscribe()
    account.world.fail_payments(account.customer)
    account.wait_until(end_of(account, subscription), 2 * HOUR)
    account.world.fail_payments(account.customer, on=False)
    account.wait(3 * DAY)
    assert account.subscription(subscription)["status"] == "active"
    assert account.invoices()[-1]["status"] == "paid"


def test_a_cancellation_at_the_period_s_end_bills_the_last_usage(account: Account) -> None:
    subscription = account.subscribe()
    account.api.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    end = end_of(account, subscription)
    account.report(2_000)
    account.wait_until(end, -timedelta(seconds=1))
    assert account.subscription(subscription)["status"] == "active"
    account.wait_until(end, 2 * HOUR)
    found = account.subscription(subscription)
    assert (found["status"], found["ended_at"]) == ("canceled", end)
    assert account.amounts(account.invoices()[-1]) == [20]


def test_a_cancellation_can_be_taken_back(account: Account) -> None:
    subscription = account.subscribe()
    account.api.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    account.api.v1.subscriptions.update(subscription, {"cancel_at_period_end": False})
    account.wait(40 * DAY)
    assert account.subscription(subscription)["status"] == "active"


@pytest.mark.parametrize(("invoice_now", "invoices"), [(False, 1), (True, 2)])
def test_a_cancellation_at_once_bills_usage_only_if_asked(account: Account, invoice_now: bool, invoices: int) -> None:
    subscription = account.subscribe()
    account.report(3_000)
    account.api.v1.subscriptions.cancel(subscription, {"invoice_now": invoice_now})
    assert account.subscription(subscription)["status"] == "canceled"
    assert len(account.invoices()) == invoices
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        account.api.v1.subscriptions.cancel(subscription)
    account.wait(60 * DAY)
    assert len(account.invoices()) == invoices, "nothing is billed any more"


def test_a_deleted_customer_takes_its_subscriptions_along(account: Account) -> None:
    subscription = account.subscribe()
    account.world.delete_customer(account.customer)
    assert account.subscription(subscription)["status"] == "canceled"
    assert account.api.v1.customers.retrieve(account.customer).to_dict()["deleted"] is True
    assert account.happened()[-2:] == ["customer.subscription.deleted", "customer.deleted"]


def test_a_pause_stops_billing_and_a_resume_begins_anew(account: Account) -> None:
    subscription = account.subscribe()
    account.world.pause(subscription)
    account.wait(50 * DAY)
    assert len(account.invoices()) == 1
    account.api.v1.subscriptions.resume(subscription)
    assert account.subscription(subscription)["billing_cycle_anchor"] == int(account.world.now.timestamp())
    assert [one["total"] for one in account.invoices()] == [2900, 2900]


def test_refunds_and_disputes_are_of_the_charge(account: Account) -> None:
    account.subscribe()
    invoice = account.invoices()[0]
    paid = account.api.v1.invoice_payments.list({"invoice": invoice["id"]}).data[0]
    intent = account.api.v1.payment_intents.retrieve(str(paid.payment.payment_intent))
    charge = str(intent.latest_charge)
    account.happened()
    account.world.refund(charge, 900)
    account.world.refund(charge)
    found = account.world.find(charge)
    assert (found["amount_refunded"], found["refunded"]) == (2900, True)
    with pytest.raises(stripe.InvalidRequestError, match="already been refunded"):
        account.api.v1.refunds.create({"charge": charge})
    dispute = account.world.dispute(charge)
    assert account.world.close_dispute(dispute["id"], won=False)["status"] == "lost"
    kinds = account.happened()
    assert kinds.count("charge.refunded") == 2
    assert [kind for kind in kinds if kind.startswith("charge.dispute")] == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
    ]


def test_lines_come_ten_at_a_time(account: Account) -> None:
    prices = [account.price(unit_amount=100 + number, recurring={"interval": "month"}) for number in range(12)]
    account.world.add_card(account.customer)
    items: Any = [{"price": price} for price in prices]
    account.api.v1.subscriptions.create({"customer": account.customer, "items": items})
    invoice = account.api.v1.invoices.list().data[0]
    assert (len(invoice.lines.data), invoice.lines.has_more) == (10, True)
    assert [line.amount for line in invoice.lines.auto_paging_iter()] == [100 + number for number in range(12)]


# Arithmetic


def test_a_period_ends_on_the_anchor_s_day_or_the_month_s_last() -> None:
    anchor = int(datetime(2027, 1, 31, 8, tzinfo=UTC).timestamp())
    ends = [datetime.fromtimestamp(boundary(anchor, _pace("month"), index), UTC) for index in (1, 2, 3, 13)]
    assert [(end.month, end.day, end.hour) for end in ends] == [(2, 28, 8), (3, 31, 8), (4, 30, 8), (2, 29, 8)]


@pytest.mark.parametrize(
    ("amount", "left", "whole", "cents"),
    [(1000, 1, 2000, 1), (999, 1, 2000, 0), (-1000, 1, 2000, -1), (2900, 7, 7, 2900), (2900, 0, 7, 0), (1, 1, 2, 1)],
)
def test_half_a_cent_is_rounded_away_from_nought(amount: int, left: int, whole: int, cents: int) -> None:
    assert prorated(amount, left, whole) == cents


def test_a_discount_is_shared_out_to_the_cent() -> None:
    assert shared_out(100, [1, 1, 1]) == [34, 33, 33]
    assert shared_out(5, [0, 0]) == [0, 0]


def _pace(interval: str) -> dict[str, Any]:
    return {"interval": interval, "interval_count": 1}


def _preview(account: Account, subscription: str, old: str, new: str) -> Thing:
    item = {"id": account.item(subscription, old)["id"], "price": account.prices[new]}
    details = {"items": [item], "proration_behavior": "always_invoice"}
    return {"subscription": subscription, "subscription_details": details}


def _running(schedule: Thing) -> Thing:
    phase = schedule.phases[0]
    items = [
        {"price": item.price, **({"quantity": item.quantity} if "quantity" in item else {})} for item in phase["items"]
    ]
    return {"start_date": phase.start_date, "end_date": phase.end_date, "items": items}
