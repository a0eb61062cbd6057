"""Notices of passed usage thresholds: each put once, and kept in the index until it is delivered or given up.

PK `TENANT#<t>#USER#<u>`, SK `NOTICE#<period>#<unit>#<percent>`. That the item is there is what makes a threshold pass
once in a period. While it waits it stands in the index under `NOTICES#<shard>`, by the instant at which it is due; who
takes it moves that instant on, and only one can, because the old one is the condition. The entry also says where it has
still to go, so what waits for something that is down is passed over without a write. What was given up stands under
`NOTICES#DEAD` until somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from botocore.exceptions import ClientError

from tollgate.domain.notices import QuotaShare, QuotaUnit, UsageNotice
from tollgate.domain.periods import UsagePeriod
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    from_epoch_seconds,
    n,
    plain,
    query_items,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

SHARDS: Final = 4
"""What waits is spread over this many partitions of the index: a minute's notices of millions of users."""
KEPT_AFTER_PERIOD: Final = timedelta(days=90)
LEASE: Final = timedelta(seconds=120)
"""Longer than the function may run: who has taken a notice is dead before somebody else may."""


class Channel(StrEnum):
    """A way to tell somebody, up or down as a whole."""

    WEBHOOK = "webhook"
    """To the operator."""
    MAIL = "mail"
    """To the user."""


class NoticeState(StrEnum):
    """Where a notice has got to."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    """To everybody it was meant for; to nobody, where nobody is to be told."""
    DEAD = "dead"
    """Given up after the last attempt."""


@dataclass(frozen=True, slots=True)
class DueNotice:
    """One entry of the index: the item's key, and when it is due, which is the fence of whoever takes it."""

    pk: str
    sk: str
    due: str

    @property
    def left(self) -> frozenset[Channel]:
        """Where it has still to go, as far as the entry knows: everywhere, if it does not say."""
        named = self.due.split("#")[1].split("+")
        return frozenset(channel for channel in Channel if channel in named) or frozenset(Channel)


@dataclass(frozen=True, slots=True)
class StoredNotice:
    """A notice with what is known of its delivery. `entry.due` is ours while we have it."""

    notice: UsageNotice
    entry: DueNotice
    attempts: int
    """Begun, this one included."""
    state: NoticeState = NoticeState.WAITING
    left: frozenset[Channel] = frozenset(Channel)
    """Where it has still to go."""
    waits_since: datetime | None = None
    """When it was made to wait again, after it had been given up; None: it has waited since it was noticed."""
    begun_at: datetime | None = None
    """The first attempt since then; None: nobody has taken it."""

    @property
    def webhook_sent(self) -> bool:
        return Channel.WEBHOOK not in self.left

    @property
    def mail_sent(self) -> bool:
        return Channel.MAIL not in self.left


class Notices:
    """Notices of every tenant. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put(self, notice: UsageNotice) -> bool:
        """Note that a threshold is passed; False when it was noted before in this period."""
        try:
            with store_outages():
                self._table.client.put_item(
                    TableName=self._table.name, Item=_item(notice), ConditionExpression="attribute_not_exists(PK)"
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    def list_due(self, shard: int, now: datetime) -> Iterator[DueNotice]:
        """Access pattern: what is due by now, one shard of the index, longest due first, paged."""
        yield from self._list(_waiting_pk(shard), f"{epoch_seconds(now):012d}~")

    def list_waiting(self, shard: int) -> Iterator[DueNotice]:
        """Access pattern: everything that is not delivered yet, one shard, paged."""
        yield from self._list(_waiting_pk(shard), "~")

    def list_dead(self) -> Iterator[DueNotice]:
        """Access pattern: what was given up, oldest first, paged."""
        yield from self._list(_DEAD_PK, "~")

    def find(self, entry: DueNotice) -> StoredNotice | None:
        """Access pattern: one notice (consistent read)."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_key_of(entry), ConsistentRead=True
            ).get("Item")
        return None if found is None else _from_item(plain(found))

    def list_of_user(self, tenant_id: str, user_id: str) -> Iterator[StoredNotice]:
        """Access pattern: all notices of a user that are still kept, by period, paged."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :user AND begins_with(SK, :notice)",
            ExpressionAttributeValues={":user": s(user_pk(tenant_id, user_id)), ":notice": s("NOTICE#")},
        )
        yield from (_from_item(plain(item)) for item in found)

    def take(self, entry: DueNotice, now: datetime) -> StoredNotice | None:
        """Begin an attempt: nobody else takes it until the lease is over. None when somebody was first."""
        changed = self._change(
            entry,
            "SET GSI1SK = :until, attempts = attempts + :one, begun_at = if_not_exists(begun_at, :now)",
            "GSI1SK = :seen AND GSI1PK <> :dead",
            {
                ":until": s(_due(now + LEASE, entry.left, entry.pk)),
                ":one": n(1),
                ":now": n(epoch_seconds(now)),
                ":dead": s(_DEAD_PK),
            },
        )
        return None if changed is None else _from_item(plain(changed))

    def finish(self, taken: StoredNotice) -> bool:
        """All are told; False when the attempt took so long that somebody else has begun another."""
        return (
            self._change(
                taken.entry,
                "SET #state = :state, webhook_sent = :webhook, mail_sent = :mail REMOVE GSI1PK, GSI1SK",
                "GSI1SK = :seen",
                _sent(taken) | {":state": s(NoticeState.DELIVERED)},
                names={"#state": "state"},
            )
            is not None
        )

    def put_off(self, taken: StoredNotice, until: datetime) -> bool:
        """Not all are told: due again from `until` on, with as many attempts as `taken` says; False as in `finish`."""
        values = _sent(taken) | {
            ":until": s(_due(until, taken.left, taken.entry.pk)),
            ":attempts": n(taken.attempts),
        }
        update = "SET GSI1SK = :until, attempts = :attempts, webhook_sent = :webhook, mail_sent = :mail"
        return self._change(taken.entry, update, "GSI1SK = :seen", values) is not None

    def bury(self, taken: StoredNotice) -> bool:
        """That was the last attempt; False as in `finish`."""
        return (
            self._change(
                taken.entry,
                "SET #state = :state, GSI1PK = :dead, webhook_sent = :webhook, mail_sent = :mail",
                "GSI1SK = :seen",
                _sent(taken) | {":state": s(NoticeState.DEAD), ":dead": s(_DEAD_PK)},
                names={"#state": "state"},
            )
            is not None
        )

    def revive(self, entry: DueNotice, now: datetime) -> bool:
        """A dead notice waits again, with all its attempts before it; False when it is not dead any more."""
        return (
            self._change(
                entry,
                "SET #state = :state, GSI1PK = :waiting, GSI1SK = :until, attempts = :none, waits_since = :now"
                " REMOVE begun_at",
                "GSI1SK = :seen AND GSI1PK = :dead",
                {
                    ":state": s(NoticeState.WAITING),
                    ":waiting": s(_waiting_pk(_shard(entry.pk))),
                    ":until": s(_due(now, entry.left, entry.pk)),
                    ":now": n(epoch_seconds(now)),
                    ":none": n(0),
                    ":dead": s(_DEAD_PK),
                },
                names={"#state": "state"},
            )
            is not None
        )

    def _list(self, index_pk: str, last: str) -> Iterator[DueNotice]:
        found = query_items(
            self._table,
            IndexName="GSI1",
            KeyConditionExpression="GSI1PK = :shard AND GSI1SK <= :last",
            ExpressionAttributeValues={":shard": s(index_pk), ":last": s(last)},
        )
        for item in found:
            yield DueNotice(item["PK"]["S"], item["SK"]["S"], item["GSI1SK"]["S"])

    def _change(
        self,
        entry: DueNotice,
        update: str,
        condition: str,
        values: dict[str, AttributeValueTypeDef],
        names: dict[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """The item as it is then; None when it is not where it was seen."""
        given: dict[str, Any] = {"ExpressionAttributeNames": names} if names else {}
        try:
            with store_outages():
                answer = self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key_of(entry),
                    UpdateExpression=update,
                    ConditionExpression=condition,
                    ExpressionAttributeValues=values | {":seen": s(entry.due)},
                    ReturnValues="ALL_NEW",
                    **given,
                )
        except ClientError as error:
            if condition_failed(error):
                return None
            raise
        return dict(answer["Attributes"])


_DEAD_PK: Final = "NOTICES#DEAD"


def due_at(entry: DueNotice) -> datetime:
    return from_epoch_seconds(int(entry.due.partition("#")[0]))


def _key_of(entry: DueNotice) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(entry.pk), "SK": s(entry.sk)}


def _sk(notice: UsageNotice) -> str:
    return f"NOTICE#{notice.period.id}#{notice.share.unit}#{notice.threshold_percent:03d}"


def _waiting_pk(shard: int) -> str:
    return f"NOTICES#{shard}"


def _shard(pk: str) -> int:
    return crc32(pk.encode()) % SHARDS


def _due(instant: datetime, left: frozenset[Channel], pk: str) -> str:
    """Sorts by time."""
    channels = "+".join(sorted(left))
    return f"{epoch_seconds(instant):012d}#{channels}#{pk}"


def _sent(taken: StoredNotice) -> dict[str, AttributeValueTypeDef]:
    return attributes(**{":webhook": taken.webhook_sent, ":mail": taken.mail_sent})


def _item(notice: UsageNotice) -> dict[str, AttributeValueTypeDef]:
    pk = user_pk(notice.tenant_id, notice.user_id)
    return attributes(
        PK=pk,
        SK=_sk(notice),
        Type="Notice",
        GSI1PK=_waiting_pk(_shard(pk)),
        GSI1SK=_due(notice.noticed_at, frozenset(Channel), pk),
        period_start_at=epoch_seconds(notice.period.start_at),
        period_end_at=epoch_seconds(notice.period.end_at),
        plan_id=notice.plan_id,
        unit=notice.share.unit.value,
        threshold_percent=notice.threshold_percent,
        used=notice.share.used,
        quota=notice.share.quota,
        noticed_at=epoch_seconds(notice.noticed_at),
        highest=notice.highest,
        attempts=0,
        state=NoticeState.WAITING.value,
        webhook_sent=False,
        mail_sent=False,
        expires_at=epoch_seconds(notice.period.end_at + KEPT_AFTER_PERIOD),
    )


def _from_item(item: dict[str, Any]) -> StoredNotice:
    _, tenant_id, _, user_id = item["PK"].split("#", 3)
    notice = UsageNotice(
        tenant_id=tenant_id,
        user_id=user_id,
        period=UsagePeriod(from_epoch_seconds(item["period_start_at"]), from_epoch_seconds(item["period_end_at"])),
        plan_id=item["plan_id"],
        threshold_percent=item["threshold_percent"],
        share=QuotaShare(QuotaUnit(item["unit"]), item["used"], item["quota"]),
        noticed_at=from_epoch_seconds(item["noticed_at"]),
        highest=item["highest"],
    )
    return StoredNotice(
        notice,
        DueNotice(item["PK"], item["SK"], item.get("GSI1SK", "")),
        attempts=item["attempts"],
        state=NoticeState(item["state"]),
        left=frozenset(channel for channel in Channel if not item[f"{channel}_sent"]),
        waits_since=_instant(item.get("waits_since")),
        begun_at=_instant(item.get("begun_at")),
    )


def _instant(seconds: int | None) -> datetime | None:
    return None if seconds is None else from_epoch_seconds(seconds)
