"""API keys: how they look, how a look-alike is refused without any lookup, and what is stored instead of them.

`tg_live_` or `tg_test_`, 30 base62 characters (178 random bits), 6 base62 characters of CRC32 over all that precedes.
The prefix lets secret scanners recognise a leak; the checksum refuses typos and guesses offline. The scheme is
GitHub's: https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from tollgate.domain.principals import KeyLimits, MaxTokensPolicy

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PREFIX_LENGTH: Final = 8
_SECRET_LENGTH: Final = 30
_CHECKSUM_LENGTH: Final = 6  # 62^6 > 2^32
_TIME_LENGTH: Final = 6  # seconds until the year 3769
_LENGTH: Final = _PREFIX_LENGTH + _SECRET_LENGTH + _CHECKSUM_LENGTH
# Twice what the 178 bits need would still be even enough; 32 bytes leave a bias below 2^-77.
SECRET_BYTES: Final = 32


class KeyMode(StrEnum):
    """The prefix of a key. Test keys are refused where ALLOW_TEST_KEYS is false."""

    LIVE = "tg_live_"
    TEST = "tg_test_"


class KeyState(StrEnum):
    """What became of a key."""

    ACTIVE = "active"
    REPLACED = "replaced"
    """Rotated: still accepted until its overlap ends, which is its `expires_at`."""
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyRefusal(StrEnum):
    """Why a key that was really found is not accepted; the value is the public error code."""

    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A machine credential as stored: everything but the key."""

    id: str
    key_hash: str
    tenant_id: str
    user_id: str
    mode: KeyMode
    last_four: str
    created_at: datetime
    name: str = ""
    expires_at: datetime | None = None
    """Not accepted from this instant on."""
    revoked_at: datetime | None = None
    max_tokens_policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP
    pepper_version: int = 1
    """Which pepper made the hash, so that the pepper can be replaced while old keys live on."""
    allowed_models: frozenset[str] = frozenset()
    """Model ids; empty: every model of the plan."""
    budget_tokens: int | None = None
    """Billable tokens of the user's quota that this key may use in one usage period."""
    requests_per_minute: int | None = None
    burst_requests: int | None = None
    first_id: str = ""
    """Id of the first key of a line of rotations; empty for that key itself."""
    replaced_by: str | None = None
    """Id of the key that a rotation put in its place."""
    last_used_at: datetime | None = None
    """Within the hour."""

    @property
    def line_id(self) -> str:
        """The same for a key and all its successors: they take one place in the plan and share one budget."""
        return self.first_id or self.id

    @property
    def limits(self) -> KeyLimits | None:
        """What the ledger counts for this key; None when there is nothing to count."""
        if self.budget_tokens is self.requests_per_minute is None:
            return None
        return KeyLimits(
            id=self.line_id,
            label=f'"{self.name}" (…{self.last_four})' if self.name else f"…{self.last_four}",
            budget_tokens=self.budget_tokens,
            requests_per_minute=self.requests_per_minute,
            burst_requests=self.burst_requests or 1,
        )

    def state_at(self, now_seconds: float) -> KeyState:
        refusal = self.refusal_at(now_seconds)
        if refusal is not None:
            return KeyState(refusal.value)
        return KeyState.ACTIVE if self.replaced_by is None else KeyState.REPLACED

    def refusal_at(self, now_seconds: float) -> KeyRefusal | None:
        """Why the key is refused at this instant; None when it is good."""
        if self.revoked_at is not None:
            return KeyRefusal.REVOKED
        if self.expires_at is not None and now_seconds >= self.expires_at.timestamp():
            return KeyRefusal.EXPIRED
        return None


@dataclass(frozen=True, slots=True)
class KeyWish:
    """What a new key shall be."""

    name: str
    mode: KeyMode = KeyMode.LIVE
    expires_at: datetime | None = None
    allowed_models: frozenset[str] = frozenset()
    budget_tokens: int | None = None
    requests_per_minute: int | None = None
    burst_requests: int | None = None
    max_tokens_policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP


def overlap_end(key: ApiKey, now: datetime, overlap_seconds: int) -> datetime:
    """Until when a key that is rotated now is still accepted: never longer than it would have been anyway.

    Whole seconds, rounded down.
    """
    end = now.replace(microsecond=0) + timedelta(seconds=overlap_seconds)
    return end if key.expires_at is None else min(end, key.expires_at)


def key_id(created_at_seconds: int, random_text: str) -> str:
    """A new key's id: sorts by the second of creation, and nobody else's can be guessed from it."""
    return _base62(created_at_seconds, _TIME_LENGTH) + random_text


def mint_api_key(mode: KeyMode, random_bytes: bytes) -> str:
    """A new key from at least SECRET_BYTES unpredictable bytes. Shown once, never stored."""
    if len(random_bytes) < SECRET_BYTES:
        raise ValueError(f"an API key needs {SECRET_BYTES} random bytes")
    body = mode.value + _base62(int.from_bytes(random_bytes), _SECRET_LENGTH)
    return body + _checksum(body)


def is_well_formed(text: str) -> bool:
    """Whether this can be a key of ours at all. One microsecond, no lookup: it stands before every read."""
    if len(text) != _LENGTH or not text.isascii() or not text[_PREFIX_LENGTH:].isalnum():
        return False
    body = text[:-_CHECKSUM_LENGTH]
    return text[:_PREFIX_LENGTH] in _PREFIXES and text[-_CHECKSUM_LENGTH:] == _checksum(body)


def mode_of(text: str) -> KeyMode | None:
    """The mode a key claims by its prefix; None: not a key of ours."""
    return _PREFIXES.get(text[:_PREFIX_LENGTH])


def hash_api_key(text: str, pepper: bytes) -> str:
    """HMAC-SHA256 under the pepper, hex: the only form in which a key is stored or remembered.

    No slow hash: it would buy nothing against 178 random bits, and 40 ms or more of CPU for every guess is a gift to
    whoever wants to run up a bill.
    """
    if not pepper:
        raise ValueError("an API key is not hashed without a pepper")
    return hmac.digest(pepper, text.encode(), hashlib.sha256).hex()


_PREFIXES: Final = {mode.value: mode for mode in KeyMode}


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    """The last `length` base62 digits of a number."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
