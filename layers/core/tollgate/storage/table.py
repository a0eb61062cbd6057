"""The one table: its client, how values are spelled in it, and what an outage of it means.

Only `tollgate.storage` imports this. Keys are built by the entity modules beside it; the part that several
entities share (`user_pk`) is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError  # noqa: A004  botocore's own name

from tollgate.domain.errors import StoreUnavailableError

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

CONDITION_FAILED: Final = "ConditionalCheckFailedException"

_OUTAGE_CODES: Final = frozenset(
    {
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)


class Table:
    """The client and the table's name, handed to every entity's store."""

    def __init__(self, client: DynamoDBClient, name: str) -> None:
        self.client = client
        self.name = name


def hot_path_client(
    region: str | None = None,
    *,
    session: botocore.session.Session | None = None,
    max_pool_connections: int = 4,
    attempts: int = 3,
) -> DynamoDBClient:
    """A DynamoDB client that answers or fails within about seven seconds, so that a caller is told in time.

    Three `attempts` of one second to connect and one to read each: a single-item call takes milliseconds, and
    botocore's defaults (60 s, four attempts) would hold a paid Lambda. Retries are safe only because every write
    carries its own id and nonce. Connections are kept alive between invocations.

    It is boto3's own client, made by botocore without boto3 around it: 3 MB and 18 ms of CPU less at a cold start. Two
    settings save a third of the steps of each call. Requests are not compared with botocore's model of the service:
    they are typed here, and DynamoDB checks them itself. And the User-Agent is fixed: botocore's own is put together
    twice for each call, a character at a time.
    """
    maker = session or botocore.session.get_session()
    config = Config(
        connect_timeout=1,
        read_timeout=1,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=max_pool_connections,
        tcp_keepalive=True,
        parameter_validation=False,
        user_agent=maker.user_agent(),
    )
    return cast("DynamoDBClient", maker.create_client("dynamodb", region_name=region, config=config))


@contextmanager
def store_outages() -> Iterator[None]:
    """Turn "the table did not answer" into StoreUnavailableError; let every other error through.

    A failed condition is an answer, a ValidationException is our own mistake: neither is an outage.
    """
    try:
        yield
    except (ConnectionError, HTTPClientError) as error:
        raise StoreUnavailableError("The usage store did not answer. Nothing was charged; try again.") from error
    except ClientError as error:
        if is_outage(error):
            raise StoreUnavailableError("The usage store is busy. Nothing was charged; try again.") from error
        raise


def query_items(
    table: Table,
    **query: Any,  # noqa: ANN401  boto3's own form
) -> Iterator[dict[str, AttributeValueTypeDef]]:
    """All that a query finds, as stored, a page at a time as they are reached. Raises StoreUnavailableError."""
    while True:
        with store_outages():
            answer = table.client.query(TableName=table.name, **query)
        yield from answer["Items"]
        if "LastEvaluatedKey" not in answer:
            return
        query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def is_outage(error: ClientError) -> bool:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or error_code(error) in _OUTAGE_CODES


def error_code(error: ClientError) -> str:
    """The service's own name of the error; compare with CONDITION_FAILED."""
    return error.response.get("Error", {}).get("Code", "")


def condition_failed(error: ClientError) -> bool:
    return error_code(error) == CONDITION_FAILED


def item_of(error: ClientError) -> dict[str, AttributeValueTypeDef]:
    """The item that made a condition fail (ReturnValuesOnConditionCheckFailure=ALL_OLD); empty when there is none."""
    found: dict[str, AttributeValueTypeDef] = error.response.get("Item", {})  # type: ignore[assignment]
    return found


def user_pk(tenant_id: str, user_id: str) -> str:
    return f"TENANT#{tenant_id}#USER#{user_id}"


def ids_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """Tenant and user of an item in a user's partition, as stored."""
    _, tenant_id, _, user_id = item["PK"]["S"].split("#", 3)
    return tenant_id, user_id


def s(value: str) -> AttributeValueTypeDef:
    return {"S": value}


def n(value: int) -> AttributeValueTypeDef:
    return {"N": str(value)}


def flag(value: bool) -> AttributeValueTypeDef:
    return {"BOOL": value}


def attributes(**values: str | int | bool | None) -> dict[str, AttributeValueTypeDef]:
    """Marshal flat values; None leaves the attribute out (an absent attribute is how this table says "none")."""
    return {name: _marshal(value) for name, value in values.items() if value is not None}


def _marshal(value: str | int | bool) -> AttributeValueTypeDef:
    if isinstance(value, bool):
        return flag(value)
    return n(value) if isinstance(value, int) else s(value)


def plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as Python values: N as int, S as str, BOOL as bool, SS as a set, M and L nested; there is no other."""
    return {name: _unmarshal(value) for name, value in item.items()}


def _unmarshal(value: Mapping[str, Any]) -> Any:  # noqa: ANN401  a stored value is whatever was stored
    [(kind, content)] = value.items()
    match kind:
        case "S" | "BOOL":
            return content
        case "N":
            return int(content)
        case "NULL":
            return None
        case "M":
            return plain(content)
        case "SS":
            return frozenset(content)
        case "L":
            return [_unmarshal(element) for element in content]
        case _:
            raise ValueError(f"an attribute of kind {kind} is not one of ours")


def epoch_seconds(instant: datetime) -> int:
    """How instants are stored: whole epoch seconds, UTC."""
    return int(instant.timestamp())


def from_epoch_seconds(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
