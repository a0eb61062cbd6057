"""Claude, and everything that can happen to a connection to it. Keeps its own log of what it was asked and has told."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.plans import CUTS, Call, UpstreamFate
from tests.chaos.shapes import LONG, LONG_TOKENS, SHORT, shape
from tests.chaos.wire import Listener, read_request, reset

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_chaos\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
ERROR_EVENT = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
FLOOD_BYTES = 3 * 1024 * 1024
LONGEST_STALL_SECONDS = 20.0
_CALL_ID = re.compile(rb"chaos call ([0-9.]+)!")


@dataclass(slots=True)
class Exchange:
    """What upstream knows of one call."""

    received: int = 0
    sent_bytes: int = 0
    """Of the recorded stream, unchanged."""
    refused: bool = False
    whole: bool = False
    shape: str = ""
    """Of the answer that was given; empty: none."""


class Upstream:
    """One for each slot."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.faults: Counter[str] = Counter()
        self._kill = kill
        self._call: Call | None = None
        self._lock = threading.Lock()
        self._listener = Listener(self._serve, "upstream")
        self.url = self._listener.url

    def begin(self, call: Call) -> None:
        self._call = call

    def close(self) -> None:
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as reader:
            while (request := read_request(reader)) is not None:
                found = _CALL_ID.search(request.body)
                call = self._call
                assert call is not None
                assert found is not None, request.body[:200]
                with self._lock:
                    exchange = self.exchanges.setdefault(found[1].decode(), Exchange())
                    exchange.received += 1
                if found[1].decode() != call.id:
                    return  # of a process that is dead
                exchange.shape = _fitting(call.shape, request.body)
                if not self._answer(connection, call, exchange):
                    return

    def _answer(self, connection: socket.socket, call: Call, exchange: Exchange) -> bool:
        """Whether the connection may be used again."""
        fate = call.fate
        if fate is not UpstreamFate.WHOLE:
            with self._lock:
                self.faults[fate.value] += 1
        if fate is UpstreamFate.HUNG_UP:
            return False
        if fate is UpstreamFate.REFUSED:
            exchange.refused = True
            error = {"type": "error", "error": {"type": "api_error", "message": "chaos"}}
            body = json.dumps(error).encode()
            connection.sendall(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (call.status, len(body), body))
            return True
        if fate is UpstreamFate.NO_HTTP:
            connection.sendall(Random(call.id).randbytes(200) + b"\r\n\r\n")
            return False
        connection.sendall(HEAD)
        return self._stream(connection, call, exchange)

    def _stream(self, connection: socket.socket, call: Call, exchange: Exchange) -> bool:
        found = shape(exchange.shape, call.line_end)
        data, fate = found.data, call.fate
        stop = len(data) if fate is UpstreamFate.WHOLE else min(call.at, len(data))
        if fate is UpstreamFate.ERROR_EVENT:
            stop = max((end for end in found.events if end <= call.at), default=0)
        kill_at = call.kill.number if call.kill is not None and call.kill.at == "upstream" else None
        if kill_at is not None and kill_at < stop:
            self._send(connection, data[:kill_at], exchange)
            self._kill()
            self._send(connection, data[kill_at:stop], exchange)
        else:
            half = stop // 2
            self._send(connection, data[:half], exchange)
            self._send(connection, data[half:stop], exchange)
        return self._end(connection, fate, data[stop:], exchange)

    def _end(self, connection: socket.socket, fate: UpstreamFate, rest: bytes, exchange: Exchange) -> bool:
        match fate:
            case UpstreamFate.WHOLE:
                exchange.whole = True
                connection.sendall(b"0\r\n\r\n")
                return True
            case UpstreamFate.ENDED:
                connection.sendall(b"0\r\n\r\n")
                return True
            case UpstreamFate.RESET:
                reset(connection)
            case UpstreamFate.STALL:
                connection.settimeout(LONGEST_STALL_SECONDS)
                connection.recv(1)  # until the function gives up
            case UpstreamFate.GARBAGE:
                noise = Random(len(rest)).randbytes(len(rest) // 2)
                connection.sendall(_chunk(noise + rest) + b"0\r\n\r\n")
                return True
            case UpstreamFate.FLOOD:
                connection.sendall(_chunk(b"event: content_block_delta\ndata: " + b"x" * FLOOD_BYTES))
            case UpstreamFate.PINGS:
                self._ping(connection)
            case UpstreamFate.ERROR_EVENT:
                connection.sendall(_chunk(ERROR_EVENT) + b"0\r\n\r\n")
                return True
            case _:
                assert fate in CUTS
        return False

    def _ping(self, connection: socket.socket) -> None:
        until = time.monotonic() + LONGEST_STALL_SECONDS
        while time.monotonic() < until:
            connection.sendall(_chunk(b'event: ping\ndata: {"type":"ping"}\n\n'))
            time.sleep(0.02)

    def _send(self, connection: socket.socket, data: bytes, exchange: Exchange) -> None:
        if data:
            connection.sendall(_chunk(data))
            exchange.sent_bytes += len(data)


def _fitting(name: str, body: bytes) -> str:
    """Claude never generates more than max_tokens, which may have been clamped."""
    return SHORT if name == LONG and json.loads(body)["max_tokens"] < LONG_TOKENS else name


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
