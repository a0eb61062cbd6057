"""What each user may do and owes, reckoned apart from the code under test: from the subscriptions that were sold.

Reported: stale_plan (profile, meter and the record of the subscription do not tell the same, an older one came back, or
a call was admitted on a meter that its user had left), overage_money (what is owed is not, to the nano-USD, what was
settled beyond the quota at the price then in force), no_second_quota (a meter of a period that nobody was given).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.simulation.expressions import Item
from tests.simulation.memory_table import Change
from tollgate.domain.periods import UsagePeriod, period_at
from tollgate.domain.plans import PeriodKind, Plan
from tollgate.domain.subscriptions import Entitlements

Report = Callable[[str, str], None]


@dataclass(slots=True)
class Owed:
    """The overage of one meter, added up settlement by settlement."""

    quota: int = 0
    price: int = 0
    tokens: int = 0
    nanousd: int = 0
    left: bool = False
    """Its user has moved on to another usage period."""

    def settle(self, before: int, after: int) -> None:
        more = max(0, after - self.quota) - max(0, before - self.quota)
        self.tokens += more
        self.nanousd += more * self.price


class Standings:
    """One per run. `sold` grows as the users subscribe; the rest is seen at the commits."""

    def __init__(self, plans: dict[str, Plan], seen: Counter[str], report: Report) -> None:
        self.plans = plans
        self.seen = seen
        self.report = report
        self.sold: defaultdict[str, list[Entitlements]] = defaultdict(list)
        """By partition key: what was sold, in order; the record of the subscription tells how far it has got."""
        self.homes: dict[str, datetime] = {}
        """Where the periods of users without a subscription begin: when their accounts were made."""
        self.profiles: dict[str, Item] = {}
        self.records: dict[str, Item] = {}
        self.owed: defaultdict[tuple[str, str], Owed] = defaultdict(Owed)

    def version(self, pk: str) -> int:
        return number(self.profiles[pk], "plan_version") if pk in self.profiles else 0

    def series(self, pk: str) -> list[tuple[PeriodKind, datetime]]:
        """Every way in which periods were ever counted for this user."""
        home = self.homes[pk]
        anchors = {home, *(one.anchor_at for one in self.sold[pk] if one.anchor_at is not None)}
        return [
            (PeriodKind.CALENDAR_MONTH, home),
            *((PeriodKind.ANCHORED_MONTH, anchor_at) for anchor_at in sorted(anchors)),
            *((PeriodKind.EVERY_30_DAYS, anchor_at) for anchor_at in sorted(anchors)),
        ]

    def is_newest(self, pk: str) -> bool:
        """The last subscription that was sold has been written."""
        record = self.records.get(pk)
        return (number(record, "serial") if record is not None else 0) == len(self.sold[pk]) - 1

    def chosen_cents(self, pk: str) -> int | None:
        profile = self.profiles[pk]
        return number(profile, "overage_cap_cents") if "overage_cap_cents" in profile else None

    # ---- every commit

    def watch(self, profile: Change | None, record: Change | None, meters: list[Change], reading: float) -> None:
        """`reading`: the sender's clock."""
        if profile is not None and profile.new is not None and profile.old is not profile.new:
            self._watch_profile(profile.pk, profile.old, profile.new, reading)
        if record is not None and record.new is not None:
            self._watch_record(record.pk, record.old, record.new)
        changed = profile or record
        if changed is not None and changed.new is not None:
            self._compare(changed.pk)
        entered = None
        if profile is not None and profile.old is not None and profile.new is not None:
            entered = self._running(profile.pk, profile.new, reading)
            running = {entered, self._running(profile.pk, profile.old, reading)}
            for sk in sorted(running - {meter.sk for meter in meters}):
                if (profile.pk, sk) in self.owed:
                    self.report("stale_plan", f"{profile.pk} moved, and {sk} has not heard of it")
        for meter in meters:
            if meter.new is not None:
                self._watch_meter(meter, meter.new, entered)

    def _watch_profile(self, pk: str, old: Item | None, new: Item, reading: float) -> None:
        version = number(new, "plan_version")
        if version <= self.version(pk):
            self.report("stale_plan", f"plan version of {pk} went to {version} from {self.version(pk)}")
        self.profiles[pk] = new
        if old is None:
            return
        entered, before = self._running(pk, new, reading), self._running(pk, old, reading)
        if entered != before:
            self.seen["periods_moved"] += 1
            if (pk, before) in self.owed:
                self.owed[pk, before].left = True

    def _watch_record(self, pk: str, old: Item | None, new: Item) -> None:
        if old is not None and number(new, "serial") < number(old, "serial"):
            self.report("stale_plan", f"the subscription of {pk} went back to {new['serial']} from {old['serial']}")
        self.records[pk] = new

    def _compare(self, pk: str) -> None:
        """Profile and record are of one and the same state of the subscription, whatever else is under way."""
        if not self.sold[pk] or pk not in self.profiles:
            return
        record, profile = self.records.get(pk), self.profiles[pk]
        wanted = self.sold[pk][number(record, "serial") if record is not None else 0]
        anchor_at = wanted.anchor_at or self.homes[pk]
        stored = (
            profile["plan_id"]["S"],
            number(profile, "anchor_at"),
            _flag(profile, "trial"),
            _flag(profile, "overage_blocked"),
            _flag(profile, "paid"),
        )
        if stored != (
            wanted.plan_id,
            int(anchor_at.timestamp()),
            wanted.trial,
            wanted.overage_blocked,
            wanted.paid,
        ):
            self.report("stale_plan", f"{pk} has {stored}, was sold {wanted}")

    def _watch_meter(self, change: Change, new: Item, entered: str | None) -> None:
        key, old = (change.pk, change.sk), change.old
        owed = self.owed[key]
        if old is None:
            self._created(change.pk, change.sk, new, owed)
        elif number(new, "plan_version") != number(old, "plan_version"):
            self._moved(change.pk, change.sk, old, new, entered)
        else:
            owed.settle(number(old, "settled"), number(new, "settled"))
        tokens, nanousd = overage(new)
        if (tokens, nanousd) != (owed.tokens, owed.nanousd):
            self.report(
                "overage_money",
                f"{key} says {tokens} tokens for {nanousd} nano-USD, owed {owed.tokens} for {owed.nanousd}",
            )

    # ---- meters

    def _created(self, pk: str, sk: str, new: Item, owed: Owed) -> None:
        if number(new, "plan_version") != self.version(pk):
            self.report("stale_plan", f"{sk} created on {new['plan_version']}, {pk} has {self.version(pk)}")
        if not self._was_given(pk, UsagePeriod(_instant(new, "start_at"), _instant(new, "end_at"))):
            self.report("no_second_quota", f"{pk} {sk}: no period of this user begins then")
        owed.quota, owed.price = self._quota_and_price(pk)
        self._check_figures(pk, sk, new, owed.quota)

    def _was_given(self, pk: str, period: UsagePeriod) -> bool:
        if pk not in self.homes:
            return True
        return any(period_at(kind, anchor_at, period.start_at) == period for kind, anchor_at in self.series(pk))

    def _moved(self, pk: str, sk: str, old: Item, new: Item, entered: str | None) -> None:
        """A change of plan has reached this meter, together with the profile or later."""
        self.seen["meters_resized" if entered in (None, sk) else "meters_left"] += 1
        self.seen["meters_carried"] += entered is None
        if number(new, "plan_version") < number(old, "plan_version") or number(new, "plan_version") != self.version(pk):
            self.report("stale_plan", f"{pk} {sk} moved to {new['plan_version']}, profile has {self.version(pk)}")
        if entered not in (None, sk):
            if {**old, "plan_version": new["plan_version"]} != new:
                self.report("stale_plan", f"{pk} {sk} was left, and changed from {old} to {new}")
            return
        owed = self.owed[pk, sk]
        self.seen["meters_found_again"] += owed.left
        owed.left = False
        quota, owed.price = self._quota_and_price(pk)
        banked = number_or_0(new, "ov_tokens") - number_or_0(old, "ov_tokens")
        self.seen["overage_banked"] += banked > 0
        covered = number(old, "quota") + banked
        used = number(old, "quota") - number(old, "remaining")
        owed.quota = max(quota + number_or_0(new, "ov_tokens"), min(covered, used))
        self.seen["downgrades_below_use"] += owed.quota > quota + number_or_0(new, "ov_tokens")
        self._check_figures(pk, sk, new, owed.quota)

    def _quota_and_price(self, pk: str) -> tuple[int, int]:
        profile = self.profiles[pk]
        plan = self.plans[profile["plan_id"]["S"]]
        in_trial = _flag(profile, "trial") and plan.trial_quota_tokens is not None
        quota = plan.trial_quota_tokens if in_trial else plan.stored_quota_tokens
        return quota or 0, plan.overage_price_microusd_per_1k_tokens

    def _check_figures(self, pk: str, sk: str, new: Item, quota: int) -> None:
        """Everything that the meter carries of the plan."""
        plan = self.plans[self.profiles[pk]["plan_id"]["S"]]
        wanted = (plan.id, quota, self._cap(pk, new), plan.overage_price_microusd_per_1k_tokens)
        carried = (new["plan_id"]["S"], number(new, "quota"), number(new, "overage_cap"), number_or_0(new, "ov_rate"))
        requests = plan.stored_quota_requests
        if carried != wanted or number(new, "req_quota") != requests:
            self.report("stale_plan", f"{pk} {sk} carries {carried}, {new['req_quota']}, not {wanted}, {requests}")

    def _cap(self, pk: str, meter: Item) -> int:
        """Overage that is left in the period: none, or what plan and user allow less what is banked."""
        profile = self.profiles[pk]
        plan = self.plans[profile["plan_id"]["S"]]
        chosen = self.chosen_cents(pk)
        if _flag(profile, "trial") or _flag(profile, "overage_blocked"):
            return 0
        if chosen == 0 or (chosen is None and plan.overage_opt_in):
            return 0
        left = plan.overage_cap_tokens - number_or_0(meter, "ov_tokens")
        price = plan.overage_price_microusd_per_1k_tokens
        if chosen is not None and price:
            self.seen["own_caps"] += 1
            left = min(left, (chosen * 10**7 - number_or_0(meter, "ov_nanousd")) // price)
        return max(0, left)

    def check_admission(self, pk: str, sk: str, sender: str) -> None:
        if self.owed[pk, sk].left:
            self.report("stale_plan", f"{sender} was admitted on {sk}, which {pk} had left")

    def _running(self, pk: str, profile: Item, reading: float) -> str:
        plan = self.plans[profile["plan_id"]["S"]]
        period = period_at(plan.period_kind, _instant(profile, "anchor_at"), datetime.fromtimestamp(reading, UTC))
        return f"USAGE#{period.id}"


def overage(meter: Item) -> tuple[int, int]:
    """(tokens, nano-USD) as the stored meter tells them."""
    beyond = max(0, number(meter, "settled") - number(meter, "quota"))
    return (
        number_or_0(meter, "ov_tokens") + beyond,
        number_or_0(meter, "ov_nanousd") + beyond * number_or_0(meter, "ov_rate"),
    )


def number(item: Item, name: str) -> int:
    return int(item[name]["N"])


def number_or_0(item: Item, name: str) -> int:
    return int(item[name]["N"]) if name in item else 0


def _flag(item: Item, name: str) -> bool:
    return bool(item[name]["BOOL"]) if name in item else False


def _instant(item: Item, name: str) -> datetime:
    return datetime.fromtimestamp(number(item, name), UTC)
