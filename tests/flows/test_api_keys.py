"""What owners do with their keys while another process does something else to the same ones, at every step of it.

The other process is let in by the SDK, right before one of our requests leaves: each test chooses which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.clocks import NOON, FakeClock
from tests.support.ledger_world import a_plan
from tests.support.moto_table import CountedTable, moto_table
from tollgate.catalog.loader import load_catalog
from tollgate.domain.api_keys import ApiKey, KeyWish
from tollgate.domain.errors import ConflictError, NotFoundError, PermissionDeniedError
from tollgate.domain.principals import Account, CredentialKind, Principal, Profile
from tollgate.flows.api_keys import KeyRing, MintedKey
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.users import Users
from tollgate.wiring import SystemIds

ADA = Principal("main", "ada", CredentialKind.ACCESS_TOKEN, "client")
NOW = datetime.fromtimestamp(NOON, UTC)


class Desk:
    """Ada's keys, of which her plan allows two, as several processes serve her."""

    def __init__(self, table: CountedTable) -> None:
        self.table = table
        self.clock = FakeClock()
        profile = Users(table).create_profile(Profile("main", "ada", "two", 1, NOW))
        self.account = Account(profile, a_plan(id="two", max_api_keys=2))
        self.ring = KeyRing(
            ApiKeys(table),
            Meters(table),
            load_catalog("default"),
            lambda: b"pepper",
            self.clock,
            SystemIds(),
            allow_test_keys=False,
        )

    def make(self, name: str = "k", **wish: Any) -> MintedKey:  # noqa: ANN401  any part of a wish
        return self.ring.create(self.account, KeyWish(name, **wish))

    def rotate(self, key_id: str, overlap_seconds: int = 0) -> ApiKey:
        return self.ring.rotate(ADA, key_id, overlap_seconds)[0].key

    def rename(self, key_id: str, name: str) -> ApiKey:
        return self.ring.change(self.account, ADA, key_id, lambda key: replace(key, name=name))

    def find(self, key_id: str) -> ApiKey:
        return self.ring.find(ADA, key_id)

    def living(self) -> set[str]:
        """Names of the keys that are accepted."""
        keys = self.ring.page(ADA, 100, None).keys
        return {key.name for key in keys if key.refusal_at(self.clock.now_seconds()) is None}

    def before(self, operation: str, act: Callable[[], object]) -> None:
        """Let somebody else act once, right before the next request of this kind."""
        waiting = [act]

        def interrupt(**_: object) -> None:
            if waiting:
                waiting.pop()()

        self.table.client.meta.events.register(f"before-call.dynamodb.{operation}", interrupt)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with moto_table(monkeypatch) as table:
        yield Desk(table)


# --- Places


STEPS_OF_FREEING = ["TransactWriteItems", "GetItem", "Query", "BatchGetItem", "UpdateItem"]


@pytest.mark.parametrize("step", STEPS_OF_FREEING)
@pytest.mark.parametrize("overlap_seconds", [0, 60])
def test_a_key_rotated_while_dead_places_are_freed_keeps_its_place(desk: Desk, step: str, overlap_seconds: int) -> None:
    """Between the steps the old key may be seen dead and its successor not be seen at all."""
    lasting = desk.make("lasting").key
    desk.make("short", expires_at=NOW + timedelta(seconds=10))
    desk.clock.advance(10)
    desk.before(step, lambda: desk.rotate(lasting.id, overlap_seconds))
    desk.make("third")
    assert desk.living() == {"lasting", "third"}
    with pytest.raises(PermissionDeniedError):
        desk.make("fourth")
    assert desk.living() == {"lasting", "third"}


@pytest.mark.parametrize("step", ["GetItem", "BatchGetItem", "TransactWriteItems"])
def test_places_freed_while_a_key_is_rotated_leave_it_its_own(desk: Desk, step: str) -> None:
    lasting = desk.make("lasting").key
    desk.make("short", expires_at=NOW + timedelta(seconds=10))
    desk.clock.advance(10)
    desk.before(step, lambda: desk.make("third"))
    desk.rotate(lasting.id)
    assert desk.living() == {"lasting", "third"}
    with pytest.raises(PermissionDeniedError):
        desk.make("fourth")


@pytest.mark.parametrize("revoked", [1, 2])
def test_a_place_that_is_given_back_while_one_is_looked_for_is_taken(desk: Desk, revoked: int) -> None:
    made = [desk.make(f"k{number}").key.id for number in range(2)]

    def revoke() -> None:
        for key_id in made[:revoked]:
            desk.ring.revoke(ADA, key_id)

    desk.before("GetItem", revoke)
    desk.make("third")
    assert desk.living() == {"k0", "k1", "third"} - {f"k{number}" for number in range(revoked)}


def test_a_line_whose_keys_all_died_leaves_its_place(desk: Desk) -> None:
    first = desk.make("first").key
    second = desk.rotate(first.id)
    desk.make("other")
    desk.ring.revoke(ADA, desk.rotate(second.id).id)
    desk.make("third")
    assert desk.living() == {"other", "third"}


# --- An account that goes


@pytest.mark.parametrize("step", ["GetItem", "BatchGetItem", "TransactWriteItems"])
def test_a_key_of_an_account_that_is_deleted_meanwhile_is_not_rotated(desk: Desk, step: str) -> None:
    """The deletion has gone through the keys by then, and would leave the new one, with its name."""
    made = desk.make("Ada's laptop").key

    def close() -> None:
        Users(desk.table).bury_profile("main", "ada", NOW)
        ApiKeys(desk.table).forget_key(made.key_hash, NOW)

    desk.before(step, close)
    with pytest.raises((NotFoundError, ConflictError)):
        desk.rotate(made.id)
    assert desk.living() == set()
    assert "Ada's laptop" not in str(desk.table.items())


def test_a_key_is_not_rotated_once_the_profile_is_buried(desk: Desk) -> None:
    """Between the two steps of a deletion: the key is still there, the account is not."""
    made = desk.make().key
    Users(desk.table).bury_profile("main", "ada", NOW)
    before = desk.table.items()
    with pytest.raises(NotFoundError):
        desk.rotate(made.id)
    assert desk.table.items() == before


# --- Two changes at once


def test_of_two_changes_at_once_neither_undoes_the_other(desk: Desk) -> None:
    made = desk.make("laptop", budget_tokens=100).key
    desk.before("UpdateItem", lambda: desk.rename(made.id, "desktop"))
    changed = desk.ring.change(desk.account, ADA, made.id, lambda key: replace(key, budget_tokens=5))
    assert (changed.name, changed.budget_tokens) == ("desktop", 5)
    found = desk.find(made.id)
    assert (found.name, found.budget_tokens) == ("desktop", 5)


def test_a_rotation_does_not_bring_back_what_a_change_takes_away(desk: Desk) -> None:
    """Its answer would promise a limit that the new key does not have."""
    made = desk.make(budget_tokens=100).key

    def restrict() -> None:
        desk.ring.change(
            desk.account, ADA, made.id, lambda key: replace(key, budget_tokens=5, allowed_models=frozenset({"m"}))
        )

    desk.before("TransactWriteItems", restrict)
    rotated = desk.rotate(made.id, 60)
    assert (rotated.budget_tokens, rotated.allowed_models) == (5, frozenset({"m"}))
    assert desk.find(rotated.id).budget_tokens == 5


def test_a_key_that_is_rotated_meanwhile_is_not_changed(desk: Desk) -> None:
    """What would be changed is the key that goes; whoever asked has to be told."""
    made = desk.make("laptop").key
    desk.before("UpdateItem", lambda: desk.rotate(made.id, 60))
    with pytest.raises(ConflictError):
        desk.rename(made.id, "desktop")
    assert desk.living() == {"laptop"}


def test_a_change_that_is_already_made_is_made_again(desk: Desk) -> None:
    """As when the answer was lost and the SDK sent the write once more."""
    made = desk.make("laptop").key
    desk.before("UpdateItem", lambda: desk.rename(made.id, "desktop"))
    assert desk.rename(made.id, "desktop").name == "desktop"
