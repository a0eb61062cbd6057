"""Claude's API as an upstream: one request out, bytes back, and what its refusals mean for us.

`Upstream` is the seam: the real one speaks HTTP/1.1, the simulator brings its own. No retries here: a request that may
have been processed is never sent twice, because each time may be a paid generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


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

    status: int
    headers: Mapping[str, str]

    def read(self, timeout_seconds: float) -> bytes:
        """The next bytes as they come; b"" at the regular end. Raises UpstreamLostError."""

    def close(self) -> None:
        """Stop reading; safe to repeat. An unfinished answer costs its connection."""


class Upstream(Protocol):
    """Where requests for Claude go."""

    def send(self, request: UpstreamRequest, timeout_seconds: float) -> UpstreamAnswer:
        """Wait for the head of the answer. Raises UpstreamNotReachedError or UpstreamLostError."""
