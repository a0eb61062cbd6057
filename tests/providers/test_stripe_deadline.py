"""All that one invocation asks of Stripe has one end, however slowly Stripe answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tollgate.domain.errors import StripeUnavailableError
from tollgate.providers.stripe_billing import StripeBilling
from tollgate.providers.stripe_client import RESERVED_SECONDS, RETRY_SECONDS, StripeDeadline

SLACK_SECONDS = 1.5
"""Of a busy machine."""


class RealClock:
    def now_seconds(self) -> float:
        return time.time()

    def pause(self, wait_seconds: float) -> None:
        time.sleep(wait_seconds)


@dataclass
class ScriptedClock:
    seconds: float = 1_000_000.0

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.seconds += wait_seconds


@dataclass
class SlowStripe:
    """Answers each request after `waits`, with this status."""

    url: str = ""
    waits: float = 0.0
    status: int = 200
    body: dict[str, object] = field(default_factory=lambda: {"id": "cus_1", "object": "customer"})
    asked: int = 0


@contextmanager
def slow_stripe(**settings: object) -> Iterator[SlowStripe]:
    stripe = SlowStripe(**settings)  # type: ignore[arg-type]
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stripe.asked += 1
            over.wait(stripe.waits)
            content = json.dumps(stripe.body).encode()
            try:
                self.send_response(stripe.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                return  # nobody waits for it any more

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stripe.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stripe
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def asking(stripe: SlowStripe, deadline: StripeDeadline | None) -> StripeBilling:
    return StripeBilling(lambda: "sk_test_1", base_url=stripe.url, deadline=deadline)


def ask_often(billing: StripeBilling) -> None:
    for _ in range(20):
        billing.find_customer("cus_1")


def test_a_call_is_given_up_at_the_deadline_and_not_tried_again() -> None:
    deadline = StripeDeadline(RealClock())
    with slow_stripe(waits=30.0) as stripe:
        billing = asking(stripe, deadline)
        deadline.begin(60_000)
        billing._stripe.client()  # the import is not what is measured
        began = time.monotonic()
        deadline.begin(3000)
        with pytest.raises(StripeUnavailableError):
            billing.find_customer("cus_1")
        assert time.monotonic() - began < 3 - RESERVED_SECONDS + SLACK_SECONDS
        assert stripe.asked == 1


def test_many_calls_have_one_deadline_between_them() -> None:
    deadline = StripeDeadline(RealClock())
    with slow_stripe(waits=0.3) as stripe:
        billing = asking(stripe, deadline)
        deadline.begin(60_000)
        billing.find_customer("cus_1")
        began = time.monotonic()
        deadline.begin(3000)
        with pytest.raises(StripeUnavailableError):
            ask_often(billing)
        assert time.monotonic() - began < 3 - RESERVED_SECONDS + SLACK_SECONDS
        assert stripe.asked <= 6


@pytest.mark.parametrize(("left", "asked"), [(RETRY_SECONDS - 0.5, 1), (RETRY_SECONDS + 5, 2)], ids=["below", "above"])
@pytest.mark.parametrize("status", [500, 409])
def test_a_second_try_is_made_only_where_there_is_time_for_it(left: float, asked: int, status: int) -> None:
    deadline = StripeDeadline(RealClock())
    with slow_stripe(status=status, body={"error": {"type": "api_error"}}) as stripe:
        deadline.begin(int((left + RESERVED_SECONDS) * 1000))
        with pytest.raises(StripeUnavailableError):
            asking(stripe, deadline).find_customer("cus_1")
        assert stripe.asked == asked


@pytest.mark.parametrize(("left_millis", "asked"), [(-1, 0), (0, 0), (1000, 1)], ids=["below", "at", "above"])
def test_without_time_stripe_is_not_asked(left_millis: int, asked: int) -> None:
    clock = ScriptedClock()
    deadline = StripeDeadline(clock)
    with slow_stripe() as stripe:
        deadline.begin(RESERVED_SECONDS * 1000 + left_millis)
        billing = asking(stripe, deadline)
        if asked:
            billing.find_customer("cus_1")
        else:
            with pytest.raises(StripeUnavailableError):
                billing.find_customer("cus_1")
        assert stripe.asked == asked


def test_the_next_invocation_has_a_time_of_its_own() -> None:
    clock = ScriptedClock()
    deadline = StripeDeadline(clock)
    with slow_stripe() as stripe:
        billing = asking(stripe, deadline)
        deadline.begin(30_000)
        clock.pause(28)
        with pytest.raises(StripeUnavailableError):
            billing.find_customer("cus_1")
        deadline.begin(30_000)
        assert billing.find_customer("cus_1") is not None


def test_who_has_no_deadline_may_take_its_time() -> None:
    with slow_stripe() as stripe:
        for deadline in (None, StripeDeadline(ScriptedClock())):
            assert asking(stripe, deadline).find_customer("cus_1") is not None
