"""Settings from the environment: read once, refused when incomplete. Nothing else reads the environment.

An unset issuer or client list would not fail later, it would accept anybody's tokens: so a function that misses a
setting does not start, and says which.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

# What each part of a function needs on top of STAGE and TABLE_NAME; builders pass these to `load_settings`.
TOKENS_NEED: Final = ("COGNITO_ISSUER", "COGNITO_CLIENT_IDS")
SIGN_IN_NEEDS: Final = ("COGNITO_CLIENT_ID", "AWS_REGION")
API_KEYS_NEED: Final = ("KEY_PEPPER_PARAMETER", "AWS_REGION")
UPSTREAM_NEEDS: Final = ("UPSTREAM_API_KEY_PARAMETER", "AWS_REGION")
STRIPE_NEEDS: Final = ("STRIPE_SECRET_KEY_PARAMETER", "AWS_REGION")
WEBHOOK_NEEDS: Final = ("STRIPE_WEBHOOK_SECRET_PARAMETER", "STRIPE_EVENT_QUEUE_URL", "STRIPE_EVENT_DLQ_URL")

DEFAULT_UPSTREAM_BASE_URL: Final = "https://api.anthropic.com"
# A Lambda event is at most 6 MB, and JSON inside JSON grows by its escapes; Claude Code's first request is 88 KB.
DEFAULT_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
LARGEST_MAX_BODY_BYTES: Final = 6 * 1024 * 1024

_PLAIN_URL: Final = re.compile(r"https?://[a-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?")
"""Lower-case host, and a path without escapes: what stands in the list is compared as it stands."""
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1", "host.docker.internal"})


class ConfigurationError(Exception):
    """The function must not start. Names every setting that is missing or wrong, and no value."""

    def __init__(self, *, missing: Iterable[str], wrong: Mapping[str, str]) -> None:
        self.missing = tuple(missing)
        self.wrong = dict(wrong)
        problems = [f"{name} is not set" for name in self.missing]
        problems += [f"{name} must be {rule}" for name, rule in self.wrong.items()]
        super().__init__("incomplete configuration: " + "; ".join(problems))


@dataclass(frozen=True, slots=True)
class Settings:
    """One function's configuration. A field is None when the function neither has nor needs it: see `needed`."""

    stage: str
    table_name: str
    catalog_name: str
    default_plan_id: str | None
    """Plan of a new user; None: the catalog's own default."""
    cognito_issuer: str | None
    cognito_jwks_url: str | None
    cognito_client_ids: frozenset[str]
    cognito_client_id: str | None
    """The app client that people sign in through here; one of the others."""
    upstream_base_url: str
    upstream_api_key_parameter: str | None
    key_pepper_parameter: str | None
    allow_test_keys: bool
    max_body_bytes: int
    open_route_rate_percent: int
    """What one address or network may do on the open routes, in percent of the shipped limits."""
    disposable_domains_file: str | None
    """The operator's own list beside the shipped one."""
    aws_region: str | None
    """Where the function runs; Lambda sets it."""
    stripe_secret_key_parameter: str | None
    stripe_webhook_secret_parameter: str | None
    """Of the signing secrets, several of them while they are rotated."""
    stripe_api_base_url: str | None
    """Another Stripe, for local runs; None: Stripe's own."""
    stripe_account: str | None
    """The account whose events are accepted; None: of whichever account the signing secret belongs to."""
    stripe_livemode: bool
    """Whether events are of real money. Those of the other mode are refused."""
    billing_return_urls: tuple[str, ...]
    """Where checkout and portal may send the user back to: each address and what lies below it."""
    stripe_event_queue_url: str | None
    stripe_event_dlq_url: str | None
    operator_webhook_url: str | None
    """Where the operator is told of passed usage thresholds; None: nowhere."""
    operator_webhook_secret_parameter: str | None
    """Of the secrets that sign what is sent there, several of them while they are changed."""
    mail_from: str | None
    """The address that users are told from; None: they are not."""


def load_settings(environ: Mapping[str, str] | None = None, *, required: Iterable[str] = ()) -> Settings:
    """The settings of this function, from the process's environment; an empty variable counts as unset.

    `required` names variables this function cannot work without, besides STAGE and TABLE_NAME.
    Raises ConfigurationError naming all that is missing or wrong at once.
    """
    reader = _Reader(os.environ if environ is None else environ, ("STAGE", "TABLE_NAME", *required))
    issuer = reader.url("COGNITO_ISSUER")
    settings = Settings(
        stage=reader.name("STAGE") or "",
        table_name=reader.text("TABLE_NAME") or "",
        catalog_name=reader.catalog("CATALOG") or "default",
        default_plan_id=reader.name("DEFAULT_PLAN"),
        cognito_issuer=issuer,
        cognito_jwks_url=reader.safe_url("COGNITO_JWKS_URL", issuer and f"{issuer}/.well-known/jwks.json"),
        cognito_client_ids=reader.names("COGNITO_CLIENT_IDS"),
        cognito_client_id=reader.name("COGNITO_CLIENT_ID"),
        upstream_base_url=(reader.url("UPSTREAM_BASE_URL") or DEFAULT_UPSTREAM_BASE_URL).rstrip("/"),
        upstream_api_key_parameter=reader.text("UPSTREAM_API_KEY_PARAMETER"),
        key_pepper_parameter=reader.text("KEY_PEPPER_PARAMETER"),
        allow_test_keys=reader.flag("ALLOW_TEST_KEYS"),
        max_body_bytes=reader.size("MAX_BODY_BYTES", DEFAULT_MAX_BODY_BYTES, LARGEST_MAX_BODY_BYTES),
        open_route_rate_percent=reader.size("OPEN_ROUTE_RATE_PERCENT", 100, 1_000_000),
        disposable_domains_file=reader.path("DISPOSABLE_DOMAINS_FILE"),
        aws_region=reader.name("AWS_REGION"),
        stripe_secret_key_parameter=reader.text("STRIPE_SECRET_KEY_PARAMETER"),
        stripe_webhook_secret_parameter=reader.text("STRIPE_WEBHOOK_SECRET_PARAMETER"),
        stripe_api_base_url=reader.safe_url("STRIPE_API_BASE_URL", None),
        stripe_account=reader.name("STRIPE_ACCOUNT"),
        stripe_livemode=reader.flag("STRIPE_LIVEMODE"),
        billing_return_urls=reader.return_urls("BILLING_RETURN_URLS"),
        stripe_event_queue_url=reader.url("STRIPE_EVENT_QUEUE_URL"),
        stripe_event_dlq_url=reader.url("STRIPE_EVENT_DLQ_URL"),
        operator_webhook_url=reader.safe_url("OPERATOR_WEBHOOK_URL", None),
        operator_webhook_secret_parameter=reader.text("OPERATOR_WEBHOOK_SECRET_PARAMETER"),
        mail_from=reader.mail_address("MAIL_FROM"),
    )
    reader.refuse_problems()
    return settings


def needed(value: str | None) -> str:
    """A setting that `load_settings(required=…)` has already proved present."""
    if not value:
        raise ConfigurationError(missing=["a setting that this builder did not require"], wrong={})
    return value


class _Reader:
    """Reads variables and remembers what is wrong with them."""

    def __init__(self, environ: Mapping[str, str], required: Iterable[str]) -> None:
        self._environ = environ
        self._missing = [name for name in dict.fromkeys(required) if not self.text(name)]
        self._wrong: dict[str, str] = {}

    def refuse_problems(self) -> None:
        if self._missing or self._wrong:
            raise ConfigurationError(missing=self._missing, wrong=self._wrong)

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def name(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
            self._wrong[name] = "letters, digits, - and _, at most 64"
        return value

    def catalog(self, name: str) -> str | None:
        """A shipped catalog's name, or the absolute path of a folder."""
        value = self.text(name)
        return value if value and value.startswith("/") else self.name(name)

    def path(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and not value.startswith("/"):
            self._wrong[name] = "the absolute path of a file"
        return value

    def names(self, name: str) -> frozenset[str]:
        found = frozenset(part.strip() for part in (self.text(name) or "").split(",") if part.strip())
        if self.text(name) and not found:
            self._wrong[name] = "a comma-separated list with at least one entry"
        return found

    def url(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and not _is_http_url(value):
            self._wrong[name] = "an http(s) URL without user, query or fragment"
        return value

    def safe_url(self, name: str, default: str | None) -> str | None:
        """A URL whose answers are trusted: encrypted, except on this machine."""
        value = self.url(name) or default
        if value is not None and name not in self._wrong and _is_http_url(value) and not _is_safe_url(value):
            self._wrong[name] = "https, except for a loopback host"
        return value

    def return_urls(self, name: str) -> tuple[str, ...]:
        """Addresses that users may be sent back to; https, except on this machine."""
        found = tuple(part for part in (self.text(name) or "").split(",") if part)
        if not all(_is_http_url(url) and _is_safe_url(url) and _PLAIN_URL.fullmatch(url) for url in found):
            self._wrong[name] = "https URLs without user, query or fragment, separated by commas; http on this machine"
        return found

    def mail_address(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and not re.fullmatch(r"[^@\s<>,\"]+@[A-Za-z0-9.-]+", value):
            self._wrong[name] = "an e-mail address, without a name beside it"
        return value

    def flag(self, name: str) -> bool:
        value = self.text(name) or "false"
        if value not in {"true", "false"}:
            self._wrong[name] = "true or false"
        return value == "true"

    def size(self, name: str, default: int, largest: int) -> int:
        value = self.text(name) or str(default)
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= largest:
            self._wrong[name] = f"a whole number from 1 to {largest}"
            return default
        return int(value)


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  raises ValueError for a port that is no number
    except ValueError:
        return False
    labels = (parts.hostname or "").removesuffix(".").split(".")
    clean = all(0 < len(label) < 64 for label in labels) and not (
        parts.username or parts.password or parts.query or parts.fragment
    )
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and clean


def _is_safe_url(value: str) -> bool:
    parts = urlsplit(value)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK_HOSTS
