"""The door of the open routes: who has not signed in may ask only so often. Called first, before anything is looked up.

The promise: of any number of requests at once, from any number of processes, exactly as many pass as the limits in
`tollgate.domain.open_routes` allow, and a refusal tells nothing about whether an account exists. A refusal is
remembered in this process, so a flood costs no call of the table. When the table does not answer, nobody passes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Final, NoReturn

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import InvalidRequestError, RateLimitedError
from tollgate.domain.open_routes import (
    ADDRESS_FAILURES,
    FORGET_SECONDS,
    KNOWN_SECONDS,
    MAILBOX_FAILURES,
    OPEN_ROUTES,
    PAIR_FAILURES,
    UNKNOWN_ADDRESS,
    BackOff,
    Rate,
    Stranger,
    Subject,
    digest_of,
    stranger_of,
)
from tollgate.domain.sources import Clock
from tollgate.storage.rate_limits import Failures, RateLimits

if TYPE_CHECKING:
    from tollgate.catalog.email_domains import EmailDomains

MEMORY_ENTRIES: Final = 8192
RATE_MEMORY_SECONDS: Final = 24 * 3600
"""A stored rate only moves on, so what refuses now refuses until the time it names."""
WAIT_MEMORY_SECONDS: Final = 10
"""A success in another process ends a wait; nobody is refused from memory for longer than this because of one."""
MAX_ROUNDS: Final = 8


class Doorkeeper:
    """One instance a process; holds no truth, only a memory of refusals."""

    def __init__(
        self,
        limits: RateLimits,
        domains: EmailDomains,
        secret: Callable[[], bytes],
        clock: Clock,
        *,
        percent: int = 100,
    ) -> None:
        """`secret` gives the key under which addresses are hashed; `percent` scales what one address or network may."""
        self._limits = limits
        self._domains = domains
        self._secret = secret
        self._clock = clock
        self._percent = percent
        self._tats_ms: AgingCache[str, int] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=RATE_MEMORY_SECONDS
        )
        self._free_at: AgingCache[str, int] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=WAIT_MEMORY_SECONDS
        )

    def admit(self, route: str, source_ip: str | None, *, email: str | None = None) -> None:
        """Let one request to an open route pass, or raise RateLimitedError with the whole seconds to wait.

        `source_ip` is requestContext.http.sourceIp, never a header. `email` is the one in the body, where the route has
        one. A sign-in counts as failed until `succeeded` is called. Raises InvalidRequestError
        (`email_domain_not_accepted`) for an account on a throw-away address, StoreUnavailableError.
        """
        limits, stranger = OPEN_ROUTES[route], stranger_of(source_ip, email)
        if limits.makes_account and email is not None and self._domains.refuse(email):
            raise InvalidRequestError(
                "email: addresses of this domain are not accepted, because anybody can read its mail",
                error_code="email_domain_not_accepted",
            )
        rates = [self._scaled(rate) for rate in limits.rates]
        for rate in rates:
            self._refuse_rate(rate, self._tats_ms.get(_name(rate, stranger), self._now()) or 0)
        if limits.guards_password:
            self._refuse_wait(ADDRESS_FAILURES, stranger)
            self._refuse_wait(PAIR_FAILURES, stranger)
        for rate in rates:
            self._step(rate, stranger)
        if limits.guards_password:
            self._claim_attempt(stranger)

    def succeeded(self, route: str, source_ip: str | None, *, email: str) -> None:
        """The admitted sign-in was right: its attempt is no failure, and the address is known from now on.

        Failures of the mailbox are forgotten, those of the address are not: else a guesser would sign in to an account
        of their own now and then. Raises StoreUnavailableError.
        """
        if not OPEN_ROUTES[route].guards_password:
            return
        stranger, now = stranger_of(source_ip, email), self._now()
        for back_off in (MAILBOX_FAILURES, PAIR_FAILURES):
            self._limits.forget_failures(self._digest("failures", back_off, stranger))
            self._free_at.put(_name(back_off, stranger), 0, now)
        self._limits.take_back_claim(self._digest("failures", ADDRESS_FAILURES, stranger))
        self._free_at.put(_name(ADDRESS_FAILURES, stranger), 0, now)
        if stranger.address != UNKNOWN_ADDRESS:
            self._limits.make_known(
                self._known_digest(stranger),
                end_seconds=int(now) + KNOWN_SECONDS,
                renew_before_seconds=int(now) + KNOWN_SECONDS // 2,
            )

    # ---- rates

    def _step(self, rate: Rate, stranger: Stranger) -> None:
        name, digest = _name(rate, stranger), self._digest("rate", rate, stranger)
        for _ in range(MAX_ROUNDS):
            now = self._now()
            now_ms = int(now * 1000)
            idle = (self._tats_ms.get(name, now) or 0) <= now_ms
            state = self._limits.step(
                digest, now_ms=now_ms, interval_ms=rate.interval_ms, tolerance_ms=rate.tolerance_ms, idle=idle
            )
            self._tats_ms.put(name, state.tat_ms, now)
            if state.admitted:
                return
            self._refuse_rate(rate, state.tat_ms)
        _refuse(1)

    def _refuse_rate(self, rate: Rate, tat_ms: int) -> None:
        wait_ms = tat_ms - rate.tolerance_ms - int(self._now() * 1000)
        if wait_ms > 0:
            _refuse(-(-wait_ms // 1000))

    def _scaled(self, rate: Rate) -> Rate:
        many = rate.subject in (Subject.ADDRESS, Subject.NETWORK)
        return rate.scaled(self._percent) if many else rate

    # ---- failed sign-ins

    def _claim_attempt(self, stranger: Stranger) -> None:
        """Count this attempt as failed, before the password is looked at: else many at once would all be free."""
        self._claim(ADDRESS_FAILURES.scaled(self._percent), stranger)
        try:
            self._claim_mailbox(stranger)
        except RateLimitedError:
            self._limits.take_back_claim(self._digest("failures", ADDRESS_FAILURES, stranger))
            raise

    def _claim_mailbox(self, stranger: Stranger) -> None:
        """The mailbox's owner, at an address they have signed in from, does not wait for what strangers did."""
        try:
            self._claim(MAILBOX_FAILURES, stranger)
        except RateLimitedError as refusal:
            now = self._now()
            if not self._limits.is_known(self._known_digest(stranger), int(now)):
                self._free_at.put(_name(PAIR_FAILURES, stranger), int(now) + refusal.retry_after_seconds, now)
                raise
            self._claim(PAIR_FAILURES, stranger)

    def _claim(self, back_off: BackOff, stranger: Stranger) -> None:
        self._refuse_wait(back_off, stranger)
        digest = self._digest("failures", back_off, stranger)
        seen = Failures(0, 0, forgotten=True)
        for _ in range(MAX_ROUNDS):
            now = int(self._now())
            if not seen.forgotten and seen.free_at_seconds > now:
                self._free_at.put(_name(back_off, stranger), seen.free_at_seconds, self._now())
                _refuse(seen.free_at_seconds - now)
            found = self._count(back_off, digest, seen, now)
            if found is None:
                return
            seen = found
        _refuse(1)

    def _count(self, back_off: BackOff, digest: str, seen: Failures, now: int) -> Failures | None:
        """One write in the form that fits what was seen; None when it counted the attempt."""
        wait = back_off.wait_seconds(1 if seen.forgotten else seen.count + 1)
        end = now + wait + FORGET_SECONDS
        free_at = ceil(self._now()) + wait if wait else now  # a wait is never shorter than it says
        if seen.forgotten:
            return self._limits.claim_first(digest, now_seconds=now, free_at_seconds=free_at, end_seconds=end)
        if not wait:
            below = back_off.free_failures - 1
            return self._limits.claim_free(digest, below=below, now_seconds=now, end_seconds=end)
        return self._limits.claim_waited(digest, seen, now_seconds=now, free_at_seconds=free_at, end_seconds=end)

    def _refuse_wait(self, back_off: BackOff, stranger: Stranger) -> None:
        now = self._now()
        wait = (self._free_at.get(_name(back_off, stranger), now) or 0) - int(now)
        if wait > 0:
            _refuse(wait)

    # ---- names

    def _digest(self, kind: str, limit: Rate | BackOff, stranger: Stranger) -> str:
        return digest_of(self._secret(), kind, limit.name, limit.subject, stranger.subject(limit.subject))

    def _known_digest(self, stranger: Stranger) -> str:
        return digest_of(self._secret(), "known", "address", Subject.PAIR, stranger.subject(Subject.PAIR))

    def _now(self) -> float:
        return self._clock.now_seconds()


def _name(limit: Rate | BackOff, stranger: Stranger) -> str:
    """In this process's memory only."""
    return f"{limit.name} {limit.subject} {stranger.subject(limit.subject)}"


def _refuse(wait_seconds: int) -> NoReturn:
    raise RateLimitedError(
        "Too many attempts. Wait, then try again.", retry_after_seconds=wait_seconds, error_code="too_many_attempts"
    )
