"""The Lambda Runtime API, served to one function process.

Written from AWS's documentation ("Using the Lambda runtime API for custom runtimes", and its section on streaming in
"Building a custom runtime") for two users: the local stack, and the tests of layers/stream_runtime. It reads HTTP/1.1
itself, because what matters here is what common servers hide: when each chunk arrived, the trailers, and a body that
breaks off.

    api = RuntimeApi()
    process = subprocess.Popen([...], env={"AWS_LAMBDA_RUNTIME_API": api.address, "_HANDLER": "app.handler", ...})
    api.wait_ready(10)
    for part in api.invoke(b"{}", request_id="r-1", timeout_seconds=30, function_arn="arn:…").parts(10): ...
    process.kill(); process.wait(); api.process_exited(); api.close()

Starting, killing and restarting the process is the caller's work. As on Lambda, a process whose invocation timed out
serves no further one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, Protocol

PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
PRELUDE_END = b"\0" * 8
MAX_PRELUDE_BYTES = 16 * 1024  # API Gateway's documented bound: status and delimiter within the first 16 KB
MAX_BUFFERED_BYTES = 6 * 1024 * 1024 + 100  # Lambda's bound for a buffered answer; the emulator uses this number

_API = "/2018-06-01/runtime/"
_MAX_LINE_BYTES = 4 * 1024 * 1024  # an X-Ray cause header may hold 1 MiB
_TRAILERS = ("lambda-runtime-function-error-type", "lambda-runtime-function-error-body")


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

    `error` before any byte of an answer · `trailers` reported after the answer had begun · `truncated` the answer broke
    off · `timeout` the deadline passed: kill the process · `init` the function never started. `payload` is the error
    document as the runtime wrote it (JSON, with the stack trace), empty when Lambda itself noticed the failure.
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
    """The process can take no invocation: one is running, one timed out, the process ended, or the API was closed."""


class Invocation:
    """One event on its way through the function."""

    def __init__(self, event: bytes, request_id: str, timeout_seconds: float, arn: str, invocation_id: str) -> None:
        self.event = event
        self.request_id = request_id
        self.timeout_seconds = timeout_seconds
        self.function_arn = arn
        self.invocation_id = invocation_id
        self.request_headers: dict[str, str] = {}
        """Headers of the runtime's answer, names in lower case; empty until it came."""
        self._parts: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._delivered_at: float | None = None
        self._started = False
        self._over = threading.Event()
        self._expire: Any = None

    @property
    def is_over(self) -> bool:
        """True when the last part is known, read or not."""
        return self._over.is_set()

    def parts(self, timeout_seconds: float) -> Iterator[Part]:
        """Yield the parts as they come, to the last.

        `timeout_seconds` bounds the wait until the process takes the event, which includes its start. From then on
        the invocation's own timeout counts; when it passes, the last part is `Failed(kind="timeout")`. Read to the
        end even if nobody listens any more: it is what keeps the deadline.
        """
        start_by = time.monotonic() + timeout_seconds
        while True:
            ends_at = start_by if self._delivered_at is None else self._delivered_at + self.timeout_seconds
            try:
                part = self._parts.get(timeout=max(0.0, ends_at - time.monotonic()))
            except queue.Empty:
                if self._delivered_at is None or ends_at == start_by:
                    if self._delivered_at is not None:
                        continue  # taken in the last moment: its own timeout counts now
                    self._expire(self, f"the function did not take the event within {timeout_seconds:.2f} seconds")
                else:
                    self._expire(self, f"Task timed out after {self.timeout_seconds:.2f} seconds")
                continue
            if part is None:
                return
            yield part

    def _put(self, part: Part) -> None:
        if not self._over.is_set():
            self._started = True
            self._parts.put(part)

    def _end(self, failed: Failed | None = None) -> None:
        if self._over.is_set():
            return
        if failed is not None:
            self._parts.put(failed)
        self._over.set()
        self._parts.put(None)
