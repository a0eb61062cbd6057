"""The table on moto, for single-threaded tests: moto loses updates under concurrency, so it proves none.

What moto and botocore do over and over again is done once: it was most of what these tests cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.loaders import JSONFileLoader
from moto import mock_aws
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models.dynamo_type import DDBType, DynamoType

from tollgate.storage.table import Table, hot_path_client

REGION = "eu-west-1"
NAME = "tollgate-test"


class CountedTable(Table):
    """A table that counts the operations sent to it."""

    def __init__(self, session: botocore.session.Session) -> None:
        super().__init__(hot_path_client(REGION, session=session), NAME)
        self.calls: Counter[str] = Counter()
        self.client.meta.events.register("before-call.dynamodb", self._count)

    def _count(self, model: Any, **_: object) -> None:  # noqa: ANN401  botocore's OperationModel
        self.calls[model.name] += 1

    def items(self) -> list[dict[str, Any]]:
        """Everything stored, as DynamoDB spells it; from moto's own store, whose scan takes milliseconds an item."""
        stored = get_backend("dynamodb")[DEFAULT_ACCOUNT_ID][REGION].get_table(self.name).all_items()
        return [{name: value.to_regular_json() for name, value in item.attrs.items()} for item in stored]


def set_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Lambda sets; not one of them opens anything."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_SESSION_TOKEN": "session",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)


_load_file = JSONFileLoader.load_file


@cache
def _description(path: str) -> Any:  # noqa: ANN401  whatever is in the file
    """One of botocore's descriptions of AWS. Every session reads its own anew: 0.1 s a client, for the same text."""
    return _load_file(JSONFileLoader(), path)


def read_descriptions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda _, path: _description(path))


_FIXED = {DDBType.STRING, DDBType.NUMBER, DDBType.BINARY, DDBType.BOOLEAN, DDBType.NULL}
_copy = DynamoType.__deepcopy__


def share_what_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto copies its whole table before each transaction. What it never changes in place need not be copied."""

    def copied(value: DynamoType, memo: dict[int, Any]) -> DynamoType:
        return value if value.type in _FIXED else _copy(value, memo)

    monkeypatch.setattr(DynamoType, "__deepcopy__", copied)


@cache
def aws_session() -> botocore.session.Session:
    """For the clients that tests make for themselves. Those of our own code have theirs, as on Lambda."""
    return botocore.session.get_session()


@contextmanager
def moto_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    """An empty table with the keys and the index of template.yaml."""
    set_credentials(monkeypatch)
    read_descriptions_once(monkeypatch)
    share_what_is_fixed(monkeypatch)
    with mock_aws():
        table = CountedTable(aws_session())
        table.client.create_table(
            TableName=NAME,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": "S"} for name in ("PK", "SK", "GSI1PK", "GSI1SK")
            ],
            KeySchema=[{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "GSI1",
                    "KeySchema": [
                        {"AttributeName": "GSI1PK", "KeyType": "HASH"},
                        {"AttributeName": "GSI1SK", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
            ],
        )
        table.calls.clear()
        yield table
        table.client.close()
