"""Register, confirm an address, and get back in with a forgotten password. Answers never tell who has an account."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from tollgate.domain.errors import RateLimitedError, SignInUnavailableError, TollgateError
from tollgate.domain.sources import Clock, Report
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


class SignUp:
    """The way into an account for those who cannot sign in yet, or no more."""

    def __init__(self, pool: UserPool, clock: Clock, report: Report, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._pool = pool
        self._clock = clock
        self._report = report
        self._quiet_seconds = quiet_seconds

    def register(self, email: str, password: str, name: str | None) -> None:
        """Make an account that waits for its code; one that waits already is sent another. Safe to repeat.

        An account that waits keeps the password it was first given: who registers an address twice has not shown to
        own it. Raises InvalidRequestError when the password does not meet the pool's rules.
        """
        address = normal_email(email)
        with self._quietly():
            try:
                self._pool.sign_up(address, password, name)
            except PoolRefusalError as refusal:
                self._note(refusal)
                if refusal.reason in _PASSWORD_RULES:
                    raise bad_password() from refusal
                if refusal.reason not in _HUSHED:
                    raise
                if refusal.reason is Refusal.USER_EXISTS:
                    self._resend(address)

    def resend_code(self, email: str) -> None:
        """Mail a new code, if an account waits for one."""
        with self._quietly():
            self._resend(normal_email(email))

    def confirm(self, email: str, code: str) -> None:
        """Open the account. Raises InvalidRequestError `invalid_code` for every code but the last one mailed."""
        with _refused_as(wrong_code(), set(Refusal)):
            self._pool.confirm(normal_email(email), code)

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
        try:
            self._pool.sign_out_everywhere(address)
        except (PoolRefusalError, RateLimitedError, SignInUnavailableError) as failure:
            self._report("sign_out_failed", failure)

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
