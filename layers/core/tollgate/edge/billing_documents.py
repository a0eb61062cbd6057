"""What the billing routes take and give, as pydantic models. Money is in hundredths of the currency (cents)."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from tollgate.edge.documents import (
    AnswerDocument,
    PeriodDocument,
    PlanDocument,
    PlanId,
    RequestDocument,
    Timestamp,
    Tokens,
    TokenUseDocument,
)

LARGEST_CAP_CENTS: Final = 100_000_000
"""A million: what anybody types beyond it is a slip."""

Cents = Annotated[int, Field(ge=0, examples=[2900])]
Currency = Annotated[str, Field(pattern="^[a-z]{3}$", examples=["usd"])]
IntervalName = Literal["month", "year"]
WantedPlan = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", min_length=1, max_length=16),
    Field(examples=["pro"], description="Id of a plan."),
]
PageUrl = Annotated[str, Field(examples=["https://checkout.stripe.com/c/pay/cs_test_a1"])]
ReturnUrl = Annotated[
    str,
    StringConstraints(min_length=8, max_length=2000, pattern=r"^https?://[!-~]+$"),
    Field(
        examples=["https://app.example.com/billing"],
        description="One of the pages that the operator has listed, or one below it.",
    ),
]
PromotionCode = Annotated[
    str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$"), Field(examples=["SPRING26"])
]


# --- Taken


class CheckoutForm(RequestDocument):
    """What to buy, and where to go afterwards."""

    plan: WantedPlan
    interval: IntervalName = "month"
    success_url: Annotated[
        ReturnUrl, Field(description="After the payment; {CHECKOUT_SESSION_ID} in its query is filled in by Stripe.")
    ]
    cancel_url: Annotated[ReturnUrl, Field(description="When the user turns back.")]
    promotion: Annotated[
        PromotionCode | None, Field(description="A promotion code that is applied from the start.")
    ] = None


class PortalForm(RequestDocument):
    """Where to go after the visit."""

    return_url: ReturnUrl


class PlanChangeForm(RequestDocument):
    """The plan to be on."""

    plan: Annotated[WantedPlan, Field(description="The default plan ends the subscription when it is paid up.")]
    interval: Annotated[IntervalName | None, Field(description="Left out: as it is paid now.")] = None
    preview: Annotated[bool, Field(description="Only tell what it would cost.")] = False


class OverageForm(RequestDocument):
    """Whether calls go on when the quota is used up, and for how much."""

    enabled: bool
    cap_cents: Annotated[
        int | None,
        Field(
            ge=1,
            le=LARGEST_CAP_CENTS,
            description="At most this much overage in one usage period; left out: as much as the plan allows.",
            examples=[2000],
        ),
    ] = None


# --- Given


class PlanOfferDocument(PlanDocument):
    """A plan with its prices. Whoever buys none has the one that is `default`."""

    default: bool
    sold: Annotated[bool, Field(description="Whether checkout sells it.")]
    price_cents: Annotated[Cents, Field(description="For a month.")]
    annual_price_cents: Annotated[Cents | None, Field(description="For a year at once; null: sold by the month only.")]
    trial_days: int
    trial_quota_tokens: Tokens | None
    overage_opt_in: Annotated[bool, Field(description="Overage only for users who asked for it.")]
    overage_price_microusd_per_1k_tokens: int


class PlansDocument(AnswerDocument):
    """What there is to buy."""

    currency: Currency
    tax: Annotated[Literal["none", "stripe_tax", "managed"], Field(description="Whether tax comes on top, and whose.")]
    promotion_codes: Annotated[bool, Field(description="Whether checkout has a field for them.")]
    data: list[PlanOfferDocument]


class CheckoutDocument(AnswerDocument):
    """A checkout that can be paid at `url` until `expires_at`. The same one as long as the same is ordered."""

    id: Annotated[str, Field(examples=["cs_test_a1"])]
    url: PageUrl
    expires_at: Timestamp


class PortalDocument(AnswerDocument):
    """A visit to the billing portal; the address is good for minutes, and for its user alone."""

    url: PageUrl


class PendingChangeDocument(AnswerDocument):
    """What becomes of the plan by itself."""

    plan: PlanId
    at: Timestamp


class SubscriptionDocument(AnswerDocument):
    """What is paid for."""

    state: Annotated[
        Literal["incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused"],
        Field(description="Stripe's own word. Served are trialing, active, and past_due until the grace ends."),
    ]
    plan: PlanId | None
    interval: IntervalName | None
    renews_at: Annotated[Timestamp | None, Field(description="The next payment; null when none comes.")]
    ends_at: Annotated[Timestamp | None, Field(description="When it ends by itself.")]
    trial_ends_at: Annotated[Timestamp | None, Field(description="While it is a trial.")]
    grace_ends_at: Annotated[
        Timestamp | None, Field(description="A payment has failed: until then the plan lasts, without overage.")
    ]
    pending_change: Annotated[
        PendingChangeDocument | None, Field(description="Null too when the subscription ends by then.")
    ]


class OverageDocument(AnswerDocument):
    """Use beyond the quota in the running usage period."""

    allowed: Annotated[bool, Field(description="Whether a call that does not fit the quota would go on now.")]
    chosen: Annotated[bool | None, Field(description="The user's own choice; null: none was made yet.")]
    cap_cents: Annotated[Cents | None, Field(description="The user's own cap; null: none was set.")]
    plan_cap_cents: Annotated[Cents, Field(description="The most that the plan allows.")]
    tokens: Tokens
    cost_cents: Annotated[Cents, Field(description="So far, rounded down.")]
    cost_nanousd: Annotated[int, Field(ge=0, description="So far, exactly: 10^-9 of the currency.")]


class OpenCheckoutDocument(AnswerDocument):
    """A checkout that can be paid still."""

    plan: PlanId
    interval: IntervalName
    url: PageUrl | None
    expires_at: Timestamp


class BillingStatusDocument(AnswerDocument):
    """How the caller stands."""

    plan: PlanDocument
    paid: Annotated[bool, Field(description="False: a payment is disputed, and calls are refused until it is settled.")]
    subscription: Annotated[SubscriptionDocument | None, Field(description="Null: nothing was ever bought.")]
    period: PeriodDocument
    tokens: TokenUseDocument
    overage: OverageDocument
    currency: Currency
    portal_available: bool
    first_key_available: Annotated[bool, Field(description="POST /billing/first-key gives an API key, once.")]
    checkout: OpenCheckoutDocument | None


class QuoteLineDocument(AnswerDocument):
    description: str
    amount_cents: Annotated[int, Field(description="Negative: a credit for what was paid and not used.")]


class QuoteDocument(AnswerDocument):
    """An invoice as Stripe would make it."""

    amount_cents: Cents
    currency: Currency
    lines: list[QuoteLineDocument]


class PlanChangeDocument(AnswerDocument):
    """What becomes of the wish, or became of it."""

    preview: bool
    effect: Annotated[
        Literal["none", "now", "at_period_end", "keep"],
        Field(description="none: it is so already; keep: what was to come is forgotten."),
    ]
    plan: PlanId
    interval: IntervalName
    effective_at: Annotated[Timestamp | None, Field(description="When it comes; null: now, or nothing comes.")]
    due_now: Annotated[QuoteDocument | None, Field(description="Of a preview; null: nothing.")]
    each_period: Annotated[QuoteDocument | None, Field(description="Of a preview; null: nothing is paid any more.")]
    payment_url: Annotated[
        PageUrl | None, Field(description="The card was declined: nothing changes before this is paid.")
    ]


class InvoiceDocument(AnswerDocument):
    id: Annotated[str, Field(examples=["in_1a"])]
    number: str | None
    state: Annotated[str, Field(description="Stripe's own word.", examples=["paid"])]
    created_at: Timestamp
    currency: Currency
    total_cents: int
    paid_cents: int
    due_cents: int
    url: Annotated[str | None, Field(description="Stripe's page of it, where it can be paid.")]
    pdf_url: str | None


class InvoicePageDocument(AnswerDocument):
    """Invoices, newest first. When there are more, ask again with `after` set to `last_id`."""

    data: list[InvoiceDocument]
    has_more: bool
    last_id: str | None
