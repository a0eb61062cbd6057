"""One DynamoDB table in memory: the real requests in, the real answers out, each applied in one step.

It keeps what the ledger leans on: conditions and updates on one item or on a transaction's items are atomic, a
refused write changes nothing, an equal ClientRequestToken within ten minutes changes nothing twice. Requests it does
not know are refused with `ExpressionError`, never half understood. `test_agreement.py` compares it with a real engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.simulation.answers import metadata, refusal
from tests.simulation.expressions import (
    ExpressionError,
    Item,
    Names,
    Value,
    Values,
    compile_condition,
    compile_update,
)

Request = dict[str, Any]
Answer = dict[str, Any]

TOKEN_SECONDS = 600
"""How long DynamoDB remembers a ClientRequestToken."""
_NOTHING: dict[str, Any] = {}

_KNOWN = {
    "UpdateItem": {"UpdateExpression"},
    "PutItem": {"Item"},
    "DeleteItem": set(),
    "ConditionCheck": set(),
}
_COMMON = {
    "TableName",
    "Key",
    "ConditionExpression",
    "ExpressionAttributeNames",
    "ExpressionAttributeValues",
    "ReturnValues",
    "ReturnValuesOnConditionCheckFailure",
    "ReturnConsumedCapacity",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One item of one commit."""

    pk: str
    sk: str
    old: Item | None
    new: Item | None


Watcher = Callable[[list[Change]], None]


def item_size(item: Item) -> int:
    """Bytes by DynamoDB's rules: names and strings in UTF-8, numbers one byte per two digits and one more."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Value) -> int:
    ((kind, content),) = value.items()
    if kind == "S":
        return len(content.encode())
    if kind == "N":
        digits: str = content.lstrip("-").lstrip("0")
        return (len(digits.rstrip("0")) + 1) // 2 + 1 + int(content[0] == "-")
    if kind == "BOOL":
        return 1
    raise ExpressionError(f"no size known for {kind}")


def write_units(old: Item | None, new: Item | None) -> int:
    """Standard write: one unit per KB begun, of the larger of the two."""
    size = max(item_size(old) if old else 0, item_size(new) if new else 0)
    return max(1, -(-size // 1024))


class MemoryTable:
    """Partitions of sorted items. `watcher` sees every commit, at the instant of the commit."""

    def __init__(self, name: str, watcher: Watcher | None = None) -> None:
        self.name = name
        self.partitions: dict[str, dict[str, Item]] = {}
        self.watcher = watcher
        self._tokens: dict[str, tuple[float, str]] = {}

    def find(self, pk: str, sk: str) -> Item | None:
        return self.partitions.get(pk, _NOTHING).get(sk)

    def items(self) -> Iterable[tuple[str, str, Item]]:
        for pk, partition in self.partitions.items():
            for sk, item in partition.items():
                yield pk, sk, item

    def apply(self, operation: str, request: Request, now_seconds: float) -> Answer:
        """Run one request to its end. Raises the ClientError that the service would answer with."""
        if operation == "UpdateItem" or operation == "PutItem" or operation == "DeleteItem":
            return self._write_one(operation, request)
        if operation == "TransactWriteItems":
            return self._write_all(request, now_seconds)
        if operation == "GetItem":
            return self._get(request)
        if operation == "Query":
            return self._query(request)
        raise ExpressionError(f"unknown operation {operation}")

    # Writes

    def _write_one(self, operation: str, request: Request) -> Answer:
        change, refused = self._outcome(operation, request)
        if refused:
            extra: dict[str, Any] = {}
            if request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and change.old is not None:
                extra["Item"] = dict(change.old)
            raise refusal(operation, "ConditionalCheckFailedException", **extra)
        self._commit([change])
        answer: Answer = {"ResponseMetadata": metadata()}
        returned = request.get("ReturnValues", "NONE")
        if returned == "ALL_NEW" and change.new is not None:
            answer["Attributes"] = dict(change.new)
        elif returned == "ALL_OLD":
            if change.old is not None:
                answer["Attributes"] = dict(change.old)
        elif returned != "NONE":
            raise ExpressionError(f"ReturnValues {returned} is not known here")
        if request.get("ReturnConsumedCapacity") == "TOTAL":
            units = float(write_units(change.old, change.new))
            answer["ConsumedCapacity"] = {"TableName": self.name, "CapacityUnits": units}
        return answer

    def _write_all(self, request: Request, now_seconds: float) -> Answer:
        unknown = set(request) - {"TransactItems", "ClientRequestToken", "ReturnConsumedCapacity"}
        if unknown:
            raise ExpressionError(f"unknown parameters {unknown}")
        if self._is_replay(request, now_seconds):
            return {"ResponseMetadata": metadata()}
        outcomes = []
        for element in request["TransactItems"]:
            ((kind, part),) = element.items()
            operation = {"Update": "UpdateItem", "Put": "PutItem", "Delete": "DeleteItem"}.get(kind, kind)
            outcomes.append((*self._outcome(operation, part), part))
        keys = [(change.pk, change.sk) for change, _, _ in outcomes]
        if len(set(keys)) != len(keys) or len(keys) > 100:
            raise ExpressionError("a transaction names each item once, and at most 100")
        if any(refused for _, refused, _ in outcomes):
            raise _cancelled(outcomes)
        token = request.get("ClientRequestToken")
        if token is not None:
            self._tokens[token] = (now_seconds, repr(request["TransactItems"]))
        self._commit([change for change, _, part in outcomes if change.new is not change.old])
        return {"ResponseMetadata": metadata()}

    def _is_replay(self, request: Request, now_seconds: float) -> bool:
        token = request.get("ClientRequestToken")
        if token is None:
            return False
        if not 1 <= len(token) <= 36:
            raise ExpressionError(f"ClientRequestToken of {len(token)} characters")
        known = self._tokens.get(token)
        if known is None or now_seconds - known[0] >= TOKEN_SECONDS:
            return False
        if known[1] != repr(request["TransactItems"]):
            raise refusal("TransactWriteItems", "IdempotentParameterMismatchException")
        return True

    def _outcome(self, operation: str, request: Request) -> tuple[Change, bool]:
        """What the write would change, and whether its condition refuses it."""
        unknown = request.keys() - _COMMON - _KNOWN[operation]
        if unknown or request["TableName"] != self.name:
            raise ExpressionError(f"unknown parameters {unknown} or table {request['TableName']}")
        key = request["Item" if operation == "PutItem" else "Key"]
        pk, sk = key["PK"]["S"], key["SK"]["S"]
        old = self.partitions.get(pk, _NOTHING).get(sk)
        names, values = (
            request.get("ExpressionAttributeNames", _NOTHING),
            request.get("ExpressionAttributeValues", _NOTHING),
        )
        condition_text, update_text = request.get("ConditionExpression"), request.get("UpdateExpression")
        condition = compile_condition(condition_text) if condition_text else None
        update = compile_update(update_text) if update_text else None
        _check_placeholders(
            condition.placeholders if condition else (), update.placeholders if update else (), names, values
        )
        if update:
            update.check_paths(names)
        if condition and not condition.test(old or _NOTHING, names, values):
            return Change(pk, sk, old, old), True
        if operation == "ConditionCheck":
            return Change(pk, sk, old, old), False
        if operation == "DeleteItem":
            return Change(pk, sk, old, None), False
        if operation == "PutItem":
            return Change(pk, sk, old, dict(key)), False
        if update is None:
            raise ExpressionError("an update without UpdateExpression")
        new = update.apply(old if old is not None else {"PK": key["PK"], "SK": key["SK"]}, names, values)
        if new.get("PK") != key["PK"] or new.get("SK") != key["SK"]:
            raise ExpressionError("an update cannot touch the key")
        return Change(pk, sk, old, new), False

    def _commit(self, changes: list[Change]) -> None:
        for change in changes:
            partition = self.partitions.setdefault(change.pk, {})
            if change.new is None:
                partition.pop(change.sk, None)
            else:
                partition[change.sk] = change.new
        if self.watcher is not None:
            self.watcher(changes)

    # Reads

    def _get(self, request: Request) -> Answer:
        unknown = request.keys() - {"TableName", "Key", "ConsistentRead", "ReturnConsumedCapacity"}
        if unknown:
            raise ExpressionError(f"unknown parameters {unknown}")
        item = self.find(request["Key"]["PK"]["S"], request["Key"]["SK"]["S"])
        answer: Answer = {"ResponseMetadata": metadata()}
        if item is not None:
            answer["Item"] = dict(item)
        return answer

    def _query(self, request: Request) -> Answer:
        """Whole answers in one page unless a Limit is given; a megabyte's end is storage's own tests' business."""
        unknown = request.keys() - {
            "TableName",
            "IndexName",
            "KeyConditionExpression",
            "ExpressionAttributeNames",
            "ExpressionAttributeValues",
            "ConsistentRead",
            "ScanIndexForward",
            "Limit",
            "ExclusiveStartKey",
            "ReturnConsumedCapacity",
        }
        if unknown:
            raise ExpressionError(f"unknown parameters {unknown}")
        names: Names = request.get("ExpressionAttributeNames", _NOTHING)
        values: Values = request.get("ExpressionAttributeValues", _NOTHING)
        condition = compile_condition(request["KeyConditionExpression"])
        sort_key = f"{request['IndexName']}SK" if "IndexName" in request else "SK"
        found = [item for _, _, item in self.items() if sort_key in item and condition.test(item, names, values)]
        backward = not request.get("ScanIndexForward", True)
        found.sort(key=lambda item: item[sort_key]["S"], reverse=backward)
        if "ExclusiveStartKey" in request:
            last = request["ExclusiveStartKey"][sort_key]["S"]
            found = [item for item in found if (item[sort_key]["S"] < last if backward else item[sort_key]["S"] > last)]
        page = [dict(item) for item in found[: request.get("Limit")]]
        answer = {"Items": page, "Count": len(page), "ScannedCount": len(page), "ResponseMetadata": metadata()}
        # As a real engine: it stops at the limit without a look at whether anything follows.
        if page and len(page) == request.get("Limit"):
            keys = {"PK", "SK"} | ({"GSI1PK", "GSI1SK"} if "IndexName" in request else set())
            answer["LastEvaluatedKey"] = {name: page[-1][name] for name in keys}
        return answer


def _check_placeholders(first: Iterable[str], second: Iterable[str], names: Names, values: Values) -> None:
    """Undefined and unused placeholders are errors, as in DynamoDB."""
    wanted = {*first, *second}
    if len(wanted) != len(names) + len(values) or not (wanted >= names.keys() and wanted >= values.keys()):
        raise ExpressionError(f"placeholders {sorted(wanted)} against {sorted(names)} and {sorted(values)}")


def _cancelled(outcomes: list[tuple[Change, bool, Request]]) -> Exception:
    reasons: list[dict[str, Any]] = []
    for change, refused, part in outcomes:
        reason: dict[str, Any] = {"Code": "None"}
        if refused:
            reason = {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed"}
            if part.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and change.old is not None:
                reason["Item"] = dict(change.old)
        reasons.append(reason)
    return cancellation(reasons)


def cancellation(reasons: list[dict[str, Any]]) -> Exception:
    """TransactionCanceledException for these reasons."""
    codes = ", ".join(reason["Code"] for reason in reasons)
    message = f"Transaction cancelled, please refer cancellation reasons for specific reasons [{codes}]"
    return refusal("TransactWriteItems", "TransactionCanceledException", message, CancellationReasons=reasons)
