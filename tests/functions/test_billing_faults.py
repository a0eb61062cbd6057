"""functions/billing when Stripe does not answer, answers late, or did what was asked and the answer was lost.

Whatever fails at whichever call, asking again ends in the same state: one customer, one subscription, one charge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from dev.stripe_double.faults import NOTHING, Fault, ScriptedFaults
from tests.support.billing_function import RETURN_URL, Answer, BillingFunction, billing_function
from tests.support.lambda_context import LambdaContext

numbers = count(1)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BillingFunction]:
    with billing_function(tmp_path_factory.mktemp("catalog")) as function:
        yield function


@pytest.fixture
def billing(container: BillingFunction) -> Iterator[BillingFunction]:
    yield container.of_new_users(next(numbers))
    container.wire.faults = NOTHING
    container.wire.down = False


def asks(path: str, body: object = None) -> Callable[[BillingFunction], Answer]:
    return lambda billing: billing.ask("GET" if body is None else "POST", path, body)


ASKS_STRIPE = [
    lambda billing: billing.order("team", "year"),
    lambda billing: billing.change("pro"),
    lambda billing: billing.change("team", "year", preview=True),
    asks("/billing/portal", {"return_url": RETURN_URL}),
    asks("/billing/invoices"),
]


@pytest.mark.parametrize("ask", ASKS_STRIPE)
def test_while_stripe_is_down_callers_are_told_when_to_come_back(
    billing: BillingFunction, ask: Callable[[BillingFunction], Answer]
) -> None:
    billing.subscribe("team")
    billing.wire.down = True
    answer = ask(billing)
    assert (answer.status, answer.code) == (503, "stripe_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers


def test_while_stripe_is_slow_callers_are_answered_before_the_function_is_killed(billing: BillingFunction) -> None:
    billing.subscribe("team")
    over = threading.Event()
    billing.wire.faults = lambda *_: Fault.SLOW if over.wait(20) else None
    began = time.monotonic()
    answer = billing.ask("GET", "/billing/invoices", context=LambdaContext(remaining_ms=3000))
    took = time.monotonic() - began
    over.set()
    assert (answer.status, answer.code) == (503, "stripe_unavailable")
    assert took < 3
    billing.wire.faults = NOTHING
    assert billing.ask("GET", "/billing/invoices").status == 200


def test_while_stripe_is_down_the_status_is_what_was_known(billing: BillingFunction) -> None:
    billing.checkout("team")
    billing.wire.down = True
    status = billing.status()
    assert (status["plan"]["id"], status["checkout"]["plan"]) == ("free", "team")
    assert billing.ask("GET", "/billing/plans").status == 200
    assert billing.ask("POST", "/billing/overage", {"enabled": False}).status == 200


ONE_CALL = [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER, Fault.CONFLICT]


@pytest.mark.parametrize("fault", ONE_CALL)
def test_a_failure_that_passes_is_not_even_noticed(billing: BillingFunction, fault: Fault) -> None:
    """Stripe's own client asks once more, with the same idempotency key."""
    for step in range(6):
        billing.wire.faults = ScriptedFaults(*[None] * step, fault)
        assert billing.order("team").status == 201
    billing.wire.faults = NOTHING
    billing.world.complete_checkout(billing.checkout("team"))
    assert billing.status()["plan"]["id"] == "team"
    assert len(billing.of_customer("subscription")) == 1


CALLS_OF_A_CHECKOUT = 5
"""Customer, open sessions, subscriptions, prices, session; a sixth would be the next request's."""


@pytest.mark.parametrize("fault", [*ONE_CALL, Fault.RATE_LIMITED])
@pytest.mark.parametrize("step", range(CALLS_OF_A_CHECKOUT))
def test_a_checkout_that_broke_off_anywhere_is_healed_by_asking_again(
    billing: BillingFunction, step: int, fault: Fault
) -> None:
    billing.wire.faults = ScriptedFaults(*[None] * step, fault, fault)  # both of the client's tries
    broken = billing.order("team")
    assert (broken.status, broken.code) == (503, "stripe_unavailable")
    billing.wire.faults = NOTHING
    session_id = billing.checkout("team")
    payable = [one for one in billing.of_customer("checkout.session") if one["status"] == "open"]
    assert [one["id"] for one in payable] == [session_id]
    assert len([one for one in billing.world.all("customer") if one["metadata"]["tollgate_user"] == billing.ada]) == 1
    billing.world.complete_checkout(session_id)
    assert billing.status()["plan"]["id"] == "team"
    assert billing.order("pro").code == "already_subscribed"
    assert len(billing.subscriptions_alive()) == 1


@pytest.mark.parametrize("fault", [Fault.LOST_AFTER, Fault.ERROR_AFTER])
def test_another_order_after_a_lost_answer_leaves_nothing_that_can_be_paid(
    billing: BillingFunction, fault: Fault
) -> None:
    billing.wire.faults = ScriptedFaults(*[None] * (CALLS_OF_A_CHECKOUT - 1), fault, fault)
    assert billing.order("team").status == 503
    billing.wire.faults = NOTHING
    session_id = billing.checkout("team", "year")
    payable = [one for one in billing.of_customer("checkout.session") if one["status"] == "open"]
    assert [one["id"] for one in payable] == [session_id]


CHANGES = {
    # What was so before, what is asked for, and how many questions to Stripe that takes.
    "dearer": ("pro", "team", "month"),
    "by the year": ("team", "team", "year"),
    "cheaper": ("team", "pro", "month"),
    "nothing": ("team", "free", "month"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.RATE_LIMITED])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_broke_off_anywhere_is_healed_by_asking_again(
    billing: BillingFunction, name: str, fault: Fault
) -> None:
    """At each call in turn; the state in the end is the one of an undisturbed change."""
    before, plan, interval = CHANGES[name]
    broken = 0
    for step in range(8):
        view = billing.of_new_users(next(numbers))
        view.subscribe(before)
        view.wire.faults = ScriptedFaults(*[None] * step, fault, fault)
        broken += view.change(plan, interval).status == 503
        view.wire.faults = NOTHING
        assert view.change(plan, interval).status == 200
        view.sync()
        status = view.status()["subscription"]
        [subscription] = view.subscriptions_alive()
        assert len(subscription["items"]["data"]) == 2
        if name == "cheaper":
            assert (status["plan"], status["pending_change"]["plan"]) == ("team", "pro")
        elif name == "nothing":
            assert status["ends_at"] is not None
        else:
            assert (status["plan"], status["interval"], status["pending_change"]) == (plan, interval, None)
            paid = sum(invoice["total"] for invoice in view.of_customer("invoice"))
            assert abs(paid - (99_000 if interval == "year" else 9_900)) <= 1
    assert broken >= 3


def test_a_plan_that_was_never_synced_is_the_operators_fault_and_an_alarm(
    billing: BillingFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    [price] = [one for one in billing.world.all("price") if one["lookup_key"] == "tollgate_team_year"]
    billing.api().v1.prices.update(price["id"], {"active": False})
    answer = billing.order("team", "year")
    assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (503, "stripe_refused", "false")
    logged = capsys.readouterr().out
    assert '"StripeAlarms":1' in logged
    assert '"stripe_code":"resource_missing"' in logged
    billing.api().v1.prices.update(price["id"], {"active": True})
    assert billing.order("team", "year").status == 201
