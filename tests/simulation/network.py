"""Between the code and the table: the DynamoDB client that production code is given, and everything that can go wrong.

The client behaves as botocore's in standard retry mode with the settings of `storage.table.hot_path_client`: three
attempts of one second each, then the last error; `ResponseMetadata.RetryAttempts` tells how many were used.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, fields
from itertools import count
from typing import Any, Protocol

from botocore.errorfactory import BaseClientExceptions
from botocore.exceptions import BotoCoreError, ClientError

from tests.simulation.answers import client_exceptions, never_answered, never_connected, refusal
from tests.simulation.hub import Hub, KilledError, Process
from tests.simulation.memory_table import Answer, MemoryTable, Request, cancellation

ATTEMPTS = 3
TIMEOUT_SECONDS = 1.0
LATEST_SECONDS = 300.0
"""A signed request is refused after five minutes; nothing of ours can land later than that."""
_LATE_SECONDS = (0.02, 2, LATEST_SECONDS - 2 * TIMEOUT_SECONDS, LATEST_SECONDS - 2 * TIMEOUT_SECONDS)
"""Upper ends of the delays drawn: between two retries, between two steps, after the end of all."""


@dataclass(frozen=True, slots=True)
class MessageFaults:
    """Probabilities, per message."""

    lost_request: float = 0
    lost_answer: float = 0
    late: float = 0
    """The client sees a time-out; the write lands up to LATEST_SECONDS later."""
    throttled: float = 0
    failed: float = 0
    """500; half of them applied."""
    conflict: float = 0

    @classmethod
    def draw(cls, rng: random.Random) -> MessageFaults:
        return cls(
            lost_request=rng.choice([0, 0.01, 0.1]),
            lost_answer=rng.choice([0, 0.01, 0.1]),
            late=rng.choice([0, 0.01, 0.05]),
            throttled=rng.choice([0, 0.02, 0.2]),
            failed=rng.choice([0, 0.01, 0.05]),
            conflict=rng.choice([0, 0, 0.01, 0.05]),
        )

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))


class Network:
    """Carries every request of every process; draws its fate from the run's random numbers."""

    def __init__(
        self, hub: Hub, table: MemoryTable, rng: random.Random, faults: MessageFaults, seen: Counter[str]
    ) -> None:
        self.hub = hub
        self.table = table
        self.rng = rng
        self.seen = seen
        self.sender: Process | None = None
        """Whose write is being applied: read by the oracle, at the commit."""
        self.sent_reading = 0.0
        """That process's last clock reading when it sent the write."""
        self._tokens = count()
        self.set_faults(faults)

    def new_token(self) -> str:
        return f"token-{next(self._tokens)}"

    def set_faults(self, faults: MessageFaults) -> None:
        self._total = faults.total
        self._kinds = [field.name for field in fields(faults)]
        self._weights = [getattr(faults, field.name) for field in fields(faults)]

    def send(self, process: Process, operation: str, request: Request) -> Answer:
        """One client call with its retries. Runs in the process's greenlet."""
        if process.dead:
            raise KilledError
        self.seen["db_calls"] += 1
        for attempt in range(ATTEMPTS):
            try:
                answer = self._attempt(process, operation, request)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                error.response["ResponseMetadata"]["RetryAttempts"] = attempt
                if code not in _RETRIED or attempt == ATTEMPTS - 1:
                    process.outages += code not in _ANSWERS
                    if self.hub.trace:
                        self.hub.trace(f"{process.name} {operation} refused: {code} after {attempt} retries")
                    raise
            except BotoCoreError:
                if attempt == ATTEMPTS - 1:
                    self.seen["db_unanswered"] += 1
                    process.outages += 1
                    if self.hub.trace:
                        self.hub.trace(f"{process.name} {operation} never answered")
                    raise
            else:
                answer["ResponseMetadata"]["RetryAttempts"] = attempt
                if attempt:
                    self.seen["db_answered_after_retry"] += 1
                return answer
            self.hub.sleep(process, self.rng.random() * 0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _attempt(self, process: Process, operation: str, request: Request) -> Answer:
        if self._total and self.rng.random() < self._total:
            return self._misfortune(process, operation, request)
        return self._deliver(process, operation, request)

    def _deliver(self, process: Process, operation: str, request: Request) -> Answer:
        hub, latency = self.hub, self._latency()
        back = self._latency()
        reading = process.readings[-1] if process.readings else 0.0
        if process.frozen_until <= hub.now and hub.is_quiet_until(hub.now + latency + back):
            hub.now += latency
            self.sender, self.sent_reading = process, reading
            try:
                return self._apply(process, operation, request)
            finally:
                hub.now += back
        box: list[Answer | Exception] = []
        self._apply_after(latency, process, operation, request, box)
        hub.sleep(process, latency + back)
        outcome = box[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _misfortune(self, process: Process, operation: str, request: Request) -> Answer:
        rng, hub = self.rng, self.hub
        kind = rng.choices(self._kinds, self._weights)[0]
        if kind == "conflict" and operation in _READS:
            return self._deliver(process, operation, request)
        self.seen[f"fault_{kind}"] += 1
        if hub.trace:
            hub.trace(f"{process.name} {operation} meets {kind}")
        if kind in {"lost_request", "lost_answer", "late"}:
            if kind == "lost_answer":
                self._apply_after(self._latency(), process, operation, request)
            elif kind == "late":
                self._apply_after(TIMEOUT_SECONDS + self._late(), process, operation, request)
            hub.sleep(process, TIMEOUT_SECONDS)
            raise never_connected() if kind == "lost_request" and rng.random() < 0.5 else never_answered()
        latency = self._latency()
        if kind == "failed" and rng.random() < 0.5:
            self.seen["fault_failed_applied"] += 1
            self._apply_after(latency, process, operation, request)
        hub.sleep(process, latency * 2)
        if kind == "failed":
            raise refusal(operation, "InternalServerError")
        whole = operation != "TransactWriteItems"
        if kind == "throttled" and (whole or rng.random() < 0.5):
            raise refusal(operation, "ProvisionedThroughputExceededException")
        if whole:
            raise refusal(operation, "TransactionConflictException")
        reasons: list[dict[str, Any]] = [{"Code": "None"} for _ in request["TransactItems"]]
        code = "TransactionConflict" if kind == "conflict" else "ThrottlingError"
        reasons[rng.randrange(len(reasons))] = {"Code": code, "Message": "Try again"}
        process.outages += 1
        raise cancellation(reasons)

    def _apply_after(
        self,
        seconds: float,
        process: Process,
        operation: str,
        request: Request,
        box: list[Answer | Exception] | None = None,
    ) -> None:
        """The request is on its way: it lands whatever becomes of its sender."""
        reading = process.readings[-1] if process.readings else 0.0

        def land() -> None:
            self.sender, self.sent_reading = process, reading
            try:
                answer: Answer | Exception = self._apply(process, operation, request)
            except ClientError as error:
                answer = error
            if box is not None:
                box.append(answer)

        self.hub.after(seconds, land)

    def _apply(self, process: Process, operation: str, request: Request) -> Answer:
        if self.hub.trace:
            self.hub.trace(f"{process.name} {operation} arrives {_short(request)}")
        return self.table.apply(operation, request, self.hub.now)

    def _latency(self) -> float:
        return 0.0005 + self.rng.random() * 0.004

    def _late(self) -> float:
        return self.rng.choice(_LATE_SECONDS) * self.rng.random()


_RETRIED = frozenset(["InternalServerError", "ProvisionedThroughputExceededException", "ThrottlingException"])

_READS = frozenset(["GetItem", "Query"])
_ANSWERS = frozenset(["ConditionalCheckFailedException", "TransactionCanceledException"])


def _short(request: Request) -> str:
    if "TransactItems" in request:
        return " + ".join(
            f"{kind} {_short(part)}" for element in request["TransactItems"] for kind, part in element.items()
        )
    key = request.get("Key") or request.get("Item") or {}
    text = request.get("UpdateExpression", "")
    values = {name: next(iter(v.values())) for name, v in request.get("ExpressionAttributeValues", {}).items()}
    return f"{key.get('SK', {}).get('S', '')} {text} IF {request.get('ConditionExpression', '')} {values}"


class Container(Protocol):
    """Holds a client over several invocations; `process` is the present one."""

    process: Process


class SimulatedClient:
    """The part of `boto3.client("dynamodb")` that storage uses, for one container."""

    def __init__(self, network: Network, container: Container) -> None:
        self._network = network
        self._container = container

    @property
    def exceptions(self) -> BaseClientExceptions:
        return client_exceptions()

    def update_item(self, **request: Any) -> Answer:  # noqa: ANN401  boto3's own form
        return self._write("UpdateItem", request)

    def put_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._write("PutItem", request)

    def delete_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._write("DeleteItem", request)

    def get_item(self, **request: Any) -> Answer:  # noqa: ANN401
        process = self._container.process
        answer = self._network.send(process, "GetItem", request)
        _show(process, answer.get("Item"))
        return answer

    def query(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._network.send(self._container.process, "Query", request)

    def transact_write_items(self, **request: Any) -> Answer:  # noqa: ANN401
        """botocore adds the token that makes its own retries of one call harmless."""
        process = self._container.process
        request.setdefault("ClientRequestToken", self._network.new_token())
        try:
            return self._network.send(process, "TransactWriteItems", request)
        except ClientError as error:
            for reason in error.response.get("CancellationReasons", ()):
                _show(process, reason.get("Item"))
            raise

    def _write(self, operation: str, request: Request) -> Answer:
        process = self._container.process
        try:
            return self._network.send(process, operation, request)
        except ClientError as error:
            _show(process, error.response.get("Item"))
            raise


def _show(process: Process, item: Any) -> None:  # noqa: ANN401  an item or None
    if item and item["SK"]["S"].startswith("USAGE#"):
        process.sights.append((process.readings[-1] if process.readings else 0.0, item))
