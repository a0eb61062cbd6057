"""Subscribers in the table: what we remember about a user as a payer, and whose a customer of Stripe's is.

- the subscriber, PK `TENANT#<t>#USER#<u>`, SK `SUBSCRIBER`: every write of it is conditional and moves `version`, so
  who decides from what was read writes only if nothing was written since. While something is due by time alone, it
  stands in the index under `DUE#<shard>`;
- the customer, PK `CUSTOMER#<id>`: written once, in one transaction with the subscriber, before Stripe is asked for
  anything. An event finds its user by this and by nothing that a client can choose. It stays when the customer is
  deleted, so that late events of it still find their user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from botocore.exceptions import ClientError

from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.subscriptions import (
    Interval,
    OpenCheckout,
    RemoteSubscription,
    Subscriber,
    SubscriptionStatus,
)
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    error_code,
    flag,
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

TURN: Final = timedelta(seconds=40)
"""A turn to change the plan ends by itself; longer than the function that has it may run."""
DUE_SHARDS: Final = 16
"""What is due by time is spread over this many partitions of the index."""

_ABSENT: Final = "attribute_not_exists(PK)"


@dataclass(frozen=True, slots=True)
class DueSubscriber:
    """One entry of the index of what is due."""

    tenant_id: str
    user_id: str


class Subscriptions:
    """Subscribers of every tenant. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, tenant_id: str, user_id: str) -> Subscriber:
        """One consistent read; version 0 where nothing is stored yet."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_key(tenant_id, user_id), ConsistentRead=True
            ).get("Item")
        return Subscriber(tenant_id, user_id) if found is None else _from_item(tenant_id, user_id, plain(found))

    def find_customer(self, customer_id: str) -> tuple[str, str] | None:
        """(tenant id, user id) of a customer that we made; None for every other customer of the Stripe account."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_customer_key(customer_id), ConsistentRead=True
            ).get("Item")
        if found is None:
            return None
        item = plain(found)
        return item["tenant_id"], item["user_id"]

    def claim_customer(self, tenant_id: str, user_id: str, customer_id: str) -> Subscriber:
        """Bind a customer to its user, both ways or not at all; the subscriber as it is then, maybe with another one.

        Raises StoreUnavailableError also when the customer belongs to another user, which only a foreign write can do.
        """
        customer = _customer_key(customer_id) | attributes(Type="Customer", tenant_id=tenant_id, user_id=user_id)
        put: TransactWriteItemTypeDef = {
            "Put": {"TableName": self._table.name, "Item": customer, "ConditionExpression": _ABSENT}
        }
        update: TransactWriteItemTypeDef = {
            "Update": {
                "TableName": self._table.name,
                "Key": _key(tenant_id, user_id),
                "UpdateExpression": (
                    "SET #type = :type, customer_id = :customer, version = if_not_exists(version, :zero) + :one"
                ),
                "ConditionExpression": "attribute_not_exists(customer_id)",
                "ExpressionAttributeNames": {"#type": "Type"},
                "ExpressionAttributeValues": {
                    ":type": s("Subscriber"),
                    ":customer": s(customer_id),
                    ":zero": n(0),
                    ":one": n(1),
                },
            }
        }
        try:
            with store_outages():
                self._table.client.transact_write_items(TransactItems=[update, put])
        except ClientError as error:
            if error_code(error) != "TransactionCanceledException":
                raise
            bound = self.find(tenant_id, user_id)
            if bound.customer_id is None:
                raise StoreUnavailableError("The store is busy. Nothing was changed; try again.") from error
            return bound
        return self.find(tenant_id, user_id)

    def put(self, subscriber: Subscriber) -> bool:
        """Write what follows from a reading, whose version it still carries; False: the subscriber has moved on."""
        try:
            with store_outages():
                self._table.client.put_item(**self._conditional_put(subscriber))
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    def part_of_transaction(self, subscriber: Subscriber) -> TransactWriteItemTypeDef:
        """The same write, to be done together with another or not at all."""
        put: Any = self._conditional_put(subscriber)
        return {"Put": put}

    def claim_checkout(self, tenant_id: str, user_id: str, checkout: OpenCheckout, *, instead_of: str | None) -> bool:
        """Take the one place for an open checkout; `instead_of`: the claim that was seen there, None: nobody's.

        False when another one stands there by now, or nobody has claimed a customer for the user.
        """
        fields = attributes(**{name: value for name, value in _checkout_fields(checkout).items() if value is not None})
        gone = [name for name in _CHECKOUT if name not in fields]
        update = f"SET version = version + :one, {', '.join(f'{name} = :{name}' for name in fields)}"
        if gone:
            update += f" REMOVE {', '.join(gone)}"
        values = {f":{name}": value for name, value in fields.items()}
        if instead_of is None:
            condition = "attribute_exists(customer_id) AND attribute_not_exists(checkout_claim)"
        else:
            condition, values[":seen"] = "attribute_exists(customer_id) AND checkout_claim = :seen", s(instead_of)
        return self._change(tenant_id, user_id, update, condition, values)

    def note_checkout(self, tenant_id: str, user_id: str, claim: str, session_id: str, url: str) -> bool:
        """Remember the session that Stripe made for a claim; False when the claim is gone."""
        values = {":claim": s(claim), ":session": s(session_id), ":url": s(url)}
        return self._change(
            tenant_id,
            user_id,
            "SET checkout_session_id = :session, checkout_url = :url, version = version + :one",
            "checkout_claim = :claim",
            values,
        )

    def free_checkout(self, tenant_id: str, user_id: str, claim: str) -> bool:
        """Give the place back; False when somebody did."""
        return self._change(
            tenant_id,
            user_id,
            f"SET version = version + :one REMOVE {', '.join(_CHECKOUT)}",
            "checkout_claim = :claim",
            {":claim": s(claim)},
        )

    def take_turn(self, tenant_id: str, user_id: str, owner: str, now: datetime) -> bool:
        """True for one at a time: that one may change the plan, until the turn is given back or over.

        False too for who has no customer, and so no plan to change.
        """
        return self._change(
            tenant_id,
            user_id,
            "SET version = version + :one, changer = :owner, changing_until_at = :until",
            "attribute_exists(customer_id) AND (attribute_not_exists(changer) OR changing_until_at <= :now)",
            {":owner": s(owner), ":until": n(epoch_seconds(now + TURN)), ":now": n(epoch_seconds(now))},
        )

    def give_back_turn(self, tenant_id: str, user_id: str, owner: str) -> bool:
        """Let the next one change the plan; False when the turn was over and somebody else's by now."""
        return self._change(
            tenant_id,
            user_id,
            "SET version = version + :one REMOVE changer, changing_until_at",
            "changer = :owner",
            {":owner": s(owner)},
        )

    def take_first_key(self, tenant_id: str, user_id: str) -> bool:
        """True for exactly one caller, once the first key is due: that one may make it."""
        return self._change(
            tenant_id,
            user_id,
            "SET version = version + :one, first_key_issued = :yes REMOVE first_key_due",
            "first_key_due = :yes",
            {":yes": flag(True)},
        )

    def give_back_first_key(self, tenant_id: str, user_id: str) -> bool:
        """The key that was taken could not be made: it is due again."""
        return self._change(
            tenant_id,
            user_id,
            "SET version = version + :one, first_key_due = :yes REMOVE first_key_issued",
            "first_key_issued = :yes",
            {":yes": flag(True)},
        )

    def list_due(self, shard: int, now: datetime) -> Iterator[DueSubscriber]:
        """Access pattern: whose time has come, one shard of the index, earliest first, paged."""
        found = query_items(
            self._table,
            IndexName="GSI1",
            KeyConditionExpression="GSI1PK = :shard AND GSI1SK <= :now",
            ExpressionAttributeValues={":shard": s(_due_pk(shard)), ":now": s(_due_sk(now))},
        )
        for item in found:
            tenant_id, user_id = ids_of(item)
            yield DueSubscriber(tenant_id, user_id)

    def _conditional_put(self, subscriber: Subscriber) -> dict[str, Any]:
        put: dict[str, Any] = {"TableName": self._table.name, "Item": _item(subscriber, subscriber.version + 1)}
        if subscriber.version == 0:
            return put | {"ConditionExpression": "attribute_not_exists(PK)"}
        return put | {
            "ConditionExpression": "version = :seen",
            "ExpressionAttributeValues": {":seen": n(subscriber.version)},
        }

    def _change(
        self, tenant_id: str, user_id: str, update: str, condition: str, values: dict[str, AttributeValueTypeDef]
    ) -> bool:
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(tenant_id, user_id),
                    UpdateExpression=update,
                    ConditionExpression=condition,
                    ExpressionAttributeValues=values | {":one": n(1)},
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True


_CHECKOUT: Final = (
    "checkout_claim",
    "checkout_plan_id",
    "checkout_interval",
    "checkout_expires_at",
    "checkout_session_id",
    "checkout_url",
)


def _key(tenant_id: str, user_id: str) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(user_pk(tenant_id, user_id)), "SK": s("SUBSCRIBER")}


def _customer_key(customer_id: str) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(f"CUSTOMER#{customer_id}"), "SK": s("CUSTOMER")}


def _due_pk(shard: int) -> str:
    return f"DUE#{shard}"


def _due_sk(instant: datetime) -> str:
    """Sorts by time."""
    return f"{epoch_seconds(instant):012d}"


def _item(subscriber: Subscriber, version: int) -> dict[str, AttributeValueTypeDef]:
    return attributes(
        PK=user_pk(subscriber.tenant_id, subscriber.user_id),
        SK="SUBSCRIBER",
        Type="Subscriber",
        version=version,
        customer_id=subscriber.customer_id,
        past_due_since_at=_seconds(subscriber.past_due_since_at),
        dispute_ids=" ".join(sorted(subscriber.dispute_ids)) or None,
        first_key_due=subscriber.first_key_due or None,
        first_key_issued=subscriber.first_key_issued or None,
        had_trial=subscriber.had_trial or None,
        changer=subscriber.changer,
        changing_until_at=_seconds(subscriber.changing_until_at),
        synced_at=_seconds(subscriber.synced_at),
        check_at=_seconds(subscriber.check_at),
        **_checkout_fields(subscriber.checkout),
        **_subscription_fields(subscriber.subscription),
        **_due_fields(subscriber.user_id, subscriber.check_at),
    )


def _from_item(tenant_id: str, user_id: str, item: dict[str, Any]) -> Subscriber:
    return Subscriber(
        tenant_id=tenant_id,
        user_id=user_id,
        version=item["version"],
        customer_id=item.get("customer_id"),
        subscription=_subscription_of(item),
        past_due_since_at=_instant(item.get("past_due_since_at")),
        dispute_ids=frozenset(item.get("dispute_ids", "").split()),
        checkout=_checkout_of(item),
        first_key_due=item.get("first_key_due", False),
        first_key_issued=item.get("first_key_issued", False),
        had_trial=item.get("had_trial", False),
        changer=item.get("changer"),
        changing_until_at=_instant(item.get("changing_until_at")),
        synced_at=_instant(item.get("synced_at")),
        check_at=_instant(item.get("check_at")),
    )


def _due_fields(user_id: str, check_at: datetime | None) -> dict[str, str]:
    """The entry in the index of what is due."""
    if check_at is None:
        return {}
    return {"GSI1PK": _due_pk(crc32(user_id.encode()) % DUE_SHARDS), "GSI1SK": _due_sk(check_at)}


def _checkout_fields(checkout: OpenCheckout | None) -> dict[str, str | int | None]:
    if checkout is None:
        return {}
    return {
        "checkout_claim": checkout.claim,
        "checkout_plan_id": checkout.plan_id,
        "checkout_interval": checkout.interval.value,
        "checkout_expires_at": epoch_seconds(checkout.expires_at),
        "checkout_session_id": checkout.session_id,
        "checkout_url": checkout.url,
    }


def _checkout_of(item: dict[str, Any]) -> OpenCheckout | None:
    if "checkout_claim" not in item:
        return None
    return OpenCheckout(
        claim=item["checkout_claim"],
        plan_id=item["checkout_plan_id"],
        interval=Interval(item["checkout_interval"]),
        expires_at=from_epoch_seconds(item["checkout_expires_at"]),
        session_id=item.get("checkout_session_id"),
        url=item.get("checkout_url"),
    )


def _subscription_fields(subscription: RemoteSubscription | None) -> dict[str, str | int | None]:
    if subscription is None:
        return {}
    return {
        "subscription_id": subscription.id,
        "subscription_customer_id": subscription.customer_id,
        "subscription_status": subscription.status.value,
        "subscribed_at": epoch_seconds(subscription.created_at),
        "plan_id": subscription.plan_id,
        "plan_interval": None if subscription.interval is None else subscription.interval.value,
        "plan_item_id": subscription.plan_item_id,
        "period_start_at": _seconds(subscription.period_start_at),
        "period_end_at": _seconds(subscription.period_end_at),
        "metered_item_id": subscription.metered_item_id,
        "metered_start_at": _seconds(subscription.metered_start_at),
        "metered_end_at": _seconds(subscription.metered_end_at),
        "anchor_at": epoch_seconds(subscription.anchor_at),
        "trial_end_at": _seconds(subscription.trial_end_at),
        "cancel_at": _seconds(subscription.cancel_at),
        "pending_plan_id": subscription.pending_plan_id,
        "pending_interval": None if subscription.pending_interval is None else subscription.pending_interval.value,
        "pending_at": _seconds(subscription.pending_at),
        "schedule_id": subscription.schedule_id,
        "owed_since_at": _seconds(subscription.owed_since_at),
        "trial_unpaid": subscription.trial_unpaid or None,
    }


def _subscription_of(item: dict[str, Any]) -> RemoteSubscription | None:
    if "subscription_id" not in item:
        return None
    return RemoteSubscription(
        id=item["subscription_id"],
        customer_id=item["subscription_customer_id"],
        status=SubscriptionStatus(item["subscription_status"]),
        created_at=from_epoch_seconds(item["subscribed_at"]),
        plan_id=item.get("plan_id"),
        interval=Interval(item["plan_interval"]) if "plan_interval" in item else None,
        plan_item_id=item.get("plan_item_id"),
        period_start_at=_instant(item.get("period_start_at")),
        period_end_at=_instant(item.get("period_end_at")),
        metered_item_id=item.get("metered_item_id"),
        metered_start_at=_instant(item.get("metered_start_at")),
        metered_end_at=_instant(item.get("metered_end_at")),
        anchor_at=from_epoch_seconds(item["anchor_at"]),
        trial_end_at=_instant(item.get("trial_end_at")),
        cancel_at=_instant(item.get("cancel_at")),
        pending_plan_id=item.get("pending_plan_id"),
        pending_interval=Interval(item["pending_interval"]) if "pending_interval" in item else None,
        pending_at=_instant(item.get("pending_at")),
        schedule_id=item.get("schedule_id"),
        owed_since_at=_instant(item.get("owed_since_at")),
        trial_unpaid=item.get("trial_unpaid", False),
    )


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else epoch_seconds(instant)


def _instant(seconds: int | None) -> datetime | None:
    return None if seconds is None else from_epoch_seconds(seconds)
