"""Roll-ups: what each day of a user came to, kept when its request records are gone.

A day is one item (`DAY#2026-11-20`) with its rows as JSON text. A day of so many models and keys that its rows do not
fit goes on in further items, which belong to one write of the day: they are written first, and count from the moment
the day's own item names their generation. So a day changes at once or not at all, however large it is. What a writer
that died leaves behind is named by nothing, and read by nobody.

`ROLLUPS` holds the instant before which all days of the user are complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.rollups import DayRollUp, RowKey, RowKind, Sums
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
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

ROWS_BYTES_AT_MOST: Final = 300_000
"""Of one item; DynamoDB's own limit is 400 KB, names and keys included."""
MOST_LOOKS: Final = 5


class DayRollUps:
    """Reads and writes roll-ups. Every method raises StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table, *, rows_bytes_at_most: int = ROWS_BYTES_AT_MOST) -> None:
        self._table = table
        self._rows_bytes_at_most = rows_bytes_at_most

    def find_mark(self, tenant_id: str, user_id: str) -> datetime | None:
        """Access pattern: the instant before which all of a user's days are complete (consistent read)."""
        with store_outages():
            answer = self._table.client.get_item(
                TableName=self._table.name, Key=attributes(**_mark_key(tenant_id, user_id)), ConsistentRead=True
            )
        return _instant_of(plain(answer["Item"])["through_at"]) if "Item" in answer else None

    def move_mark(self, tenant_id: str, user_id: str, through_at: datetime) -> None:
        """It only moves on; who comes late with less changes nothing."""
        self._put(
            attributes(**_mark_key(tenant_id, user_id), Type="RollUps", through_at=_microseconds(through_at)),
            ConditionExpression="attribute_not_exists(PK) OR through_at < :through",
            ExpressionAttributeValues={":through": n(_microseconds(through_at))},
        )

    def find_day(self, tenant_id: str, user_id: str, day: date) -> DayRollUp | None:
        """Access pattern: one day of a user (consistent reads)."""
        return next(iter(self.list_days(tenant_id, user_id, day, day)), None)

    def list_days(self, tenant_id: str, user_id: str, first: date, last: date) -> list[DayRollUp]:
        """Access pattern: a user's days that have use, both ends included, oldest first (consistent reads).

        A day that was written anew between two of our reads is read again.
        """
        items = list(self._items(user_pk(tenant_id, user_id), _day_sk(first), f"{_day_sk(last)}~"))
        parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for item in items:
            if item["Type"] == "DayPart":
                parts.setdefault((item["day"], item["generation"]), []).append(item)
        return [
            self._day(tenant_id, user_id, head, parts.get((head["day"], head["generation"]), []))
            for head in items
            if head["Type"] == "Day"
        ]

    def put_day(self, tenant_id: str, user_id: str, rolled: DayRollUp, seen: DayRollUp | None) -> bool:
        """Replace the day that was seen (None: none); False when another write came first."""
        first, *others = _texts(rolled.rows, self._rows_bytes_at_most)
        for number, text in enumerate(others, 1):
            self._put_part(tenant_id, user_id, rolled, number, text)
        head = attributes(
            PK=user_pk(tenant_id, user_id),
            SK=_day_sk(rolled.day),
            Type="Day",
            day=rolled.day.isoformat(),
            through_at=_microseconds(rolled.through_at),
            generation=rolled.generation,
            parts=len(others),
            rows=first,
        )
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(PK)"}
        if seen is not None:
            condition = {
                "ConditionExpression": "generation = :seen OR generation = :own",
                "ExpressionAttributeValues": {":seen": s(seen.generation), ":own": s(rolled.generation)},
            }
        done = self._put(head, **condition)
        if not done:
            # An earlier attempt of this very call may have landed although nobody was told.
            stands = self.find_day(tenant_id, user_id, rolled.day)
            done = stands is not None and stands.generation == rolled.generation
        loser = seen if done else rolled
        if loser is not None:
            self._drop_parts(user_pk(tenant_id, user_id), f"{_day_sk(rolled.day)}#{loser.generation}#")
        return done

    def _put_part(self, tenant_id: str, user_id: str, rolled: DayRollUp, number: int, text: str) -> None:
        part = attributes(
            PK=user_pk(tenant_id, user_id),
            SK=f"DAY#{rolled.day}#{rolled.generation}#{number:04d}",
            Type="DayPart",
            day=rolled.day.isoformat(),
            generation=rolled.generation,
            rows=text,
        )
        self._put(part, ConditionExpression="attribute_not_exists(PK)")

    def _drop_parts(self, pk: str, prefix: str) -> None:
        for item in list(self._items(pk, prefix, f"{prefix}~")):
            with store_outages():
                self._table.client.delete_item(
                    TableName=self._table.name,
                    Key=attributes(PK=pk, SK=item["SK"]),
                    # Also when somebody else has dropped it meanwhile; never a day's own item.
                    ConditionExpression="attribute_not_exists(PK) OR generation = :generation",
                    ExpressionAttributeValues={":generation": s(item["generation"])},
                )

    def _day(self, tenant_id: str, user_id: str, head: dict[str, Any], parts: list[dict[str, Any]]) -> DayRollUp:
        for _ in range(MOST_LOOKS):
            if len(parts) == head["parts"]:
                return DayRollUp(
                    day=date.fromisoformat(head["day"]),
                    through_at=_instant_of(head["through_at"]),
                    rows=dict(row for item in (head, *parts) for row in _rows(item["rows"])),
                    generation=head["generation"],
                )
            sk = _day_sk(date.fromisoformat(head["day"]))
            items = list(self._items(user_pk(tenant_id, user_id), sk, f"{sk}~"))
            [head] = [item for item in items if item["Type"] == "Day"]
            parts = [item for item in items if item["Type"] == "DayPart" and item["generation"] == head["generation"]]
        raise StoreUnavailableError("The usage store is busy.")

    def _items(self, pk: str, first_sk: str, last_sk: str) -> Iterator[dict[str, Any]]:
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :pk AND SK BETWEEN :first AND :last",
            ExpressionAttributeValues=attributes(**{":pk": pk, ":first": first_sk, ":last": last_sk}),
            ConsistentRead=True,
        )
        yield from map(plain, found)

    def _put(self, item: dict[str, AttributeValueTypeDef], **condition: Any) -> bool:  # noqa: ANN401  boto3's own form
        """One conditional put; False when its condition refused it."""
        with store_outages():
            try:
                self._table.client.put_item(TableName=self._table.name, Item=item, **condition)
            except ClientError as error:
                if condition_failed(error):
                    return False
                raise
        return True


def _day_sk(day: date) -> str:
    return f"DAY#{day}"


def _mark_key(tenant_id: str, user_id: str) -> dict[str, str]:
    return {"PK": user_pk(tenant_id, user_id), "SK": "ROLLUPS"}


def _microseconds(instant: datetime) -> int:
    return int(instant.timestamp()) * 1_000_000 + instant.microsecond


def _instant_of(microseconds: int) -> datetime:
    seconds, rest = divmod(microseconds, 1_000_000)
    return from_epoch_seconds(seconds).replace(microsecond=rest)


def _texts(rows: Mapping[RowKey, Sums], bytes_at_most: int) -> list[str]:
    """The rows as JSON lists, none longer than this; one at least."""
    texts: list[list[str]] = [[]]
    size = 2
    for text in (_row_text(key, sums) for key, sums in rows.items()):
        if texts[-1] and size + len(text) + 1 > bytes_at_most:
            texts.append([])
            size = 2
        texts[-1].append(text)
        size += len(text) + 1  # ASCII: characters are bytes
    return [f"[{','.join(row_texts)}]" for row_texts in texts]


def _row_text(key: RowKey, sums: Sums) -> str:
    values = list(sums.values)
    while values and values[-1] == 0:
        values.pop()
    fields = (
        key.kind.value,
        key.period_id,
        key.key_id,
        key.model,
        key.served_model,
        key.service_tier,
        key.inference_geo,
        key.speed,
        int(key.long_prompt),
    )
    return json.dumps([fields, values], separators=(",", ":"))


def _rows(text: str) -> Iterable[tuple[RowKey, Sums]]:
    for (kind, period_id, key_id, model, served, tier, geo, speed, long_prompt), values in json.loads(text):
        key = RowKey(RowKind(kind), period_id, key_id, model, served, tier, geo, speed, bool(long_prompt))
        yield key, Sums(*values)
