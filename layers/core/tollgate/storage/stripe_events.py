"""Stripe's events in the table: which are done, who is at one now, and what they left to look at.

An event is marked done after its effects, never before: what marks first loses events in a crash. Until then it is
leased to one delivery, so that a duplicate at the same moment waits its turn; a lease that its owner did not live to
give back ends by time. Effects bear being done twice, because a lease can end under an owner that is merely slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Any, Final, Literal

from botocore.exceptions import ClientError

from tollgate.domain.subscriptions import RemoteRefund
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    item_of,
    n,
    plain,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

LEASE_SECONDS: Final = 90
"""Longer than the function can run, so that a lease ends only after its owner."""
KEPT_SECONDS: Final = 30 * 24 * 3600
"""Stripe repeats a delivery for three days, and lets an operator resend for thirty."""

_ALL_OLD: Final[Literal["ALL_OLD"]] = "ALL_OLD"


class Part(StrEnum):
    """Each is done once, by whoever takes it."""

    DELIVERY = "DELIVERY"
    """What happens before Stripe is answered."""
    WORK = "WORK"
    """What was left to the queue."""


class Start(Enum):
    """What became of an attempt to take an event."""

    NEW = auto()
    """It is ours, until the lease ends."""
    BUSY = auto()
    """Another delivery is at it."""
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Lease:
    """One part of an event in its owner's hands; `owner` is never used twice."""

    event_id: str
    part: Part
    owner: str


class StripeEvents:
    """Events of the deployment's own Stripe account. All operations raise StoreUnavailableError."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def begin(self, lease: Lease, now: datetime) -> Start:
        """Take a part of an event, if it is neither done nor in other hands."""
        seconds = epoch_seconds(now)
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(lease),
                    UpdateExpression=(
                        "SET #type = :type, lease_owner = :owner, leased_until = :until, expires_at = :end"
                    ),
                    ConditionExpression=(
                        # nobody has it, or its owner did not come back
                        "attribute_not_exists(done_at) AND (attribute_not_exists(leased_until) OR leased_until < :now)"
                    ),
                    ExpressionAttributeNames={"#type": "Type"},
                    ExpressionAttributeValues={
                        ":type": _item(lease)["Type"],
                        ":owner": s(lease.owner),
                        ":until": n(seconds + LEASE_SECONDS),
                        ":end": n(seconds + KEPT_SECONDS),
                        ":now": n(seconds),
                    },
                    ReturnValuesOnConditionCheckFailure=_ALL_OLD,
                )
        except ClientError as error:
            if not condition_failed(error):
                raise
            found = plain(item_of(error))
            if "done_at" in found:
                return Start.DONE
            # An answer that was lost: the SDK's second request finds what its first has written.
            return Start.NEW if found.get("lease_owner") == lease.owner else Start.BUSY
        return Start.NEW

    def finish(self, lease: Lease, now: datetime) -> None:
        """Mark the part as done. Harmless when the lease has ended: whoever took it does the same."""
        self._end(lease, "SET done_at = :at REMOVE leased_until, lease_owner", {":at": n(epoch_seconds(now))})

    def abandon(self, lease: Lease) -> None:
        """Give the part back undone, so that the next delivery need not wait for the lease to end."""
        self._end(lease, "REMOVE leased_until, lease_owner", {})

    def record_refund(self, tenant_id: str, user_id: str, refund: RemoteRefund) -> bool:
        """Record money that went back to a user; False when it was recorded before."""
        item = attributes(
            PK=user_pk(tenant_id, user_id),
            SK=f"REFUND#{refund.id}",
            Type="Refund",
            refund_id=refund.id,
            charge_id=refund.charge_id,
            amount_cents=refund.amount_cents,
            currency=refund.currency,
            refunded_at=epoch_seconds(refund.created_at),
        )
        return self._put_once(item)

    def record_meter_error(self, event_id: str, event_type: str, meter_id: str | None, now: datetime) -> bool:
        """Record that Stripe refused reported usage, for the reconciliation of overage; False when it was before."""
        item = attributes(
            PK=f"STRIPE_EVENT#{event_id}",
            SK="METER_ERROR",
            Type="MeterError",
            event_type=event_type,
            meter_id=meter_id,
            noted_at=epoch_seconds(now),
        )
        return self._put_once(item)

    def _put_once(self, item: dict[str, AttributeValueTypeDef]) -> bool:
        try:
            with store_outages():
                self._table.client.put_item(
                    TableName=self._table.name, Item=item, ConditionExpression="attribute_not_exists(PK)"
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    def _end(self, lease: Lease, update: str, values: dict[str, AttributeValueTypeDef]) -> None:
        request: dict[str, Any] = {"ExpressionAttributeValues": values | {":owner": s(lease.owner)}}
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(lease),
                    UpdateExpression=update,
                    ConditionExpression="lease_owner = :owner",
                    **request,
                )
        except ClientError as error:
            if not condition_failed(error):
                raise


def _item(lease: Lease) -> dict[str, AttributeValueTypeDef]:
    return attributes(PK=f"STRIPE_EVENT#{lease.event_id}", SK=lease.part.value, Type="StripeEvent")


def _key(lease: Lease) -> dict[str, AttributeValueTypeDef]:
    item = _item(lease)
    return {name: item[name] for name in ("PK", "SK")}
