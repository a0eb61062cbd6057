"""Profiles in the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.support.clocks import NOON
from tests.support.moto_table import CountedTable, moto_table
from tollgate.domain.principals import Profile
from tollgate.storage.users import Users

PROFILE = Profile("main", "u1", "free", 1, datetime.fromtimestamp(NOON, UTC), email="ada@example.com")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


def test_a_profile_is_found_as_it_was_created_in_one_read(table: CountedTable) -> None:
    users = Users(table)
    assert users.create_profile(PROFILE) == PROFILE
    table.calls.clear()
    assert users.find_profile("main", "u1") == PROFILE
    assert table.calls == {"GetItem": 1}


def test_a_profile_without_email_and_unpaid_is_found_so(table: CountedTable) -> None:
    unpaid = replace(PROFILE, email=None, paid=False)
    Users(table).create_profile(unpaid)
    assert Users(table).find_profile("main", "u1") == unpaid


def test_a_profile_of_a_subscriber_is_found_with_all_that_payments_and_choice_decide(table: CountedTable) -> None:
    made_at = datetime.fromtimestamp(NOON - 86_400, UTC)
    subscribed = replace(PROFILE, created_at=made_at, trial=True, overage_blocked=True, overage_cap_cents=0)
    Users(table).create_profile(subscribed)
    assert Users(table).find_profile("main", "u1") == subscribed


def test_an_unconfirmed_address_is_remembered_until_it_is_confirmed(table: CountedTable) -> None:
    users = Users(table)
    users.create_profile(PROFILE)
    assert users.mark_unverified("main", "u1")
    assert users.find_profile("main", "u1") == replace(PROFILE, email_verified=False)
    assert users.put_email("main", "u1", "ada@example.org")
    assert users.find_profile("main", "u1") == replace(PROFILE, email="ada@example.org")
    assert not users.mark_unverified("main", "u2")


def test_an_account_made_unconfirmed_is_found_so(table: CountedTable) -> None:
    unconfirmed = replace(PROFILE, email_verified=False)
    Users(table).create_profile(unconfirmed)
    assert Users(table).find_profile("main", "u1") == unconfirmed


def test_nobodys_profile_is_none(table: CountedTable) -> None:
    assert Users(table).find_profile("main", "u1") is None


def test_who_creates_second_gets_the_first_profile_without_another_read(table: CountedTable) -> None:
    users = Users(table)
    users.create_profile(PROFILE)
    table.calls.clear()
    assert users.create_profile(replace(PROFILE, plan_id="enterprise", email="eve@example.com")) == PROFILE
    assert table.calls == {"PutItem": 1}
    assert users.find_profile("main", "u1") == PROFILE


def test_the_same_user_id_in_two_tenants_is_two_users(table: CountedTable) -> None:
    users = Users(table)
    users.create_profile(PROFILE)
    users.create_profile(replace(PROFILE, tenant_id="acme", plan_id="pro"))
    assert users.find_profile("main", "u1") == PROFILE
    found = users.find_profile("acme", "u1")
    assert found is not None
    assert found.plan_id == "pro"


def test_the_item_has_its_type_and_remembers_its_creation(table: CountedTable) -> None:
    Users(table).create_profile(PROFILE)
    [item] = table.items()
    assert item["Type"] == {"S": "User"}
    assert item["created_at"] == {"N": str(NOON)}
