"""Several checkouts of one user at once, each served by a process of its own, on a database that is exact: never two
that can be paid, and never two subscriptions, whatever is paid of what was handed out.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count

import pytest

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.flows.test_concurrency import at_once
from tests.support.billing_function import SECRET_KEY
from tollgate.catalog.loader import Catalog
from tollgate.domain.errors import TollgateError
from tollgate.domain.principals import Account, Profile
from tollgate.domain.subscriptions import Interval
from tollgate.flows.apply_subscription import SubscriptionSync
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
ROUNDS = 12
numbers = count(1)


class Shop:
    """A new user, and as many processes as ask at once."""

    def __init__(self, table: Table, catalog: Catalog, world: StripeWorld) -> None:
        self.table, self.catalog, self.world = table, catalog, world
        profile = Profile("main", f"user-{next(numbers)}", "free", 1, datetime(2026, 11, 1, tzinfo=UTC))
        self.account = Account.of(Users(table).create_profile(profile), catalog.plan("free"))
        self.handed_out: list[str] = []
        self.refused: list[str] = []
        self._lock = threading.Lock()

    def process(self) -> tuple[Checkouts, SubscriptionSync]:
        clock, ids, subscriptions = SystemClock(), SystemIds(), Subscriptions(self.table)
        stripe = StripeBilling(lambda: SECRET_KEY, http_client=InProcess(self.world))
        sync = SubscriptionSync(
            subscriptions,
            Users(self.table),
            Ledger(Meters(self.table), clock, ids),
            stripe,
            self.catalog,
            clock,
            ids,
            Telemetry(service="test", stage="test", clock=clock),
        )
        return Checkouts(subscriptions, stripe, sync, self.catalog, clock, ids), sync

    def order(self, plan_id: str, interval: Interval = Interval.MONTH, *, pays: bool = False) -> None:
        checkouts, _ = self.process()
        page = "https://app.example.com"
        try:
            session = checkouts.open(self.account, Order(plan_id, interval, page, page))
        except TollgateError as error:
            with self._lock:
                self.refused.append(error.error_code)
            return
        with self._lock:
            self.handed_out.append(session.id)
        if pays:
            self.pay(session.id)

    def pay(self, session_id: str) -> None:
        with suppress(StripeRefusal):
            self.world.complete_checkout(session_id)

    def of_customer(self, kind: str) -> list[dict[str, object]]:
        customer_id = Subscriptions(self.table).find("main", self.account.user_id).customer_id
        return [one for one in self.world.all(kind) if one["customer"] == customer_id]


@pytest.fixture
def shop(table: Table, catalog: Catalog, world: StripeWorld) -> Shop:
    return Shop(table, catalog, world)


@pytest.mark.parametrize("_round", range(ROUNDS))
def test_the_same_order_many_times_at_once_is_one_checkout(shop: Shop, _round: int) -> None:
    at_once([lambda: shop.order("team") for _ in range(CALLERS)])
    assert len(set(shop.handed_out)) == 1
    assert len(shop.of_customer("checkout.session")) == 1
    customers = [one for one in shop.world.all("customer") if one["metadata"]["tollgate_user"] == shop.account.user_id]
    assert len(customers) == 1
    # Stripe's own word for a key that is under way; asked again, they get the same.
    assert set(shop.refused) <= {"stripe_unavailable", "store_unavailable"}


@pytest.mark.parametrize("_round", range(ROUNDS))
def test_of_different_orders_at_once_one_can_be_paid(shop: Shop, _round: int) -> None:
    orders = [("team", Interval.MONTH), ("team", Interval.YEAR), ("pro", Interval.MONTH)] * 2
    at_once([lambda order=order: shop.order(*order) for order in orders])  # type: ignore[misc]
    payable = [one for one in shop.of_customer("checkout.session") if one["status"] == "open"]
    assert len(payable) <= 1
    for session_id in shop.handed_out:
        shop.pay(session_id)
    _, sync = shop.process()
    sync.sync("main", shop.account.user_id)
    alive = [one for one in shop.of_customer("subscription") if one["status"] != "canceled"]
    assert len(shop.of_customer("subscription")) == len(alive) <= 1


@pytest.mark.parametrize("_round", range(ROUNDS))
def test_who_pays_while_others_order_has_one_subscription(shop: Shop, _round: int) -> None:
    """Each pays at once what was handed out: in another window, on another device."""
    orders = [("team", Interval.MONTH), ("pro", Interval.MONTH), ("team", Interval.YEAR)] * 2
    at_once([lambda order=order: shop.order(*order, pays=True) for order in orders])  # type: ignore[misc]
    assert len(shop.of_customer("subscription")) <= 1
    if shop.of_customer("subscription"):
        shop.refused.clear()
        shop.order("pro", Interval.YEAR)
        assert shop.refused == ["already_subscribed"]
        found = Users(shop.table).find_profile("main", shop.account.user_id)
        assert found is not None
        assert found.plan_id in {"team", "pro"}
    assert not [one for one in shop.world.refused if one.code != "checkout_session_not_open"]
