"""Activity: which meters had a call in which hour, so that the hourly run looks at those and at no others.

A mark is a fact with a key of its own, put at most once an hour by each process that serves the user, and gone after
three days. A run that comes later than that finds what crashed calls left open when it closes the period.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from zlib import crc32

from botocore.exceptions import ClientError

from tollgate.domain.ledger import MeterKey, MeterName
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
)

SHARDS: Final = 16
"""Each hour's marks are spread over this many partitions."""
KEPT_SECONDS: Final = 3 * 24 * 3600


class Activity:
    """Reads and writes marks. Every method raises StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def note(self, key: MeterKey, hour: datetime) -> None:
        """One unconditional put; the same mark twice is the same item. `hour`: its first instant."""
        mark = attributes(
            PK=_hour_pk(hour, crc32(key.user_id.encode()) % SHARDS),
            SK=f"{key.tenant_id}#{key.user_id}#{key.period.id}",
            Type="ActiveMeter",
            expires_at=epoch_seconds(hour) + KEPT_SECONDS,
        )
        with store_outages():
            self._table.client.put_item(TableName=self._table.name, Item=mark)

    def list_active(self, hour: datetime, shard: int) -> Iterator[MeterName]:
        """Access pattern: meters that had a call in the hour, one shard, paged (consistent read)."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :hour",
            ExpressionAttributeValues={":hour": s(_hour_pk(hour, shard))},
            ConsistentRead=True,
        )
        for item in found:
            user, _, period_id = item["SK"]["S"].rpartition("#")
            tenant_id, _, user_id = user.partition("#")
            yield MeterName(tenant_id, user_id, period_id)

    def find_swept(self, shard: int) -> datetime | None:
        """Access pattern: the hour up to which, itself included, a shard needs no further look."""
        with store_outages():
            answer = self._table.client.get_item(
                TableName=self._table.name, Key=attributes(**_swept_key(shard)), ConsistentRead=True
            )
        return from_epoch_seconds(plain(answer["Item"])["hour"]) if "Item" in answer else None

    def note_swept(self, shard: int, hour: datetime) -> None:
        """It only moves on; who comes late with less changes nothing."""
        try:
            with store_outages():
                self._table.client.put_item(
                    TableName=self._table.name,
                    Item=attributes(**_swept_key(shard), Type="SweptActivity", hour=epoch_seconds(hour)),
                    ConditionExpression="attribute_not_exists(PK) OR #hour < :hour",
                    ExpressionAttributeNames={"#hour": "hour"},
                    ExpressionAttributeValues={":hour": n(epoch_seconds(hour))},
                )
        except ClientError as error:
            if not condition_failed(error):
                raise


def _hour_pk(hour: datetime, shard: int) -> str:
    return f"ACTIVE#{_hour_text(hour)}#{shard}"


def _hour_text(hour: datetime) -> str:
    hour_utc = hour.astimezone(UTC)
    return f"{hour_utc:%Y-%m-%dT%H}"


def _swept_key(shard: int) -> dict[str, str]:
    return {"PK": f"ACTIVE#SWEPT#{shard}", "SK": "SWEPT"}
