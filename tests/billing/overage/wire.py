"""Between the reporter and Stripe: the wire of the other runs, outages, delays, second copies, the meter's one lock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import stripe

from dev.stripe_double.world import Answer
from tests.billing.wire import Side
from tests.simulation.hub import KilledError, Process
from tests.simulation.memory_table import Answer as TableAnswer
from tests.simulation.memory_table import Request
from tests.simulation.network import Network

if TYPE_CHECKING:
    from tests.billing.overage.world import OverageWorld

METER_EVENTS = "/v1/billing/meter_events"
LONGEST_DELAY = 2400.0


class KillingNetwork(Network):
    """Each request to the table is a moment before and a moment after which its sender may be killed."""

    world: OverageWorld

    def send(self, process: Process, operation: str, request: Request) -> TableAnswer:
        self.world.pass_moment(process)
        answer = super().send(process, operation, request)
        self.world.pass_moment(process)
        return answer


class OverageSide(Side):
    """Stripe as one run sees it."""

    overage: OverageWorld

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        process = self._running()
        if process is None:
            return super().ask(method, path, headers, body)
        if process.dead:
            raise KilledError
        self.overage.pass_moment(process)
        if self.overage.stripe_is_down():
            self.seen["stripe_down"] += 1
            self.hub.sleep(process, 8)
            raise stripe.APIConnectionError("down", should_retry=True)  # type: ignore[no-untyped-call]  # of the SDK
        if path != METER_EVENTS:
            answer = super().ask(method, path, headers, body)
        else:
            answer = self._tell(process, method, path, headers, body)
        self.overage.pass_moment(process)
        return answer

    def _tell(self, process: Process, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        world, rng = self.overage, self.rng
        fields = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        world.oracle.sending(process, fields)
        self.seen["meter_events"] += 1
        if world.goes_wrong() and rng.random() < world.scenario.delayed:
            self.seen["delayed"] += 1
            delay = rng.choice((10.0, 120.0, LONGEST_DELAY)) * rng.random()
            self.hub.after(delay, lambda: self._land(method, path, headers, body))
            self.hub.sleep(process, 8)
            raise stripe.APIConnectionError("no answer", should_retry=True)  # type: ignore[no-untyped-call]  # of the SDK
        if world.goes_wrong() and rng.random() < world.scenario.duplicate:
            self.seen["second_copies"] += 1
            self.hub.after(
                rng.choice((1.0, 600.0, LONGEST_DELAY)) * rng.random(), lambda: self._land(method, path, headers, body)
            )
        customer = fields["payload[stripe_customer_id]"]
        if world.under_way[customer]:
            self.seen["lock_timeouts"] += 1
            error = {"error": {"type": "invalid_request_error", "code": "lock_timeout", "message": "locked"}}
            return Answer(429, {"content-type": "application/json"}, json.dumps(error).encode())
        world.under_way[customer] += 1
        try:
            return super().ask(method, path, headers, body)
        finally:
            world.under_way[customer] -= 1

    def _land(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self._catch_up()
        # Its own idempotency key has been used by the first copy; Stripe's front may be another one.
        kept = {name: value for name, value in headers.items() if name.lower() != "idempotency-key"}
        answer = self.world.handle(method, path, kept, body)
        self.seen[f"landed_late_{answer.status}"] += 1
