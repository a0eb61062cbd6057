"""One port in front of everything: the HTTP API's routes and the function URL, as raw ASGI.

A path of the HTTP API goes to its function (payload 2.0, JWT authorizer, buffered answer); every other path goes to the
function behind the function URL (streamed as its chunks come). A client that leaves does not stop a function: as on
Lambda it runs to its end. `/_dev/…`, `/docs` and `/openapi.json` belong to the stack itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import uvicorn

from dev import cors
from dev.authorizer import ForbiddenError, TokenChecker, UnauthorizedError
from dev.events import (
    EVENT_BYTES_AT_MOST,
    Request,
    encode,
    function_url_event,
    http_api_event,
    knows_path,
    match_route,
)
from dev.lambda_host import FunctionHost, Journey
from dev.pages import CONTENT_SECURITY_POLICY, Page
from dev.request_log import Outcome, RequestLog, parse_line
from dev.runtime_api import Buffered, Chunk, Failed, Part, Prelude
from dev.template import Function, LocalTemplate, Route

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[str, str]]
Control = Callable[[str, str], Awaitable[dict[str, Any] | Page | None]]

API_SECONDS_AT_MOST: Final = 30.0
"""An HTTP API gives up on its integration after this time."""
BODY_BYTES_READ: Final = 64 * 1024 * 1024
"""Larger uploads are cut off; below, they are read to the end so that the client gets to see the refusal."""
OUTCOME_SECONDS: Final = 0.3
"""How long a request's line waits for the function's own: that was written first, but comes another way."""
DRAIN_SECONDS: Final = 3
"""How long running requests may finish after the server was asked to stop."""

_HOP_BY_HOP: Final = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_BODILESS: Final = {204, 304}
_LOOPBACK: Final = {"127.0.0.1", "localhost"}
_DOCUMENTS: Final = {"/docs", "/openapi.json"}


class BrokenOffError(Exception):
    """The answer cannot be finished: the connection must end without its last chunk."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


class Gateway:
    """The ASGI application."""

    def __init__(
        self,
        template: LocalTemplate,
        hosts: Mapping[str, FunctionHost],
        tokens: TokenChecker,
        log: RequestLog,
        control: Control,
    ) -> None:
        """`hosts`: by logical id. `control`: answers POST and GET below /_dev/, None where nothing is."""
        self._template = template
        self._hosts = hosts
        self._tokens = tokens
        self._log = log
        self._control = control
        self._url_function = template.url_function
        self._unwritten: set[asyncio.Task[None]] = set()
        self.open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"this gateway speaks HTTP, and no {scope['type']}")
        request, too_large = await _read(scope, receive)
        exchange = _Exchange(request, receive, send)
        self.open_requests += 1
        try:
            if request.path.startswith("/_dev/") or request.path in _DOCUMENTS:
                await exchange.answer(await self._answer_control(request))
                return
            await self._serve(exchange, too_large=too_large)
        finally:
            self.open_requests -= 1
        written = asyncio.create_task(self._write_line(exchange))
        self._unwritten.add(written)  # the loop itself keeps no task alive
        written.add_done_callback(self._unwritten.discard)
        if exchange.broken_off:
            raise BrokenOffError

    async def _serve(self, exchange: _Exchange, *, too_large: bool) -> None:
        request = exchange.request
        if knows_path(self._template.routes, request.path):
            await self._serve_api(exchange, too_large=too_large)
        elif self._url_function is not None:
            await self._serve_url(exchange, self._url_function, too_large=too_large)
        else:
            await exchange.answer(_json_answer(404, {"message": "Not Found"}))

    async def _serve_api(self, exchange: _Exchange, *, too_large: bool) -> None:
        request = exchange.request
        rules = self._template.api_cors
        if rules is not None and cors.is_preflight(request):
            await exchange.answer(Answer(204, cors.preflight_headers(rules, request), b""))
            return
        exchange.extra = [] if rules is None else cors.response_headers(rules, request)
        exchange.extra.append(("apigw-requestid", exchange.request_id))
        found = match_route(self._template.routes, request.method, request.path)
        if found is None:
            await exchange.answer(_json_answer(404, {"message": "Not Found"}))
            return
        route, parameters = found
        try:
            claims = await asyncio.to_thread(self._authorize, route, request)
        except UnauthorizedError as refused:
            exchange.outcome.note = f"authorizer: {refused}"
            await exchange.answer(_unauthorized(refused))
            return
        except ForbiddenError:
            await exchange.answer(_json_answer(403, {"message": "Forbidden"}))
            return
        event = encode(http_api_event(request, route, parameters, claims, exchange.request_id))
        if too_large or len(event) > EVENT_BYTES_AT_MOST:
            await exchange.answer(_json_answer(413, {"message": "Request Entity Too Large"}))
            return
        await self._run_buffered(exchange, self._hosts[route.function], event)

    def _authorize(self, route: Route, request: Request) -> dict[str, Any] | None:
        if route.authorizer is None:
            return None
        return self._tokens.claims(route.authorizer, request.header("authorization"))

    async def _run_buffered(self, exchange: _Exchange, host: FunctionHost, event: bytes) -> None:
        payload: bytes | None = None
        async for part in _parts(host, event, exchange.journey, API_SECONDS_AT_MOST):
            if isinstance(part, Buffered):
                payload = part.payload
            elif isinstance(part, Failed):
                exchange.outcome.note = f"{part.error_type}: {part.message}"
                late = part.kind == "timeout"
                message = "Service Unavailable" if late else "Internal Server Error"
                await exchange.answer(_json_answer(503 if late else 500, {"message": message}))
                return
        answer = None if payload is None else proxy_answer(payload)
        await exchange.answer(answer or _json_answer(500, {"message": "Internal Server Error"}))

    async def _serve_url(self, exchange: _Exchange, function: Function, *, too_large: bool) -> None:
        request = exchange.request
        assert function.url is not None
        rules = function.url.cors
        if rules is not None and cors.is_preflight(request):
            await exchange.answer(Answer(200, cors.preflight_headers(rules, request), b""))
            return
        exchange.extra = [] if rules is None else cors.response_headers(rules, request)
        exchange.extra.append(("x-amzn-requestid", exchange.request_id))
        event = encode(function_url_event(request, function, exchange.request_id))
        if too_large or len(event) > EVENT_BYTES_AT_MOST:
            await exchange.answer(_too_large())
            return
        async for part in _parts(self._hosts[function.logical_id], event, exchange.journey, None):
            await exchange.take(part)
        await exchange.end()

    async def _answer_control(self, request: Request) -> Answer:
        # A web page may send simple requests to loopback; a custom header needs a preflight, which nothing here grants.
        # Under a name that was rebound to loopback it needs none, but then it comes with that name.
        if request.method != "GET" and request.header("x-tollgate-dev") is None:
            return _json_answer(403, {"message": "send the header x-tollgate-dev: 1"})
        if (request.header("host") or "").rsplit(":", 1)[0] not in _LOOPBACK:
            return _json_answer(403, {"message": "ask by 127.0.0.1 or localhost"})
        found = await self._control(request.method, request.path.removeprefix("/_dev").removeprefix("/"))
        if isinstance(found, Page):
            headers = [("content-type", found.content_type), ("content-security-policy", CONTENT_SECURITY_POLICY)]
            return Answer(200, [*headers, ("cache-control", "no-store")], found.body)
        return _json_answer(404, {"message": "Not Found"}) if found is None else _json_answer(200, found)

    async def _write_line(self, exchange: _Exchange) -> None:
        """Writes the request's line, once the function's own line about it has come or is overdue."""
        outcome, journey = exchange.outcome, exchange.journey
        if journey.pid:
            limit = time.monotonic() + OUTCOME_SECONDS
            while not (events := _events(journey)) and time.monotonic() < limit:
                await asyncio.sleep(0.01)
            outcome.events = events
        self._log.write(outcome)


class _Exchange:
    """One request and the answer that goes out for it."""

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        self.request = request
        self.request_id = str(uuid4())
        self.journey = Journey(self.request_id)
        self.outcome = Outcome(request.method, request.raw_path, request.received_at)
        self.extra: Headers = []
        """Headers that the service adds to whatever the function answers."""
        self.broken_off = False
        self._send = send
        self._begun_at = time.monotonic()
        self._started = False
        self._body_bytes = 0
        self._gone = asyncio.ensure_future(_disconnected(receive))

    async def answer(self, answer: Answer) -> None:
        """Sends a whole answer, the service's own headers added."""
        headers = [*answer.headers, *self.extra, ("content-length", str(len(answer.body)))]
        await self._start(answer.status, headers)
        self._first_byte()
        await self._send({"type": "http.response.body", "body": answer.body})
        self._done()

    async def take(self, part: Part) -> None:
        """Passes one part of a function's answer on; the client may have gone, the function goes on."""
        match part:
            case Prelude(status_code=status, headers=headers, cookies=cookies):
                self.outcome.streamed = headers.get("content-type", "").startswith("text/event-stream")
                kept = [(name.lower(), value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP]
                kept = [(name, value) for name, value in kept if name != "content-length"]
                kept += [("set-cookie", cookie) for cookie in cookies]
                # What the URL's own CORS rules say replaces what the function says.
                ours = {name for name, _ in self.extra}
                await self._start(status, [(n, v) for n, v in kept if n not in ours] + self.extra)
            case Chunk(data=data):
                await self._write(data)
            case Buffered(payload=payload):
                # A function URL that streams passes a buffered answer on as it is, without reading it.
                await self._start(200, [("content-type", "application/json"), *self.extra])
                await self._write(payload)
            case Failed(kind="trailers"):
                # Trailers are no part of what a function URL's client sees: for it the answer ends here.
                self.outcome.note = f"{part.error_type}: {part.message}"
            case Failed():
                self.outcome.note = f"{part.error_type}: {part.message}"
                if self._started:
                    self.broken_off = True
                else:
                    await self.answer(
                        Answer(502, [("content-type", "text/plain"), *self.extra], b"Internal Server Error")
                    )

    async def end(self) -> None:
        """The regular end of a streamed answer."""
        if self.broken_off or not self._started:
            self._done()
            return
        if not self._body_bytes:
            self.outcome.note = "no body byte: on AWS this answer would hang until the function's timeout"
        with contextlib.suppress(OSError):
            await self._send({"type": "http.response.body", "body": b""})
        self._done()

    async def _start(self, status: int, headers: Headers) -> None:
        self._started = True
        self.outcome.status = status
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _write(self, data: bytes) -> None:
        self._first_byte()
        self._body_bytes += len(data)
        if self._gone.done() or self.outcome.status in _BODILESS:
            return
        with contextlib.suppress(OSError):
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _first_byte(self) -> None:
        if self.outcome.first_byte_ms is None:
            self.outcome.first_byte_ms = self._elapsed_ms()

    def _done(self) -> None:
        self.outcome.client_left = self._gone.done() and not self.broken_off
        self._gone.cancel()
        self.outcome.duration_ms = self._elapsed_ms()

    def _elapsed_ms(self) -> int:
        return round((time.monotonic() - self._begun_at) * 1000)


async def _read(scope: Scope, receive: Receive) -> tuple[Request, bool]:
    """The whole request, and whether it is larger than anything that may be passed on (its body is then dropped)."""
    body = bytearray()
    read = 0
    while True:
        message = await receive()
        data = message.get("body", b"")
        read += len(data)
        if read <= EVENT_BYTES_AT_MOST:
            body += data
        if not message.get("more_body") or read > BODY_BYTES_READ:
            break
    request = Request(
        method=scope["method"],
        raw_path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
        body=bytes(body),
        source_ip=scope["client"][0] if scope.get("client") else "127.0.0.1",
        received_at=datetime.now(UTC),
    )
    return request, read > EVENT_BYTES_AT_MOST


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _parts(host: FunctionHost, event: bytes, journey: Journey, seconds: float | None) -> AsyncIterator[Part]:
    """The parts of an invocation that runs in a thread of its own, to its end, whoever listens."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Part | None] = asyncio.Queue()

    def put(part: Part | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended; the invocation goes on
            loop.call_soon_threadsafe(queue.put_nowait, part)

    def run() -> None:
        try:
            for part in _guarded(host.invoke(event, journey, seconds)):
                put(part)
        finally:
            put(None)

    threading.Thread(target=run, name=f"invoke-{journey.request_id[:8]}", daemon=True).start()
    while (part := await queue.get()) is not None:
        yield part


def _guarded(parts: Iterator[Part]) -> Iterator[Part]:
    try:
        yield from parts
    except Exception as error:  # noqa: BLE001  whatever breaks in the host must end the request, not hang it
        yield Failed("Sandbox.Failure", f"{type(error).__name__}: {error}", "error")


def _events(journey: Journey) -> list[dict[str, Any]]:
    return [event for line in list(journey.lines) if (event := parse_line(line)) is not None]


def _json_answer(status: int, body: dict[str, Any], headers: Headers | None = None) -> Answer:
    data = json.dumps(body, separators=(",", ":")).encode()
    return Answer(status, [("content-type", "application/json"), *(headers or [])], data)


def _unauthorized(refused: UnauthorizedError) -> Answer:
    challenge = "Bearer"
    if refused.description is not None:
        challenge = f'Bearer scope="" error="invalid_token" error_description="{refused.description}"'
    return _json_answer(401, {"message": "Unauthorized"}, [("www-authenticate", challenge)])


def _too_large() -> Answer:
    """What Lambda says (`Message`), inside Claude's envelope so that clients show it as what it is."""
    message = f"Request must be smaller than {EVENT_BYTES_AT_MOST} bytes for the InvokeFunction operation"
    request_id = f"req_{secrets.token_hex(12)}"
    error = {"type": "request_too_large", "message": message}
    body = {"Message": message, "type": "error", "error": error, "request_id": request_id}
    return _json_answer(413, body, [("request-id", request_id), ("x-should-retry", "false")])


def proxy_answer(payload: bytes) -> Answer | None:
    """What format 2.0 makes of a handler's return value; None when it makes nothing of it."""
    value = json.loads(payload)
    if not (isinstance(value, dict) and "statusCode" in value):
        return Answer(200, [("content-type", "application/json")], payload)
    body = str(value.get("body") or "")
    try:
        data = base64.b64decode(body, validate=True) if value.get("isBase64Encoded") else body.encode()
    except ValueError:
        return None
    headers = {str(name).lower(): str(text) for name, text in (value.get("headers") or {}).items()}
    kept = [(name, text) for name, text in headers.items() if name not in _HOP_BY_HOP | {"content-length"}]
    kept += [("set-cookie", str(cookie)) for cookie in value.get("cookies") or ()]
    return Answer(int(value["statusCode"]), kept, data)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: whoever runs it has their own."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


def server_for(gateway: Gateway) -> uvicorn.Server:
    """A server of this application; `serve(sockets=[…])` runs until `should_exit` is set."""
    # It would report every answer that is broken off on purpose as a crash.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    config = uvicorn.Config(
        gateway,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return _Server(config)
