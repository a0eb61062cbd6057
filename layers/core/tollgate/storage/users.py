"""Users in the table: who has which plan since when, and what they tell about themselves.

PK `TENANT#<tenant>#USER#<user>`, SK `PROFILE`, Type `User`; in the index under `USERS#<shard>` by when they were made,
for operators who look for somebody. A deleted user's item stays, without the person: it has `deleted_at`, and keeps a
token that is still valid from making the account anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from botocore.exceptions import ClientError

from tollgate.domain.principals import Person, Profile
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    flag,
    from_epoch_seconds,
    ids_of,
    item_of,
    n,
    plain,
    query_items,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef


IN_USE: Final = "attribute_exists(PK) AND attribute_not_exists(deleted_at)"
"""The condition of every write about a person, so that none comes back after a deletion."""

_PERSONAL: Final = ("display_name", "locale", "time_zone")


SHARDS: Final = 16
"""The index of users is spread over this many partitions."""


class Users:
    """The profiles of every tenant's users. All operations raise StoreUnavailableError when the table is silent."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find_profile(self, tenant_id: str, user_id: str) -> Profile | None:
        """One consistent read: a plan change that has been answered is seen."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=profile_key(tenant_id, user_id), ConsistentRead=True
            ).get("Item")
        return None if found is None else _from_item(tenant_id, user_id, plain(found))

    def list_shard(self, shard: int, *, after: str = "") -> Iterator[tuple[str, str, str]]:
        """Access pattern: (place, tenant id, user id) of all users, one shard of the index, oldest first, paged.

        `after`: begin behind this place. Deleted users are among them, as what they used and cost still counts.
        """
        found = query_items(
            self._table,
            IndexName="GSI1",
            KeyConditionExpression="GSI1PK = :shard AND GSI1SK > :after",
            # A key may not be empty text; every place begins with a digit.
            ExpressionAttributeValues={":shard": s(_shard_pk(shard)), ":after": s(after or "!")},
        )
        for item in found:
            tenant_id, user_id = ids_of(item)
            yield item["GSI1SK"]["S"], tenant_id, user_id

    def create_profile(self, profile: Profile) -> Profile:
        """Store a new user's profile; the stored one when somebody else was first. Safe to repeat."""
        try:
            with store_outages():
                self._table.client.put_item(
                    TableName=self._table.name,
                    Item=_item(profile),
                    ConditionExpression="attribute_not_exists(PK)",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except ClientError as error:
            if not condition_failed(error):
                raise
            return _from_item(profile.tenant_id, profile.user_id, plain(item_of(error)))
        return profile

    def find_person(self, tenant_id: str, user_id: str) -> Person:
        """What the user has told; nothing where there is no such user."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=profile_key(tenant_id, user_id), ConsistentRead=True
            ).get("Item", {})
        item = plain(found)
        return Person(*(item.get(name) for name in _PERSONAL))

    def put_person(self, tenant_id: str, user_id: str, person: Person) -> bool:
        """Replace all that the user has told; False when there is no account, or no more."""
        told = dict(zip(_PERSONAL, (person.display_name, person.locale, person.time_zone), strict=True))
        given = {name: value for name, value in told.items() if value is not None}
        clauses = []
        if given:
            clauses.append("SET " + ", ".join(f"{name} = :{name}" for name in given))
        if given.keys() != told.keys():
            clauses.append("REMOVE " + ", ".join(name for name in told if name not in given))
        return self._change(tenant_id, user_id, " ".join(clauses), {f":{name}": s(given[name]) for name in given})

    def put_email(self, tenant_id: str, user_id: str, email: str, *, name: str | None = None) -> bool:
        """Store an address that its owner has confirmed; False when there is no account, or no more.

        `name` is taken for the display name where none is stored.
        """
        update, values = "SET email = :email", {":email": s(email)}
        if name is not None:
            update, values = f"{update}, display_name = if_not_exists(display_name, :name)", values | {":name": s(name)}
        return self._change(tenant_id, user_id, f"{update} REMOVE unverified", values)

    def mark_unverified(self, tenant_id: str, user_id: str) -> bool:
        """Note that nobody has confirmed the address, until `put_email`; False when there is no account, or no more."""
        return self._change(tenant_id, user_id, "SET unverified = :yes", {":yes": flag(True)})

    def bury_profile(self, tenant_id: str, user_id: str, deleted_at: datetime) -> None:
        """Delete the person and leave the account's shell. Repeating keeps the first instant; no profile, no shell."""
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=profile_key(tenant_id, user_id),
                    UpdateExpression="SET deleted_at = if_not_exists(deleted_at, :at) REMOVE email, "
                    + ", ".join(_PERSONAL),
                    ConditionExpression="attribute_exists(PK)",
                    ExpressionAttributeValues={":at": n(epoch_seconds(deleted_at))},
                )
        except ClientError as error:
            if not condition_failed(error):
                raise

    def _change(self, tenant_id: str, user_id: str, update: str, values: dict[str, AttributeValueTypeDef]) -> bool:
        given: dict[str, Any] = {"ExpressionAttributeValues": values} if values else {}
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=profile_key(tenant_id, user_id),
                    UpdateExpression=update,
                    ConditionExpression=IN_USE,
                    **given,
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True


def entitle(table: Table, profile: Profile, seen_version: int) -> TransactWriteItemTypeDef:
    """The write that makes `profile` what the user may do, in place of the version that was seen."""
    update = (
        "SET plan_id = :plan, plan_version = :next, anchor_at = :anchor, trial = :trial, overage_blocked = :blocked,"
        " paid = :paid"
    )
    values = {
        ":plan": s(profile.plan_id),
        ":next": n(profile.plan_version),
        ":seen": n(seen_version),
        ":anchor": n(epoch_seconds(profile.anchor_at)),
        ":trial": flag(profile.trial),
        ":blocked": flag(profile.overage_blocked),
        ":paid": flag(profile.paid),
    }
    if profile.overage_cap_cents is None:
        update += " REMOVE overage_cap_cents"
    else:
        update += ", overage_cap_cents = :cents"
        values[":cents"] = n(profile.overage_cap_cents)
    return {
        "Update": {
            "TableName": table.name,
            "Key": profile_key(profile.tenant_id, profile.user_id),
            "UpdateExpression": update,
            "ConditionExpression": "plan_version = :seen",
            "ExpressionAttributeValues": values,
        }
    }


def profile_key(tenant_id: str, user_id: str) -> dict[str, AttributeValueTypeDef]:
    """Names a profile, also for the writes that must see or move it together with another item."""
    return {"PK": s(user_pk(tenant_id, user_id)), "SK": s("PROFILE")}


def _shard_pk(shard: int) -> str:
    return f"USERS#{shard}"


def _place(profile: Profile) -> str:
    """Sorts by when the user was made; never written again, so that changing a plan does not touch the index."""
    return f"{epoch_seconds(profile.created_at or profile.anchor_at):012d}#{profile.tenant_id}#{profile.user_id}"


def _item(profile: Profile) -> dict[str, AttributeValueTypeDef]:
    return profile_key(profile.tenant_id, profile.user_id) | attributes(
        Type="User",
        GSI1PK=_shard_pk(crc32(profile.user_id.encode()) % SHARDS),
        GSI1SK=_place(profile),
        plan_id=profile.plan_id,
        plan_version=profile.plan_version,
        anchor_at=epoch_seconds(profile.anchor_at),
        email=profile.email,
        paid=profile.paid,
        unverified=None if profile.email_verified else True,
        # A subscription moves the anchor; the creation stays.
        created_at=epoch_seconds(profile.created_at or profile.anchor_at),
        trial=True if profile.trial else None,
        overage_blocked=True if profile.overage_blocked else None,
        overage_cap_cents=profile.overage_cap_cents,
    )


def _from_item(tenant_id: str, user_id: str, item: dict[str, Any]) -> Profile:
    return Profile(
        tenant_id=tenant_id,
        user_id=user_id,
        plan_id=item["plan_id"],
        plan_version=item["plan_version"],
        anchor_at=from_epoch_seconds(item["anchor_at"]),
        email=item.get("email"),
        paid=item["paid"],
        email_verified="unverified" not in item,
        deleted_at=from_epoch_seconds(item["deleted_at"]) if "deleted_at" in item else None,
        created_at=from_epoch_seconds(item["created_at"]) if "created_at" in item else None,
        trial=item.get("trial", False),
        overage_blocked=item.get("overage_blocked", False),
        overage_cap_cents=item.get("overage_cap_cents"),
    )
