"""The pool of a plan: what all of its users may use together in a month, whoever comes and however many."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.simulation.memory_table import cancellation
from tests.support.ledger_world import START, LedgerWorld, a_plan, an_ask
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.errors import QuotaExceededError, StaleAccountError
from tollgate.domain.ledger import Grant, MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.plans import PeriodKind, Plan
from tollgate.domain.principals import Account, Profile
from tollgate.storage.meters import Opening

DECEMBER = datetime(2026, 12, 1, 0, 0, tzinfo=UTC)


class Town(LedgerWorld):
    """Many users of one plan; 1,000 tokens each, as many as the pool has room for."""

    def __init__(self, **changes: Any) -> None:  # noqa: ANN401  any field of Plan
        super().__init__(a_plan(**{"id": "free", "quota_tokens": 1_000} | changes))

    def call(self, name: str, plan: Plan | None = None, *, tenant: str = "main", amount: int = 100) -> Grant:
        """The call of a user, who is registered if need be."""
        plan = plan or self.plan
        now = datetime.fromtimestamp(self.seconds, UTC)
        profile = self.users.create_profile(Profile(tenant, name, plan.id, 1, START))
        key = MeterKey(tenant, name, period_at(plan.period_kind, START, now))
        return self.ledger.reserve(Account(profile, plan), key, an_ask(amount))

    def is_served(self, name: str, plan: Plan | None = None, **changes: Any) -> bool:  # noqa: ANN401  see call
        try:
            self.call(name, plan, **changes)
        except QuotaExceededError as error:
            refusal = error
        else:
            return True
        assert refusal.error_code == "free_pool_exhausted"
        return False

    def pools(self) -> dict[tuple[str, str], int]:
        """What is taken, by stored key."""
        return {
            (pk, sk): int(item["taken"]["N"])
            for pk, sk, item in self.table.items()
            if item["Type"] == {"S": "PlanPool"}
        }

    def meters_open(self) -> int:
        return sum(item["Type"] == {"S": "Meter"} for _, _, item in self.table.items())


@pytest.mark.parametrize(("pool_tokens", "users"), [(2_999, 2), (3_000, 3), (3_001, 3)])
def test_as_many_users_start_as_the_pool_has_room_for(pool_tokens: int, users: int) -> None:
    town = Town(pool_tokens=pool_tokens)
    assert sum(town.is_served(f"user{number}") for number in range(10)) == users
    assert list(town.pools().values()) == [users * 1_000]


def test_ten_thousand_fresh_users_cannot_use_more_than_the_pool() -> None:
    """Each makes an account of their own and asks for all they can get: the bill is what the operator said."""
    town = Town(pool_tokens=250_000)
    used = 0
    for number in range(10_000):
        try:
            grant = town.call(f"user{number}", amount=1_000)
        except QuotaExceededError:
            continue
        used += town.ledger.settle(grant, Settlement(1_000)).charged_tokens
    assert used == 250_000
    assert town.meters_open() == 250


def test_who_has_started_goes_on_when_the_pool_is_used_up() -> None:
    town = Town(pool_tokens=1_000)
    town.call("ada")
    assert not town.is_served("eve")
    assert all(town.is_served("ada") for _ in range(9))


def test_the_refusal_says_when_places_open_again_and_what_else_there_is() -> None:
    town = Town(pool_tokens=1_000)
    town.call("ada")
    with pytest.raises(QuotaExceededError) as refusal:
        town.call("eve")
    assert refusal.value.error_code == "free_pool_exhausted"
    assert refusal.value.resets_at == DECEMBER
    assert (refusal.value.remaining_tokens, refusal.value.needed_tokens) == (0, 100)
    assert refusal.value.public_message == (
        "All places that the Test plan has for this usage period are taken."
        " New ones open on 01 Dec 2026 at 00:00 UTC. Upgrade at example.com."
    )


def test_who_was_refused_leaves_nothing_and_is_refused_from_memory() -> None:
    town = Town(pool_tokens=1_000)
    town.call("ada")
    assert not town.is_served("eve")
    assert town.meters_open() == 1
    town.client.calls.clear()
    for _ in range(100):
        with pytest.raises(QuotaExceededError):
            town.ledger.reserve(
                Account(Profile("main", "eve", "free", 1, START), town.plan),
                MeterKey("main", "eve", town.key.period),
                an_ask(),
            )
    assert town.client.calls == []


def test_a_larger_pool_serves_the_refused_within_a_minute() -> None:
    town = Town(pool_tokens=1_000)
    town.call("ada")
    assert not town.is_served("eve")
    larger = a_plan(id="free", quota_tokens=1_000, pool_tokens=2_000)
    town.seconds += 61
    assert town.is_served("eve", larger)


def test_another_plan_is_not_held_up() -> None:
    """Also for the very user who was refused: to upgrade helps at once."""
    town = Town(pool_tokens=1_000)
    town.call("ada")
    assert not town.is_served("eve")
    assert town.is_served("eve", a_plan(id="pro"))
    assert town.is_served("bob", a_plan(id="team", pool_tokens=1_000))


def test_another_tenant_has_a_pool_of_its_own() -> None:
    town = Town(pool_tokens=1_000)
    assert town.is_served("ada")
    assert town.is_served("ada", tenant="acme")
    assert not town.is_served("eve", tenant="acme")


def test_a_month_has_a_pool_of_its_own() -> None:
    town = Town(pool_tokens=1_000)
    assert town.is_served("ada")
    town.seconds = DECEMBER.timestamp() - 1
    assert not town.is_served("eve")
    town.seconds = DECEMBER.timestamp()
    assert town.is_served("eve")
    assert not town.is_served("ada")
    assert sorted(town.pools()) == [
        ("TENANT#main#POOL#free", "MONTH#2026-11"),
        ("TENANT#main#POOL#free", "MONTH#2026-12"),
    ]


def test_a_period_counts_in_the_month_in_which_it_starts() -> None:
    town = Town(pool_tokens=2_000, period_kind=PeriodKind.ANCHORED_MONTH)
    town.call("ada")
    town.seconds = DECEMBER.timestamp() + 3_600  # ada's period has begun on 20 November and goes on
    town.call("ada")
    town.call("bob")
    assert town.pools() == {("TENANT#main#POOL#free", "MONTH#2026-11"): 2_000}


def test_overage_counts_because_it_can_be_used() -> None:
    town = Town(quota_kind="soft", overage_cap_tokens=500, pool_tokens=3_000)
    assert [town.is_served(name) for name in ("ada", "bob", "eve")] == [True, True, False]


def test_a_plan_without_a_pool_writes_nothing_about_one() -> None:
    town = Town()
    assert all(town.is_served(f"user{number}") for number in range(50))
    assert town.pools() == {}


def test_a_meter_that_another_process_opened_takes_nothing_again() -> None:
    town = Town(pool_tokens=1_000)
    assert town.meters.create(town.key, town.plan, 1) is Opening.OPEN
    assert town.meters.create(town.key, town.plan, 1) is Opening.OPEN
    assert list(town.pools().values()) == [1_000]


def test_an_older_plan_opens_nothing_and_takes_nothing() -> None:
    town = Town(pool_tokens=1_000)
    assert town.meters.create(town.key, town.plan, 2) is Opening.STALE_PLAN
    with pytest.raises(StaleAccountError):
        town.ledger.reserve(Account(Profile("main", "u1", "free", 2, START), town.plan), town.key, an_ask())
    assert town.pools() == {}


def test_a_lost_answer_takes_once() -> None:
    """The SDK's retry carries the same token, so DynamoDB applies the transaction once."""
    town = Town(pool_tokens=2_000)
    town.client.next_calls(Fate.FINE, Fate.FINE, Fate.ANSWER_LOST_THEN_RETRIED)
    assert town.is_served("ada")
    assert list(town.pools().values()) == [1_000]
    assert town.is_served("bob")


def test_somebody_elses_transaction_on_the_pool_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(pool_tokens=1_000)
    real = town.client.transact_write_items
    times = iter(range(100))

    def busy(**request: Any) -> Any:  # noqa: ANN401  boto3's own form
        if next(times) < 3:
            raise cancellation([{"Code": "None"}, {"Code": "None"}, {"Code": "TransactionConflict"}])
        return real(**request)

    monkeypatch.setattr(town.client, "transact_write_items", busy)
    assert town.is_served("ada")
    assert len(town.pauses) == 3
    assert town.pauses == sorted(town.pauses)
