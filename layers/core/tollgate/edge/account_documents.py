"""What the routes of accounts take and give, as pydantic models; the rest of the HTTP API's are in `documents`."""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, field_validator, model_validator

from tollgate.edge.documents import AnswerDocument, PlanDocument, RequestDocument, UsageDocument, UserDocument

SHORTEST_PASSWORD: Final = 12
"""As in the pool's policy in template.yaml."""
MOST_PREFERENCES_BYTES: Final = 8 * 1024
DEEPEST_PREFERENCES: Final = 6

# As browsers check <input type=email>; one @, a domain of labels, and at least one dot. It can be matched without
# going back, however long the text is.
_EMAIL: Final = (
    r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+$"
)
_PLAIN_TEXT: Final = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"

Email = Annotated[str, StringConstraints(max_length=254, pattern=_EMAIL), Field(examples=["ada@example.com"])]
NewPassword = Annotated[
    str,
    StringConstraints(min_length=SHORTEST_PASSWORD, max_length=256, pattern=r"^[^\s].*[^\s]$"),
    Field(
        description="Length counts, not kinds of characters; no blank at either end.",
        examples=["correct horse battery staple"],
    ),
]
Password = Annotated[
    str, StringConstraints(min_length=1, max_length=256), Field(examples=["correct horse battery staple"])
]
Code = Annotated[str, StringConstraints(pattern=r"^[0-9]{6}$"), Field(examples=["123456"])]
RefreshToken = Annotated[
    str,
    StringConstraints(min_length=1, max_length=8192, pattern=r"^[A-Za-z0-9._=-]+$"),
    Field(examples=["eyJjdHkiOiJKV1QiLCJlbmMiOiJBMjU2R0NNIn0.example"]),
]
Session = Annotated[
    str,
    StringConstraints(min_length=20, max_length=2048, pattern=r"^[!-~]+$"),
    Field(examples=["AYABeExampleSession12"]),
]
DisplayName = Annotated[str, StringConstraints(max_length=100, pattern=_PLAIN_TEXT), Field(examples=["Ada Lovelace"])]
Locale = Annotated[
    str, StringConstraints(max_length=35, pattern=r"^[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*$"), Field(examples=["de-CH"])
]
TimeZone = Annotated[
    str,
    StringConstraints(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*$"),
    Field(examples=["Europe/Zurich"]),
]


class RegisterForm(RequestDocument):
    """The password that counts is sent to /auth/confirm, with the code."""

    email: Email
    password: Annotated[
        NewPassword | None, Field(description="Checked by the rules, so that a form can tell at once; not kept.")
    ] = None
    name: DisplayName | None = None


class EmailForm(RequestDocument):
    email: Email


class ConfirmForm(RequestDocument):
    """Whoever has the code chooses the password: it replaces whatever was set before."""

    email: Email
    code: Code
    password: NewPassword


class ResetForm(RequestDocument):
    email: Email
    code: Code
    password: NewPassword


class LoginForm(RequestDocument):
    email: Email
    password: Password


class SecondFactorLoginForm(RequestDocument):
    """The answer to a challenge of /auth/login."""

    email: Email
    session: Session
    code: Code


class RefreshForm(RequestDocument):
    refresh_token: RefreshToken


class LogoutForm(RequestDocument):
    """Without `refresh_token` and `everywhere` there would be nothing to end."""

    refresh_token: RefreshToken | None = None
    everywhere: bool = False

    @model_validator(mode="after")
    def _ends_something(self) -> LogoutForm:
        if self.refresh_token is None and not self.everywhere:
            raise ValueError("send refresh_token, or everywhere: true")
        return self


class SecondFactorForm(RequestDocument):
    """`associate` and `disable` need the password, `verify` needs the code."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"action": "verify", "code": "123456"}]})

    action: Literal["associate", "verify", "disable"]
    password: Password | None = None
    code: Code | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> SecondFactorForm:
        needed = "code" if self.action == "verify" else "password"
        unused = "password" if self.action == "verify" else "code"
        if getattr(self, needed) is None or getattr(self, unused) is not None:
            raise ValueError(f"{self.action} takes {needed} and nothing else")
        return self


class ProfileForm(RequestDocument):
    """All of it: what is left out is removed."""

    display_name: DisplayName | None = None
    locale: Locale | None = None
    time_zone: TimeZone | None = None


class PreferencesDocument(RequestDocument):
    """What apps remember for a user: what all of them know by name, and room of their own under `apps`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    theme: Literal["light", "dark", "system"] | None = None
    default_model: (
        Annotated[
            str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]+$"), Field(examples=["claude-haiku-4-5"])
        ]
        | None
    ) = None
    usage_emails: bool | None = Field(
        default=None, description="False: no mail when so much of the quota is used. Left out, they are sent."
    )
    apps: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")], JsonValue] | None = Field(
        default=None, description="One member for each app, named by it; any JSON in it."
    )

    @field_validator("apps")
    @classmethod
    def _is_flat(cls, apps: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if _depth(apps) > DEEPEST_PREFERENCES:
            raise ValueError(f"may be nested {DEEPEST_PREFERENCES} levels deep at most")
        return apps

    @model_validator(mode="after")
    def _is_small(self) -> PreferencesDocument:
        if len(self.text().encode()) > MOST_PREFERENCES_BYTES:
            raise ValueError(f"the document may have {MOST_PREFERENCES_BYTES} bytes at most")
        return self

    def text(self) -> str:
        """As it is stored; what is null is absent."""
        return json.dumps(
            self.model_dump(exclude_none=True), separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )


class AcceptedDocument(AnswerDocument):
    """The same whether there is such an account or not."""

    status: Literal["accepted"] = "accepted"


class ConfirmedDocument(AnswerDocument):
    status: Literal["confirmed"] = "confirmed"


class PasswordResetDocument(AnswerDocument):
    status: Literal["password_reset"] = "password_reset"


class TokensDocument(AnswerDocument):
    """What Cognito issued. Keep the refresh token of the newest answer: where it is rotated, the old one ends."""

    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  a scheme
    access_token: str
    id_token: str
    refresh_token: str
    expires_in: Annotated[int, Field(gt=0, description="Seconds that the access token lives.")]


class SignedInDocument(TokensDocument):
    """Tokens, and what the app shows next: no further request is needed."""

    user: UserDocument
    plan: PlanDocument
    usage: UsageDocument


class ChallengeDocument(AnswerDocument):
    """The password was right; the code of the authenticator app goes to /auth/login/mfa, with this session."""

    challenge: Literal["SOFTWARE_TOKEN_MFA"]
    session: str


class SecondFactorDocument(AnswerDocument):
    """`secret` and `otpauth_uri` come once, with `associate`."""

    status: Literal["associated", "enabled", "disabled"]
    secret: str | None = None
    otpauth_uri: str | None = None


class ProfileDocument(AnswerDocument):
    """The address comes from the user pool, which has confirmed it; the rest from the user."""

    id: str
    email: str | None
    display_name: str | None
    locale: str | None
    time_zone: str | None


def _depth(value: JsonValue) -> int:
    """Levels of arrays and objects; the parser has refused what is too deep to be counted so."""
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(item) for item in value), default=0)
    return 0
