"""What the routes of API keys take and give, as pydantic models."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from tollgate.domain.plans import UNLIMITED
from tollgate.edge.documents import AnswerDocument, RequestDocument, Timestamp

LONGEST_OVERLAP_SECONDS: Final = 7 * 24 * 3600
DAY_SECONDS: Final = 24 * 3600

_PLAIN_TEXT: Final = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"


def _instant(text: str) -> str:
    """2026-02-30 has the form of a day and is none. Python's own words would repeat what was sent."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("no such instant") from None
    return text


Instant = Annotated[Timestamp, AfterValidator(_instant), Field(examples=["2099-12-31T00:00:00Z"])]
KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=80, pattern=_PLAIN_TEXT), Field(examples=["Ada's laptop"])
]
ModelNames = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=100)]],
    Field(
        min_length=1,
        max_length=50,
        description="Ids or aliases; the plan's own list applies as well.",
        examples=[["claude-haiku-4-5"]],
    ),
]
Budget = Annotated[
    int,
    Field(
        ge=1,
        le=UNLIMITED,
        description="Billable tokens of your quota that the key may use in a usage period.",
        examples=[50_000],
    ),
]
Policy = Literal["clamp", "refuse"]


class RateLimitForm(RequestDocument):
    """A limit of the key's own, beside the plan's."""

    requests_per_minute: Annotated[int, Field(ge=1, le=60_000, examples=[30])]
    burst: Annotated[int, Field(ge=1, le=60_000, description="Calls that may come at once.")] = 10


class KeyForm(RequestDocument):
    """A new API key. What is left out does not limit it."""

    name: KeyName
    mode: Literal["live", "test"] = "live"
    expires_at: Instant | None = None
    allowed_models: ModelNames | None = None
    rate_limit: RateLimitForm | None = None
    budget_tokens: Budget | None = None
    max_tokens_policy: Annotated[
        Policy, Field(description="What becomes of a call whose max_tokens does not fit what is left.")
    ] = "clamp"

    @property
    def sha256(self) -> str:
        """Tells two requests apart that came under one idempotency key."""
        return sha256(self.model_dump_json().encode()).hexdigest()


class KeyChangeForm(RequestDocument):
    """What shall be different about a key. Fields left out stay as they are; null takes a limit away."""

    name: KeyName | SkipJsonSchema[None] = None
    allowed_models: ModelNames | None = None
    rate_limit: RateLimitForm | None = None
    budget_tokens: Budget | None = None
    max_tokens_policy: Policy | SkipJsonSchema[None] = None

    @model_validator(mode="after")
    def _only_limits_end(self) -> KeyChangeForm:
        for name in ("name", "max_tokens_policy"):
            if name in self.model_fields_set and getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        return self


class RotationForm(RequestDocument):
    """How long the old key is still accepted; never longer than it would have been without the rotation."""

    overlap_seconds: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_SECONDS)] = DAY_SECONDS


class ReportForm(RequestDocument):
    """A key that somebody found where it should not be."""

    key: Annotated[
        str,
        StringConstraints(min_length=1, max_length=200),
        Field(examples=["tg_live_DLrsIHSbGVtekY4KBhMjbFMVRfof1B0Krl9a"]),
    ]


class RateLimitDocument(AnswerDocument):
    requests_per_minute: int
    burst: int


class KeyDocument(AnswerDocument):
    """An API key as its owner sees it. A limit that does not exist is null."""

    id: str
    name: str
    mode: Literal["live", "test"]
    prefix: str
    last_four: str
    state: Annotated[
        Literal["active", "replaced", "expired", "revoked"],
        Field(description="A replaced key is accepted until its expires_at."),
    ]
    created_at: Timestamp
    expires_at: Timestamp | None
    last_used_at: Annotated[Timestamp | None, Field(description="Within the hour.")]
    allowed_models: list[str] | None
    rate_limit: RateLimitDocument | None
    budget_tokens: int | None
    max_tokens_policy: Policy
    replaced_by: Annotated[str | None, Field(description="Id of the key that a rotation put in its place.")]


class NewKeyDocument(KeyDocument):
    """A key with its text, which is never shown again."""

    key: str


class RotatedKeyDocument(NewKeyDocument):
    """The new key, and the one it replaces."""

    replaces: KeyDocument


class KeyPageDocument(AnswerDocument):
    """Keys, newest first. When `has_more`, ask again with `after_id` set to `last_id`, however few are here."""

    data: list[KeyDocument]
    has_more: bool
    last_id: str | None


class ReportedDocument(AnswerDocument):
    """The same for every text, key or not."""

    status: Literal["received"] = "received"
