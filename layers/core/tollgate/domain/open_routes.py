"""The limits of the open routes, as data: what anybody may ask before we know who it is, and how often.

No I/O, no clock. A rate is GCRA: `burst` requests at once, then one every `seconds / requests`; so in any window of
`seconds` at most `burst + requests` pass. A back-off counts attempts that have not succeeded. The steps are in
`tollgate.flows.open_door`, the writes in `tollgate.storage.rate_limits`, the reasons in docs/limits.md.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

FORGET_SECONDS: Final = 3600
"""Failed attempts are forgotten after this much quiet; longer than any wait, or waiting would wipe the slate."""
KNOWN_SECONDS: Final = 30 * 24 * 3600
"""How long an address from which a mailbox's owner has signed in is remembered."""
UNKNOWN_ADDRESS: Final = "unknown"
"""Requests without a readable source address share one allowance: less room for them, never more."""


class Subject(StrEnum):
    """Whom a limit counts."""

    ADDRESS = "address"
    """An IPv4 address, or the /64 that one IPv6 subscriber gets."""
    NETWORK = "network"
    """The IPv4 /24 or IPv6 /48 around it: the smallest block that is rented out."""
    MAILBOX = "mailbox"
    """An e-mail address without its +tag."""
    PAIR = "pair"
    """A mailbox as used from one address."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in so many seconds, `burst` of them at once. Routes that share its name share the allowance."""

    name: str
    subject: Subject
    requests: int
    seconds: int
    burst: int

    @property
    def interval_ms(self) -> int:
        return -(-self.seconds * 1000 // self.requests)

    @property
    def tolerance_ms(self) -> int:
        return (self.burst - 1) * self.interval_ms

    def scaled(self, percent: int) -> Rate:
        """The same for `percent` of the callers, never less than one request."""
        more = max(1, self.requests * percent // 100)
        return replace(self, requests=more, burst=max(1, self.burst * percent // 100))


@dataclass(frozen=True, slots=True)
class BackOff:
    """So many failures are free; each further one doubles the wait, from a second to `longest_seconds`."""

    name: str
    subject: Subject
    free_failures: int
    longest_seconds: int

    def wait_seconds(self, failures: int) -> int:
        """How long nobody may try after this many failures."""
        if failures < self.free_failures:
            return 0
        return min(self.longest_seconds, 1 << min(failures - self.free_failures, 30))

    def scaled(self, percent: int) -> BackOff:
        """Only an address stands for many people; a mailbox has one owner, however many share the address."""
        if self.subject is not Subject.ADDRESS:
            return self
        return replace(self, free_failures=max(1, self.free_failures * percent // 100))


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """What is asked of a request to one open route, in this order."""

    rates: tuple[Rate, ...]
    guards_password: bool = False
    """Failed attempts are counted: ADDRESS_FAILURES, and MAILBOX_FAILURES or PAIR_FAILURES."""
    makes_account: bool = False
    """The e-mail's domain must not be a disposable one."""


_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 24 * 3600

# A household, an office or a whole mobile carrier may share one address: what honest people do in a minute must pass.
_MAIL_FROM_ADDRESS: Final = Rate("mail", Subject.ADDRESS, requests=20, seconds=_HOUR, burst=10)
# Each of these requests sends one mail to somebody who may not have asked for it.
_MAIL_TO_MAILBOX: Final = Rate("mail", Subject.MAILBOX, requests=5, seconds=_HOUR, burst=3)
_CODES: Final = (
    Rate("codes", Subject.ADDRESS, requests=120, seconds=_HOUR, burst=20),
    Rate("codes", Subject.PAIR, requests=20, seconds=_HOUR, burst=10),
    # A code lives for an hour and is one of a million: 300 guesses from everywhere together are 1 in 3,333. Tighter,
    # and a stranger could keep the owner from using theirs.
    Rate("codes", Subject.MAILBOX, requests=200, seconds=_HOUR, burst=100),
)

OPEN_ROUTES: Final[Mapping[str, RouteLimits]] = MappingProxyType(
    {
        "/auth/register": RouteLimits(
            rates=(
                # Twenty accounts in any 24 hours: a class room may sign up, a script soon has to wait 2.4 hours each.
                Rate("sign-ups", Subject.ADDRESS, requests=10, seconds=_DAY, burst=10),
                # One customer of a hoster has 65,536 /64 in their /48.
                Rate("sign-ups", Subject.NETWORK, requests=50, seconds=_DAY, burst=50),
                # a+1@, a+2@, … are one mailbox, and would be one person's many Free plans.
                Rate("sign-ups", Subject.MAILBOX, requests=5, seconds=_DAY, burst=5),
                _MAIL_TO_MAILBOX,
            ),
            makes_account=True,
        ),
        "/auth/confirm": RouteLimits(rates=_CODES),
        "/auth/resend": RouteLimits(rates=(_MAIL_FROM_ADDRESS, _MAIL_TO_MAILBOX)),
        "/auth/login": RouteLimits(
            rates=(Rate("sign-ins", Subject.ADDRESS, requests=60, seconds=_MINUTE, burst=30),),
            guards_password=True,
        ),
        # What is guessed is the code of the app; Cognito ends a session after a few. Any text passes for a session
        # here, so nothing is counted by mailbox alone: strangers could keep its owner out.
        "/auth/login/mfa": RouteLimits(
            rates=tuple(replace(rate, name="second-factor") for rate in _CODES if rate.subject is not Subject.MAILBOX)
        ),
        # Every app renews once an hour; a whole office does it from one address.
        "/auth/refresh": RouteLimits(
            rates=(Rate("renewals", Subject.ADDRESS, requests=120, seconds=_MINUTE, burst=60),)
        ),
        "/auth/password/forgot": RouteLimits(rates=(_MAIL_FROM_ADDRESS, _MAIL_TO_MAILBOX)),
        "/auth/password/reset": RouteLimits(rates=_CODES),
        # A scanner of public code reports from few addresses, many at once. Guessing here is as hopeless as anywhere.
        "/api-keys/report": RouteLimits(
            rates=(Rate("reports", Subject.ADDRESS, requests=60, seconds=_MINUTE, burst=30),)
        ),
    }
)

ADDRESS_FAILURES: Final = BackOff("failures", Subject.ADDRESS, free_failures=20, longest_seconds=900)
"""One address that tries many mailboxes."""
MAILBOX_FAILURES: Final = BackOff("failures", Subject.MAILBOX, free_failures=5, longest_seconds=300)
"""Many addresses that try one mailbox. The cap keeps what a stranger can do to the owner short: see docs/limits.md."""
PAIR_FAILURES: Final = BackOff("failures", Subject.PAIR, free_failures=5, longest_seconds=900)
"""The owner's own address, which strangers cannot make wait."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """Who asks, as far as can be known before they sign in."""

    address: str
    network: str
    mailbox: str | None

    def subject(self, subject: Subject) -> str:
        """The text that stands for this subject. Raises ValueError when it needs the e-mail and there is none."""
        if subject is Subject.ADDRESS:
            return self.address
        if subject is Subject.NETWORK:
            return self.network
        if self.mailbox is None:
            raise ValueError(f"a limit by {subject} needs the e-mail")
        return self.mailbox if subject is Subject.MAILBOX else f"{self.mailbox} {self.address}"


def stranger_of(source_ip: str | None, email: str | None) -> Stranger:
    """From the address that API Gateway saw, never from a header. Anything unreadable is the one unknown address."""
    mailbox = None if email is None else mailbox_of(email)
    try:
        address = ipaddress.ip_address((source_ip or "").strip())
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        lengths = (32, 24) if address.version == 4 else (64, 48)
        # From text, because a small number alone would be read as an IPv4 address.
        block, network = (str(ipaddress.ip_network(f"{address}/{length}", strict=False)) for length in lengths)
    except ValueError:
        return Stranger(UNKNOWN_ADDRESS, UNKNOWN_ADDRESS, mailbox)
    return Stranger(block, network, mailbox)


def mailbox_of(email: str) -> str:
    """`ada@example.com` for `Ada+news@Example.com`: spellings that arrive in one mailbox, as far as all hosts agree."""
    local, _, domain = email.strip().lower().rpartition("@")
    return f"{local.partition('+')[0]}@{domain.rstrip('.')}"


def digest_of(secret: bytes, kind: str, name: str, subject: Subject, text: str) -> str:
    """What is stored instead of an address or e-mail: useless without the secret, and different for each limit."""
    message = "\x00".join(("open-route", kind, name, subject, text))
    return hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()[:32]
