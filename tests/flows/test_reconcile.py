"""Whatever is planted is found, and nothing is found where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from tests.support.moto_table import moto_table
from tests.support.operator_world import MODEL, OperatorWorld
from tests.support.subscriptions import a_subscriber, a_subscription
from tollgate.domain.overage import BilledLine, Span, Window
from tollgate.domain.rollups import RowKey, RowKind, Sums
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.reconcile import LOOKS, PAUSE_SECONDS, Difference, OverageCheck, OverageReconciler, drifts
from tollgate.storage.overage import OverageAccounts
from tollgate.storage.subscriptions import Subscriptions

TODAY = date(2026, 11, 20)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[OperatorWorld]:
    with moto_table(monkeypatch) as table:
        world = OperatorWorld(table)
        world.add_user("ada")
        yield world


def chaos(world: OperatorWorld) -> None:
    """Good calls, an estimate, something written off, an orphan, over two days; most of it rolled up."""
    world.call("ada")
    world.call("ada", 2_000, estimated=True, written_off=77)
    world.crash("ada", 500)
    world.pass_time(minutes=5)
    world.sweep("ada")
    world.call("ada", 300, model="claude-haiku-5-5", key="key_2")
    world.pass_time(days=1, hours=1)
    world.roll_up("ada")
    world.call("ada", 50)


def differences(world: OperatorWorld) -> list[tuple[str, str, str, int]]:
    found = world.reconciler.check("main", "ada").differences
    return [(each.kind, each.place, each.figure, each.found - each.expected) for each in found]


def test_nothing_differs_where_nothing_is_wrong(world: OperatorWorld) -> None:
    chaos(world)
    checked = world.reconciler.check("main", "ada")
    assert checked.differences == ()
    assert (checked.users, checked.periods, checked.records) == (1, 1, 4)


def test_what_is_no_fault_is_counted_all_the_same(world: OperatorWorld) -> None:
    chaos(world)
    world.crash("ada", 700)
    world.pass_time(minutes=5)
    checked = world.reconciler.check("main", "ada")
    assert (checked.expired, checked.expired_tokens) == (1, 500)
    assert (checked.estimated, checked.estimated_tokens) == (1, 2_000)
    assert checked.written_off_tokens == 77
    assert checked.unswept == 1
    assert checked.differences == ()


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"settled": 3_851, "remaining": 96_149}, [("meter", "2026-11", "charged_tokens", 1)]),
        ({"written_off": 76}, [("meter", "2026-11", "written_off_tokens", -1)]),
        ({"t_in": 0}, [("meter", "2026-11", "input_tokens", -3_310)]),
        ({"picousd": 0}, "cost_picousd"),
        ({"req_remaining": 0}, "requests"),
        ({"remaining": 96_151}, [("sums", "2026-11", "remaining_tokens", 1)]),
        ({"open_count": 1}, "open_reservations"),
    ],
)
def test_a_planted_figure_of_a_meter_is_found(world: OperatorWorld, planted: dict[str, int], found: Any) -> None:  # noqa: ANN401
    chaos(world)
    world.plant("ada", "USAGE#", **planted)
    told = differences(world)
    if isinstance(found, str):
        assert found in [figure for _, _, figure, _ in told]
    else:
        assert told == found


def test_a_planted_figure_of_a_record_is_found_in_its_meter_and_in_its_day(world: OperatorWorld) -> None:
    chaos(world)
    world.plant("ada", "REQUEST#", charged_tokens=1_005)
    assert differences(world) == [
        ("roll_up", "2026-11-20", "charged_tokens", -5),
        ("meter", "2026-11", "charged_tokens", -5),
    ]


def test_a_lost_record_is_found(world: OperatorWorld) -> None:
    chaos(world)
    world.drop("ada", "REQUEST#")
    told = differences(world)
    assert ("meter", "2026-11", "charged_tokens", 1_000) in told
    assert ("roll_up", "2026-11-20", "requests", 1) in told


def test_a_lost_orphan_is_found(world: OperatorWorld) -> None:
    chaos(world)
    world.drop("ada", "EXPIRED#")
    assert ("meter", "2026-11", "charged_tokens", 500) in differences(world)


def test_a_lost_day_is_found(world: OperatorWorld) -> None:
    chaos(world)
    world.drop("ada", "DAY#")
    assert ("roll_up", "2026-11-20", "charged_tokens", -3_800) in differences(world)


def test_a_day_that_counts_a_call_for_another_key_is_found_though_its_sums_agree(world: OperatorWorld) -> None:
    chaos(world)
    rolled = world.days.find_day("main", "ada", TODAY)
    assert rolled is not None
    rows = {}
    for key, sums in rolled.rows.items():
        other = RowKey(key.kind, key.period_id, "key_9", *(getattr(key, name) for name in RowKey.__slots__[3:]))
        rows[other if key.key_id == "key_2" else key] = sums
    assert world.days.put_day("main", "ada", replace(rolled, rows=rows, generation="planted"), rolled)
    assert differences(world) == [("roll_up", "2026-11-20", "rows", 0)]


def test_a_lost_meter_is_found(world: OperatorWorld) -> None:
    chaos(world)
    world.drop("ada", "USAGE#")
    assert ("meter", "2026-11", "charged_tokens", -3_850) in differences(world)


def test_after_ninety_days_roll_ups_stand_in_for_the_records(world: OperatorWorld) -> None:
    chaos(world)
    world.pass_time(hours=1)
    world.roll_up("ada")
    world.pass_time(days=100)
    world.roll_ups.days("main", "ada", TODAY, TODAY)  # the mark moves with whoever looks
    while True:
        try:
            world.drop("ada", "REQUEST#")
        except StopIteration:
            break
    world.add_user("bob")
    assert differences(world) == []
    world.plant("ada", "USAGE#", settled=3_851, remaining=96_149)
    world.call("ada", 40)
    world.pass_time(hours=2)
    world.roll_up("ada")
    assert ("meter", "2026-11", "charged_tokens", 1) in differences(world)


def test_a_call_that_settles_while_we_look_is_no_difference(world: OperatorWorld) -> None:
    """Between reading the meter and reading the records."""
    chaos(world)
    calls: list[int] = []
    events = world.table.client.meta.events

    def meanwhile(**_: object) -> None:
        if not calls:
            calls.append(1)
            world.call("ada", 123)

    events.register("after-call.dynamodb.Query", meanwhile)
    try:
        assert world.reconciler.check("main", "ada").differences == ()
    finally:
        events.unregister("after-call.dynamodb.Query", meanwhile)
    assert calls


def always_calling(world: OperatorWorld) -> Callable[..., None]:
    """Ada calls before each reading of her records."""
    running: list[int] = []

    def meanwhile(params: dict[str, Any], **_: object) -> None:
        if b"REQUEST#" in params["body"] and not running:
            running.append(1)
            world.call("ada", 123)
            running.clear()

    return meanwhile


def test_a_user_who_always_calls_is_looked_at_a_few_times_and_is_moving(world: OperatorWorld) -> None:
    chaos(world)
    before, meanwhile = world.clock.seconds, always_calling(world)
    events = world.table.client.meta.events
    events.register("before-call.dynamodb.Query", meanwhile)
    try:
        checked = world.reconciler.check("main", "ada")
    finally:
        events.unregister("before-call.dynamodb.Query", meanwhile)
    assert checked.differences == ()
    assert {(each.place, each.figure, each.found - each.expected) for each in checked.moving} >= {
        ("2026-11", "charged_tokens", -123),
        ("2026-11", "requests", -1),
    }
    assert world.clock.seconds - before == (LOOKS - 1) * PAUSE_SECONDS
    assert differences(world) == []


def test_what_stands_still_and_differs_is_found_though_the_rest_moves(world: OperatorWorld) -> None:
    chaos(world)
    rolled = world.days.find_day("main", "ada", TODAY)
    assert rolled is not None
    world.plant("ada", "USAGE#", remaining=96_151)
    world.pass_time(days=31)
    world.call("ada", 50)
    world.plant("ada", "REQUEST#", charged_tokens=1_005)
    meanwhile = always_calling(world)
    events = world.table.client.meta.events
    events.register("before-call.dynamodb.Query", meanwhile)
    try:
        checked = world.reconciler.check("main", "ada")
    finally:
        events.unregister("before-call.dynamodb.Query", meanwhile)
    assert {(each.kind, each.place, each.figure) for each in checked.differences} == {
        ("roll_up", "2026-11-20", "charged_tokens"),
        ("sums", "2026-11", "remaining_tokens"),
        ("meter", "2026-11", "charged_tokens"),
    }
    assert {each.place for each in checked.moving} == {"2026-12"}


class Stripe:
    """What Stripe says, without Stripe."""

    def __init__(self, total: int = 0, *lines: BilledLine) -> None:
        self.total = total
        self.lines = lines

    def find_total(self, customer_id: str, start_at: datetime, end_at: datetime) -> int:
        assert customer_id == "cus_1"
        return self.total

    def list_lines(self, subscription_id: str, since_at: datetime) -> tuple[BilledLine, ...]:
        return self.lines


class TestOverage:
    @pytest.fixture
    def owing(self, world: OperatorWorld) -> OperatorWorld:
        """Five units and something, in the month that runs."""
        world.call("ada")
        world.plant("ada", "USAGE#", ov_nanousd=599_999, ov_tokens=30)
        return world

    def open_window(self, world: OperatorWorld, *, value: int = 5, delivered: bool = True) -> None:
        accounts = OverageAccounts(world.table)
        account = accounts.take("main", "ada", "me", world.now)
        [meter] = world.meters.list_of_user("main", "ada")
        assert account is not None
        period = meter.key.period
        window = Window("sub_1", "cus_1", period.start_at, period.end_at, value, 1, world.now, delivered, world.now)
        changed = accounts.give_back(replace(account, windows=(window,), spans=(Span(period.start_at),)))
        assert changed is not None

    def check(self, world: OperatorWorld, stripe: Stripe) -> list[OverageCheck]:
        subscriptions = Subscriptions(world.table)
        reader = OverageReconciler(OverageAccounts(world.table), world.meters, subscriptions, stripe, world.clock)
        return reader.check("main", "ada")

    def test_nobody_without_overage_is_asked_about(self, world: OperatorWorld) -> None:
        world.call("ada")
        assert self.check(world, Stripe()) == []

    @pytest.mark.parametrize(("days", "differs"), [(0, False), (40, True)])
    def test_overage_that_stripe_was_never_told_of_is_found_when_its_period_is_over(
        self, owing: OperatorWorld, days: int, differs: bool
    ) -> None:
        owing.pass_time(days=days)
        [check] = self.check(owing, Stripe())
        assert (check.place, check.owed, check.told, check.differs) == ("never told", 5, 0, differs)

    @pytest.mark.parametrize(
        ("told", "days", "differs"),
        [(5, 0, False), (4, 0, False), (0, 0, False), (6, 0, True), (5, 40, False), (4, 40, True), (0, 40, True)],
    )
    def test_stripe_may_be_behind_while_a_window_runs_and_never_ahead(
        self, owing: OperatorWorld, told: int, days: int, differs: bool
    ) -> None:
        self.open_window(owing, delivered=False)
        owing.pass_time(days=days)
        window, *_ = self.check(owing, Stripe(told))
        assert (window.owed, window.told, window.differs) == (5, told, differs)

    def test_a_value_that_stripe_took_and_does_not_have_is_found(self, owing: OperatorWorld) -> None:
        self.open_window(owing, value=5)
        assert not any(check.differs for check in self.check(owing, Stripe(4)))  # summaries follow some time after
        owing.pass_time(minutes=5)
        [sent] = [check for check in self.check(owing, Stripe(4)) if check.differs]
        assert sent.place.endswith("as sent")
        assert sent.difference() == Difference("stripe", "main", "ada", sent.place, "overage", 5, 4)

    @pytest.mark.parametrize(("quantity", "differs"), [(3, False), (2, True)])
    def test_an_invoice_that_bills_otherwise_than_we_counted_is_found(
        self, owing: OperatorWorld, quantity: int, differs: bool
    ) -> None:
        ours = BilledLine("in_1", "sub_1", owing.now - timedelta(days=31), owing.now, 3, final=True)
        accounts = OverageAccounts(owing.table)
        account = accounts.take("main", "ada", "me", owing.now)
        assert account is not None
        account = accounts.put(replace(account, billed_units=3), owing.now, (ours,))
        assert account is not None
        Subscriptions(owing.table).put(a_subscriber(a_subscription(), version=0, user_id="ada"))
        found = self.check(owing, Stripe(0, replace(ours, quantity=quantity)))
        assert [(check.place, check.differs) for check in found] == [("all invoices", False), ("invoice in_1", differs)]

    @pytest.mark.parametrize(("minutes", "differs"), [(0, False), (119, False), (120, True), (121, True)])
    def test_an_invoice_that_was_just_finalized_is_counted_later_and_no_difference(
        self, owing: OperatorWorld, minutes: int, differs: bool
    ) -> None:
        accounts = OverageAccounts(owing.table)
        account = accounts.take("main", "ada", "me", owing.now)
        assert account is not None
        assert accounts.put(account, owing.now, ()) is not None
        Subscriptions(owing.table).put(a_subscriber(a_subscription(), version=0, user_id="ada"))
        finalized_at = owing.now - timedelta(minutes=minutes)
        theirs = BilledLine("in_1", "sub_1", finalized_at, finalized_at, 3, final=True, finalized_at=finalized_at)
        _, check = self.check(owing, Stripe(0, theirs))
        assert (check.place, check.owed, check.told, check.differs) == ("invoice in_1", 0, 3, differs)


class TestDrift:
    def test_is_none_where_both_sides_count_the_same(self, world: OperatorWorld) -> None:
        chaos(world)
        ours = list(world.reconciler.use_by_day("main", "ada", TODAY, TODAY))
        theirs = [
            (TODAY, f"{MODEL}-20251001", TokenCounts(2_000, 10)),
            (TODAY, MODEL, TokenCounts(980, 10)),
            (TODAY, "claude-haiku-5-5", TokenCounts(290, 10)),
        ]
        found = drifts(ours, theirs, world.catalog)
        assert [(drift.model, drift.differs) for drift in found] == [(MODEL, False), ("claude-haiku-5-5", False)]

    def test_is_told_by_day_and_model_with_what_may_explain_it(self, world: OperatorWorld) -> None:
        chaos(world)
        ours = list(world.reconciler.use_by_day("main", "ada", TODAY, TODAY))
        theirs = [(TODAY, MODEL, TokenCounts(3_480, 20)), (TODAY, "claude-unheard-of", TokenCounts(7, 0))]
        haiku, newer, stranger = drifts(ours, theirs, world.catalog)
        assert (haiku.model, haiku.tokens, haiku.estimated, haiku.expired) == (MODEL, 500, 1, 1)
        assert haiku.permille == 142
        assert (newer.model, newer.tokens, newer.permille) == ("claude-haiku-5-5", -300, None)
        assert (stranger.model, stranger.tokens, stranger.permille) == ("claude-unheard-of", 7, 1000)

    def test_calls_that_were_never_booked_count_as_anthropic_counts_them(self, world: OperatorWorld) -> None:
        row = (TODAY, RowKey(RowKind.UNBOOKED, "2026-11", "k", MODEL), Sums(requests=1, input_tokens=5))
        [drift] = drifts([row], [(TODAY, MODEL, TokenCounts(5))], world.catalog)
        assert not drift.differs
