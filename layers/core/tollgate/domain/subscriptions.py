"""Subscriptions: what Stripe says of a customer, what we remember of it, and what it entitles the user to.

Instants are aware UTC in whole seconds, as Stripe's are. No I/O, no clock. Stripe's objects become these values in
`tollgate.providers.stripe_billing`; the record is stored by `tollgate.storage.subscriptions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

LATE_SECONDS: Final = 2 * 3600
"""How long after an instant at which Stripe changes something by itself we look whether it has: a renewal's invoice is
open for an hour before it is paid."""
DISPUTED_SECONDS: Final = 24 * 3600
"""How often we look at a dispute by ourselves: one that was closed untold would lock its payer out for good."""
LOOK_AGAIN_SECONDS: Final = 3600
"""How soon we look again at what cannot be right as it is, such as a plan that the catalog does not know."""


class SubscriptionStatus(StrEnum):
    """Stripe's own words (API 2026-10-28.endive)."""

    INCOMPLETE = "incomplete"
    INCOMPLETE_EXPIRED = "incomplete_expired"
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    CANCELED = "canceled"
    UNPAID = "unpaid"
    PAUSED = "paused"

    @property
    def ended(self) -> bool:
        """Nothing will ever be billed on it again."""
        return self in (SubscriptionStatus.CANCELED, SubscriptionStatus.INCOMPLETE_EXPIRED)


class Interval(StrEnum):
    """How often a plan's price is paid."""

    MONTH = "month"
    YEAR = "year"


@dataclass(frozen=True, slots=True)
class RemoteSubscription:
    """One subscription as Stripe has it now."""

    id: str
    customer_id: str
    status: SubscriptionStatus
    created_at: datetime
    plan_id: str | None
    """Of the item whose price carries our metadata or lookup key; None: no item is a plan of ours."""
    interval: Interval | None
    plan_item_id: str | None
    period_start_at: datetime | None
    """[start, end) that the plan item's price is paid for."""
    period_end_at: datetime | None
    metered_item_id: str | None
    """The item of the overage price; None: this subscription bills no overage."""
    metered_start_at: datetime | None
    metered_end_at: datetime | None
    anchor_at: datetime
    """Stripe's billing_cycle_anchor: months are counted from it."""
    trial_end_at: datetime | None
    cancel_at: datetime | None
    """When it ends by itself (cancel_at, or the period's end with cancel_at_period_end)."""
    pending_plan_id: str | None = None
    """The plan that a schedule puts it on at `pending_at`."""
    pending_interval: Interval | None = None
    """How often that one is paid."""
    pending_at: datetime | None = None
    schedule_id: str | None = None
    owed_since_at: datetime | None = None
    """When the oldest invoice of it that is still open became due; told while a payment is owed, None otherwise."""
    trial_unpaid: bool = False
    """Its trial is over, Stripe calls it active or past due, and no invoice was paid since."""


@dataclass(frozen=True, slots=True)
class RemoteDispute:
    """A payment that its payer has disputed, as Stripe has it now."""

    id: str
    charge_id: str
    customer_id: str | None
    open: bool
    """False: it was won or lost, or was an inquiry only."""
    lost: bool = False
    subscription_id: str | None = None
    """What the payment was for; told of one that was lost."""

    def blocks(self, subscription: RemoteSubscription | None) -> bool:
        """Whether the payer is served nothing: it is open, or what it took back had paid for this subscription.

        Otherwise a year is paid, taken back by the bank, and served to its end. Whoever ends that subscription is
        served again, at first by the default plan.
        """
        if self.open:
            return True
        if not self.lost or subscription is None or subscription.status.ended:
            return False
        return self.subscription_id == subscription.id


@dataclass(frozen=True, slots=True)
class RemoteRefund:
    """Money that went back, as Stripe has it now."""

    id: str
    charge_id: str | None
    customer_id: str | None
    amount_cents: int
    currency: str
    status: str
    """Stripe's word: `succeeded`, `pending`, `failed`, …"""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class OpenCheckout:
    """The one checkout that a user may have open: claimed before Stripe is asked, so that two cannot be."""

    claim: str
    """Made by us, part of Stripe's idempotency key: asking again gives the same session."""
    plan_id: str
    interval: Interval
    expires_at: datetime
    session_id: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Everything we remember about a user as a payer. One item; `version` moves with each write."""

    tenant_id: str
    user_id: str
    version: int = 0
    """0: nothing is stored yet."""
    customer_id: str | None = None
    subscription: RemoteSubscription | None = None
    """The one that counts, as last fetched; kept when it has ended."""
    past_due_since_at: datetime | None = None
    """The first failure of the payment that is still owed."""
    dispute_ids: frozenset[str] = frozenset()
    """Disputes that are open, or lost by us for the subscription that counts: calls are answered `payment_required`."""
    checkout: OpenCheckout | None = None
    first_key_due: bool = False
    """The plan issues a first API key, it is paid for, and the user has not fetched it yet."""
    first_key_issued: bool = False
    """The first key was fetched; no other ever becomes due."""
    had_trial: bool = False
    """Each user has one, whatever becomes of it and of the customer at Stripe."""
    changer: str | None = None
    """Who has the turn to change the plan, which nobody else may before `changing_until_at`."""
    changing_until_at: datetime | None = None
    synced_at: datetime | None = None
    check_at: datetime | None = None
    """When the hourly run looks at this subscriber by itself; None: nothing changes without an event."""


@dataclass(frozen=True, slots=True)
class Entitlements:
    """What a user may do, as their standing with Stripe decides it; the plan's own numbers are in the catalog."""

    plan_id: str
    anchor_at: datetime | None
    """None: that of the account's creation."""
    trial: bool = False
    """The plan's trial quota, and no overage."""
    overage_blocked: bool = False
    paid: bool = True
    """False: a payment is disputed, or was taken back."""
    check_at: datetime | None = None
    """When this ends by time alone (the grace after a failed payment): look again then."""


_STANDING: Final = {
    SubscriptionStatus.ACTIVE: 0,
    SubscriptionStatus.TRIALING: 0,
    SubscriptionStatus.PAST_DUE: 0,
    SubscriptionStatus.UNPAID: 1,
    SubscriptionStatus.PAUSED: 1,
    SubscriptionStatus.INCOMPLETE: 2,
    SubscriptionStatus.CANCELED: 3,
    SubscriptionStatus.INCOMPLETE_EXPIRED: 3,
}
"""What counts before what: served, then waiting for money or for the user, then never paid, then over."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of a customer's subscriptions counts."""

    counts: RemoteSubscription | None
    surplus: tuple[RemoteSubscription, ...]
    """Others that are not over: nobody may pay twice, so they are ended. Newest first."""


def choose_subscription(subscriptions: Iterable[RemoteSubscription]) -> Choice:
    """The one that counts: the best standing, and among equals the oldest; when all are over, the newest.

    Subscriptions without a plan of ours are somebody else's business: they neither count nor are they ended.
    """
    ours = [one for one in subscriptions if one.plan_id is not None]
    alive = sorted((one for one in ours if not one.status.ended), key=_rank)
    if alive:
        return Choice(alive[0], tuple(sorted(alive[1:], key=lambda one: (one.created_at, one.id), reverse=True)))
    return Choice(max(ours, key=lambda one: (one.created_at, one.id), default=None), ())


def _rank(subscription: RemoteSubscription) -> tuple[int, datetime, str]:
    return _STANDING[subscription.status], subscription.created_at, subscription.id


def past_due_since(seen: Subscriber, subscription: RemoteSubscription | None, now: datetime) -> datetime | None:
    """The first failure of the payment that is owed now; None when nothing is.

    Stripe's own invoice tells it. Where it does not, the instant remembered for the same subscription stands, and else
    it is now: a duplicate or a late notice of a failure cannot move it, nor bring it back once Stripe says it is paid.
    """
    if subscription is None or subscription.status is not SubscriptionStatus.PAST_DUE:
        return None
    if subscription.owed_since_at is not None:
        return subscription.owed_since_at
    same = seen.subscription is not None and seen.subscription.id == subscription.id
    return seen.past_due_since_at if same and seen.past_due_since_at is not None else now


def entitlements_of(subscriber: Subscriber, *, default_plan_id: str, grace_days: int, now: datetime) -> Entitlements:
    """What the user may do. Whatever is not paid for, or not any more, is the default plan's.

    Usage periods are counted from the instant that Stripe counts the subscription's months from, also where the plan is
    paid by the year: what is counted and what the overage price bills are the same month.

    The whole plan is for those who have paid once: after a trial, Stripe calls a subscription active for an hour before
    it asks for money, and past due when there is none. Until the first payment it is a trial still.
    """
    paid = not subscriber.dispute_ids
    nothing = Entitlements(default_plan_id, None, paid=paid)
    subscription = subscriber.subscription
    if subscription is None or subscription.plan_id is None:
        return nothing
    plan_id, anchor_at = subscription.plan_id, subscription.anchor_at
    match subscription.status:
        case SubscriptionStatus.ACTIVE:
            return Entitlements(plan_id, anchor_at, trial=subscription.trial_unpaid, paid=paid)
        case SubscriptionStatus.TRIALING:
            return Entitlements(plan_id, anchor_at, trial=True, paid=paid)
        case SubscriptionStatus.PAST_DUE:
            grace_ends_at = (subscriber.past_due_since_at or now) + timedelta(days=grace_days)
            if now < grace_ends_at:
                unpaid = subscription.trial_unpaid
                return Entitlements(
                    plan_id, anchor_at, trial=unpaid, overage_blocked=not unpaid, paid=paid, check_at=grace_ends_at
                )
            return nothing
        case _:
            return nothing


def has_paid(subscription: RemoteSubscription | None) -> bool:
    """A payment has come in. After a trial Stripe calls it active an hour before it asks for the first one."""
    if subscription is None or subscription.status is not SubscriptionStatus.ACTIVE:
        return False
    return not subscription.trial_unpaid


def next_check_at(
    subscription: RemoteSubscription | None, entitlements: Entitlements, now: datetime
) -> datetime | None:
    """When to look again without being told: at the end of a grace, some time after Stripe acts by itself, and daily at
    a dispute.

    So an event that never came delays what it would have done by hours at most.
    """
    due = [] if entitlements.check_at is None else [entitlements.check_at]
    if not entitlements.paid:
        due.append(now + timedelta(seconds=DISPUTED_SECONDS))
    if subscription is not None and not subscription.status.ended:
        acts_at = (
            subscription.trial_end_at,
            subscription.cancel_at,
            subscription.pending_at,
            subscription.period_end_at,
            subscription.metered_end_at,
        )
        late = [at + timedelta(seconds=LATE_SECONDS) for at in acts_at if at is not None]
        soon = now + timedelta(seconds=LOOK_AGAIN_SECONDS)
        due += [at if at > now else soon for at in late if at > now - timedelta(days=1)]
    return min(due, default=None)
