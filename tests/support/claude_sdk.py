"""Anthropic's own Python client, pointed at a gateway, counting the HTTP calls that it really makes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx2
from anthropic import Anthropic, AsyncAnthropic, DefaultAsyncHttpxClient, DefaultHttpxClient

OLD_VERSION = "2023-06-01"
NEW_VERSION = "2026-10-21"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a client shows its credential, and which API version it speaks."""

    name: str
    by_header: bool
    """In `x-api-key`, as the clients before 2026-10-21 did; else as a bearer token."""
    version: str

    def arguments(self, credential: str) -> tuple[str, dict[str, str]]:
        """(api_key, default headers) for the client; a bearer token that is replaced by nothing is not sent."""
        headers = {"anthropic-version": self.version}
        return credential, headers | ({"X-Api-Key": credential, "Authorization": ""} if self.by_header else {})


DIALECTS = (
    Dialect("bearer, newest version", by_header=False, version=NEW_VERSION),
    Dialect("x-api-key, newest version", by_header=True, version=NEW_VERSION),
    Dialect("bearer, first version", by_header=False, version=OLD_VERSION),
    Dialect("x-api-key, first version", by_header=True, version=OLD_VERSION),
)


class CountingClient(Anthropic):
    """The client, and the HTTP calls it made so far."""

    calls: list[httpx2.Request]


class AsyncCountingClient(AsyncAnthropic):
    """The asynchronous client, and the HTTP calls it made so far."""

    calls: list[httpx2.Request]


@contextmanager
def claude_client(base_url: str, credential: str, dialect: Dialect = DIALECTS[0]) -> Iterator[CountingClient]:
    """A client with everything at its defaults, two retries included."""
    calls: list[httpx2.Request] = []
    api_key, headers = dialect.arguments(credential)
    http_client = DefaultHttpxClient(event_hooks={"request": [calls.append]})
    with CountingClient(api_key=api_key, base_url=base_url, default_headers=headers, http_client=http_client) as client:
        client.calls = calls
        yield client


@asynccontextmanager
async def async_claude_client(
    base_url: str, credential: str, dialect: Dialect = DIALECTS[0]
) -> AsyncIterator[AsyncCountingClient]:
    """The same, asynchronous."""
    calls: list[httpx2.Request] = []

    async def count(request: httpx2.Request) -> None:
        calls.append(request)

    api_key, headers = dialect.arguments(credential)
    http_client = DefaultAsyncHttpxClient(event_hooks={"request": [count]})
    async with AsyncCountingClient(
        api_key=api_key, base_url=base_url, default_headers=headers, http_client=http_client
    ) as client:
        client.calls = calls
        yield client
