"""One run: containers that serve calls, an upstream, sweepers and plan changes, all under faults and judged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import count
from typing import Any, cast

from tests.simulation.containers import TABLE, TENANT, Container, user_id
from tests.simulation.expressions import Item
from tests.simulation.hub import Hub, LivelockError, Process
from tests.simulation.ledger_calls import LedgerCall, ask_for
from tests.simulation.memory_table import MemoryTable
from tests.simulation.network import MessageFaults, Network
from tests.simulation.notices import apply_choice, apply_notice
from tests.simulation.oracle import Oracle
from tests.simulation.reckoning import reckon
from tests.simulation.refusals import Refusals
from tests.simulation.relay_calls import MODEL_ID, RelayCall
from tests.simulation.scenario import Levels, OverageChoice, PlanChange, Request, Scenario
from tests.simulation.truth import PRICES, Call
from tests.support.clocks import raise_reported
from tests.support.scripted_dynamodb import ScriptedClient
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.domain.errors import (
    QuotaExceededError,
    RateLimitedError,
    StoreUnavailableError,
)
from tollgate.domain.ledger import MeterName
from tollgate.domain.pricing import Model, PriceRow
from tollgate.domain.principals import Profile
from tollgate.domain.subscriptions import Entitlements
from tollgate.flows.sweep_meters import sweep_meters
from tollgate.storage.activity import Activity
from tollgate.storage.meters import meter_of
from tollgate.storage.table import Table, user_pk

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class World:
    """Builds a scenario, runs it to the end and lets the oracle judge."""

    def __init__(self, scenario: Scenario, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed ^ 0x5EED)
        self.seen: Counter[str] = Counter()
        self.hub = Hub(scenario.start_seconds)
        if trace is not None:
            self.hub.trace = lambda text: trace(f"{self.hub.now - scenario.start_seconds:10.3f} {text}")
        self.model = _model(scenario)
        self.catalog = Catalog(
            name="simulated",
            plans=scenario.plans,
            models={MODEL_ID: self.model},
            default_plan_id=next(iter(scenario.plans)),
            dearest_model=self.model,
            model_ids={MODEL_ID: MODEL_ID},
        )
        self.request_numbers = count()
        self.oracle = Oracle(
            self.hub,
            scenario.plans,
            self.seen,
            clock_error_seconds=scenario.clock_error_seconds,
            timeout_seconds=scenario.timeout_seconds,
            adversarial=scenario.adversarial,
            policy=scenario.policy,
        )
        self.oracle.relayed = scenario.relay
        self.refusals = Refusals(self.oracle, scenario, self.model.weights)
        self.table = MemoryTable(TABLE, self.oracle.watch)
        self.network = Network(self.hub, self.table, self.rng, MessageFaults(), self.seen)
        self.oracle.network = self.network
        self.levels = scenario.levels
        self.idle: list[Container] = []
        self.chosen: list[int | None] = [None for _ in scenario.first_plan_ids]
        """Overage caps that the users chose, in cents."""
        self._ids = 0
        self._containers = 0
        self._recent_ids: list[str] = []

    # ---- the run

    def run(self) -> None:
        try:
            self._set_up()
            self._schedule()
            self.hub.run()
            self._come_to_rest()
        except LivelockError as error:
            self.oracle.report("livelock", str(error))
        finally:
            self.hub.bury()
        for process, crash in self.hub.crashes:
            self.oracle.report("crash", f"{process.name}: {type(crash).__name__}: {crash}")
        self.seen["kills"] += self.hub.kills

    def _set_up(self) -> None:
        for user, plan_id in enumerate(self.scenario.first_plan_ids):
            profile = Profile(TENANT, user_id(user), plan_id, 1, self.scenario.anchor_at)
            self.oracle.standings.homes[user_pk(TENANT, user_id(user))] = self.scenario.anchor_at
            self._sell(user, Entitlements(plan_id, None))
            self._spawn("setup", partial(_create_profile, profile=profile), mortal=False)
        self.network.set_faults(self.scenario.message_faults)

    def _schedule(self) -> None:
        for index, request in enumerate(self.scenario.requests):
            self.hub.at(request.at_seconds, partial(self._invoke, index, request))
        for change in self.scenario.plan_changes:
            self._schedule_plan_change(change)
        for choice in self.scenario.choices:
            self._schedule_choice(choice)
        for number, instant in enumerate(self.scenario.sweeps_at):
            self.hub.at(instant, partial(self._spawn, f"sweep{number}", self._sweep))

    def _schedule_plan_change(self, change: PlanChange) -> None:
        self.hub.at(change.at_seconds, lambda: self._sell(change.user, change.entitlements))
        for instant in change.deliveries:
            self.hub.at(instant, lambda: self.deliver_notice(change.user))

    def _schedule_choice(self, choice: OverageChoice) -> None:
        def choose() -> None:
            self.chosen[choice.user] = choice.cap_cents
            self.deliver_choice(choice.user)

        self.hub.at(choice.at_seconds, choose)

    def _sell(self, user: int, entitlements: Entitlements) -> None:
        self.oracle.standings.sold[user_pk(TENANT, user_id(user))].append(entitlements)

    def change_suddenly(self, user: int) -> None:
        """A plan that is sold now; its notice is on its way."""
        self._sell(user, Entitlements(self.rng.choice(list(self.scenario.plans)), None))
        self.hub.after(0, lambda: self.deliver_notice(user))

    def deliver_notice(self, user: int) -> None:
        self._spawn(f"notice{user}", partial(apply_notice, self, user))

    def deliver_choice(self, user: int) -> None:
        self._spawn(f"choice{user}", partial(apply_choice, self, user))

    def _come_to_rest(self) -> None:
        """After everything late has landed: faults off, one sweep, one newest plan everywhere, then the last checks."""
        scenario = self.scenario
        self.hub.now += scenario.timeout_seconds * 2 + 60 + 300 + 2 * scenario.clock_error_seconds + 60
        self.network.set_faults(MessageFaults())
        self.levels = Levels(settled_twice=0)
        self._spawn("last_sweep", self._whole_sweep if scenario.whole_job else self._sweep, mortal=False)
        self.hub.run()
        for user in range(len(self.chosen)):
            standings, pk = self.oracle.standings, user_pk(TENANT, user_id(user))
            if not standings.is_newest(pk):
                self._spawn(f"last_notice{user}", partial(apply_notice, self, user), mortal=False)
                self.hub.run()
            if standings.chosen_cents(pk) != self.chosen[user]:
                self._spawn(f"last_choice{user}", partial(apply_choice, self, user), mortal=False)
                self.hub.run()
            self._spawn(f"probe{user}", partial(self._probe, user=user), mortal=False)
            self.hub.run()
        reckon(self.oracle, self._meters(), [item for _, _, item in self._items("REQUEST#")])

    def _meters(self) -> list[tuple[str, str, Item]]:
        return self._items("USAGE#")

    def _items(self, prefix: str) -> list[tuple[str, str, Item]]:
        return [(pk, sk, item) for pk, sk, item in self.table.items() if sk.startswith(prefix)]

    # ---- processes

    def new_id(self, length: int) -> str:
        """Unique, except that reservation ids collide at the level drawn: they are short on purpose."""
        if length == 8 and self._recent_ids and self.rng.random() < self.levels.id_collision:
            self.seen["id_collisions"] += 1
            shared = self.rng.choice(self._recent_ids[-8:])
            self.oracle.shared_ids.add(shared)
            return shared
        self._ids += 1
        number, text = self._ids, ""
        while len(text) < length:
            number, digit = divmod(number, len(_ALPHABET))
            text += _ALPHABET[digit]
        if length == 8:
            self._recent_ids.append(text)
        return text

    def _container(self) -> Container:
        if self.idle:
            return self.idle.pop(self.rng.randrange(len(self.idle)))
        self._containers += 1
        return Container(self, f"c{self._containers}")

    def _spawn(self, name: str, work: Callable[[Container], object], *, mortal: bool = True) -> Process:
        container = self._container() if mortal else Container(self, name)

        def body(process: Process) -> None:
            container.process = process
            work(container)
            if len(self.idle) < self.scenario.containers:
                self.idle.append(container)

        process = Process(self.hub, f"{name}/{container.name}", body, container.skew_seconds)
        if mortal:
            self._endanger(process)
        self.hub.start(process)
        return process

    def _endanger(self, process: Process) -> None:
        rng, levels, timeout = self.rng, self.levels, self.scenario.timeout_seconds
        if rng.random() < levels.kill:
            self.hub.after(rng.random() * rng.choice([0.02, 5, timeout]), lambda: self._kill(process, "sigkill"))
        if rng.random() < levels.freeze:
            spell = rng.choice([1, 20, timeout * (2 if self.scenario.adversarial else 1)])
            self.hub.after(rng.random() * rng.choice([0.02, 5, timeout]), lambda: self._freeze(process, spell))
        if not self.scenario.adversarial:
            self.hub.after(timeout, lambda: self._kill(process, "deadline"))

    def _kill(self, process: Process, why: str) -> None:
        if self.hub.kill(process):
            self.seen[f"kill_{why}"] += 1
            if self.hub.trace:
                self.hub.trace(f"{process.name} killed ({why})")

    def _freeze(self, process: Process, seconds: float) -> None:
        if self.hub.freeze(process, seconds):
            self.seen["freezes"] += 1
            if self.hub.trace:
                self.hub.trace(f"{process.name} frozen for {seconds} s")

    # ---- sweeps and plan changes

    def _sweep(self, container: Container) -> None:
        """The scheduled job's part that concerns the ledger: every meter there is."""
        process = container.process
        answered = []
        for pk, sk, _ in self._meters():
            outages = process.outages
            try:
                read_at = self.hub.now
                meter = container.meters.find_named(MeterName(TENANT, pk.rpartition("#")[2], sk.removeprefix("USAGE#")))
                if meter is not None:
                    container.ledger.sweep(meter, self.scenario.policy)
            except StoreUnavailableError:
                continue
            if process.outages == outages and not process.dead:
                answered.append(((pk, sk), read_at))
        self.oracle.swept_through(answered)

    def _whole_sweep(self, container: Container) -> None:
        """The scheduled job itself, which finds the meters by their index."""
        client = ScriptedClient(self.table, container.now_seconds)
        marks = Activity(Table(cast("Any", client), self.table.name))
        for _, _, item in self._meters():
            # As the relay notes it; here of calls that only the ledger sees, too.
            marks.note(meter_of(item).key, datetime.fromtimestamp(container.now_seconds() // 3600 * 3600, UTC))
        report = sweep_meters(
            activity=Activity(container.table),
            meters=container.meters,
            ledger=container.ledger,
            catalog=self.catalog,
            clock=container,
            report=raise_reported,
            deadline_at_seconds=container.now_seconds() + 600,
        )
        if not report.complete or report.seen_meters != len(self._meters()):
            self.oracle.report(
                "orphan_leak", f"the scheduled sweep saw {report.seen_meters} of {len(self._meters())} meters"
            )

    def _probe(self, container: Container, user: int) -> None:
        """One more call after the storm: the newest plan must have reached the running meter, and calls must work."""
        account = container.account(user, fresh=True)
        wanted = self.oracle.standings.sold[user_pk(TENANT, account.user_id)][-1]
        if account.profile != replace(account.profile.entitled_to(wanted), overage_cap_cents=self.chosen[user]):
            self.oracle.report("stale_plan", f"user {user} ends as {account.profile}, not {wanted} {self.chosen[user]}")
        key = container.key(account)
        try:
            container.ledger.release(container.ledger.reserve(account, key, ask_for(container, 1, 16)))
        except (QuotaExceededError, RateLimitedError) as error:
            self.seen["probe_refused"] += 1
            if error.error_code == "free_pool_exhausted" and self.oracle.has_full_pool():
                return
        item = self.table.find(user_pk(TENANT, account.user_id), f"USAGE#{key.period.id}")
        if item is None or item["plan_id"]["S"] != wanted.plan_id:
            self.oracle.report("stale_plan", f"user {user}: running meter is {item}, wanted {wanted.plan_id}")

    # ---- calls

    def _invoke(self, index: int, request: Request) -> None:
        self.seen["invocations"] += 1
        kind = RelayCall if self.scenario.relay else LedgerCall
        self._spawn(f"call{index}", lambda container: kind(self, container, request).serve())

    def generate_on(self, call: Call) -> None:
        """Nobody listens any more, but the upstream goes on generating for a while."""
        if call.live:
            call.output_tokens += int(self.rng.random() * (call.max_output_tokens - call.output_tokens + 1))
            call.live = False

    def is_stalled_by_adversary(self) -> bool:
        """Between the last byte and the settlement, far past the function's own deadline and the sweep."""
        stalled = self.scenario.adversarial and self.rng.random() < self.levels.freeze
        self.seen["stalled_before_settling"] += stalled
        return stalled

    def stall_seconds(self) -> float:
        """Long past every deadline; preferably until a sweep is at work, to get between its read and its write."""
        shortest = self.scenario.timeout_seconds + 65
        sweeps = [at for at in self.scenario.sweeps_at if at > self.hub.now + shortest]
        if sweeps and self.rng.random() < 0.7:
            return sweeps[0] - self.hub.now + self.rng.uniform(-0.01, 0.02)
        return shortest * self.rng.uniform(1, 2)


def _create_profile(container: Container, profile: Profile) -> None:
    container.users.create_profile(profile)


def _model(scenario: Scenario) -> Model:
    row = PriceRow(date(2026, 1, 1), None, PRICES, None, 1000, 1000, 0)
    shipped = load_catalog("default").dearest_model
    return replace(shipped, id=MODEL_ID, weights=scenario.weights, prices=(row,))
