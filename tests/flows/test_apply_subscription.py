"""What Stripe knows comes into force: in the order of Stripe's answers, together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, cast

import pytest

from dev.stripe_double.contract import Contract, installed_contract
from dev.stripe_double.faults import NOTHING, Fault, FaultPlan, ScriptedFaults
from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.simulation.memory_table import MemoryTable
from tests.support.ledger_world import Counting
from tests.support.scripted_dynamodb import ScriptedClient
from tollgate.catalog.loader import load_catalog
from tollgate.domain.errors import StripeRefusedError, StripeUnavailableError
from tollgate.domain.principals import Profile
from tollgate.domain.subscriptions import Interval
from tollgate.flows.apply_subscription import Look, SubscriptionSync
from tollgate.flows.ledger import Ledger
from tollgate.flows.sync_due import DueReport, sync_due
from tollgate.flows.sync_plans import PlansSync
from tollgate.providers.stripe_admin import StripeAdmin
from tollgate.providers.stripe_billing import StripeBilling
from tollgate.storage.meters import Meters
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table
from tollgate.storage.users import Users

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
CATALOG = load_catalog("default")


@cache
def contract() -> Contract:
    return installed_contract()


class BillingWorld:
    """User `ada` with a customer at Stripe; processes that sync are made by `syncing`."""

    def __init__(self) -> None:
        self.stripe = StripeWorld(now=START, seed=1, webhook_secret="whsec_1", account_id="acct_1", contract=contract())
        self.seconds = START.timestamp()
        self.told: list[str] = []
        self.table = Table(cast("Any", ScriptedClient(MemoryTable("t"), self.now_seconds)), "t")
        self.subscriptions, self.users = Subscriptions(self.table), Users(self.table)
        wire = InProcess(self.stripe)
        PlansSync(CATALOG, StripeAdmin(lambda: "sk_test_1", http_client=wire)).run(
            hand_over=lambda _: None, done=lambda _: None
        )
        self.billing = StripeBilling(lambda: "sk_test_1", http_client=wire)
        self.users.create_profile(Profile("main", "ada", "free", 1, START - 30 * DAY))
        self.customer_id = self.billing.create_customer("main", "ada", None, idempotency_key="c")
        self.subscriptions.claim_customer("main", "ada", self.customer_id)

    # Clock, journal

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.seconds += wait_seconds

    def event(self, name: str, **_: object) -> None:
        self.told.append(name)

    def measure(self, values: Mapping[str, int], **_: object) -> None:
        self.told += values

    # ---- what happens

    def syncing(
        self,
        faults: FaultPlan = NOTHING,
        on_slow: Callable[[], None] = lambda: None,
        **changes: Any,  # noqa: ANN401
    ) -> SubscriptionSync:
        """Another process; `on_slow`: what happens between Stripe's answer and its arrival."""
        billing = StripeBilling(lambda: "sk_test_1", http_client=InProcess(self.stripe, faults, on_slow))
        ledger = Ledger(Meters(self.table), self, Counting())
        catalog = replace(CATALOG, **changes)
        return SubscriptionSync(self.subscriptions, self.users, ledger, billing, catalog, self, Counting(), self)

    def sync(self, look: Look | None = None) -> None:
        self.syncing().sync("main", "ada", look or Look())

    def buy(self, plan_id: str, interval: Interval = Interval.MONTH) -> str:
        """A subscription's id."""
        prices = {one["lookup_key"]: one["id"] for one in self.stripe.all("price")}
        self.stripe.payments.add_card(self.stripe.store.get("customer", self.customer_id))
        started = self.stripe.subscriptions.start(
            self.customer_id,
            [{"price": prices["tollgate_overage"]}, {"price": prices[f"tollgate_{plan_id}_{interval}"], "quantity": 1}],
            {},
        )
        return str(started["id"])

    def pass_time(self, span: timedelta) -> None:
        self.seconds += span.total_seconds()
        self.stripe.advance(datetime.fromtimestamp(int(self.seconds), UTC))

    @property
    def profile(self) -> Profile:
        found = self.users.find_profile("main", "ada")
        assert found is not None
        return found

    def run_hourly(self, faults: FaultPlan = NOTHING, *, seconds: float = 60) -> DueReport:
        return sync_due(
            subscriptions=self.subscriptions,
            sync=self.syncing(faults),
            clock=self,
            report=lambda name, _, **__: self.told.append(name),
            deadline_at_seconds=self.seconds + seconds,
        )


@pytest.fixture
def world() -> BillingWorld:
    return BillingWorld()


def test_the_plan_is_found_wherever_its_item_stands(world: BillingWorld) -> None:
    """The metered item comes first here; who looked at the first item would see no plan at all."""
    world.buy("pro")
    world.sync()
    assert (world.profile.plan_id, world.profile.anchor_at) == ("pro", START)


def test_who_pays_by_the_year_has_the_plan_and_months_from_its_first_day(world: BillingWorld) -> None:
    world.buy("enterprise", Interval.YEAR)
    world.sync()
    assert (world.profile.plan_id, world.profile.anchor_at) == ("enterprise", START)


def test_an_older_answer_never_overwrites_a_newer_one(world: BillingWorld) -> None:
    """A process has its answer, stands still, and meanwhile the subscription ends and another process sees it."""
    subscription_id = world.buy("pro")

    def meanwhile() -> None:
        world.stripe.subscriptions.end(world.stripe.store.get("subscription", subscription_id))
        world.sync()

    world.syncing(ScriptedFaults(Fault.SLOW), meanwhile).sync("main", "ada")
    assert world.profile.plan_id == "free"


def test_an_older_answer_does_not_slip_past_a_newer_one_that_changed_nothing(world: BillingWorld) -> None:
    """Away and back: the last to look finds what is stored already, and must be seen by who looked in between."""
    subscription_id = world.buy("pro")
    world.sync()
    world.stripe.pause(subscription_id)

    def meanwhile() -> None:
        world.stripe.resume(subscription_id)
        world.sync()

    world.syncing(ScriptedFaults(Fault.SLOW), meanwhile).sync("main", "ada")
    assert world.profile.plan_id == "pro"


def test_of_two_subscriptions_the_older_counts_and_the_newer_is_ended_once(world: BillingWorld) -> None:
    first = world.buy("pro")
    world.pass_time(timedelta(minutes=1))
    second = world.buy("enterprise")
    world.sync()
    world.sync()

    assert world.profile.plan_id == "pro"
    assert [world.stripe.find(one)["status"] for one in (first, second)] == ["active", "canceled"]
    assert world.told.count("SecondSubscriptions") == 1


def test_a_plan_that_the_catalog_no_longer_has_is_an_alarm_and_is_looked_at_each_hour(world: BillingWorld) -> None:
    world.buy("pro")
    plans = {name: plan for name, plan in CATALOG.plans.items() if name != "pro"}
    world.syncing(plans=plans).sync("main", "ada")
    assert world.profile.plan_id == "free"
    assert "SubscribedPlansUnknown" in world.told

    world.pass_time(timedelta(hours=1))
    assert world.run_hourly().synced_subscribers == 1
    assert world.profile.plan_id == "pro"


def test_a_plan_that_the_operator_gave_stays_while_stripe_knows_of_none(world: BillingWorld) -> None:
    world.users.create_profile(Profile("main", "eve", "enterprise", 1, START))
    world.syncing().sync("main", "eve")
    found = world.users.find_profile("main", "eve")
    assert found is not None
    assert (found.plan_id, found.plan_version) == ("enterprise", 1)


def test_a_failed_payment_takes_overage_then_the_plan_and_a_payment_gives_both_back(world: BillingWorld) -> None:
    world.buy("pro")
    world.sync()
    world.stripe.fail_payments(world.customer_id)
    world.pass_time(31 * DAY)
    world.sync()
    assert (world.profile.plan_id, world.profile.overage_blocked) == ("pro", True)
    since = world.subscriptions.find("main", "ada").past_due_since_at
    assert since is not None

    world.seconds = (since + 7 * DAY).timestamp() - 1
    assert world.run_hourly().synced_subscribers == 0
    world.seconds += 1
    assert world.run_hourly().synced_subscribers == 1
    assert (world.profile.plan_id, world.profile.overage_blocked) == ("free", False)

    world.stripe.fail_payments(world.customer_id, on=False)
    [invoice] = [one for one in world.stripe.all("invoice") if one["status"] == "open"]
    world.stripe.invoices.collect(world.stripe.store.get("invoice", invoice["id"]), "ok")
    world.sync()
    assert (world.profile.plan_id, world.profile.overage_blocked) == ("pro", False)
    assert world.subscriptions.find("main", "ada").past_due_since_at is None


def test_a_renewal_that_nobody_told_of_is_found_by_the_hourly_run(world: BillingWorld) -> None:
    world.buy("pro")
    world.sync()
    world.stripe.fail_payments(world.customer_id)
    world.pass_time(31 * DAY)
    assert world.run_hourly() == DueReport(1, 0, complete=True)
    assert world.profile.overage_blocked is True


def test_a_deleted_customer_is_let_go_and_the_next_one_is_the_users_too(world: BillingWorld) -> None:
    world.buy("pro")
    world.sync()
    world.stripe.delete_customer(world.customer_id)
    world.sync(Look(customer=True))
    seen = world.subscriptions.find("main", "ada")
    assert (seen.customer_id, seen.subscription, world.profile.plan_id) == (None, None, "free")

    world.customer_id = world.billing.create_customer("main", "ada", None, idempotency_key="c2")
    world.subscriptions.claim_customer("main", "ada", world.customer_id)
    world.buy("enterprise")
    world.sync()
    assert world.profile.plan_id == "enterprise"


def another_account(world: BillingWorld) -> SubscriptionSync:
    """A process whose key is of another account, or of the other mode."""
    other = StripeWorld(now=START, seed=2, webhook_secret="whsec_2", account_id="acct_2", contract=contract())
    ledger = Ledger(Meters(world.table), world, Counting())
    billing = StripeBilling(lambda: "sk_test_2", http_client=InProcess(other))
    return SubscriptionSync(world.subscriptions, world.users, ledger, billing, CATALOG, world, Counting(), world)


@pytest.mark.parametrize("look", [Look(), Look(customer=True), Look(checkout_id="cs_1")])
def test_a_key_of_another_account_takes_no_plan_away_and_forgets_no_customer(world: BillingWorld, look: Look) -> None:
    world.buy("pro")
    world.sync()
    before = (world.subscriptions.find("main", "ada"), world.profile)

    with pytest.raises(StripeRefusedError) as refused:
        another_account(world).sync("main", "ada", look)

    assert refused.value.stripe_code == "customer_unknown"
    assert (world.subscriptions.find("main", "ada"), world.profile) == before
    assert {"CustomersUnknown", "StripeAlarms"} <= set(world.told)


def test_a_key_of_another_account_forgets_no_customer_who_has_bought_nothing(world: BillingWorld) -> None:
    with pytest.raises(StripeRefusedError):
        another_account(world).sync("main", "ada", Look(customer=True))
    assert world.subscriptions.find("main", "ada").customer_id == world.customer_id


def test_a_key_of_another_account_ends_no_dispute(world: BillingWorld) -> None:
    subscription_id = world.buy("pro")
    disputed(world)
    world.stripe.subscriptions.end(world.stripe.store.get("subscription", subscription_id))
    world.sync()
    with pytest.raises(StripeRefusedError):
        another_account(world).sync("main", "ada")
    assert world.profile.paid is False


# ---- disputes


def disputed(world: BillingWorld) -> str:
    """The newest payment; the dispute's id."""
    dispute_id = str(world.stripe.dispute(world.stripe.all("charge")[-1]["id"])["id"])
    world.sync(Look(dispute_id=dispute_id))
    return dispute_id


def test_a_year_that_was_paid_and_taken_back_is_not_served(world: BillingWorld) -> None:
    world.buy("enterprise", Interval.YEAR)
    dispute_id = disputed(world)
    assert world.profile.paid is False
    world.stripe.close_dispute(dispute_id, won=False)
    world.sync(Look(dispute_id=dispute_id))
    assert (world.profile.plan_id, world.profile.paid) == ("enterprise", False)
    world.sync()
    assert world.profile.paid is False


def test_who_ends_what_was_taken_back_and_buys_again_is_served(world: BillingWorld) -> None:
    first = world.buy("pro")
    world.stripe.close_dispute(disputed(world), won=False)
    world.stripe.subscriptions.end(world.stripe.store.get("subscription", first))
    world.sync()
    assert (world.profile.plan_id, world.profile.paid) == ("free", True)

    world.pass_time(timedelta(minutes=1))
    world.buy("pro")
    world.sync()
    assert (world.profile.plan_id, world.profile.paid) == ("pro", True)


def test_a_lost_dispute_of_an_earlier_subscription_that_is_told_late_is_nothing_to_the_next(
    world: BillingWorld,
) -> None:
    first = world.buy("pro")
    dispute_id = str(world.stripe.dispute(world.stripe.all("charge")[-1]["id"])["id"])
    world.stripe.subscriptions.end(world.stripe.store.get("subscription", first))
    world.pass_time(timedelta(minutes=1))
    world.buy("pro")
    world.stripe.close_dispute(dispute_id, won=False)
    world.sync(Look(dispute_id=dispute_id))
    assert (world.profile.plan_id, world.profile.paid) == ("pro", True)


def test_a_dispute_that_was_won_untold_is_found_within_a_day(world: BillingWorld) -> None:
    world.buy("enterprise", Interval.YEAR)
    world.stripe.close_dispute(disputed(world), won=True)
    world.pass_time(DAY - timedelta(seconds=1))
    assert world.run_hourly().synced_subscribers == 0
    world.pass_time(timedelta(seconds=1))
    assert world.run_hourly().synced_subscribers == 1
    assert world.profile.paid is True


def test_while_stripe_is_silent_nothing_changes(world: BillingWorld) -> None:
    world.buy("pro")
    before = world.subscriptions.find("main", "ada")
    with pytest.raises(StripeUnavailableError):
        world.syncing(lambda *_: Fault.LOST_BEFORE).sync("main", "ada")
    assert world.subscriptions.find("main", "ada") == before
    assert world.profile.plan_id == "free"


# ---- the hourly run


def test_the_hourly_run_stops_while_stripe_is_silent_and_goes_on_later(world: BillingWorld) -> None:
    world.buy("pro")
    world.sync()
    world.pass_time(31 * DAY)
    assert world.run_hourly(lambda *_: Fault.LOST_BEFORE) == DueReport(0, 0, complete=False)
    assert "due_subscribers_left" in world.told
    assert world.run_hourly().synced_subscribers == 1


def test_the_hourly_run_keeps_its_deadline(world: BillingWorld) -> None:
    world.buy("pro")
    world.sync()
    world.pass_time(31 * DAY)
    assert world.run_hourly(seconds=0) == DueReport(0, 0, complete=False)
