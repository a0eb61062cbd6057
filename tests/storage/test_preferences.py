"""Preferences in the table: one document a user, and none for a user who is gone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError

from tests.support.moto_table import CountedTable, moto_table
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.principals import Profile
from tollgate.storage.preferences import Preferences
from tollgate.storage.users import Users

AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        Users(table).create_profile(Profile("main", "ada", "free", 1, AT))
        yield table


def test_the_document_put_last_is_found(table: CountedTable) -> None:
    preferences = Preferences(table)
    assert preferences.find_preferences("main", "ada") is None
    for document in ('{"theme":"dark"}', '{"theme":"light","ü":1}'):
        assert preferences.put_preferences("main", "ada", document)
        assert preferences.find_preferences("main", "ada") == document
    assert {item["Type"]["S"] for item in table.items()} == {"User", "Preferences"}


def test_nothing_is_stored_for_a_user_who_is_not_there_or_gone(table: CountedTable) -> None:
    preferences = Preferences(table)
    assert not preferences.put_preferences("main", "nobody", "{}")
    assert not preferences.put_preferences("other", "ada", "{}")
    Users(table).bury_profile("main", "ada", AT)
    assert not preferences.put_preferences("main", "ada", "{}")
    assert [item["Type"]["S"] for item in table.items()] == ["User"]


def test_deleting_may_be_repeated(table: CountedTable) -> None:
    preferences = Preferences(table)
    preferences.put_preferences("main", "ada", "{}")
    for _ in range(2):
        preferences.delete_preferences("main", "ada")
        assert preferences.find_preferences("main", "ada") is None


def test_a_write_beside_another_is_an_outage_and_not_a_missing_account(table: CountedTable) -> None:
    """DynamoDB cancels one of two transactions on the same item; the engines never do."""

    def conflict(**_: object) -> None:
        reasons = [{"Code": "TransactionConflict"}, {"Code": "None"}]
        answer = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
        raise ClientError(answer, "TransactWriteItems")  # type: ignore[arg-type]

    table.client.meta.events.register("before-call.dynamodb.TransactWriteItems", conflict)
    with pytest.raises(StoreUnavailableError):
        Preferences(table).put_preferences("main", "ada", "{}")
