"""API keys in the table: found by the hash of the key, one read each.

PK `KEY#<hash>`, SK `KEY`, Type `ApiKey`; GSI1 lists a user's keys: GSI1PK `TENANT#<t>#USER#<u>`, GSI1SK `KEY#<id>`.
The key's own end is stored as `key_expires_at`, because the table's TTL deletes items by `expires_at`: an expired key
must still be found to be told apart from an unknown one.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from tollgate.domain.api_keys import ApiKey, KeyMode
from tollgate.domain.principals import MaxTokensPolicy
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    from_epoch_seconds,
    n,
    plain,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

_SORT_KEY = "KEY"


class ApiKeys:
    """The keys of every tenant. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find_key(self, key_hash: str) -> ApiKey | None:
        """One consistent read, so that a revocation that has been answered is seen."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_key(key_hash), ConsistentRead=True
            ).get("Item")
        return None if found is None else _from_item(plain(found))

    def put_key(self, key: ApiKey) -> bool:
        """Store a new key; False when its hash is already taken, and then nothing changed."""
        try:
            with store_outages():
                self._table.client.put_item(
                    TableName=self._table.name, Item=_item(key), ConditionExpression="attribute_not_exists(PK)"
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    def revoke_key(self, key_hash: str, revoked_at: datetime) -> bool:
        """End a key for good; False when there is no such key. Repeating keeps the first instant."""
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(key_hash),
                    UpdateExpression="SET revoked_at = if_not_exists(revoked_at, :at)",
                    ConditionExpression="attribute_exists(PK)",
                    ExpressionAttributeValues={":at": n(epoch_seconds(revoked_at))},
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True


def _key(key_hash: str) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(f"KEY#{key_hash}"), "SK": s(_SORT_KEY)}


def _item(key: ApiKey) -> dict[str, AttributeValueTypeDef]:
    return _key(key.key_hash) | attributes(
        GSI1PK=user_pk(key.tenant_id, key.user_id),
        GSI1SK=f"KEY#{key.id}",
        Type="ApiKey",
        key_id=key.id,
        tenant_id=key.tenant_id,
        user_id=key.user_id,
        mode=key.mode.value,
        last_four=key.last_four,
        name=key.name or None,
        created_at=epoch_seconds(key.created_at),
        key_expires_at=_seconds(key.expires_at),
        revoked_at=_seconds(key.revoked_at),
        max_tokens_policy=key.max_tokens_policy.value,
        pepper_version=key.pepper_version,
    )


def _from_item(item: dict[str, Any]) -> ApiKey:
    return ApiKey(
        id=item["key_id"],
        key_hash=item["PK"].removeprefix("KEY#"),
        tenant_id=item["tenant_id"],
        user_id=item["user_id"],
        mode=KeyMode(item["mode"]),
        last_four=item["last_four"],
        created_at=from_epoch_seconds(item["created_at"]),
        name=item.get("name", ""),
        expires_at=_instant(item.get("key_expires_at")),
        revoked_at=_instant(item.get("revoked_at")),
        max_tokens_policy=MaxTokensPolicy(item["max_tokens_policy"]),
        pepper_version=item["pepper_version"],
    )


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else epoch_seconds(instant)


def _instant(seconds: int | None) -> datetime | None:
    return None if seconds is None else from_epoch_seconds(seconds)
