"""Who calls: the principal of a request and the account behind it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tollgate.domain.plans import Plan


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
    """A user's stored standing: which plan, in which version, since when."""

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

    @property
    def tenant_id(self) -> str:
        return self.profile.tenant_id

    @property
    def user_id(self) -> str:
        return self.profile.user_id
