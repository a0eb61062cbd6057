"""What is read from an event: ids and nothing else, from every kind of body."""

from __future__ import annotations

from typing import Any

import pytest

from tollgate.domain.stripe_events import (
    MAX_ID_LENGTH,
    REACTIONS,
    SNAPSHOT_TYPES,
    THIN_TYPES,
    Action,
    StripeEvent,
    event_of,
    event_of_message,
)

SNAPSHOT: dict[str, Any] = {
    "id": "evt_1",
    "object": "event",
    "type": "customer.subscription.updated",
    "livemode": False,
    "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "metadata": {"user_id": "eve"}}},
}
THIN: dict[str, Any] = {
    "id": "evt_1",
    "object": "v2.core.event",
    "type": "v1.customer.subscription.updated",
    "livemode": False,
    "related_object": {"id": "sub_1", "type": "subscription", "url": "/v1/subscriptions/sub_1"},
}
EVENT = StripeEvent("evt_1", "customer.subscription.updated", "sub_1", "subscription", "cus_1", None, livemode=False)


def about(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
    return SNAPSHOT | {"data": {"object": {"id": "sub_1", "object": "subscription"} | fields}}


def test_a_snapshot_and_a_thin_event_name_the_same_thing() -> None:
    assert event_of(SNAPSHOT) == EVENT
    assert event_of(THIN) == StripeEvent(
        "evt_1", "customer.subscription.updated", "sub_1", "subscription", None, None, livemode=False
    )


def test_a_customer_may_be_expanded_deleted_or_absent() -> None:
    assert event_of(about(customer={"id": "cus_2", "email": "ada@example.com"})).customer_id == "cus_2"
    assert event_of(about(customer=None)).customer_id is None
    assert event_of(about()).customer_id is None
    assert event_of(about(id="cus_3", object="customer", deleted=True)).customer_id == "cus_3"


def test_an_upcoming_invoice_has_no_id() -> None:
    upcoming = {"type": "invoice.upcoming", "data": {"object": {"object": "invoice", "customer": "cus_1"}}}

    assert event_of(SNAPSHOT | upcoming).object_id is None


def test_the_connected_account_is_told() -> None:
    assert event_of(SNAPSHOT | {"account": "acct_2"}).account_id == "acct_2"
    assert event_of(THIN | {"context": "acct_2"}).account_id == "acct_2"


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        [SNAPSHOT],
        "evt_1",
        {},
        SNAPSHOT | {"object": "list"},
        SNAPSHOT | {"id": None},
        SNAPSHOT | {"id": 7},
        SNAPSHOT | {"id": ""},
        SNAPSHOT | {"id": "e" * (MAX_ID_LENGTH + 1)},
        SNAPSHOT | {"id": "evt_ü"},
        SNAPSHOT | {"type": None},
        SNAPSHOT | {"type": ["invoice.paid"]},
        SNAPSHOT | {"livemode": None},
        SNAPSHOT | {"livemode": 0},
        SNAPSHOT | {"livemode": "false"},
        SNAPSHOT | {"data": None},
        SNAPSHOT | {"data": {}},
        SNAPSHOT | {"data": {"object": "sub_1"}},
        SNAPSHOT | {"account": 5},
        about(id=5),
        about(object=["subscription"]),
        about(customer=5),
        about(customer={"id": 5}),
        THIN | {"related_object": "sub_1"},
        THIN | {"related_object": {"id": {}}},
        {"detail-type": "invoice.paid", "source": "aws.partner/stripe.com/x", "detail": SNAPSHOT},
    ],
)
def test_whatever_is_no_event_of_stripes_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        event_of(document)


@pytest.mark.parametrize("length", [MAX_ID_LENGTH - 1, MAX_ID_LENGTH])
def test_an_id_may_be_as_long_as_stripe_promises(length: int) -> None:
    assert event_of(SNAPSHOT | {"id": "e" * length}).id == "e" * length


def test_what_is_put_into_the_queue_is_read_back_and_is_ids_only() -> None:
    assert event_of_message(EVENT.document()) == EVENT
    assert all(value is None or isinstance(value, str | bool) for value in EVENT.document().values())


def test_dead_letters_of_every_sender_are_read() -> None:
    bus = {"detail-type": "x", "source": "aws.partner/stripe.com/ed_1", "detail": SNAPSHOT}
    given_up = {"version": "1.0", "requestContext": {"condition": "RetriesExhausted"}, "requestPayload": bus}

    assert event_of_message(SNAPSHOT) == EVENT
    assert event_of_message(bus) == EVENT
    assert event_of_message(given_up) == EVENT


@pytest.mark.parametrize(
    "message",
    [None, [], {}, {"tollgate_event": "evt_1", "type": "x"}, {"tollgate_event": 5, "type": "x", "livemode": True}],
)
def test_a_message_that_is_none_of_ours_is_refused(message: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        event_of_message(message)


def test_a_type_that_nothing_follows_from_has_no_reaction() -> None:
    assert event_of(SNAPSHOT | {"type": "customer.tax_id.created"}).reaction is None


def test_the_two_kinds_of_destinations_share_no_type_and_lack_none() -> None:
    thin = {name.removeprefix("v1.") for name in THIN_TYPES}

    assert set(SNAPSHOT_TYPES) | thin == REACTIONS.keys()
    assert not set(SNAPSHOT_TYPES) & thin


def test_only_what_one_look_decides_is_done_before_the_answer() -> None:
    """A dispute takes two looks, a refund several: Stripe is answered before."""
    at_once = {reaction.action for reaction in REACTIONS.values() if not reaction.queued}

    assert at_once == {Action.SYNC, Action.CHECKOUT, Action.CUSTOMER, Action.NOTE}
