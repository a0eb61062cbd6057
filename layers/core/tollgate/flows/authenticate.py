"""Who calls: from the two credential headers, or from the claims that API Gateway has verified, and nothing else.

No identity header, query or body field is read here or anywhere. Everything that can be refused without I/O is
refused before it, so a flood of nonsense costs the table nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from tollgate.domain.api_keys import ApiKey, KeyMode, KeyRefusal, hash_api_key, is_well_formed, mode_of
from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import AuthenticationError
from tollgate.domain.principals import CredentialKind, Principal
from tollgate.domain.sources import Clock

if TYPE_CHECKING:
    from tollgate.providers.cognito import TokenVerifier
    from tollgate.storage.api_keys import ApiKeys

MAIN_TENANT_ID: Final = "main"
"""The deployment's own tenant: users of its user pool belong to it."""

MAX_CREDENTIAL_BYTES: Final = 8 * 1024
"""A 5 MB token costs 0.8 s of CPU to take apart; Cognito's are about 1 KB, our keys 44 bytes."""
KEY_CACHE_SECONDS: Final = 50
"""A revocation must take effect within 60 seconds; the rest is for clocks and a slow read."""
KEY_CACHE_ENTRIES: Final = 4096

MISSING: Final = "No credential was sent. Use `x-api-key: <key>` or `Authorization: Bearer <key or access token>`."
INVALID: Final = "The credential is not valid."
_REFUSALS: Final = {
    KeyRefusal.REVOKED: "The API key has been revoked.",
    KeyRefusal.EXPIRED: "The API key has expired.",
}


class Authenticator:
    """Turns credentials into principals; every refusal is an AuthenticationError."""

    def __init__(
        self,
        api_keys: ApiKeys,
        tokens: TokenVerifier,
        pepper: Callable[[], bytes],
        clock: Clock,
        *,
        allow_test_keys: bool,
        cache_entries: int = KEY_CACHE_ENTRIES,
    ) -> None:
        """`pepper` gives the secret under which keys are hashed, as of now."""
        self._api_keys = api_keys
        self._tokens = tokens
        self._pepper = pepper
        self._clock = clock
        self._allow_test_keys = allow_test_keys
        # Two memories, so that a flood of made-up keys cannot push out the keys of paying users.
        self._known: AgingCache[str, ApiKey] = AgingCache(max_entries=cache_entries, max_age_seconds=KEY_CACHE_SECONDS)
        self._unknown: AgingCache[str, bool] = AgingCache(max_entries=cache_entries, max_age_seconds=KEY_CACHE_SECONDS)

    def principal_of(self, headers: Mapping[str, str]) -> Principal:
        """The caller of a request. Header names in lower case, as Lambda sends them.

        `x-api-key` wins over `authorization: Bearer`; either may carry an API key or an access token, told apart by
        shape. Raises AuthenticationError, and StoreUnavailableError or UpstreamUnavailableError when nobody can tell.
        """
        credential = _credential(headers)
        if mode_of(credential) is not None:
            return self._principal_of_key(credential)
        if credential.count(".") == 2:
            token = self._tokens.verify(credential)
            return Principal(MAIN_TENANT_ID, token.sub, CredentialKind.ACCESS_TOKEN, token.client_id)
        raise AuthenticationError(INVALID)

    def api_key_of(self, headers: Mapping[str, str]) -> ApiKey | None:
        """The key in a request that `principal_of` has accepted; None when an access token was in it."""
        credential = _credential(headers)
        return None if mode_of(credential) is None else self._find_key(hash_api_key(credential, self._pepper()))

    def _principal_of_key(self, text: str) -> Principal:
        if not is_well_formed(text) or (mode_of(text) is KeyMode.TEST and not self._allow_test_keys):
            raise AuthenticationError(INVALID)
        key = self._find_key(hash_api_key(text, self._pepper()))
        refusal = key.refusal_at(self._clock.now_seconds())
        if refusal is not None:
            raise AuthenticationError(_REFUSALS[refusal], error_code=refusal.value)
        return Principal(
            key.tenant_id,
            key.user_id,
            CredentialKind.API_KEY,
            key.id,
            key.max_tokens_policy,
            allowed_models=key.allowed_models,
            limits=key.limits,
        )

    def _find_key(self, key_hash: str) -> ApiKey:
        now = self._clock.now_seconds()
        key = self._known.get(key_hash, now)
        if key is None and not self._unknown.get(key_hash, now):
            key = self._api_keys.find_key(key_hash)
            if key is not None:
                self._known.put(key_hash, key, now)
            else:
                self._unknown.put(key_hash, True, now)
        if key is None:
            raise AuthenticationError(INVALID)
        return key


def principal_of_claims(claims: Mapping[str, object], client_ids: frozenset[str]) -> Principal:
    """The caller of an HTTP API route, from the claims of a token that its JWT authorizer has verified.

    API Gateway takes an ID token where a client id is its audience, so the kind is checked here again. Raises
    AuthenticationError.
    """
    subject, client_id = claims.get("sub"), claims.get("client_id")
    if not isinstance(subject, str) or not subject or claims.get("token_use") != "access":
        raise AuthenticationError(INVALID)
    if not isinstance(client_id, str) or client_id not in client_ids:
        raise AuthenticationError(INVALID)
    return Principal(MAIN_TENANT_ID, subject, CredentialKind.ACCESS_TOKEN, client_id)


def _credential(headers: Mapping[str, str]) -> str:
    """The credential's text, with its surroundings off. Raises AuthenticationError: none, too long, another scheme."""
    api_key, authorization = headers.get("x-api-key", ""), headers.get("authorization", "")
    if max(len(api_key), len(authorization)) > MAX_CREDENTIAL_BYTES:
        raise AuthenticationError(INVALID)
    if api_key.strip():
        return api_key.strip()
    scheme, _, credential = authorization.strip().partition(" ")
    if not scheme:
        raise AuthenticationError(MISSING)
    if scheme.lower() != "bearer" or not credential.strip():
        raise AuthenticationError(INVALID)
    return credential.strip()
