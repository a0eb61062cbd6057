"""What the open routes remember of strangers: rates, failed sign-ins, known addresses. Keyed by a keyed hash only.

PK `DOOR#<digest>`, SK `RATE`, `FAILURES` or `KNOWN`; every item ends by TTL. Each write is one conditional UpdateItem,
whose refusal tells how things stand, so no decision needs a read. An item past its `expires_at` counts as absent,
whether DynamoDB has deleted it yet or not. A write repeated by the SDK after a lost answer counts twice: a stranger may
get a little less than the limit then, never more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from tollgate.storage.table import Table, attributes, condition_failed, item_of, n, plain, store_outages

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

KEEP_SECONDS: Final = 60
"""An item outlives its meaning by this, so that clocks which differ a little agree on it."""


@dataclass(frozen=True, slots=True)
class RateState:
    """GCRA's theoretical arrival time after a step, or the one that refused it."""

    admitted: bool
    tat_ms: int


@dataclass(frozen=True, slots=True)
class Failures:
    """Attempts that have not succeeded, the one under way included."""

    count: int
    free_at_seconds: int
    """From this epoch second on the next attempt is allowed."""
    forgotten: bool = False
    """Too long ago to count."""


class RateLimits:
    """Every method raises StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def step(self, digest: str, *, now_ms: int, interval_ms: int, tolerance_ms: int, idle: bool) -> RateState:
        """One GCRA step, in the form for an idle rate (its time has passed) or for a busy one.

        Refused by the other form's condition, too: then the time in the answer tells which form fits.
        """
        latest_ms = now_ms + tolerance_ms
        values = {":now": n(now_ms)}
        if idle:
            condition, tat = "attribute_not_exists(tat) OR tat <= :now", ":next"
            values[":next"] = n(now_ms + interval_ms)
        else:
            condition, tat = "tat > :now AND tat <= :latest", "tat + :interval"
            values |= {":latest": n(latest_ms), ":interval": n(interval_ms)}
        item, admitted = self._update(
            _rate(digest, (latest_ms + interval_ms) // 1000 + KEEP_SECONDS),
            f"tat = {tat}, expires_at = :end",
            condition,
            values,
        )
        return RateState(admitted, item.get("tat", 0))

    def claim_first(self, digest: str, *, now_seconds: int, free_at_seconds: int, end_seconds: int) -> Failures | None:
        """Count an attempt where none is remembered; None when it was counted, else what is remembered."""
        return self._claim(
            digest,
            "failures = :one",
            "attribute_not_exists(PK) OR expires_at <= :now",
            {":one": n(1), ":now": n(now_seconds), ":free": n(free_at_seconds)},
            now_seconds,
            end_seconds,
        )

    def claim_free(self, digest: str, *, below: int, now_seconds: int, end_seconds: int) -> Failures | None:
        """Count one of the attempts that cost no wait, `below` so many; None when it was counted."""
        return self._claim(
            digest,
            "failures = failures + :one",
            "failures < :below AND expires_at > :now",
            {":one": n(1), ":below": n(below), ":now": n(now_seconds), ":free": n(0)},
            now_seconds,
            end_seconds,
        )

    def claim_waited(
        self, digest: str, seen: Failures, *, now_seconds: int, free_at_seconds: int, end_seconds: int
    ) -> Failures | None:
        """Count the one attempt that follows `seen`, whose wait is over; None when it was counted."""
        return self._claim(
            digest,
            "failures = :next",
            "failures = :seen AND free_at = :seen_free AND expires_at > :now",
            {
                ":next": n(seen.count + 1),
                ":seen": n(seen.count),
                ":seen_free": n(seen.free_at_seconds),
                ":free": n(free_at_seconds),
                ":now": n(now_seconds),
            },
            now_seconds,
            end_seconds,
        )

    def forget_failures(self, digest: str) -> None:
        """A success: nothing has failed here."""
        zero = {":zero": n(0)}
        self._update(_failures(digest), "failures = :zero, free_at = :zero", "attribute_exists(PK)", zero)

    def take_back_claim(self, digest: str) -> None:
        """A success: the attempt that was counted for it was no failure; the others stay."""
        values = {":zero": n(0), ":one": n(1)}
        self._update(_failures(digest), "failures = failures - :one, free_at = :zero", "failures > :zero", values)

    def is_known(self, digest: str, now_seconds: int) -> bool:
        """Access pattern: whether a mailbox's owner has signed in from this address lately (consistent read)."""
        with store_outages():
            answer = self._table.client.get_item(
                TableName=self._table.name, Key=_key(_known(digest)), ConsistentRead=True
            )
        return "Item" in answer and plain(answer["Item"])["expires_at"] > now_seconds

    def make_known(self, digest: str, *, end_seconds: int, renew_before_seconds: int) -> None:
        """Remember an address until `end_seconds`; left alone while it is remembered beyond `renew_before_seconds`."""
        self._update(
            _known(digest, end_seconds),
            "expires_at = :end",
            "attribute_not_exists(PK) OR expires_at < :soon",
            {":soon": n(renew_before_seconds)},
        )

    def _claim(
        self,
        digest: str,
        count: str,
        condition: str,
        values: dict[str, AttributeValueTypeDef],
        now_seconds: int,
        end_seconds: int,
    ) -> Failures | None:
        item, claimed = self._update(
            _failures(digest, end_seconds),
            f"{count}, free_at = :free, expires_at = :end",
            condition,
            values,
        )
        if claimed:
            return None
        if not item:
            return Failures(0, 0, forgotten=True)
        return Failures(item["failures"], item["free_at"], forgotten=item["expires_at"] <= now_seconds)

    def _update(
        self,
        entity: dict[str, AttributeValueTypeDef],
        assignments: str,
        condition: str,
        values: dict[str, AttributeValueTypeDef],
    ) -> tuple[dict[str, Any], bool]:
        """The item as it stands afterwards, and whether the write was applied."""
        given = {":type": entity["Type"], **values}
        if ":end" in assignments:
            given[":end"] = entity["expires_at"]
        try:
            with store_outages():
                answer = self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(entity),
                    UpdateExpression=f"SET #type = :type, {assignments}",
                    ConditionExpression=condition,
                    ExpressionAttributeNames={"#type": "Type"},
                    ExpressionAttributeValues=given,
                    ReturnValues="ALL_NEW",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except ClientError as error:
            if not condition_failed(error):
                raise
            return plain(item_of(error)), False
        return plain(answer["Attributes"]), True


def _rate(digest: str, end_seconds: int = 0) -> dict[str, AttributeValueTypeDef]:
    """How far one subject's rate is used up."""
    return attributes(PK=f"DOOR#{digest}", SK="RATE", Type="OpenRouteRate", expires_at=end_seconds)


def _failures(digest: str, end_seconds: int = 0) -> dict[str, AttributeValueTypeDef]:
    """One subject's attempts that have not succeeded."""
    return attributes(PK=f"DOOR#{digest}", SK="FAILURES", Type="SignInFailures", expires_at=end_seconds)


def _known(digest: str, end_seconds: int = 0) -> dict[str, AttributeValueTypeDef]:
    """An address from which a mailbox's owner has signed in."""
    return attributes(PK=f"DOOR#{digest}", SK="KNOWN", Type="KnownAddress", expires_at=end_seconds)


def _key(entity: dict[str, AttributeValueTypeDef]) -> dict[str, AttributeValueTypeDef]:
    return {name: entity[name] for name in ("PK", "SK")}
