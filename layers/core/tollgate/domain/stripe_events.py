"""Stripe's events: which there are, what each leads to, and the few ids that are read from one.

An event is a hint that something changed and never the change itself: duplicates, any order and both kinds of bodies
(snapshot and thin) are then one case. So nothing but ids is taken from a body, and the state is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

MAX_ID_LENGTH: Final = 255
"""Stripe's own promise for the length of its ids."""


class Action(StrEnum):
    """What an event leads to."""

    SYNC = "sync"
    """Fetch the customer's subscriptions and put what they entitle to in force."""
    CHECKOUT = "checkout"
    """The same, and a checkout that is over is forgotten. A customer that is not ours is an alarm."""
    CUSTOMER = "customer"
    """The same, and a customer that was deleted is let go."""
    OVERAGE = "overage"
    """Sync; and a billing period has ended, by its time or with its subscription, so overage is reported or read."""
    DISPUTE = "dispute"
    """Calls of a user whose payment is disputed are answered `payment_required` until it is decided."""
    RETURNED_PAYMENT = "returned_payment"
    """Money went back: recorded once."""
    FRAUD_WARNING = "fraud_warning"
    """A bank suspects the payment: a matter for people, so an alarm."""
    METER_ERROR = "meter_error"
    """Stripe refused usage that was reported to it: recorded, and an alarm."""
    NOTE = "note"
    """Nothing is done but to say so in the log."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What follows from one type of event."""

    action: Action
    queued: bool = False
    """More than one look at Stripe: done from the queue, so that the delivery is answered at once."""
    alarm: str | None = None
    """Name of the metric that the alarms watch."""
    notice: str | None = None
    """Name of a line in the log, with the user's id, for whoever writes to users: mails are sent from it."""


_SYNC: Final = Reaction(Action.SYNC)

REACTIONS: Final[Mapping[str, Reaction]] = {
    "checkout.session.completed": Reaction(Action.CHECKOUT),
    "checkout.session.async_payment_succeeded": Reaction(Action.CHECKOUT),
    "checkout.session.async_payment_failed": Reaction(Action.CHECKOUT, notice="checkout_payment_failed"),
    "checkout.session.expired": Reaction(Action.CHECKOUT),
    "customer.subscription.created": _SYNC,
    "customer.subscription.updated": _SYNC,
    "customer.subscription.deleted": Reaction(Action.OVERAGE, queued=True, notice="subscription_ended"),
    "customer.subscription.paused": Reaction(Action.SYNC, notice="subscription_paused"),
    "customer.subscription.resumed": Reaction(Action.SYNC, notice="subscription_resumed"),
    "customer.subscription.trial_will_end": Reaction(Action.SYNC, notice="trial_will_end"),
    "customer.subscription.pending_update_applied": _SYNC,
    "customer.subscription.pending_update_expired": _SYNC,
    "customer.deleted": Reaction(Action.CUSTOMER),
    "invoice.created": Reaction(Action.OVERAGE, queued=True),
    "invoice.finalized": Reaction(Action.OVERAGE, queued=True),
    "invoice.finalization_failed": Reaction(Action.SYNC, queued=True, alarm="InvoicesNotFinalized"),
    "invoice.paid": _SYNC,
    "invoice.payment_failed": Reaction(Action.SYNC, notice="payment_failed"),
    "invoice.payment_action_required": Reaction(Action.SYNC, notice="payment_action_required"),
    "invoice.upcoming": Reaction(Action.NOTE),
    "invoice.voided": _SYNC,
    "invoice.marked_uncollectible": _SYNC,
    "charge.refunded": Reaction(Action.RETURNED_PAYMENT, queued=True),
    "refund.created": Reaction(Action.RETURNED_PAYMENT, queued=True),
    "charge.dispute.created": Reaction(Action.DISPUTE, queued=True, alarm="DisputesOpened"),
    "charge.dispute.updated": Reaction(Action.DISPUTE, queued=True),
    "charge.dispute.closed": Reaction(Action.DISPUTE, queued=True),
    "radar.early_fraud_warning.created": Reaction(Action.FRAUD_WARNING, queued=True, alarm="FraudWarnings"),
    "billing.meter.error_report_triggered": Reaction(Action.METER_ERROR, queued=True, alarm="MeterErrors"),
    "billing.meter.no_meter_found": Reaction(Action.METER_ERROR, queued=True, alarm="MeterErrors"),
    "billing.alert.triggered": Reaction(Action.NOTE),
    "entitlements.active_entitlement_summary.updated": Reaction(Action.NOTE),
}
"""By type, as snapshot events spell it; a thin event's has `v1.` before it. Every other type is answered 200."""

THIN_TYPES: Final = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
"""What Stripe sends to thin destinations only."""
SNAPSHOT_TYPES: Final = tuple(sorted(REACTIONS.keys() - {name.removeprefix("v1.") for name in THIN_TYPES}))
"""What the webhook endpoint asks Stripe for."""


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """The ids of one event."""

    id: str
    type: str
    """As in REACTIONS."""
    object_id: str | None
    """What it is about."""
    object_kind: str | None
    """Stripe's word for what that is: `subscription`, `invoice`, …"""
    customer_id: str | None
    """Whose it is, where the body says so; a thin one never does."""
    account_id: str | None
    """The connected account it happened on; None: our own."""
    livemode: bool

    @property
    def reaction(self) -> Reaction | None:
        """None: a type that nothing follows from."""
        return REACTIONS.get(self.type)

    def document(self) -> dict[str, str | bool | None]:
        """What is put into the queue; `event_of_message` reads it."""
        return {
            "tollgate_event": self.id,
            "type": self.type,
            "object_id": self.object_id,
            "object_kind": self.object_kind,
            "customer_id": self.customer_id,
            "account_id": self.account_id,
            "livemode": self.livemode,
        }


def event_of(document: object) -> StripeEvent:
    """The ids of an event as Stripe sends it, snapshot or thin. Raises ValueError for anything else."""
    body = _mapping(document, "an event")
    kind = body.get("object")
    if kind == "event":
        data = _mapping(body.get("data"), "data")
        about, account = _mapping(data.get("object"), "data.object"), body.get("account")
        about_kind, customer = about.get("object"), _customer(about)
    elif kind == "v2.core.event":
        about = _mapping(body.get("related_object") or {}, "related_object")
        about_kind, customer, account = about.get("type"), None, body.get("context")
    else:
        raise ValueError("neither a snapshot event nor a thin one")
    if not isinstance(body.get("livemode"), bool):
        raise ValueError("livemode is not a boolean")  # noqa: TRY004  the document is wrong, not the code
    return StripeEvent(
        id=_text(body.get("id"), "id") or _missing("id"),
        type=(_text(body.get("type"), "type") or _missing("type")).removeprefix("v1."),
        object_id=_text(about.get("id"), "object id"),
        object_kind=_text(about_kind, "object kind"),
        customer_id=_text(customer, "customer"),
        account_id=_text(account, "account"),
        livemode=body["livemode"],
    )


def event_of_message(document: object) -> StripeEvent:
    """An event from one of our queues: as we put it there ourselves, or as it came by the event bus.

    Among the dead letters are also whole envelopes: of the bus, and of Lambda where it gave up. Raises ValueError.
    """
    fields = _mapping(document, "a message")
    if "requestPayload" in fields:
        return event_of_message(_mapping(fields["requestPayload"], "requestPayload").get("detail"))
    if "detail" in fields:
        return event_of(fields["detail"])
    if "tollgate_event" not in fields:
        return event_of(fields)
    if not isinstance(fields.get("livemode"), bool):
        raise ValueError("livemode is not a boolean")  # noqa: TRY004  the document is wrong, not the code
    return StripeEvent(
        id=_text(fields["tollgate_event"], "id") or _missing("id"),
        type=_text(fields.get("type"), "type") or _missing("type"),
        object_id=_text(fields.get("object_id"), "object id"),
        object_kind=_text(fields.get("object_kind"), "object kind"),
        customer_id=_text(fields.get("customer_id"), "customer"),
        account_id=_text(fields.get("account_id"), "account"),
        livemode=fields["livemode"],
    )


def _customer(about: Mapping[str, Any]) -> object:
    """The customer of an object: its own id, or the one it names; Stripe may have expanded it."""
    if about.get("object") == "customer":
        return about.get("id")
    customer = about.get("customer")
    return customer.get("id") if isinstance(customer, dict) else customer


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")  # noqa: TRY004  as above
    return value


def _text(value: object, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LENGTH or not value.isascii():
        raise ValueError(f"{what} is not a name of Stripe's")
    return value


def _missing(what: str) -> NoReturn:
    raise ValueError(f"{what} is missing")
