"""What is compared: the upstream directly, a bare pass-through, the claude function, LiteLLM. One door to all four.

A function serves one stream at a time, as on Lambda, so it gets a process for each lane of traffic; a server has one.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from bench.function import CLAUDE, FIRST_TOKEN, Answer, FunctionProcess, Surroundings, message_body, message_event
from bench.process_stats import cpu_seconds

PASS_THROUGH = "bench.passthrough.handler"
STARTS_AT_ONCE = 2
IDLE_SECONDS = 1.0
"""Servers close connections that nobody has used for a while (LiteLLM after five seconds)."""


class Target(Protocol):
    """Something that answers POST /v1/messages."""

    @property
    def name(self) -> str: ...

    def open(self, lanes: int) -> None:
        """Makes ready for so many streams at the same time."""

    def send(self, lane: int, text: str, max_tokens: int = 1024) -> Answer:
        """One streamed message; each lane is used by one thread at a time."""

    def pids(self, lanes: int) -> list[int]:
        """The processes that serve these lanes; none when the target is not ours to measure."""

    def cpu_seconds(self) -> float:
        """Processor time of all of them until now."""

    def close(self) -> None: ...


class Server:
    """A server on this machine, one connection for each lane, kept open."""

    def __init__(self, name: str, port: int, key: str, pid: int) -> None:
        self.name = name
        self._port = port
        self._headers = {"x-api-key": key, "content-type": "application/json", "anthropic-version": "2023-06-01"}
        self._pid = pid
        self._lanes: list[http.client.HTTPConnection] = []
        self._used_at: list[float] = []

    def open(self, lanes: int) -> None:
        while len(self._lanes) < lanes:
            self._lanes.append(http.client.HTTPConnection("127.0.0.1", self._port, timeout=120))
            self._used_at.append(0.0)

    def send(self, lane: int, text: str, max_tokens: int = 1024) -> Answer:
        connection = self._lanes[lane]
        if time.monotonic() - self._used_at[lane] > IDLE_SECONDS:
            connection.close()  # opened anew by the request
        began = time.monotonic()
        connection.request("POST", "/v1/messages", message_body(text, max_tokens=max_tokens), self._headers)
        response = connection.getresponse()
        first, token, body = 0.0, 0.0, bytearray()
        while piece := response.read1(65536):
            now = time.monotonic() - began
            first = first or now
            body += piece
            if not token and FIRST_TOKEN in body:
                token = now
        response.read()  # nothing is left, but only this tells the connection so
        self._used_at[lane] = time.monotonic()
        seconds = self._used_at[lane] - began
        return Answer(response.status, bytes(body), first, token, seconds, seconds)

    def pids(self, lanes: int) -> list[int]:
        return [self._pid]

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)

    def close(self) -> None:
        for connection in self._lanes:
            connection.close()


class Function:
    """A function behind the Lambda Runtime API, a process for each lane."""

    def __init__(self, name: str, around: Surroundings, key: str, handler: str = CLAUDE) -> None:
        self.name = name
        self._around = around
        self._key = key
        self._handler = handler
        self._lanes: list[FunctionProcess] = []

    def open(self, lanes: int) -> None:
        wanted = range(lanes - len(self._lanes))
        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            self._lanes += pool.map(lambda _: self.start(), wanted)

    def start(self) -> FunctionProcess:
        """One more process, outside of the lanes."""
        return FunctionProcess(self._around, handler=self._handler, timed=False, counted=False)

    def send(self, lane: int, text: str, max_tokens: int = 1024) -> Answer:
        return self._lanes[lane].send(message_event(self._key, text, max_tokens=max_tokens))

    def pids(self, lanes: int) -> list[int]:
        return [process.pid for process in self._lanes[:lanes]]

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process in self._lanes)

    def close(self) -> None:
        for process in self._lanes:
            process.close()


def at_once(lanes: int, work: Callable[[int], Answer]) -> list[Answer]:
    """The answers of `work` for every lane, all begun in the same moment. Raises what any of them raised."""
    barrier = threading.Barrier(lanes)

    def run(lane: int) -> Answer:
        barrier.wait()
        return work(lane)

    with ThreadPoolExecutor(lanes) as pool:
        return list(pool.map(run, range(lanes)))
