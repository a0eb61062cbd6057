"""A world that outlives its process: what is done to it is written down, and done again after a restart.

The world's ids come from its seed and its time from the caller, so the same calls at the same virtual seconds make the
same world. The virtual clock is the machine's plus an offset that only grows. A journal that does not lead to the
answers it led to before (the double itself was changed meanwhile) is set aside, and an empty world begins.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Protocol

Json = dict[str, Any]
STEP: Final = timedelta(hours=1)
"""Of a journey in time: between two steps the events of the first are delivered, as they would be in real time."""
HEADERS: Final = frozenset({"authorization", "content-type", "idempotency-key", "stripe-account", "stripe-version"})
"""What of a request's head decides the answer; the key is one of the double's own."""
ACTIONS: Final = frozenset(
    {
        "close_dispute",
        "complete_checkout",
        "delete_customer",
        "dispute",
        "fail_payments",
        "fraud_warning",
        "pause",
        "portal.cancel",
        "portal.keep",
        "portal.new_card",
        "refund",
        "resume",
    }
)


class Answer(Protocol):
    """Of Stripe's API."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class World(Protocol):
    """What is kept of `StripeWorld`."""

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer: ...
    def advance(self, to: datetime) -> None: ...
    def take_events(self) -> list[Json]: ...


class JournalError(Exception):
    """The journal does not lead to the world it came from."""


class Keeper:
    """One world, its clock and its journal. Safe to use from several threads."""

    def __init__(
        self,
        make_world: Callable[[datetime, int], World],
        journal: Path | None,
        *,
        clock: Callable[[], datetime],
        seed: Callable[[], int],
        on_events: Callable[[list[Json]], None],
        clock_file: Path | None = None,
    ) -> None:
        """`make_world`: of an instant and a seed. `journal`: None keeps nothing. `on_events`: delivers them.

        `clock_file`: is told the offset, in seconds, for others who live by this clock.
        """
        self._make_world = make_world
        self._path = journal
        self._clock = clock
        self._seed = seed
        self._on_events = on_events
        self._clock_file = clock_file
        self._lock = threading.RLock()
        self._offset = timedelta()
        self._sent: set[str] = set()
        self.set_aside: str | None = None
        """Why an earlier journal was not followed."""
        with self._lock:
            self._begin()
            self._tell_clock()

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """A request of the API."""
        with self._lock:
            now = self._tick()
            answer = self._world.handle(method, path, headers, body)
            if method != "GET":
                entry = {
                    "method": method,
                    "path": path,
                    "headers": {name: value for name, value in headers.items() if name in HEADERS},
                    "body": base64.b64encode(body).decode(),
                }
                self._note(now, {"ask": entry, "status": answer.status})
            self._publish()
            return answer

    def act(self, name: str, arguments: Json) -> Any:  # noqa: ANN401  whatever the world's method answers
        """One of ACTIONS: what happens at Stripe without being asked by API."""
        with self._lock:
            now = self._tick()
            try:
                return attrgetter(name)(self._world)(**arguments)
            finally:
                # Also what was refused, since it may have left a trace such as a declined payment.
                self._note(now, {"act": name, "arguments": arguments})
                self._publish()

    def read(self, look: Callable[[Any], Any]) -> Any:  # noqa: ANN401
        """Something about the world that only looking tells; it must change nothing."""
        with self._lock:
            return look(self._world)

    def sent(self, event_id: str) -> None:
        """The event needs no further delivery."""
        with self._lock:
            self._note(self.now(), {"sent": event_id})

    def now(self) -> datetime:
        """The virtual second."""
        return (self._clock() + self._offset).replace(microsecond=0)

    @property
    def offset(self) -> timedelta:
        return self._offset

    def travel(self, distance: timedelta, wait: Callable[[], None]) -> None:
        """Moves the virtual clock forward, hour by hour; `wait` is called before, and whenever something happened."""
        left = distance
        wait()
        while left > timedelta():
            step = min(STEP, left)
            left -= step
            with self._lock:
                self._offset += step
                self._tell_clock()
                now = self._tick()
                happened = self._publish()
                self._note(now, {"offset_seconds": int(self._offset.total_seconds())})
            if happened:
                wait()

    def tick(self) -> None:
        """Lets happen what is due by now."""
        with self._lock:
            self._tick()
            self._publish()

    def reset(self) -> None:
        """An empty world in the present."""
        with self._lock:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            self._begin()
            self._tell_clock()

    def _begin(self) -> None:
        if self._path is not None and self._path.is_file():
            try:
                self._follow(self._lines(self._path))
            except (IndexError, JournalError, KeyError, ValueError, TypeError, AttributeError) as error:
                self.set_aside = f"{type(error).__name__}: {error}"
                os.replace(self._path, self._path.with_suffix(".old"))
            else:
                return
        self._offset = timedelta()
        self._sent = set()
        now, seed = self.now(), self._seed()
        self._world = self._make_world(now, seed)
        self._note(now, {"world": seed})

    def _lines(self, path: Path) -> list[Json]:
        text = path.read_text()
        whole, _, broken = text.rpartition("\n")
        if broken:  # the last line of a process that was killed
            os.truncate(path, len(text.encode()) - len(broken.encode()))
        return [json.loads(line) for line in whole.splitlines()]

    def _follow(self, lines: list[Json]) -> None:
        first = lines[0]
        self._world = self._make_world(_instant(first["at"]), first["world"])
        self._offset, self._sent = timedelta(), set()
        for line in lines[1:]:
            self._world.advance(_instant(line["at"]))
            if "ask" in line:
                entry = line["ask"]
                body = base64.b64decode(entry["body"])
                answer = self._world.handle(entry["method"], entry["path"], entry["headers"], body)
                if answer.status != line["status"]:
                    raise JournalError(f"{entry['method']} {entry['path']} is answered {answer.status} now")
            elif "act" in line:
                self._act_again(line)
            elif "offset_seconds" in line:
                self._offset = timedelta(seconds=line["offset_seconds"])
            else:
                self._sent.add(line["sent"])
        self._publish()

    def _act_again(self, line: Json) -> None:
        try:
            attrgetter(line["act"])(self._world)(**line["arguments"])
        except Exception as error:
            if line["act"] not in ACTIONS:
                raise JournalError(line["act"]) from error

    def _tick(self) -> datetime:
        now = self.now()
        self._world.advance(now)
        return now

    def _tell_clock(self) -> None:
        if self._clock_file is not None:
            text = f"{int(self._offset.total_seconds()):12d}"
            descriptor = os.open(self._clock_file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, text.encode())  # always as long as before: readers never see half of it
            finally:
                os.close(descriptor)

    def _publish(self) -> bool:
        events = [event for event in self._world.take_events() if event["id"] not in self._sent]
        if events:
            self._on_events(events)
        return bool(events)

    def _note(self, now: datetime, line: Json) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(json.dumps({"at": int(now.timestamp()), **line}, separators=(",", ":")) + "\n")


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
