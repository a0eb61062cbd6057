"""The JSON documents that the HTTP API takes and gives, as pydantic models: docs/openapi.json is made from them.

Not for the streaming function: pydantic would slow its start.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

UserId = Annotated[str, Field(examples=["5d8f7c1e-4b3a-4c2d-9e1f-a0b1c2d3e4f5"])]
TenantId = Annotated[str, Field(examples=["main"])]
EmailAddress = Annotated[str, Field(examples=["ada@example.com"])]
PlanId = Annotated[str, Field(examples=["free"])]
Tokens = Annotated[int, Field(ge=0)]
Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", examples=["2026-11-20T10:30:00Z"])]
"""An instant in UTC, whole seconds."""


class RequestDocument(BaseModel):
    """A request's body: only the fields named, only of the types named; `"1"` is no number and 1 is no text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AnswerDocument(BaseModel):
    """An answer. Whatever a route returns is checked against it, so a field that was forgotten is a fault of ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HealthDocument(AnswerDocument):
    status: Literal["ok"]


class UserDocument(AnswerDocument):
    """Who somebody is."""

    id: UserId
    tenant_id: TenantId
    email: EmailAddress | None


class PlanDocument(AnswerDocument):
    """What a plan includes. A quota that does not exist is null; so are `models` when every model is included."""

    id: PlanId
    name: Annotated[str, Field(examples=["Free"])]
    quota_kind: Literal["hard", "soft"]
    quota_tokens: Tokens | None
    quota_requests: Tokens | None
    overage_cap_tokens: Tokens
    models: list[Annotated[str, Field(examples=["claude-haiku-4-5"])]] | None
    requests_per_minute: Tokens | None
    max_output_tokens: Tokens | None


class CredentialDocument(AnswerDocument):
    """What the caller proved themselves with."""

    kind: Literal["access_token", "api_key"]
    id: Annotated[str, Field(description="The app client of a token, the id of a key", examples=["1example2client3"])]


class MeDocument(AnswerDocument):
    """The caller, as the server sees them."""

    user: UserDocument
    plan: PlanDocument
    paid: bool
    credential: CredentialDocument


class PeriodDocument(AnswerDocument):
    """A usage period: from `start_at` on, and before `end_at`."""

    id: Annotated[str, Field(examples=["2026-11"])]
    start_at: Timestamp
    end_at: Timestamp


class TokenUseDocument(AnswerDocument):
    """Billable (weighted) tokens, the metered unit."""

    quota: Tokens | None
    used: Tokens
    reserved: Tokens
    remaining: Tokens | None
    overage: Tokens
    written_off: Tokens


class RequestUseDocument(AnswerDocument):
    quota: Tokens | None
    used: Tokens
    reserved: Tokens
    remaining: Tokens | None


class KindsDocument(AnswerDocument):
    """The provider's own counts."""

    input_tokens: Tokens
    output_tokens: Tokens
    cache_write_tokens: Tokens
    cache_read_tokens: Tokens


class UsageDocument(AnswerDocument):
    """The running period: what is used, reserved and left, and what it cost upstream."""

    user: UserDocument
    plan: PlanDocument
    period: PeriodDocument
    resets_at: Timestamp
    tokens: TokenUseDocument
    requests: RequestUseDocument
    used_percent: Annotated[
        int | None,
        Field(description="Of the quota that is nearest to its end; above 100 is overage", examples=[42]),
    ]
    by_kind: KindsDocument
    cost_picousd: Annotated[int, Field(ge=0, description="10^-12 US dollars")]
