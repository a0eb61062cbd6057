"""Watches every commit of the table and judges it by what really happened; knows nothing of the code under test.

It reads the stored attributes themselves and tells the kinds of writes apart by what they changed. The table of
invariants is in research terms: docs/decisions.md, "What the simulator checks".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from tests.simulation.expressions import Item
from tests.simulation.hub import Hub, Process
from tests.simulation.memory_table import Change, item_size
from tests.simulation.network import Network
from tests.simulation.truth import Call, Held
from tollgate.domain.ledger import SKEW_SECONDS
from tollgate.domain.plans import ExpiryPolicy, Plan
from tollgate.domain.tokens import TokenCounts

Key = tuple[str, str]

MAX_ITEM_BYTES = 16 * 1024
"""No meter may grow beyond this, whatever happens to it; 400 KB is DynamoDB's own wall."""
_COUNT_NAMES = ("t_in", "t_out", "t_w5", "t_w1", "t_rd")


@dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    at: float
    message: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.at:.3f}: {self.message}"


@dataclass(slots=True)
class MeterTruth:
    """The sums of one meter, added up from the changes, never read back from it."""

    settled: int = 0
    written_off: int = 0
    requests: int = 0
    cost_picousd: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * len(_COUNT_NAMES))
    most_room: int = 0
    """The largest quota + overage cap that was ever in force."""
    held: dict[str, Held] = field(default_factory=dict)
    """Open reservations by their attribute name."""


@lru_cache(maxsize=65536)
def parse_reservation(text: str) -> tuple[int, int, str, int]:
    """(amount, expires at, nonce, prompt bound) of a stored reservation."""
    amount, expires_at, nonce, bound = text.split(":")
    return int(amount), int(expires_at), nonce, int(bound)


class Oracle:
    """One per run. `violations` stays empty in a correct run."""

    def __init__(self, hub: Hub, plans: dict[str, Plan], seen: Counter[str], *, clock_error: float, adversarial: bool, policy: ExpiryPolicy, cost_picousd: Callable[[TokenCounts], int]) -> None:
        self.hub = hub
        self.plans = plans
        self.seen = seen
        self.clock_error = clock_error
        self.adversarial = adversarial
        self.policy = policy
        self.cost_picousd = cost_picousd
        self.violations: list[Violation] = []
        self.meters: defaultdict[Key, MeterTruth] = defaultdict(MeterTruth)
        self.reservations: dict[str, Held] = {}
        self.profiles: dict[str, int] = {}
        self.network: Network = None  # type: ignore[assignment]  joined by the run, which builds both
        self.timeout_seconds = 0.0
        self.used_keys: set[tuple[int, str]] = set()
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
        meter: Change | None = None
        record: Change | None = None
        for change in changes:
            kind = change.sk[:5]
            if kind == "USAGE":
                meter = change
            elif kind == "EXPIR":
                record = change
            elif kind == "PROFI":
                self._watch_profile(change)
        if meter is not None:
            self._watch_meter(meter, record, with_profile=len(changes) > 1)
        elif record is not None:
            self.report("half_correction", f"{record.sk} changed without its meter")

    def _watch_profile(self, change: Change) -> None:
        if change.new is None:
            self.report("stale_plan", f"profile {change.pk} deleted")
            return
        version = int(change.new["plan_version"]["N"])
        if version <= self.profiles.get(change.pk, 0):
            self.report("stale_plan", f"plan version of {change.pk} went to {version} from {self.profiles[change.pk]}")
        self.profiles[change.pk] = version

    def _watch_meter(self, change: Change, record: Change | None, *, with_profile: bool) -> None:
        key, old, new = (change.pk, change.sk), change.old, change.new
        truth = self.meters[key]
        if new is None:
            self.report("conservation", f"{key} deleted")
            return
        if old is None:
            self._created(key, new)
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
        if old is not _EMPTY_METER and _number(new, "plan_version") != _number(old, "plan_version"):
            self._resized(key, old, new, with_profile=with_profile)
        self._check_sums(key, truth, new)

    def _created(self, key: Key, new: Item) -> None:
        self.seen["meters_created"] += 1
        version = _number(new, "plan_version")
        if version != self.profiles.get(key[0]):
            self.report("stale_plan", f"{key} created on version {version}, profile has {self.profiles.get(key[0])}")

    def _resized(self, key: Key, old: Item, new: Item, *, with_profile: bool) -> None:
        self.seen["meters_resized"] += 1
        self.seen["meters_carried"] += not with_profile
        version = _number(new, "plan_version")
        if version < _number(old, "plan_version") or version != self.profiles.get(key[0]):
            self.report("stale_plan", f"{key} moved to version {version}, profile has {self.profiles.get(key[0])}")
        plan = self.plans[new["plan_id"]["S"]]
        carried = (_number(new, "quota"), _number(new, "overage_cap"), _number(new, "req_quota"))
        if carried != (plan.stored_quota_tokens, plan.overage_cap_tokens, plan.stored_quota_requests):
            self.report("stale_plan", f"{key} carries {carried} under plan {plan.id}")

    # ---- reserve, top-up

    def _held(self, key: Key, truth: MeterTruth, name: str, old: Item, new: Item) -> None:
        amount, _, nonce, bound = parse_reservation(new[name]["S"])
        before = old.get(name)
        if before is None:
            self._reserved(key, truth, name, (amount, nonce, bound), old, new)
        elif parse_reservation(before["S"])[2] != nonce:
            self.report("conservation", f"{key} {name}: {before['S']} overwritten by {new[name]['S']}")
        else:
            self.seen["top_ups"] += 1
            truth.held[name].amount_tokens = amount
        floor = -_number(new, "overage_cap")
        if _number(new, "remaining") < floor:
            self.report("over_limit", f"{key} {name} admitted: remaining {_number(new, 'remaining')} below {floor}")

    def _reserved(self, key: Key, truth: MeterTruth, name: str, value: tuple[int, str, int], old: Item, new: Item) -> None:
        amount, nonce, bound = value
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
            held = Held(name[2:], nonce, key, sender, self.plan_of(new), self.hub.now, amount, bound)
            self.reservations[nonce] = held
        truth.held[name] = held
        if _number(new, "req_remaining") < 0:
            self.report("over_requests", f"{key} {name}: {_number(new, 'req_remaining')} requests left")
        plan = self.plans[new["plan_id"]["S"]]
        open_count = _number(new, "open_count")
        self.most_open = max(self.most_open, open_count)
        if open_count > plan.max_open_reservations:
            self.report("over_concurrency", f"{key} {open_count} open of {plan.max_open_reservations}")
        if sender.done and known is None:
            self.seen["reserved_after_the_end"] += 1
        self._check_rate(key, plan, old, new)

    def _check_rate(self, key: Key, plan: Plan, old: Item, new: Item) -> None:
        """Exact GCRA, in the table's own order, at the instant that the sender gave its request."""
        tat, next_tat = _number(old, "rate_tat"), _number(new, "rate_tat")
        if plan.requests_per_minute is None:
            if tat != next_tat:
                self.report("rate", f"{key} rate state moved without a rate limit")
            return
        now_ms = int(self.network.sent_reading * 1000)
        interval_ms = -(-60_000 // plan.requests_per_minute)
        tolerance_ms = (plan.burst_requests - 1) * interval_ms
        if tat > now_ms + tolerance_ms:
            self.report("rate", f"{key} admitted at {now_ms}, {tat - now_ms - tolerance_ms} ms too early")
        if next_tat != max(tat, now_ms) + interval_ms:
            self.report("rate", f"{key} rate state went {tat} -> {next_tat} at {now_ms}")
        self.seen["rate_idle" if tat <= now_ms else "rate_busy"] += 1

    # ---- settle, release, sweep, late correction

    def _ended(self, key: Key, truth: MeterTruth, name: str, old: Item, new: Item, record: Change | None) -> None:
        _, _, nonce, _ = parse_reservation(old[name]["S"])
        held = self.reservations[nonce]
        truth.held.pop(name, None)
        held.open = False
        held.ends += 1
        if held.ends > 1:
            self.report("double_bill", f"{key} {name} nonce {nonce} ended {held.ends} times (swept: {held.swept})")
        charged = _number(new, "settled") - _number(old, "settled")
        written_off = _number(new, "written_off") - _number(old, "written_off")
        if charged > held.amount_tokens:
            self.report("over_limit", f"{key} {name}: {charged} charged for a reservation of {held.amount_tokens}")
        held.charged_tokens += charged
        held.written_off_tokens += written_off
        truth.settled += charged
        truth.written_off += written_off
        if record is not None:
            self._swept(key, name[2:], held, charged, written_off)
            counted = charged > 0
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
            self.report("leftover", f"{key} {held.nonce} of {owner.name}, which ended without any outage, had to be swept")

    def _corrected(self, key: Key, truth: MeterTruth, old: Item, new: Item, record: Change) -> None:
        assert record.old is not None
        assert record.new is not None
        nonce = record.sk.rsplit("#", 1)[1]
        held = self.reservations[nonce]
        self.seen["late_corrections"] += 1
        if held.corrected:
            self.report("double_bill", f"{key} {nonce} corrected twice")
        held.corrected = True
        charged = _number(new, "settled") - _number(old, "settled")
        written_off = _number(new, "written_off") - _number(old, "written_off")
        held.charged_tokens += charged
        held.written_off_tokens += written_off
        truth.settled += charged
        truth.written_off += written_off
        if charged > 0 and self.room(new) < 0:
            self.report("over_limit", f"{key} {nonce} corrected by {charged} beyond the room there was")
        counted = not (held.call is None or held.call.released)
        truth.requests += counted - held.request_counted
        held.request_counted = counted
        if (_number(record.new, "charged"), _number(record.new, "written_off")) != (
            held.charged_tokens,
            held.written_off_tokens,
        ):
            self.report("half_correction", f"{key} {nonce}: record {record.new}, meter moved by {charged}, {written_off}")
        self._book_counts(truth, held, old, new)

    def _book_counts(self, truth: MeterTruth, held: Held, old: Item, new: Item) -> None:
        counts = [_number(new, name) - _number(old, name) for name in _COUNT_NAMES]
        cost = _number(new, "picousd") - _number(old, "picousd")
        truth.counts = [total + count for total, count in zip(truth.counts, counts, strict=True)]
        truth.cost_picousd += cost
        held.counts += TokenCounts(*counts)
        held.cost_picousd += cost

    # ---- the sums

    def _check_sums(self, key: Key, truth: MeterTruth, new: Item) -> None:
        quota, reserved, count = _number(new, "quota"), 0, 0
        for name, value in new.items():
            if name[:2] == "r#":
                reserved += parse_reservation(value["S"])[0]
                count += 1
        remaining, settled = _number(new, "remaining"), _number(new, "settled")
        if remaining != quota - settled - reserved:
            self.report("conservation", f"{key} remaining {remaining} of {quota} - {settled} - {reserved}")
        if _number(new, "open_count") != count:
            self.report("conservation", f"{key} open_count {_number(new, 'open_count')} of {count}")
        requests_left = _number(new, "req_quota") - truth.requests - count
        if _number(new, "req_remaining") != requests_left:
            self.report("conservation", f"{key} requests left {_number(new, 'req_remaining')}, should be {requests_left}")
        if settled != truth.settled or _number(new, "written_off") != truth.written_off:
            self.report("conservation", f"{key} moved outside of any end: settled {settled}, {truth.settled} charged")
        truth.most_room = max(truth.most_room, quota + _number(new, "overage_cap"))
        if len(new) > self._most_attributes:
            self._most_attributes = len(new)
            self.largest_item = size = max(self.largest_item, item_size(new))
            if size > MAX_ITEM_BYTES:
                self.report("item_size", f"{key} has {size} bytes")

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
            if used in self.used_keys:
                self.report("double_call", f"user {call.user} is served twice for {call.idempotency_key}")
            self.used_keys.add(used)

    def bind_open(self, process: Process, call: Call) -> None:
        """The same for the one reservation that the process has open."""
        mine = [held for held in self.reservations.values() if held.owner is process]
        still_open = [held for held in mine if held.open]
        if not still_open and not self.adversarial:
            self.report("unreserved_call", f"{process.name} calls upstream without an open reservation")
        if mine:
            self.bind((still_open or mine)[-1], call)

    # ---- refusals

    def judge_refusal(self, process: Process, why: str, is_full: Callable[[Item], bool], key: Key) -> None:
        """A refusal is right if some meter seen in this call was full, and not by reservations long expired.

        Without any sight the process spoke from memory, which may hold only
        what the table still says.
        """
        sights: list[tuple[float, Item]] = process.sights
        now = self.network.table.find(*key)
        if not sights and now is not None:
            self.seen["refused_from_memory"] += 1
            sights = [(process.readings[-1], now)]
        if why == "rate_limited":  # which nobody's expiry can help
            right = any(self.is_too_early(reading, item) for reading, item in sights)
        else:
            right = any(is_full(item) and not self._has_overdue(reading, item) for reading, item in sights)
        if not right:
            seen = [f"{_summary(item)} at {reading:.3f}" for reading, item in sights[-3:]]
            self.report("false_reject", f"{process.name} refused for {why}, but saw {seen}")

    def plan_of(self, item: Item) -> Plan:
        return self.plans[item["plan_id"]["S"]]

    def has_no_request(self, item: Item) -> bool:
        return _number(item, "req_remaining") < 1

    def has_no_slot(self, item: Item) -> bool:
        return _number(item, "open_count") >= self.plan_of(item).max_open_reservations

    def room(self, item: Item) -> int:
        return _number(item, "remaining") + _number(item, "overage_cap")

    def is_too_early(self, reading: float, item: Item) -> bool:
        """By the meter's plan, or by one it had until a moment ago: containers keep accounts for a while."""
        return any(
            _number(item, "rate_tat") > int(reading * 1000) + (plan.burst_requests - 1) * -(-60_000 // limit)
            for plan in self.plans.values()
            if (limit := plan.requests_per_minute) is not None
        )

    def _has_overdue(self, reading: float, item: Item) -> bool:
        """The process's own clock showed a reservation expired, with a second for the way."""
        due = reading - 2 * SKEW_SECONDS - 1
        return any(name[:2] == "r#" and parse_reservation(value["S"])[1] < due for name, value in item.items())

    def swept_through(self, keys: Iterable[tuple[Key, float]]) -> None:
        """A sweep of these meters, each read at the given instant, was answered: nothing overdue may be left."""
        for key, read_at in keys:
            for held in self.meters[key].held.values():
                latest = held.owner.started_at + self.timeout_seconds + 60 + 2 * self.clock_error + 2
                if held.reserved_at < read_at and read_at > latest:
                    self.report("overdue", f"{key} {held.nonce} still open {read_at - latest:.0f} s after its time")

    # ---- the end of the run

    def check_end(self, meters: Iterable[tuple[str, str, Item]]) -> None:
        strict = self.policy is ExpiryPolicy.STRICT
        used: Counter[Key] = Counter()
        excused: Counter[Key] = Counter()
        for held in self.reservations.values():
            self._check_reservation(held)
            if held.call is not None:
                used[held.meter] += held.call.used_tokens
                excused[held.meter] += held.hidden_tokens if strict else held.written_off_tokens
                if held.call.sliced or held.hidden_tokens:
                    excused[held.meter] += max(0, held.call.used_tokens - held.charged_tokens)
        for pk, sk, item in meters:
            key = (pk, sk)
            truth = self.meters[key]
            if truth.held:
                self.report("orphan_leak", f"{key} still holds {sorted(truth.held)}")
            stored = [_number(item, name) for name in _COUNT_NAMES]
            if stored != truth.counts or _number(item, "picousd") != truth.cost_picousd:
                self.report("ledger", f"{key} counts {stored}, settled {truth.counts}")
            charged = sum(held.charged_tokens for held in self.reservations.values() if held.meter == key)
            if _number(item, "settled") != charged:
                self.report("ledger", f"{key} settled {_number(item, 'settled')}, charges {charged}")
            if not self.adversarial and used[key] > truth.most_room + excused[key]:
                self.report("truth_over_limit", f"{key} used {used[key]} of {truth.most_room} (+{excused[key]} written off)")
        self.seen["used_tokens"] += sum(used.values())

    def check_records(self, records: Iterable[Item]) -> None:
        """What a request record says was charged is what the meter was charged, where the table answered."""
        by_id = {held.id: held for held in self.reservations.values() if held.id not in self.shared_ids}
        for record in records:
            self.seen["records"] += 1
            held = by_id.get(record["reservation_id"]["S"])
            if held is None or held.call is None or held.call.settled_at is None or held.owner.outages:
                continue  # after an outage the code may not know which of its settlements was applied
            told = _number(record, "charged_tokens"), _number(record, "written_off_tokens")
            if told != (held.charged_tokens, held.written_off_tokens):
                self.report("record", f"{held.nonce}: {told} told, {held.charged_tokens}, {held.written_off_tokens} booked")

    def _check_reservation(self, held: Held) -> None:
        call = held.call
        if call is None or not call.starts:
            if held.charged_tokens and not held.swept:
                self.report("overbill", f"{held.nonce} charged {held.charged_tokens} without an upstream call")
            if held.charged_tokens and call is not None and call.released and call.settled_at is not None:
                self.report("overbill", f"{held.nonce} was released and answered, but {held.charged_tokens} charged")
            return
        if call.starts > 1:
            self.report("double_call", f"{held.nonce} called upstream {call.starts} times")
        self.seen["billed_tokens"] += held.charged_tokens
        self.seen["written_off_tokens"] += held.written_off_tokens
        booked = held.charged_tokens + held.written_off_tokens
        owed = call.used_tokens
        if call.sliced or held.hidden_tokens:  # nobody could hold what nobody could know
            if call.settled_at is None:
                owed = min(owed, held.amount_tokens)
            elif call.final is None:
                owed = call.seen_tokens
        if booked < owed:
            self.report("lost_tokens", f"{held.nonce} used {owed}, charged {held.charged_tokens}, off {held.written_off_tokens}")
        if held.swept and not held.corrected:
            if call.settled_at is not None:
                self.report("inexact", f"{held.nonce} settled and answered, but the sweep's charge stands")
            return
        if call.final is not None and held.charged_tokens > call.used_tokens:
            self.report("overbill", f"{held.nonce} charged {held.charged_tokens} of {call.used_tokens}")
        if call.settled_at is not None:
            self._check_exact(held, call)

    def _check_exact(self, held: Held, call: Call) -> None:
        """An answered settlement booked exactly what upstream had told."""
        if call.final is None or call.released:
            return
        known = call.known_tokens
        late_or_beyond = held.corrected or call.used_tokens > held.amount_tokens
        if held.charged_tokens != known and not late_or_beyond:
            self.report("inexact", f"{held.nonce} charged {held.charged_tokens}, reported {known}")
        if held.charged_tokens + held.written_off_tokens != known:
            self.report("inexact", f"{held.nonce} booked {held.charged_tokens}+{held.written_off_tokens}, reported {known}")
        if call.hard and call.streamed and held.written_off_tokens and not held.corrected:
            self.report("unstopped", f"{held.nonce} ran to its end without a reservation for {held.written_off_tokens}")
        if held.counts != call.final or held.cost_picousd != self.cost_picousd(call.final):
            self.report("inexact", f"{held.nonce} counts {held.counts}, reported {call.final}")


_EMPTY_METER: Item = {"rate_tat": {"N": "0"}, "settled": {"N": "0"}, "written_off": {"N": "0"}, "plan_version": {"N": "0"}}


def _summary(item: Item) -> str:
    shown = ("remaining", "req_remaining", "open_count", "rate_tat", "overage_cap", "plan_version")
    held = [f"{name}={value['S']}" for name, value in item.items() if name[:2] == "r#"]
    return " ".join([*(f"{name}={item[name]['N']}" for name in shown), *held])


def _number(item: Item, name: str) -> int:
    return int(item[name]["N"])
