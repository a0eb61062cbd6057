"""Delivering notices: everybody meant is told at least once, nobody for ever, and each apart from the other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.moto_table import CountedTable, moto_table
from tests.support.notices import ThresholdWorld
from tollgate.catalog.loader import load_catalog
from tollgate.domain.notices import NotDeliveredError, UsageNotice
from tollgate.flows.deliver_notices import DOWN_AFTER, LEASE, MAX_ATTEMPTS, Delivered, NoticeDelivery
from tollgate.storage.notices import SHARDS, NoticeState
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
        self.tried = 0
        self.down = False

    def send(self, notice: UsageNotice, at: datetime) -> None:
        self.tried += 1
        if self.down:
            raise NotDeliveredError("down")
        self.notices.append(notice)


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[tuple[str, int]] = []
        self.down = False

    def send(self, notice: UsageNotice, plan_name: str, advice: str, address: str) -> None:
        if self.down:
            raise NotDeliveredError("down")
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

    def prefer(self, **preferences: object) -> None:
        assert Preferences(self.table).put_preferences("main", "u1", json.dumps(preferences))


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
    first = world.notices.take(entry, world.now + LEASE)
    assert first is not None
    assert world.notices.take(entry, world.now + 2 * LEASE) is None
    second = world.notices.take(first.entry, world.now + 2 * LEASE)  # the first died, its lease is over
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
    world.thresholds = world.new_process(*range(10, 100, 10))
    for _ in range(9):
        world.use(100)
    world.address.down = True
    assert world.run() == Delivered(put_off=9)
    assert world.address.tried == DOWN_AFTER
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
