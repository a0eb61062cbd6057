"""Several plan changes of one user at once, each served by a process of its own, on a database that is exact: whatever
is asked for, no usage period begins that nobody paid for.
"""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime
from itertools import count

import pytest

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.flows.test_concurrency import at_once
from tests.support.billing_function import RETURN_URL, SECRET_KEY
from tollgate.catalog.loader import Catalog
from tollgate.domain.errors import TollgateError
from tollgate.domain.principals import Account, Profile
from tollgate.domain.subscriptions import Interval
from tollgate.flows.apply_subscription import SubscriptionSync
from tollgate.flows.change_plan import PlanChanger
from tollgate.flows.checkout import Checkouts, Order
from tollgate.flows.ledger import Ledger
from tollgate.providers.stripe_billing import StripeBilling
from tollgate.storage.meters import Meters
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table
from tollgate.storage.users import Users
from tollgate.telemetry import Telemetry
from tollgate.wiring import SystemClock, SystemIds

pytestmark = pytest.mark.engine

CALLERS = 6
ROUNDS = 10
numbers = count(1)
WAITING = {"conflict", "store_unavailable", "stripe_unavailable"}


class Member:
    """Who has paid for a month of Team."""

    def __init__(self, table: Table, catalog: Catalog, world: StripeWorld) -> None:
        self.table, self.catalog, self.world = table, catalog, world
        self.answers: Counter[str] = Counter()
        self._lock = threading.Lock()
        profile = Profile("main", f"member-{next(numbers)}", "free", 1, datetime(2026, 11, 1, tzinfo=UTC))
        self.account = Account.of(Users(table).create_profile(profile), catalog.plan("free"))
        clock, ids = SystemClock(), SystemIds()
        stripe, sync = self.process()
        checkouts = Checkouts(Subscriptions(table), stripe, sync, catalog, clock, ids)
        session = checkouts.open(self.account, Order("team", Interval.MONTH, RETURN_URL, RETURN_URL))
        self.world.complete_checkout(session.id)
        sync.sync("main", self.account.user_id)

    def process(self) -> tuple[StripeBilling, SubscriptionSync]:
        clock, ids = SystemClock(), SystemIds()
        stripe = StripeBilling(lambda: SECRET_KEY, http_client=InProcess(self.world))
        journal = Telemetry(service="test", stage="test", clock=clock)
        ledger = Ledger(Meters(self.table), clock, ids)
        sync = SubscriptionSync(
            Subscriptions(self.table), Users(self.table), ledger, stripe, self.catalog, clock, ids, journal
        )
        return stripe, sync

    def change(self, plan_id: str, interval: Interval) -> None:
        stripe, sync = self.process()
        changer = PlanChanger(
            Subscriptions(self.table), stripe, sync, self.catalog, SystemClock(), SystemIds(), lambda *_: None
        )
        try:
            answer = str(changer.change(self.account, plan_id, interval).planned.step)
        except TollgateError as error:
            answer = error.error_code
        with self._lock:
            self.answers[answer] += 1

    def invoices(self) -> int:
        customer_id = Subscriptions(self.table).find("main", self.account.user_id).customer_id
        return sum(one["customer"] == customer_id for one in self.world.all("invoice"))


@pytest.mark.parametrize("_round", range(ROUNDS))
def test_of_many_who_begin_a_year_at_once_one_does(
    table: Table, catalog: Catalog, world: StripeWorld, _round: int
) -> None:
    member = Member(table, catalog, world)
    at_once([lambda: member.change("team", Interval.YEAR) for _ in range(CALLERS)])
    assert member.answers["now"] == 1, member.answers
    assert set(member.answers) <= {"now", "none", *WAITING}
    assert member.invoices() == 2
    assert Subscriptions(table).find("main", member.account.user_id).changer is None
