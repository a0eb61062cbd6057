"""The JWT authorizer of an HTTP API: lets in whoever has a token of the right issuer and client, answers 401 otherwise.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-jwt-authorizer.html
"""

from __future__ import annotations

import threading
from typing import Any

import jwt

from dev.template import JwtAuthorizer


class UnauthorizedError(Exception):
    """No token, or none that is accepted; `description` is what API Gateway puts into WWW-Authenticate."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description or "no token")
        self.description = description


class ForbiddenError(Exception):
    """A good token without the scope that the route wants."""


class TokenChecker:
    """Checks tokens against the keys that the local Cognito serves; blocks while it fetches them."""

    def __init__(self, jwks_url: str) -> None:
        self._keys = jwt.PyJWKClient(jwks_url, cache_keys=True, timeout=5)
        self._lock = threading.Lock()

    def claims(self, authorizer: JwtAuthorizer, header: str | None) -> dict[str, Any]:
        """The claims of an acceptable token. Raises UnauthorizedError or ForbiddenError."""
        if not header:
            raise UnauthorizedError(None)
        token = header.removeprefix("Bearer ").removeprefix("bearer ").strip()
        try:
            with self._lock:
                key = self._keys.get_signing_key_from_jwt(token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=["RS256"],
                issuer=authorizer.issuer,
                options={"require": ["exp", "iat", "iss"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError("the token has expired") from None
        except (jwt.PyJWTError, ValueError) as error:
            raise UnauthorizedError(f"the token is not acceptable: {type(error).__name__}") from error
        audience = claims.get("aud", claims.get("client_id"))
        given = audience if isinstance(audience, list) else [audience]
        if not set(given) & set(authorizer.audience):
            raise UnauthorizedError("the token does not have a valid audience")
        scopes = set(str(claims.get("scope", "")).split())
        if authorizer.scopes and not scopes & set(authorizer.scopes):
            raise ForbiddenError
        return claims
