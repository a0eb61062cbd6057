"""Watches every commit of the table and judges it by what really happened; knows nothing of the code under test.

It reads the stored attributes themselves and tells the kinds of writes apart by what they changed. Refusals are judged
in `refusals.py`, plans and money in `standings.py`, the end of a run in `reckoning.py`.

Reported here, at the commit: conservation (the sums of every meter and of every key, and only an end moves them),
over_limit, over_requests, over_concurrency, over_budget (of an API key), rate (exact GCRA in the table's own order,
the user's and the key's), pool (what openings take of it, and never more than it has), double_bill, lost_tokens and
expiry_charge (what a sweep books), swept_alive, leftover (a call that met no outage left a reservation), overdue (open
longer than the time-out and 60 s although swept), half_correction, double_call, unreserved_call, item_size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from tests.simulation.expressions import Item
from tests.simulation.hub import Hub, Process
from tests.simulation.memory_table import Change, item_size
from tests.simulation.network import Network
from tests.simulation.standings import Standings
from tests.simulation.truth import Call, Held
from tests.support.seeded_runs import Violation
from tollgate.domain.plans import ExpiryPolicy, Plan
from tollgate.domain.tokens import TokenCounts

Key = tuple[str, str]

MAX_ITEM_BYTES = 16 * 1024
"""No meter may grow beyond this, whatever happens to it; 400 KB is DynamoDB's own wall."""
COUNT_NAMES = ("t_in", "t_out", "t_w5", "t_w1", "t_rd")


@dataclass(slots=True)
class MeterTruth:
    """The sums of one meter, added up from the changes, never read back from it."""

    settled: int = 0
    written_off: int = 0
    requests: int = 0
    cost_picousd: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * len(COUNT_NAMES))
    most_room: int = 0
    """The largest quota + overage cap that was ever in force."""
    held: dict[str, Held] = field(default_factory=dict)
    """Open reservations by their attribute name."""
    key_charged: Counter[str] = field(default_factory=Counter)
    """Charges that count against a key's budget, by `k#` attribute."""


@lru_cache(maxsize=65536)
def parse_reservation(text: str) -> tuple[int, int, str, int, str]:
    """(amount, expires at, nonce, prompt bound, key id or nothing) of a stored reservation."""
    amount, expires_at, nonce, bound, *key_id = text.split(":")
    return int(amount), int(expires_at), nonce, int(bound), "".join(key_id)


class Oracle:
    """One per run. `violations` stays empty in a correct run."""

    network: Network
    """Joined by the run, which builds both."""

    def __init__(
        self,
        hub: Hub,
        plans: dict[str, Plan],
        seen: Counter[str],
        *,
        clock_error_seconds: float,
        timeout_seconds: float,
        adversarial: bool,
        policy: ExpiryPolicy,
    ) -> None:
        self.relayed = False
        """The calls go through the relay, not straight to the ledger."""
        self.hub = hub
        self.plans = plans
        self.seen = seen
        self.clock_error_seconds = clock_error_seconds
        self.timeout_seconds = timeout_seconds
        self.adversarial = adversarial
        self.policy = policy
        self.violations: list[Violation] = []
        self.meters: defaultdict[Key, MeterTruth] = defaultdict(MeterTruth)
        self.reservations: dict[str, Held] = {}
        self.standings = Standings(plans, seen, self.report)
        self.pools: dict[Key, int] = {}
        """Tokens taken."""
        self.used_keys: dict[tuple[int, str], Call] = {}
        """(user, idempotency key) of every call that went up."""
        self.shared_ids: set[str] = set()
        """Reservation ids that two owners were given: a late duplicate may then slip between two tombstones."""
        self._most_attributes = 0
        self.largest_item = 0
        self.most_open = 0

    def report(self, kind: str, message: str) -> None:
        self.violations.append(Violation(kind, self.hub.now, message))
        if self.hub.trace:
            self.hub.trace(f"VIOLATION {kind}: {message}")

    # ---- every commit

    def watch(self, changes: list[Change]) -> None:
        self.seen["commits"] += 1
        meters: list[Change] = []
        others: dict[str, Change] = {}
        for change in changes:
            kind = change.sk[:5]
            if kind == "USAGE":
                meters.append(change)
            else:
                others[kind] = change
        meter, record = meters[0] if meters else None, others.get("EXPIR")
        self._watch_pool(others.get("MONTH"), meter)
        profile = others.get("PROFI")
        if profile is not None and profile.new is None:
            self.report("stale_plan", f"profile {profile.pk} deleted")
        self.standings.watch(profile, others.get("SUBSC"), meters, self.network.sent_reading)
        for meter in meters:
            self._watch_meter(meter, record)
        if record is not None and not meters:
            self.report("half_correction", f"{record.sk} changed without its meter")

    def _watch_pool(self, change: Change | None, meter: Change | None) -> None:
        """What is taken of a pool is what the meters opened on its plan can use at most, and never more than it has."""
        opened = meter is not None and meter.old is None and meter.new is not None
        plan = self.plans[meter.new["plan_id"]["S"]] if opened and meter is not None and meter.new else None
        due = 0 if plan is None or plan.pool_tokens is None else plan.most_tokens
        before = number(change.old, "taken") if change is not None and change.old is not None else 0
        taken = number(change.new, "taken") if change is not None and change.new is not None else 0
        if taken - before != due:
            self.report("pool", f"{taken - before} taken by an opening that is due {due}")
        if change is None or plan is None:
            return
        self.seen["pool_taken"] += 1
        if change.pk != f"TENANT#main#POOL#{plan.id}" or taken > (plan.pool_tokens or 0):
            self.report("pool", f"{change.pk} {change.sk}: {taken} taken of {plan.pool_tokens}")
        self.pools[change.pk, change.sk] = taken

    def has_full_pool(self) -> bool:
        """Whether one has no room for another user; nothing ever returns to it."""
        rooms = [
            (self.plans[pk.rpartition("#")[2]].pool_tokens or 0) - taken - self.plans[pk.rpartition("#")[2]].most_tokens
            for (pk, _), taken in self.pools.items()
        ]
        return any(room < 0 for room in rooms)

    def _watch_meter(self, change: Change, record: Change | None) -> None:
        key, old, new = (change.pk, change.sk), change.old, change.new
        truth = self.meters[key]
        if new is None:
            self.report("conservation", f"{key} deleted")
            return
        if old is None:
            self.seen["meters_created"] += 1
            old = _EMPTY_METER
        names = [name for name, value in new.items() if old.get(name) is not value and name[1] == "#"]
        gone = [name for name in old if name not in new] if len(new) != len(old) + len(names) else []
        for name in names:
            if name[0] == "r":
                self._held(key, truth, name, old, new)
            elif name[0] == "x":
                self.seen["tombstones"] += 1
        for name in gone:
            if name[0] == "r":
                self._ended(key, truth, name, old, new, record)
            elif name[0] == "x":
                self.seen["tombstones_dropped"] += 1
        if record is not None and record.old is not None:
            self._corrected(key, truth, old, new, record)
        self._check_sums(key, truth, new)

    # ---- reserve, top-up

    def _held(self, key: Key, truth: MeterTruth, name: str, old: Item, new: Item) -> None:
        amount, _, nonce, _, key_id = parse_reservation(new[name]["S"])
        before = old.get(name)
        if before is None:
            self._reserved(key, truth, name, old, new)
        elif parse_reservation(before["S"])[2] != nonce:
            self.report("conservation", f"{key} {name}: {before['S']} overwritten by {new[name]['S']}")
        else:
            self.seen["top_ups"] += 1
            truth.held[name].amount_tokens = amount
        floor = -number(new, "overage_cap")
        if number(new, "remaining") < floor:
            self.report("over_limit", f"{key} {name} admitted: remaining {number(new, 'remaining')} below {floor}")
        if key_id:
            self._check_budget(key, new)

    def _check_budget(self, key: Key, new: Item) -> None:
        """Whoever takes from a key's budget leaves it within the budget that this sender knows."""
        sender = self.network.sender
        assert sender is not None
        limits = sender.limits
        if limits is None or limits.budget_tokens is None:
            self.report("over_budget", f"{key} {sender.name} counts against a budget that its key does not have")
        elif number(new, f"k#{limits.id}") > limits.budget_tokens:
            taken = number(new, f"k#{limits.id}")
            self.report("over_budget", f"{key} {limits.id}: {taken} of {limits.budget_tokens} taken by {sender.name}")

    def _reserved(self, key: Key, truth: MeterTruth, name: str, old: Item, new: Item) -> None:
        amount, _, nonce, bound, key_id = parse_reservation(new[name]["S"])
        sender = self.network.sender
        assert sender is not None
        self.seen["reserved"] += 1
        known = self.reservations.get(nonce)
        if known is not None:
            if not known.open:
                self.seen["revived"] += 1
            held = known
            held.open = True
        else:
            held = Held(name[2:], nonce, key, sender, self.plan_of(new), self.hub.now, amount, bound, key_id)
            if key_id:
                self.seen["reserved_by_keys"] += 1
                truth.key_charged[f"k#{key_id}"] += 0  # from now on the key is in the books
            self.reservations[nonce] = held
        truth.held[name] = held
        if number(new, "req_remaining") < 0:
            self.report("over_requests", f"{key} {name}: {number(new, 'req_remaining')} requests left")
        self.standings.check_admission(*key, sender.name)
        plan = self.plan_of(new)
        open_count = number(new, "open_count")
        self.most_open = max(self.most_open, open_count)
        # A meter that a change of plan has left keeps its plan, and slow clocks still use it by the account's.
        allowed = max(plan.max_open_reservations, self.plan_of(self.standings.profiles[key[0]]).max_open_reservations)
        if open_count > allowed:
            self.report("over_concurrency", f"{key} {open_count} open of {allowed}")
        if sender.done and known is None:
            self.seen["reserved_after_the_end"] += 1
        self._check_rate(key, (plan.requests_per_minute, plan.burst_requests), old, new, "rate_tat")
        limits = sender.limits
        if limits is not None:
            rate = (limits.requests_per_minute, limits.burst_requests)
            self._check_rate(key, rate, old, new, f"q#{limits.id}")

    def _check_rate(self, key: Key, rate: tuple[int | None, int], old: Item, new: Item, name: str) -> None:
        """Exact GCRA, in the table's own order, at the instant that the sender gave its request."""
        tat, next_tat = number(old, name) if name in old else 0, number(new, name) if name in new else 0
        requests_per_minute, burst_requests = rate
        if requests_per_minute is None:
            if tat != next_tat:
                self.report("rate", f"{key} rate state moved without a rate limit")
            return
        now_ms = int(self.network.sent_reading * 1000)
        interval_ms = -(-60_000 // requests_per_minute)
        tolerance_ms = (burst_requests - 1) * interval_ms
        if tat > now_ms + tolerance_ms:
            self.report("rate", f"{key} admitted at {now_ms}, {tat - now_ms - tolerance_ms} ms too early")
        if next_tat != max(tat, now_ms) + interval_ms:
            self.report("rate", f"{key} rate state went {tat} -> {next_tat} at {now_ms}")
        self.seen[f"{'key_' if name[1] == '#' else ''}rate_{'idle' if tat <= now_ms else 'busy'}"] += 1

    # ---- settle, release, sweep, late correction

    def _ended(self, key: Key, truth: MeterTruth, name: str, old: Item, new: Item, record: Change | None) -> None:
        _, _, nonce, _, key_id = parse_reservation(old[name]["S"])
        held = self.reservations[nonce]
        truth.held.pop(name, None)
        held.open = False
        held.ends += 1
        if held.ends > 1:
            self.report("double_bill", f"{key} {name} nonce {nonce} ended {held.ends} times (swept: {held.swept})")
        charged = number(new, "settled") - number(old, "settled")
        written_off = number(new, "written_off") - number(old, "written_off")
        if charged > held.amount_tokens:
            self.report("over_limit", f"{key} {name}: {charged} charged for a reservation of {held.amount_tokens}")
        held.charged_tokens += charged
        held.written_off_tokens += written_off
        truth.settled += charged
        truth.written_off += written_off
        if key_id:
            truth.key_charged[f"k#{key_id}"] += charged
        if record is not None:
            self._swept(key, name[2:], held, charged, written_off)
            counted = True
        else:
            counted = not (held.call is None or held.call.released)
            self.seen["settled" if counted else "released"] += 1
        held.request_counted = counted
        truth.requests += counted
        self._book_counts(truth, held, old, new)

    def _swept(self, key: Key, reservation_id: str, held: Held, charged: int, written_off: int) -> None:
        self.seen["swept"] += 1
        self.seen[f"swept_{'running' if held.owner.running else 'dead' if held.owner.dead else 'done'}"] += 1
        held.swept = True
        if charged + written_off != held.amount_tokens:
            self.report("lost_tokens", f"{key} swept {held.nonce}: {charged} + {written_off} of {held.amount_tokens}")
        expected = {ExpiryPolicy.STRICT: held.amount_tokens, ExpiryPolicy.VOID: 0}
        if charged != expected.get(self.policy, min(held.amount_tokens, held.prompt_bound_tokens)):
            self.report("expiry_charge", f"{key} {held.nonce}: {charged} of {held.amount_tokens} under {self.policy}")
        owner = held.owner
        if owner.running and not self.adversarial:
            self.report("swept_alive", f"{key} {held.nonce} swept while {owner.name} lives")
        if owner.done and not owner.dead and not owner.outages and reservation_id not in self.shared_ids:
            self.report(
                "leftover", f"{key} {held.nonce} of {owner.name}, which ended without any outage, had to be swept"
            )

    def _corrected(self, key: Key, truth: MeterTruth, old: Item, new: Item, record: Change) -> None:
        assert record.old is not None
        assert record.new is not None
        nonce = record.sk.rsplit("#", 1)[1]
        held = self.reservations[nonce]
        self.seen["late_corrections"] += 1
        if held.corrected:
            self.report("double_bill", f"{key} {nonce} corrected twice")
        held.corrected = True
        charged = number(new, "settled") - number(old, "settled")
        written_off = number(new, "written_off") - number(old, "written_off")
        held.charged_tokens += charged
        held.written_off_tokens += written_off
        truth.settled += charged
        truth.written_off += written_off
        if held.key_id:
            truth.key_charged[f"k#{held.key_id}"] += charged
            if charged > 0:
                self._check_budget(key, new)
        if charged > 0 and room(new) < 0:
            self.report("over_limit", f"{key} {nonce} corrected by {charged} beyond the room there was")
        counted = not (held.call is None or held.call.released)
        truth.requests += counted - held.request_counted
        held.request_counted = counted
        if (number(record.new, "charged"), number(record.new, "written_off")) != (
            held.charged_tokens,
            held.written_off_tokens,
        ):
            self.report(
                "half_correction", f"{key} {nonce}: record {record.new}, meter moved by {charged}, {written_off}"
            )
        self._book_counts(truth, held, old, new)

    def _book_counts(self, truth: MeterTruth, held: Held, old: Item, new: Item) -> None:
        counts = [number(new, name) - number(old, name) for name in COUNT_NAMES]
        cost = number(new, "picousd") - number(old, "picousd")
        truth.counts = [total + count for total, count in zip(truth.counts, counts, strict=True)]
        truth.cost_picousd += cost
        held.counts += TokenCounts(*counts)
        held.cost_picousd += cost

    # ---- the sums

    def _check_sums(self, key: Key, truth: MeterTruth, new: Item) -> None:
        quota, reserved, count = number(new, "quota"), 0, 0
        counted = bool(truth.key_charged)
        for name, value in new.items():
            kind = name[:2]
            if kind == "r#":
                reserved += parse_reservation(value["S"])[0]
                count += 1
            elif kind == "k#":
                counted = True
        if counted:
            self._check_keys(key, truth, new)
        remaining, settled = number(new, "remaining"), number(new, "settled")
        if remaining != quota - settled - reserved:
            self.report("conservation", f"{key} remaining {remaining} of {quota} - {settled} - {reserved}")
        if number(new, "open_count") != count:
            self.report("conservation", f"{key} open_count {number(new, 'open_count')} of {count}")
        requests_left = number(new, "req_quota") - truth.requests - count
        if number(new, "req_remaining") != requests_left:
            self.report(
                "conservation", f"{key} requests left {number(new, 'req_remaining')}, should be {requests_left}"
            )
        if settled != truth.settled or number(new, "written_off") != truth.written_off:
            self.report("conservation", f"{key} moved outside of any end: settled {settled}, {truth.settled} charged")
        truth.most_room = max(truth.most_room, quota + number(new, "overage_cap"))
        if len(new) > self._most_attributes:
            self._most_attributes = len(new)
            self.largest_item = size = max(self.largest_item, item_size(new))
            if size > MAX_ITEM_BYTES:
                self.report("item_size", f"{key} has {size} bytes")

    def _check_keys(self, key: Key, truth: MeterTruth, new: Item) -> None:
        """What counts against a key is what was charged to it and what its open reservations hold."""
        taken = truth.key_charged.copy()
        for name, value in new.items():
            if name[:2] == "r#":
                amount, _, _, _, key_id = parse_reservation(value["S"])
                if key_id:
                    taken[f"k#{key_id}"] += amount
        for name in {*taken, *(name for name in new if name[:2] == "k#")}:
            stored = number(new, name) if name in new else None
            if stored != taken[name]:
                self.report("conservation", f"{key} {name} is {stored}, charged and held {taken[name]}")

    # ---- the upstream call of a reservation

    def bind(self, held: Held, call: Call) -> None:
        """This call is about to go up under this reservation."""
        if held.call is not None:
            held.call.starts += 1
        held.call = call
        plan = held.plan
        call.sliced, call.hard = plan.slice_output_tokens is not None, plan.hard
        if call.idempotency_key is not None:
            used = (call.user, call.idempotency_key)
            earlier = self.used_keys.get(used)
            if earlier is not None and not earlier.released:
                self.report("double_call", f"user {call.user} is served twice for {call.idempotency_key}")
            self.used_keys[used] = call

    def bind_open(self, process: Process, call: Call) -> None:
        """The same for the one reservation that the process has open."""
        mine = [held for held in self.reservations.values() if held.owner is process]
        still_open = [held for held in mine if held.open]
        if not still_open and not self.adversarial:
            self.report("unreserved_call", f"{process.name} calls upstream without an open reservation")
        if mine:
            self.bind((still_open or mine)[-1], call)

    def plan_of(self, item: Item) -> Plan:
        return self.plans[item["plan_id"]["S"]]

    def swept_through(self, keys: Iterable[tuple[Key, float]]) -> None:
        """A sweep of these meters, each read at the given instant, was answered: nothing overdue may be left."""
        for key, read_at in keys:
            for held in self.meters[key].held.values():
                latest = held.owner.started_at + self.timeout_seconds + 60 + 2 * self.clock_error_seconds + 2
                if held.reserved_at < read_at and read_at > latest and not held.owner.running:
                    self.report("overdue", f"{key} {held.nonce} still open {read_at - latest:.0f} s after its time")


_EMPTY_METER: Item = {
    "rate_tat": {"N": "0"},
    "settled": {"N": "0"},
    "written_off": {"N": "0"},
    "plan_version": {"N": "0"},
}


def room(item: Item) -> int:
    """Tokens that a new reservation could take."""
    return number(item, "remaining") + number(item, "overage_cap")


def number(item: Item, name: str) -> int:
    return int(item[name]["N"])
