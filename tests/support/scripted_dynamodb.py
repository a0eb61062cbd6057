"""A DynamoDB client on the in-memory table, with misfortunes given beforehand, one a call.

For tests of one scenario; the simulator draws misfortunes at random instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from botocore.exceptions import ClientError

from tests.simulation.answers import never_answered, refusal
from tests.simulation.memory_table import Answer, MemoryTable


class Fate(Enum):
    """What becomes of one client call."""

    FINE = auto()
    ANSWER_LOST_THEN_RETRIED = auto()
    """Applied, the answer lost; the SDK sends it again and gets an answer to that."""
    APPLIED_NEVER_ANSWERED = auto()
    NEVER_ARRIVED = auto()
    ARRIVES_LATER = auto()
    """Never answered; lands when `deliver_late` is called."""
    COMES_TWICE = auto()
    """Applied and answered; the network's second copy of it lands when `deliver_late` is called."""
    CONFLICT = auto()


class ScriptedClient:
    """The part of `boto3.client("dynamodb")` that storage uses."""

    def __init__(self, table: MemoryTable, now_seconds: Callable[[], float]) -> None:
        self.table = table
        self.calls: list[str] = []
        self._now_seconds = now_seconds
        self._fates: deque[Fate] = deque()
        self._late: list[tuple[str, dict[str, Any]]] = []
        self._tokens = 0
        self._before: tuple[str, Callable[[], object]] | None = None

    def next_calls(self, *fates: Fate) -> None:
        """The fates of the coming calls, reads included; afterwards all is fine."""
        self._fates.extend(fates)

    def before_next(self, operation: str, act: Callable[[], object]) -> None:
        """Somebody else gets in between: `act` runs once, just before the next call of this operation lands."""
        self._before = operation, act

    def heal(self) -> None:
        """No more misfortunes."""
        self._fates.clear()

    def deliver_late(self) -> list[bool]:
        """Let the delayed requests land now; which of them were applied."""
        landed = []
        for operation, request in self._late:
            try:
                self.table.apply(operation, request, self._now_seconds())
            except ClientError:
                landed.append(False)
            else:
                landed.append(True)
        self._late.clear()
        return landed

    def update_item(self, **request: Any) -> Answer:  # noqa: ANN401  boto3's own form
        return self._call("UpdateItem", request)

    def put_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._call("PutItem", request)

    def delete_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._call("DeleteItem", request)

    def get_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._call("GetItem", request)

    def query(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._call("Query", request)

    def transact_write_items(self, **request: Any) -> Answer:  # noqa: ANN401
        self._tokens += 1
        return self._call("TransactWriteItems", {"ClientRequestToken": f"call-{self._tokens}", **request})

    def _call(self, operation: str, request: dict[str, Any]) -> Answer:
        self.calls.append(operation)
        if self._before is not None and self._before[0] == operation:
            (_, act), self._before = self._before, None
            act()
        fate = self._fates.popleft() if self._fates else Fate.FINE
        retries = 0
        match fate:
            case Fate.NEVER_ARRIVED:
                raise never_answered()
            case Fate.ARRIVES_LATER:
                self._late.append((operation, request))
                raise never_answered()
            case Fate.CONFLICT:
                raise refusal(operation, "TransactionConflictException")
            case Fate.APPLIED_NEVER_ANSWERED:
                self.table.apply(operation, request, self._now_seconds())
                raise never_answered()
            case Fate.ANSWER_LOST_THEN_RETRIED:
                self.table.apply(operation, request, self._now_seconds())
                retries = 1
            case Fate.COMES_TWICE:
                self._late.append((operation, request))
            case Fate.FINE:
                pass
        try:
            answer = self.table.apply(operation, request, self._now_seconds())
        except ClientError as error:
            error.response["ResponseMetadata"]["RetryAttempts"] = retries
            raise
        answer["ResponseMetadata"]["RetryAttempts"] = retries
        return answer
