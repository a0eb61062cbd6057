"""`tollgate summaries`, and `reconcile ledger` at closed periods: what was kept at the close is shown, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.cli.test_operator import Operator
from tests.support.moto_table import moto_table
from tests.support.operator_world import OperatorWorld
from tollgate.domain.ledger import Settlement
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.close_period import PeriodCloser
from tollgate.storage.period_summaries import PeriodSummaries


class Silence:
    """`tollgate.flows.message_calls.Journal`, unread."""

    def event(self, name: str, **fields: object) -> None: ...

    def failure(self, name: str, error: BaseException, **fields: object) -> None: ...

    def measure(self, values: object, **others: object) -> None: ...


class ClosedWorld(OperatorWorld):
    """Whose periods end, and are closed by the job."""

    def close(self, *user_ids: str) -> None:
        for user_id in user_ids:
            self.sweep(user_id)
        report = self.closer().close_due(self.clock.seconds + 600)
        assert (report.left_periods, report.complete) == (0, True)

    def closer(self) -> PeriodCloser:
        return PeriodCloser(
            meters=self.meters,
            ledger=self.ledger,
            roll_ups=self.roll_ups,
            summaries=PeriodSummaries(self.table),
            users=self.users,
            catalog=self.catalog,
            clock=self.clock,
            journal=Silence(),
            hand_over_overage=lambda _: None,
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClosedWorld]:
    """`ada` and `bob` had a period of everything; it is closed."""
    with moto_table(monkeypatch) as table:
        made = ClosedWorld(table)
        for user_id in ("ada", "bob"):
            made.add_user(user_id, "pro")
            made.pass_time(seconds=1)
        made.call("ada", 1_000)
        made.call("ada", 2_000, estimated=True, written_off=77)
        made.crash("bob", 500)
        made.call("bob", 300)
        yield made


@pytest.fixture
def tollgate(world: ClosedWorld) -> Operator:
    return Operator(world)


def end_the_period(world: ClosedWorld) -> None:
    world.pass_time(days=31, hours=2)
    world.close("ada", "bob")


def test_of_the_running_period_a_user_shows_the_same(tollgate: Operator) -> None:
    ada = tollgate.json("users", "show", "ada")["running_period"]
    assert (ada["estimated_requests"], ada["estimated_tokens"], ada["expired_requests"]) == (1, 2_000, 0)
    assert "2,000 tokens of 1 calls" in tollgate.says("users", "show", "ada")


def test_an_orphan_of_it_is_shown_once_it_is_swept(tollgate: Operator, world: ClosedWorld) -> None:
    world.pass_time(minutes=5)
    world.sweep("bob")
    assert tollgate.json("users", "show", "bob")["running_period"]["expired_requests"] == 1
    assert "1 calls, and 0 unbooked" in tollgate.says("users", "show", "bob")


def test_before_a_period_is_closed_there_is_nothing_to_show(tollgate: Operator) -> None:
    assert tollgate.json("summaries") == {"summaries": []}


def test_each_closed_period_is_shown_with_what_is_easily_overlooked(tollgate: Operator, world: ClosedWorld) -> None:
    end_the_period(world)
    ada, bob = tollgate.json("summaries")["summaries"]
    assert (ada["user_id"], ada["charged_tokens"], ada["written_off_tokens"]) == ("ada", 3_000, 77)
    assert (ada["estimated_requests"], ada["estimated_tokens"], ada["expired_requests"]) == (1, 2_000, 0)
    assert (bob["user_id"], bob["expired_requests"], bob["reconciled"], bob["reopened"]) == ("bob", 1, True, 0)
    said = tollgate.says("summaries")
    assert "Closed usage periods: 2" in said
    assert "3,000" in said
    assert "Orphans" in said


def test_one_user_can_be_asked_for(tollgate: Operator, world: ClosedWorld) -> None:
    end_the_period(world)
    assert [each["user_id"] for each in tollgate.json("summaries", "--user", "bob")["summaries"]] == ["bob"]


def test_what_came_late_is_shown_beside_what_was_charged(tollgate: Operator, world: ClosedWorld) -> None:
    """A call that everybody took for dead ends after all: it is charged once, and the period closed once more."""
    grant = world.reserve("ada", 900)
    end_the_period(world)
    world.pass_time(minutes=1)
    world.ledger.settle(grant, Settlement(400, counts=TokenCounts(390, 10), cost_picousd=5))
    world.close("ada")
    [ada] = tollgate.json("summaries", "--user", "ada")["summaries"]
    assert (ada["reopened"], ada["late_tokens"], ada["charged_tokens"]) == (1, -500, 3_400)
    assert "-500 ($0.0000)" in tollgate.says("summaries")


def test_periods_whose_records_do_not_add_up_can_be_asked_for(tollgate: Operator, world: ClosedWorld) -> None:
    world.drop("ada", "REQUEST#")
    end_the_period(world)
    [ada] = tollgate.json("summaries", "--unreconciled")["summaries"]
    assert (ada["user_id"], ada["unrecorded_tokens"], ada["reconciled"]) == ("ada", 1_000, False)
    assert "+1,000 ($0.0010)" in tollgate.says("summaries", "--unreconciled")
    assert "Closed usage periods: 1" in tollgate.says("summaries", "--unreconciled")


def test_a_period_goes_on_being_shown_when_its_records_are_gone(tollgate: Operator, world: ClosedWorld) -> None:
    end_the_period(world)
    before = tollgate.json("summaries")
    world.pass_time(days=200)
    for _ in range(2):
        world.drop("ada", "REQUEST#")
    assert tollgate.json("summaries") == before


@pytest.mark.parametrize("days_ago", [87, 88, 89, 90, 400])
def test_days_are_shown_as_long_as_their_roll_up_is_there(
    tollgate: Operator, world: ClosedWorld, days_ago: int
) -> None:
    """Records go after 90 days, on both sides of which a day is told once."""
    world.pass_time(days=1)
    world.roll_up("ada")
    world.pass_time(days=days_ago - 1)
    if days_ago > 90:
        for _ in range(2):
            world.drop("ada", "REQUEST#")
    told = tollgate.json("usage", "ada", "--days", "500")["days"]
    assert [(each["requests"], each["charged_tokens"], each["estimated_requests"]) for each in told] == [(2, 3_000, 1)]
    assert tollgate.json("usage", "ada", "--days", str(days_ago))["days"] == []
    assert tollgate.json("usage", "ada", "--days", str(days_ago + 1))["days"] == told


class TestReconcile:
    def test_a_summary_that_tells_its_meter_is_no_difference(self, tollgate: Operator, world: ClosedWorld) -> None:
        end_the_period(world)
        assert tollgate.json("reconcile", "ledger")["differences"] == []

    @pytest.mark.parametrize(
        ("stored", "figure"),
        [
            ("charged_tokens", "charged_tokens"),
            ("settled_requests", "requests"),
            ("output_tokens", "output_tokens"),
            ("cost_picousd", "cost_picousd"),
            ("overage_nanousd", "overage_nanousd"),
        ],
    )
    def test_one_that_was_changed_is(self, tollgate: Operator, world: ClosedWorld, stored: str, figure: str) -> None:
        end_the_period(world)
        world.plant("ada", "SUMMARY#", **{stored: 41})
        [told] = tollgate.json("reconcile", "ledger", status=1)["differences"]
        assert (told["kind"], told["user_id"], told["figure"], told["found"]) == ("summary", "ada", figure, 41)

    def test_one_that_is_gone_is(self, tollgate: Operator, world: ClosedWorld) -> None:
        end_the_period(world)
        world.drop("ada", "SUMMARY#")
        told = tollgate.json("reconcile", "ledger", status=1)["differences"]
        assert {"summaries", "charged_tokens"} <= {each["figure"] for each in told}
        assert {each["kind"] for each in told} == {"summary"}

    def test_one_that_waits_for_what_came_late_is_not(self, tollgate: Operator, world: ClosedWorld) -> None:
        grant = world.reserve("ada", 900)
        end_the_period(world)
        world.pass_time(minutes=1)
        world.ledger.settle(grant, Settlement(400, counts=TokenCounts(390, 10), cost_picousd=5))
        told = tollgate("reconcile", "ledger").output
        assert "summary" not in told


def test_all_periods_of_a_user_are_read_in_their_order(world: ClosedWorld) -> None:
    end_the_period(world)
    for _ in range(3):
        world.call("ada", 100)
        world.pass_time(days=31)
        world.close("ada")
    found = list(PeriodSummaries(world.table).list_of_user("main", "ada"))
    assert [each.period.start_at for each in found] == sorted(each.period.start_at for each in found)
    assert {each.user_id for each in found} == {"ada"}
    assert found[-1].period.end_at - found[0].period.start_at > timedelta(days=100)
