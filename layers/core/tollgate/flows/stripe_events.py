"""What follows from Stripe's events: take each once, do what its type leads to, and only then call it done.

A delivery is answered after its effects: at once where one look at Stripe is enough, else when the work is in the
queue. What Stripe refuses for good goes to the queue of dead letters, where an operator finds it; all else that fails,
also for a key of ours that is wrong or revoked, is tried again by whoever delivered it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tollgate.domain.errors import ConflictError, StoreUnavailableError, StripeRefusedError, TollgateError
from tollgate.domain.stripe_events import Action, StripeEvent
from tollgate.domain.subscriptions import RemoteRefund
from tollgate.flows.apply_subscription import NOTHING_ELSE, UNKNOWN_CUSTOMER, Journal, Look, SubscriptionSync
from tollgate.providers.stripe_client import KEY_REFUSED
from tollgate.storage.stripe_events import Lease, Part, Start, StripeEvents

if TYPE_CHECKING:
    from tollgate.domain.sources import Clock, IdSource
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions

Send = Callable[[str], None]
"""Puts a text into a queue, durably, or raises StoreUnavailableError."""

FollowOverage = Callable[[StripeEvent, str, str], object]
"""Sees to the overage of a user (`tollgate.flows.report_overage`)."""

_OWNER_LENGTH: Final = 16
_MAY_BE_MENDED: Final = frozenset({KEY_REFUSED, UNKNOWN_CUSTOMER})
"""What is wrong with our key, not with the event: Stripe repeats it for three days, in which the key is put right."""


class Outcome(StrEnum):
    """What became of a delivery."""

    DONE = "done"
    QUEUED = "queued"
    DUPLICATE = "duplicate"
    UNKNOWN_TYPE = "unknown_type"
    DEAD_LETTER = "dead_letter"
    """Stripe refuses what the event asks for: kept for an operator."""


class StripeEventFlow:
    """Takes events from webhook, event bus, queue and operator."""

    def __init__(
        self,
        events: StripeEvents,
        subscriptions: Subscriptions,
        sync: SubscriptionSync,
        stripe: StripeBilling,
        clock: Clock,
        ids: IdSource,
        journal: Journal,
        *,
        to_queue: Send,
        to_dead_letters: Send,
        follow_overage: FollowOverage = lambda _event, _tenant_id, _user_id: None,
    ) -> None:
        self._events = events
        self._subscriptions = subscriptions
        self._sync = sync
        self._stripe = stripe
        self._clock = clock
        self._ids = ids
        self._journal = journal
        self._to_queue = to_queue
        self._to_dead_letters = to_dead_letters
        self._follow_overage = follow_overage
        self._actions: Mapping[Action, Callable[[StripeEvent], object]] = {
            Action.SYNC: self._sync_owner,
            Action.CHECKOUT: self._end_checkout,
            Action.CUSTOMER: self._look_at_customer,
            Action.OVERAGE: self._look_at_overage,
            Action.DISPUTE: self._look_at_dispute,
            Action.RETURNED_PAYMENT: self._record_refunds,
            Action.FRAUD_WARNING: self._warn_of_fraud,
            Action.METER_ERROR: self._record_meter_error,
            Action.NOTE: self._note,
        }

    def receive(self, event: StripeEvent) -> Outcome:
        """A delivery whose sender waits for the answer; whatever is returned, Stripe need not send it again.

        Raises ConflictError while another delivery of the same event is under way, StripeUnavailableError,
        StoreUnavailableError, StripeRefusedError where it is our key that Stripe refuses: it must be sent again.
        """
        reaction = event.reaction
        if reaction is None:
            self._journal.event("stripe_event_ignored", event_id=event.id, event_type=event.type)
            return Outcome.UNKNOWN_TYPE
        if reaction.queued:
            return self._once(event, Part.DELIVERY, self._enqueue, Outcome.QUEUED)
        return self._once(event, Part.DELIVERY, self.act, Outcome.DONE)

    def work(self, event: StripeEvent) -> Outcome:
        """What was left to the queue. Raises as `receive`, and StripeRefusedError: the message must come again.

        The queue itself moves what fails again and again to the dead letters.
        """
        return self._once(event, Part.WORK, self.act, Outcome.DONE)

    def act(self, event: StripeEvent) -> None:
        """Do what the event leads to, whether or not that was done before: also the operator's replay."""
        reaction = event.reaction
        if reaction is None:
            return
        if reaction.alarm is not None:
            self._journal.measure({reaction.alarm: 1, "StripeAlarms": 1})
        self._actions[reaction.action](event)

    # ---- once

    def _once(self, event: StripeEvent, part: Part, effect: Callable[[StripeEvent], None], outcome: Outcome) -> Outcome:
        lease = Lease(event.id, part, self._ids.new_id(_OWNER_LENGTH))
        match self._events.begin(lease, self._now()):
            case Start.DONE:
                self._journal.event("stripe_event_duplicate", event_id=event.id, event_type=event.type)
                return Outcome.DUPLICATE
            case Start.BUSY:
                raise ConflictError("Another delivery of this event is being handled. Send it again.")
            case Start.NEW:
                pass
        try:
            effect(event)
        except TollgateError as error:
            if part is Part.WORK or not isinstance(error, StripeRefusedError) or error.stripe_code in _MAY_BE_MENDED:
                self._give_back(lease)
                raise
            self._bury(event, error)
            outcome = Outcome.DEAD_LETTER
        self._events.finish(lease, self._now())
        self._journal.event("stripe_event_handled", event_id=event.id, event_type=event.type, outcome=outcome.value)
        return outcome

    def _give_back(self, lease: Lease) -> None:
        """So that the next delivery need not wait; where that fails too, the lease ends by time."""
        try:
            self._events.abandon(lease)
        except StoreUnavailableError:
            return

    def _enqueue(self, event: StripeEvent) -> None:
        self._to_queue(json.dumps(event.document(), separators=(",", ":")))

    def _bury(self, event: StripeEvent, error: StripeRefusedError) -> None:
        self._to_dead_letters(json.dumps(event.document(), separators=(",", ":")))
        self._journal.measure({"StripeEventsRefused": 1, "StripeAlarms": 1})
        self._journal.event(
            "stripe_event_refused", event_id=event.id, event_type=event.type, error_code=error.error_code
        )

    # ---- what events lead to

    def _sync_owner(self, event: StripeEvent, look: Look = NOTHING_ELSE) -> bool:
        """Sync the user whose customer the event is about; False: no customer of ours."""
        owner = self._owner(event)
        if owner is None:
            self._journal.event("stripe_customer_unknown", event_id=event.id, event_type=event.type)
            return False
        self._sync.sync(*owner, look)
        if event.reaction is not None and event.reaction.notice is not None:
            self._journal.event(
                event.reaction.notice,
                event_id=event.id,
                tenant_id=owner[0],
                user_id=owner[1],
                subscription_id=event.object_id if event.object_kind == "subscription" else None,
            )
        return True

    def _end_checkout(self, event: StripeEvent) -> None:
        """Whoever paid in a checkout that we did not make gets nothing here: an operator must look at it."""
        if not self._sync_owner(event, Look(checkout_id=event.object_id)):
            self._journal.measure({"ForeignCheckouts": 1, "StripeAlarms": 1})

    def _look_at_customer(self, event: StripeEvent) -> None:
        self._sync_owner(event, Look(customer=True))

    def _look_at_overage(self, event: StripeEvent) -> None:
        """Of a renewal, an invoice is the first sign: the new period is put in force an hour before it is paid.

        What the closed period still owes belongs on the invoice before it is final, and what it billed is read then.
        """
        owner = self._owner(event)
        if self._sync_owner(event) and owner is not None:
            self._follow_overage(event, *owner)

    def _look_at_dispute(self, event: StripeEvent) -> None:
        """A dispute names a charge and no customer, so it is fetched with its charge."""
        dispute = None if event.object_id is None else self._stripe.find_dispute(event.object_id)
        owner = None if dispute is None else self._owner_of(dispute.customer_id)
        if dispute is None or owner is None:
            self._journal.event("stripe_customer_unknown", event_id=event.id, event_type=event.type)
            return
        self._sync.sync(*owner, Look(dispute_id=dispute.id))
        if dispute.lost:
            # The money is gone, and the subscription it had paid for serves nobody: an operator ends it, or does not.
            self._journal.measure({"DisputesLost": 1, "StripeAlarms": 1})
        closed = "dispute_lost" if dispute.lost else "dispute_closed"
        self._journal.event(
            "payment_disputed" if dispute.open else closed,
            event_id=event.id,
            tenant_id=owner[0],
            user_id=owner[1],
        )

    def _record_refunds(self, event: StripeEvent) -> None:
        """What a subscription paid and got back is between the user and Stripe: no tokens are taken for it."""
        for refund in self._refunds(event):
            owner = self._owner_of(refund.customer_id)
            if owner is not None and self._events.record_refund(*owner, refund):
                self._journal.measure({"PaymentsReturned": 1})
                self._journal.event("payment_returned", event_id=event.id, tenant_id=owner[0], user_id=owner[1])

    def _refunds(self, event: StripeEvent) -> tuple[RemoteRefund, ...]:
        if event.object_id is None:
            return ()
        if event.object_kind == "charge":
            return self._stripe.list_refunds(event.object_id)
        refund = self._stripe.find_refund(event.object_id)
        return () if refund is None else (refund,)

    def _warn_of_fraud(self, event: StripeEvent) -> None:
        """The alarm has rung by the event's type; nobody is locked out on a suspicion."""
        self._journal.event("fraud_warning", event_id=event.id, event_type=event.type)

    def _record_meter_error(self, event: StripeEvent) -> None:
        self._events.record_meter_error(event.id, event.type, event.object_id, self._now())

    def _note(self, event: StripeEvent) -> None:
        self._journal.event("stripe_event_noted", event_id=event.id, event_type=event.type)

    # ---- whose it is

    def _owner(self, event: StripeEvent) -> tuple[str, str] | None:
        customer_id = event.customer_id
        if customer_id is None and event.object_id is not None and event.object_kind is not None:
            customer_id = (
                event.object_id
                if event.object_kind == "customer"
                else self._stripe.customer_of(event.object_kind, event.object_id)
            )
        return self._owner_of(customer_id)

    def _owner_of(self, customer_id: str | None) -> tuple[str, str] | None:
        return None if customer_id is None else self._subscriptions.find_customer(customer_id)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)
