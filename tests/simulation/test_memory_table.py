"""The table in memory: atomic, forgetful of tokens in time, and as large as DynamoDB would say."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.simulation.expressions import ExpressionError
from tests.simulation.memory_table import Change, MemoryTable, item_size, write_units

KEY = {"PK": {"S": "A"}, "SK": {"S": "B"}}
OTHER = {"PK": {"S": "A"}, "SK": {"S": "C"}}


def add(number: int, key: dict[str, Any] = KEY, **extra: str) -> dict[str, Any]:
    return {
        "TableName": "t",
        "Key": key,
        "UpdateExpression": "ADD n :n",
        "ExpressionAttributeValues": {":n": {"N": str(number)}},
        **extra,
    }


def test_a_refused_write_changes_nothing_and_shows_the_item() -> None:
    table = MemoryTable("t")
    table.apply("UpdateItem", add(1), 0)
    refused = add(1, ConditionExpression="attribute_not_exists(PK)", ReturnValuesOnConditionCheckFailure="ALL_OLD")

    with pytest.raises(ClientError) as caught:
        table.apply("UpdateItem", refused, 0)

    assert type(caught.value).__name__ == "ConditionalCheckFailedException"
    response: Any = caught.value.response
    assert response["Item"] == {**KEY, "n": {"N": "1"}}
    assert table.find("A", "B") == {**KEY, "n": {"N": "1"}}


def test_a_transaction_is_applied_whole_or_not_at_all() -> None:
    table = MemoryTable("t")
    items = [{"Update": add(1)}, {"Update": add(1, OTHER, ConditionExpression="attribute_exists(PK)")}]

    with pytest.raises(ClientError) as caught:
        table.apply("TransactWriteItems", {"TransactItems": items}, 0)

    reasons: Any = caught.value.response
    assert [reason["Code"] for reason in reasons["CancellationReasons"]] == ["None", "ConditionalCheckFailed"]
    assert list(table.items()) == []


@pytest.mark.parametrize(("seconds", "expected"), [(599, "1"), (600, "2"), (601, "2")])
def test_an_equal_token_is_forgotten_after_ten_minutes(seconds: int, expected: str) -> None:
    table = MemoryTable("t")
    request = {"TransactItems": [{"Update": add(1)}], "ClientRequestToken": "once"}
    table.apply("TransactWriteItems", request, 0)
    table.apply("TransactWriteItems", request, seconds)

    item = table.find("A", "B")
    assert item is not None
    assert item["n"] == {"N": expected}


def test_an_equal_token_with_other_parameters_is_refused() -> None:
    table = MemoryTable("t")
    table.apply("TransactWriteItems", {"TransactItems": [{"Update": add(1)}], "ClientRequestToken": "once"}, 0)

    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        table.apply("TransactWriteItems", {"TransactItems": [{"Update": add(2)}], "ClientRequestToken": "once"}, 1)


def test_the_watcher_sees_each_commit_with_old_and_new() -> None:
    seen: list[list[Change]] = []
    table = MemoryTable("t", seen.append)
    table.apply("UpdateItem", add(1), 0)
    table.apply("DeleteItem", {"TableName": "t", "Key": KEY}, 0)

    assert [(change.old is None, change.new is None) for (change,) in seen] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    "request_parts",
    [
        {"UpdateExpression": "ADD n :n"},
        {"ExpressionAttributeValues": {":n": {"N": "1"}, ":unused": {"N": "1"}}},
        {"ExpressionAttributeNames": {"#unused": "x"}},
        {"Expected": {}},
        {"ReturnValues": "UPDATED_NEW"},
        {"TableName": "another"},
    ],
)
def test_a_request_that_dynamodb_or_we_do_not_know_is_refused(request_parts: dict[str, Any]) -> None:
    base = add(1)
    if request_parts == {"UpdateExpression": "ADD n :n"}:
        del base["ExpressionAttributeValues"]

    with pytest.raises(ExpressionError):
        MemoryTable("t").apply("UpdateItem", base | request_parts, 0)


def test_sizes_follow_the_published_rules() -> None:
    assert item_size({"PK": {"S": "abc"}}) == 2 + 3
    assert item_size({"n": {"N": "100"}}) == 1 + 2
    assert item_size({"n": {"N": "-123"}}) == 1 + 4
    assert item_size({"é": {"S": "é"}}) == 2 + 2
    assert item_size({"paid": {"BOOL": True}}) == 4 + 1


@pytest.mark.parametrize(("size", "units"), [(1023, 1), (1024, 1), (1025, 2)])
def test_a_write_costs_one_unit_for_each_kilobyte_begun(size: int, units: int) -> None:
    item: dict[str, Any] = {"PK": {"S": "x" * (size - 2)}}

    assert write_units(None, item) == write_units(item, None) == units
