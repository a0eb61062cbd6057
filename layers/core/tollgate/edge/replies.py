"""The answer to the caller of the streaming function: one per invocation, whole or as it comes.

Needs the stream_runtime layer, which only the claude function carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from tollgate.domain.sources import Clock
from tollgate.edge.errors import error_event
from tollgate.edge.headers import passed_down, standing_headers
from tollgate.flows.message_calls import Standing
from tollgate.providers.claude_stream import is_event_stream
from tollgate_runtime import Response


class LambdaReply:
    """`tollgate.flows.message_calls.Reply` on Lambda. A caller that went away is remembered, never raised."""

    def __init__(self, request_id: str, clock: Clock) -> None:
        self.request_id = request_id
        self._clock = clock
        self._response: Response | None = None
        self._event_stream = False
        self._gone = False

    @property
    def started(self) -> bool:
        """Status and headers are fixed."""
        return self._response is not None

    @property
    def event_stream(self) -> bool:
        """Events may follow."""
        return self._event_stream

    def start(self, status: int, headers: Mapping[str, str], standing: Standing) -> None:
        """A relayed answer: upstream's headers as far as they may pass, and the caller's own."""
        self._event_stream = is_event_stream(headers)
        self._open(status, passed_down(headers, self.request_id) | self._standing_headers(standing))

    def pass_down(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer of upstream that has nothing to do with quota."""
        self._open(status, passed_down(headers, self.request_id))
        self.write(body)

    def send_json(self, document: Mapping[str, object]) -> None:
        """A whole answer of ours, status 200."""
        headers = {"content-type": "application/json", "cache-control": "no-store", "request-id": self.request_id}
        self.send(int(HTTPStatus.OK), headers, json.dumps(document, separators=(",", ":")).encode())

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer of ours."""
        self._open(status, headers)
        if body:
            self.write(body)

    def write(self, data: bytes) -> None:
        if self._response is None or self._gone:
            return
        try:
            self._response.write(data)
        except OSError:  # the runtime's StreamBrokenError is one
            self._gone = True

    def write_error(self, error: Exception) -> None:
        self.write(error_event(error, self.request_id))

    def result(self) -> dict[str, Any] | None:
        """End the answer; what the Lambda handler returns."""
        if self._response is None:
            raise RuntimeError("nothing was answered")
        try:
            with self._response:
                pass
        except OSError:
            self._gone = True
        return self._response.result()

    def _open(self, status: int, headers: Mapping[str, str]) -> None:
        self._response = Response(status, headers)
        if self._event_stream:
            # Status and headers leave now: the first event may take a minute of thinking.
            self.write(b"")

    def _standing_headers(self, standing: Standing) -> dict[str, str]:
        return standing_headers(standing, self._clock.now_seconds())
