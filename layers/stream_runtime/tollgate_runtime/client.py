"""A runtime client that can stream: AWS's own (awslambdaric, pinned) with three methods overridden.

Protocol: "Building a custom runtime", section on response streaming, in AWS's Lambda documentation; traps and how to
remove this package: docs/stream-runtime.md.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import socket
from typing import Any

from awslambdaric.lambda_runtime_client import LambdaRuntimeClient, LambdaRuntimeClientError

from tollgate_runtime import ResponseClosedError, StreamBrokenError, invocation

PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
PRELUDE_END = b"\0" * 8

_MAX_TRAILER_MESSAGE_CHARS = 300
_MAX_TRAILER_DOCUMENT_BYTES = 2_400  # Lambda's side reads trailers through a 4 KB buffer and drops a longer block


class StreamingSink:
    """Sends the answer of one invocation over a connection of its own, in HTTP/1.1 chunks.

    No socket timeout: Lambda slows a stream down to 2 MB/s by not reading, and ends it itself at the deadline.
    """

    def __init__(self, address: str, request_id: str, invocation_id: str | None) -> None:
        self._address = address
        self._endpoint = f"/2018-06-01/runtime/invocation/{request_id}/response"
        self._invocation_id = invocation_id
        self._socket: socket.socket | None = None
        self._has_body = False
        self.started = False

    def start(self, prelude: dict[str, Any], data: bytes) -> None:
        if self.started:
            raise ResponseClosedError("this invocation has a response already")
        self.started = True
        host, _, port = self._address.rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)))
        except OSError as error:
            raise StreamBrokenError("the Runtime API does not answer") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._has_body = bool(data)
        first = _chunk(json.dumps(prelude, separators=(",", ":")).encode() + PRELUDE_END)
        self._send(self._request_head() + first + (_chunk(data) if data else b""))

    def send(self, data: bytes) -> None:
        self._has_body = True
        self._send(_chunk(data))

    def result(self) -> None:
        return None

    def finish(self, error: dict[str, Any] | None = None) -> None:
        """End the stream, with trailers that tell the error if there is one. A broken stream is logged, not raised.

        Raises LambdaRuntimeClientError when the Runtime API refuses the answer for a reason other than its lateness.
        """
        # Function URLs hang on an empty body until the function's timeout.
        filler = b"" if self._has_body else _chunk(b"\n")
        try:
            self._send(filler + b"0\r\n" + (_trailers(error) if error else b"") + b"\r\n")
            status, body = self._read_answer()
        except OSError as broken:
            logging.getLogger(__name__).warning("stream broken before its end: %s", broken)
            return
        finally:
            self._close()
        if status == 410:  # the invocation timed out meanwhile; other runtimes of AWS log it and go on, too
            logging.getLogger(__name__).warning("answer came too late: %s", body)
        elif status != 202:
            raise LambdaRuntimeClientError(self._endpoint, status, body)

    def _request_head(self) -> bytes:
        lines = [
            f"POST {self._endpoint} HTTP/1.1",
            f"Host: {self._address}",
            "User-Agent: tollgate-runtime",
            f"Content-Type: {PRELUDE_TYPE}",
            "Lambda-Runtime-Function-Response-Mode: streaming",
            "Transfer-Encoding: chunked",
            "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body",
        ]
        if self._invocation_id:
            lines.append(f"Lambda-Runtime-Invocation-Id: {self._invocation_id}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            raise StreamBrokenError("the stream broke earlier")
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._close()
            raise StreamBrokenError("Lambda stopped reading the answer") from error

    def _read_answer(self) -> tuple[int, bytes]:
        assert self._socket is not None  # _send has just used it
        answer = b""
        while b"\r\n\r\n" not in answer:
            received = self._socket.recv(4096)
            if not received:
                raise ConnectionError("the Runtime API closed the connection without an answer")
            answer += received
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class StreamingRuntimeClient(LambdaRuntimeClient):  # type: ignore[misc]  # awslambdaric has no type information
    """Gives every invocation a streaming sink; answers that were not streamed go AWS's way."""

    _sink: StreamingSink | None = None

    def wait_next_invocation(self) -> Any:  # noqa: ANN401  # awslambdaric's InvocationRequest, untyped
        request = super().wait_next_invocation()
        # `sam local` shows a streamed answer raw, prelude and all (aws-sam-cli#9028): it gets the proxy response.
        is_sam_local = os.environ.get("AWS_SAM_LOCAL") == "true"
        sink = StreamingSink(self.lambda_runtime_address, request.invoke_id, request.invocation_id)
        invocation.sink = self._sink = None if is_sam_local else sink
        return request

    def post_invocation_result(self, invoke_id: str, result_data: Any, *rest: Any) -> None:  # noqa: ANN401
        if self._sink is not None and self._sink.started:
            self._sink.finish()
        else:
            super().post_invocation_result(invoke_id, result_data, *rest)

    def post_invocation_error(self, invoke_id: str, error_response_data: str, *rest: Any) -> None:  # noqa: ANN401
        if self._sink is not None and self._sink.started:
            self._sink.finish(json.loads(error_response_data))
        else:
            super().post_invocation_error(invoke_id, error_response_data, *rest)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _trailers(error: dict[str, Any]) -> bytes:
    """The two trailer lines: type (`category.reason`) and the error document in base64, cut to what passes."""
    error_type = re.sub(r"[^\w.]", "_", error.get("errorType") or "Unknown", flags=re.ASCII)[:100]
    document = {
        "errorMessage": str(error.get("errorMessage", ""))[:_MAX_TRAILER_MESSAGE_CHARS],
        "errorType": error_type,
        "requestId": error.get("requestId", ""),
        "stackTrace": list(error.get("stackTrace", []))[-10:],  # the innermost frames; the log has them all
    }
    while len(encoded := json.dumps(document).encode()) > _MAX_TRAILER_DOCUMENT_BYTES and document["stackTrace"]:
        document["stackTrace"].pop(0)
    category = "" if "." in error_type else "Function."
    lines = (
        f"Lambda-Runtime-Function-Error-Type: {category}{error_type}\r\n"
        f"Lambda-Runtime-Function-Error-Body: {base64.b64encode(encoded).decode()}\r\n"
    )
    return lines.encode()
