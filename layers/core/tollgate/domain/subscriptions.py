"""Subscriptions: what Stripe says of a customer, what we remember of it, and what it entitles the user to.

Instants are aware UTC in whole seconds, as Stripe's are. No I/O, no clock. Stripe's objects become these values in
`tollgate.providers.stripe_billing`; the record is stored by `tollgate.storage.subscriptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


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
    pending_at: datetime | None = None
    schedule_id: str | None = None


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
    """Disputes that are open: until they are closed, calls are answered `payment_required`."""
    checkout: OpenCheckout | None = None
    first_key_issued: bool = False
    synced_at: datetime | None = None


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
    """False: a payment is disputed."""
    check_at: datetime | None = None
    """When this ends by time alone (the grace after a failed payment): look again then."""
