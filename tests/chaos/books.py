"""What really happened to every meter, written down at the wire, and judged against meters and upstream afterwards.

The table's proxy tells of each write that the engine answered with 200, whoever got that answer. So the books know
every reservation by its nonce, which call made it, and how often and at what it ended, without asking the code under
test. Reported: conservation (after every write that returns its item, and at the end against the stored meters),
over_quota, over_budget, double_bill (a second end of one reservation, or a call charged more than it can have cost),
lost_tokens (less booked than upstream told of), double_call, unreserved_call, leftover.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Item = dict[str, Any]
Key = tuple[str, str]


@dataclass(slots=True)
class End:
    """One applied end of a reservation."""

    kind: str
    """`settled` by its owner, or `swept`; `corrected` once its late owner moved the charge."""
    charged_tokens: int
    written_off_tokens: int


@dataclass(slots=True)
class Held:
    """One reservation, by its nonce."""

    call_id: str
    key: Key
    nonce: str
    amount_tokens: int
    bound_tokens: int
    ends: list[End] = field(default_factory=list)
    correction: tuple[int, int] | None = None
    """Charged and written off, as differences."""
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    call_id: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind} in call {self.call_id}: {self.message}"


class Books:
    """Of one round. Safe to use from several threads."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.violations: list[Violation] = []
        self.seen: Counter[str] = Counter()
        self.caps: dict[str, int] = {}
        """Overage cap by partition key; 0 or absent: hard."""
        self.budgets: dict[str, int] = {}
        self._tokens: set[str] = set()
        self._lock = threading.Lock()

    def report(self, kind: str, call_id: str, message: str) -> None:
        self.violations.append(Violation(kind, call_id, message))

    # ---- at the wire

    def applied(self, call_id: str, operation: str, request: Item, answer: Item) -> None:
        """The engine did this."""
        with self._lock:
            if operation == "UpdateItem" and _is_meter(request):
                self._meter_update(call_id, request, kind="settled")
                self._check_item(call_id, request, answer.get("Attributes"))
            elif operation == "TransactWriteItems":
                self._transaction(call_id, request)

    def _transaction(self, call_id: str, request: Item) -> None:
        token = request.get("ClientRequestToken")
        if token in self._tokens:
            return  # answered again by its token, not applied again
        if token:
            self._tokens.add(token)
        parts = request["TransactItems"]
        updates = [part["Update"] for part in parts if "Update" in part]
        corrects = any(update["Key"]["SK"]["S"].startswith("EXPIRED#") for update in updates)
        for update in filter(_is_meter, updates):
            if corrects:
                record = next(one for one in updates if one["Key"]["SK"]["S"].startswith("EXPIRED#"))
                self._corrected(call_id, record, update)
            else:
                self._meter_update(call_id, update, kind="swept")

    def _meter_update(self, call_id: str, request: Item, *, kind: str) -> None:
        values, expression = request.get("ExpressionAttributeValues", {}), request["UpdateExpression"]
        key = (request["Key"]["PK"]["S"], request["Key"]["SK"]["S"])
        removed = expression.partition(" REMOVE ")[2]
        if ":bigger" in values:
            text = values[":bigger"]["S"]
            held = self._hold(call_id, key, text)
            held.amount_tokens = max(held.amount_tokens, int(text.partition(":")[0]))
            self.seen["top_ups"] += 1
        elif "#r" in removed:
            self._ended(call_id, key, values, kind)
        elif "#r = :reservation" in expression:
            self._reserved(call_id, key, values[":reservation"]["S"])
        else:
            self.seen["tombstones"] += 1

    def _hold(self, call_id: str, key: Key, text: str) -> Held:
        """By its nonce. Answers reach the books in another order than the engine gave them: any may be the first."""
        amount, _, nonce, bound, *_ = text.split(":")
        return self.held.setdefault(nonce, Held(call_id, key, nonce, int(amount), int(bound)))

    def _reserved(self, call_id: str, key: Key, text: str) -> None:
        self.seen["reserved"] += 1
        held = self._hold(call_id, key, text)
        held.call_id = call_id
        held.reserved += 1
        if held.reserved > 1:
            self.report("double_bill", call_id, f"{held.nonce} was reserved {held.reserved} times")

    def _ended(self, call_id: str, key: Key, values: Item, kind: str) -> None:
        text = values[":reservation"]["S"]
        held = self._hold(call_id, key, text)
        held.amount_tokens = int(text.partition(":")[0])  # what the write was fenced by
        end = End(kind, int(values[":charged"]["N"]), int(values[":written_off"]["N"]))
        held.ends.append(end)
        self.seen[kind] += 1
        if len(held.ends) > 1:
            self.report("double_bill", held.call_id, f"{held.nonce} ended {len(held.ends)} times, last by {call_id}")
        if end.charged_tokens > held.amount_tokens:
            self.report("over_quota", held.call_id, f"{end.charged_tokens} charged of {held.amount_tokens} reserved")

    def _corrected(self, call_id: str, record: Item, meter: Item) -> None:
        nonce, values = record["Key"]["SK"]["S"].rpartition("#")[2], meter["ExpressionAttributeValues"]
        self.seen["corrected"] += 1
        held = self.held.get(nonce)
        if held is None or held.correction is not None:
            self.report("double_bill", call_id, f"{nonce} corrected again, or never reserved")
            return
        held.correction = int(values[":charged"]["N"]), int(values[":written_off"]["N"])

    def finish(self) -> None:
        """All answers have come: corrections change the ends that they correct."""
        for held in self.held.values():
            if held.correction is None:
                continue
            if [end.kind for end in held.ends] != ["swept"]:
                self.report("double_bill", held.call_id, f"corrected, but not swept: {held}")
                continue
            [end] = held.ends
            end.kind = "corrected"
            end.charged_tokens += held.correction[0]
            end.written_off_tokens += held.correction[1]

    def _check_item(self, call_id: str, request: Item, item: Item | None) -> None:
        """Conservation and quota after this very write, from the item that it returned."""
        if item is None:
            return
        self.seen["commits_checked"] += 1
        self._check_sum(call_id, item)
        remaining, cap = _number(item, "remaining"), self.caps.get(item["PK"]["S"], 0)
        if remaining < -cap:
            self.report("over_quota", call_id, f"remaining {remaining} with an overage cap of {cap}")
        budget = self.budgets.get(item["PK"]["S"])
        for name in item:
            if budget is not None and name.startswith("k#") and _number(item, name) > budget:
                self.report("over_budget", call_id, f"{name}: {item[name]['N']} of {budget}")

    def _check_sum(self, call_id: str, item: Item) -> None:
        reserved = sum(int(value["S"].split(":")[0]) for name, value in item.items() if name.startswith("r#"))
        expected = _number(item, "quota") - _number(item, "settled") - reserved
        if _number(item, "remaining") != expected:
            self.report("conservation", call_id, f"remaining {item['remaining']['N']}, by its sums {expected}")

    # ---- at the end

    def of_call(self, call_id: str) -> list[Held]:
        return [held for held in self.held.values() if held.call_id == call_id]

    def reckon_meter(self, item: Item) -> None:
        """A stored meter against everything that was done to it."""
        key = (item["PK"]["S"], item["SK"]["S"])
        mine = [held for held in self.held.values() if held.key == key]
        ends = [end for held in mine for end in held.ends]
        self._check_sum("-", item)
        booked = {
            "settled": sum(end.charged_tokens for end in ends),
            "written_off": sum(end.written_off_tokens for end in ends),
            "open_count": 0,
        }
        for name, expected in booked.items():
            if _number(item, name) != expected:
                self.report("conservation", "-", f"{key}: {name} {item[name]['N']}, by the books {expected}")
        left = [name for name in item if name.startswith("r#")]
        if left or any(not held.ends for held in mine):
            self.report("leftover", "-", f"{key}: {left} still open after the sweep")
        cap = self.caps.get(key[0], 0)
        over = _number(item, "settled") - _number(item, "quota") - cap
        if over > 0:
            self.seen["tokens_over_quota"] += over
            self.report("over_quota", "-", f"{key}: {over} beyond quota and cap")


def _is_meter(request: Item) -> bool:
    found: bool = request["Key"]["SK"]["S"].startswith("USAGE#")
    return found


def _number(item: Item, name: str) -> int:
    return int(item[name]["N"])
