"""One user, one seed, some months: production's own objects on a table and a Stripe that fail as the seed says."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

import greenlet  # type: ignore[import-untyped]  # it ships no types
import stripe

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.world import StripeWorld
from tests.billing.actions import TENANT, Actions, DirectClient, the_desk
from tests.billing.overage.oracle import OverageOracle
from tests.billing.overage.scenario import Scenario, Step
from tests.billing.overage.wire import KillingNetwork, OverageSide
from tests.billing.scenario import DAY, HOUR
from tests.billing.scenario import Step as PlainStep
from tests.billing.wire import WireFaults
from tests.billing.world import Journal, the_contract, the_stripe, the_wire
from tests.simulation.hub import Hub, KilledError, Process, Warm
from tests.simulation.memory_table import MemoryTable
from tests.simulation.network import MessageFaults, SimulatedClient
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.domain.errors import StaleAccountError, StripeRefusedError, TollgateError
from tollgate.domain.ledger import Ask, Meter, Settlement
from tollgate.domain.overage import OverageAccount
from tollgate.domain.plans import LateUsage
from tollgate.domain.principals import CredentialKind, Principal, Profile
from tollgate.domain.stripe_events import REACTIONS, Action, StripeEvent, event_of, event_of_message
from tollgate.flows.accounts import Accounts
from tollgate.flows.apply_subscription import SubscriptionSync
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.report_overage import OverageFollower, OverageReporter, report_due_overage
from tollgate.providers.stripe_meter import StripeMeter
from tollgate.storage.meters import Meters
from tollgate.storage.overage import BilledWindow, OverageAccounts, OverageMarks
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

    from tests.billing.world import World

TABLE = "tollgate"
USER = "user-0"
START = datetime(2026, 11, 20, 9, 0, 17, tzinfo=UTC)
MOST_ATTEMPTS = 8
TIMEOUT_SECONDS = 290.0
LONGEST_FREEZE = 150.0
FINAL = ("open", "paid", "uncollectible", "void")
SYNCED = ("customer.subscription", "invoice.created", "invoice.finalized")
FOLLOWED = tuple(name for name, reaction in REACTIONS.items() if reaction.action is Action.OVERAGE)


@cache
def the_catalog() -> Catalog:
    """The shipped one with small quotas and no end of overage, so that much of it is seen."""
    catalog = load_catalog("default")
    plans = dict(catalog.plans)
    for plan_id, quota in (("pro", 20_000), ("enterprise", 100_000)):
        plans[plan_id] = replace(
            plans[plan_id],
            quota_tokens=quota,
            overage_cap_tokens=10**9,
            overage_opt_in=False,
            slice_output_tokens=None,
            pool_tokens=None,
            requests_per_minute=None,
            trial_quota_tokens=10_000,
        )
    return replace(catalog, plans=plans)


class Desk:
    """Clock and ids of what happens without accidents."""

    def __init__(self, world: OverageWorld) -> None:
        self._world = world

    def now_seconds(self) -> float:
        return self._world.hub.now

    def pause(self, wait_seconds: float) -> None:
        """Nobody is in the way."""

    def new_id(self, length: int) -> str:
        return self._world.new_id(length)

    def random_bytes(self, count: int) -> bytes:
        return self._world.rng.randbytes(count)


class Container(Warm):
    """A warm function process with production's own objects in it."""

    def __init__(self, world: OverageWorld) -> None:
        super().__init__(world, world.scenario.clock_error_seconds)
        table = Table(cast("DynamoDBClient", SimulatedClient(world.network, self)), TABLE)
        self.meters, self.subscriptions = Meters(table), Subscriptions(table)
        self.accounts, self.marks = OverageAccounts(table), OverageMarks(table)
        journal = Journal(world.seen)
        self.sync = SubscriptionSync(
            self.subscriptions,
            Users(table),
            Ledger(self.meters, self, self),
            the_stripe(),
            the_catalog(),
            self,
            self,
            journal,
        )
        self.reporter = OverageReporter(
            self.accounts,
            self.meters,
            self.subscriptions,
            world.meter,
            self,
            self,
            journal,
            stack="test",
            late_usage=LateUsage(world.scenario.late_usage),
        )
        self.follower = OverageFollower(self.reporter, world.send_later)


class OverageWorld:
    """Runs one scenario to its end and lets the oracle judge it."""

    def __init__(self, scenario: Scenario, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.seen: Counter[str] = Counter()
        self.hub = Hub(START.timestamp())
        self.hub.trace = trace
        self.oracle = OverageOracle(self)
        self.table = MemoryTable(TABLE, self.oracle.committed)
        self.network = KillingNetwork(self.hub, self.table, self.rng, MessageFaults(), self.seen)
        self.network.world = self
        self.stripe = StripeWorld(
            now=START,
            seed=scenario.seed,
            webhook_secret="whsec_test",
            account_id="acct_1",
            contract=the_contract(),
            last_by=scenario.last_by,
        )
        self._greenlets: dict[Any, Process] = {}
        self.side = OverageSide(self.hub, self.stripe, self.rng, self.seen, self.catch_up, self.running)
        self.side.overage = self
        the_wire().side = self.side
        self.meter = StripeMeter(lambda: "sk_test_simulated", "tollgate_overage", http_client=the_wire())
        self.under_way: Counter[str] = Counter()
        self.settling = False
        self.settling_since = float("inf")
        self.was_lowered = False
        self._alive_since_settling = ""
        self._ids = 0
        self._closed: set[str] = set()
        self._free: list[Container] = []
        self._moments: dict[Process, int] = {}
        self.users = 1
        self.actions = Actions(cast("World", self))
        table, desk = Table(cast("DynamoDBClient", DirectClient(cast("World", self))), TABLE), Desk(self)
        self.desk_ledger = Ledger(Meters(table), desk, desk)
        self.desk_accounts = Accounts(Users(table), the_catalog(), desk)
        self.desk_table = table
        self._lines: dict[str, list[dict[str, Any]]] = defaultdict(list)

    # ---- one run

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.hub.bury()

    def _run(self) -> None:
        self._open()
        self._break_things()
        for step in self.scenario.steps:
            self.hub.at(START.timestamp() + step.at_seconds, partial(self._do, step))
        last = max((step.at_seconds for step in self.scenario.steps), default=0.0)
        self._tick_until(START.timestamp() + last + 2 * HOUR)
        self.hub.run()
        self._settle()
        for process, error in self.hub.crashes:
            self.oracle.report("crash", f"{process.name}: {error!r}")
        self.oracle.judge()

    def _open(self) -> None:
        self.catch_up()
        self.actions._make_prices()
        plan_id = "pro" if self.scenario.opens_with == "gift" else "free"
        self.actions.users.create_profile(Profile(TENANT, USER, plan_id, 1, START - timedelta(days=40)))
        if self.scenario.opens_with == "gift":
            return
        draw = 35 if self.scenario.opens_with == "trial" else 10
        trial = 11 * 3 if self.scenario.opens_with == "trial" else 11
        self._plain(
            "subscribe", next(n for n in range(trial, 10_000) if n % 5 < 3 and (n // 11 % 3 == 0) == (draw == 35))
        )
        self.hub.run()

    def _settle(self) -> None:
        """Everything works again, nothing is used any more, and two more windows are billed."""
        self.settling, self.settling_since = True, self.hub.now
        self._break_things()
        for action in ("cards_work", "pay_invoices"):
            self._plain(action, 0)
        self._alive_since_settling = self._live_id()
        self._tick_until(self.hub.now + (72 if self._alive_since_settling else 10) * DAY)
        self.hub.run()

    def _tick_until(self, end: float) -> None:
        def tick() -> None:
            self.catch_up()
            self._break_things()
            self._close_periods()
            for _ in range(1 if self.settling else self.scenario.concurrent):
                self.start("hourly", self._hourly)
            often = self.scenario.often_seconds if self.goes_wrong() else HOUR
            later = self.hub.now + (often if self._near_an_end() else self.rng.uniform(6, 30) * HOUR)
            near = [at - 4 * HOUR for at in self._ends() if at - 4 * HOUR > self.hub.now]
            later = min([later, *near])
            if later < end:
                self.hub.at(later, tick)

        self.hub.after(HOUR, tick)

    def _close_periods(self) -> None:
        """As the close of a period does: whoever was in overage is looked at."""
        for _, sk, item in list(self.table.items()):
            if sk.startswith("USAGE#") and int(item["end_at"]["N"]) + 35 * 60 < self.hub.now and sk not in self._closed:
                self._closed.add(sk)
                OverageMarks(self.desk_table).put(TENANT, USER, sk[6:], datetime.fromtimestamp(self.hub.now, UTC))

    def _hourly(self, container: Container) -> None:
        try:
            report_due_overage(
                accounts=container.accounts,
                marks=container.marks,
                reporter=container.reporter,
                report=lambda name, _, **__: self.seen.update([name]),
                deadline_at_seconds=container.now_seconds() + 240,
            )
        except TollgateError:
            self.seen["hourly_failed"] += 1

    # ---- when things go wrong

    def _break_things(self) -> None:
        well = not self.goes_wrong()
        self.network.set_faults(MessageFaults() if well else self.scenario.table)
        self.side.faults = WireFaults() if well else self.scenario.stripe
        self.stripe.meters.summary_lag = self.scenario.summary_lag_seconds

    def goes_wrong(self) -> bool:
        return not self.settling and not (self.scenario.calm_endings and self._ending())

    def was_calm(self, begin: float, end: float) -> bool:
        """Between the two, nothing new went wrong."""
        return self.scenario.calm_endings or begin >= self.settling_since

    def _ending(self) -> bool:
        """A window ends within the hour, or its invoice is a draft."""
        soon = any(-60 <= at - self.hub.now <= HOUR + 60 for at in self._ends())
        return soon or any(one["status"] == "draft" for one in self.stripe.store.all("invoice"))

    def _near_an_end(self) -> bool:
        return any(-2.5 * HOUR <= at - self.hub.now <= 4 * HOUR for at in self._ends()) or any(
            one["status"] == "draft" for one in self.stripe.store.all("invoice")
        )

    def _ends(self) -> list[float]:
        """Ends of the running windows, and of those that have just ended."""
        found: list[float] = []
        for item in self.stripe.store.all("subscription_item"):
            if "quantity" not in item:
                found += [item["current_period_end"], item["current_period_start"]]
        return found

    def stripe_is_down(self) -> bool:
        return self._outage(whole=False)

    def _all_down(self) -> bool:
        return self._outage(whole=True)

    def _outage(self, *, whole: bool) -> bool:
        if not self.goes_wrong():
            return False
        at = self.hub.now - START.timestamp()
        return any(one.from_seconds <= at < one.to_seconds and one.whole == whole for one in self.scenario.outages)

    def pass_moment(self, process: Process) -> None:
        """One of the moments at which a process may be killed."""
        if process.dead:
            raise KilledError
        left = self._moments.get(process)
        if left is None:
            return
        if left == 0 and self.goes_wrong():
            self.seen["kills"] += self.hub.kill(process)
            raise KilledError
        self._moments[process] = max(0, left - 1)

    # ---- processes

    def running(self) -> Process | None:
        return self._greenlets.get(greenlet.getcurrent())

    def start(self, name: str, body: Callable[[Container], None]) -> None:
        if self._all_down():
            self.seen["all_down"] += 1
            return
        container = self._free.pop() if self._free else Container(self)

        def whole(process: Process) -> None:
            try:
                body(container)
            finally:
                self._greenlets.pop(process.greenlet, None)
                self._moments.pop(process, None)
                if not process.dead:
                    self._free.append(container)

        process = Process(self.hub, name, whole, container.skew_seconds)
        container.process = process
        self._greenlets[process.greenlet] = process
        self.seen["invocations"] += 1
        if self.goes_wrong():
            if self.rng.random() < self.scenario.kill:
                self._moments[process] = self.rng.choice((4, 20, 40)) * self.rng.randrange(100) // 100
            if self.rng.random() < self.scenario.freeze:
                seconds = self.rng.random() * LONGEST_FREEZE
                self.hub.after(self.rng.random() * 2, lambda: self.hub.freeze(process, seconds))
        self.hub.after(TIMEOUT_SECONDS, lambda: self.hub.kill(process))
        self.hub.start(process)

    # ---- what Stripe tells

    def catch_up(self) -> None:
        """Bring Stripe's clock to now, stopping where an invoice becomes final, and send what it has to tell."""
        self.stripe.advance(datetime.fromtimestamp(int(self.hub.now), UTC))
        for told in self.stripe.take_events():
            if told["type"] == "invoice.finalized":
                self.oracle.finalized(told["data"]["object"])
            if told["type"].startswith(SYNCED):
                self._send(event_of(told))

    def _send(self, event: StripeEvent) -> None:
        delay = 0.5 + self.rng.random() * 20
        if self.goes_wrong() and self.rng.random() < self.scenario.unseen:
            self.seen["late_events"] += 1
            delay = self.rng.choice((HOUR, 5 * HOUR, 40 * HOUR)) * self.rng.random()
        self._wake_at_finalization(event)
        copies = self.scenario.concurrent if event.type in FOLLOWED and not self.settling else 1
        for copy in range(copies):
            self.hub.after(delay, partial(self._deliver, event, 1, syncs=copy == 0))

    def _wake_at_finalization(self, event: StripeEvent) -> None:
        """Stripe's clock stands still while nobody asks: it must not, when an invoice becomes final."""
        if event.type == "invoice.created":
            self.hub.after(HOUR + 1, self.catch_up)

    def _deliver(self, event: StripeEvent, attempt: int, *, syncs: bool) -> None:
        done = [False]

        def body(container: Container) -> None:
            try:
                if syncs:
                    container.sync.sync(TENANT, USER)
                if event.type in FOLLOWED:
                    container.follower.follow(event, TENANT, USER)
            except TollgateError as error:
                self.seen[f"event_{error.error_code}"] += 1
                return
            done[0] = True

        def check() -> None:
            if not done[0] and attempt < MOST_ATTEMPTS:
                wait = self.rng.choice((1.0, 10.0)) * 60 * attempt if self.goes_wrong() else 60
                self.hub.after(wait, partial(self._deliver, event, attempt + 1, syncs=syncs))

        self.start(f"event {event.type}.{attempt}", body)
        self.hub.after(200, check)

    def send_later(self, text: str, delay_seconds: int) -> None:
        assert 0 <= delay_seconds <= 900
        event = event_of_message(json.loads(text))
        assert event.reaction is not None
        assert event.reaction.action in tuple(Action)
        self.seen["looks_again"] += 1
        self.hub.after(delay_seconds, partial(self._deliver, event, 1, syncs=False))

    # ---- what the user and the operator do

    def _do(self, step: Step) -> None:
        self.catch_up()
        self.seen[f"step_{step.action}"] += 1
        with suppress(StripeRefusal, StripeRefusedError, stripe.InvalidRequestError, stripe.CardError):
            if step.action in ("use", "new_anchor", "end_with_invoice", "lower_use"):
                getattr(self, f"_{step.action}")(step.draw)
            else:
                self._plain(step.action, step.draw)
            self.seen[f"did_{step.action}"] += 1
        self.catch_up()

    def _plain(self, action: str, draw: int) -> None:
        self.catch_up()
        getattr(self.actions, action)(PlainStep(0, action, 0, draw))
        self.catch_up()

    def _use(self, draw: int) -> None:
        """A call that is settled at once or minutes later, and noted as the claude function would, mostly."""
        now = datetime.fromtimestamp(self.hub.now, UTC)
        tokens = 1 + draw % self.rng.choice((30, 9_000, 200_000))
        try:
            account = self.desk_accounts.find(Principal(TENANT, USER, CredentialKind.API_KEY, "key"), fresh=True)
            ask = Ask(tokens, 16, 1_000, may_clamp=False, deadline_at_seconds=self.hub.now + 700)
            grant = self.desk_ledger.reserve(account, account_key(account, now), ask)
        except (TollgateError, StaleAccountError):
            self.seen["use_refused"] += 1
            return

        def settle() -> None:
            settled = self.desk_ledger.settle(grant, Settlement(used_tokens=tokens))
            self.seen["settled"] += 1
            if settled.meter is not None and settled.meter.overage_nanousd and self.rng.random() < 0.7:
                at = datetime.fromtimestamp(self.hub.now, UTC)
                OverageMarks(self.desk_table).put(TENANT, USER, grant.key.period.id, at)
            if self.rng.random() < 0.5:
                for _ in range(self.scenario.concurrent):
                    self.hub.after(self.rng.choice((2.0, 90.0)) * self.rng.random(), self._report)

        self.hub.after(self.rng.choice((0.0, 0.0, 30.0, 600.0)) * self.rng.random(), settle)

    def _report(self) -> None:
        def body(container: Container) -> None:
            try:
                container.reporter.report(TENANT, USER)
            except TollgateError as error:
                self.seen[f"report_{error.error_code}"] += 1

        self.start("report", body)

    def _lower_use(self, draw: int) -> None:
        """A swept call's owner came late and corrected its charge downwards."""
        for _, sk, item in list(self.table.items()):
            if sk.startswith("USAGE#") and int(item["end_at"]["N"]) > self.hub.now:
                beyond = int(item["settled"]["N"]) - int(item["quota"]["N"])
                if beyond > 0:
                    self._take_back(item, min(beyond, 1 + draw % 20_000))
                    return

    def _take_back(self, item: dict[str, Any], tokens: int) -> None:
        self.was_lowered = True
        self.desk_table.client.update_item(
            TableName=TABLE,
            Key={"PK": item["PK"], "SK": item["SK"]},
            UpdateExpression="SET settled = settled - :less, remaining = remaining + :less",
            ExpressionAttributeValues={":less": {"N": str(tokens)}},
        )
        OverageMarks(self.desk_table).put(TENANT, USER, item["SK"]["S"][6:], datetime.fromtimestamp(self.hub.now, UTC))

    def _new_anchor(self, draw: int) -> None:
        if live := self._live_id():
            params: Any = {"billing_cycle_anchor": {"type": "now"}, "proration_behavior": "none"}
            the_desk().v1.subscriptions.update(live, params)

    def _end_with_invoice(self, draw: int) -> None:
        if live := self._live_id():
            the_stripe().cancel_subscription(live, invoice_now=True)

    # ---- what is there

    def _subscriptions(self) -> list[dict[str, Any]]:
        return self.stripe.store.all("subscription")

    def _live_id(self) -> str:
        live = [one["id"] for one in self._subscriptions() if one["status"] in ("active", "past_due", "trialing")]
        return live[-1] if live else ""

    def bills(self) -> bool:
        return bool(self._alive_since_settling) and self._live_id() == self._alive_since_settling

    def was_subscribed(self, instant: int) -> bool:
        """By Stripe's own word, whoever looked when."""
        return any(
            min(one["created"], one["billing_cycle_anchor"]) <= instant < (one["ended_at"] or inf)
            for one in self._subscriptions()
        )

    def overage_lines(self, invoice: dict[str, Any]) -> list[dict[str, Any]]:
        metered = {
            one["id"] for one in self.stripe.store.all("price") if one["recurring"] and one["recurring"]["meter"]
        }
        return [
            line
            for line in self.stripe.invoices._lines[invoice["id"]]
            if line["pricing"] is not None and line["pricing"]["price_details"]["price"] in metered
        ]

    def final_lines(self) -> list[dict[str, Any]]:
        final = [one for one in self.stripe.store.all("invoice") if one["status"] in FINAL]
        return [line for invoice in final for line in self.overage_lines(invoice)]

    def account(self) -> OverageAccount | None:
        return OverageAccounts(self.desk_table).find(TENANT, USER)

    def records(self) -> list[BilledWindow]:
        return list(OverageAccounts(self.desk_table).list_billed(TENANT, USER))

    def meters_of(self, account: OverageAccount) -> list[Meter]:
        return list(Meters(self.desk_table).list_of_user(TENANT, USER, after=account.counted_through))

    def new_id(self, length: int) -> str:
        self._ids += 1
        return str(self._ids).rjust(length, "i")
