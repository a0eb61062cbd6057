"""Users in the table: who has which plan since when.

PK `TENANT#<tenant>#USER#<user>`, SK `PROFILE`, Type `User`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from tollgate.domain.principals import Profile
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    from_epoch_seconds,
    item_of,
    plain,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef


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


def profile_key(tenant_id: str, user_id: str) -> dict[str, AttributeValueTypeDef]:
    """Names a profile, also for the writes that must see or move it together with another item."""
    return {"PK": s(user_pk(tenant_id, user_id)), "SK": s("PROFILE")}


def _item(profile: Profile) -> dict[str, AttributeValueTypeDef]:
    anchor_at = epoch_seconds(profile.anchor_at)
    return profile_key(profile.tenant_id, profile.user_id) | attributes(
        Type="User",
        plan_id=profile.plan_id,
        plan_version=profile.plan_version,
        anchor_at=anchor_at,
        email=profile.email,
        paid=profile.paid,
        # A plan change moves the anchor; the creation stays.
        created_at=anchor_at,
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
    )
