"""A Cognito user pool as far as its tokens go: keys, key set, access and ID tokens, and the means to forge them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import lru_cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jwt.algorithms import RSAAlgorithm

CLIENT_ID = "4fgh1example0client2app3"
ISSUER = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Example"
SUBJECT = "f2a54454-90c1-70b5-3f0e-1c3b6ba3ad5a"


@lru_cache(maxsize=8)
def private_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key by name; the same in every test, because making one takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class UserPool:
    """Issues what Cognito issues. `key_id` names the current signing key; change it to rotate."""

    def __init__(self, issuer: str = ISSUER, key_name: str = "pool") -> None:
        self.issuer = issuer
        self.key_name = key_name
        self.key_id = f"{key_name}-1"

    def jwk(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
        """The public key as Cognito publishes it; a change to None removes the member."""
        public = json.loads(RSAAlgorithm.to_jwk(private_key(self.key_name).public_key()))
        entry = {"alg": "RS256", "e": public["e"], "kid": self.key_id, "kty": "RSA", "n": public["n"], "use": "sig"}
        return {name: value for name, value in (entry | changes).items() if value is not None}

    def key_set(self, *others: dict[str, Any]) -> bytes:
        return json.dumps({"keys": [self.jwk(), *others]}).encode()

    def access_claims(self, now_seconds: float, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
        """An access token's claims, an hour long; a change to None removes the claim."""
        claims = {
            "sub": SUBJECT,
            "iss": self.issuer,
            "client_id": CLIENT_ID,
            "origin_jti": "b7b0c6cc-1f0d-4f5e-8a2c-0d4d8c1e6e3a",
            "event_id": "2b1e4f0a-9f0b-4b7a-a9b0-3f1f0f6d2c11",
            "token_use": "access",
            "scope": "aws.cognito.signin.user.admin",
            "auth_time": int(now_seconds),
            "exp": int(now_seconds) + 3600,
            "iat": int(now_seconds),
            "jti": "0b1d9e3e-7c52-4e1f-8f7b-7a64d5a0e0f4",
            "username": SUBJECT,
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def access_token(self, now_seconds: float, **changes: Any) -> str:  # noqa: ANN401  any JSON
        return self.sign(self.access_claims(now_seconds, **changes))

    def id_token(self, now_seconds: float, **changes: Any) -> str:  # noqa: ANN401  any JSON
        claims = self.access_claims(now_seconds, client_id=None, scope=None, token_use="id", aud=CLIENT_ID)
        return self.sign(claims | {"email": "ada@example.com", "custom:plan": "enterprise"} | changes)

    def sign(self, claims: dict[str, Any], **header: Any) -> str:  # noqa: ANN401  any JSON
        return self.sign_text(json.dumps(claims), **header)

    def sign_text(self, payload: str, **header: Any) -> str:  # noqa: ANN401  any JSON
        """Any text as the payload, any header, with a signature that is right for them."""
        head = {"kid": self.key_id, "alg": "RS256"} | header
        signing_input = f"{b64(json.dumps(head).encode())}.{b64(payload.encode())}"
        signature = private_key(self.key_name).sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signing_input}.{b64(signature)}"

    def hmac_signed(self, claims: dict[str, Any], secret: bytes, **header: Any) -> str:  # noqa: ANN401  any JSON
        """The classic confusion: HS256 with a public value as the secret."""
        head = {"kid": self.key_id, "alg": "HS256"} | header
        signing_input = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
        return f"{signing_input}.{b64(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"

    def unsigned(self, claims: dict[str, Any], algorithm: str = "none") -> str:
        head = {"kid": self.key_id, "alg": algorithm}
        return f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}."

    def signed_with(self, algorithm: str, claims: dict[str, Any]) -> str:
        """The pool's own key under another algorithm of its family."""
        return jwt.encode(claims, private_key(self.key_name), algorithm=algorithm, headers={"kid": self.key_id})


class KeySetSource:
    """Stands where `KeySetUrl` stands: answers with a document, or fails, and counts."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.failure: Exception | None = None
        self.fetches = 0

    def fetch(self) -> bytes:
        self.fetches += 1
        if self.failure is not None:
            raise self.failure
        return self.document
