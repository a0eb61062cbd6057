"""Answer a Lambda invocation piece by piece. `Response` is all that a handler needs:

    with Response(200, {"content-type": "text/event-stream"}) as response:
        response.write("event: ping\\n\\n")
    return response.result()

Under our runtime client (`client.py`, started by `bootstrap`) every write leaves the process at once. Anywhere else
(pytest, `sam local`, a plain runtime) the same lines collect the proxy response of payload format 2.0. This module is
imported by handlers and stays free of awslambdaric and of anything slow.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

__all__ = ["BufferedSink", "Response", "ResponseClosedError", "Sink", "StreamBrokenError", "invocation"]

MAX_PRELUDE_BYTES = 16 * 1024 - 8  # what follows the status must begin within the first 16 KB

_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5: no NUL, CR, LF; nothing beyond one byte


class ResponseClosedError(RuntimeError):
    """Written after the end, or a second response was begun in one invocation."""


class StreamBrokenError(ConnectionError):
    """Lambda no longer takes the answer (the invocation timed out, or the environment goes away): settle and return."""


class Sink(Protocol):
    """Where the pieces go. A sink takes one response."""

    def start(self, prelude: dict[str, Any], data: bytes) -> None:
        """Send status, headers and the first bytes, which may be empty. Raises ResponseClosedError the second time."""

    def send(self, data: bytes) -> None:
        """Send the next bytes, never none."""

    def result(self) -> dict[str, Any] | None:
        """What the handler has to return."""


class BufferedSink:
    """Collects the response as a proxy response of payload format 2.0."""

    def __init__(self) -> None:
        self._prelude: dict[str, Any] | None = None
        self._body = bytearray()

    def start(self, prelude: dict[str, Any], data: bytes) -> None:
        if self._prelude is not None:
            raise ResponseClosedError("this invocation has a response already")
        self._prelude = prelude
        self._body += data

    def send(self, data: bytes) -> None:
        self._body += data

    def result(self) -> dict[str, Any]:
        try:
            body, is_base64 = self._body.decode(), False
        except UnicodeDecodeError:
            body, is_base64 = base64.b64encode(self._body).decode(), True
        return {**(self._prelude or {}), "body": body, "isBase64Encoded": is_base64}


class _Invocation:
    """The running invocation's sink, set anew by the runtime client; none where another client runs the handler."""

    sink: Sink | None = None


invocation = _Invocation()


class Response:
    """The response of the running invocation; nothing leaves before the first write or the end of the block.

    Raises ValueError when HTTP cannot carry the status, a header or a cookie, or when they exceed 16 KB together.
    Until the first write another Response may take its place. An exception that leaves the block ends nothing: the
    runtime reports it, as an error before the first write, in the trailers of the stream after it.
    """

    def __init__(self, status: int, headers: Mapping[str, str], cookies: Iterable[str] = ()) -> None:
        self._prelude = _prelude(status, headers, cookies)
        self._sink: Sink = invocation.sink or BufferedSink()
        self._started = False
        self._closed = False

    def write(self, data: bytes | str) -> None:
        """Send one chunk now (text as UTF-8). With empty data only status and headers leave, if they have not yet.

        Raises ResponseClosedError after the end, StreamBrokenError when Lambda stopped reading.
        """
        if self._closed:
            raise ResponseClosedError("the response has ended")
        encoded = data.encode() if isinstance(data, str) else data
        if not self._started:
            self._sink.start(self._prelude, encoded)
            self._started = True
        elif encoded:
            self._sink.send(encoded)

    def result(self) -> dict[str, Any] | None:
        """What the handler returns: None when the response was streamed, else the proxy response."""
        return self._sink.result()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None and not self._started:
            self.write(b"")
        self._closed = True


def _prelude(status: int, headers: Mapping[str, str], cookies: Iterable[str]) -> dict[str, Any]:
    if not 200 <= status <= 599:
        raise ValueError(f"not a final HTTP status: {status}")
    for name, value in headers.items():
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"HTTP cannot carry the header {name!r}")  # the value may be a secret
    prelude: dict[str, Any] = {"statusCode": status, "headers": dict(headers)}
    if listed := list(cookies):
        if not all(_FIELD_VALUE.fullmatch(cookie) for cookie in listed):
            raise ValueError("HTTP cannot carry one of the cookies")
        prelude["cookies"] = listed
    if len(json.dumps(prelude, separators=(",", ":"))) > MAX_PRELUDE_BYTES:
        raise ValueError("status, headers and cookies exceed 16 KB")
    return prelude
