"""Between the code and Stripe, and between the code and its queue: latency, lost requests and lost answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import stripe

from dev.stripe_double.world import Answer, StripeWorld
from tests.simulation.hub import Hub, KilledError, Process
from tollgate.domain.errors import StoreUnavailableError


@dataclass(frozen=True, slots=True)
class WireFaults:
    """Probabilities, per request."""

    lost_request: float = 0
    lost_answer: float = 0
    failed: float = 0
    """500; half of them applied."""
    busy: float = 0
    """429."""

    @property
    def total(self) -> float:
        return self.lost_request + self.lost_answer + self.failed + self.busy

    @classmethod
    def draw(cls, rng: random.Random, *, most: float, most_failed: float) -> WireFaults:
        """Each of them never, now and then, or this often."""
        return cls(
            lost_request=rng.choice((0, 0.02, most)),
            lost_answer=rng.choice((0, 0.02, most)),
            failed=rng.choice((0, 0.02, most_failed)),
            busy=rng.choice((0, 0.02, most)),
        )


class Wire(stripe.HTTPClient):
    """The SDK's transport for whichever process is running. One for all runs: making a client costs 20 ms."""

    name: ClassVar[str] = "simulated"

    def __init__(self) -> None:
        super().__init__()
        self.side: Side | None = None

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,  # noqa: ANN401  the SDK's own
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        assert self.side is not None
        body = post_data.encode() if isinstance(post_data, str) else bytes(post_data or b"")
        path = "/" + url.split("://", 1)[-1].partition("/")[2]
        answer = self.side.ask(method, path, dict(headers or {}), body)
        return answer.body.decode(), answer.status, {key.lower(): value for key, value in answer.headers.items()}

    def _sleep_time_seconds(self, num_retries: int, response: Any = None) -> float:  # noqa: ANN401
        """The SDK would sleep in real time; here virtual time passes."""
        assert self.side is not None
        self.side.sleep(0.5)
        return 0

    def close(self) -> None:
        """Nothing is open."""


class Side:
    """Stripe as one run sees it, through a wire that is out of order."""

    def __init__(
        self,
        hub: Hub,
        world: StripeWorld,
        rng: random.Random,
        seen: Counter[str],
        catch_up: Callable[[], None],
        running: Callable[[], Process | None],
    ) -> None:
        self.hub = hub
        self.world = world
        self.rng = rng
        self.seen = seen
        self.faults = WireFaults()
        self.fetches: dict[Process, int] = {}
        """When each process last got an answer about subscriptions: the request's number, in Stripe's own order."""
        self._catch_up = catch_up
        self._running = running
        self._asked = 0

    def sleep(self, seconds: float) -> None:
        process = self._running()
        if process is not None:
            self.hub.sleep(process, seconds)

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request of the running process; of nobody: the scenario's own, to which nothing happens."""
        process = self._running()
        if process is None:
            self._catch_up()
            return self.world.handle(method, path, headers, body)
        if process.dead:
            raise KilledError
        self.seen["stripe_calls"] += 1
        fate = self._fate()
        self.hub.sleep(process, 0.05 + self.rng.random() * 0.2)
        if fate in {"lost_request", "busy"} or (fate == "failed" and self.rng.random() < 0.5):
            return self._lost(process, fate)
        self._catch_up()
        answer = self.world.handle(method, path, headers, body)
        self._asked += 1
        asked = self._asked
        self._catch_up()
        if fate in {"lost_answer", "failed"}:
            return self._lost(process, fate)
        self.hub.sleep(process, 0.05 + self.rng.random() * 0.2)
        if path.startswith("/v1/subscriptions?"):
            self.fetches[process] = asked
        return answer

    def _fate(self) -> str | None:
        faults = self.faults
        if not faults.total or self.rng.random() >= faults.total:
            return None
        kinds = ["lost_request", "lost_answer", "failed", "busy"]
        kind = self.rng.choices(kinds, [getattr(faults, name) for name in kinds])[0]
        self.seen[f"stripe_{kind}"] += 1
        return kind

    def _lost(self, process: Process, fate: str) -> Answer:
        if fate == "busy":
            return Answer(429, {"content-type": "application/json"}, b'{"error": {"type": "invalid_request_error"}}')
        self.hub.sleep(process, 3 if fate == "lost_request" else 8)
        if fate == "failed":
            return Answer(500, {"content-type": "application/json"}, b'{"error": {"type": "api_error"}}')
        raise stripe.APIConnectionError("no answer", should_retry=True)  # type: ignore[no-untyped-call]


class Queue:
    """Keeps what it is given and gives it at least once; after some failures it goes to the dead letters."""

    def __init__(
        self, hub: Hub, rng: random.Random, seen: Counter[str], running: Callable[[], Process | None], name: str
    ) -> None:
        self.hub = hub
        self.rng = rng
        self.seen = seen
        self.name = name
        self.faults = WireFaults()
        self.arrived: Callable[[str], None] = lambda _: None
        self._running = running

    def send(self, text: str) -> None:
        process = self._running()
        assert process is not None
        self.hub.sleep(process, 0.005)
        fate = self.rng.random()
        if fate < self.faults.lost_request:
            self.seen["queue_lost_request"] += 1
            raise StoreUnavailableError("no answer")
        self.seen[f"sent_{self.name}"] += 1
        self.arrived(text)
        if fate < self.faults.lost_request + self.faults.lost_answer:
            self.seen["queue_lost_answer"] += 1
            raise StoreUnavailableError("no answer")
        self.hub.sleep(process, 0.005)
