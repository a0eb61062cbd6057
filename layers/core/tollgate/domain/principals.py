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
class Principal:
    """The authenticated caller. Built from a verified credential and our own table only."""

    tenant_id: str
    user_id: str
    credential: CredentialKind
    credential_id: str
    """Key id, or the access token's client id."""
    max_tokens_policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP


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
