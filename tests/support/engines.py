"""A DynamoDB engine that is exact under concurrency, for tests: dynoxide where it is installed, else ministack.

Loopback, a free port, an empty table with production's keys; ended with the block. moto is not one of these: it loses
updates under concurrency.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from dev.engines import Engine, find_dynoxide, install_engines, start_dynoxide, start_ministack
from dev.processes import Processes
from dev.template import REGION

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

TABLE_NAME = "tollgate-test"


@dataclass(frozen=True, slots=True)
class ExactTable:
    """A table in a running engine."""

    engine: str
    url: str
    name: str

    def client(self, *, attempts: int = 1, connections: int = 10) -> DynamoDBClient:
        """A client of its own session; without retries unless asked, so that a test sees every answer."""
        session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=connections,
            connect_timeout=5,
            read_timeout=10,
        )
        return session.client("dynamodb", endpoint_url=self.url, config=config)


@contextmanager
def exact_table(folder: Path, *, engine: str | None = None) -> Iterator[ExactTable]:
    """Start an engine (the best there is, or the one named) with its files under `folder`, and create the table."""
    processes = Processes()
    try:
        running = _start(processes, folder, engine)
        table = ExactTable(running.name, running.url, TABLE_NAME)
        create_table(table.client(), table.name)
        yield table
    finally:
        processes.stop_all(gently=False)


def _start(processes: Processes, folder: Path, engine: str | None) -> Engine:
    dynoxide = find_dynoxide() if engine in (None, "dynoxide") else None
    if dynoxide is not None:
        return start_dynoxide(processes, dynoxide, folder / "state", folder / "log")
    install_engines()
    return start_ministack(processes, folder / "state", folder / "log")


def create_table(client: DynamoDBClient, name: str) -> None:
    """Keys and index as in template.yaml."""
    names = ("PK", "SK", "GSI1PK", "GSI1SK")
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": attribute, "AttributeType": "S"} for attribute in names],
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
    client.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
