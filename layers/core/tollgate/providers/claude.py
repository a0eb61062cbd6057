"""Claude's API as an upstream: one request out, bytes back, and what its refusals mean for us.

`Upstream` is the seam: `ClaudeApi` speaks HTTP/1.1, the simulator brings its own. No retries here: a request that may
have been processed is never sent twice, because each time may be a paid generation.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from tollgate.domain.errors import TollgateError, UpstreamBusyError, UpstreamUnavailableError
from tollgate.domain.sources import Clock

if TYPE_CHECKING:
    from ssl import SSLContext

CONNECT_SECONDS: Final = 5
IDLE_SECONDS: Final = 120
"""Silence in a running answer after which it counts as lost. Pings come every few seconds."""
REUSE_SECONDS: Final = 20
"""Idle connections are not used after this. A frozen function does not see its peer hang up, and a request written
into such a connection is lost without anybody knowing whether it was processed; so stay far below any peer's own
limit (60 s and more at the usual load balancers)."""
CHUNK_BYTES: Final = 64 * 1024
MAX_PROVISIONAL: Final = 16
"""Answers before the answer (102, 103, …) that are read past; more are a peer that never answers."""

_BEARER_SINCE: Final = "2026-10-21"
"""From this API version on Anthropic's own clients send the key as a bearer token, before it as `x-api-key`."""
_OUR_MONEY: Final = ("specified api usage limits", "credit balance is too low")
"""The 400s by which Anthropic says that *our* organisation's spending cap is reached or its credit used up. They have
no code of their own, so their wording is all there is."""
_SPEND_LIMIT_REACHED: Final = "spend_limit_reached"
"""How the codes of such a 429 end."""


class UpstreamNotReachedError(Exception):
    """The request was certainly not processed: no connection, or it broke before the request was out."""


class UpstreamLostError(Exception):
    """The connection broke, or stayed silent too long, after the request was out: it may have been processed."""


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One HTTP request. The upstream adds its own credential, host and length."""

    method: str
    target: str
    """Path and query, as they came."""
    headers: Mapping[str, str]
    """Lower-case names, already filtered: no credential, identity or hop-by-hop header."""
    body: bytes = b""


class UpstreamAnswer(Protocol):
    """An answer whose head has come. Headers have lower-case names."""

    @property
    def status(self) -> int:
        """A final one, 200 or more."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def read(self, timeout_seconds: float) -> bytes:
        """The next bytes as they come; b"" at the regular end. Raises UpstreamLostError."""

    def close(self) -> None:
        """Stop reading; safe to repeat. An unfinished answer costs its connection."""


class Upstream(Protocol):
    """Where requests for Claude go."""

    def send(
        self, request: UpstreamRequest, timeout_seconds: float, when_sent: Callable[[], None] | None = None
    ) -> UpstreamAnswer:
        """Wait for the head of the answer. Raises UpstreamNotReachedError or UpstreamLostError.

        `when_sent`: what to do while upstream works, once the request is out; it must not raise.
        A TollgateError, when our own credential cannot be had, comes before anything was sent.
        """


class ClaudeApi:
    """The real upstream, over http.client: the least CPU a byte-faithful relay can cost in Python.

    Keeps one connection alive between calls, as a Lambda environment serves one call at a time. Follows no redirect
    and reads no proxy settings. The key is asked for at every request, so a rotated one is used at once.
    """

    def __init__(self, base_url: str, api_key: Callable[[], str], clock: Clock) -> None:
        parts = urlsplit(base_url)
        self._tls = parts.scheme == "https"
        self._address = (parts.hostname or "", parts.port)
        self._prefix = parts.path.rstrip("/")
        self._api_key = api_key
        self._clock = clock
        self._context: SSLContext | None = None
        self._idle: HTTPConnection | None = None
        self._idle_since_seconds = 0.0

    def send(
        self, request: UpstreamRequest, timeout_seconds: float, when_sent: Callable[[], None] | None = None
    ) -> ClaudeAnswer:
        """Wait at most `timeout_seconds` for the head. Raises UpstreamNotReachedError or UpstreamLostError."""
        headers = dict(request.headers) | {"accept-encoding": "identity"} | self._credential(request.headers)
        connection = self._take_idle()
        if connection is None or not self._transmit(connection, request, headers, timeout_seconds):
            connection = self._connect()
            if not self._transmit(connection, request, headers, timeout_seconds):
                raise UpstreamNotReachedError("the connection broke before the request was out")
        if when_sent is not None:
            when_sent()
        return self._answer(connection)

    def give_back(self, connection: HTTPConnection) -> None:
        """Keep a connection whose answer was read to its end."""
        if self._idle is not None:
            self._idle.close()
        self._idle, self._idle_since_seconds = connection, self._clock.now_seconds()

    def close(self) -> None:
        """Drop the idle connection, as a container that ends or is frozen for long may do."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def _credential(self, headers: Mapping[str, str]) -> dict[str, str]:
        key = self._api_key()
        if headers.get("anthropic-version", "") >= _BEARER_SINCE:
            return {"authorization": f"Bearer {key}"}
        return {"x-api-key": key}

    def _take_idle(self) -> HTTPConnection | None:
        """The connection kept, unless it is old or its peer has hung up (only then there is something to read)."""
        connection, self._idle = self._idle, None
        if connection is None:
            return None
        age_seconds = self._clock.now_seconds() - self._idle_since_seconds
        if not 0 <= age_seconds < REUSE_SECONDS or _readable(connection.sock):
            connection.close()
            return None
        return connection

    def _connect(self) -> HTTPConnection:
        host, port = self._address
        connection: HTTPConnection
        if self._tls:
            connection = HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._tls_context())
        else:
            connection = HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        connection.response_class = _FinalResponse
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # refused, unreachable, no such host or none at all, timed out, TLS
            connection.close()
            raise UpstreamNotReachedError(type(error).__name__) from error
        return connection

    def _tls_context(self) -> SSLContext:
        if self._context is None:
            import ssl  # noqa: PLC0415  20 ms of CPU that local runs over plain HTTP never need

            self._context = ssl.create_default_context()
        return self._context

    def _transmit(
        self, connection: HTTPConnection, request: UpstreamRequest, headers: Mapping[str, str], timeout_seconds: float
    ) -> bool:
        """Write the request; False when it did not get out whole, so that upstream cannot have acted on it.

        A request is acted on when its last body byte has arrived, and the bytes of a failed write never leave.
        """
        connection.sock.settimeout(min(max(timeout_seconds, 0.001), IDLE_SECONDS))
        try:
            connection.putrequest(request.method, self._prefix + request.target, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if request.body or request.method == "POST":
                connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body or None)
        except (OSError, HTTPException, ValueError):
            connection.close()
            return False
        connection.sock.settimeout(max(timeout_seconds, 0.001))
        return True

    def _answer(self, connection: HTTPConnection) -> ClaudeAnswer:
        sock = connection.sock
        try:
            response = connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            connection.close()
            raise UpstreamLostError(type(error).__name__) from error
        return ClaudeAnswer(self, connection, sock, response)


class _FinalResponse(HTTPResponse):
    """The answer behind any provisional ones; http.client itself reads past 100 only."""

    def begin(self) -> None:
        super().begin()
        provisional = 0
        while self.status < HTTPStatus.OK:
            provisional += 1
            if provisional > MAX_PROVISIONAL:
                raise HTTPException("no final answer")
            self.headers = self.msg = None  # type: ignore[assignment]  # as they are before a head was read
            super().begin()


class ClaudeAnswer:
    """An answer being read; bytes are handed on as the socket gives them."""

    def __init__(self, api: ClaudeApi, connection: HTTPConnection, sock: socket.socket, response: HTTPResponse) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}
        self._api = api
        self._connection = connection
        self._sock = sock
        self._response = response
        self._ended = False
        self._closed = False

    def read(self, timeout_seconds: float) -> bytes:
        """The next bytes; b"" at the regular end. Raises UpstreamLostError when cut, broken or silent too long."""
        if self._ended:
            return b""
        try:
            self._sock.settimeout(min(max(timeout_seconds, 0.001), IDLE_SECONDS))
            data = self._response.read1(CHUNK_BYTES)
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            raise UpstreamLostError(type(error).__name__) from error
        if not data and self._response.length:  # read1 takes an early end of a counted body for its end
            self.close()
            raise UpstreamLostError("the body ended early")
        self._ended = not data
        return data

    def close(self) -> None:
        """Keep the connection when the answer was read to its end, else drop it."""
        if self._closed:
            return
        self._closed = True
        self._response.close()
        if self._ended and self._connection.sock is not None:
            self._api.give_back(self._connection)
        else:
            self._connection.close()


def refusal_of(status: int, body: bytes) -> TollgateError | None:
    """What an upstream error means to our caller; None: it is about the caller's own request, relay it as it is."""
    if status in (401, 402, 403) or 300 <= status < 400 or (status in (400, 429) and _is_about_our_money(body)):
        return UpstreamUnavailableError("Claude is not available through this gateway now. Its operator is informed.")
    if status in (429, 529):
        return UpstreamBusyError("Claude is busy. Try again in a moment.")
    if status >= 500:
        return upstream_fault()
    return None


def upstream_fault() -> TollgateError:
    """Upstream failed, or refused in a way nobody can read."""
    return UpstreamUnavailableError(
        "Claude had a fault of its own. Nothing was charged; try again.", error_code="upstream_error"
    )


def _is_about_our_money(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        message = str(error["message"]).lower()
        code = str((error.get("details") or {}).get("error_code"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return any(words in message for words in _OUR_MONEY) or code.endswith(_SPEND_LIMIT_REACHED)


def _readable(sock: socket.socket | None) -> bool:
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
