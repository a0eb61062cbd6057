"""functions/stripe_webhook: every way in, and what is refused on each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dev.stripe_double.faults import Fault
from tests.support.billing_function import stripe_world
from tests.support.stripe_webhook_function import (
    ADA,
    EVE,
    RETURN_URL,
    SIGNING_SECRET,
    StripeWebhookFunction,
    an_event,
    signed,
    stripe_webhook_function,
)
from tollgate.domain.stripe_events import event_of
from tollgate.storage.stripe_events import Lease, Part, StripeEvents


@pytest.fixture
def function(tmp_path: Path) -> Iterator[StripeWebhookFunction]:
    with stripe_webhook_function(tmp_path) as function:
        yield function


# ---- the good way


@pytest.mark.parametrize("kind", ["snapshot", "thin"])
def test_a_paid_checkout_is_the_plan_whichever_kind_of_event_tells_it(
    function: StripeWebhookFunction, kind: str
) -> None:
    function.subscribe(function.open_account())
    answers = function.deliver_all(kind)

    assert {answer.status for answer in answers} == {200}
    assert function.plan_of() == "team"
    subscriber = function.subscriptions.find("main", ADA)
    assert subscriber.subscription is not None
    assert subscriber.subscription.status == "active"


def test_events_in_any_order_and_number_end_at_the_same_place(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    events = function.world.take_events()
    for event in (*reversed(events), *events):
        assert function.deliver(event).status == 200
    assert function.plan_of() == "team"


def test_the_event_bus_brings_the_same(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    outcomes = {function.from_bus(event)["outcome"] for event in function.world.take_events()}

    assert outcomes <= {"done", "queued", "unknown_type"}
    assert function.plan_of() == "team"


def test_the_same_event_again_changes_nothing(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    assert function.deliver(event).outcome == "done"
    before = function.table.items()
    function.wire.asked.clear()

    assert function.deliver(event).outcome == "duplicate"
    assert function.table.items() == before
    assert function.wire.asked == []


def test_a_type_that_nothing_follows_from_is_taken_and_costs_nothing(function: StripeWebhookFunction) -> None:
    before = function.table.items()
    body = json.dumps(an_event(type="customer.tax_id.created")).encode()

    assert function.post(body, signed(body)).outcome == "unknown_type"
    assert function.table.items() == before


def test_while_the_secret_is_rotated_both_are_taken(tmp_path: Path) -> None:
    with stripe_webhook_function(tmp_path) as function:
        import boto3

        boto3.client("ssm").put_parameter(
            Name="/tollgate/test/stripe-webhook-secret",
            Value=f"whsec_new\n{SIGNING_SECRET}".replace("\n", " "),
            Overwrite=True,
        )
        body = json.dumps(an_event(type="invoice.upcoming")).encode()
        assert function.post(body, signed(body)).status == 200
        assert function.post(body, signed(body, secret="whsec_new")).status == 200


# ---- which account, which mode


def test_of_a_connected_account_nothing_is_taken_where_no_account_is_set(tmp_path: Path) -> None:
    with stripe_webhook_function(tmp_path, STRIPE_ACCOUNT="") as function:
        body = json.dumps(an_event(account="acct_2")).encode()
        assert function.post(body, signed(body)).status == 400


def test_live_events_are_taken_where_money_is_real_and_only_there(tmp_path: Path) -> None:
    with stripe_webhook_function(tmp_path, STRIPE_LIVEMODE="true") as function:
        for livemode, status in ((True, 200), (False, 400)):
            body = json.dumps(an_event(type="invoice.upcoming", livemode=livemode)).encode()
            assert function.post(body, signed(body)).status == status


# ---- whose it is


def test_metadata_that_a_client_chose_names_nobody(
    function: StripeWebhookFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkout of somebody else's customer that names Ada, everywhere it can: nothing for Ada, an alarm for us."""
    function.open_account(ADA)
    stranger = function.stripe.create_customer("main", ADA, None, idempotency_key="stranger")
    function.subscribe(stranger)
    answers = function.deliver_all()

    assert {answer.status for answer in answers} == {200}
    assert function.plan_of(ADA) == "free"
    assert '"ForeignCheckouts":1' in capsys.readouterr().out


def test_an_event_of_one_user_leaves_the_other_alone(function: StripeWebhookFunction) -> None:
    function.open_account(EVE)
    function.subscribe(function.open_account(ADA))
    function.deliver_all()
    assert (function.plan_of(ADA), function.plan_of(EVE)) == ("team", "free")


# ---- trouble


def test_while_stripe_does_not_answer_the_event_is_sent_again_and_then_taken(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    function.wire.down = True
    assert function.deliver(event).status == 503
    assert function.plan_of() == "free"

    function.wire.down = False
    assert function.deliver(event).outcome == "done", "the event was given back, nobody waits for a lease"
    assert function.plan_of() == "team"


def test_an_event_that_somebody_is_at_is_to_be_sent_again(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    StripeEvents(function.table).begin(Lease(event["id"], Part.DELIVERY, "other"), datetime.now(UTC))

    assert function.deliver(event).status == 409
    assert function.plan_of() == "free"


def test_what_stripe_refuses_for_good_is_kept_for_an_operator_and_answered(
    function: StripeWebhookFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    # Stripe does not understand what it is asked: nothing that another delivery could mend.
    handle = function.world.handle
    from dev.stripe_double.world import Answer

    refusal = Answer(400, {"content-type": "application/json"}, b'{"error": {"type": "invalid_request_error"}}')
    function.world.handle = lambda *_: refusal  # type: ignore[method-assign]  # Stripe's side

    assert function.deliver(event).outcome == "dead_letter"
    [letter] = function.dead_letters()
    assert json.loads(letter)["tollgate_event"] == event["id"]
    assert '"StripeEventsRefused":1' in capsys.readouterr().out

    function.world.handle = handle  # type: ignore[method-assign]
    assert function.deliver(event).outcome == "duplicate"
    assert function.work(letter) == []
    assert function.plan_of() == "team", "the operator has sent it to the queue again"


@pytest.mark.parametrize("status", [401, 403])
def test_while_our_key_is_refused_events_are_not_given_up_but_sent_again(
    function: StripeWebhookFunction, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    handle = function.world.handle
    from dev.stripe_double.world import Answer

    refusal = Answer(status, {"content-type": "application/json"}, b'{"error": {"type": "invalid_request_error"}}')
    function.world.handle = lambda *_: refusal  # type: ignore[method-assign]  # Stripe's side

    assert [function.deliver(event).status for _ in range(3)] == [503, 503, 503]
    assert function.dead_letters() == []
    assert '"StripeAlarms":1' in capsys.readouterr().out

    function.world.handle = handle  # type: ignore[method-assign]
    assert function.deliver(event).outcome == "done", "its lease was given back"
    assert function.plan_of() == "team"


def test_a_key_of_another_account_buries_no_event_and_changes_nothing(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    function.deliver_all()
    before = function.subscriptions.find("main", ADA)
    [subscription] = function.world.all("subscription")
    function.world.pause(subscription["id"])
    [event, *_] = [one for one in function.world.take_events() if one["type"].startswith("customer.subscription.")]
    handle = function.world.handle
    function.world.handle = stripe_world().handle  # type: ignore[method-assign]  # by a key of another account

    assert function.deliver(event).status == 503
    assert function.subscriptions.find("main", ADA) == before
    assert function.plan_of() == "team"
    assert function.dead_letters() == []

    function.world.handle = handle  # type: ignore[method-assign]
    assert function.deliver(event).outcome == "done"
    assert function.plan_of() == "free"


def test_a_lost_dispute_takes_the_plan_away_and_calls_an_operator(
    function: StripeWebhookFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    function.subscribe(function.open_account())
    function.deliver_all()
    [charge] = function.world.all("charge")
    function.world.close_dispute(function.world.dispute(charge["id"])["id"], won=False)
    function.deliver_all()
    profile = function.users.find_profile("main", ADA)
    assert profile is not None
    assert profile.paid is False
    told = capsys.readouterr().out
    assert '"DisputesLost":1' in told
    assert "dispute_lost" in told


def test_an_operator_can_have_done_events_done_again(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    function.deliver(event)
    message = event_of(event).document()
    assert function.work(json.dumps(message)) == []
    function.wire.asked.clear()

    assert function.work(json.dumps(message)) == []
    assert function.wire.asked == [], "a duplicate"
    assert function.work(json.dumps(message | {"tollgate_replay": True})) == []
    assert function.wire.asked != []


# ---- the queue


def test_one_bad_message_does_not_hold_up_the_others(function: StripeWebhookFunction) -> None:
    function.subscribe(function.open_account())
    event = function.take_event("customer.subscription.created")
    good = json.dumps(event_of(event).document())

    assert function.work("no JSON", good, "null", json.dumps({"tollgate_event": 1})) == ["0", "2", "3"]
    assert function.plan_of() == "team"


def test_work_that_fails_comes_again(function: StripeWebhookFunction) -> None:
    customer_id = function.open_account()
    function.subscribe(customer_id)
    function.deliver_all()
    [charge] = function.world.all("charge")
    function.world.dispute(charge["id"])
    assert {answer.outcome for answer in map(function.deliver, function.world.take_events())} <= {
        "queued",
        "unknown_type",
    }
    messages = function.queued()
    function.wire.faults = lambda *_: Fault.ERROR_BEFORE
    assert function.work(*messages) == [str(number) for number in range(len(messages))]

    function.wire.faults = lambda *_: None
    assert function.work(*messages) == []
    profile = function.users.find_profile("main", ADA)
    assert profile is not None
    assert profile.paid is False


def test_disputes_refunds_and_warnings_are_worked_off(
    function: StripeWebhookFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    function.subscribe(function.open_account())
    function.deliver_all()
    [charge] = function.world.all("charge")
    dispute = function.world.dispute(charge["id"])
    function.world.refund(charge["id"], 100)
    function.world.fraud_warning(charge["id"])
    function.deliver_all("thin")
    profile = function.users.find_profile("main", ADA)
    assert profile is not None
    assert (profile.paid, profile.plan_id) == (False, "team")
    refunds = [item for item in function.table.items() if item["Type"]["S"] == "Refund"]
    assert [item["amount_cents"]["N"] for item in refunds] == ["100"]

    function.world.close_dispute(dispute["id"], won=True)
    function.deliver_all()
    profile = function.users.find_profile("main", ADA)
    assert profile is not None
    assert profile.paid is True
    told = capsys.readouterr().out
    for name in ("DisputesOpened", "FraudWarnings", "PaymentsReturned"):
        assert f'"{name}":1' in told


def test_an_open_checkout_is_forgotten_when_it_is_over(function: StripeWebhookFunction) -> None:
    from tollgate.domain.subscriptions import Interval, OpenCheckout

    customer_id = function.open_account()
    wish = function.wish(customer_id, "team")
    claimed = OpenCheckout("claim", "team", Interval.MONTH, wish.expires_at)
    assert function.subscriptions.claim_checkout("main", ADA, claimed, instead_of=None)
    session = function.stripe.create_checkout(wish, idempotency_key="claim")
    function.subscriptions.note_checkout("main", ADA, "claim", session.id, session.url or RETURN_URL)
    function.world.advance(function.world.now + timedelta(hours=3))
    function.deliver_all()

    assert function.subscriptions.find("main", ADA).checkout is None


def test_a_subscription_of_a_deleted_account_is_ended(
    function: StripeWebhookFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkout was under way when the account was deleted, and was paid after."""
    customer_id = function.open_account()
    function.users.bury_profile("main", ADA, datetime.now(UTC))
    function.subscribe(customer_id)
    function.deliver_all()

    [subscription] = function.world.all("subscription")
    assert subscription["status"] == "canceled"
    assert '"SubscriptionsWithoutAccount":1' in capsys.readouterr().out


def test_the_first_key_is_due_with_the_payment_and_not_before(function: StripeWebhookFunction) -> None:
    customer_id = function.open_account()
    function.subscribe(customer_id, "pro", card="requires_action")
    function.deliver_all()
    assert function.subscriptions.find("main", ADA).first_key_due is False

    [session] = function.world.all("checkout.session")
    function.world.complete_checkout(session["id"], "ok")
    function.deliver_all()
    assert function.subscriptions.find("main", ADA).first_key_due is True
    assert function.subscriptions.take_first_key("main", ADA)
    [subscription] = function.world.all("subscription")
    function.world.pause(subscription["id"])
    function.world.resume(subscription["id"])
    function.deliver_all()
    assert function.subscriptions.find("main", ADA).first_key_due is False
