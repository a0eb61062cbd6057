"""What the relay of a message deals in: the call, its reply, where its outcome is told, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tollgate.domain.ledger import Grant, Meter
from tollgate.domain.pricing import Model
from tollgate.domain.principals import Account, Principal
from tollgate.domain.usage import Usage
from tollgate.storage.requests import RequestOutcome


@dataclass(frozen=True, slots=True)
class MessageCall:
    """One authenticated request for a message."""

    request_id: str
    principal: Principal
    body: bytes
    """The JSON body as it came."""
    deadline_at_seconds: float
    """When this function is killed, epoch seconds."""
    target: str = "/v1/messages"
    """Path and query for upstream."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For upstream, already filtered (`tollgate.edge.headers.forwarded`)."""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """A call that may go up."""

    account: Account
    model: Model
    grant: Grant
    output_tokens: int
    """What `max_tokens` in `body` says."""
    body: bytes
    streamed: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the caller stands, for the headers of an answer."""

    account: Account
    meter: Meter


class Reply(Protocol):
    """The answer to the caller. No method raises because the caller went away: the relay goes on to settle."""

    def start(self, status: int, headers: Mapping[str, str], standing: Standing) -> None:
        """Once, before anything else: status and upstream's headers (lower-case names, unfiltered)."""

    def write(self, data: bytes) -> None:
        """Bytes for the caller, passed on at once."""

    def write_error(self, error: Exception) -> None:
        """An error of ours, inside an event stream that has started."""


class Journal(Protocol):
    """Where outcomes are told: `tollgate.telemetry.Telemetry`, or nowhere in the simulator."""

    def event(self, name: str, **fields: str | int | bool | None) -> None: ...

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None: ...

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Relayed:
    """How a relayed call ended and what was booked."""

    outcome: RequestOutcome
    estimated: bool
    usage: Usage
    charged_tokens: int
    written_off_tokens: int
    cost_picousd: int
    standing: Standing
    """After the settlement, as far as known."""
