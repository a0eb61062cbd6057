"""Relay one message: reserve, send it up, pass every byte down, settle with the provider's own counts.

Promises: nothing is sent before its whole cost is reserved (or, on soft quotas, its first slice); the body goes up as
it came but for a clamped `max_tokens`; the answer comes down byte for byte; nothing is sent upstream twice; and every
reservation ends here, exactly once, or by the sweep.

All I/O goes through the collaborators given; `tests/simulation` drives this very module with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tollgate.domain.ledger import Meter
from tollgate.domain.principals import Account, Principal
from tollgate.domain.sources import Clock
from tollgate.domain.usage import Usage
from tollgate.flows.ledger import Ledger
from tollgate.providers.claude import Upstream
from tollgate.storage.requests import RequestOutcome, Requests

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.flows.accounts import Accounts

SOFT_DEADLINE_SECONDS = 10
"""Stop this long before the function is killed: enough for an error event and a settlement under retries."""


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


class MessageRelay:
    """Relays messages for many callers; holds nothing between calls."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        catalog: Catalog,
        ledger: Ledger,
        upstream: Upstream,
        requests: Requests,
        clock: Clock,
    ) -> None:
        self._accounts = accounts
        self._catalog = catalog
        self._ledger = ledger
        self._upstream = upstream
        self._requests = requests
        self._clock = clock

    def relay(self, call: MessageCall, reply: Reply) -> Relayed:
        """Serve one call. Raises a TollgateError only while nothing has been written to `reply`.

        Once the answer has started, an error of ours is an `error` event in it and the returned outcome says so.
        """
        raise NotImplementedError
