"""One run: Stripe's double, the table, the functions that take deliveries, and everything that happens to them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import greenlet  # type: ignore[import-untyped]  # it ships no types

from dev.stripe_double.contract import Contract, installed_contract
from dev.stripe_double.world import StripeWorld
from tests.billing.actions import Actions
from tests.billing.oracle import Oracle
from tests.billing.scenario import DAY, HOUR, Scenario
from tests.billing.wire import Queue, Side, Wire, WireFaults
from tests.simulation.hub import Hub, Process, Warm
from tests.simulation.memory_table import MemoryTable
from tests.simulation.network import MessageFaults, Network, SimulatedClient
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.domain.errors import TollgateError
from tollgate.domain.stripe_events import StripeEvent, event_of, event_of_message
from tollgate.flows.accounts import Accounts
from tollgate.flows.apply_subscription import SubscriptionSync
from tollgate.flows.ledger import Ledger
from tollgate.flows.stripe_events import StripeEventFlow
from tollgate.flows.sync_due import sync_due
from tollgate.providers.stripe_billing import StripeBilling
from tollgate.storage.meters import Meters
from tollgate.storage.stripe_events import StripeEvents
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

TABLE = "tollgate"
TENANT = "main"
START = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
TIMEOUT_SECONDS = 29.0
SETTLING_ROUNDS = 60
MOST_RECEIVES = 5


@cache
def the_contract() -> Contract:
    return installed_contract()


@cache
def the_wire() -> Wire:
    return Wire()


@cache
def the_stripe() -> StripeBilling:
    return StripeBilling(lambda: "sk_test_simulated", http_client=the_wire())


@cache
def the_catalog() -> Catalog:
    """The shipped one; Pro issues a first key and has a trial quota."""
    catalog = load_catalog("default")
    pro = replace(catalog.plans["pro"], issue_first_key=True, trial_quota_tokens=200_000)
    return replace(catalog, plans={**catalog.plans, "pro": pro})


def user_id(user: int) -> str:
    return f"user-{user}"


class Journal:
    """Counts what is told; metrics are counted as effects."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen

    def event(self, name: str, **_: str | int | bool | None) -> None:
        self.seen[name] += 1

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None:
        for name, number in values.items():
            self.seen[f"metric_{name}"] += number


class Container(Warm):
    """A warm function process with production's own objects in it."""

    def __init__(self, world: World) -> None:
        super().__init__(world, world.scenario.clock_error_seconds)
        self.table = Table(cast("DynamoDBClient", SimulatedClient(world.network, self)), TABLE)
        self.users = Users(self.table)
        self.meters = Meters(self.table)
        self.ledger = Ledger(self.meters, self, self)
        self.accounts = Accounts(self.users, world.catalog, self)
        self.subscriptions = Subscriptions(self.table)
        self.events = StripeEvents(self.table)
        stripe, journal = the_stripe(), Journal(world.seen)
        self.sync = SubscriptionSync(
            self.subscriptions, self.users, self.ledger, stripe, world.catalog, self, self, journal
        )
        self.flow = StripeEventFlow(
            self.events,
            self.subscriptions,
            self.sync,
            stripe,
            self,
            self,
            journal,
            to_queue=world.queue.send,
            to_dead_letters=world.dead_letters.send,
        )


@dataclass(slots=True)
class Delivery:
    """One event on its way to us, until somebody says that it has arrived."""

    number: int
    event: StripeEvent
    attempts: int = 0
    done: bool = False


@dataclass(slots=True)
class Message:
    """One message in the queue."""

    number: int
    text: str
    event: StripeEvent
    receives: int = 0
    done: bool = False


class World:
    """Runs one scenario to its end and lets the oracle judge it."""

    def __init__(self, scenario: Scenario, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.seen: Counter[str] = Counter()
        self.catalog = the_catalog()
        self.hub = Hub(START.timestamp())
        self.hub.trace = trace
        self.oracle = Oracle(self)
        self.table = MemoryTable(TABLE, self.oracle.committed)
        self.network = Network(self.hub, self.table, self.rng, MessageFaults(), self.seen)
        self.stripe = StripeWorld(
            now=START, seed=scenario.seed, webhook_secret="whsec_test", account_id="acct_1", contract=the_contract()
        )
        self._greenlets: dict[Any, Process] = {}
        self.side = Side(self.hub, self.stripe, self.rng, self.seen, self.catch_up, self.running)
        the_wire().side = self.side
        self.queue = Queue(self.hub, self.rng, self.seen, self.running, "queue")
        self.dead_letters = Queue(self.hub, self.rng, self.seen, self.running, "dead_letters")
        self.queue.arrived = self._queue_message
        self.dead_letters.arrived = self._bury_message
        self.deliveries: list[Delivery] = []
        self.messages: list[Message] = []
        self.settling = False
        self._ids = 0
        self._free: list[Container] = []
        self.actions = Actions(self)

    # ---- one run

    def run(self) -> None:
        self.actions.open_accounts()
        self._break_things(self.scenario.table, self.scenario.stripe, self.scenario.queue)
        at = self.hub.now
        for step in self.scenario.steps:
            at += step.after_seconds
            self.hub.at(at, partial(self.actions.do, step))
        self._tick_until(at + self.rng.choice((HOUR, 2 * DAY, 10 * DAY)))
        self.hub.run()
        self._settle()
        for process, error in self.hub.crashes:
            self.oracle.report("crash", f"{process.name}: {error!r}")
        self.oracle.judge()
        self.hub.bury()

    def _tick_until(self, end: float) -> None:
        """Time passes at Stripe also when nobody asks; every now and then our own hourly run comes by."""
        at = self.hub.now
        while at < end:
            # Each hour would be true to life, and two thirds of the whole time of a run.
            at += self.rng.choice((6 * HOUR, DAY, 3 * DAY)) * self.rng.uniform(0.5, 1)
            self.hub.at(min(at, end), self._tick)

    def _tick(self) -> None:
        self.catch_up()
        self.start("hourly", self.run_hourly)

    def _settle(self) -> None:
        """All that was out of order works again; what is still to be delivered is, and the hourly run comes by."""
        self.settling = True
        self._break_things(MessageFaults(), WireFaults(), WireFaults())
        for _ in range(SETTLING_ROUNDS):
            self.catch_up()
            open_deliveries = [one for one in self.deliveries if not one.done]
            open_messages = [one for one in self.messages if not one.done]
            for delivery in open_deliveries:
                self._deliver(delivery)
            for message in open_messages:
                self._receive(message)
            self.hub.run()
            if not open_deliveries and not open_messages:
                break
            self.hub.now += 200
        else:
            self.oracle.report("never_settled", f"{len(open_deliveries)} deliveries, {len(open_messages)} messages")
        self.start("hourly", self.run_hourly)
        self.hub.run()

    def _break_things(self, table: MessageFaults, stripe: WireFaults, queue: WireFaults) -> None:
        self.network.set_faults(table)
        self.side.faults = stripe
        self.queue.faults = self.dead_letters.faults = queue

    # ---- processes

    def running(self) -> Process | None:
        """Of whom the present request is; None: of the scenario itself."""
        return self._greenlets.get(greenlet.getcurrent())

    def running_writer(self) -> Process | None:
        """Whose write is being committed; None: the scenario's own."""
        return self.network.sender

    def start(self, name: str, body: Callable[[Container], None]) -> Process:
        """An invocation in a container of its own, which may be killed or stand still for a while."""
        container = self._free.pop() if self._free else Container(self)

        def whole(process: Process) -> None:
            try:
                body(container)
            finally:
                self._greenlets.pop(process.greenlet, None)
                if not process.dead:
                    self._free.append(container)

        process = Process(self.hub, name, whole, container.skew_seconds)
        container.process = process
        self._greenlets[process.greenlet] = process
        self.seen["invocations"] += 1
        self.hub.start(process)
        self._misfortune(process)
        return process

    def _misfortune(self, process: Process) -> None:
        scenario, rng = self.scenario, self.rng
        if self.settling:
            return
        limit = TIMEOUT_SECONDS * (rng.choice((1, 6)) if scenario.adversarial else 1)
        self.hub.after(limit, lambda: self._kill(process, "timeouts"))
        if rng.random() < scenario.freeze:
            longest = 150.0 if scenario.adversarial else 25.0
            seconds = rng.random() * longest
            self.hub.after(rng.random() * 2, lambda: self.hub.freeze(process, seconds))
        if rng.random() < scenario.kill:
            self.hub.after(rng.choice((0.05, 0.5, 2.0)) * rng.random(), lambda: self._kill(process, "kills"))

    def _kill(self, process: Process, name: str) -> None:
        if self.hub.kill(process):
            self.seen[name] += 1

    def run_hourly(self, container: Container) -> None:
        try:
            sync_due(
                subscriptions=container.subscriptions,
                sync=container.sync,
                clock=container,
                report=lambda name, _, **__: self.seen.update([name]),
                deadline_at_seconds=container.now_seconds() + 240,
            )
        except TollgateError:
            self.seen["hourly_failed"] += 1

    # ---- deliveries

    def catch_up(self) -> None:
        """Bring Stripe's clock to now, and put what it has to tell on its way."""
        self.stripe.advance(datetime.fromtimestamp(int(self.hub.now), UTC))
        for told in self.stripe.take_events():
            self._send(told)

    def _send(self, told: dict[str, Any]) -> None:
        rng = self.rng
        copies = 1
        while rng.random() < self.scenario.duplicate and copies < 4:
            copies += 1
        shown = told
        if told["object"] == "event" and rng.random() < self.scenario.thin and "id" in told["data"]["object"]:
            # Its own id, as a thin destination beside a webhook has: the same fact arrives under two ids.
            shown = self.stripe.events.thin(told)
            self.seen["thin"] += 1
        event = event_of(shown)
        if event.reaction is None and rng.random() < 0.9:
            return  # an endpoint asks for what it needs; a few come all the same
        for _ in range(copies):
            delivery = Delivery(len(self.deliveries), event)
            self.deliveries.append(delivery)
            self.seen["deliveries"] += 1
            delay = 0.01 + rng.random() ** 3 * (1 if self.settling else self.scenario.longest_delay_seconds)
            self.hub.after(delay, partial(self._deliver, delivery))

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.done:
            return
        delivery.attempts += 1
        told = [False]

        def body(container: Container) -> None:
            try:
                container.flow.receive(delivery.event)
            except TollgateError as error:
                self.seen[f"answered_{error.error_code}"] += 1
                return
            told[0] = True

        process = self.start(f"delivery-{delivery.number}.{delivery.attempts} {delivery.event.type}", body)
        self.oracle.event_of[process] = delivery.event.id
        unseen = not self.settling and self.rng.random() < self.scenario.unseen_answer
        self._check_later(delivery, told, unseen=unseen)

    def _check_later(self, delivery: Delivery, told: list[bool], *, unseen: bool) -> None:
        def check() -> None:
            if told[0] and not unseen:
                delivery.done = True
            elif not self.settling:
                wait = self.rng.choice((5.0, 600.0, 2 * HOUR)) * self.rng.uniform(0.5, 1.5)
                self.hub.after(wait, lambda: self._deliver(delivery))

        self.hub.after(31, check)

    # ---- the queue

    def _queue_message(self, text: str) -> None:
        message = Message(len(self.messages), text, event_of_message(json.loads(text)))
        self.messages.append(message)
        copies = 2 if self.rng.random() < self.scenario.duplicate / 4 else 1
        for _ in range(copies):
            self.hub.after(self.rng.random() * 3, lambda: self._receive(message))

    def _bury_message(self, text: str) -> None:
        """An operator sends it to the queue again: when all is settled."""
        self.messages.append(Message(len(self.messages), text, event_of_message(json.loads(text))))

    def _receive(self, message: Message) -> None:
        if message.done:
            return
        message.receives += 1
        told = [False]

        def body(container: Container) -> None:
            try:
                container.flow.work(message.event)
            except TollgateError as error:
                self.seen[f"work_{error.error_code}"] += 1
                return
            told[0] = True

        process = self.start(f"message-{message.number}.{message.receives} {message.event.type}", body)
        self.oracle.event_of[process] = message.event.id

        def check() -> None:
            if told[0]:
                message.done = True
            elif not self.settling and message.receives < MOST_RECEIVES:
                self._receive(message)
            elif not self.settling:
                self.seen["redriven"] += 1

        self.hub.after(181, check)

    def new_id(self, length: int) -> str:
        self._ids += 1
        return str(self._ids).rjust(length, "i")
