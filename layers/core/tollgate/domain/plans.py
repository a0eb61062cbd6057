"""Plans: named bundles of entitlements and prices. The numbers live in `tollgate.catalog`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# A plan without a token or request quota is metered like any other, against a quota nobody can reach: one form of
# every write, and no special case in the proofs. 10^15 stays far inside DynamoDB's 38 digits and a double's 2^53.
UNLIMITED = 1_000_000_000_000_000


class QuotaKind(StrEnum):
    HARD = "hard"
    """Refuse when used up."""
    SOFT = "soft"
    """Go on, and count overage up to the cap."""


class ExpiryPolicy(StrEnum):
    """What a reservation is charged when its end is never known (`tollgate.domain.ledger`)."""

    STRICT = "strict"
    INPUT = "input"
    VOID = "void"


class PeriodKind(StrEnum):
    CALENDAR_MONTH = "calendar_month"
    ANCHORED_MONTH = "anchored_month"
    EVERY_30_DAYS = "every_30_days"


class TaxKind(StrEnum):
    """Who works out sales tax."""

    NONE = "none"
    STRIPE_TAX = "stripe_tax"
    """Stripe does, the seller files it."""
    MANAGED = "managed"
    """Stripe sells in the seller's name and files it (Managed Payments)."""


class LateUsage(StrEnum):
    """What becomes of overage that was settled when its invoice was final already."""

    CARRY = "carry"
    """It is part of the next invoice."""
    WRITE_OFF = "write_off"
    """It is never billed; the account shows how much that was."""


@dataclass(frozen=True, slots=True)
class Billing:
    """How a catalog is sold, the same for all of its plans."""

    currency: str = "usd"
    """Of every price and of overage; one with hundredths, which are called cents here."""
    tax: TaxKind = TaxKind.NONE
    promotion_codes: bool = False
    """Whether checkout has a field for them."""
    grace_days: int = 7
    """How long a plan lasts after a payment has failed; overage ends at once."""
    fee_permille: int = 29
    """What the card costs of each payment; for margins only, like the two below."""
    fee_cents: int = 30
    billing_fee_permille: int = 7
    overage_lookup_key: str = "tollgate_overage"
    meter_event_name: str = "tollgate_overage"
    late_usage: LateUsage = LateUsage.CARRY


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user may do. `None` means not limited; tokens are billable tokens unless a name says otherwise."""

    id: str
    name: str
    quota_kind: QuotaKind
    quota_tokens: int | None
    quota_requests: int | None
    overage_cap_tokens: int
    overage_price_microusd_per_1k_tokens: int
    price_cents: int
    period_kind: PeriodKind
    models: frozenset[str]
    """Allowed model ids (aliases resolved); empty: every model of the catalog."""
    requests_per_minute: int | None
    burst_requests: int
    max_open_reservations: int
    max_output_tokens: int | None
    slice_output_tokens: int | None
    """Soft quotas: reserve this much output at a time. None: reserve all of max_tokens at once."""
    expiry_policy: ExpiryPolicy
    max_api_keys: int = 10
    """API keys that a user may have at a time; 0: none can be made."""
    upgrade_message: str = ""
    """The operator's own sentence, appended to the quota refusal: where to get more."""
    pool_tokens: int | None = None
    """What all users of the plan may use together in a calendar month; at least the most that one may use."""
    annual_price_cents: int | None = None
    """For a year at once; None: sold by the month only. The usage period stays a month."""
    trial_days: int = 0
    trial_quota_tokens: int | None = None
    """Quota of a usage period that begins in the trial; None: that of the plan. A trial has no overage."""
    protected: bool = False
    """It must not be able to lose money: `tollgate plans lint` fails when it can."""
    overage_opt_in: bool = False
    """Overage only for users who asked for it."""
    issue_first_key: bool = False
    """The first payment entitles the user to an API key, shown once."""
    sold: bool = False
    """It can be bought by checkout."""

    def allows_model(self, model_id: str) -> bool:
        return not self.models or model_id in self.models

    @property
    def hard(self) -> bool:
        return self.quota_kind is QuotaKind.HARD

    @property
    def overage_price_nanousd_per_token(self) -> int:
        """The same figure: a thousandth of a micro-USD is a nano-USD."""
        return self.overage_price_microusd_per_1k_tokens

    @property
    def stored_quota_tokens(self) -> int:
        return UNLIMITED if self.quota_tokens is None else self.quota_tokens

    @property
    def most_tokens(self) -> int:
        """The most that one user can use in a period, overage included: what opening a meter takes of the pool."""
        return self.stored_quota_tokens + self.overage_cap_tokens

    @property
    def stored_quota_requests(self) -> int:
        return UNLIMITED if self.quota_requests is None else self.quota_requests
