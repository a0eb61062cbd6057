"""The close of usage periods: the same end state whatever is killed, doubled or late, and nothing hidden."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.closing import CATALOG, END, ClosingWorld, Killed
from tests.support.ledger_world import an_ask
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import EXPIRY_MARGIN_SECONDS, Settlement
from tollgate.domain.rollups import RowKey, Sums
from tollgate.domain.subscriptions import Entitlements
from tollgate.flows.close_period import AHEAD_SECONDS, CLOSE_LAG_SECONDS, CloseReport
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.roll_up_usage import UsageRollUps
from tollgate.storage.meters import SHARDS, Meters
from tollgate.storage.requests import Requests
from tollgate.storage.rollups import DayRollUps

DUE = END + timedelta(seconds=CLOSE_LAG_SECONDS)
NEXT = "2026-11-20T120000Z"
LATE = ("closed_at", "first_closed_at", "swept_at", "expires_at", "through_at")
"""Attributes that say when the job ran: by a late run they differ, and by nothing else."""


def a_town() -> ClosingWorld:
    return TOWN.copy()


def _build_town() -> ClosingWorld:
    """Of every kind one: used, crashed, across the end, beyond the quota, never recorded, free, on another period."""
    world = ClosingWorld()
    world.sweep()
    plain, crashed, crossing = (world.sign_up(name) for name in ("plain", "crashed", "crossing"))
    beyond = world.sign_up("beyond", overage_cap_cents=5_000)
    untold, free = world.sign_up("untold"), world.sign_up("free", "free")
    world.call(plain, 1_000)
    world.call(plain, 500)
    world.begin(crashed, 3_000)
    world.end(world.begin(untold, 400), 400, recorded=False)
    world.call(free, 200)
    world.call(beyond, 2_000_000)
    world.call(beyond, 7_000)
    world.turn_to(END - timedelta(minutes=4))
    streams = [(world.begin(crossing, 800), world.now) for _ in range(2)]
    world.turn_to(END + timedelta(minutes=4))
    for grant, began_at in streams:
        world.end(grant, 700, began_at=began_at)
    world.call(plain, 50)
    world.turn_to(DUE)
    return world


TOWN = _build_town()


def in_index(world: ClosingWorld) -> set[tuple[str, str]]:
    meters, far = Meters(world.table), END + timedelta(days=400)
    return {(name.user_id, name.period_id) for shard in range(SHARDS) for name in meters.list_ending(shard, far)}


def test_a_period_is_closed_when_its_last_calls_must_be_over() -> None:
    for early, closed in ((1, 0), (0, 1), (-1, 1)):
        world = ClosingWorld()
        world.call(world.sign_up("u"), 100)
        world.turn_to(DUE - timedelta(seconds=early))
        assert world.run() == CloseReport(closed, 0, 0, complete=True)


def test_a_closed_period_has_a_summary_and_left_the_index() -> None:
    world = a_town()
    assert world.run() == CloseReport(5, 0, 1, complete=True)
    summary, meter = world.summary("plain"), world.meter("plain")
    assert (summary.charged_tokens, summary.settled_requests, summary.reconciled) == (1_500, 2, True)
    assert (summary.counts, summary.cost_picousd) == (meter.counts, meter.cost_picousd)
    assert summary.closed_at == summary.first_closed_at == meter.closed_at == DUE
    # Everybody on a plan that is sold goes on; who is on the free plan, and whoever is not done, stands as before.
    assert in_index(world) == {(name, NEXT) for name in ("plain", "crashed", "crossing", "beyond", "untold")} | {
        ("free", "2026-11")
    }
    assert world.run() == CloseReport(0, 0, 0, complete=True)


def test_a_stream_across_the_end_is_billed_where_it_was_reserved() -> None:
    world = a_town()
    world.run()
    assert world.summary("crossing").charged_tokens == 1_400
    assert world.summary("crossing").reconciled
    assert world.meter("crossing", NEXT).settled_tokens == 0
    assert world.meter("plain", NEXT).settled_tokens == 50


def test_what_a_crashed_call_left_open_is_ended_and_shown() -> None:
    world = ClosingWorld(END - timedelta(seconds=10))
    world.begin(world.sign_up("u"), 3_000)
    world.turn_to(DUE)
    assert world.closer().close_due(world.seconds + 60) == CloseReport(1, 0, 0, complete=True)  # without any sweep
    summary = world.summary("u")
    assert (summary.expired_requests, summary.charged_tokens, summary.written_off_tokens) == (1, 10, 2_990)
    assert summary.reconciled


def test_overage_is_handed_over_before_the_close() -> None:
    world = a_town()
    world.run()
    assert ("beyond", 7_000 * 20_000) in world.handed_over
    assert (world.summary("beyond").overage_tokens, world.summary("beyond").overage_nanousd) == (7_000, 140_000_000)
    assert "free" not in {name for name, _ in world.handed_over}


def test_a_settled_call_that_nobody_recorded_is_stored_as_a_difference() -> None:
    world = a_town()
    world.run()
    summary = world.summary("untold")
    assert not summary.reconciled
    assert (summary.unrecorded_tokens, summary.unrecorded_counts.total_tokens) == (400, 400)
    assert summary.unrecorded_picousd == summary.cost_picousd > 0
    assert ("period_closed", "unreconciled") in [(name, line.get("outcome")) for name, line in world.journal.lines]


@pytest.mark.parametrize(
    ("attribute", "field"), [("charged_tokens", "unrecorded_tokens"), ("cost_picousd", "unrecorded_picousd")]
)
def test_a_planted_difference_is_found(attribute: str, field: str) -> None:
    world = a_town()
    [place, *_] = [(pk, sk) for pk, sk, _ in world.memory.items() if pk.endswith("plain") and sk.startswith("REQUEST#")]
    item = world.memory.partitions[place[0]][place[1]]
    world.memory.partitions[place[0]][place[1]] = item | {attribute: {"N": str(int(item[attribute]["N"]) + 1)}}
    assert world.run().unreconciled_periods == 2
    assert getattr(world.summary("plain"), field) == -1


def test_tombstones_are_pruned() -> None:
    world = a_town()
    meters, key = Meters(world.table), world.meter("plain").key
    for number in range(250):
        meters.forbid(key, f"gone{number}", int(END.timestamp()) + number)
    assert len(world.meter("plain").tombstones) == 250
    world.run()
    assert world.meter("plain").tombstones == {}


# ---- next periods


def test_the_next_period_of_a_subscriber_is_opened_ahead() -> None:
    for early_seconds, opened in ((1, 0), (0, 0), (-1, 1)):
        world = ClosingWorld()
        world.call(world.sign_up("u"), 100)
        world.turn_to(END - timedelta(seconds=AHEAD_SECONDS + early_seconds))
        assert world.closer().open_ahead(world.seconds + 60) == opened
        assert world.closer().open_ahead(world.seconds + 60) == 0
    account = world.sign_up("u")
    assert world.meter("u", NEXT).key == account_key(account, END)
    world.turn_to(END)
    world.client.calls.clear()
    grant = Ledger(Meters(world.table), world, world.ids).reserve(account, account_key(account, END), an_ask(100))
    assert world.client.calls == ["UpdateItem"]
    assert grant.meter.settled_tokens == 0


def test_nothing_is_opened_for_who_does_not_pay_or_is_gone() -> None:
    world = ClosingWorld()
    world.call(world.sign_up("free", "free"), 100)
    world.call(world.sign_up("gone", deleted_at=END), 100)
    world.turn_to(END - timedelta(minutes=1))
    world.memory.partitions["TENANT#main#USER#gone"]["PROFILE"]["deleted_at"] = {"N": "1"}
    assert world.closer().open_ahead(world.seconds + 60) == 0


# ---- killed, doubled, late


def close(world: ClosingWorld) -> None:
    world.closer().close_due(world.seconds + 600)


def _calls() -> list[str]:
    world = a_town()
    close(world)
    return world.client.calls


CALLS = _calls()
WRITES = [number for number, operation in enumerate(CALLS, 1) if operation not in {"GetItem", "Query"}]


@pytest.fixture(scope="module")
def expected() -> ClosingWorld:
    world = a_town()
    close(world)
    return world


def die(world: ClosingWorld, call: int, *, applied: bool) -> None:
    """A run that is killed at this call."""
    world.client.kill_at, world.client.applied = world.client.count + call, applied
    with suppress(Killed):
        close(world)
    world.client.kill_at = None


def test_killed_before_any_call_and_run_again_it_ends_the_same(expected: ClosingWorld) -> None:
    for call in range(1, len(CALLS) + 1):
        world = a_town()
        die(world, call, applied=False)
        close(world)
        assert world.state() == expected.state(), call


def test_killed_after_any_write_and_run_again_it_ends_the_same(expected: ClosingWorld) -> None:
    for call in WRITES:
        world = a_town()
        die(world, call, applied=True)
        close(world)
        assert world.state() == expected.state(), call


def test_killed_in_every_run_but_the_last_it_ends_the_same(expected: ClosingWorld) -> None:
    """Each run goes a few calls further than the one before."""
    world = a_town()
    for call in range(1, len(CALLS) + 1, 3):
        die(world, call, applied=call % 2 == 0)
    close(world)
    assert world.state() == expected.state()


def test_run_twice_at_once_it_ends_the_same(expected: ClosingWorld) -> None:
    """A second whole run between any two calls of the first."""
    for call in range(1, len(CALLS) + 1):
        world = a_town()
        other = world.copy()
        other.memory.partitions = world.memory.partitions
        world.client.meanwhile = lambda other=other: close(other)
        world.client.kill_at = world.client.count + call
        close(world)
        assert world.state() == expected.state(), call


@pytest.mark.parametrize("fate", [Fate.NEVER_ARRIVED, Fate.APPLIED_NEVER_ANSWERED, Fate.ANSWER_LOST_THEN_RETRIED])
def test_an_answer_that_is_lost_changes_nothing_in_the_end(expected: ClosingWorld, fate: Fate) -> None:
    for call in WRITES:
        world = a_town()
        world.client.next_calls(*[Fate.FINE] * (call - 1), fate)
        with suppress(StoreUnavailableError):
            close(world)
        close(world)
        assert world.state() == expected.state(), call


def test_three_days_late_it_ends_the_same_but_for_the_instants_of_the_job(expected: ClosingWorld) -> None:
    """Roll-ups apart: their days are exact to now, and an orphan is in the day on which it was swept."""
    world, in_time = a_town(), expected.copy()
    world.turn_to(DUE + timedelta(days=3))
    close(world)
    assert _without_days(world) == _without_days(in_time)
    assert world.summary("plain").closed_at == DUE + timedelta(days=3)
    in_time.turn_to(world.now)
    assert _rolled_up(world) == _rolled_up(in_time)


def _without_days(world: ClosingWorld) -> dict[tuple[str, str], dict[str, Any]]:
    return {(pk, sk): item for (pk, sk), item in world.state(*LATE).items() if not sk.startswith(("DAY#", "ROLLUPS"))}


def _rolled_up(world: ClosingWorld) -> dict[str, list[tuple[RowKey, Sums]]]:
    found = {}
    for name in ("plain", "crashed", "crossing", "beyond", "untold", "free"):
        days = world.roll_ups().days("main", name, END.date() - timedelta(days=1), END.date() + timedelta(days=3))
        assert days.exact
        found[name] = sorted(((key, sums) for rows in days.rows.values() for key, sums in rows.items()), key=repr)
    return found


def test_a_run_without_time_leaves_everything_and_says_so() -> None:
    world = a_town()
    assert world.closer().close_due(world.seconds) == CloseReport(0, 0, 0, complete=False)


class _SmallPasses(ClosingWorld):
    """A user with more records than one reading takes: three of them stand for 20,000."""

    def roll_ups(self) -> UsageRollUps:
        return UsageRollUps(
            Requests(self.table), DayRollUps(self.table), Meters(self.table), CATALOG, self, self.ids, records_at_most=3
        )


def test_a_period_with_more_records_than_one_reading_takes_is_closed_in_one_run() -> None:
    world = _SmallPasses(END - timedelta(hours=2))
    user = world.sign_up("u")
    for _ in range(20):
        world.call(user, 10)
        world.turn_to(world.now + timedelta(minutes=1))
    world.turn_to(DUE)
    assert world.run() == CloseReport(1, 0, 0, complete=True)
    assert (world.summary("u").charged_tokens, world.summary("u").reconciled) == (200, True)


def test_one_that_is_left_says_why() -> None:
    world = ClosingWorld(END - timedelta(minutes=1))
    world.begin(world.sign_up("u"), 100)
    world.turn_to(DUE)
    [shard] = [pk for pk in world.memory.partitions if pk.endswith("#u")]
    items = world.memory.partitions[shard]
    name, text = next((name, value) for name, value in items["USAGE#2026-10-20T120000Z"].items() if name[:2] == "r#")
    amount, _, rest = text["S"].split(":", 2)
    late = {name: {"S": f"{amount}:{int(DUE.timestamp())}:{rest}"}}  # as a clock far ahead of ours had written it
    items["USAGE#2026-10-20T120000Z"] = items["USAGE#2026-10-20T120000Z"] | late
    assert world.run() == CloseReport(0, 1, 0, complete=True)
    assert ("u", "open_reservations") in [
        (line["user_id"], line["outcome"]) for event, line in world.journal.lines if event == "period_left"
    ]


# ---- one must not keep the others


def broken(world: ClosingWorld, sk: str, attribute: str) -> None:
    items = world.memory.partitions["TENANT#main#USER#plain"]
    items[sk] = {name: value for name, value in items[sk].items() if name != attribute}


def test_one_that_cannot_be_read_does_not_keep_the_others() -> None:
    world = a_town()
    broken(world, "USAGE#2026-10-20T120000Z", "quota")
    world.client.next_calls()
    assert world.closer().close_due(world.seconds + 60) == CloseReport(4, 1, 1, complete=True)
    assert [line["user_id"] for name, line in world.journal.lines if name == "period_left"] == ["plain"]


def test_one_whose_plan_cannot_be_read_does_not_keep_the_others_from_being_opened_ahead() -> None:
    world = a_town()
    world.run()
    world.turn_to(datetime(2026, 12, 20, 12, tzinfo=UTC) - timedelta(hours=1))
    broken(world, "PROFILE", "plan_version")
    world.client.next_calls()
    assert world.closer().open_ahead(world.seconds + 60) == 4
    assert [line["user_id"] for name, line in world.journal.lines if name == "period_not_opened"] == ["plain"]


def test_an_outage_ends_the_run_with_an_error() -> None:
    world = a_town()
    world.client.next_calls(*[Fate.FINE] * 17, *[Fate.NEVER_ARRIVED] * 200)
    with pytest.raises(StoreUnavailableError):
        world.closer().close_due(world.seconds + 60)


# ---- what comes late


def _corrected_after_the_close(more: Callable[[ClosingWorld], None] = lambda _: None) -> ClosingWorld:
    world = ClosingWorld(END - timedelta(minutes=5))
    grant = world.begin(world.sign_up("u", overage_cap_cents=5_000), 3_000)
    world.turn_to(DUE)
    world.run()
    assert world.summary("u").charged_tokens == 10
    more(world)
    world.turn_to(DUE + timedelta(hours=1))
    world.end(grant, 2_500, began_at=END - timedelta(minutes=5))
    return world


def test_a_correction_after_the_close_opens_the_period_again_and_shows() -> None:
    world = _corrected_after_the_close()
    assert world.meter("u").closed_at is None
    assert ("u", "2026-10-20T120000Z") in in_index(world)
    handed_over = len(world.handed_over)
    world.turn_to(DUE + timedelta(hours=2))
    assert world.run().closed_periods == 1
    summary = world.summary("u")
    assert (summary.charged_tokens, summary.late_tokens, summary.reopened) == (2_500, 2_490, 1)
    assert summary.late_written_off_tokens == -2_990
    assert (summary.first_closed_at, summary.closed_at) == (DUE, DUE + timedelta(hours=2))
    assert summary.corrected_requests == 1
    assert len(world.handed_over) == handed_over + 1
    assert in_index(world) == {("u", NEXT)}


def test_a_correction_between_the_look_and_the_close_is_in_the_summary() -> None:
    world = ClosingWorld(END - timedelta(minutes=5))
    grant = world.begin(world.sign_up("u"), 3_000)
    world.turn_to(END + timedelta(minutes=12))
    assert EXPIRY_MARGIN_SECONDS < 60
    world.sweep()
    world.turn_to(DUE)
    late = world.new_table()

    def correct() -> None:
        Ledger(Meters(late), world, world.ids).settle(grant, Settlement(2_500))

    world.client.before_next("TransactWriteItems", correct)  # the next period is opened
    world.run()
    assert world.summary("u").charged_tokens == 2_500
    assert world.meter("u").closed_at == DUE


def test_a_plan_change_that_makes_the_period_longer_opens_it_again() -> None:
    """28 February is the beginning of a month from the 28th and of one from the 31st, which end three days apart."""
    world = ClosingWorld(datetime(2026, 2, 28, 1, tzinfo=UTC))
    account = world.sign_up("u", created_at=datetime(2026, 1, 28, tzinfo=UTC))
    ledger = Ledger(Meters(world.table), world, world.ids)
    anchors = [datetime(2026, 1, day, tzinfo=UTC) for day in (28, 31)]
    account = ledger.change_entitlements(account, Entitlements("pro", anchors[0]), account.listed_plan)
    world.call(account, 100)
    world.turn_to(datetime(2026, 3, 28, tzinfo=UTC) + timedelta(hours=1))
    assert world.run().closed_periods == 1
    account = ledger.change_entitlements(account, Entitlements("pro", anchors[1]), account.listed_plan)
    world.call(account, 30)
    assert world.run().closed_periods == 0
    world.turn_to(datetime(2026, 3, 31, 1, tzinfo=UTC))
    assert world.run().closed_periods == 1
    summary = world.summary("u", "2026-02-28T000000Z")
    assert (summary.charged_tokens, summary.reopened, summary.late_tokens) == (130, 0, 0)
    assert summary.period.end_at == datetime(2026, 3, 31, tzinfo=UTC)
