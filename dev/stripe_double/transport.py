"""The real SDK without sockets: a `stripe.HTTPClient` that hands each request to a world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import stripe

from dev.stripe_double.faults import NOTHING, Fault, FaultPlan
from dev.stripe_double.forms import Value
from dev.stripe_double.world import Answer, StripeWorld


class InProcess(stripe.HTTPClient):
    """`StripeClient("sk_test_x", http_client=InProcess(world))`."""

    name: ClassVar[str] = "in-process"

    def __init__(
        self, world: StripeWorld, faults: FaultPlan = NOTHING, on_slow: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.world = world
        self._faults = faults
        self._on_slow = on_slow
        """Called while a slow answer is under way: what other processes do meanwhile."""

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Value = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        fault = self._faults(method.upper(), url)
        answer = self._answer(fault, method, url, dict(headers or {}), post_data)
        if fault is Fault.LOST_AFTER:
            raise _lost("the answer was lost")
        if fault is Fault.ERROR_AFTER:
            answer = _failure(500)
        if fault is Fault.SLOW:
            self._on_slow()
        # The SDK looks headers up in lower case, as its own transports give them.
        return answer.body.decode(), answer.status, {key.lower(): value for key, value in answer.headers.items()}

    def _answer(self, fault: Fault | None, method: str, url: str, headers: dict[str, str], post_data: Value) -> Answer:
        match fault:
            case Fault.LOST_BEFORE:
                raise _lost("the request was lost")
            case Fault.ERROR_BEFORE:
                return _failure(500)
            case Fault.CONFLICT:
                return _failure(409)
            case Fault.RATE_LIMITED:
                return _failure(429)
        body = post_data.encode() if isinstance(post_data, str) else bytes(post_data or b"")
        path = "/" + url.split("://", 1)[-1].partition("/")[2]
        return self.world.handle(method, path, headers, body)

    def close(self) -> None:
        """Nothing is open."""


def _lost(message: str) -> stripe.APIConnectionError:
    return stripe.APIConnectionError(message, should_retry=True)  # type: ignore[no-untyped-call]  # of the SDK


def _failure(status: int) -> Answer:
    texts = {
        409: '{"error": {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": "There is currently '
        'another in-progress request using this idempotency key."}}',
        429: '{"error": {"type": "invalid_request_error", "code": "rate_limit", "message": "Request rate limit '
        'exceeded."}}',
        500: '{"error": {"type": "api_error", "message": "An unknown error occurred"}}',
    }
    return Answer(status, {"content-type": "application/json"}, texts[status].encode())
