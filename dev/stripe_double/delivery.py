"""Brings events to webhook endpoints as Stripe does: signed, again and again until somebody answers 2xx.

On demand also twice, in any order, or thin. Nothing here decides what an event says.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

Json = dict[str, Any]
RETRY_SECONDS: Final = (0.3, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
"""Stripe takes three days; who works on a webhook wants to see it sooner."""
TIMEOUT_SECONDS: Final = 35
"""Longer than an HTTP API waits for its function."""


class Signed(Protocol):
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Manner:
    """How events are delivered."""

    kind: str = "snapshot"
    """Or `thin`."""
    copies: int = 1
    shuffled: bool = False


class Deliveries:
    """One endpoint's events. `start` once; every method may be called from any thread."""

    def __init__(
        self,
        url: str,
        sign: Callable[[Json, str], Signed],
        done: Callable[[str], None],
        report: Callable[[str], None],
    ) -> None:
        """`sign`: of an event and a kind. `done`: the event has arrived or was given up. `report`: a failed attempt."""
        self._url = url
        self._sign = sign
        self._done = done
        self._report = report
        self._state = threading.Condition()
        self._due: list[tuple[float, int, Json, int, str]] = []
        self._turn = itertools.count()
        self._fresh = 0
        self._waiting: dict[str, int] = {}
        self.manner = Manner()
        self.attempts: list[Json] = []
        """Every attempt so far: event, type, kind, status (0: nobody there)."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="deliveries", daemon=True).start()

    def set_manner(self, **chosen: Any) -> Manner:  # noqa: ANN401  one of Manner's fields
        """Changes some of it; TypeError for what it does not have."""
        self.manner = replace(self.manner, **chosen)
        return self.manner

    def put(self, events: list[Json]) -> None:
        manner = self.manner
        copies = [event for event in events for _ in range(manner.copies)]
        if manner.shuffled:
            random.shuffle(copies)
        with self._state:
            for event in copies:
                self._waiting[event["id"]] = self._waiting.get(event["id"], 0) + 1
                self._push(0.0, event, 0, manner.kind)
                self._fresh += 1
            self._state.notify_all()

    def forget(self) -> None:
        """Drops whatever waits."""
        with self._state:
            self._due.clear()
            self._waiting.clear()
            self._fresh = 0
            self._state.notify_all()

    def wait_tried(self, seconds: float = 30.0) -> bool:
        """Returns when each event was tried at least once; False when that takes too long."""
        with self._state:
            return self._state.wait_for(lambda: self._fresh <= 0, seconds)

    def _push(self, after_seconds: float, event: Json, tries: int, kind: str) -> None:
        heapq.heappush(self._due, (time.monotonic() + after_seconds, next(self._turn), event, tries, kind))

    def _run(self) -> None:
        while True:
            with self._state:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._state.wait(self._due[0][0] - time.monotonic() if self._due else None)
                _, _, event, tries, kind = heapq.heappop(self._due)
            status = self._attempt(event, kind)
            self._settle(event, tries, kind, status)

    def _attempt(self, event: Json, kind: str) -> int:
        """The status of the answer; 0 where there was none."""
        signed = self._sign(event, kind)
        request = urllib.request.Request(self._url, signed.body, dict(signed.headers), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                status: int = response.status
        except urllib.error.HTTPError as error:
            with error:
                status = error.code
        except OSError:
            status = 0
        self.attempts.append({"id": event["id"], "type": event["type"], "kind": kind, "status": status})
        return status

    def _settle(self, event: Json, tries: int, kind: str, status: int) -> None:
        arrived = 200 <= status < 300
        with self._state:
            if not tries:
                self._fresh -= 1
            again = not arrived and tries < len(RETRY_SECONDS)
            if again:
                self._push(RETRY_SECONDS[tries], event, tries + 1, kind)
            left = self._waiting.get(event["id"], 0) - (0 if again else 1)
            self._waiting[event["id"]] = left
            self._state.notify_all()
        if not arrived and status:
            self._report(f"{event['type']} {event['id']} was answered {status}")
        if left <= 0:
            self._done(event["id"])
