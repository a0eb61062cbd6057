"""The second factor, an authenticator app, which users turn on and off by themselves.

A stolen access token must not be enough to lock its owner out or to make the account weaker: what changes how one signs
in asks for the password again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from tollgate.domain.errors import AuthenticationError, InvalidRequestError, PermissionDeniedError
from tollgate.providers.cognito_users import PoolRefusalError, Refusal, Tokens, UserPool, wrong_code

if TYPE_CHECKING:
    from tollgate.domain.principals import Principal


class SecondFactor:
    """Each step takes the access token that the authorizer has verified; Cognito wants to see it itself."""

    def __init__(self, pool: UserPool) -> None:
        self._pool = pool

    def begin(self, principal: Principal, access_token: str, password: str) -> str:
        """A new secret, which replaces one that was never verified. Raises PermissionDeniedError: wrong password."""
        self._prove(principal, password)
        try:
            return self._pool.new_second_factor(access_token)
        except PoolRefusalError as refusal:
            raise _refused(refusal) from refusal

    def finish(self, access_token: str, code: str) -> None:
        """The first code of the new secret: from now on, signing in asks for one. Raises InvalidRequestError."""
        try:
            self._pool.verify_second_factor(access_token, code)
        except PoolRefusalError as refusal:
            raise _refused(refusal) from refusal

    def remove(self, principal: Principal, access_token: str, password: str) -> None:
        """Safe to repeat. Raises PermissionDeniedError: wrong password."""
        self._prove(principal, password)
        try:
            self._pool.remove_second_factor(access_token)
        except PoolRefusalError as refusal:
            raise _refused(refusal) from refusal

    def _prove(self, principal: Principal, password: str) -> None:
        try:
            outcome = self._pool.sign_in(principal.user_id, password)
            if isinstance(outcome, Tokens):
                # Nobody asked for a sign-in.
                self._pool.revoke(outcome.refresh_token)
        except PoolRefusalError as refusal:
            raise PermissionDeniedError("The password is wrong.", error_code="wrong_password") from refusal


def authenticator_uri(label: str, secret: str) -> str:
    """What authenticator apps read from a QR code (google-authenticator's Key URI format)."""
    return f"otpauth://totp/Tollgate:{quote(label, safe='')}?{urlencode({'secret': secret, 'issuer': 'Tollgate'})}"


def _refused(refusal: PoolRefusalError) -> Exception:
    if refusal.reason is Refusal.NOT_AUTHORIZED:
        # Signed out everywhere, or by the sign-in page without the scope aws.cognito.signin.user.admin.
        return AuthenticationError("This sign-in may not change the second factor. Sign in again.")
    if refusal.reason is Refusal.NO_SECRET:
        return InvalidRequestError(
            "There is no secret to verify: send action associate first.", error_code="second_factor_not_begun"
        )
    return wrong_code()
