"""The account behind a principal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.support.clocks import NOON, FakeClock
from tests.support.moto_table import CountedTable, moto_table
from tollgate.catalog.loader import CatalogError, load_catalog
from tollgate.domain.principals import CredentialKind, Principal, Profile
from tollgate.flows.accounts import Accounts
from tollgate.storage.users import Users

ADA = Principal("main", "ada", CredentialKind.API_KEY, "key_1")
EVE = Principal("main", "eve", CredentialKind.ACCESS_TOKEN, "client")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


def accounts_on(table: CountedTable, clock: FakeClock, **options: object) -> Accounts:
    return Accounts(Users(table), load_catalog("default"), clock, **options)  # type: ignore[arg-type]


def test_a_user_seen_for_the_first_time_gets_the_default_plan_from_that_second_on(table: CountedTable) -> None:
    account = accounts_on(table, FakeClock(NOON + 0.75)).find(ADA)
    assert account.plan == load_catalog("default").plan("free")
    assert account.profile == Profile("main", "ada", "free", 1, datetime.fromtimestamp(NOON, UTC))
    assert Users(table).find_profile("main", "ada") == account.profile


def test_the_deployment_may_choose_another_default_plan(table: CountedTable) -> None:
    assert accounts_on(table, FakeClock(), default_plan_id="pro").find(ADA).plan.id == "pro"


def test_a_default_plan_that_the_catalog_lacks_is_refused_at_the_start(table: CountedTable) -> None:
    with pytest.raises(CatalogError, match="no such plan"):
        accounts_on(table, FakeClock(), default_plan_id="gold")


def test_a_known_user_keeps_the_stored_plan(table: CountedTable) -> None:
    Users(table).create_profile(Profile("main", "ada", "pro", 4, datetime(2026, 1, 31, tzinfo=UTC), paid=False))
    account = accounts_on(table, FakeClock()).find(ADA)
    assert (account.plan.id, account.profile.plan_version, account.profile.paid) == ("pro", 4, False)


def test_an_account_is_read_once_a_minute(table: CountedTable) -> None:
    clock = FakeClock()
    accounts = accounts_on(table, clock)
    accounts.find(ADA)
    table.calls.clear()
    clock.advance(59.9)
    accounts.find(ADA)
    assert table.calls == {}
    clock.advance(0.1)
    accounts.find(ADA)
    assert table.calls == {"GetItem": 1}


def test_fresh_reads_the_table_and_renews_the_memory(table: CountedTable) -> None:
    accounts = accounts_on(table, FakeClock())
    old = accounts.find(ADA)
    # A plan change elsewhere moves plan and version in the stored profile.
    table.client.update_item(
        TableName=table.name,
        Key={"PK": {"S": "TENANT#main#USER#ada"}, "SK": {"S": "PROFILE"}},
        UpdateExpression="SET plan_id = :plan, plan_version = :next",
        ConditionExpression="attribute_exists(PK)",
        ExpressionAttributeValues={":plan": {"S": "pro"}, ":next": {"N": "2"}},
    )
    assert accounts.find(ADA) == old
    fresh = accounts.find(ADA, fresh=True)
    assert (fresh.plan.id, fresh.profile.plan_version) == ("pro", 2)
    assert accounts.find(ADA) == fresh


def test_two_containers_that_see_a_user_first_agree_on_one_profile(table: CountedTable) -> None:
    first, second = accounts_on(table, FakeClock(NOON)), accounts_on(table, FakeClock(NOON + 5), default_plan_id="pro")
    table.calls.clear()
    assert second.find(ADA) == first.find(ADA)
    assert len(table.items()) == 1


def test_a_creation_lost_to_another_container_takes_its_profile(table: CountedTable) -> None:
    winner = Profile("main", "ada", "enterprise", 1, datetime.fromtimestamp(NOON, UTC))

    class RacingUsers(Users):
        """Another container creates the profile between our read and our write."""

        def find_profile(self, tenant_id: str, user_id: str) -> Profile | None:
            found = super().find_profile(tenant_id, user_id)
            if found is None:
                Users(table).create_profile(winner)
            return found

    accounts = Accounts(RacingUsers(table), load_catalog("default"), FakeClock())
    assert accounts.find(ADA).profile == winner


def test_users_are_not_confused_and_the_memory_is_bounded(table: CountedTable) -> None:
    accounts = accounts_on(table, FakeClock(), cache_entries=2)
    tenants = [replace(ADA, tenant_id=f"t{number}") for number in range(5)]
    for _ in range(2):
        for principal in (*tenants, EVE):
            account = accounts.find(principal)
            assert (account.tenant_id, account.user_id) == (principal.tenant_id, principal.user_id)
    assert len(accounts._cache) == 2


def test_a_plan_that_was_taken_from_the_catalog_is_not_silently_replaced(table: CountedTable) -> None:
    Users(table).create_profile(Profile("main", "ada", "legacy", 1, datetime.fromtimestamp(NOON, UTC)))
    with pytest.raises(CatalogError, match="legacy"):
        accounts_on(table, FakeClock()).find(ADA)


def test_the_plan_of_an_account_is_the_catalogs_as_payment_and_choice_leave_it(table: CountedTable) -> None:
    anchor_at = datetime.fromtimestamp(NOON, UTC)
    Users(table).create_profile(Profile("main", "ada", "pro", 1, anchor_at, overage_cap_cents=100))
    account = accounts_on(table, FakeClock()).find(ADA)
    pro = load_catalog("default").plan("pro")
    assert account.listed_plan == pro
    assert account.plan == replace(pro, overage_cap_tokens=100 * 10**7 // pro.overage_price_nanousd_per_token)
