"""Cognito's user pool as far as people sign up and in: pure data in and out, errors of ours, no texts of Cognito's.

Passwords go to Cognito by USER_PASSWORD_AUTH and not by the administrator's flow: those operations take no AWS
signature, so the function that everybody can call needs no right on the pool to sign people in, and every engine that
speaks Cognito knows them. What needs a right works on one person only: on the caller's own id (find, sign out, delete),
or on the address whose mailed code came with the request (set the password, sign out).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tollgate.domain.errors import (
    AuthenticationError,
    InvalidRequestError,
    PermissionDeniedError,
    RateLimitedError,
    SignInUnavailableError,
    TollgateError,
)

if TYPE_CHECKING:
    import botocore.session
    from types_boto3_cognito_idp.client import CognitoIdentityProviderClient
    from types_boto3_cognito_idp.type_defs import AttributeTypeTypeDef

SOFTWARE_TOKEN: Final = "SOFTWARE_TOKEN_MFA"  # noqa: S105  the name of a challenge
RETRY_SECONDS: Final = 10
"""Cognito counts requests per second and tells no time to wait."""


class Refusal(StrEnum):
    """Why Cognito did not do what it was asked, where a flow acts differently for it."""

    USER_EXISTS = "UsernameExistsException"
    NO_SUCH_USER = "UserNotFoundException"
    NOT_CONFIRMED = "UserNotConfirmedException"
    NOT_AUTHORIZED = "NotAuthorizedException"
    RESET_REQUIRED = "PasswordResetRequiredException"
    WRONG_CODE = "CodeMismatchException"
    OLD_CODE = "ExpiredCodeException"
    NO_SECOND_FACTOR = "EnableSoftwareTokenMFAException"
    NO_SECRET = "SoftwareTokenMFANotFoundException"  # noqa: S105  the name of an error
    ALIAS_TAKEN = "AliasExistsException"
    BAD_PASSWORD = "InvalidPasswordException"  # noqa: S105  the name of an error
    USED_PASSWORD = "PasswordHistoryPolicyViolationException"  # noqa: S105  the name of an error
    BAD_PARAMETER = "InvalidParameterException"
    TOO_MANY_FAILURES = "TooManyFailedAttemptsException"
    USER_LIMIT = "LimitExceededException"
    NOT_DELIVERED = "CodeDeliveryFailureException"
    REUSED_TOKEN = "RefreshTokenReuseException"  # noqa: S105  the name of an error
    NOT_ITS_OWNER = "UnauthorizedException"
    WRONG_TOKEN_KIND = "UnsupportedTokenTypeException"  # noqa: S105  the name of an error


class PoolRefusalError(Exception):
    """Cognito answered no; `reason` says why. Never reaches a caller: flows decide what it means to them."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PoolUser:
    """Who Cognito says somebody is."""

    user_id: str
    """The `sub`: never reused, and never changed."""
    email: str | None
    """None until its owner has shown to receive mail there."""
    name: str | None
    """What they called themselves when they signed up."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What signing in gives. Never printed."""

    access_token: str = field(repr=False)
    id_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in_seconds: int

    @property
    def user_id(self) -> str:
        """The `sub` in the access token. It came from Cognito itself over TLS, so no signature has to tell that."""
        payload = self.access_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["sub"])


@dataclass(frozen=True, slots=True)
class Challenge:
    """What is still asked before there are tokens; `session` must come back with the answer. Minutes long."""

    name: str
    session: str = field(repr=False)


def user_pool_client(session: botocore.session.Session, region: str) -> CognitoIdentityProviderClient:
    """A client that answers or fails within about ten seconds: sign-up waits for a mail to be handed over.

    No second try but for throttling and broken connections; whatever is tried twice is safe to be.
    """
    config = Config(
        connect_timeout=1,
        read_timeout=4,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=2,
        tcp_keepalive=True,
    )
    return cast(
        "CognitoIdentityProviderClient", session.create_client("cognito-idp", region_name=region, config=config)
    )


class UserPool:
    """The pool of one app client. Every operation raises PoolRefusalError, RateLimitedError or SignInUnavailableError.

    E-mail addresses are given in the form that `normal_email` makes.
    """

    def __init__(self, client: CognitoIdentityProviderClient, *, pool_id: str, client_id: str) -> None:
        self._client = client
        self._pool_id = pool_id
        self._client_id = client_id

    # --- An address and its codes

    def sign_up(self, email: str, password: str, name: str | None) -> None:
        """Make an unconfirmed user and mail a code."""
        attributes: list[AttributeTypeTypeDef] = [{"Name": "email", "Value": email}]
        if name is not None:
            attributes.append({"Name": "name", "Value": name})
        with _refusals():
            self._client.sign_up(
                ClientId=self._client_id,
                Username=email,
                Password=password,
                UserAttributes=attributes,
            )

    def resend_code(self, email: str) -> None:
        """Mail a new code to an unconfirmed user; the old one ends."""
        with _refusals():
            self._client.resend_confirmation_code(ClientId=self._client_id, Username=email)

    def confirm(self, email: str, code: str) -> None:
        """Take the mailed code: the address is its owner's."""
        with _refusals():
            self._client.confirm_sign_up(ClientId=self._client_id, Username=email, ConfirmationCode=code)

    def set_password(self, email: str, password: str) -> None:
        """Whatever the password was before, from now on it is this one. It also confirms, without any code: so only
        for somebody who has just been confirmed."""
        with _refusals():
            self._client.admin_set_user_password(
                UserPoolId=self._pool_id, Username=email, Password=password, Permanent=True
            )

    def forget_password(self, email: str) -> None:
        """Mail a code that allows a new password."""
        with _refusals():
            self._client.forgot_password(ClientId=self._client_id, Username=email)

    def reset_password(self, email: str, code: str, password: str) -> None:
        """Take that code and the new password."""
        with _refusals():
            self._client.confirm_forgot_password(
                ClientId=self._client_id, Username=email, ConfirmationCode=code, Password=password
            )

    # --- Signing in and out

    def sign_in(self, name: str, password: str) -> Tokens | Challenge:
        """`name`: an e-mail address or a user id."""
        with _refusals():
            answer = self._client.initiate_auth(
                ClientId=self._client_id,
                AuthFlow="USER_PASSWORD_AUTH",
                AuthParameters={"USERNAME": name, "PASSWORD": password},
            )
        return _outcome(cast("dict[str, Any]", answer))

    def answer_second_factor(self, email: str, session: str, code: str) -> Tokens | Challenge:
        """The code of an authenticator app, for the challenge that `sign_in` gave."""
        with _refusals():
            answer = self._client.respond_to_auth_challenge(
                ClientId=self._client_id,
                ChallengeName=SOFTWARE_TOKEN,
                Session=session,
                ChallengeResponses={"USERNAME": email, "SOFTWARE_TOKEN_MFA_CODE": code},
            )
        return _outcome(cast("dict[str, Any]", answer))

    def refresh(self, refresh_token: str) -> Tokens:
        """New tokens. Where the app client rotates, also a new refresh token, and the old one ends a minute later."""
        with _refusals():
            answer = self._client.get_tokens_from_refresh_token(ClientId=self._client_id, RefreshToken=refresh_token)
        return _tokens(cast("dict[str, Any]", answer), refresh_token)

    def revoke(self, refresh_token: str) -> None:
        """End one sign-in: this refresh token, and what it would still give."""
        with _refusals():
            self._client.revoke_token(ClientId=self._client_id, Token=refresh_token)

    def sign_out_everywhere(self, name: str) -> None:
        """End every refresh token of a user, named by id or e-mail address. Access tokens live their hour."""
        with _refusals():
            self._client.admin_user_global_sign_out(UserPoolId=self._pool_id, Username=name)

    # --- The second factor, with the owner's access token

    def new_second_factor(self, access_token: str) -> str:
        """A secret for an authenticator app, base32. Without effect until it is verified."""
        with _refusals():
            answer = self._client.associate_software_token(AccessToken=access_token)
        return answer["SecretCode"]

    def verify_second_factor(self, access_token: str, code: str) -> None:
        """The first code of the new secret; from now on signing in asks for one."""
        with _refusals():
            answer = self._client.verify_software_token(AccessToken=access_token, UserCode=code)
            if answer.get("Status") != "SUCCESS":
                raise PoolRefusalError(Refusal.WRONG_CODE)
            self._prefer_second_factor(access_token, enabled=True)

    def remove_second_factor(self, access_token: str) -> None:
        with _refusals():
            self._prefer_second_factor(access_token, enabled=False)

    def _prefer_second_factor(self, access_token: str, *, enabled: bool) -> None:
        self._client.set_user_mfa_preference(
            AccessToken=access_token, SoftwareTokenMfaSettings={"Enabled": enabled, "PreferredMfa": enabled}
        )

    # --- By id, as the pool's owner

    def find(self, user_id: str) -> PoolUser | None:
        """The user as Cognito knows them now."""
        try:
            with _refusals():
                answer = self._client.admin_get_user(UserPoolId=self._pool_id, Username=user_id)
        except PoolRefusalError as refusal:
            if refusal.reason is Refusal.NO_SUCH_USER:
                return None
            raise
        attributes = {entry["Name"]: entry.get("Value", "") for entry in answer.get("UserAttributes", [])}
        return PoolUser(
            user_id=attributes.get("sub", user_id),
            email=attributes.get("email") if attributes.get("email_verified") == "true" else None,
            name=attributes.get("name") or None,
        )

    def delete(self, user_id: str) -> None:
        """The user is gone, or was already."""
        try:
            with _refusals():
                self._client.admin_delete_user(UserPoolId=self._pool_id, Username=user_id)
        except PoolRefusalError as refusal:
            if refusal.reason is not Refusal.NO_SUCH_USER:
                raise


def normal_email(email: str) -> str:
    """One spelling of an address: the pool does not tell cases apart, so nothing of ours may."""
    return email.strip().lower()


def pool_id_of(issuer: str) -> str:
    """A pool's id is the last part of its issuer, on AWS as in every engine; a second setting could contradict it."""
    return issuer.rstrip("/").rpartition("/")[2]


def _outcome(answer: dict[str, Any]) -> Tokens | Challenge:
    """Raises PermissionDeniedError when Cognito asks for something that this door cannot take."""
    name = answer.get("ChallengeName")
    if name is None:
        return _tokens(answer, "")
    if name == SOFTWARE_TOKEN:
        return Challenge(name, answer["Session"])
    raise PermissionDeniedError(
        "A new password has to be chosen first: sign in once on the sign-in page.",
        error_code="password_change_required",
    )


def _tokens(answer: dict[str, Any], refresh_token: str) -> Tokens:
    result = answer["AuthenticationResult"]
    return Tokens(
        access_token=result["AccessToken"],
        id_token=result["IdToken"],
        refresh_token=result.get("RefreshToken") or refresh_token,
        expires_in_seconds=int(result["ExpiresIn"]),
    )


_REFUSALS: Final = frozenset(reason.value for reason in Refusal)
_THROTTLED: Final = frozenset(
    {"TooManyRequestsException", "ThrottlingException", "RequestLimitExceeded", "ForbiddenException"}
)


@contextmanager
def _refusals() -> Iterator[None]:
    """Cognito's errors as ours. What it says in words stays here: the words tell who exists."""
    try:
        yield
    except ClientError as error:
        raise _translated(error) from error
    except BotoCoreError as error:
        raise SignInUnavailableError("Signing in does not work right now. Try again shortly.") from error


def _translated(error: ClientError) -> Exception:
    code = error.response.get("Error", {}).get("Code", "")
    if code in _THROTTLED:
        return RateLimitedError(
            "Too many people sign in at this moment. Try again shortly.", retry_after_seconds=RETRY_SECONDS
        )
    if code in _REFUSALS:
        return PoolRefusalError(Refusal(code))
    return SignInUnavailableError("Signing in does not work right now. Try again shortly.")


def wrong_credentials() -> TollgateError:
    """One answer for an unknown address, one that waits for its code, a wrong password and one that must be reset: it
    tells nobody who exists."""
    return AuthenticationError(
        "The e-mail address or the password is wrong, the address is not confirmed, or the password has to be reset."
    )


def wrong_code() -> TollgateError:
    """One answer for wrong, old, used up and never sent."""
    return InvalidRequestError("The code is wrong or too old. Ask for a new one.", error_code="invalid_code")


def bad_password() -> TollgateError:
    return InvalidRequestError("password: does not meet the rules for passwords here", error_code="invalid_password")
