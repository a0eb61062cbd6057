"""The scheduled sweep over the meters that had a call."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from tests.support.clocks import FakeClock, Reports, raise_reported
from tests.support.closing import CATALOG, END, ClosingWorld, Killed
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.ledger import MeterName
from tollgate.domain.principals import Account
from tollgate.domain.sources import UserReport
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.note_activity import SILENCE_SECONDS, ActivityNotes
from tollgate.flows.sweep_meters import SweepReport, sweep_meters
from tollgate.storage.activity import SHARDS, Activity
from tollgate.storage.meters import Meters

NOON = datetime(2026, 11, 3, 12, tzinfo=END.tzinfo)
SWEPT_AFTER = timedelta(minutes=11, seconds=1)
PERIOD = "2026-10-20T120000Z"


def run(world: ClosingWorld, *, seconds: float = 600, report: UserReport = raise_reported) -> SweepReport:
    return sweep_meters(
        activity=Activity(world.table),
        meters=Meters(world.table),
        ledger=Ledger(Meters(world.table), world, world.ids),
        catalog=CATALOG,
        clock=world,
        report=report,
        deadline_at_seconds=world.seconds + seconds,
    )


def crashed(world: ClosingWorld, *names: str) -> None:
    """Calls of these users that reserved and were never heard of again."""
    for name in names:
        world.begin(world.sign_up(name), 100)


def test_ends_what_crashed_calls_left_open_and_nothing_else() -> None:
    world = ClosingWorld(NOON)
    names = [f"user{number}" for number in range(20)]
    crashed(world, *names)
    world.turn_to(NOON + timedelta(minutes=5))
    running = world.begin(world.sign_up("running"), 100)
    world.turn_to(NOON + SWEPT_AFTER)
    assert run(world) == SweepReport(seen_meters=21, expired_reservations=20, complete=True)
    assert all(world.meter(name).reservations == {} for name in names)
    world.end(running, 50)
    assert run(world).expired_reservations == 0


def test_looks_at_nobody_who_had_no_call() -> None:
    world = ClosingWorld(NOON - timedelta(hours=6))
    for number in range(10):
        world.call(world.sign_up(f"user{number}"), 100)
    world.turn_to(NOON)
    run(world)
    crashed(world, "late")
    world.turn_to(NOON + SWEPT_AFTER)
    assert run(world).seen_meters == 1


@pytest.mark.parametrize("late_hours", [0, 1, 5, 24, 70])
def test_a_run_that_comes_late_looks_as_far_back(late_hours: int) -> None:
    world = ClosingWorld(NOON)
    run(world)
    crashed(world, "user")
    world.turn_to(NOON + SWEPT_AFTER + timedelta(hours=late_hours))
    assert run(world).expired_reservations == 1


def test_each_hour_is_looked_at_until_its_last_call_must_be_over() -> None:
    world = ClosingWorld(NOON + timedelta(minutes=59, seconds=59))
    crashed(world, "user")
    world.turn_to(NOON + timedelta(hours=1, minutes=10))
    assert run(world).expired_reservations == 0
    world.turn_to(NOON + timedelta(hours=2, minutes=10))
    assert run(world).expired_reservations == 1
    calls = len(world.client.calls)
    assert run(world) == SweepReport(seen_meters=0, expired_reservations=0, complete=True)
    # A mark for each shard, and two hours: this one, and the one that ended ten minutes ago.
    assert world.client.calls[calls:] == ["GetItem", "Query", "Query"] * SHARDS


def test_a_call_before_midnight_of_the_last_day_is_found_in_its_own_period() -> None:
    world = ClosingWorld(END - timedelta(seconds=1))
    crashed(world, "user")
    world.turn_to(END + SWEPT_AFTER)
    assert run(world).expired_reservations == 1
    assert world.meter("user", PERIOD).written_off_tokens == 90


def test_stops_at_its_deadline_and_the_next_run_goes_on() -> None:
    world = ClosingWorld(NOON)
    crashed(world, "user")
    world.turn_to(NOON + SWEPT_AFTER)
    assert run(world, seconds=0) == SweepReport(seen_meters=0, expired_reservations=0, complete=False)
    assert run(world).expired_reservations == 1


def test_killed_at_any_call_and_run_again_it_ends_the_same() -> None:
    town = ClosingWorld(NOON)
    run(town)
    crashed(town, "user1", "user2", "user3")
    town.turn_to(NOON + SWEPT_AFTER)
    expected = town.copy()
    run(expected)
    for call in range(1, len(expected.client.calls) + 1):
        for applied in (False, True):
            world = town.copy()
            world.client.kill_at, world.client.applied = call, applied
            with suppress(Killed):
                run(world)
            world.client.kill_at = None
            run(world)
            assert world.state() == expected.state(), (call, applied)


def test_goes_on_past_a_user_whose_plan_is_no_longer_in_the_catalog() -> None:
    world = ClosingWorld(NOON)
    crashed(world, "user")
    item = world.memory.partitions["TENANT#main#USER#user"][f"USAGE#{PERIOD}"]
    world.memory.partitions["TENANT#main#USER#user"][f"USAGE#{PERIOD}"] = item | {"plan_id": {"S": "gone"}}
    world.turn_to(NOON + SWEPT_AFTER)
    assert run(world).expired_reservations == 1
    assert (world.meter("user").settled_tokens, world.meter("user").written_off_tokens) == (10, 90)


def test_one_that_cannot_be_read_keeps_nobody_and_is_looked_at_again() -> None:
    world = ClosingWorld(NOON)
    crashed(world, "broken", "user1", "user2")
    item = world.memory.partitions["TENANT#main#USER#broken"][f"USAGE#{PERIOD}"]
    world.memory.partitions["TENANT#main#USER#broken"][f"USAGE#{PERIOD}"] = {
        name: value for name, value in item.items() if name != "quota"
    }
    reports = Reports()
    world.turn_to(NOON + timedelta(hours=2))
    swept = run(world, report=reports)
    assert (swept.expired_reservations, swept.complete) == (2, True)
    assert reports.users == ["broken"]
    world.memory.partitions["TENANT#main#USER#broken"][f"USAGE#{PERIOD}"] = item
    assert run(world).expired_reservations == 1


# ---- notes of activity


def notes_of(world: ClosingWorld, clock: FakeClock, reports: Reports) -> tuple[ActivityNotes, Account]:
    return ActivityNotes(Activity(world.table), clock, reports), world.sign_up("u")


def test_a_meter_is_noted_once_in_each_hour_of_the_clock() -> None:
    world, clock, reports = ClosingWorld(NOON), FakeClock(NOON.timestamp()), Reports()
    notes, account = notes_of(world, clock, reports)
    key, puts = account_key(account, NOON), []
    for seconds in (0, 1, 3599, 3600, 3601, 7200):
        clock.seconds = NOON.timestamp() + seconds
        notes.note(key)
        puts.append(world.client.calls[1:].count("PutItem"))
    assert puts == [1, 1, 1, 2, 2, 3]
    shards = range(SHARDS)
    active = [one for shard in shards for one in Activity(world.table).list_active(NOON + timedelta(hours=1), shard)]
    assert active == [MeterName("main", "u", PERIOD)]


def test_a_table_that_does_not_answer_is_left_alone_for_a_minute_and_nobody_hears_of_it() -> None:
    world, clock, reports = ClosingWorld(NOON), FakeClock(NOON.timestamp()), Reports()
    notes, account = notes_of(world, clock, reports)
    key = account_key(account, NOON)
    world.client.next_calls(Fate.NEVER_ARRIVED)
    counts = []
    for seconds in (0, SILENCE_SECONDS - 1, SILENCE_SECONDS, SILENCE_SECONDS + 1):
        clock.seconds = NOON.timestamp() + seconds
        notes.note(key)
        counts.append(world.client.calls[1:].count("PutItem"))
    assert counts == [1, 1, 2, 2]
    assert [name for name, _ in reports.lines] == ["activity_not_noted"]
