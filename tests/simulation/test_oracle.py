"""The oracle itself: a correct run passes, and every planted fault is reported by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.simulation.scenario import Options, draw_scenario
from tests.simulation.truth import Held
from tests.simulation.world import World

SEED = 5
CALM = Options(faults=False, relay=False)


def run_with(plant: Callable[[World], None], *, at_seconds: float | None = None) -> list[str]:
    """The violations of a calm run in which `plant` happens in the middle, or after its last event."""
    scenario = draw_scenario(SEED, CALM)
    world = World(replace(scenario, plan_changes=()))
    middle = scenario.requests[len(scenario.requests) // 2].at_seconds + 0.3
    world.hub.at(middle if at_seconds is None else scenario.start_seconds + at_seconds, lambda: plant(world))
    world.run()
    return [violation.kind for violation in world.oracle.violations]


def some_meter(world: World) -> tuple[str, str]:
    return next((pk, sk) for pk, sk, item in world.table.items() if sk.startswith("USAGE#"))


def write(world: World, expression: str, names: dict[str, str] | None = None, **values: int | str) -> None:
    """An unguarded write of somebody who has no business there."""
    pk, sk = some_meter(world)
    request = {
        "TableName": "tollgate",
        "Key": {"PK": {"S": pk}, "SK": {"S": sk}},
        "UpdateExpression": expression,
        "ExpressionAttributeValues": {
            f":{name}": {"N": str(value)} if isinstance(value, int) else {"S": value} for name, value in values.items()
        },
    }
    if names:
        request["ExpressionAttributeNames"] = names
    world.table.apply("UpdateItem", request, world.hub.now)


HOLD = "SET #r = :r, remaining = remaining - :n, open_count = open_count + :one, req_remaining = req_remaining - :one"


def ended(world: World) -> Held:
    return next(held for held in world.oracle.reservations.values() if not held.open and held.call is not None)


def test_a_calm_run_has_nothing_to_report() -> None:
    assert run_with(lambda world: None) == []


def test_a_charge_without_a_reservation_is_reported() -> None:
    kinds = run_with(lambda world: write(world, "SET settled = settled + :n, remaining = remaining - :n", n=5))

    assert "conservation" in kinds


def test_a_lost_token_is_reported() -> None:
    kinds = run_with(lambda world: write(world, "SET remaining = remaining - :n", n=1))

    assert "conservation" in kinds


def test_a_reservation_that_is_billed_twice_is_reported() -> None:
    """The sums are right at every step, and still the call was paid for twice."""

    def revive_and_settle_again(world: World) -> None:
        held = ended(world)
        name = {"#r": f"r#{held.id}"}
        write(
            world,
            HOLD,
            name,
            r=f"50:1900000000:{held.nonce}:10",
            n=50,
            one=1,
        )
        write(
            world,
            "SET settled = settled + :n, open_count = open_count - :one REMOVE #r",
            name,
            n=50,
            one=1,
        )

    assert "double_bill" in run_with(revive_and_settle_again)


def test_an_admission_beyond_the_quota_is_reported() -> None:
    def admit(world: World) -> None:
        write(
            world,
            HOLD,
            {"#r": "r#intruder"},
            r="999999999999999999:1900000000:intruder:10",
            n=999_999_999_999_999_999,
            one=1,
        )

    assert "over_limit" in run_with(admit)


def test_a_keys_count_that_nothing_stands_for_is_reported() -> None:
    kinds = run_with(lambda world: write(world, "SET #k = :n", {"#k": "k#key1"}, n=5))

    assert "conservation" in kinds


def test_a_reservation_that_takes_from_a_budget_that_its_key_does_not_have_is_reported() -> None:
    def admit(world: World) -> None:
        world.network.sender = next(process for process in world.hub.processes if process.limits is None)
        write(
            world,
            f"{HOLD}, #k = :n",
            {"#r": "r#intruder", "#k": "k#key1"},
            r="1:1900000000:intruder:1:key1",
            n=1,
            one=1,
        )

    assert "over_budget" in run_with(admit)


def test_a_pool_that_gives_without_an_opening_is_reported() -> None:
    def take(world: World) -> None:
        request = {
            "TableName": "tollgate",
            "Key": {"PK": {"S": "TENANT#main#POOL#plan0"}, "SK": {"S": "MONTH#2026-11"}},
            "UpdateExpression": "SET taken = :n",
            "ExpressionAttributeValues": {":n": {"N": "1"}},
        }
        world.table.apply("UpdateItem", request, world.hub.now)

    assert "pool" in run_with(take)


def test_a_reservation_nobody_ends_is_reported() -> None:
    def reserve(world: World) -> None:
        write(
            world,
            HOLD,
            {"#r": "r#forever"},
            r="1:99999999999:forever:1",
            n=1,
            one=1,
        )

    assert "orphan_leak" in run_with(reserve)


def test_a_plan_version_that_goes_back_is_reported() -> None:
    def go_back(world: World) -> None:
        pk, _ = some_meter(world)
        request = {
            "TableName": "tollgate",
            "Key": {"PK": {"S": pk}, "SK": {"S": "PROFILE"}},
            "UpdateExpression": "SET plan_version = :v",
            "ExpressionAttributeValues": {":v": {"N": "0"}},
        }
        world.table.apply("UpdateItem", request, world.hub.now)

    assert "stale_plan" in run_with(go_back)


def overwrite(world: World, sk: str, expression: str, **values: int) -> None:
    """An unguarded write of the user's profile, or of any other item of theirs."""
    request = {
        "TableName": "tollgate",
        "Key": {"PK": {"S": some_meter(world)[0]}, "SK": {"S": sk}},
        "UpdateExpression": expression,
        "ExpressionAttributeValues": {f":{name}": {"N": str(value)} for name, value in values.items()},
    }
    world.table.apply("UpdateItem", request, world.hub.now)


@pytest.mark.parametrize("expression", ["SET ov_nanousd = :n", "SET ov_tokens = :n"])
def test_overage_that_nobody_used_is_reported(expression: str) -> None:
    assert "overage_money" in run_with(lambda world: write(world, expression, n=1))


def test_overage_that_is_forgiven_by_a_larger_quota_is_reported() -> None:
    def forgive(world: World) -> None:
        pk, sk = some_meter(world)
        settled = int((world.table.find(pk, sk) or {})["settled"]["N"])
        owed = world.oracle.standings.owed[pk, sk]
        owed.quota = settled - 1  # one token was overage
        owed.tokens, owed.nanousd = 1, owed.price
        write(world, "SET written_off = written_off + :n", n=0)

    assert "overage_money" in run_with(forgive)


def test_a_profile_that_differs_from_what_was_sold_is_reported() -> None:
    kinds = run_with(
        lambda world: overwrite(
            world, "PROFILE", "SET plan_version = plan_version + :n, anchor_at = anchor_at + :n", n=1
        )
    )

    assert "stale_plan" in kinds


def test_a_plan_change_that_leaves_the_running_meter_behind_is_reported() -> None:
    kinds = run_with(lambda world: overwrite(world, "PROFILE", "SET plan_version = plan_version + :n", n=1))

    assert "stale_plan" in kinds


def test_a_subscription_whose_record_goes_back_is_reported() -> None:
    def go_back(world: World) -> None:
        for serial in (1, 0):
            world.oracle.standings.sold[some_meter(world)[0]] *= 2
            overwrite(world, "SUBSCRIBER", "SET serial = :n", n=serial)

    assert "stale_plan" in run_with(go_back)


def test_a_call_on_a_meter_that_its_user_has_left_is_reported() -> None:
    def leave_and_hold(world: World) -> None:
        world.network.sender = world.hub.processes[0]
        world.oracle.standings.owed[some_meter(world)].left = True
        write(world, HOLD, {"#r": "r#late"}, r="1:1900000000:late:1", n=1, one=1)

    assert "stale_plan" in run_with(leave_and_hold)


def test_a_second_meter_for_the_same_month_is_reported() -> None:
    def open_another(world: World) -> None:
        pk, sk = some_meter(world)
        item = dict(world.table.find(pk, sk) or {})
        start = str(int(item["start_at"]["N"]) + 1)
        other = {name: value for name, value in item.items() if name[1] != "#"}
        other |= {"SK": {"S": "USAGE#other"}, "start_at": {"N": start}}
        world.table.apply("PutItem", {"TableName": "tollgate", "Item": other}, world.hub.now)

    assert "no_second_quota" in run_with(open_another)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda held: setattr(held.call, "output_tokens", held.call.output_tokens + 7), "lost_tokens"),
        (lambda held: setattr(held.call, "output_tokens", 0), "overbill"),
        (lambda held: setattr(held.call, "starts", 2), "double_call"),
        (lambda held: setattr(held, "cost_picousd", held.cost_picousd + 1), "inexact"),
        (lambda held: setattr(held, "charged_tokens", held.charged_tokens + 1), "ledger"),
    ],
)
def test_what_differs_from_the_truth_in_the_end_is_reported(change: Callable[[Held], None], kind: str) -> None:
    kinds = run_with(lambda world: change(ended(world)))

    assert kind in kinds


def test_use_beyond_the_quota_is_reported() -> None:
    """Generated, but neither reserved nor written off: the upstream's bill is larger than any quota."""

    def overuse(world: World) -> None:
        call = ended(world).call
        assert call is not None
        call.output_tokens += 10**16

    assert "truth_over_limit" in run_with(overuse)
