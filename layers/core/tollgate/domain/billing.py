"""What is asked of Stripe and what it answers, beside the subscription itself. Amounts in hundredths of the currency.

No I/O, no clock. Instants are aware UTC in whole seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tollgate.domain.plans import TaxKind
from tollgate.domain.subscriptions import Interval, RemoteSubscription


class CheckoutStatus(StrEnum):
    """Stripe's own words."""

    OPEN = "open"
    COMPLETE = "complete"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class CheckoutSession:
    """One checkout as Stripe has it now."""

    id: str
    customer_id: str | None
    status: CheckoutStatus
    url: str | None
    """Where the user pays; None once it is complete or has expired."""
    expires_at: datetime
    subscription_id: str | None = None
    """What came of it."""
    claim: str | None = None
    """Ours, from its metadata."""

    @property
    def open(self) -> bool:
        return self.status is CheckoutStatus.OPEN


@dataclass(frozen=True, slots=True)
class CheckoutWish:
    """All that a checkout is made from. The same wish under the same idempotency key gives the same session."""

    tenant_id: str
    user_id: str
    customer_id: str
    claim: str
    plan_id: str
    interval: Interval
    overage_lookup_key: str | None
    """The price that overage is billed at; None: the plan has no overage."""
    success_url: str
    cancel_url: str
    expires_at: datetime
    trial_days: int = 0
    promotion_codes: bool = False
    """Whether the page has a field for them."""
    promotion_id: str | None = None
    """One that is applied from the start; the field is left out then."""
    tax: TaxKind = TaxKind.NONE


@dataclass(frozen=True, slots=True)
class RemoteCustomer:
    """Whose customer it is, by the metadata that we gave it."""

    id: str
    tenant_id: str | None
    user_id: str | None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class PlanChange:
    """A subscription's other plan. `subscription` is as it was when this was decided."""

    subscription: RemoteSubscription
    plan_id: str
    interval: Interval
    overage_lookup_key: str | None
    restarts: bool = False
    """Paid and usage periods begin anew now: the price is paid whole, less what is left of the old one's time."""
    ends_trial: bool = False
    """The new plan has no trial to go on with."""
    goes_on: bool = False
    """It was to end by itself, and shall not any more."""
    paid_or_refused: bool = False
    """Where the charge fails, PaymentFailedError and not a change that waits for its payment."""


@dataclass(frozen=True, slots=True)
class ChangeOutcome:
    """A change that was made at once, or waits for its payment."""

    subscription: RemoteSubscription
    payment_url: str | None = None
    """Where the user pays what the change costs: until then, everything stays as it was."""


@dataclass(frozen=True, slots=True)
class QuoteLine:
    description: str
    amount_cents: int


@dataclass(frozen=True, slots=True)
class Quote:
    """An invoice that Stripe would make."""

    amount_cents: int
    """What would be charged; never negative."""
    currency: str
    lines: tuple[QuoteLine, ...]
    """Negative amounts are credits."""


@dataclass(frozen=True, slots=True)
class Invoice:
    id: str
    number: str | None
    status: str
    """Stripe's own word: draft, open, paid, uncollectible, void."""
    created_at: datetime
    currency: str
    total_cents: int
    paid_cents: int
    due_cents: int
    url: str | None
    """Stripe's page of it, where it can be paid."""
    pdf_url: str | None


@dataclass(frozen=True, slots=True)
class InvoicePage:
    invoices: tuple[Invoice, ...]
    has_more: bool
