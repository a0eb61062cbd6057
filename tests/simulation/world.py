"""One run: containers that serve calls through the real ledger, an upstream, sweepers and plan changes, all under faults."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.simulation.expressions import Item
from tests.simulation.hub import Hub, KilledError, LivelockError, Process
from tests.simulation.memory_table import MemoryTable
from tests.simulation.network import MessageFaults, Network, SimulatedClient
from tests.simulation.oracle import Oracle
from tests.simulation.scenario import Levels, PlanChange, Request, Scenario
from tests.simulation.truth import Call, Held
from tollgate.domain.errors import (
    DuplicateRequestError,
    IdempotencyMismatchError,
    QuotaExceededError,
    RateLimitedError,
    StaleAccountError,
    StoreUnavailableError,
    TollgateError,
)
from tollgate.domain.ledger import Ask, Grant, MeterKey, Settlement, charge_for_unknown_end
from tollgate.domain.periods import period_at
from tollgate.domain.plans import ExpiryPolicy
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.ledger import Ledger
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table, user_pk
from tollgate.storage.users import Users

TABLE = "tollgate"
TENANT = "main"
ACCOUNT_SECONDS = 60
"""How stale a container's account may be."""
SOFT_MARGIN_SECONDS = 10
MIN_OUTPUT = 16
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Container:
    """One warm function process: its client, clock, ids, memory. Serves one invocation at a time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.skew = world.rng.uniform(-1, 1) * world.scenario.clock_error_seconds
        self.process: Process = None  # type: ignore[assignment]  joined when an invocation starts
        self.client = SimulatedClient(world.network, self)
        table = Table(self.client, TABLE)  # type: ignore[arg-type]  the double has the few operations that are used
        self.users = Users(table)
        self.meters = Meters(table)
        self.ledger = Ledger(self.meters, self, self)
        self.accounts: dict[int, tuple[float, Account]] = {}

    # Clock and IdSource, as production code sees them

    def now_seconds(self) -> float:
        if self.process.dead:
            raise KilledError
        return self.process.now_seconds()

    def new_id(self, length: int) -> str:
        return self.world.new_id(length, self.process)

    def random_bytes(self, count: int) -> bytes:
        return self.world.rng.randbytes(count)

    def account(self, user: int, *, fresh: bool = False) -> Account:
        """The account as a container knows it: up to a minute old unless asked for freshly."""
        known = self.accounts.get(user)
        if known is not None and not fresh and self.now_seconds() - known[0] < ACCOUNT_SECONDS:
            return known[1]
        profile = self.users.find_profile(TENANT, self.world.user_id(user))
        assert profile is not None
        account = Account(profile, self.world.scenario.plans[profile.plan_id])
        self.accounts[user] = (self.now_seconds(), account)
        return account

    def key(self, account: Account) -> MeterKey:
        now = datetime.fromtimestamp(self.now_seconds(), UTC)
        period = period_at(account.plan.period_kind, account.profile.anchor_at, now)
        return MeterKey(TENANT, account.user_id, period)


class World:
    """Builds a scenario, runs it to the end and lets the oracle judge."""

    def __init__(self, scenario: Scenario, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed ^ 0x5EED)
        self.seen: Counter[str] = Counter()
        self.hub = Hub(scenario.start_seconds)
        if trace is not None:
            self.hub.trace = lambda text: trace(f"{self.hub.now - scenario.start_seconds:10.3f} {text}")
        self.oracle = Oracle(
            self.hub,
            scenario.plans,
            self.seen,
            clock_error=scenario.clock_error_seconds,
            adversarial=scenario.adversarial,
        )
        self.oracle.timeout_seconds = scenario.timeout_seconds
        self.table = MemoryTable(TABLE, self.oracle.watch)
        self.network = Network(self.hub, self.table, self.rng, MessageFaults(), self.seen)
        self.oracle.network = self.network
        self.levels = scenario.levels
        self.idle: list[Container] = []
        self.desired = list(scenario.first_plan_ids)
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
        for process, error in self.hub.crashes:
            self.oracle.report("crash", f"{process.name}: {type(error).__name__}: {error}")
        self.seen["kills"] += self.hub.kills

    def _set_up(self) -> None:
        for user, plan_id in enumerate(self.scenario.first_plan_ids):
            profile = Profile(TENANT, self.user_id(user), plan_id, 1, self.scenario.anchor_at)
            self._spawn("setup", lambda container, profile=profile: container.users.create_profile(profile), mortal=False)
        self.network.set_faults(self.scenario.message_faults)

    def _schedule(self) -> None:
        for index, request in enumerate(self.scenario.requests):
            self.hub.at(request.at_seconds, lambda request=request, index=index: self._invoke(index, request))
        for change in self.scenario.plan_changes:
            self._schedule_plan_change(change)
        for number, instant in enumerate(self.scenario.sweeps_at):
            self.hub.at(instant, lambda number=number: self._spawn(f"sweep{number}", self._sweep))

    def _schedule_plan_change(self, change: PlanChange) -> None:
        def subscribe() -> None:
            self.desired[change.user] = change.plan_id

        self.hub.at(change.at_seconds, subscribe)
        for instant in change.deliveries:
            self.hub.at(instant, lambda: self._deliver_notice(change.user))

    def _deliver_notice(self, user: int) -> None:
        self._spawn(f"notice{user}", lambda container: self._apply_notice(container, user))

    def _come_to_rest(self) -> None:
        """After everything late has landed: faults off, one sweep, one newest plan everywhere, then the last checks."""
        scenario = self.scenario
        self.hub.now += scenario.timeout_seconds * 2 + 60 + 300 + 2 * scenario.clock_error_seconds + 60
        self.network.set_faults(MessageFaults())
        self.levels = Levels(settled_twice=0)
        self._spawn("last_sweep", self._sweep, mortal=False)
        self.hub.run()
        for user in range(len(self.desired)):
            self._spawn(f"last_notice{user}", lambda container, user=user: self._apply_notice(container, user), mortal=False)
            self.hub.run()
            self._spawn(f"probe{user}", lambda container, user=user: self._probe(container, user), mortal=False)
            self.hub.run()
        self.oracle.check_end(self._meters(), self._is_strict)

    def _meters(self) -> list[tuple[str, str, Any]]:
        return [(pk, sk, item) for pk, sk, item in self.table.items() if sk.startswith("USAGE#")]

    def _is_strict(self, held: Held) -> bool:
        _ = held
        return self.scenario.policy is ExpiryPolicy.STRICT

    # ---- processes

    def user_id(self, user: int) -> str:
        return f"user-{user}"

    def new_id(self, length: int, process: Process) -> str:
        """Unique, except that reservation ids collide at the level drawn: they are short on purpose."""
        if length == 8 and self._recent_ids and self.rng.random() < self.levels.id_collision:
            self.seen["id_collisions"] += 1
            process.outages += 1
            return self.rng.choice(self._recent_ids[-8:])
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

        process = Process(self.hub, f"{name}/{container.name}", body, container.skew)
        if mortal:
            self._endanger(process)
        self.hub.start(process)
        return process

    def _endanger(self, process: Process) -> None:
        rng, levels, timeout = self.rng, self.levels, self.scenario.timeout_seconds
        if rng.random() < levels.kill:
            self.hub.after(rng.random() * min(timeout, rng.choice([0.02, 2, 20])), lambda: self._kill(process, "sigkill"))
        if rng.random() < levels.freeze:
            spell = rng.choice([1, 20, timeout * (2 if self.scenario.adversarial else 1)])
            self.hub.after(rng.random() * 20, lambda: self._freeze(process, spell))
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
            troubles = self.seen["fault_conflict"]
            try:
                read_at = self.hub.now
                meter = container.meters.find_item(pk, sk)
                if meter is not None:
                    container.ledger.sweep(meter, self.scenario.policy)
            except StoreUnavailableError:
                continue
            if self.seen["fault_conflict"] == troubles and not process.dead:
                answered.append(((pk, sk), read_at))
        self.oracle.swept_through(answered)

    def _apply_notice(self, container: Container, user: int) -> None:
        """As a webhook handler must: version first, then what is true now, then change by that version."""
        try:
            for _ in range(6):
                account = container.account(user, fresh=True)
                plan = self.scenario.plans[self.desired[user]]
                if account.profile.plan_id == plan.id:
                    return
                try:
                    container.ledger.change_plan(account, container.key(account), plan)
                except StaleAccountError:
                    self.seen["plan_change_raced"] += 1
                    continue
                self.seen["plan_changes"] += 1
                return
        except StoreUnavailableError:
            self.hub.after(20, lambda: self._deliver_notice(user))

    def _probe(self, container: Container, user: int) -> None:
        """One more call after the storm: the newest plan must have reached the running meter, and calls must work."""
        account = container.account(user, fresh=True)
        if account.profile.plan_id != self.desired[user]:
            self.oracle.report("stale_plan", f"user {user} ends on {account.profile.plan_id}, not {self.desired[user]}")
        key = container.key(account)
        try:
            container.ledger.release(container.ledger.reserve(account, key, _ask(container, 1, 16, may_clamp=False)))
        except (QuotaExceededError, RateLimitedError):
            self.seen["probe_refused"] += 1
        item = self.table.find(user_pk(TENANT, account.user_id), f"USAGE#{key.period.id}")
        if item is None or item["plan_id"]["S"] != self.desired[user]:
            self.oracle.report("stale_plan", f"user {user}: running meter is {item}, wanted {self.desired[user]}")

    # ---- a call

    def _invoke(self, index: int, request: Request) -> None:
        call = Call(user=request.user, prompt_tokens=request.prompt_tokens, bound_tokens=request.bound_tokens)
        self.seen["invocations"] += 1
        self._spawn(f"call{index}", lambda container: _Invocation(self, container, request, call).serve())


def _ask(container: Container, bound: int, output: int, *, may_clamp: bool, request: Request | None = None) -> Ask:
    process = container.process
    return Ask(
        prompt_bound_tokens=bound,
        output_tokens=output,
        output_weight=1000,
        may_clamp=may_clamp,
        deadline_at_seconds=process.started_at + process.skew_seconds + container.world.scenario.timeout_seconds,
        idempotency_key=request.idempotency_key if request else None,
        body_sha256=request.body_sha256 if request and request.idempotency_key else None,
    )


class _Invocation:
    """One call through the ledger's own doors, as `flows.relay_message` uses them, with an upstream made of sleeps."""

    def __init__(self, world: World, container: Container, request: Request, call: Call) -> None:
        self.world = world
        self.container = container
        self.request = request
        self.call = call
        self.process = container.process
        self.rng = world.rng
        self.seen = world.seen
        self.started_at = container.now_seconds()
        call.process = self.process
        self.process.on_kill = self._orphan

    def serve(self) -> None:
        try:
            grant = self._reserve()
        except StoreUnavailableError:
            self.seen["refused_store"] += 1
            return
        if grant is None:
            return
        held = self.world.oracle.reservations[grant.reservation.nonce]
        if held.call is not None:
            held.call.starts += 1
        held.call = self.call
        try:
            self._use(grant)
        except StoreUnavailableError:
            self.seen["settle_unanswered"] += 1

    def _reserve(self) -> Grant | None:
        """The grant, or None after a refusal, which the oracle judges."""
        request, container, oracle = self.request, self.container, self.world.oracle
        account = container.account(request.user)
        for _ in range(4):
            key = container.key(account)
            first = request.max_tokens
            if account.plan.slice_output_tokens is not None:
                first = min(first, account.plan.slice_output_tokens)
            self.process.sights.clear()
            ask = _ask(container, request.bound_tokens, first, may_clamp=request.may_clamp, request=request)
            try:
                grant = container.ledger.reserve(account, key, ask)
            except StaleAccountError:
                self.seen["stale_account"] += 1
                account = container.account(request.user, fresh=True)
                continue
            except (QuotaExceededError, RateLimitedError) as error:
                self._judge(error, account, key, ask)
            except (DuplicateRequestError, IdempotencyMismatchError) as error:
                self.seen[f"refused_{error.error_code}"] += 1
            else:
                self.account = account
                self.seen["granted"] += 1
                if grant.output_tokens < first:
                    self.seen["clamped"] += 1
                return grant
            return None
        self.seen["refused_stale"] += 1
        return None

    def _judge(self, error: TollgateError, account: Account, key: MeterKey, ask: Ask) -> None:
        oracle, plan, code = self.world.oracle, account.plan, error.error_code
        least = ask.amount_tokens
        if ask.may_clamp:
            least = ask.prompt_bound_tokens + min(MIN_OUTPUT, ask.output_tokens)
        if isinstance(error, QuotaExceededError):
            code = "requests" if "requests are used" in error.public_message else "quota"
        self.seen[f"refused_{code}"] += 1
        tests: dict[str, Callable[[float, Item], bool]] = {
            "quota": lambda _, item: oracle.has_no_room(least, item),
            "requests": lambda _, item: oracle.has_no_request(item),
            "too_many_streams": lambda _, item: oracle.has_no_slot(plan, item),
            "rate_limited": lambda reading, item: oracle.is_too_early(plan, reading, item),
        }
        if code in tests:
            meter = (user_pk(TENANT, account.user_id), f"USAGE#{key.period.id}")
            oracle.judge_refusal(self.process, f"refused for {code}", tests[code], meter)

    # ---- upstream

    def _use(self, grant: Grant) -> None:
        world, call, rng = self.world, self.call, self.rng
        if rng.random() < world.levels.upstream_refusal:
            call.released = True
            self.container.ledger.release(grant)
            self.seen["upstream_refused"] += 1
            return
        call.starts += 1
        call.live = True
        call.sliced = self.account.plan.slice_output_tokens is not None
        call.max_output_tokens = self.request.max_tokens if call.sliced else grant.output_tokens
        self._sleep(0.2 + rng.random() * 0.8)
        try:
            grant = self._meet_prompt(grant)
            grant, ended_well = self._stream(grant)
        except QuotaExceededError:
            self.seen["stopped_for_quota"] += 1
            ended_well = False
            grant = self.grant
        call.live = False
        self._settle(grant, ended_well)

    def _meet_prompt(self, grant: Grant) -> Grant:
        """message_start shows the true prompt; when it is above the bound, the reservation grows or the stream stops."""
        self.grant = grant
        extra = self.call.prompt_tokens - self.request.bound_tokens
        if extra > 0:
            self.seen["prompt_above_bound"] += 1
            self.grant = grant = self._top_up(grant, extra)
        return grant

    def _top_up(self, grant: Grant, extra: int) -> Grant:
        try:
            bigger = self.container.ledger.top_up(grant, extra)
        except QuotaExceededError:
            self.seen["top_up_refused"] += 1
            raise
        except StoreUnavailableError:
            self.seen["top_up_unanswered"] += 1
            raise QuotaExceededError("", remaining_tokens=0, needed_tokens=0, resets_at=datetime.now(UTC)) from None
        self.seen["top_up_granted"] += 1
        return bigger

    def _stream(self, grant: Grant) -> tuple[Grant, bool]:
        """Chunks until the end; (grant, whether upstream told its final usage)."""
        call, rng = self.call, self.rng
        total = min(call.max_output_tokens, 1 + int(rng.expovariate(1 / 500)))
        fails_at = rng.randrange(total + 1) if rng.random() < self.world.levels.upstream_failure else None
        soft_end = self.started_at + self.world.scenario.timeout_seconds - SOFT_MARGIN_SECONDS
        reserved = grant.output_tokens
        self.sent = 0
        while self.sent < total:
            self._sleep(0.05 + rng.random() * self.world.scenario.pace_seconds)
            if self.container.now_seconds() > soft_end:
                self.seen["soft_deadline"] += 1
                call.output_tokens += int(rng.random() * (total - call.output_tokens + 1))
                return grant, False
            chunk = min(total - self.sent, 1 + int(rng.random() * call.max_output_tokens / 4))
            if fails_at is not None and self.sent + chunk > fails_at:
                self.seen["upstream_cut"] += 1
                call.output_tokens = min(call.max_output_tokens, call.output_tokens + rng.choice([0, 0, 20]))
                return grant, False
            self.sent += chunk
            call.output_tokens += chunk
            if call.sliced and self.sent >= reserved and self.sent < total:
                self.seen["slices"] += 1
                step = min(self.account.plan.slice_output_tokens or 0, call.max_output_tokens - reserved)
                self.grant = grant = self._top_up(grant, self.sent - reserved + step)
                reserved = self.sent + step
        return grant, True

    def _settle(self, grant: Grant, ended_well: bool) -> None:
        call, world, rng = self.call, self.world, self.rng
        settlement = self._settlement(grant, ended_well)
        call.counts, call.cost_picousd = settlement.counts, settlement.cost_picousd
        if world.scenario.adversarial and rng.random() < world.levels.freeze:
            self.seen["settled_after_expiry"] += 1
            self._sleep(2 * world.scenario.timeout_seconds)
        settled = self.container.ledger.settle(grant, settlement)
        if settled.late:
            self.seen["settled_late"] += 1
        call.settled_at = world.hub.now
        if rng.random() < world.levels.settled_twice:
            self.seen["settled_twice"] += 1
            self.container.ledger.settle(grant, settlement)

    def _settlement(self, grant: Grant, ended_well: bool) -> Settlement:
        call = self.call
        sent = getattr(self, "sent", 0)
        counts = TokenCounts(input_tokens=call.prompt_tokens, output_tokens=sent)
        if ended_well:
            call.known_tokens = call.used_tokens
            return Settlement(call.known_tokens, counts=counts, cost_picousd=3 * call.prompt_tokens + 15 * sent)
        call.unknown_end = True
        bound = call.prompt_tokens + call.max_output_tokens
        charged, off = charge_for_unknown_end(
            self.world.scenario.policy, grant.reservation, call.prompt_tokens, bound, sent
        )
        # What is known to have passed is booked even where the reservation could not grow to it.
        call.known_least_tokens = call.prompt_tokens + sent
        used = max(charged, call.known_least_tokens)
        off = max(0, off - (used - charged))
        return Settlement(used, off, counts=counts, cost_picousd=3 * call.prompt_tokens + 15 * sent)

    def _sleep(self, seconds: float) -> None:
        self.world.hub.sleep(self.process, seconds)

    def _orphan(self) -> None:
        """Killed: nobody listens any more, but the upstream goes on generating for a while."""
        call = self.call
        if call.live:
            call.output_tokens += int(self.rng.random() * (call.max_output_tokens - call.output_tokens + 1))
            call.live = False
