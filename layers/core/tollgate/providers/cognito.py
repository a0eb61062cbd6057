"""Cognito's access tokens: verified here, offline, against the user pool's published keys.

PyJWT checks the form and the signature. Claims and time are checked here, because PyJWT reads its own clock and takes
`exp` as a numeric string; keys are cached here, because its key client keeps no stale set through an outage, takes
encryption keys for signing keys and asks again after every failed fetch. Rules: RFC 8725, and
https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-tokens-verifying-a-jwt.html
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
from jwt.algorithms import RSAAlgorithm

from tollgate.domain.errors import AuthenticationError, UpstreamUnavailableError
from tollgate.domain.sources import Clock, Report

MAX_TOKEN_BYTES: Final = 8 * 1024
MAX_NAME_LENGTH: Final = 128  # of a subject or client id, both of which become keys; Cognito's are 36 and 26
LEEWAY_SECONDS: Final = 30
LONGEST_LIFE_SECONDS: Final = 24 * 3600  # Cognito's own maximum for access tokens

FETCH_TIMEOUT_SECONDS: Final = 2
MAX_KEY_SET_BYTES: Final = 64 * 1024  # Cognito's are 1 KB
COOLDOWN_SECONDS: Final = 30
FRESH_SECONDS: Final = 3600
STALE_SECONDS: Final = 24 * 3600

_INVALID: Final = "The credential is not valid."


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a verified token says. Groups, custom attributes and scopes are not read: plans come from our table."""

    sub: str
    client_id: str
    expires_at_seconds: int


class KeyFetchError(Exception):
    """The key set could not be had now; the reason is for logs."""


class KeySetUrl:
    """Where the pool publishes its keys. One GET, no redirect, two seconds, 64 KB."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._parts = urlsplit(url)
        self._clock = clock

    def fetch(self) -> bytes:
        """The document as it came. Raises KeyFetchError."""
        connection = self._connect()
        try:
            connection.request("GET", self._parts.path or "/", headers={"accept": "application/json"})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise KeyFetchError(f"the key set was answered with status {response.status}")
            return self._read(response)
        except (OSError, http.client.HTTPException) as error:
            raise KeyFetchError(f"the key set could not be read: {type(error).__name__}") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=FETCH_TIMEOUT_SECONDS, context=context)
        return http.client.HTTPConnection(host, port, timeout=FETCH_TIMEOUT_SECONDS)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        # The socket's timeout bounds each read; the deadline bounds a server that drips.
        deadline = self._clock.now_seconds() + FETCH_TIMEOUT_SECONDS
        body = b""
        while part := response.read1(MAX_KEY_SET_BYTES):
            body += part
            if len(body) > MAX_KEY_SET_BYTES:
                raise KeyFetchError("the key set is too large")
            if self._clock.now_seconds() > deadline:
                raise KeyFetchError("the key set came too slowly")
        if response.length:  # what Content-Length promised beyond this; read1 does not mind
            raise KeyFetchError("the key set was cut short")
        return body


class SigningKeys:
    """The pool's RSA signing keys by id, kept through outages.

    Fetched at the first token, then hourly; an unknown key id (a rotation, or a guess) fetches too. No two attempts
    are closer than the cooldown, whether they succeed or fail, so neither a flood of made-up ids nor an outage turns
    into a fetch per request. After a failure, which is reported, the last good set serves for up to 24 hours.
    """

    def __init__(self, fetch: Callable[[], bytes], clock: Clock, report: Report) -> None:
        """`fetch` gives the key set's document or raises KeyFetchError: `KeySetUrl.fetch`."""
        self._fetch = fetch
        self._clock = clock
        self._report = report
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._good_at_seconds: float | None = None
        self._tried_at_seconds: float | None = None

    def find(self, key_id: str) -> jwt.PyJWK:
        """Raises AuthenticationError for a key the pool does not have, UpstreamUnavailableError when nobody knows."""
        if key_id not in self._keys or self._age_seconds() >= FRESH_SECONDS:
            self._refresh()
        if self._age_seconds() >= STALE_SECONDS:
            raise UpstreamUnavailableError(
                "Sign-in cannot be checked right now. Try again shortly, or use an API key.",
                error_code="sign_in_unavailable",
            )
        found = self._keys.get(key_id)
        if found is None:
            raise AuthenticationError(_INVALID)
        return found

    def _age_seconds(self) -> float:
        if self._good_at_seconds is None:
            return float("inf")
        return self._clock.now_seconds() - self._good_at_seconds

    def _refresh(self) -> None:
        now = self._clock.now_seconds()
        if self._tried_at_seconds is not None and 0 <= now - self._tried_at_seconds < COOLDOWN_SECONDS:
            return
        self._tried_at_seconds = now
        try:
            keys = signing_keys_of(self._fetch())
        except KeyFetchError as error:
            self._report("key_set_unavailable", error)
        else:
            self._keys, self._good_at_seconds = keys, now


def signing_keys_of(document: bytes) -> dict[str, jwt.PyJWK]:
    """The keys of a JWKS that may verify a signature: RSA, RS256, for signing, with an id. Others are left out.

    Raises KeyFetchError for what is no key set, or has no such key: it must not replace one that had.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise KeyFetchError("the key set is not a JSON object with keys") from error
    if not isinstance(entries, list):
        raise KeyFetchError("the key set's keys are not a list")
    keys = {entry["kid"]: key for entry in entries if _may_sign(entry) and (key := _parse_key(entry))}
    if not keys:
        raise KeyFetchError("the key set has no RS256 signing key")
    return keys


def _may_sign(entry: Any) -> bool:  # noqa: ANN401  whatever JSON somebody published
    return (
        isinstance(entry, dict)
        and entry.get("kty") == "RSA"
        and entry.get("use") == "sig"
        and entry.get("alg") == "RS256"
        and entry.get("key_ops", ["verify"]) == ["verify"]
        and "d" not in entry  # a private key in public belongs to everybody
        and isinstance(entry.get("kid"), str)
        and bool(entry["kid"])
    )


def _parse_key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    try:
        key = jwt.PyJWK(entry, algorithm="RS256")
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    # 2048 bits at least; PyJWT's own sentence about a weak key.
    return None if RSAAlgorithm(RSAAlgorithm.SHA256).check_key_length(key.key) else key


class TokenVerifier:
    """Accepts access tokens of one user pool for the listed app clients, and nothing else."""

    def __init__(self, *, issuer: str, client_ids: frozenset[str], keys: SigningKeys, clock: Clock) -> None:
        if not issuer or not client_ids:
            raise ValueError("a verifier without issuer and clients would accept anybody's tokens")
        self._issuer = issuer
        self._client_ids = client_ids
        self._keys = keys
        self._clock = clock
        self._jws = jwt.PyJWS(algorithms=["RS256"], options={"enforce_minimum_key_length": True})

    def verify(self, token: str) -> AccessToken:
        """The token's facts. Raises AuthenticationError (`expired` only for a good token past its end)."""
        if len(token) > MAX_TOKEN_BYTES or not token.isascii() or token.count(".") != 2:
            raise AuthenticationError(_INVALID)
        return self._check_claims(self._payload(token))

    def _payload(self, token: str) -> dict[str, Any]:
        """The signed claims. Of the header only `alg` (must be RS256) and `kid` (a name, looked up) are read."""
        try:
            header = self._jws.get_unverified_header(token)
            key_id = header.get("kid")
            if header.get("alg") != "RS256" or not isinstance(key_id, str) or "crit" in header or "b64" in header:
                raise AuthenticationError(_INVALID)
            key = self._keys.find(key_id)
            payload = json.loads(self._jws.decode_complete(token, key, algorithms=["RS256"])["payload"])
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise AuthenticationError(_INVALID) from error
        if not isinstance(payload, dict):
            raise AuthenticationError(_INVALID)
        return payload

    def _check_claims(self, claims: dict[str, Any]) -> AccessToken:
        now = self._clock.now_seconds()
        client_id = _text(claims, "client_id")
        expires_at = _whole(claims, "exp")
        starts_at = max(_whole(claims, "iat"), _whole(claims, "nbf") if "nbf" in claims else 0)
        if (
            claims.get("iss") != self._issuer
            or claims.get("token_use") != "access"
            or client_id not in self._client_ids
            or starts_at > now + LEEWAY_SECONDS
            or expires_at >= now + LONGEST_LIFE_SECONDS + LEEWAY_SECONDS
        ):
            raise AuthenticationError(_INVALID)
        if expires_at <= now - LEEWAY_SECONDS:
            raise AuthenticationError("The access token has expired. Sign in again.", error_code="expired")
        return AccessToken(sub=_text(claims, "sub"), client_id=client_id, expires_at_seconds=expires_at)


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH:
        raise AuthenticationError(_INVALID)
    return value


def _whole(claims: dict[str, Any], name: str) -> int:
    """A JSON integer. `true`, 1.0 and "1" are none, though Python or a library would take them."""
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise AuthenticationError(_INVALID)
    return value
