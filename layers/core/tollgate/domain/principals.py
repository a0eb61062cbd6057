"""Who calls: the principal of a request and the account behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from tollgate.domain.plans import Plan
from tollgate.domain.subscriptions import Entitlements

NANOUSD_PER_CENT: Final = 10_000_000


class CredentialKind(StrEnum):
    API_KEY = "api_key"
    ACCESS_TOKEN = "access_token"  # noqa: S105  a kind, not a secret


class MaxTokensPolicy(StrEnum):
    """What an API key wants when `max_tokens` does not fit what is left."""

    CLAMP = "clamp"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What an API key may use of its user's quota: limits of its own, beside and never above those of the plan."""

    id: str
    """Names the counters in the meter; a rotated key and its successor share one, and so one budget."""
    label: str
    """How its owner knows the key, for refusals."""
    budget_tokens: int | None = None
    """Billable tokens in one usage period; None: the whole quota."""
    requests_per_minute: int | None = None
    burst_requests: int = 1


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller. Built from a verified credential and our own table only."""

    tenant_id: str
    user_id: str
    credential: CredentialKind
    credential_id: str
    """Key id, or the access token's client id."""
    max_tokens_policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP
    allowed_models: frozenset[str] = frozenset()
    """Model ids the credential is restricted to; empty: all of the plan."""
    limits: KeyLimits | None = None
    """None: the credential has no limits of its own, and its calls write nothing about it."""

    def allows_model(self, model_id: str) -> bool:
        return not self.allowed_models or model_id in self.allowed_models


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's stored standing: which plan, in which version, since when.

    Every change of what a user may do moves `plan_version`: the plan, the anchor, `trial`, `overage_blocked`, `paid`,
    the user's own overage cap. Whoever has an older one in hand is refused by the meter and loads the account again.
    """

    tenant_id: str
    user_id: str
    plan_id: str
    plan_version: int
    anchor_at: datetime
    """The instant from which anchored usage periods are counted."""
    email: str | None = None
    paid: bool = True
    """False: the subscription is unpaid, calls are answered `payment_required`."""
    deleted_at: datetime | None = None
    """When the account was deleted. What is left then names nobody, and no credential opens it again."""
    email_verified: bool = True
    """False: the user pool has said that nobody has confirmed the address; calls are answered `email_not_verified`."""
    created_at: datetime | None = None
    """When the account was made, in whole seconds; not given: at the anchor, which a subscription moves later."""
    trial: bool = False
    """The plan's trial quota, and no overage."""
    overage_blocked: bool = False
    """A payment has failed: no overage until it is made good."""
    overage_cap_cents: int | None = None
    """The user's own limit to overage in one usage period, in cents; 0: none at all. None: never chosen."""

    def __post_init__(self) -> None:
        if self.created_at is None:
            object.__setattr__(self, "created_at", self.anchor_at)

    def entitled_to(self, entitlements: Entitlements) -> Profile:
        """The same user with these entitlements, in the same version."""
        return replace(
            self,
            plan_id=entitlements.plan_id,
            anchor_at=entitlements.anchor_at or self.created_at or self.anchor_at,
            trial=entitlements.trial,
            overage_blocked=entitlements.overage_blocked,
            paid=entitlements.paid,
        )


@dataclass(frozen=True, slots=True)
class Person:
    """What users tell about themselves. Nothing is decided by it."""

    display_name: str | None = None
    locale: str | None = None
    """A language tag, such as `de-CH`."""
    time_zone: str | None = None
    """A name of the IANA database, such as `Europe/Zurich`."""


@dataclass(frozen=True, slots=True)
class Account:
    """A profile with its plan resolved: everything admission needs to know about the caller."""

    profile: Profile
    plan: Plan
    """As it is for this user: see `effective_plan`."""
    catalog_plan: Plan | None = None
    """As everybody can read it in the catalog; None: it is the same for this user."""

    @classmethod
    def of(cls, profile: Profile, plan: Plan) -> Account:
        """`plan`: the profile's, as the catalog has it."""
        return cls(profile, effective_plan(plan, profile), plan)

    @property
    def listed_plan(self) -> Plan:
        return self.catalog_plan or self.plan

    def overage_left_tokens(self, banked_tokens: int, banked_nanousd: int) -> int:
        """How far this usage period may still go beyond its quota when so much overage is owed already."""
        return _overage_tokens(self.listed_plan, self.profile, banked_tokens, banked_nanousd)

    @property
    def tenant_id(self) -> str:
        return self.profile.tenant_id

    @property
    def user_id(self) -> str:
        return self.profile.user_id


def effective_plan(plan: Plan, profile: Profile) -> Plan:
    """The catalog's plan as it is for one user: the trial's quota, and overage as far as plan, payments and user allow.

    The user's own cap is in money, and becomes tokens by the plan's price.
    """
    quota_tokens = plan.quota_tokens
    if profile.trial and plan.trial_quota_tokens is not None:
        quota_tokens = plan.trial_quota_tokens
    cap_tokens = _overage_tokens(plan, profile, 0, 0)
    if (quota_tokens, cap_tokens) == (plan.quota_tokens, plan.overage_cap_tokens):
        return plan
    return replace(plan, quota_tokens=quota_tokens, overage_cap_tokens=cap_tokens)


def _overage_tokens(plan: Plan, profile: Profile, banked_tokens: int, banked_nanousd: int) -> int:
    own_cents, price_nanousd = profile.overage_cap_cents, plan.overage_price_nanousd_per_token
    unasked = plan.overage_opt_in and own_cents is None
    if profile.trial or profile.overage_blocked or unasked or own_cents == 0:
        return 0
    tokens = plan.overage_cap_tokens - banked_tokens
    if own_cents is not None and price_nanousd > 0:
        tokens = min(tokens, (own_cents * NANOUSD_PER_CENT - banked_nanousd) // price_nanousd)
    return max(0, tokens)
