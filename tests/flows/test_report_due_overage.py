"""The hourly look at everybody whose overage grew: one user's trouble keeps nobody else from being billed."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.support.clocks import Reports
from tests.support.closing import ClosingWorld
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.errors import StoreUnavailableError, StripeUnavailableError
from tollgate.flows.report_overage import DueOverageReport, OverageReporter, report_due_overage
from tollgate.storage.meters import Meters
from tollgate.storage.overage import SHARDS, OverageAccounts, OverageMarks
from tollgate.storage.subscriptions import Subscriptions


class _SilentStripe:
    """Of `providers.stripe_meter.StripeMeter`: what is asked first is not answered."""

    def list_items(self, customer_id: str) -> object:
        raise StripeUnavailableError(f"Stripe did not answer for {customer_id}.")


PERIOD = "2026-10-20T120000Z"


class _Town:
    """Three users who were in overage once, in the order in which the marks are listed."""

    def __init__(self) -> None:
        self.world = ClosingWorld()
        self.accounts, self.marks = OverageAccounts(self.world.table), OverageMarks(self.world.table)
        self.reports = Reports()
        names = ("ada", "bob", "cy")
        self.users = {name: self.world.sign_up(name, overage_cap_cents=5_000) for name in names}
        for name in names:
            self.world.call(self.users[name], 100)
            self.marks.put("main", name, PERIOD, self.world.now)

    def use_up(self, *names: str) -> None:
        """They are in overage, and customers of Stripe's, which does not answer."""
        for name in names:
            assert Subscriptions(self.world.table).claim_customer("main", name, f"cus_{name}")
            for tokens in (2_000_000, 7_000):
                self.world.call(self.users[name], tokens)

    def run(self, *, seconds: float = 600) -> DueOverageReport:
        world = self.world
        reporter = OverageReporter(
            self.accounts,
            Meters(world.table),
            Subscriptions(world.table),
            cast("Any", _SilentStripe()),
            world,
            world.ids,
            cast("Any", world.journal),
            stack="test",
        )
        return report_due_overage(
            accounts=self.accounts,
            marks=self.marks,
            reporter=reporter,
            report=self.reports,
            deadline_at_seconds=world.seconds + seconds,
        )

    def marked(self) -> set[str]:
        return {due.user_id for shard in range(SHARDS) for due in self.marks.list_shard(shard)}


def test_who_was_looked_at_is_marked_no_more() -> None:
    town = _Town()
    assert town.run() == DueOverageReport(3, 0, complete=True)
    assert town.marked() == set()


def test_one_whose_items_are_broken_keeps_nobody_and_stays_marked() -> None:
    town = _Town()
    del town.world.memory.partitions["TENANT#main#USER#bob"][f"USAGE#{PERIOD}"]["quota"]
    assert town.run() == DueOverageReport(2, 1, complete=True)
    assert town.marked() == {"bob"}
    assert town.reports.users == ["bob"]


def test_one_who_is_being_reported_elsewhere_is_no_refusal_and_stays_marked() -> None:
    town = _Town()
    assert town.accounts.take("main", "bob", "another", town.world.now) is not None
    assert town.run() == DueOverageReport(2, 0, complete=True)
    assert town.marked() == {"bob"}
    assert town.reports.lines == []


def test_an_outage_of_the_table_ends_the_run() -> None:
    town = _Town()
    town.world.client.next_calls(*[Fate.NEVER_ARRIVED] * 200)
    with pytest.raises(StoreUnavailableError):
        town.run()


def test_without_time_everybody_waits() -> None:
    town = _Town()
    assert town.run(seconds=0) == DueOverageReport(0, 0, complete=False)
    assert town.marked() == {"ada", "bob", "cy"}


def test_one_for_whom_stripe_does_not_answer_keeps_nobody() -> None:
    town = _Town()
    town.use_up("bob")
    assert town.run() == DueOverageReport(2, 0, complete=False)
    assert town.marked() == {"bob"}
    assert town.reports.users == ["bob"]


def test_two_in_a_row_for_whom_stripe_does_not_answer_are_an_outage() -> None:
    town = _Town()
    town.use_up("ada", "bob", "cy")
    assert town.run() == DueOverageReport(0, 0, complete=False)
    assert len(town.reports.users) == 2
