"""What a subscription entitles to, which of several counts, and when to look again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations

import pytest

from tests.support.subscriptions import DAY, NOW, a_subscriber, a_subscription
from tollgate.domain.subscriptions import (
    LATE_SECONDS,
    LOOK_AGAIN_SECONDS,
    Entitlements,
    RemoteDispute,
    RemoteSubscription,
    Subscriber,
    SubscriptionStatus,
    choose_subscription,
    entitlements_of,
    has_paid,
    next_check_at,
    past_due_since,
)

GRACE_DAYS = 7
SECOND = timedelta(seconds=1)
SERVED = {SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING, SubscriptionStatus.PAST_DUE}


def entitled(subscriber: Subscriber, now: datetime = NOW) -> Entitlements:
    return entitlements_of(subscriber, default_plan_id="free", grace_days=GRACE_DAYS, now=now)


def test_an_active_subscription_is_its_plan_from_its_anchor() -> None:
    subscription = a_subscription()

    assert entitled(a_subscriber(subscription)) == Entitlements("pro", subscription.anchor_at)


def test_a_trial_is_the_plan_as_a_trial() -> None:
    found = entitled(a_subscriber(a_subscription(status=SubscriptionStatus.TRIALING)))

    assert (found.plan_id, found.trial, found.overage_blocked) == ("pro", True, False)


@pytest.mark.parametrize("status", sorted(set(SubscriptionStatus) - SERVED))
def test_what_is_not_paid_for_is_the_default_plan(status: SubscriptionStatus) -> None:
    assert entitled(a_subscriber(a_subscription(status=status))) == Entitlements("free", None)


def test_no_subscription_and_one_without_a_plan_of_ours_are_the_default_plan() -> None:
    assert entitled(a_subscriber()) == Entitlements("free", None)
    assert entitled(a_subscriber(a_subscription(plan_id=None))) == Entitlements("free", None)


@pytest.mark.parametrize(
    ("after_grace", "plan_id"),
    [(-SECOND, "pro"), (timedelta(0), "free"), (SECOND, "free")],
    ids=["below", "at", "above"],
)
def test_a_failed_payment_takes_overage_at_once_and_the_plan_after_the_grace(
    after_grace: timedelta, plan_id: str
) -> None:
    since = NOW - DAY
    subscriber = a_subscriber(a_subscription(status=SubscriptionStatus.PAST_DUE), past_due_since_at=since)
    ends_at = since + GRACE_DAYS * DAY

    found = entitled(subscriber, ends_at + after_grace)

    assert found.plan_id == plan_id
    assert found.overage_blocked is (plan_id == "pro")
    assert found.check_at == (ends_at if plan_id == "pro" else None)


@pytest.mark.parametrize("status", SubscriptionStatus)
def test_an_open_dispute_is_unpaid_whatever_else_there_is(status: SubscriptionStatus) -> None:
    subscriber = a_subscriber(a_subscription(status=status), dispute_ids=frozenset({"du_1"}))

    assert entitled(subscriber).paid is False
    assert entitled(a_subscriber(a_subscription(status=status))).paid is True


# ---- disputes


LOST = RemoteDispute("du_1", "ch_1", "cus_1", open=False, lost=True, subscription_id="sub_1")


@pytest.mark.parametrize("status", SubscriptionStatus)
def test_a_lost_dispute_counts_while_what_it_had_paid_for_is_not_over(status: SubscriptionStatus) -> None:
    assert LOST.blocks(a_subscription(status=status)) is not status.ended


def test_a_lost_dispute_is_nothing_to_another_subscription_nor_to_none() -> None:
    assert LOST.blocks(a_subscription(id="sub_2")) is False
    assert LOST.blocks(None) is False
    assert replace(LOST, subscription_id=None).blocks(a_subscription()) is False


def test_an_open_dispute_counts_always_and_one_that_was_won_never() -> None:
    for subscription in (None, a_subscription(), a_subscription(id="sub_2")):
        assert replace(LOST, open=True, lost=False).blocks(subscription) is True
        assert replace(LOST, lost=False).blocks(subscription) is False


def test_a_dispute_is_looked_at_each_day_whatever_else_there_is() -> None:
    disputed = Entitlements("pro", None, paid=False)
    for subscription in (None, a_subscription(), a_subscription(status=SubscriptionStatus.CANCELED)):
        assert next_check_at(subscription, disputed, NOW) == NOW + DAY


# ---- since when a payment is owed


def test_stripes_own_invoice_tells_since_when_a_payment_is_owed() -> None:
    owing = a_subscription(status=SubscriptionStatus.PAST_DUE, owed_since_at=NOW - 2 * DAY)
    remembered = a_subscriber(owing, past_due_since_at=NOW - 9 * DAY)

    assert past_due_since(remembered, owing, NOW) == NOW - 2 * DAY


def test_without_it_the_first_failure_that_was_seen_stands() -> None:
    owing = a_subscription(status=SubscriptionStatus.PAST_DUE)

    assert past_due_since(a_subscriber(a_subscription()), owing, NOW) == NOW
    assert past_due_since(a_subscriber(owing, past_due_since_at=NOW - DAY), owing, NOW) == NOW - DAY


def test_another_subscriptions_failure_is_not_this_ones() -> None:
    other = a_subscription(id="sub_0", status=SubscriptionStatus.PAST_DUE)
    owing = a_subscription(status=SubscriptionStatus.PAST_DUE)

    assert past_due_since(a_subscriber(other, past_due_since_at=NOW - DAY), owing, NOW) == NOW


@pytest.mark.parametrize("status", sorted(set(SubscriptionStatus) - {SubscriptionStatus.PAST_DUE}))
def test_a_late_notice_of_a_failure_changes_nothing_once_stripe_says_otherwise(status: SubscriptionStatus) -> None:
    seen = a_subscriber(a_subscription(status=SubscriptionStatus.PAST_DUE), past_due_since_at=NOW - DAY)

    assert past_due_since(seen, a_subscription(status=status), NOW) is None


# ---- which one counts


def ids(subscriptions: tuple[RemoteSubscription, ...]) -> list[str]:
    return [one.id for one in subscriptions]


def test_of_several_the_oldest_counts_and_the_newer_are_surplus_whatever_the_order() -> None:
    three = [a_subscription(id=f"sub_{age}", created_at=NOW - age * DAY) for age in (1, 2, 3)]

    for order in permutations(three):
        choice = choose_subscription(order)
        assert choice.counts is not None
        assert choice.counts.id == "sub_3"
        assert ids(choice.surplus) == ["sub_1", "sub_2"]


def test_who_is_served_counts_before_who_is_not_however_old() -> None:
    unpaid = a_subscription(id="sub_old", created_at=NOW - 50 * DAY, status=SubscriptionStatus.UNPAID)
    unfinished = a_subscription(id="sub_first", created_at=NOW - 60 * DAY, status=SubscriptionStatus.INCOMPLETE)
    paid = a_subscription()

    choice = choose_subscription([unfinished, unpaid, paid])

    assert choice.counts is paid
    assert ids(choice.surplus) == ["sub_old", "sub_first"]


def test_what_is_over_never_counts_before_what_is_not_and_is_no_surplus() -> None:
    over = a_subscription(id="sub_0", status=SubscriptionStatus.CANCELED, created_at=NOW - 40 * DAY)
    waiting = a_subscription(id="sub_2", status=SubscriptionStatus.INCOMPLETE)

    assert choose_subscription([over, waiting]).counts is waiting
    assert choose_subscription([over, waiting]).surplus == ()
    assert choose_subscription([over]).counts is over
    assert choose_subscription([]).counts is None


def test_a_subscription_to_something_else_is_left_alone() -> None:
    foreign = a_subscription(id="sub_0", plan_id=None, created_at=NOW - 40 * DAY)
    choice = choose_subscription([foreign, a_subscription()])

    assert choice.counts is not None
    assert choice.counts.id == "sub_1"
    assert choice.surplus == ()
    assert choose_subscription([foreign]).counts is None


# ---- when to look again


def test_the_end_of_a_grace_is_looked_at_when_it_comes() -> None:
    owing = a_subscription(status=SubscriptionStatus.PAST_DUE)
    found = entitled(a_subscriber(owing, past_due_since_at=NOW - DAY))

    assert next_check_at(owing, found, NOW) == NOW + 6 * DAY


def test_a_renewal_is_looked_at_when_it_should_be_over() -> None:
    subscription = a_subscription()
    nothing = entitled(a_subscriber(subscription))

    assert next_check_at(subscription, nothing, NOW) == NOW + 20 * DAY + timedelta(seconds=LATE_SECONDS)
    ending = a_subscription(cancel_at=NOW + DAY)
    assert next_check_at(ending, nothing, NOW) == NOW + DAY + timedelta(seconds=LATE_SECONDS)


def test_what_should_have_happened_is_looked_at_each_hour_for_a_day() -> None:
    late = timedelta(seconds=LATE_SECONDS)
    nothing = entitled(a_subscriber())
    far = {"metered_end_at": NOW + 20 * DAY}

    overdue = a_subscription(period_end_at=NOW - late, **far)
    assert next_check_at(overdue, nothing, NOW) == NOW + timedelta(seconds=LOOK_AGAIN_SECONDS)
    given_up = a_subscription(period_end_at=NOW - late - DAY, **far)
    assert next_check_at(given_up, nothing, NOW) == NOW + 20 * DAY + late


def test_who_pays_for_nothing_is_not_looked_at() -> None:
    nothing = entitled(a_subscriber())

    assert next_check_at(None, nothing, NOW) is None
    assert next_check_at(a_subscription(status=SubscriptionStatus.CANCELED), nothing, NOW) is None


# ---- whether money has come in


@pytest.mark.parametrize("status", SubscriptionStatus)
def test_only_an_active_subscription_has_been_paid_for(status: SubscriptionStatus) -> None:
    assert has_paid(a_subscription(status=status)) is (status is SubscriptionStatus.ACTIVE)
    assert has_paid(None) is False


def test_after_a_trial_the_first_payment_is_waited_for() -> None:
    assert has_paid(a_subscription(trial_end_at=NOW, trial_unpaid=True)) is False
    assert has_paid(a_subscription(trial_end_at=NOW)) is True


def test_who_has_never_paid_after_a_trial_is_still_in_it() -> None:
    subscription = a_subscription(trial_end_at=NOW - DAY, trial_unpaid=True)

    assert entitled(a_subscriber(subscription)) == Entitlements("pro", subscription.anchor_at, trial=True)


@pytest.mark.parametrize(
    ("after_grace", "plan_id"),
    [(-SECOND, "pro"), (timedelta(0), "free"), (SECOND, "free")],
    ids=["below", "at", "above"],
)
def test_a_trial_that_never_pays_gets_no_more_than_the_trial_until_the_grace_is_over(
    after_grace: timedelta, plan_id: str
) -> None:
    since = NOW - DAY
    owing = a_subscription(status=SubscriptionStatus.PAST_DUE, trial_end_at=since, trial_unpaid=True)

    found = entitled(a_subscriber(owing, past_due_since_at=since), since + GRACE_DAYS * DAY + after_grace)

    assert (found.plan_id, found.trial, found.overage_blocked) == (plan_id, plan_id == "pro", False)
