"""Users' preferences in the table: one small JSON document each, stored as its text.

PK `TENANT#<tenant>#USER#<user>`, SK `PREFERENCES`, Type `Preferences`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from botocore.exceptions import ClientError

from tollgate.domain.errors import StoreUnavailableError
from tollgate.storage.table import Table, attributes, error_code, plain, s, store_outages, user_pk
from tollgate.storage.users import IN_USE, profile_key

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef


class Preferences:
    """What apps remember for a user. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find_preferences(self, tenant_id: str, user_id: str) -> str | None:
        """The document's text as it was put last."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_key(tenant_id, user_id), ConsistentRead=True
            ).get("Item")
        return None if found is None else str(plain(found)["document"])

    def put_preferences(self, tenant_id: str, user_id: str, document: str) -> bool:
        """Replace the document; False when there is no account, or no more, and then nothing is stored.

        Both are looked at in one transaction: a deletion that comes between could not be told of this document.
        """
        item = _key(tenant_id, user_id) | attributes(Type="Preferences", document=document)
        check = {
            "TableName": self._table.name,
            "Key": profile_key(tenant_id, user_id),
            "ConditionExpression": IN_USE,
        }
        try:
            with store_outages():
                self._table.client.transact_write_items(
                    TransactItems=[
                        {"ConditionCheck": check},  # type: ignore[typeddict-item]
                        {"Put": {"TableName": self._table.name, "Item": item}},
                    ]
                )
        except ClientError as error:
            if error_code(error) != "TransactionCanceledException":
                raise
            check_result = cast("list[dict[str, str]]", error.response["CancellationReasons"])[0]
            if check_result.get("Code") != "ConditionalCheckFailed":
                raise StoreUnavailableError("The store is busy. Nothing was changed; try again.") from error
            return False
        return True

    def delete_preferences(self, tenant_id: str, user_id: str) -> None:
        """Safe to repeat."""
        with store_outages():
            self._table.client.delete_item(TableName=self._table.name, Key=_key(tenant_id, user_id))


def _key(tenant_id: str, user_id: str) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(user_pk(tenant_id, user_id)), "SK": s("PREFERENCES")}
