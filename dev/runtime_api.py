"""The Lambda Runtime API, served to one function process.

Written from AWS's documentation ("Using the Lambda runtime API for custom runtimes", and the section on streaming of
"Building a custom runtime") for two users: the local stack, and the tests of layers/stream_runtime. It reads HTTP/1.1
itself, because what matters here is what ready-made servers hide: when each chunk arrived, the trailers, and a body
that breaks off.

    api = RuntimeApi()
    process = subprocess.Popen([...], env={"AWS_LAMBDA_RUNTIME_API": api.address, "_HANDLER": "app.handler", ...})
    api.wait_ready(10)
    for part in api.invoke(b"{}", request_id="r-1", timeout_seconds=30, function_arn="arn:…").parts(10): ...
    process.kill(); process.wait(); api.process_exited("signal: killed"); api.close()

Starting, watching and killing the process is the caller's work. As on Lambda, a process whose invocation timed out
serves no further one: a new process gets a new RuntimeApi.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from io import BufferedReader
from typing import Any, Literal

PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
PRELUDE_END = b"\0" * 8
MAX_PRELUDE_BYTES = 16 * 1024  # documented by API Gateway: metadata and delimiter within the first 16 KB
MAX_TRAILER_BYTES = 4096  # measured on AWS's emulator: a longer block resets the connection, the invocation hangs
MAX_BUFFERED_BYTES = 6 * 1024 * 1024 + 100  # the bound of a buffered answer, as AWS's emulator has it

_API = "/2018-06-01/runtime/"
_MAX_HEAD_BYTES = 2 * 1024 * 1024  # the X-Ray cause is one header of up to 1 MiB
_ERROR_TYPE = "lambda-runtime-function-error-type"
_ERROR_BODY = "lambda-runtime-function-error-body"


@dataclass(frozen=True, slots=True)
class Prelude:
    """Status, headers and cookies of a streamed answer: always its first part."""

    status_code: int
    headers: dict[str, str]
    cookies: list[str]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Body bytes of a streamed answer, as one HTTP chunk carried them; `received_at` is `time.monotonic()`."""

    data: bytes
    received_at: float


@dataclass(frozen=True, slots=True)
class Buffered:
    """A whole answer posted at once: the JSON document that the handler returned."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The invocation failed; always the last part.

    `error`: before any part of an answer. `trailers`: reported after the answer had begun. `truncated`: the answer
    broke off. `timeout`: the deadline passed, kill the process. `init`: the function never started. `payload` is the
    error document as the runtime wrote it (JSON with the stack trace), empty when no runtime wrote one.
    """

    error_type: str
    message: str
    kind: Literal["error", "trailers", "truncated", "timeout", "init"]
    payload: bytes = b""


Part = Prelude | Chunk | Buffered | Failed


class RuntimeInitError(Exception):
    """The function did not start; `failed` says why (kind `init`)."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(f"{failed.error_type}: {failed.message}")
        self.failed = failed


class RuntimeUnusableError(Exception):
    """The process can take no invocation: it has one, timed out, ended, never started, or the API was closed."""


class Invocation:
    """One event on its way through the function process."""

    def __init__(self, event: bytes, request_id: str, timeout_seconds: float, arn: str, invocation_id: str) -> None:
        self.event = event
        self.request_id = request_id
        self.timeout_seconds = timeout_seconds
        self.function_arn = arn
        self.invocation_id = invocation_id
        self.answer_headers: dict[str, str] = {}
        """Headers of the request that carried the answer, names in lower case; empty until it came."""
        self.failed: Failed | None = None
        self._lock = threading.Lock()
        self._parts: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._taken = threading.Event()  # the process has the event, or never will
        self._over = threading.Event()
        self._timer: threading.Timer | None = None

    @property
    def is_taken(self) -> bool:
        """True when the process has the event, or never will."""
        return self._taken.is_set()

    @property
    def is_over(self) -> bool:
        """True when the last part is known, read or not."""
        return self._over.is_set()

    def parts(self, timeout_seconds: float) -> Iterator[Part]:
        """Yield the parts as they come, to the last.

        `timeout_seconds` bounds the wait until the process takes the event (its start included); from then on the
        invocation's own timeout counts, whether or not anybody reads. Either way the last part is then
        `Failed(kind="timeout")`.
        """
        if not self._taken.wait(timeout_seconds):
            self._finish(Failed("Sandbox.Timedout", f"not taken within {timeout_seconds:.2f} seconds", "timeout"))
        while (part := self._parts.get()) is not None:
            yield part

    def _deliver(self) -> int:
        """Start the clock; return the deadline in milliseconds since the epoch."""
        message = f"RequestId: {self.request_id} Error: Task timed out after {self.timeout_seconds:.2f} seconds"
        self._timer = threading.Timer(
            self.timeout_seconds, self._finish, [Failed("Sandbox.Timedout", message, "timeout")]
        )
        self._timer.daemon = True
        self._timer.start()
        self._taken.set()
        return int((time.time() + self.timeout_seconds) * 1000)

    def _put(self, part: Part) -> bool:
        with self._lock:
            if not self._over.is_set():
                self._parts.put(part)
            return not self._over.is_set()

    def _finish(self, failed: Failed | None = None) -> bool:
        """End it, once: what comes later is refused. False when it was over already."""
        with self._lock:
            if self._over.is_set():
                return False
            self.failed = failed
            if failed is not None:
                self._parts.put(failed)
            self._over.set()
            self._parts.put(None)
            self._taken.set()
        if self._timer is not None:
            self._timer.cancel()
        return True


class RuntimeApi:
    """Runtime API of one function process, on a free port of the loopback interface; threads, nothing else.

    With `invocation_ids`, /next carries Lambda-Runtime-Invocation-Id, and an answer that echoes another one is refused
    with 410 as Lambda does (an answer without the header is accepted: older runtimes don't know it).
    """

    def __init__(self, *, invocation_ids: bool = True) -> None:
        self._invocation_ids = invocation_ids
        self._changed = threading.Condition()
        self._current: Invocation | None = None
        self._past: set[str] = set()  # request ids that were here before
        self._count = 0
        self._waiting = False  # the process stands in /next
        self._ready = False
        self._init_failed: Failed | None = None
        self._snapshot: Literal["none", "asked", "restored"] = "none"
        self._exited: str | None = None
        self._closed = False
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        """What AWS_LAMBDA_RUNTIME_API must hold."""
        self._acceptor = threading.Thread(target=self._accept, name=f"runtime-api {self.address}", daemon=True)
        self._acceptor.start()

    # The host's side.

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return when the function has initialised (it asked for its first event).

        Raises RuntimeInitError when it reported an error or ended, TimeoutError when neither came in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._init_failed or self._closed, timeout_seconds)
            if self._init_failed is not None:
                raise RuntimeInitError(self._init_failed)
            if not self._ready:
                raise TimeoutError(f"the function did not ask for an event within {timeout_seconds} seconds")

    def invoke(self, event: bytes, *, request_id: str, timeout_seconds: float, function_arn: str) -> Invocation:
        """Hand the event to the process, at once or when it has started.

        `timeout_seconds` runs from the moment the process takes it. Raises RuntimeUnusableError when the process
        cannot take one; after an init error the invocation fails with that error.
        """
        with self._changed:
            if reason := self._unusable():
                raise RuntimeUnusableError(reason)
            self._count += 1
            invocation_id = hashlib.sha256(f"{self.address} {request_id} {self._count}".encode()).hexdigest()[:32]
            invocation = Invocation(event, request_id, timeout_seconds, function_arn, invocation_id)
            if self._current is not None:
                self._past.add(self._current.request_id)
            self._current = invocation
            if self._init_failed is not None:
                invocation._finish(self._init_failed)
            self._changed.notify_all()
        return invocation

    @property
    def is_idle(self) -> bool:
        """True when the process waits for an event and none is on its way to it."""
        with self._changed:
            return self._waiting and self._unusable() is None

    def process_exited(self, how: str = "") -> None:
        """Tell that the process ended ("exit status 1", "signal: killed"), once it did: nothing else can know.

        Returns when everything the process had sent is read. A running invocation fails: `truncated` when its answer
        had begun, `error` otherwise, `init` when the function never got ready.
        """
        with self._changed:
            self._exited = how or "no reason known"
            self._changed.notify_all()
        self._pass_through_backlog()  # after it, every connection that the process made has its thread
        with self._changed:
            # The kernel closed the process's sockets, so these threads end by themselves.
            self._changed.wait_for(lambda: not self._connections, timeout=5)
            message = (
                f"Error: Runtime exited with error: {how}"
                if how
                else "Error: Runtime exited without providing a reason"
            )
            if not self._ready and self._init_failed is None:
                self._init_failed = Failed("Runtime.ExitError", message, "init")
                self._changed.notify_all()
            self._fail_current("Runtime.ExitError", message)

    def wait_snapshot(self, timeout_seconds: float) -> None:
        """SnapStart: return when the function has run its before-snapshot hooks and waits to be restored."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._snapshot != "none" or self._init_failed or self._closed, timeout_seconds
            )
            if self._init_failed is not None:
                raise RuntimeInitError(self._init_failed)
            if self._snapshot == "none":
                raise TimeoutError(f"the function did not ask to be restored within {timeout_seconds} seconds")

    def restore(self) -> None:
        """SnapStart: let the function go on after its snapshot."""
        with self._changed:
            self._snapshot = "restored"
            self._changed.notify_all()

    def close(self) -> None:
        """Close every connection; a pending /next ends without an answer, a running invocation fails. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._fail_current("Runtime.ExitError", "Error: the Runtime API was closed")
            connections = list(self._connections)
            self._changed.notify_all()
        self._pass_through_backlog()  # wakes accept(), which closing the listener does not on every system
        for connection in connections:
            connection.abort()
        for thread in (self._acceptor, *connections):
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        self._listener.close()

    def _pass_through_backlog(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self._listener.getsockname(), timeout=5) as probe:
            probe.shutdown(socket.SHUT_WR)
            probe.recv(1)

    def __enter__(self) -> RuntimeApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unusable(self) -> str | None:
        if self._closed:
            return "the Runtime API is closed"
        if self._exited is not None and self._init_failed is None:
            return f"the process ended: {self._exited}"
        if self._current is None:
            return None
        if not self._current.is_over:
            return f"the process still runs {self._current.request_id}"
        if self._current.failed is not None and self._current.failed.kind == "timeout":
            return f"the process timed out in {self._current.request_id}"
        return None

    def _fail_current(self, error_type: str, message: str) -> None:
        if self._current is not None:
            began = bool(self._current.answer_headers)
            kind: Literal["init", "truncated", "error"] = "truncated" if began else "error" if self._ready else "init"
            self._current._finish(Failed(error_type, f"RequestId: {self._current.request_id} {message}", kind))

    # The function's side; each connection has a thread.

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                if self._closed:
                    peer.close()
                    return
                connection = _Connection(self, peer)
                self._connections.add(connection)
            connection.start()

    def _forget(self, connection: _Connection) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _wait_next(self, peer: socket.socket) -> Invocation | None:
        """Block until there is an event; None when the API closes or the caller is gone."""
        with self._changed:
            current = self._current
            if current is not None and current.is_taken and not (current.is_over or current.answer_headers):
                raise _RefusedError(HTTPStatus.FORBIDDEN, "InvalidStateTransition", "the last event was not answered")
            self._ready = self._waiting = True
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._closed or self._exited or self._has_event())
                if self._closed or self._exited or not _is_connected(peer) or not self._has_event():
                    return None
                return self._current
            finally:
                self._waiting = False

    def _has_event(self) -> bool:
        return self._current is not None and not self._current.is_taken

    def _wait_restore(self) -> bool:
        with self._changed:
            self._snapshot = "asked" if self._snapshot == "none" else self._snapshot
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._exited or self._snapshot == "restored")
            return self._snapshot == "restored" and not self._closed

    def _record_init_error(self, error_type: str, document: bytes) -> None:
        with self._changed:
            self._init_failed = _failed_from(document, error_type, "init")
            if self._current is not None:
                self._current._finish(self._init_failed)
            self._changed.notify_all()

    def _claim(self, request_id: str, headers: dict[str, str]) -> Invocation:
        """The invocation that this answer belongs to; _RefusedError when there is none or it is over."""
        with self._changed:
            invocation = self._current
            if invocation is None or invocation.request_id != request_id or not invocation.is_taken:
                if request_id in self._past:
                    raise _RefusedError(HTTPStatus.GONE, "InvokeTimeout", "this invocation is over")
                raise _RefusedError(HTTPStatus.BAD_REQUEST, "InvalidRequestID", "Invalid request ID")
            echoed = headers.get("lambda-runtime-invocation-id")
            if echoed is not None and echoed != invocation.invocation_id:
                raise _RefusedError(HTTPStatus.GONE, "InvokeTimeout", "the invocation id is of another invocation")
            if invocation.is_over and invocation.failed is not None and invocation.failed.kind == "timeout":
                raise _RefusedError(HTTPStatus.GONE, "InvokeTimeout", "this invocation timed out")
            if invocation.is_over or invocation.answer_headers:
                raise _RefusedError(HTTPStatus.FORBIDDEN, "InvalidStateTransition", "it has been answered already")
            invocation.answer_headers = headers
            return invocation


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message


class _BrokenOffError(Exception):
    """The connection ended inside a request."""


class _Connection(threading.Thread):
    """Serves the requests of one connection of the function process, one after the other."""

    def __init__(self, api: RuntimeApi, peer: socket.socket) -> None:
        super().__init__(name=f"runtime-api connection {api.address}", daemon=True)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._api = api
        self._peer = peer
        self._reader = peer.makefile("rb")

    def abort(self) -> None:
        """End whatever the thread is doing on this connection."""
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            while self._serve_one():
                pass
        except (OSError, _BrokenOffError):
            pass  # the process went away; its exit is reported by the host
        finally:
            self._reader.close()
            self._peer.close()
            self._api._forget(self)

    def _serve_one(self) -> bool:
        line = self._reader.readline(_MAX_HEAD_BYTES)
        if not line:
            return False
        try:
            method, target, _ = line.decode("latin-1").split()
            headers = _read_fields(self._reader)
            if headers.get("expect", "").lower() == "100-continue":
                self._peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            return self._route(method, target, headers)
        except _RefusedError as refused:
            self._refuse(refused)
        except ValueError as error:
            self._refuse(_RefusedError(HTTPStatus.BAD_REQUEST, "InvalidRequest", str(error)))
        return False

    def _route(self, method: str, target: str, headers: dict[str, str]) -> bool:
        match method, target.removeprefix(_API).split("/"):
            case "GET", ["invocation", "next"]:
                return self._next()
            case "POST", ["invocation", request_id, "response"]:
                self._response(request_id, headers)
            case "POST", ["invocation", request_id, "error"]:
                self._error(request_id, headers)
            case "POST", ["init", "error"] | ["restore", "error"]:
                self._api._record_init_error(headers.get(_ERROR_TYPE, ""), _read_body(self._reader, headers))
                self._accepted()
            case "GET", ["restore", "next"]:
                if not self._api._wait_restore():
                    return False
                self._send(HTTPStatus.OK, {}, b"")
            case _:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "InvalidRequest", f"no such operation: {method} {target}")
        return headers.get("connection", "").lower() != "close"

    def _next(self) -> bool:
        invocation = self._api._wait_next(self._peer)
        if invocation is None:
            return False
        deadline_ms = invocation._deliver()
        trace = hashlib.sha256(invocation.request_id.encode()).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
            "Lambda-Runtime-Trace-Id": f"Root=1-{deadline_ms // 1000:08x}-{trace[:24]};Parent={trace[24:40]};Sampled=0",
        }
        if self._api._invocation_ids:
            headers["Lambda-Runtime-Invocation-Id"] = invocation.invocation_id
        self._send(HTTPStatus.OK, headers, invocation.event)
        return True

    def _error(self, request_id: str, headers: dict[str, str]) -> None:
        invocation = self._api._claim(request_id, headers)
        document = _read_body(self._reader, headers)
        _complete(invocation, _failed_from(document, headers.get(_ERROR_TYPE, ""), "error"))
        self._accepted()

    def _response(self, request_id: str, headers: dict[str, str]) -> None:
        invocation = self._api._claim(request_id, headers)
        try:
            if headers.get("lambda-runtime-function-response-mode", "").lower() == "streaming":
                self._streamed(invocation, headers)
            else:
                self._buffered(invocation, headers)
        except (OSError, _BrokenOffError):
            invocation._finish(Failed("Runtime.TruncatedResponse", "the answer broke off", "truncated"))
            raise
        except ValueError as error:
            invocation._finish(Failed("Runtime.TruncatedResponse", f"malformed answer: {error}", "truncated"))
            raise
        self._accepted()

    def _buffered(self, invocation: Invocation, headers: dict[str, str]) -> None:
        payload = _read_body(self._reader, headers)
        if len(payload) > MAX_BUFFERED_BYTES:
            message = f"Response payload size exceeded maximum allowed payload size ({MAX_BUFFERED_BYTES} bytes)."
            invocation._finish(Failed("Function.ResponseSizeTooLarge", message, "error"))
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestEntityTooLarge", message)
        _put(invocation, Buffered(payload))
        _complete(invocation)

    def _streamed(self, invocation: Invocation, headers: dict[str, str]) -> None:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            raise ValueError("a streamed answer must have transfer-encoding: chunked")
        has_prelude = headers.get("content-type") == PRELUDE_TYPE
        if not has_prelude:  # without the integration type Lambda passes the body on with status 200
            _put(
                invocation, Prelude(200, {"content-type": headers.get("content-type", "application/octet-stream")}, [])
            )
        head = b"" if has_prelude else None
        chunks = _Chunks(self._reader)
        for chunk in chunks:
            received_at, data = time.monotonic(), chunk
            if head is not None:
                head, data = _split_prelude(head + chunk, invocation)
            if data:
                _put(invocation, Chunk(data, received_at))
        if head is not None:
            raise ValueError("the answer ended before the prelude's delimiter")
        declared = {name.strip().lower() for name in headers.get("trailer", "").split(",")}
        if undeclared := chunks.trailers.keys() - declared:
            raise ValueError(f"trailers not declared in the Trailer header: {sorted(undeclared)}")
        _complete(invocation, _failed_from_trailers(chunks.trailers))

    def _accepted(self) -> None:
        self._send(HTTPStatus.ACCEPTED, {"Content-Type": "application/json"}, b'{"status":"OK"}\n')

    def _refuse(self, refused: _RefusedError) -> None:
        """Answer with the error, and let the peer read it: closing over unread bytes would reset the connection."""
        document = {"errorType": refused.error_type, "errorMessage": refused.message}
        headers = {"Content-Type": "application/json", "Connection": "close"}
        self._send(refused.status, headers, json.dumps(document).encode())
        self._peer.shutdown(socket.SHUT_WR)
        self._peer.settimeout(0.2)
        until = time.monotonic() + 1
        while time.monotonic() < until and self._peer.recv(65536):
            pass

    def _send(self, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        self._peer.sendall(head.encode("latin-1") + body)


class _Chunks:
    """The chunks of a chunked body (RFC 9112 §7.1), as framed by the sender; afterwards its `trailers`."""

    def __init__(self, reader: BufferedReader) -> None:
        self._reader = reader
        self.trailers: dict[str, str] = {}

    def __iter__(self) -> Iterator[bytes]:
        while True:
            line = self._reader.readline(_MAX_HEAD_BYTES)
            if not line.endswith(b"\n"):
                raise _BrokenOffError
            size = int(line.partition(b";")[0].strip(), 16)
            if size == 0:
                self.trailers = _read_fields(self._reader, MAX_TRAILER_BYTES)
                return
            yield _read_exactly(self._reader, size)
            if _read_exactly(self._reader, 2) != b"\r\n":
                raise ValueError("a chunk is longer than its size says")


def _read_fields(reader: BufferedReader, max_bytes: int = _MAX_HEAD_BYTES) -> dict[str, str]:
    """Header or trailer fields up to the empty line, names in lower case, repeated ones joined by a comma."""
    fields: dict[str, str] = {}
    left = max_bytes
    while True:
        line = reader.readline(left)
        left -= len(line)
        if not line.endswith(b"\n"):
            if left == 0:
                raise ValueError(f"header or trailer fields of more than {max_bytes} bytes")
            raise _BrokenOffError
        text = line.decode("latin-1").rstrip("\r\n")
        if not text:
            return fields
        name, colon, value = text.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(f"malformed header line: {text[:80]!r}")
        key = name.lower()
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()


def _read_exactly(reader: BufferedReader, size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise _BrokenOffError
    return data


def _read_body(reader: BufferedReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return b"".join(_Chunks(reader))
    return _read_exactly(reader, int(headers.get("content-length", "0")))


def _put(invocation: Invocation, part: Part) -> None:
    if not invocation._put(part):
        raise _RefusedError(HTTPStatus.GONE, "InvokeTimeout", "this invocation is over")


def _complete(invocation: Invocation, failed: Failed | None = None) -> None:
    if not invocation._finish(failed):
        raise _RefusedError(HTTPStatus.GONE, "InvokeTimeout", "this invocation is over")


def _split_prelude(head: bytes, invocation: Invocation) -> tuple[bytes | None, bytes]:
    """What is still to be read of the prelude (None once it is complete and handed on), and the body bytes after it."""
    encoded, delimiter, body = head.partition(PRELUDE_END)
    if len(encoded) + len(PRELUDE_END) > MAX_PRELUDE_BYTES:
        raise ValueError("the prelude is longer than 16 KB")
    if not delimiter:
        return head, b""
    fields: dict[str, Any] = json.loads(encoded)
    headers, cookies = fields.get("headers", {}), fields.get("cookies", [])
    if not all(isinstance(text, str) for text in (*headers, *headers.values(), *cookies)):
        raise ValueError("headers and cookies must be strings")
    _put(invocation, Prelude(int(fields.get("statusCode", 200)), headers, cookies))
    return None, body


def _failed_from(document: bytes, error_type: str, kind: Literal["error", "init", "trailers"]) -> Failed:
    """The failure that an error document tells; the type of the header counts before the document's `errorType`."""
    try:
        fields = json.loads(document)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {}
    return Failed(
        error_type or str(fields.get("errorType") or "Runtime.Unknown"),
        str(fields.get("errorMessage", "")),
        kind,
        document,
    )


def _failed_from_trailers(trailers: dict[str, str]) -> Failed | None:
    if _ERROR_TYPE not in trailers and _ERROR_BODY not in trailers:
        return None
    document = base64.b64decode(trailers.get(_ERROR_BODY, ""), validate=True)
    return _failed_from(document, trailers.get(_ERROR_TYPE, ""), "trailers")


def _is_connected(peer: socket.socket) -> bool:
    """False when the other side has closed: an event sent there would be lost."""
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
