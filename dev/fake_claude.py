"""A faithful double of Anthropic's API on a loopback port: `POST /v1/messages` (JSON and SSE), count_tokens, models.

It speaks the wire format byte for byte (order, pings, padding, cumulative counts, headers, error envelope, gzip when
asked for) and misbehaves only when told to: by the `anthropic-fake` request header, by `[[fake key=value …]]` in the
last user text, or for all requests by `PUT /_fake/script`. Keys and triggers: dev/README.md.

Tests start it inside their own process (`with FakeClaude() as claude: claude.url`), the local stack as a process of its
own (`python -m dev.fake_claude`). Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from dev.claude_answers import (
    ERROR_TYPES,
    MODELS,
    Answer,
    InputCounts,
    Json,
    PromptCache,
    RefusedError,
    Script,
    answer,
    error_event,
    events,
    model_info,
    prompt_parts,
    resolve_model,
    script_of,
    validate,
)

BODY_BYTES_AT_MOST = 32 * 1024 * 1024
"""Anthropic's own request limit."""
HEADER_BYTES_AT_MOST = 64 * 1024
EXCHANGES_KEPT = 512
USAGE_LIMIT_MESSAGE = (
    "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
)

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}


@dataclass(slots=True)
class Exchange:
    """One request as it came and what was really sent back."""

    request_id: str
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    sent: bytearray = field(default_factory=bytearray)
    """The body before gzip and before it was cut into chunks."""
    usage: Json | None = None
    """What this request would be billed for; None when it never reached the model."""
    finished: bool = False
    client_gone: bool = False

    def summary(self) -> Json:
        """The exchange without its bodies, for the control endpoint."""
        return {
            "request_id": self.request_id,
            "method": self.method,
            "target": self.target,
            "headers": self.headers,
            "status": self.status,
            "sent_bytes": len(self.sent),
            "usage": self.usage,
            "finished": self.finished,
            "client_gone": self.client_gone,
        }


class _HangUpError(Exception):
    """Close the connection now: the answer is over, or was cut on purpose."""


class FakeClaude:
    """The server. `url` is valid once `start` returned; every method may be called from any thread."""

    def __init__(
        self,
        *,
        port: int = 0,
        api_keys: frozenset[str] = frozenset(),
        script: Script | None = None,
        seed: int | None = None,
        now_seconds: Callable[[], float] = time.time,
    ) -> None:
        """No `api_keys`: any key of Anthropic's form (`sk-ant-…`) is accepted. `seed` makes ids repeatable."""
        self.script = script or Script()
        self.exchanges: deque[Exchange] = deque(maxlen=EXCHANGES_KEPT)
        self.open_messages = 0
        self.most_open_messages = 0
        self._port = port
        self._api_keys = api_keys
        self._random = random.Random(seed)
        self._now_seconds = now_seconds
        self._cache = PromptCache()
        self._done_once: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-claude", daemon=True)
        self._ready = threading.Event()
        self._start_error: OSError | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when connections are accepted; OSError when the port is taken."""
        self._thread.start()
        self._ready.wait()
        if self._start_error is not None:
            raise self._start_error

    def stop(self) -> None:
        """Drops open connections and returns when nothing is left running."""
        if self._thread.is_alive():
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        try:
            server = await asyncio.start_server(
                self._on_connection, "127.0.0.1", self._port, limit=HEADER_BYTES_AT_MOST
            )
        except OSError as error:
            self._start_error = error
            return
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        # An empty buffer after each drain: what `sent` holds has left this process before anything is cut.
        writer.transport.set_write_buffer_limits(high=0)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while await self._one_request(reader, writer):
                pass
        except (_HangUpError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; False when the connection has ended."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return False
        request_line, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = request_line.split(" ", 2)
        headers = {}
        for line in filter(None, lines):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange = Exchange(self._id("req_011", 20), method, target, headers, b"")
        wire = _Wire(reader, writer, exchange)
        path = urlsplit(target).path
        try:
            exchange.body = await _read_body(reader, headers)
            if path.startswith("/_fake"):
                await self._control(wire, method, path)
            else:
                self.exchanges.append(exchange)
                await self._api(wire, method, path)
        except RefusedError as refusal:
            await wire.refuse(refusal)
        except ConnectionError:
            exchange.client_gone = True
            raise
        return headers.get("connection", "").lower() != "close" and exchange.status != 413

    async def _api(self, wire: _Wire, method: str, path: str) -> None:
        self._authenticate(wire.exchange.headers)
        match method, path.rstrip("/").split("/")[1:]:
            case "POST", ["v1", "messages"]:
                self.open_messages += 1
                self.most_open_messages = max(self.most_open_messages, self.open_messages)
                try:
                    await self._message(wire)
                finally:
                    self.open_messages -= 1
            case "POST", ["v1", "messages", "count_tokens"]:
                body = validate(_parsed(wire.exchange.body), counting=True, api_version=wire.api_version)
                self._misbehave(wire, script_of(body, self.script, wire.fake_header))
                await wire.send_json(200, {"input_tokens": sum(tokens for tokens, _, _ in prompt_parts(body))})
            case "GET" | "HEAD", ["v1", "models"]:
                await wire.send_json(200, _models_page(wire.exchange.target))
            case "GET" | "HEAD", ["v1", "models", name]:
                await wire.send_json(200, model_info(resolve_model(name)))
            case "GET" | "HEAD", ["api", "hello"] | [""]:
                await wire.send_json(200, {"message": "hello"})
            case _, ["v1", "messages"] | ["v1", "messages", "count_tokens"] | ["v1", "models"]:
                raise RefusedError(405, "invalid_request_error", "Method Not Allowed")
            case _:
                raise RefusedError(404, "not_found_error", "Not found")

    def _authenticate(self, headers: dict[str, str]) -> None:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        key = headers.get("x-api-key") or bearer
        if not key:
            raise RefusedError(401, "authentication_error", "x-api-key header is required")
        if key not in self._api_keys and (self._api_keys or not key.startswith("sk-ant-")):
            raise RefusedError(401, "authentication_error", "invalid x-api-key")
        if "anthropic-version" not in headers:
            raise RefusedError(400, "invalid_request_error", "anthropic-version: header is required")

    async def _message(self, wire: _Wire) -> None:
        body = validate(_parsed(wire.exchange.body), counting=False, api_version=wire.api_version)
        script = script_of(body, self.script, wire.fake_header)
        self._misbehave(wire, script)
        counts = self._count(body, script)
        said = answer(body, script, counts, self._id("msg_01", 22), self._id("toolu_01", 22))
        wire.exchange.usage = said.message()["usage"]
        if script.ttft_ms:
            await asyncio.sleep(script.ttft_ms / 1000)
        if body.get("stream") is True:
            await self._stream(wire, said, script)
        else:
            await self._whole(wire, said, script)

    def _misbehave(self, wire: _Wire, script: Script) -> None:
        if script.once:
            if script.once in self._done_once:
                return
            self._done_once.add(script.once)
        if script.reset:
            wire.reset()
            raise _HangUpError
        if script.error:
            message = script.error_message or f"fake: answered {script.error} as told"
            if script.error_message == "usage_limits":
                message = USAGE_LIMIT_MESSAGE
            error_type = ERROR_TYPES.get(script.error, "api_error")
            raise RefusedError(script.error, error_type, message, script.retry_after or None)

    def _count(self, body: Json, script: Script) -> InputCounts:
        counts = self._cache.count(str(body["model"]), prompt_parts(body), self._now_seconds())
        context = model_info(body["model"])["max_input_tokens"]
        if counts.total > context:
            raise RefusedError(
                400, "invalid_request_error", f"prompt is too long: {counts.total} tokens > {context} maximum"
            )
        return InputCounts(
            counts.input_tokens + script.hidden_input,
            counts.cache_write_5m + script.cache_write,
            counts.cache_write_1h + script.cache_write_1h,
            counts.cache_read + script.cache_read,
        )

    async def _stream(self, wire: _Wire, said: Answer, script: Script) -> None:
        await wire.open_stream(script.chunk_bytes)
        deltas = 0
        for _, data, is_delta in events(said, script):
            if is_delta:
                await _cut_after(deltas, wire, script)
                deltas += 1
                if script.pace_ms:
                    await asyncio.sleep(script.pace_ms / 1000)
            await wire.send_part(data)
        await wire.close_stream()

    async def _whole(self, wire: _Wire, said: Answer, script: Script) -> None:
        if script.pace_ms:
            await asyncio.sleep(script.pace_ms * sum(len(block.deltas) for block in said.blocks) / 1000)
        if script.error_after >= 0:
            raise RefusedError(529, script.error_type, "Overloaded")
        if script.stall_after >= 0:
            await wire.stall(script.stall_ms)
        if script.truncate_after >= 0 or script.disconnect_after >= 0:
            await wire.send_half(said.message())
            raise _HangUpError
        await wire.send_json(200, said.message())

    async def _control(self, wire: _Wire, method: str, path: str) -> None:
        """The endpoint of tests: no key, never recorded. dev/README.md lists the paths."""
        found = {exchange.request_id: exchange for exchange in self.exchanges}
        match method, path.strip("/").split("/")[1:]:
            case "PUT", ["script"]:
                self.script = Script().with_directives(wire.exchange.body.decode())
                await wire.send_json(200, {"script": wire.exchange.body.decode()})
            case "GET", ["exchanges"]:
                await wire.send_json(200, {"data": [exchange.summary() for exchange in self.exchanges]})
            case "DELETE", ["exchanges"]:
                self.exchanges.clear()
                self.most_open_messages = self.open_messages
                await wire.send_json(200, {})
            case "GET", ["exchanges", request_id, "sent" | "received" as part] if request_id in found:
                exchange = found[request_id]
                data = bytes(exchange.sent) if part == "sent" else exchange.body
                await wire.send(200, "application/octet-stream", data)
            case "GET", ["stats"]:
                await wire.send_json(200, self._stats())
            case _:
                raise RefusedError(
                    404, "not_found_error", "fake: script, exchanges, exchanges/{id}/sent, …/received, stats"
                )

    def _stats(self) -> Json:
        usages = [exchange.usage for exchange in self.exchanges if exchange.usage is not None]
        return {
            "requests": len(self.exchanges),
            "open_messages": self.open_messages,
            "most_open_messages": self.most_open_messages,
            "output_tokens": sum(usage["output_tokens"] for usage in usages),
        }

    def _id(self, prefix: str, length: int) -> str:
        return prefix + "".join(self._random.choices(_ALPHABET, k=length))


class _Wire:
    """One answer on one connection: status line, headers, chunks, and the ways to end badly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange) -> None:
        self.exchange = exchange
        self._reader = reader
        self._writer = writer
        self._gzip: zlib._Compress | None = None
        self._chunk_bytes = 0
        self._pending = bytearray()

    @property
    def api_version(self) -> str:
        return self.exchange.headers.get("anthropic-version", "")

    @property
    def fake_header(self) -> str:
        return self.exchange.headers.get("anthropic-fake", "")

    @property
    def _accepts_gzip(self) -> bool:
        return "gzip" in self.exchange.headers.get("accept-encoding", "")

    async def send_json(self, status: int, body: Json, extra: dict[str, str] | None = None) -> None:
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        await self.send(status, "application/json", data, extra)

    async def send(self, status: int, content_type: str, data: bytes, extra: dict[str, str] | None = None) -> None:
        """A whole answer with its length."""
        self.exchange.status = status
        self.exchange.sent += data
        headers = self._headers(content_type) | (extra or {})
        if self._accepts_gzip:
            data = gzip.compress(data, mtime=0)
            headers["content-encoding"] = "gzip"
        headers["content-length"] = str(len(data))
        self._writer.write(self._head(status, headers) + (b"" if self.exchange.method == "HEAD" else data))
        await self._writer.drain()
        self.exchange.finished = True

    async def refuse(self, refusal: RefusedError) -> None:
        error = {"details": None, "type": refusal.error_type, "message": refusal.message}
        body = {"type": "error", "error": error, "request_id": self.exchange.request_id}
        extra = {"x-should-retry": "true" if refusal.status in (429, 500, 503, 529) else "false"}
        if refusal.retry_after_seconds is not None:
            extra["retry-after"] = str(refusal.retry_after_seconds)
        await self.send_json(refusal.status, body, extra)

    async def send_half(self, body: Json) -> None:
        """Promises the whole body, sends half of it."""
        self.exchange.status = 200
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        self.exchange.sent += data[: len(data) // 2]
        headers = self._headers("application/json") | {"content-length": str(len(data))}
        self._writer.write(self._head(200, headers) + data[: len(data) // 2])
        await self._writer.drain()

    async def open_stream(self, chunk_bytes: int) -> None:
        """Sends the head of an event stream. `chunk_bytes`: 0 sends each event as one chunk."""
        self.exchange.status = 200
        self._chunk_bytes = chunk_bytes
        headers = self._headers("text/event-stream; charset=utf-8")
        headers |= {"cache-control": "no-cache", "transfer-encoding": "chunked"}
        if self._accepts_gzip:
            self._gzip = zlib.compressobj(wbits=31)
            headers["content-encoding"] = "gzip"
        self._writer.write(self._head(200, headers))
        await self._writer.drain()

    async def send_part(self, data: bytes) -> None:
        self.exchange.sent += data
        if self._gzip is not None:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        if not self._chunk_bytes:
            await self._chunk(data)
            return
        self._pending += data
        while len(self._pending) >= self._chunk_bytes:
            await self._chunk(bytes(self._pending[: self._chunk_bytes]))
            del self._pending[: self._chunk_bytes]

    async def flush(self) -> None:
        """Sends what `chunk_bytes` still holds back."""
        if self._pending:
            await self._chunk(bytes(self._pending))
            self._pending.clear()

    async def close_stream(self) -> None:
        """The regular end of a chunked body, whatever events it held."""
        if self._gzip is not None:
            self._pending += self._gzip.flush()
        await self.flush()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        self.exchange.finished = True

    async def stall(self, milliseconds: int) -> None:
        """Silence, until the time is over or the client has gone (then ConnectionError)."""
        gone = asyncio.ensure_future(self._reader.read(1))
        done, _ = await asyncio.wait({gone}, timeout=milliseconds / 1000)
        if done:
            raise ConnectionResetError
        gone.cancel()
        await asyncio.wait({gone})

    def reset(self) -> None:
        """Ends the connection with a TCP reset instead of a clean close."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._writer.drain()

    def _headers(self, content_type: str) -> dict[str, str]:
        return {
            "date": formatdate(usegmt=True),
            "content-type": content_type,
            "request-id": self.exchange.request_id,
            "anthropic-organization-id": "00000000-0000-4000-8000-00000fa4e000",
            "anthropic-ratelimit-requests-limit": "4000",
            "anthropic-ratelimit-requests-remaining": "3999",
            "anthropic-ratelimit-requests-reset": "2026-11-20T12:00:00Z",
            "anthropic-ratelimit-tokens-limit": "4000000",
            "anthropic-ratelimit-tokens-remaining": "3999000",
            "anthropic-ratelimit-tokens-reset": "2026-11-20T12:00:00Z",
            "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
            "via": "1.1 google",
            "server": "cloudflare",
            "x-robots-tag": "none",
        }

    def _head(self, status: int, headers: dict[str, str]) -> bytes:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _cut_after(deltas: int, wire: _Wire, script: Script) -> None:
    """Does what the script wants to happen after this many deltas; raises when the answer ends here."""
    if deltas == script.stall_after:
        await wire.flush()
        await wire.stall(script.stall_ms)
    if deltas == script.error_after:
        await wire.send_part(error_event(script.error_type, "Overloaded"))
        await wire.close_stream()
        raise _HangUpError
    if deltas == script.truncate_after:
        await wire.close_stream()
        raise _HangUpError
    if deltas == script.disconnect_after:
        await wire.flush()
        raise _HangUpError


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _read_chunked(reader)
    length = int(headers.get("content-length", "0"))
    if length > BODY_BYTES_AT_MOST:
        raise RefusedError(413, "request_too_large", "Request exceeds the maximum size")
    return await reader.readexactly(length)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readline()).split(b";")[0], 16):
        if len(body) + size > BODY_BYTES_AT_MOST:
            raise RefusedError(413, "request_too_large", "Request exceeds the maximum size")
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return bytes(body)


def _parsed(body: bytes) -> object:
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "invalid_request_error", f"The request body is not valid JSON: {error}") from None
    return parsed


def _models_page(target: str) -> Json:
    query = {key: values[-1] for key, values in parse_qs(urlsplit(target).query).items()}
    names = list(MODELS)
    if query.get("after_id") in MODELS:
        names = names[names.index(query["after_id"]) + 1 :]
    if query.get("before_id") in MODELS:
        names = names[: names.index(query["before_id"])]
    limit = int(query.get("limit", "20"))
    page = names[:limit]
    return {
        "data": [model_info(name) for name in page],
        "has_more": len(names) > limit,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def main() -> int:
    """Serves until Ctrl-C or, for the local stack, until stdin closes; prints its URL as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m dev.fake_claude", description="A double of Anthropic's API.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes any free port")
    parser.add_argument("--script", default="", help="default behaviour, such as 'ttft_ms=40 pace_ms=12'")
    parser.add_argument("--api-key", action="append", default=[], help="accept only this key; may be repeated")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end together with whoever holds the pipe")
    chosen = parser.parse_args()
    claude = FakeClaude(
        port=chosen.port, api_keys=frozenset(chosen.api_key), script=Script().with_directives(chosen.script)
    )
    with claude, contextlib.suppress(KeyboardInterrupt):
        print(json.dumps({"url": claude.url}), flush=True)
        if chosen.until_stdin_closes:
            sys.stdin.read()
        else:
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
