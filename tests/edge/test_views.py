"""What users are told about themselves."""

from __future__ import annotations

import pytest

from tests.support.ledger_world import LedgerWorld, a_plan, an_ask
from tollgate.domain.ledger import Settlement
from tollgate.domain.plans import UNLIMITED, QuotaKind
from tollgate.edge.views import plan_view, usage_view
from tollgate.flows.current_usage import find_current_usage


def view_of(world: LedgerWorld) -> dict[str, object]:
    return usage_view(find_current_usage(world.account, world.meters, world.ledger, world))


def test_a_quota_that_does_not_exist_is_null_and_never_a_large_number() -> None:
    world = LedgerWorld(a_plan(quota_tokens=None, quota_requests=None))
    before = view_of(world)
    world.ledger.reserve(world.account, world.key, an_ask(100))
    after = view_of(world)
    for view in (before, after):
        assert view["tokens"]["quota"] is view["tokens"]["remaining"] is None  # type: ignore[index]
        assert view["requests"]["quota"] is view["requests"]["remaining"] is None  # type: ignore[index]
        assert str(UNLIMITED)[:6] not in repr(view)
    assert after["tokens"]["reserved"] == 100  # type: ignore[index]


def test_requests_are_counted_beside_tokens() -> None:
    world = LedgerWorld(a_plan(quota_tokens=None, quota_requests=5))
    first = world.ledger.reserve(world.account, world.key, an_ask(100))
    world.ledger.reserve(world.account, world.key, an_ask(100))
    world.ledger.settle(first, Settlement(used_tokens=40))
    assert view_of(world)["requests"] == {"quota": 5, "used": 1, "reserved": 1, "remaining": 3}


@pytest.mark.parametrize(("calls", "left"), [(2, 1), (3, 0), (4, 0)])
def test_after_a_change_to_fewer_calls_than_were_made_none_is_left(calls: int, left: int) -> None:
    world = LedgerWorld(a_plan(quota_tokens=None, quota_requests=5))
    for _ in range(calls):
        world.use(10)
    world.follow(world.change(a_plan(id="small", quota_tokens=None, quota_requests=3)))
    requests = view_of(world)["requests"]
    assert requests == {"quota": 3, "used": calls, "reserved": 0, "remaining": left}


def test_used_reserved_and_remaining_add_up_to_the_quota() -> None:
    world = LedgerWorld()
    first = world.ledger.reserve(world.account, world.key, an_ask(300))
    world.ledger.reserve(world.account, world.key, an_ask(200))
    world.ledger.settle(first, Settlement(used_tokens=120, written_off_tokens=30))
    tokens = view_of(world)["tokens"]
    assert tokens == {"quota": 1000, "used": 120, "reserved": 200, "remaining": 680, "overage": 0, "written_off": 30}


def test_less_than_nothing_is_shown_as_overage() -> None:
    world = LedgerWorld(a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=500))
    grant = world.ledger.reserve(world.account, world.key, an_ask(1_200))
    world.ledger.settle(grant, Settlement(used_tokens=1_200))
    tokens = view_of(world)["tokens"]
    assert tokens == {"quota": 1000, "used": 1200, "reserved": 0, "remaining": 0, "overage": 200, "written_off": 0}


def test_overage_of_an_earlier_plan_is_no_part_of_the_quota_that_is_shown() -> None:
    """1,200 used of 1,000, then a plan of 5,000: the 200 stay overage, and 4,000 of the 5,000 are left."""
    soft = {"quota_kind": QuotaKind.SOFT, "overage_cap_tokens": 5_000, "overage_price_microusd_per_1k_tokens": 20_000}
    world = LedgerWorld(a_plan(**soft))
    world.use(1_200)
    world.follow(world.change(a_plan(id="large", quota_tokens=5_000, **soft)))
    tokens = view_of(world)["tokens"]
    assert tokens == {"quota": 5000, "used": 1200, "reserved": 0, "remaining": 4000, "overage": 200, "written_off": 0}


def test_the_period_is_told_in_utc_with_the_reset_at_its_end() -> None:
    view = view_of(LedgerWorld())
    assert view["period"] == {"id": "2026-11", "start_at": "2026-11-01T00:00:00Z", "end_at": "2026-12-01T00:00:00Z"}
    assert view["resets_at"] == "2026-12-01T00:00:00Z"


def test_a_plan_for_every_model_lists_none_and_a_narrow_one_lists_its_own() -> None:
    assert plan_view(a_plan())["models"] is None
    assert plan_view(a_plan(models=frozenset({"b", "a"})))["models"] == ["a", "b"]
