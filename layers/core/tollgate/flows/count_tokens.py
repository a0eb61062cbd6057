"""Count tokens: pass the question up and the answer down. Outside every quota, and never charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import RateLimitedError, UpstreamUnavailableError
from tollgate.domain.principals import Principal
from tollgate.domain.sources import Clock
from tollgate.providers.claude import Upstream, UpstreamLostError, UpstreamNotReachedError, UpstreamRequest, refusal_of

BURST: Final = 60
"""Claude Code's /context asks 26 times at once."""
PER_SECOND: Final = 2
TIMEOUT_SECONDS: Final = 30
MAX_ANSWER_BYTES: Final = 1024 * 1024
MEMORY_ENTRIES: Final = 4096


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """A whole answer of upstream, to be passed down byte for byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TokenCounter:
    """Forwards count_tokens under a rate limit of its own, kept in this process: it protects upstream, not a quota."""

    def __init__(self, upstream: Upstream, clock: Clock) -> None:
        self._upstream = upstream
        self._clock = clock
        self._arrivals: AgingCache[tuple[str, str], float] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=BURST / PER_SECOND
        )

    def count(self, principal: Principal, target: str, headers: Mapping[str, str], body: bytes) -> PlainAnswer:
        """Raises RateLimitedError, UpstreamUnavailableError, UpstreamBusyError. Other upstream refusals are answers."""
        self._take_turn(principal)
        try:
            answer = self._upstream.send(UpstreamRequest("POST", target, headers, body), TIMEOUT_SECONDS)
            try:
                content = bytearray()
                while len(content) <= MAX_ANSWER_BYTES and (chunk := answer.read(TIMEOUT_SECONDS)):
                    content += chunk
            finally:
                answer.close()
        except (UpstreamNotReachedError, UpstreamLostError) as error:
            raise UpstreamUnavailableError(
                "Claude could not be reached. Try again.", error_code="upstream_unreachable"
            ) from error
        refusal = refusal_of(answer.status, bytes(content))
        if refusal is not None:
            raise refusal
        return PlainAnswer(answer.status, answer.headers, bytes(content))

    def _take_turn(self, principal: Principal) -> None:
        """GCRA (https://brandur.org/rate-limiting) in memory."""
        now, key = self._clock.now_seconds(), (principal.tenant_id, principal.user_id)
        arrival = max(now, self._arrivals.get(key, now) or now)
        wait_seconds = arrival - now - (BURST - 1) / PER_SECOND
        if wait_seconds > 0:
            raise RateLimitedError(
                "Too many count_tokens requests. Slow down.", retry_after_seconds=int(wait_seconds) + 1
            )
        self._arrivals.put(key, arrival + 1 / PER_SECOND, now)
