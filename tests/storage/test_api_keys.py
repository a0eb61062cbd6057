"""API keys in the table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clocks import NOON
from tests.support.moto_table import CountedTable, moto_table
from tollgate.domain.api_keys import ApiKey, KeyMode
from tollgate.domain.principals import MaxTokensPolicy
from tollgate.storage.api_keys import ApiKeys

NOW = datetime.fromtimestamp(NOON, UTC)
KEY = ApiKey(
    id="key_7",
    key_hash="ab" * 32,
    tenant_id="main",
    user_id="u1",
    mode=KeyMode.LIVE,
    last_four="wxyz",
    created_at=NOW,
    name="laptop",
    expires_at=NOW + timedelta(days=30),
    max_tokens_policy=MaxTokensPolicy.REFUSE,
    pepper_version=3,
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


def test_a_stored_key_is_found_whole_by_its_hash_in_one_read(table: CountedTable) -> None:
    keys = ApiKeys(table)
    assert keys.put_key(KEY)
    table.calls.clear()
    assert keys.find_key(KEY.key_hash) == KEY
    assert table.calls == {"GetItem": 1}


def test_a_key_without_optional_parts_is_found_whole(table: CountedTable) -> None:
    plain_key = ApiKey("key_8", "cd" * 32, "main", "u1", KeyMode.TEST, "abcd", NOW)
    ApiKeys(table).put_key(plain_key)
    assert ApiKeys(table).find_key(plain_key.key_hash) == plain_key


def test_an_unknown_hash_finds_nothing(table: CountedTable) -> None:
    assert ApiKeys(table).find_key("00" * 32) is None


def test_the_read_is_consistent_so_that_a_revocation_is_seen(table: CountedTable) -> None:
    asked: list[bool] = []

    def note(params: dict[str, object], **_: object) -> None:
        asked.append(b'"ConsistentRead": true' in params["body"])  # type: ignore[operator]

    table.client.meta.events.register("before-call.dynamodb.GetItem", note)
    ApiKeys(table).find_key("00" * 32)
    assert asked == [True]


def test_the_item_has_type_index_keys_and_nothing_that_ttl_would_delete(table: CountedTable) -> None:
    ApiKeys(table).put_key(KEY)
    [item] = table.items()
    assert item["Type"] == {"S": "ApiKey"}
    assert (item["PK"], item["SK"]) == ({"S": f"KEY#{KEY.key_hash}"}, {"S": "KEY"})
    assert (item["GSI1PK"], item["GSI1SK"]) == ({"S": "TENANT#main#USER#u1"}, {"S": "KEY#key_7"})
    assert "expires_at" not in item  # the table's TTL attribute


def test_a_hash_that_is_taken_is_not_given_away(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    thief = ApiKey("key_9", KEY.key_hash, "main", "u2", KeyMode.LIVE, "wxyz", NOW)
    assert not keys.put_key(thief)
    assert keys.find_key(KEY.key_hash) == KEY


def test_a_revoked_key_stays_findable_and_keeps_the_first_instant(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    assert keys.revoke_key(KEY.key_hash, NOW)
    assert keys.revoke_key(KEY.key_hash, NOW + timedelta(hours=1))
    found = keys.find_key(KEY.key_hash)
    assert found is not None
    assert found.revoked_at == NOW


def test_revoking_an_unknown_key_stores_nothing(table: CountedTable) -> None:
    assert not ApiKeys(table).revoke_key("00" * 32, NOW)
    assert table.items() == []
