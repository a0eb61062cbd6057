"""The mark of a user in overage: none without overage, one write in 15 minutes with it, and never an error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ledger_world import a_plan
from tests.support.moto_table import CountedTable, moto_table
from tests.support.notices import ThresholdWorld
from tollgate.domain.plans import QuotaKind
from tollgate.flows.note_overage import MEMORY_SECONDS, OverageNotes
from tollgate.storage.overage import SHARDS, DueOverage, OverageMarks

SOFT = a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=100_000, overage_price_microusd_per_1k_tokens=20_000)


@pytest.fixture
def table() -> Iterator[CountedTable]:
    with pytest.MonkeyPatch.context() as patch, moto_table(patch) as made:
        yield made


@pytest.fixture
def world(table: CountedTable) -> ThresholdWorld:
    return ThresholdWorld(table, SOFT)


def notes_of(world: ThresholdWorld) -> OverageNotes:
    return OverageNotes(OverageMarks(world.table), world.clock, world.reports)


def marks(world: ThresholdWorld) -> list[DueOverage]:
    return [due for shard in range(SHARDS) for due in OverageMarks(world.table).list_shard(shard)]


def calls(world: ThresholdWorld, notes: OverageNotes, tokens: int) -> int:
    standing = world.settle(tokens)
    before = world.table.calls.total()
    notes.note(standing)
    return world.table.calls.total() - before


def test_a_user_within_the_quota_costs_nothing(world: ThresholdWorld) -> None:
    assert calls(world, notes_of(world), 1_000) == 0
    assert marks(world) == []


def test_a_user_in_overage_costs_one_write_in_fifteen_minutes(world: ThresholdWorld) -> None:
    notes = notes_of(world)

    assert calls(world, notes, 1_001) == 1
    assert [calls(world, notes, 10) for _ in range(5)] == [0] * 5
    world.clock.seconds += MEMORY_SECONDS - 1
    assert calls(world, notes, 10) == 0
    world.clock.seconds += 1
    assert calls(world, notes, 10) == 1
    assert [(due.tenant_id, due.user_id) for due in marks(world)] == [("main", "u1")]


def test_each_process_marks_for_itself(world: ThresholdWorld) -> None:
    assert calls(world, notes_of(world), 1_001) == 1
    assert calls(world, notes_of(world), 10) == 1


def test_a_table_that_does_not_answer_is_reported_and_tried_again(world: ThresholdWorld) -> None:
    notes, standing = notes_of(world), world.settle(1_001)
    with world.silence():
        notes.note(standing)
    assert marks(world) == []
    assert [name for name, _ in world.reports.lines] == ["overage_not_noted"]

    notes.note(standing)
    assert len(marks(world)) == 1


def test_a_mark_that_was_put_again_is_not_removed(world: ThresholdWorld) -> None:
    stored = OverageMarks(world.table)
    stored.put("main", "u1", "2026-11", world.now)
    [seen] = marks(world)
    world.clock.seconds += 1
    stored.put("main", "u1", "2026-11", world.now)
    stored.remove(seen)
    assert len(marks(world)) == 1

    [newer] = marks(world)
    stored.put("main", "u1", "2026-11", world.now.replace(year=2020))
    stored.remove(newer)
    assert marks(world) == []
