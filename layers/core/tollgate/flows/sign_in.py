"""Sign in, renew and sign out. What Cognito refuses is one answer, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tollgate.domain.errors import (
    AuthenticationError,
    RateLimitedError,
    SignInUnavailableError,
)
from tollgate.domain.principals import Account, CredentialKind, Principal
from tollgate.domain.sources import Report
from tollgate.flows.authenticate import MAIN_TENANT_ID
from tollgate.providers.cognito_users import (
    Challenge,
    PoolRefusalError,
    Refusal,
    Tokens,
    UserPool,
    normal_email,
    wrong_code,
    wrong_credentials,
)

if TYPE_CHECKING:
    from tollgate.flows.accounts import Accounts
    from tollgate.flows.close_account import AccountCloser
    from tollgate.flows.current_usage import CurrentUsage
    from tollgate.storage.users import Users

_ENDED_ALREADY: Final = frozenset(
    {
        Refusal.NOT_AUTHORIZED,
        Refusal.NO_SUCH_USER,
        Refusal.BAD_PARAMETER,
        Refusal.NOT_ITS_OWNER,
        Refusal.WRONG_TOKEN_KIND,
    }
)
NOT_VALID: Final = "The refresh token is not valid, or no more. Sign in again."


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Tokens, and what they open."""

    tokens: Tokens
    usage: CurrentUsage


class SignIn:
    """The way in for those who know their password."""

    def __init__(
        self,
        pool: UserPool,
        accounts: Accounts,
        users: Users,
        closer: AccountCloser,
        usage_of: Callable[[Account], CurrentUsage],
        report: Report,
        *,
        client_id: str,
    ) -> None:
        """`client_id`: the app client of the pool, which the tokens are for."""
        self._pool = pool
        self._accounts = accounts
        self._users = users
        self._closer = closer
        self._usage_of = usage_of
        self._report = report
        self._client_id = client_id

    def sign_in(self, email: str, password: str) -> SignedIn | Challenge:
        """By password. Raises AuthenticationError; PermissionDeniedError where the operator's invitation still waits.

        An address that waits for its code is refused like any other: Cognito is known to tell so whatever the password
        is, and then the answer would tell strangers who has registered.
        """
        try:
            outcome = self._pool.sign_in(normal_email(email), password)
        except PoolRefusalError as refusal:
            raise wrong_credentials() from refusal
        return outcome if isinstance(outcome, Challenge) else self._welcome(outcome)

    def answer_second_factor(self, email: str, session: str, code: str) -> SignedIn:
        """By the code that was still asked for. Raises InvalidRequestError `invalid_code`."""
        try:
            outcome = self._pool.answer_second_factor(normal_email(email), session, code)
        except PoolRefusalError as refusal:
            raise wrong_code() from refusal
        if isinstance(outcome, Challenge):
            raise wrong_code()
        return self._welcome(outcome)

    def refresh(self, refresh_token: str) -> Tokens:
        """New tokens; the refresh token among them is the one to keep. Raises AuthenticationError."""
        try:
            return self._pool.refresh(refresh_token)
        except PoolRefusalError as refusal:
            raise AuthenticationError(NOT_VALID) from refusal

    def sign_out(self, principal: Principal, refresh_token: str | None, *, everywhere: bool) -> None:
        """End one sign-in, or all of them. Safe to repeat, and with a token that is nobody's: it ends nothing then."""
        if everywhere:
            _end(lambda: self._pool.sign_out_everywhere(principal.user_id))
        if refresh_token is not None:
            _end(lambda: self._pool.revoke(refresh_token))

    def account_of(self, principal: Principal) -> Account:
        """The account, with its e-mail address: who came by the sign-in page has none stored yet.

        Raises AuthenticationError for a deleted account, and for a user whom the pool no longer has.
        """
        account = self._accounts.find(principal, fresh=True)
        known = account.profile.email is not None and account.profile.email_verified
        return account if known else self._met(principal, account)

    def _welcome(self, tokens: Tokens) -> SignedIn:
        principal = Principal(MAIN_TENANT_ID, tokens.user_id, CredentialKind.ACCESS_TOKEN, self._client_id)
        try:
            account = self._accounts.find(principal, fresh=True)
        except AuthenticationError:
            # A deletion that stopped half way: this is its next call.
            self._closer.close(principal)
            raise wrong_credentials() from None
        return SignedIn(tokens, self._usage_of(self._met(principal, account)))

    def _met(self, principal: Principal, account: Account) -> Account:
        """The same account with the address that the pool has confirmed, and the name given at sign-up.

        When the pool cannot tell now, the next call asks again: nobody is kept out for an address.
        """
        try:
            user = self._pool.find(principal.user_id)
        except (PoolRefusalError, RateLimitedError, SignInUnavailableError) as failure:
            self._report("pool_not_asked", failure)
            return account
        if user is None:
            raise AuthenticationError("There is no such user any more.", error_code="account_deleted")
        stored = account.profile
        if (user.email or stored.email, user.email is not None) == (stored.email, stored.email_verified):
            return account
        if user.email is None:
            self._users.mark_unverified(principal.tenant_id, principal.user_id)
        else:
            name = user.name if stored.email is None else None
            self._users.put_email(principal.tenant_id, principal.user_id, user.email, name=name)
        return self._accounts.find(principal, fresh=True)


def _end(step: Callable[[], None]) -> None:
    """One step of a sign-out: what has ended already, or is nobody's, is no reason to leave out the other."""
    try:
        step()
    except PoolRefusalError as refusal:
        if refusal.reason not in _ENDED_ALREADY:
            raise
