"""An upstream without a network: answers from a script, in chunks, with the misfortunes given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tollgate.providers.claude import UpstreamLostError, UpstreamNotReachedError, UpstreamRequest

Doing = Callable[[], None]
Chunk = bytes | Exception | Doing
"""Bytes to deliver, an error to raise, or something to do before the next chunk (turn a clock, break a table)."""

EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8", "request-id": "req_up"}
JSON = {"content-type": "application/json", "request-id": "req_up"}


class FakeAnswer:
    """`tollgate.providers.claude.UpstreamAnswer`."""

    def __init__(self, status: int, headers: Mapping[str, str], chunks: list[Chunk]) -> None:
        self.status = status
        self.headers = headers
        self.timeouts: list[float] = []
        self.closed = False
        self._chunks = chunks

    def read(self, timeout_seconds: float) -> bytes:
        assert not self.closed
        self.timeouts.append(timeout_seconds)
        while self._chunks:
            chunk = self._chunks.pop(0)
            if isinstance(chunk, bytes):
                return chunk
            if isinstance(chunk, Exception):
                raise chunk
            chunk()
        return b""

    def close(self) -> None:
        self.closed = True


class FakeUpstream:
    """`tollgate.providers.claude.Upstream`: one scripted answer, any number of times."""

    def __init__(self, *chunks: Chunk, status: int = 200, headers: Mapping[str, str] = EVENT_STREAM) -> None:
        self.requests: list[UpstreamRequest] = []
        self.answers: list[FakeAnswer] = []
        self.before_head: Chunk = b""
        self._chunks = chunks
        self._status = status
        self._headers = headers

    def says(self, *chunks: Chunk) -> None:
        """Another script, for one that needs what was built around this upstream."""
        self._chunks = chunks

    def send(self, request: UpstreamRequest, timeout_seconds: float, when_sent: Doing | None = None) -> FakeAnswer:
        self.requests.append(request)
        if when_sent is not None and not isinstance(self.before_head, UpstreamNotReachedError):
            when_sent()
        if isinstance(self.before_head, Exception):
            raise self.before_head
        if not isinstance(self.before_head, bytes):
            self.before_head()
        if timeout_seconds <= 0:
            raise UpstreamLostError("TimeoutError")
        self.answers.append(FakeAnswer(self._status, self._headers, list(self._chunks)))
        return self.answers[-1]
