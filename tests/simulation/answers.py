"""The DynamoDB client's answers and errors in their real classes and shapes: production code cannot tell."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import botocore.session
from botocore.errorfactory import BaseClientExceptions, ClientExceptionsFactory
from botocore.exceptions import ClientError, ConnectTimeoutError, ReadTimeoutError

ENDPOINT = "https://dynamodb.simulated"

_STATUS = {"InternalServerError": 500, "ServiceUnavailable": 503}
_MESSAGES = {
    "ConditionalCheckFailedException": "The conditional request failed",
    "TransactionConflictException": "Transaction is ongoing for the item",
    "ProvisionedThroughputExceededException": "The level of configured provisioned throughput was exceeded",
    "ThrottlingException": "Throughput exceeds the current capacity of your table or index",
    "InternalServerError": "Internal server error",
}


@lru_cache(maxsize=1)
def client_exceptions() -> BaseClientExceptions:
    """`client.exceptions` of a real client, without a client."""
    model = botocore.session.get_session().get_service_model("dynamodb")
    return ClientExceptionsFactory().create_client_exceptions(model)


@lru_cache(maxsize=64)
def _class_of(code: str) -> type[ClientError]:
    return cast("type[ClientError]", client_exceptions().from_code(code))


def metadata(retries: int = 0, status: int = 200) -> dict[str, Any]:
    return {"RequestId": "simulated", "HTTPStatusCode": status, "HTTPHeaders": {}, "RetryAttempts": retries}


def refusal(operation: str, code: str, message: str | None = None, **extra: Any) -> ClientError:  # noqa: ANN401
    """A service error as botocore raises it; `extra` joins the response (`Item`, `CancellationReasons`)."""
    status = _STATUS.get(code, 400)
    response: Any = {
        "Error": {"Code": code, "Message": message or _MESSAGES.get(code, code)},
        "ResponseMetadata": metadata(status=status),
        **extra,
    }
    return _class_of(code)(response, operation)


def never_connected() -> ConnectTimeoutError:
    return ConnectTimeoutError(endpoint_url=ENDPOINT)


def never_answered() -> ReadTimeoutError:
    return ReadTimeoutError(endpoint_url=ENDPOINT)
