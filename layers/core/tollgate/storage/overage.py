"""Overage accounts, the windows that were billed, and the marks of users who are due.

`OVERAGE` under the user is the account (`tollgate.domain.overage`). One process at a time has its lease, and each write
names the version it was made from: so of two senders one stops at its next write, also one that was only slow. Beside
it stands an `OVERAGE#<start>#<invoice>` for each line that was billed, for reports. `DUE#OVERAGE#<shard>` holds the
users whose overage grew; accounts that are due by themselves are in the index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from zlib import crc32

from botocore.exceptions import ClientError

from tollgate.domain.overage import BilledLine, OverageAccount, Span, Window
from tollgate.domain.periods import UsagePeriod
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    error_code,
    from_epoch_seconds,
    ids_of,
    n,
    plain,
    query_items,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

SHARDS: Final = 4
LEASE: Final = timedelta(seconds=90)
"""Each write begins it anew. Longer than any chain of requests to Stripe between two writes."""
MARKS_KEPT: Final = timedelta(days=60)

ALL_NEW: Final[Literal["ALL_NEW"]] = "ALL_NEW"


@dataclass(frozen=True, slots=True)
class DueOverage:
    """A user to look at: because of a mark, which goes when it was done, or by the account's own time."""

    tenant_id: str
    user_id: str
    mark: tuple[str, str, int] | None = None
    """PK, SK and the instant, in milliseconds, of the mark that was seen."""


@dataclass(frozen=True, slots=True)
class BilledWindow:
    """One line of a finalized invoice, as reports tell it."""

    invoice_id: str
    start_at: datetime
    end_at: datetime
    units: int


class OverageAccounts:
    """Accounts of every tenant. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, tenant_id: str, user_id: str) -> OverageAccount | None:
        """Access pattern: a user's account (consistent read)."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_key(tenant_id, user_id), ConsistentRead=True
            ).get("Item")
        return None if found is None else _from_item(plain(found))

    def take(self, tenant_id: str, user_id: str, owner: str, now: datetime) -> OverageAccount | None:
        """The account with its lease, made where there is none yet; None: somebody else has it."""
        try:
            with store_outages():
                answer = self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(tenant_id, user_id),
                    UpdateExpression=(
                        "SET #type = :type, lease_owner = :owner, leased_until = :until,"
                        " version = if_not_exists(version, :zero) + :one"
                    ),
                    ConditionExpression="attribute_not_exists(leased_until) OR leased_until < :now",
                    ExpressionAttributeNames={"#type": "Type"},
                    ExpressionAttributeValues={
                        ":type": s("Overage"),
                        ":owner": s(owner),
                        ":until": n(epoch_seconds(now + LEASE)),
                        ":now": n(epoch_seconds(now)),
                        ":zero": n(0),
                        ":one": n(1),
                    },
                    ReturnValues=ALL_NEW,
                )
        except ClientError as error:
            if condition_failed(error) or error_code(error) == "TransactionConflictException":
                return None
            raise
        return _from_item(plain(answer["Attributes"]))

    def put(self, account: OverageAccount, now: datetime, lines: Sequence[BilledLine] = ()) -> OverageAccount | None:
        """Store the account as it is now, with what was billed, and begin the lease anew; None: it is ours no more."""
        return self._write(replace(account, version=account.version + 1), account.version, now + LEASE, lines)

    def give_back(self, account: OverageAccount) -> OverageAccount | None:
        """Store it and let others take it; None as in `put`."""
        free = replace(account, version=account.version + 1, lease_owner=None)
        return self._write(free, account.version, None, ())

    def list_billed(self, tenant_id: str, user_id: str) -> Iterator[BilledWindow]:
        """Access pattern: all that was billed to a user, by the start of the window, paged."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :user AND begins_with(SK, :billed)",
            ExpressionAttributeValues={":user": s(user_pk(tenant_id, user_id)), ":billed": s("OVERAGE#")},
        )
        yield from (_billed_of(plain(item)) for item in found)

    def list_due(self, shard: int, now: datetime) -> Iterator[DueOverage]:
        """Access pattern: accounts whose own time has come, one shard of the index, earliest first, paged."""
        found = query_items(
            self._table,
            IndexName="GSI1",
            KeyConditionExpression="GSI1PK = :shard AND GSI1SK <= :now",
            ExpressionAttributeValues={":shard": s(_due_pk(shard)), ":now": s(_due_sk(now))},
        )
        for item in found:
            tenant_id, user_id = ids_of(item)
            yield DueOverage(tenant_id, user_id)

    def _write(
        self, account: OverageAccount, seen_version: int, leased_until: datetime | None, lines: Sequence[BilledLine]
    ) -> OverageAccount | None:
        put: Any = {
            "TableName": self._table.name,
            "Item": _item(account, leased_until),
            "ConditionExpression": "version = :seen",
            "ExpressionAttributeValues": {":seen": n(seen_version)},
        }
        try:
            with store_outages():
                if lines:
                    records: list[TransactWriteItemTypeDef] = [
                        {"Put": {"TableName": self._table.name, "Item": _billed_item(account, line)}} for line in lines
                    ]
                    self._table.client.transact_write_items(TransactItems=[{"Put": put}, *records])
                else:
                    self._table.client.put_item(**put)
        except ClientError as error:
            if condition_failed(error) or error_code(error) == "TransactionCanceledException":
                return None
            raise
        return account


class OverageMarks:
    """Users whose overage grew. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put(self, tenant_id: str, user_id: str, period_id: str, now: datetime) -> None:
        """Note that a user is to be looked at. Again and again is harmless; an older mark replaces no newer one."""
        shard = crc32(user_id.encode()) % SHARDS
        item = attributes(
            PK=f"DUE#OVERAGE#{shard}",
            SK=f"{tenant_id}#{user_id}#{period_id}",
            Type="OverageMark",
            tenant_id=tenant_id,
            user_id=user_id,
            marked_ms=_milliseconds(now),
            expires_at=epoch_seconds(now + MARKS_KEPT),
        )
        try:
            with store_outages():
                self._table.client.put_item(
                    TableName=self._table.name,
                    Item=item,
                    ConditionExpression="attribute_not_exists(PK) OR marked_ms < :marked",
                    ExpressionAttributeValues={":marked": n(_milliseconds(now))},
                )
        except ClientError as error:
            if not condition_failed(error):
                raise

    def list_shard(self, shard: int) -> Iterator[DueOverage]:
        """Access pattern: all marks of one shard, paged (consistent: a mark is never passed over)."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :shard",
            ExpressionAttributeValues={":shard": s(f"DUE#OVERAGE#{shard}")},
            ConsistentRead=True,
        )
        for item in map(plain, found):
            yield DueOverage(item["tenant_id"], item["user_id"], (item["PK"], item["SK"], item["marked_ms"]))

    def remove(self, due: DueOverage) -> None:
        """The user was looked at; a mark that was put again since it was seen stays."""
        if due.mark is None:
            return
        pk, sk, marked_ms = due.mark
        try:
            with store_outages():
                self._table.client.delete_item(
                    TableName=self._table.name,
                    Key=attributes(PK=pk, SK=sk),
                    ConditionExpression="marked_ms = :seen",
                    ExpressionAttributeValues={":seen": n(marked_ms)},
                )
        except ClientError as error:
            if not condition_failed(error):
                raise


def _key(tenant_id: str, user_id: str) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(user_pk(tenant_id, user_id)), "SK": s("OVERAGE")}


def _due_pk(shard: int) -> str:
    return f"OVERAGE#DUE#{shard}"


def _due_sk(instant: datetime) -> str:
    """Sorts by time."""
    return f"{epoch_seconds(instant):012d}"


def _item(account: OverageAccount, leased_until: datetime | None) -> dict[str, AttributeValueTypeDef]:
    item = _key(account.tenant_id, account.user_id) | attributes(
        Type="Overage",
        version=account.version,
        lease_owner=account.lease_owner,
        leased_until=_seconds(leased_until),
        spans=" ".join(f"{_seconds(span.since_at)}-{_seconds(span.until_at) or ''}" for span in account.spans),
        windows=json.dumps([_window_fields(window) for window in account.windows], separators=(",", ":")),
        closed_through_at=_seconds(account.closed_through_at),
        billed_units=account.billed_units,
        written_off_units=account.written_off_units,
        counted_through=account.counted_through,
        counted_nanousd=account.counted_nanousd,
        unbillable_nanousd=account.unbillable_nanousd,
        set_aside=json.dumps(dict(account.set_aside), separators=(",", ":")),
        billed_lines=" ".join(account.lines),
        check_at=_seconds(account.check_at),
    )
    if account.check_at is not None:
        shard = crc32(account.user_id.encode()) % SHARDS
        item |= attributes(GSI1PK=_due_pk(shard), GSI1SK=_due_sk(account.check_at))
    return item


def _from_item(item: dict[str, Any]) -> OverageAccount:
    _, tenant_id, _, user_id = item["PK"].split("#", 3)
    return OverageAccount(
        tenant_id=tenant_id,
        user_id=user_id,
        version=item["version"],
        lease_owner=item.get("lease_owner"),
        spans=tuple(map(_span, item.get("spans", "").split())),
        windows=tuple(map(_window, json.loads(item.get("windows", "[]")))),
        closed_through_at=_instant(item.get("closed_through_at")),
        billed_units=item.get("billed_units", 0),
        written_off_units=item.get("written_off_units", 0),
        counted_through=item.get("counted_through", ""),
        counted_nanousd=item.get("counted_nanousd", 0),
        unbillable_nanousd=item.get("unbillable_nanousd", 0),
        set_aside=json.loads(item.get("set_aside", "{}")),
        lines=tuple(item.get("billed_lines", "").split()),
        check_at=_instant(item.get("check_at")),
    )


def _span(text: str) -> Span:
    since, _, until = text.partition("-")
    return Span(from_epoch_seconds(int(since)), from_epoch_seconds(int(until)) if until else None)


def _window_fields(window: Window) -> dict[str, str | int | bool | None]:
    return {
        "subscription_id": window.subscription_id,
        "customer_id": window.customer_id,
        "start_at": epoch_seconds(window.start_at),
        "end_at": epoch_seconds(window.end_at),
        "value": window.value,
        "attempt": window.attempt,
        "stamped_at": _seconds(window.stamped_at),
        "delivered": window.delivered,
        "sent_at": _seconds(window.sent_at),
        "compared_at": _seconds(window.compared_at),
    }


def _window(fields: dict[str, Any]) -> Window:
    instants = {name: _instant(value) for name, value in fields.items() if name.endswith("_at")}
    return Window(**{**fields, **instants})


def _billed_item(account: OverageAccount, line: BilledLine) -> dict[str, AttributeValueTypeDef]:
    return attributes(
        PK=user_pk(account.tenant_id, account.user_id),
        SK=f"OVERAGE#{UsagePeriod(line.start_at, line.end_at).id}#{line.invoice_id}",
        Type="BilledOverage",
        invoice_id=line.invoice_id,
        start_at=epoch_seconds(line.start_at),
        end_at=epoch_seconds(line.end_at),
        units=line.quantity,
    )


def _billed_of(item: dict[str, Any]) -> BilledWindow:
    return BilledWindow(
        invoice_id=item["invoice_id"],
        start_at=from_epoch_seconds(item["start_at"]),
        end_at=from_epoch_seconds(item["end_at"]),
        units=item["units"],
    )


def _milliseconds(instant: datetime) -> int:
    return epoch_seconds(instant) * 1000 + instant.microsecond // 1000


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else epoch_seconds(instant)


def _instant(seconds: int | None) -> datetime | None:
    return None if seconds is None else from_epoch_seconds(seconds)
