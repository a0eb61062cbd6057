"""API keys in the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.clocks import NOON
from tests.support.moto_table import NAME, CountedTable, moto_table
from tollgate.domain.api_keys import ApiKey, KeyMode, key_id
from tollgate.domain.principals import MaxTokensPolicy, Profile
from tollgate.storage.api_keys import KEPT_SECONDS, LARGEST_BATCH, ApiKeys, Creation, KeyPage, Places
from tollgate.storage.users import Users

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


def test_every_item_has_its_type_and_ttl_waits_until_a_key_is_long_dead(table: CountedTable) -> None:
    ApiKeys(table).put_key(KEY)
    items = {item["Type"]["S"]: item for item in table.items()}
    assert items.keys() == {"ApiKey", "ApiKeyEntry", "ApiKeyPlaces"}
    assert (items["ApiKey"]["PK"], items["ApiKey"]["SK"]) == ({"S": f"KEY#{KEY.key_hash}"}, {"S": "KEY"})
    entry = items["ApiKeyEntry"]
    assert (entry["PK"], entry["SK"]) == ({"S": "TENANT#main#USER#u1"}, {"S": "APIKEY#key_7"})
    assert KEY.expires_at is not None
    gone_at = {"N": str(int(KEY.expires_at.timestamp()) + KEPT_SECONDS)}  # expires_at is the table's TTL attribute
    assert items["ApiKey"]["expires_at"] == entry["expires_at"] == gone_at


def test_a_key_without_an_end_is_not_deleted_by_ttl_until_it_is_revoked(table: CountedTable) -> None:
    keys, endless = ApiKeys(table), replace(KEY, expires_at=None)
    keys.put_key(endless)
    assert not any("expires_at" in item for item in table.items())
    keys.revoke_key(KEY.key_hash, NOW)
    ends = [item["expires_at"] for item in table.items() if item["Type"]["S"] != "ApiKeyPlaces"]
    assert ends == [{"N": str(NOON + KEPT_SECONDS)}] * 2


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


def test_a_forgotten_key_is_revoked_and_its_name_is_gone(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    assert keys.forget_key(KEY.key_hash, NOW)
    found = keys.find_key(KEY.key_hash)
    assert found is not None
    assert (found.revoked_at, found.name) == (NOW, "")
    assert "laptop" not in str(table.items())


def test_a_users_key_is_found_by_its_id_and_by_nobody_else(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    assert keys.find_users_key("main", "u1", "key_7") == KEY
    assert keys.find_users_key("main", "u2", "key_7") is None
    assert keys.find_users_key("acme", "u1", "key_7") is None
    assert keys.find_users_key("main", "u1", "key_8") is None


def test_keys_are_listed_newest_first_in_pages_of_any_size(table: CountedTable) -> None:
    keys = ApiKeys(table)
    ids = [key_id(NOON + number, "abcdef") for number in range(7)]
    for number, name in enumerate(ids):
        keys.put_key(replace(KEY, id=name, key_hash=f"{number:064x}"))
    keys.put_key(replace(KEY, id=ids[3], key_hash="ff" * 32, user_id="u2"))
    for size in range(1, 9):
        seen, after, more = [], None, True
        while more:
            page = keys.list_page("main", "u1", most=size, after_id=after)
            assert len(page.keys) <= size
            seen += [key.id for key in page.keys]
            after, more = page.last_id, page.has_more
            assert after == seen[-1]
        assert seen == ids[::-1]
    assert [key.id for key in keys.list_keys("main", "u1")] == ids[::-1]


def test_more_keys_than_one_batch_are_all_listed(table: CountedTable) -> None:
    keys = ApiKeys(table)
    for number in range(LARGEST_BATCH + 5):
        keys.put_key(replace(KEY, id=key_id(NOON + number, "abcdef"), key_hash=f"{number:064x}"))
    assert len({key.id for key in keys.list_keys("main", "u1")}) == LARGEST_BATCH + 5


def test_a_list_goes_on_beyond_any_number_of_entries_without_keys(table: CountedTable) -> None:
    """TTL deletes a key and its entry days apart: a whole batch of entries may have lost theirs."""
    keys = ApiKeys(table)
    hashes = [f"{number:064x}" for number in range(LARGEST_BATCH + 2)]
    for number, key_hash in enumerate(hashes):
        keys.put_key(replace(KEY, id=key_id(NOON + number, "abcdef"), key_hash=key_hash))

    def end_the_test_that_hangs(**_: object) -> None:
        assert table.calls["Query"] < 10, "the same page again and again"

    table.client.meta.events.register("before-call.dynamodb.Query", end_the_test_that_hangs)
    newest = hashes[::-1]
    for gone in range(len(hashes) + 1):
        if gone in (1, LARGEST_BATCH - 1, LARGEST_BATCH, LARGEST_BATCH + 1, LARGEST_BATCH + 2):
            table.calls.clear()
            assert [key.key_hash for key in keys.list_keys("main", "u1")] == newest[gone:]
        for key_hash in newest[gone : gone + 1]:
            table.client.delete_item(TableName=NAME, Key={"PK": {"S": f"KEY#{key_hash}"}, "SK": {"S": "KEY"}})


def test_a_list_without_entries_ends_at_once(table: CountedTable) -> None:
    assert ApiKeys(table).list_page("main", "u1", most=1) == KeyPage([], None, has_more=False)
    assert list(ApiKeys(table).list_keys("main", "u1")) == []


@pytest.fixture
def user(table: CountedTable) -> None:
    """The account of u1, whom KEY belongs to."""
    Users(table).create_profile(Profile("main", "u1", "free", 1, NOW))


@pytest.mark.usefixtures("user")
def test_places_are_taken_and_given_back_by_line(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    keys.put_key(replace(KEY, id="key_8", key_hash="cd" * 32))
    assert keys.places("main", "u1") == Places(frozenset({"key_7", "key_8"}))
    successor = replace(KEY, id="key_9", key_hash="ef" * 32, first_id="key_7")
    assert keys.rotate_key(KEY, successor, NOW).applied
    both = Places(frozenset({"key_7", "key_8"}), rotations=1)
    assert keys.places("main", "u1") == both
    keys.revoke_key(KEY.key_hash, NOW)
    assert keys.places("main", "u1") == both, "the successor holds it now"
    keys.revoke_key(successor.key_hash, NOW)
    assert keys.places("main", "u1") == both, "freed when it is needed: a predecessor may live on"
    keys.revoke_key("cd" * 32, NOW)
    assert keys.places("main", "u1").line_ids == {"key_7"}
    assert keys.free_places("main", "u1", ["key_7", "key_8", "never"], seen=both)
    assert keys.places("main", "u1") == Places(rotations=1)
    assert keys.places("main", "u2") == Places()


@pytest.mark.usefixtures("user")
def test_places_looked_at_before_a_rotation_are_not_freed_after_it(table: CountedTable) -> None:
    keys = ApiKeys(table)
    key = KEY
    keys.put_key(key)
    for number in range(2):
        seen = keys.places("main", "u1")
        assert seen.rotations == number
        successor = replace(KEY, id=f"key_{8 + number}", key_hash=f"{number:064x}", first_id="key_7")
        assert keys.rotate_key(key, successor, NOW).applied
        assert not keys.free_places("main", "u1", ["key_7"], seen=seen)
        assert keys.places("main", "u1").line_ids == {"key_7"}
        key = successor


@pytest.mark.usefixtures("user")
def test_a_rotated_key_has_its_place_also_when_it_was_freed_before(table: CountedTable) -> None:
    """By somebody whose clock is ahead, and for whom the old key had expired."""
    keys = ApiKeys(table)
    keys.put_key(KEY)
    keys.free_places("main", "u1", ["key_7"], seen=keys.places("main", "u1"))
    assert keys.rotate_key(KEY, replace(KEY, id="key_8", key_hash="cd" * 32, first_id="key_7"), NOW).applied
    assert keys.places("main", "u1").line_ids == {"key_7"}


def test_a_key_without_an_account_is_not_rotated(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    before = table.items()
    assert keys.rotate_key(KEY, replace(KEY, id="key_8", key_hash="cd" * 32), NOW) == Creation(no_account=True)
    assert table.items() == before


@pytest.mark.usefixtures("user")
def test_a_key_is_replaced_once_and_never_after_its_revocation(table: CountedTable) -> None:
    keys = ApiKeys(table)
    keys.put_key(KEY)
    first, second = (replace(KEY, id=f"key_{n}", key_hash=f"{n:064x}", first_id="key_7") for n in (8, 9))
    assert keys.rotate_key(KEY, first, NOW).applied
    assert keys.rotate_key(KEY, second, NOW) == Creation()
    keys.revoke_key(first.key_hash, NOW)
    assert keys.rotate_key(first, second, NOW) == Creation()
    assert keys.find_key(second.key_hash) is None
    assert keys.find_users_key("main", "u1", "key_9") is None


def test_a_revoked_key_is_not_changed_any_more(table: CountedTable) -> None:
    keys, desktop = ApiKeys(table), replace(KEY, name="desktop", budget_tokens=5)
    keys.put_key(KEY)
    assert keys.change_key(KEY, desktop) == desktop
    keys.revoke_key(KEY.key_hash, NOW)
    assert keys.change_key(desktop, replace(desktop, name="too late")) is None


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    "other",
    [
        {"name": ""},
        {"allowed_models": frozenset({"m"})},
        {"budget_tokens": 7},
        {"requests_per_minute": 7},
        {"burst_requests": 7},
        {"max_tokens_policy": MaxTokensPolicy.CLAMP},
    ],
)
def test_a_key_that_is_not_as_it_was_read_is_neither_changed_nor_rotated(
    table: CountedTable, other: dict[str, Any]
) -> None:
    keys, changed = ApiKeys(table), replace(KEY, **other)
    keys.put_key(changed)
    assert keys.change_key(KEY, replace(KEY, budget_tokens=5)) is None
    assert keys.rotate_key(KEY, replace(KEY, id="key_8", key_hash="cd" * 32), NOW) == Creation()
    assert keys.find_key(KEY.key_hash) == changed
    assert keys.change_key(changed, KEY) == KEY


@pytest.mark.parametrize(("passed_seconds", "noted"), [(3599, False), (3600, False), (3601, True)])
def test_the_last_use_is_written_once_an_hour(table: CountedTable, passed_seconds: int, noted: bool) -> None:
    keys, hour = ApiKeys(table), timedelta(hours=1)
    keys.put_key(KEY)
    assert keys.note_use("main", "u1", "key_7", NOW, older_than=NOW - hour)
    then = NOW + timedelta(seconds=passed_seconds)
    assert keys.note_use("main", "u1", "key_7", then, older_than=then - hour) is noted
    found = keys.find_users_key("main", "u1", "key_7")
    assert found is not None
    assert found.last_used_at == (then if noted else NOW)


def test_the_use_of_an_unknown_key_stores_nothing(table: CountedTable) -> None:
    assert not ApiKeys(table).note_use("main", "u1", "key_7", NOW, older_than=NOW)
    assert table.items() == []


def test_revoking_an_unknown_key_stores_nothing(table: CountedTable) -> None:
    assert not ApiKeys(table).revoke_key("00" * 32, NOW)
    assert table.items() == []
