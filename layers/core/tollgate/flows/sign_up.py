"""Register, confirm an address, and get back in with a forgotten password. Answers never tell who has an account.

Anybody can register any address, so what is said at that time binds nobody: the password is chosen by whoever has the
mailed code. Until then the account has one that was drawn by chance and is written down nowhere. So there is nothing of
a stranger's that the owner could confirm by mistake, in whatever order the two come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from tollgate.domain.errors import InvalidRequestError, RateLimitedError, SignInUnavailableError, TollgateError
from tollgate.domain.sources import Clock, IdSource, Report
from tollgate.providers.cognito_users import (
    PoolRefusalError,
    Refusal,
    UserPool,
    bad_password,
    normal_email,
    wrong_code,
)

QUIET_SECONDS: Final = 0.5
"""What asks for a mail takes at least this long: a mail is handed over only where somebody is, and that takes time."""

# What these say depends on who exists. All of them are "a mail is on its way, if there is somebody to get it".
_HUSHED: Final = frozenset(
    {
        Refusal.USER_EXISTS,
        Refusal.NO_SUCH_USER,
        Refusal.NOT_CONFIRMED,
        Refusal.NOT_AUTHORIZED,
        Refusal.BAD_PARAMETER,
        Refusal.TOO_MANY_FAILURES,
        Refusal.USER_LIMIT,
        Refusal.NOT_DELIVERED,
        Refusal.ALIAS_TAKEN,
        Refusal.RESET_REQUIRED,
    }
)
_PASSWORD_RULES: Final = frozenset({Refusal.BAD_PASSWORD, Refusal.USED_PASSWORD})
_WAY_ON: Final = (
    "The address is confirmed, but the password was not set: ask for a code at /auth/password/forgot to set one."
)
"""The code is used up, so repeating the request cannot help."""


class SignUp:
    """The way into an account for those who cannot sign in yet, or no more."""

    def __init__(
        self, pool: UserPool, clock: Clock, ids: IdSource, report: Report, *, quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._ids = ids
        self._report = report
        self._quiet_seconds = quiet_seconds

    def register(self, email: str, name: str | None) -> None:
        """Make an account that waits for its code; one that waits already is sent another. Safe to repeat."""
        address = normal_email(email)
        with self._quietly():
            try:
                self._pool.sign_up(address, self._nobodys_password(), name)
            except PoolRefusalError as refusal:
                self._note(refusal)
                if refusal.reason not in _HUSHED:
                    raise
                if refusal.reason is Refusal.USER_EXISTS:
                    self._resend(address)

    def resend_code(self, email: str) -> None:
        """Mail a new code, if an account waits for one."""
        with self._quietly():
            self._resend(normal_email(email))

    def confirm(self, email: str, code: str, password: str) -> None:
        """Open the account under this password. Raises InvalidRequestError `invalid_code` for every code but the last
        one mailed.

        Where the password cannot be set any more, InvalidRequestError `invalid_password` or SignInUnavailableError say
        how to choose one: the address is confirmed and its owner is whoever reads its mail.
        """
        address = normal_email(email)
        with _refused_as(wrong_code(), set(Refusal)):
            self._pool.confirm(address, code)
        # Only behind a code that Cognito has just taken: this alone would confirm anybody.
        self._choose_password(address, password)
        # Who signed this address up at Cognito itself knew a password for as long as the two calls took.
        self._end_sign_ins(address)

    def forget_password(self, email: str) -> None:
        """Mail a code that allows a new password, if there is an account."""
        with self._quietly(), self._hushed():
            self._pool.forget_password(normal_email(email))

    def reset_password(self, email: str, code: str, password: str) -> None:
        """Set a new password and end every sign-in made with the old one.

        Raises InvalidRequestError `invalid_code` or `invalid_password`. Where the sign-ins could not be ended, the
        password is set nevertheless and the failure reported: the code is used up, so nobody could repeat it.
        """
        address = normal_email(email)
        with (
            _refused_as(wrong_code(), set(Refusal) - _PASSWORD_RULES),
            _refused_as(bad_password(), _PASSWORD_RULES),
        ):
            self._pool.reset_password(address, code, password)
        self._end_sign_ins(address)

    def _choose_password(self, address: str, password: str) -> None:
        try:
            self._pool.set_password(address, password)
        except PoolRefusalError as refusal:
            if refusal.reason in _PASSWORD_RULES:
                raise InvalidRequestError(
                    f"password: does not meet the rules. {_WAY_ON}", error_code="invalid_password"
                ) from refusal
            raise SignInUnavailableError(_WAY_ON) from refusal
        except (RateLimitedError, SignInUnavailableError) as failure:
            raise SignInUnavailableError(_WAY_ON) from failure

    def _end_sign_ins(self, address: str) -> None:
        try:
            self._pool.sign_out_everywhere(address)
        except (PoolRefusalError, RateLimitedError, SignInUnavailableError) as failure:
            self._report("sign_out_failed", failure)

    def _nobodys_password(self) -> str:
        """238 bits that are forgotten at once. In front, one of each kind that a pool may have been told to ask for."""
        return f"Aa1-{self._ids.new_id(40)}"

    def _resend(self, address: str) -> None:
        with self._hushed():
            self._pool.resend_code(address)

    def _note(self, refusal: PoolRefusalError) -> None:
        """An undelivered mail is the operator's concern; nobody else is told."""
        if refusal.reason is Refusal.NOT_DELIVERED:
            self._report("mail_not_delivered", refusal)

    @contextmanager
    def _hushed(self) -> Iterator[None]:
        try:
            yield
        except PoolRefusalError as refusal:
            self._note(refusal)
            if refusal.reason not in _HUSHED:
                raise

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        started_at_seconds = self._clock.now_seconds()
        try:
            yield
        finally:
            left_seconds = self._quiet_seconds - (self._clock.now_seconds() - started_at_seconds)
            if 0 < left_seconds <= self._quiet_seconds:
                self._clock.pause(left_seconds)


@contextmanager
def _refused_as(answer: TollgateError, reasons: Collection[Refusal]) -> Iterator[None]:
    try:
        yield
    except PoolRefusalError as refusal:
        if refusal.reason not in reasons:
            raise
        raise answer from refusal
