"""Delivering notices: everybody meant is told at least once, nobody for ever, and each apart from the other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.ledger_world import START
from tests.support.moto_table import CountedTable, moto_table
from tests.support.notices import ThresholdWorld
from tollgate.catalog.loader import load_catalog
from tollgate.domain.errors import UpstreamUnavailableError
from tollgate.domain.notices import NotDeliveredError, NoticeRefusedError, QuotaShare, QuotaUnit, UsageNotice
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Profile
from tollgate.flows.deliver_notices import (
    DOWN_AFTER,
    GIVEN_UP_AFTER,
    MAX_ATTEMPTS,
    Delivered,
    NoticeDelivery,
)
from tollgate.storage.notices import LEASE, SHARDS, DueNotice, NoticeState
from tollgate.storage.preferences import Preferences

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class Journal:
    """What was told."""

    def __init__(self) -> None:
        self.metrics: Counter[str] = Counter()
        self.lines: list[str] = []

    def event(self, name: str, **fields: str | int | bool | None) -> None:
        self.lines.append(name)

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None:
        self.lines.append(name)

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None:
        self.metrics.update(values)


class Address:
    """The operator's: it remembers what came."""

    def __init__(self) -> None:
        self.notices: list[UsageNotice] = []
        self.tried: Counter[str] = Counter()
        self.down = False
        self.failing: dict[str, Exception] = {}
        """By user."""

    def send(self, notice: UsageNotice, at: datetime) -> None:
        self.tried[notice.user_id] += 1
        if self.down:
            raise NotDeliveredError("down")
        if notice.user_id in self.failing:
            raise self.failing[notice.user_id]
        self.notices.append(notice)


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[tuple[str, int]] = []
        self.tried: Counter[str] = Counter()
        self.down = False
        self.failing: dict[str, Exception] = {}
        """By address."""

    def send(self, notice: UsageNotice, plan_name: str, advice: str, address: str) -> None:
        self.tried[address] += 1
        if self.down:
            raise NotDeliveredError("down")
        if address in self.failing:
            raise self.failing[address]
        self.mails.append((address, notice.threshold_percent))


class DeliveryWorld(ThresholdWorld):
    def __init__(
        self, table: CountedTable, *, webhook: bool = True, mail: bool = True, email_verified: bool = True
    ) -> None:
        super().__init__(table, email="ada@example.com", email_verified=email_verified)
        self.address, self.mailbox, self.journal = Address(), Mailbox(), Journal()
        self.delivery = NoticeDelivery(
            self.notices,
            self.users,
            Preferences(table),
            load_catalog("default"),
            self.clock,
            self.journal,
            webhook=self.address if webhook else None,
            mailer=self.mailbox if mail else None,
        )

    def run(self, seconds: float = 30) -> Delivered:
        return self.delivery.run(self.clock.seconds + seconds)

    def note_for(self, user_id: str) -> None:
        """Another user has passed a threshold now."""
        period = period_at(self.plan.period_kind, START, self.now)
        self.users.create_profile(
            Profile("main", user_id, "free", 1, START, email=f"{user_id}@example.com", email_verified=True)
        )
        share = QuotaShare(QuotaUnit.TOKENS, 80, 100)
        self.notices.put(UsageNotice("main", user_id, period, "free", 75, share, self.now))

    def run_until_nothing_waits(self, *, every: timedelta, at_most: int) -> Delivered:
        """What all these runs did together."""
        done = Delivered()
        for _ in range(at_most):
            ran = self.run()
            delivered, put_off, dead, untried = (a + b for a, b in zip(figures(done), figures(ran), strict=True))
            done = Delivered(delivered, put_off, dead, untried)
            if not self.due:
                return done
            self.clock.advance(every.total_seconds())
        raise AssertionError(f"{len(self.due)} still wait")

    def state_of(self, user_id: str) -> tuple[NoticeState, int]:
        [stored] = self.notices.list_of_user("main", user_id)
        return stored.state, stored.attempts

    @property
    def waiting(self) -> list[int]:
        """How many, by shard."""
        return [len(list(self.notices.list_waiting(shard))) for shard in range(SHARDS)]

    def prefer(self, **preferences: object) -> None:
        assert Preferences(self.table).put_preferences("main", "u1", json.dumps(preferences))


def figures(done: Delivered) -> tuple[int, int, int, int]:
    return done.delivered, done.put_off, done.dead, done.untried


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def world(table: CountedTable) -> DeliveryWorld:
    return DeliveryWorld(table)


def test_operator_and_user_are_told_once(world: DeliveryWorld) -> None:
    world.use(800)
    assert world.run() == Delivered(delivered=1)
    assert world.run() == Delivered()
    assert [notice.threshold_percent for notice in world.address.notices] == [75]
    assert world.mailbox.mails == [("ada@example.com", 75)]
    assert [stored.state for stored in world.stored] == [NoticeState.DELIVERED]
    assert world.due == []


def test_of_a_jump_the_operator_hears_everything_and_the_user_gets_one_mail(world: DeliveryWorld) -> None:
    world.use(1000)
    assert world.run().delivered == 3
    assert sorted(notice.threshold_percent for notice in world.address.notices) == [75, 90, 100]
    assert world.mailbox.mails == [("ada@example.com", 100)]


def test_what_has_failed_comes_again_later_and_later(world: DeliveryWorld) -> None:
    world.use(800)
    world.address.down = True
    waits = []
    for _ in range(4):
        assert world.run() == Delivered(put_off=1)
        waits += world.due
        world.clock.advance(world.due[0].total_seconds())
    assert waits == [MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE]


def test_a_mail_does_not_go_out_again_because_the_operators_server_is_down(world: DeliveryWorld) -> None:
    world.use(800)
    world.address.down = True
    world.run()
    world.address.down = False
    world.clock.advance(60)
    assert world.run().delivered == 1
    assert len(world.mailbox.mails) == len(world.address.notices) == 1


def test_the_operator_is_not_told_again_because_mail_is_down(world: DeliveryWorld) -> None:
    world.use(800)
    world.mailbox.down = True
    assert world.run() == Delivered(put_off=1)
    world.mailbox.down = False
    world.clock.advance(60)
    assert world.run().delivered == 1
    assert len(world.mailbox.mails) == len(world.address.notices) == 1


def test_of_two_who_saw_the_same_entry_one_gets_it(world: DeliveryWorld) -> None:
    """Two runs that have both listed it before either took it."""
    world.use(800)
    [entry] = [entry for shard in range(SHARDS) for entry in world.notices.list_due(shard, world.now)]
    first = world.notices.take(entry, world.now)
    assert first is not None
    assert world.notices.take(entry, world.now) is None
    second = world.notices.take(first.entry, world.now + LEASE)  # the first died, its lease is over
    assert second is not None
    assert not world.notices.finish(first), "who is too late changes nothing"
    assert world.notices.finish(second)


def test_after_the_last_attempt_a_notice_is_dead_seen_and_can_be_revived(world: DeliveryWorld) -> None:
    world.use(800)
    world.address.down = True
    begun = world.now
    for attempt in range(1, MAX_ATTEMPTS + 1):
        done = world.run()
        assert done == (Delivered(dead=1) if attempt == MAX_ATTEMPTS else Delivered(put_off=1))
        if world.due:
            world.clock.advance(world.due[0].total_seconds())
    assert timedelta(hours=24) < world.now - begun < timedelta(hours=48)
    assert (world.due, world.journal.metrics["NoticesGivenUp"]) == ([], 1)
    assert [stored.state for stored in world.stored] == [NoticeState.DEAD]
    assert world.run() == Delivered()

    [dead] = world.notices.list_dead()
    world.address.down = False
    assert world.notices.revive(dead, world.now)
    assert not world.notices.revive(dead, world.now)
    assert world.run() == Delivered(delivered=1)
    assert len(world.mailbox.mails) == 1


def test_while_the_operators_server_is_down_a_run_tries_it_a_few_times_and_mails_everybody(
    table: CountedTable,
) -> None:
    world = DeliveryWorld(table)
    for number in range(9):
        world.note_for(f"user{number}")
    world.address.down = True
    assert world.run() == Delivered(put_off=DOWN_AFTER, untried=9 - DOWN_AFTER)
    assert world.address.tried.total() == DOWN_AFTER
    assert len(world.mailbox.mails) == 9


def test_two_runs_at_once_deliver_each_notice_once(world: DeliveryWorld) -> None:
    world.use(800)
    send, ran = world.address.send, []

    def meanwhile(notice: UsageNotice, at: datetime) -> None:
        ran.append(world.run())
        send(notice, at)

    world.address.send = meanwhile  # type: ignore[method-assign]
    assert world.run() == Delivered(delivered=1)
    assert ran == [Delivered()]
    assert len(world.address.notices) == 1


def test_a_run_that_died_after_it_was_heard_is_repeated_with_the_same_id(world: DeliveryWorld) -> None:
    """At least once: the receiver leaves out what it knows by the id."""
    world.use(800)
    with world.silence("GetItem"), pytest.raises(Exception, match="usage store"):
        world.run()  # the operator was told, then the table is gone
    world.clock.advance(LEASE.total_seconds() - 1)
    assert world.run() == Delivered()
    world.clock.advance(1)
    assert world.run() == Delivered(delivered=1)
    first, second = world.address.notices
    assert first.id == second.id


def test_a_run_out_of_time_leaves_the_rest_to_the_next(world: DeliveryWorld) -> None:
    world.use(1000)
    assert world.run(seconds=0) == Delivered(complete=False)
    assert world.run().delivered == 3


@pytest.mark.parametrize(
    ("due", "left"),
    [
        ("001795176000#mail#TENANT#main#USER#u1", {"mail"}),
        ("001795176000#webhook#TENANT#main#USER#mail", {"webhook"}),
        ("001795176000#mail+webhook#TENANT#main#USER#u1", {"webhook", "mail"}),
        ("001795176000#TENANT#main#USER#u1", {"webhook", "mail"}),
    ],
)
def test_an_entry_that_does_not_say_where_it_goes_may_go_everywhere(due: str, left: set[str]) -> None:
    assert DueNotice("TENANT#main#USER#u1", "NOTICE#2026-11#tokens#075", due).left == left


class TestOfMany:
    """Nobody's notice is lost, or kept waiting for long, because of somebody else's."""

    def test_those_whose_address_is_refused_keep_nobody_else(self, table: CountedTable) -> None:
        """The refused ones are due first in the first run and in every later one."""
        world = DeliveryWorld(table, webhook=False)
        refused = [f"refused{number}" for number in range(4 * DOWN_AFTER)]
        world.mailbox.failing = {f"{user}@example.com": NoticeRefusedError("rejected") for user in refused}
        for user in refused:
            world.note_for(user)
        for minute in range(10):
            world.clock.advance(60)
            world.note_for(f"healthy{minute}")
            world.run()
            assert world.mailbox.mails[-1][0] == f"healthy{minute}@example.com"
        done = world.run_until_nothing_waits(every=HOUR, at_most=50)
        assert (done.untried, world.journal.metrics["NoticesGivenUp"]) == (0, len(refused))
        assert {world.state_of(user) for user in refused} == {(NoticeState.DEAD, MAX_ATTEMPTS)}
        assert {world.mailbox.tried[f"{user}@example.com"] for user in refused} == {MAX_ATTEMPTS}

    @pytest.mark.parametrize("error", [NotDeliveredError("500"), UpstreamUnavailableError("no secret")])
    def test_failures_that_look_like_an_outage_keep_it_back_for_a_bounded_time(
        self, table: CountedTable, error: Exception
    ) -> None:
        """A run stops at three of those; the next begins after them, and what is new stands behind what has waited."""
        world = DeliveryWorld(table, mail=False)
        ahead = [f"ahead{number}" for number in range(20)]
        for user in ahead:
            world.note_for(user)
        world.clock.advance(1)
        world.note_for("healthy")
        world.address.failing = dict.fromkeys(ahead, error)
        runs = 0
        while world.state_of("healthy") == (NoticeState.WAITING, 0):
            runs += 1
            assert runs <= len(ahead) * SHARDS // DOWN_AFTER, "as if all of them were in the same part of the index"
            for number in range(DOWN_AFTER):
                world.note_for(f"new{runs}-{number}")
                world.address.failing[f"new{runs}-{number}"] = error
            world.run()
            world.clock.advance(60)
        assert runs > 1
        assert world.state_of("healthy") == (NoticeState.DELIVERED, 1)

    @pytest.mark.parametrize("channel", ["webhook", "mail"])
    def test_an_outage_of_hours_loses_nothing_and_costs_nobody_an_attempt_that_was_not_made(
        self, table: CountedTable, channel: str
    ) -> None:
        world = DeliveryWorld(table)
        users = [f"user{number}" for number in range(12)]
        for user in users:
            world.note_for(user)
        failing = world.address if channel == "webhook" else world.mailbox
        failing.down = True
        for _ in range(30):
            before = failing.tried.total()
            world.run()
            assert failing.tried.total() - before <= DOWN_AFTER
            world.clock.advance(10 * 60)
        states = [world.state_of(user) for user in users]
        assert {state for state, _ in states} == {NoticeState.WAITING}
        assert sum(attempts for _, attempts in states) == failing.tried.total()
        assert max(attempts for _, attempts in states) <= MAX_ATTEMPTS - 2
        failing.down = False
        done = world.run_until_nothing_waits(every=5 * MINUTE, at_most=60)
        assert figures(done) == (12, 0, 0, 0)
        assert len(world.address.notices) == len(world.mailbox.mails) == 12, "each once, on both ways"

    def test_what_waits_for_an_outage_to_end_costs_no_write(self, table: CountedTable) -> None:
        world = DeliveryWorld(table, mail=False)
        for number in range(10):
            world.note_for(f"user{number}")
        world.address.down = True
        world.run()
        table.calls.clear()
        assert world.run() == Delivered(put_off=DOWN_AFTER, untried=10 - 2 * DOWN_AFTER)
        assert table.calls["UpdateItem"] == 2 * DOWN_AFTER

    def test_an_outage_of_days_is_given_up_after_one_with_the_alarm_and_can_be_made_good(
        self, table: CountedTable
    ) -> None:
        """With more waiting than can have all their attempts in a day: each had one at least."""
        world = DeliveryWorld(table)
        users = [f"user{number}" for number in range(12)]
        for user in users:
            world.note_for(user)
        world.address.down = True
        begun = world.now
        while not world.journal.metrics["NoticesGivenUp"]:
            world.run()
            world.clock.advance(HOUR.total_seconds())
        assert timedelta(hours=24) < world.now - begun <= GIVEN_UP_AFTER + 10 * HOUR
        done = world.run_until_nothing_waits(every=HOUR, at_most=60)
        assert done.delivered == 0
        attempts = [world.state_of(user)[1] for user in users]
        assert {world.state_of(user)[0] for user in users} == {NoticeState.DEAD}
        assert min(attempts) >= 1
        assert max(attempts) <= MAX_ATTEMPTS
        assert world.journal.metrics["NoticesGivenUp"] == len(users) == len(world.mailbox.mails)

        world.address.down = False
        world.clock.advance(10 * 24 * 3600)
        assert sum(world.notices.revive(entry, world.now) for entry in world.notices.list_dead()) == len(users)
        assert world.run() == Delivered(delivered=len(users))
        assert len(world.address.notices) == len(world.mailbox.mails) == len(users)

    def test_one_users_broken_preferences_keep_nobody_else(self, table: CountedTable) -> None:
        world = DeliveryWorld(table, webhook=False)
        for user in ("broken", "healthy"):
            world.note_for(user)
        assert Preferences(table).put_preferences("main", "broken", "{")
        assert figures(world.run()) == (1, 1, 0, 0)
        assert world.mailbox.mails == [("healthy@example.com", 75)]

    def test_every_part_of_the_index_gets_its_turn(self, table: CountedTable) -> None:
        """Runs that have time for one notice each; then one that has time for four."""
        world = DeliveryWorld(table)
        for number in range(40):
            world.note_for(f"user{number}")
        before = world.waiting
        assert min(before) > 2
        send = world.address.send

        def slowly(notice: UsageNotice, at: datetime) -> None:
            world.clock.advance(15)
            send(notice, at)

        world.address.send = slowly  # type: ignore[method-assign]
        for minute in range(SHARDS):
            world.clock.seconds = START.timestamp() + 60 * minute
            assert world.run(seconds=15) == Delivered(delivered=1, complete=False)
        assert world.waiting == [number - 1 for number in before]
        assert world.run(seconds=15 * SHARDS) == Delivered(delivered=SHARDS, complete=False)
        assert world.waiting == [number - 2 for number in before]


class TestMail:
    def test_goes_to_nobody_who_wants_none(self, world: DeliveryWorld) -> None:
        world.prefer(usage_emails=False)
        world.use(800)
        assert world.run().delivered == 1
        assert (world.mailbox.mails, len(world.address.notices)) == ([], 1)

    def test_goes_to_those_who_have_said_nothing_about_it(self, world: DeliveryWorld) -> None:
        world.prefer(theme="dark")
        world.use(800)
        world.run()
        assert len(world.mailbox.mails) == 1

    def test_goes_to_no_address_that_nobody_has_confirmed(self, table: CountedTable) -> None:
        world = DeliveryWorld(table, email_verified=False)
        world.use(800)
        assert world.run().delivered == 1
        assert world.mailbox.mails == []

    def test_goes_to_no_deleted_account(self, world: DeliveryWorld) -> None:
        world.use(800)
        world.users.bury_profile("main", "u1", world.now)
        assert world.run().delivered == 1
        assert world.mailbox.mails == []

    def test_is_not_sent_when_the_period_is_over(self, world: DeliveryWorld) -> None:
        """It would be read as a warning about the period that has just begun."""
        world.clock.seconds = datetime(2026, 12, 1, tzinfo=UTC).timestamp() - 1
        world.use(800)
        world.mailbox.down = True
        world.address.down = True
        world.run()
        world.clock.advance(60)
        world.mailbox.down = world.address.down = False
        assert world.run().delivered == 1
        assert (world.mailbox.mails, len(world.address.notices)) == ([], 1)


@pytest.mark.parametrize(
    ("webhook", "mail", "heard"), [(True, False, (1, 0)), (False, True, (0, 1)), (False,) * 2 + ((0, 0),)]
)
def test_a_deployment_tells_those_it_is_set_up_to_tell(
    table: CountedTable, webhook: bool, mail: bool, heard: tuple[int, int]
) -> None:
    world = DeliveryWorld(table, webhook=webhook, mail=mail)
    world.use(800)
    assert world.run() == Delivered(delivered=1)
    assert (len(world.address.notices), len(world.mailbox.mails)) == heard


@pytest.mark.parametrize(("passed", "told"), [(timedelta(days=7), 1), (timedelta(days=7, seconds=1), 0)])
def test_what_happened_long_before_deliveries_were_set_up_is_told_to_nobody(
    world: DeliveryWorld, passed: timedelta, told: int
) -> None:
    world.use(800)
    world.clock.advance(passed.total_seconds())
    assert world.run() == Delivered(delivered=1)
    assert len(world.address.notices) == len(world.mailbox.mails) == told
