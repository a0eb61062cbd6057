"""Subscribers and customers in the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.moto_table import NAME, CountedTable, moto_table
from tests.support.subscriptions import DAY, NOW, a_subscriber, a_subscription
from tollgate.domain.subscriptions import Interval, OpenCheckout, Subscriber, SubscriptionStatus
from tollgate.storage.subscriptions import DUE_SHARDS, TURN, Subscriptions

CHECKOUT = OpenCheckout("claim1", "pro", Interval.YEAR, NOW + DAY)
FULL = a_subscriber(
    a_subscription(
        status=SubscriptionStatus.PAST_DUE,
        interval=Interval.YEAR,
        trial_end_at=NOW - 5 * DAY,
        cancel_at=NOW + DAY,
        pending_plan_id="free",
        pending_interval=Interval.MONTH,
        pending_at=NOW + 2 * DAY,
        schedule_id="sub_sched_1",
        owed_since_at=NOW - DAY,
        trial_unpaid=True,
    ),
    version=0,
    past_due_since_at=NOW - DAY,
    dispute_ids=frozenset({"du_2", "du_1"}),
    checkout=replace(CHECKOUT, session_id="cs_1", url="https://checkout.example.com/cs_1"),
    first_key_due=True,
    changer="a",
    changing_until_at=NOW + TURN,
    synced_at=NOW,
    check_at=NOW + 6 * DAY,
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def subscriptions(table: CountedTable) -> Subscriptions:
    return Subscriptions(table)


@pytest.mark.parametrize(
    "subscriber",
    [
        FULL,
        Subscriber("main", "u1"),
        a_subscriber(version=0),
        a_subscriber(a_subscription(), version=0, first_key_issued=True),
        a_subscriber(
            a_subscription(
                plan_id=None,
                interval=None,
                plan_item_id=None,
                period_start_at=None,
                period_end_at=None,
                metered_item_id=None,
                metered_start_at=None,
                metered_end_at=None,
            ),
            version=0,
            checkout=CHECKOUT,
        ),
    ],
    ids=["everything", "nothing", "customer", "subscribed", "foreign"],
)
def test_a_subscriber_is_found_as_written_one_version_on(subscriptions: Subscriptions, subscriber: Subscriber) -> None:
    assert subscriptions.put(subscriber)
    assert subscriptions.find("main", "u1") == replace(subscriber, version=1)


def test_nobody_is_version_0(subscriptions: Subscriptions) -> None:
    assert subscriptions.find("main", "u1") == Subscriber("main", "u1")


def test_only_who_read_the_newest_version_writes(subscriptions: Subscriptions) -> None:
    assert subscriptions.put(FULL)
    assert not subscriptions.put(FULL), "it was not there when it was read"
    first, second = subscriptions.find("main", "u1"), subscriptions.find("main", "u1")
    assert subscriptions.put(replace(first, synced_at=NOW + DAY))
    assert not subscriptions.put(replace(second, customer_id="cus_2"))
    assert subscriptions.find("main", "u1").customer_id == "cus_1"


def test_the_same_user_in_two_tenants_is_two_subscribers(subscriptions: Subscriptions) -> None:
    subscriptions.put(FULL)
    assert subscriptions.find("acme", "u1").version == 0


# ---- the turn to change the plan


def test_one_at_a_time_has_the_turn_until_it_is_given_back(subscriptions: Subscriptions) -> None:
    subscriptions.claim_customer("main", "u1", "cus_1")
    assert subscriptions.take_turn("main", "u1", "a", NOW)
    assert not subscriptions.take_turn("main", "u1", "b", NOW)
    assert not subscriptions.give_back_turn("main", "u1", "b")
    assert subscriptions.give_back_turn("main", "u1", "a")
    assert subscriptions.find("main", "u1").changer is None
    assert subscriptions.take_turn("main", "u1", "b", NOW)


def test_a_turn_ends_by_itself(subscriptions: Subscriptions) -> None:
    subscriptions.claim_customer("main", "u1", "cus_1")
    assert subscriptions.take_turn("main", "u1", "a", NOW)
    assert not subscriptions.take_turn("main", "u1", "b", NOW + TURN - timedelta(seconds=1))
    assert subscriptions.take_turn("main", "u1", "b", NOW + TURN)
    assert not subscriptions.give_back_turn("main", "u1", "a"), "it is another one's by now"
    assert not subscriptions.take_turn("main", "u1", "c", NOW + TURN)


def test_who_read_before_the_turn_was_taken_cannot_write_it_away(subscriptions: Subscriptions) -> None:
    subscriptions.claim_customer("main", "u1", "cus_1")
    seen = subscriptions.find("main", "u1")
    subscriptions.take_turn("main", "u1", "a", NOW)
    assert not subscriptions.put(replace(seen, synced_at=NOW))
    assert subscriptions.put(replace(subscriptions.find("main", "u1"), synced_at=NOW))
    assert not subscriptions.take_turn("main", "u1", "b", NOW)


def test_who_has_no_customer_has_no_plan_to_change(subscriptions: Subscriptions) -> None:
    assert not subscriptions.take_turn("main", "u1", "a", NOW)
    assert subscriptions.find("main", "u1").version == 0


# ---- the customer


def test_a_customer_is_bound_both_ways(subscriptions: Subscriptions, table: CountedTable) -> None:
    bound = subscriptions.claim_customer("main", "u1", "cus_1")

    assert bound == Subscriber("main", "u1", version=1, customer_id="cus_1")
    assert subscriptions.find_customer("cus_1") == ("main", "u1")
    assert subscriptions.find_customer("cus_2") is None
    assert {item["Type"]["S"] for item in table.items()} == {"Subscriber", "Customer"}


def test_who_claims_second_is_told_the_first_and_leaves_nothing(subscriptions: Subscriptions) -> None:
    subscriptions.claim_customer("main", "u1", "cus_1")

    assert subscriptions.claim_customer("main", "u1", "cus_2").customer_id == "cus_1"
    assert subscriptions.find_customer("cus_2") is None


def test_a_claim_after_a_lost_answer_is_the_same_claim(subscriptions: Subscriptions) -> None:
    first = subscriptions.claim_customer("main", "u1", "cus_1")
    assert subscriptions.claim_customer("main", "u1", "cus_1") == first


def test_a_customer_is_let_go_and_another_claimed_while_the_old_one_still_names_the_user(
    subscriptions: Subscriptions,
) -> None:
    bound = subscriptions.claim_customer("main", "u1", "cus_1")
    assert subscriptions.put(replace(bound, customer_id=None))

    assert subscriptions.claim_customer("main", "u1", "cus_2").customer_id == "cus_2"
    assert subscriptions.find_customer("cus_1") == ("main", "u1")


# ---- the open checkout


def test_one_checkout_is_claimed_at_a_time(subscriptions: Subscriptions) -> None:
    other = replace(CHECKOUT, claim="claim2")
    assert not subscriptions.claim_checkout("main", "u1", CHECKOUT, instead_of=None), "there is no customer yet"
    subscriptions.claim_customer("main", "u1", "cus_1")

    assert subscriptions.claim_checkout("main", "u1", CHECKOUT, instead_of=None)
    assert not subscriptions.claim_checkout("main", "u1", other, instead_of=None)
    assert subscriptions.find("main", "u1").checkout == CHECKOUT


def test_a_claim_is_replaced_only_by_who_has_seen_it(subscriptions: Subscriptions) -> None:
    second, third = replace(CHECKOUT, claim="claim2"), replace(CHECKOUT, claim="claim3")
    subscriptions.claim_customer("main", "u1", "cus_1")
    subscriptions.claim_checkout("main", "u1", CHECKOUT, instead_of=None)
    subscriptions.note_checkout("main", "u1", "claim1", "cs_1", "https://checkout.example.com/cs_1")

    assert subscriptions.claim_checkout("main", "u1", second, instead_of="claim1")
    assert not subscriptions.claim_checkout("main", "u1", third, instead_of="claim1")
    assert subscriptions.find("main", "u1").checkout == second, "nothing of the first session is left"


def test_a_session_is_noted_for_its_own_claim_only(subscriptions: Subscriptions) -> None:
    subscriptions.claim_customer("main", "u1", "cus_1")
    subscriptions.claim_checkout("main", "u1", CHECKOUT, instead_of=None)

    assert not subscriptions.note_checkout("main", "u1", "claim0", "cs_0", "https://checkout.example.com/cs_0")
    assert subscriptions.note_checkout("main", "u1", "claim1", "cs_1", "https://checkout.example.com/cs_1")
    found = subscriptions.find("main", "u1").checkout
    assert found is not None
    assert (found.session_id, found.url) == ("cs_1", "https://checkout.example.com/cs_1")


def test_a_checkout_is_freed_once_and_by_its_own_claim(subscriptions: Subscriptions) -> None:
    subscriptions.claim_customer("main", "u1", "cus_1")
    subscriptions.claim_checkout("main", "u1", CHECKOUT, instead_of=None)

    assert not subscriptions.free_checkout("main", "u1", "claim0")
    assert subscriptions.free_checkout("main", "u1", "claim1")
    assert not subscriptions.free_checkout("main", "u1", "claim1")
    assert subscriptions.find("main", "u1").checkout is None


def test_every_write_moves_the_version(subscriptions: Subscriptions) -> None:
    """Whoever decides from a reading is refused when anything at all was written since."""
    versions = [subscriptions.claim_customer("main", "u1", "cus_1").version]
    subscriptions.claim_checkout("main", "u1", CHECKOUT, instead_of=None)
    versions.append(subscriptions.find("main", "u1").version)
    subscriptions.note_checkout("main", "u1", "claim1", "cs_1", "https://checkout.example.com/cs_1")
    versions.append(subscriptions.find("main", "u1").version)
    subscriptions.free_checkout("main", "u1", "claim1")
    versions.append(subscriptions.find("main", "u1").version)
    subscriptions.put(replace(subscriptions.find("main", "u1"), first_key_due=True))
    versions.append(subscriptions.find("main", "u1").version)
    subscriptions.take_first_key("main", "u1")
    versions.append(subscriptions.find("main", "u1").version)
    subscriptions.give_back_first_key("main", "u1")
    versions.append(subscriptions.find("main", "u1").version)

    assert versions == list(range(1, 8))


# ---- the first key


def test_the_first_key_is_taken_once_and_only_when_it_is_due(subscriptions: Subscriptions) -> None:
    subscriptions.put(a_subscriber(version=0))
    assert not subscriptions.take_first_key("main", "u1")
    subscriptions.put(a_subscriber(version=1, first_key_due=True))

    assert [subscriptions.take_first_key("main", "u1") for _ in range(2)] == [True, False]
    found = subscriptions.find("main", "u1")
    assert (found.first_key_due, found.first_key_issued) == (False, True)


def test_a_first_key_that_could_not_be_made_is_due_again(subscriptions: Subscriptions) -> None:
    subscriptions.put(a_subscriber(version=0, first_key_due=True))
    subscriptions.take_first_key("main", "u1")

    assert [subscriptions.give_back_first_key("main", "u1") for _ in range(2)] == [True, False]
    assert subscriptions.take_first_key("main", "u1")


# ---- what is due


def test_who_is_due_is_found_below_and_at_the_time_and_not_before_it(subscriptions: Subscriptions) -> None:
    second = timedelta(seconds=1)
    for number, at in enumerate((NOW - second, NOW, NOW + second, None)):
        subscriptions.put(Subscriber("main", f"u{number}", check_at=at))

    due = {entry.user_id for shard in range(DUE_SHARDS) for entry in subscriptions.list_due(shard, NOW)}

    assert due == {"u0", "u1"}


def test_who_was_looked_at_is_due_no_more(subscriptions: Subscriptions, table: CountedTable) -> None:
    subscriptions.put(Subscriber("main", "u1", check_at=NOW))
    subscriptions.put(replace(subscriptions.find("main", "u1"), check_at=None))

    assert [entry for shard in range(DUE_SHARDS) for entry in subscriptions.list_due(shard, NOW)] == []
    [item] = table.items()
    assert not item.keys() & {"GSI1PK", "GSI1SK"}


def test_many_who_are_due_are_listed_over_several_pages(
    subscriptions: Subscriptions, table: CountedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        table.client.put_item(
            TableName=NAME,
            Item={
                "PK": {"S": f"TENANT#main#USER#u{number}"},
                "SK": {"S": "SUBSCRIBER"},
                "GSI1PK": {"S": "DUE#3"},
                "GSI1SK": {"S": f"{int(NOW.timestamp()) - number:012d}"},
            },
        )
    query = table.client.query
    monkeypatch.setattr(table.client, "query", lambda **request: query(**request, Limit=3))

    found = list(subscriptions.list_due(3, NOW))

    assert [entry.user_id for entry in found] == [f"u{number}" for number in reversed(range(7))]
