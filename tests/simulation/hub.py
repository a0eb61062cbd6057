"""Virtual time and the processes that live in it: discrete events, one greenlet per simulated process.

Production code is plain synchronous Python. Where it waits for the network it switches to the hub, which moves the
clock to the next event. Nothing here reads a real clock; two runs with equal inputs are equal, event by event.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

import greenlet  # type: ignore[import-untyped]  # it ships no types

from tollgate.domain.principals import KeyLimits

MAX_EVENTS = 400_000


class KilledError(greenlet.GreenletExit):  # type: ignore[misc]  # untyped base
    """Raised inside a dead process that tries to do anything; production code must not be able to swallow it."""


class LivelockError(Exception):
    """Far more events than any run needs."""


class Process:
    """A function invocation, sweeper or webhook: killed, frozen or run to its end. Its clock is off by a constant."""

    __slots__ = (
        "body",
        "crash",
        "dead",
        "done",
        "frozen_until",
        "greenlet",
        "hub",
        "limits",
        "name",
        "on_kill",
        "outages",
        "readings",
        "sights",
        "skew_seconds",
        "started_at",
    )

    def __init__(self, hub: Hub, name: str, body: Callable[[Process], None], skew_seconds: float) -> None:
        self.hub = hub
        self.name = name
        self.body = body
        self.skew_seconds = skew_seconds
        self.dead = False
        self.done = False
        self.frozen_until = 0.0
        self.started_at = hub.now
        self.readings: list[float] = []
        self.outages = 0
        """How often the table failed it for good: what it then left behind is excused."""
        self.sights: list[tuple[float, Any]] = []
        """Meters that refused it or that it read, each with its clock's last reading: what refusals are judged by."""
        self.on_kill: Callable[[], None] | None = None
        self.limits: KeyLimits | None = None
        """Of the API key that the call came with."""
        self.crash: Exception | None = None
        self.greenlet = greenlet.greenlet(self._run, hub.greenlet)

    def _run(self) -> None:
        try:
            self.body(self)
        except Exception as error:  # noqa: BLE001  a crash of production code is a finding, reported by the run
            self.crash = error
            self.hub.crashes.append((self, error))
        finally:
            self.done = True

    # The clock that production code is given

    def now_seconds(self) -> float:
        reading = self.hub.now + self.skew_seconds
        if not self.readings or self.readings[-1] != reading:
            self.readings.append(reading)
        return reading

    @property
    def running(self) -> bool:
        return not self.dead and not self.done


class Surroundings(Protocol):
    """What a run is to the function processes in it."""

    hub: Hub
    rng: random.Random

    def new_id(self, length: int) -> str: ...


class Warm:
    """A warm function process: Clock and IdSource of the code of whichever invocation it serves."""

    process: Process
    """The present invocation."""

    def __init__(self, surroundings: Surroundings, clock_error_seconds: float) -> None:
        self._surroundings = surroundings
        self.skew_seconds = surroundings.rng.uniform(-1, 1) * clock_error_seconds

    def now_seconds(self) -> float:
        return self.process.now_seconds()

    def pause(self, wait_seconds: float) -> None:
        self._surroundings.hub.sleep(self.process, wait_seconds)

    def new_id(self, length: int) -> str:
        return self._surroundings.new_id(length)

    def random_bytes(self, count: int) -> bytes:
        return self._surroundings.rng.randbytes(count)


class Hub:
    """The event queue. `now` is the true time, epoch seconds."""

    def __init__(self, start_seconds: float) -> None:
        self.now = start_seconds
        self.greenlet = greenlet.getcurrent()
        self.crashes: list[tuple[Process, Exception]] = []
        self.processes: list[Process] = []
        self.kills = 0
        self.trace: Callable[[str], None] | None = None
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def at(self, instant: float, event: Callable[[], object]) -> None:
        heappush(self._events, (max(instant, self.now), next(self._order), event))

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        heappush(self._events, (self.now + seconds, next(self._order), event))

    def run(self) -> None:
        """Until nothing is left to happen."""
        events = self._events
        left = MAX_EVENTS
        while events:
            instant, _, event = heappop(events)
            if instant > self.now:
                self.now = instant
            event()
            left -= 1
            if left < 0:
                raise LivelockError(f"more than {MAX_EVENTS} events")

    def is_quiet_until(self, instant: float) -> bool:
        """Nothing else can happen up to then: a process may go on without a switch, and no one can tell."""
        return not self._events or self._events[0][0] > instant

    # Processes

    def start(self, process: Process) -> Process:
        self.processes.append(process)
        process.greenlet.switch()
        return process

    def sleep(self, process: Process, seconds: float) -> None:
        """Called inside the process: let `seconds` pass for it."""
        if process.dead:
            raise KilledError
        wake_at = self.now + seconds
        if process.frozen_until <= self.now and (not self._events or self._events[0][0] > wake_at):
            self.now = wake_at
            return
        heappush(self._events, (wake_at, next(self._order), lambda: self._resume(process)))
        self.greenlet.switch()
        if process.dead:
            raise KilledError

    def _resume(self, process: Process) -> None:
        if process.dead:
            return
        if process.frozen_until > self.now:
            self.at(process.frozen_until, lambda: self._resume(process))
            return
        process.greenlet.switch()

    def freeze(self, process: Process, seconds: float) -> bool:
        if not process.running:
            return False
        process.frozen_until = max(process.frozen_until, self.now + seconds)
        return True

    def kill(self, process: Process) -> bool:
        """SIGKILL: it never runs again. True if it was alive."""
        if not process.running:
            return False
        process.dead = True
        self.kills += 1
        if process.on_kill is not None:
            process.on_kill()
        return True

    def bury(self) -> None:
        """End the greenlets of the dead, so that nothing of theirs runs at an arbitrary time later.

        Their `finally` blocks run now; every client and clock of theirs refuses, so they can have no effect.
        """
        for process in self.processes:
            if not process.done and process.greenlet:
                process.greenlet.throw(KilledError)
        self.processes.clear()
