"""The ledger's values and decisions: what a meter holds, what a refusal means, what an end costs.

Integers in billable tokens; instants as epoch seconds or milliseconds where they are stored, named so. No I/O, no
clock. The writes themselves are in `tollgate.storage.meters`, the steps between them in `tollgate.flows.ledger`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import ExpiryPolicy
from tollgate.domain.principals import Account, KeyLimits
from tollgate.domain.tokens import TokenCounts

SKEW_SECONDS = 5
"""Assumed bound on the difference between two of our clocks, either way."""
EXPIRY_MARGIN_SECONDS = 50
"""A reservation expires this long after its owner's own deadline, and is swept 2 x SKEW_SECONDS later: 60 s in all."""
TOMBSTONE_SECONDS = 16 * 60
"""A signed DynamoDB request is refused after 15 minutes at most, so a late duplicate cannot land after this."""
MIN_OUTPUT_TOKENS = 16
"""Below this a clamped answer is useless; refuse instead."""
SWEEP_BATCH = 5
MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class MeterKey:
    """Names one meter: whose, and of which usage period."""

    tenant_id: str
    user_id: str
    period: UsagePeriod


@dataclass(frozen=True, slots=True)
class Reservation:
    """Billable tokens held before a call. Ids are short and may collide; the nonce makes the stored text a fence."""

    id: str
    amount_tokens: int
    expires_at_seconds: int
    nonce: str
    prompt_bound_tokens: int
    """The part of the amount set aside for the prompt; what the `input` policy charges after a crash."""
    key_id: str = ""
    """Whose budget it counts against as well (KeyLimits.id); empty: no key's."""

    def encode(self) -> str:
        """`amount:expires_at:nonce:prompt_bound[:key_id]`, the exact value that settlement and sweep compare."""
        text = f"{self.amount_tokens}:{self.expires_at_seconds}:{self.nonce}:{self.prompt_bound_tokens}"
        return f"{text}:{self.key_id}" if self.key_id else text

    @classmethod
    def decode(cls, reservation_id: str, text: str) -> Reservation:
        amount, expires_at, nonce, prompt_bound, *key_id = text.split(":")
        return cls(reservation_id, int(amount), int(expires_at), nonce, int(prompt_bound), "".join(key_id))

    def has_expired(self, now_seconds: float) -> bool:
        return self.expires_at_seconds + 2 * SKEW_SECONDS < now_seconds


@dataclass(frozen=True, slots=True, order=True)
class MeterName:
    """What finds a meter when its period's ends are not known, as indexes and records have it."""

    tenant_id: str
    user_id: str
    period_id: str


@dataclass(frozen=True, slots=True)
class Meter:
    """One user's usage period as stored; `remaining = quota - settled - reserved` holds after every write.

    What is settled beyond the quota is owed at the meter's price. When the plan changes, that overage is banked: its
    money is kept aside and the quota grows by its tokens, so that the new plan's price and quota count from there.
    """

    key: MeterKey
    quota_tokens: int
    overage_cap_tokens: int
    remaining_tokens: int
    settled_tokens: int
    written_off_tokens: int
    quota_requests: int
    remaining_requests: int
    open_count: int
    rate_tat_ms: int
    """GCRA's theoretical arrival time, epoch milliseconds."""
    plan_id: str
    plan_version: int
    counts: TokenCounts = field(default_factory=TokenCounts)
    """The provider's own counts of all settled requests, by kind."""
    cost_picousd: int = 0
    reservations: dict[str, Reservation] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    """Reservation id to epoch second of its end."""
    key_tokens: dict[str, int] = field(default_factory=dict)
    """KeyLimits.id to what counts against that key's budget: charged to it, and reserved by its running calls."""
    key_rate_tats_ms: dict[str, int] = field(default_factory=dict)
    """KeyLimits.id to the key's own theoretical arrival time, epoch milliseconds."""
    overage_price_nanousd: int = 0
    """Of each token beyond the quota. 0 on meters from before there was billing: nothing is owed for what was used on
    them until a change of plan sets it."""
    banked_tokens: int = 0
    """Overage of this period under earlier plans; the quota contains it."""
    banked_nanousd: int = 0
    """What is owed for it."""
    closed_at: datetime | None = None
    """When its period was closed (`tollgate.flows.close_period`); None: it is not, or something came late."""

    @property
    def reserved_tokens(self) -> int:
        return sum(reservation.amount_tokens for reservation in self.reservations.values())

    @property
    def room_tokens(self) -> int:
        """What a new reservation may take: remaining plus the allowed overage."""
        return self.remaining_tokens + self.overage_cap_tokens

    def key_room_tokens(self, key_id: str, budget_tokens: int) -> int:
        """What is left of a key's budget; less than nothing when the budget was lowered below its use."""
        return budget_tokens - self.key_tokens.get(key_id, 0)

    @property
    def plan_quota_tokens(self) -> int:
        """What the plan itself includes, without the overage of earlier plans that the quota contains."""
        return self.quota_tokens - self.banked_tokens

    @property
    def tokens_beyond_quota(self) -> int:
        return max(0, self.settled_tokens - self.quota_tokens)

    @property
    def overage_tokens(self) -> int:
        """All overage of the period, at whatever prices."""
        return self.banked_tokens + self.tokens_beyond_quota

    @property
    def overage_nanousd(self) -> int:
        """What is owed for it: each token at the price in force when it was settled."""
        return self.banked_nanousd + self.tokens_beyond_quota * self.overage_price_nanousd

    @property
    def settled_requests(self) -> int:
        return self.quota_requests - self.remaining_requests - self.open_count

    def expired(self, now_seconds: float) -> list[Reservation]:
        """Reservations whose owner is past any deadline; oldest first."""
        due = [reservation for reservation in self.reservations.values() if reservation.has_expired(now_seconds)]
        return sorted(due, key=lambda reservation: reservation.expires_at_seconds)

    def old_tombstones(self, now_seconds: float) -> tuple[str, ...]:
        return tuple(
            reservation_id
            for reservation_id, ended_at in self.tombstones.items()
            if ended_at + TOMBSTONE_SECONDS + 2 * SKEW_SECONDS < now_seconds
        )[:10]


@dataclass(frozen=True, slots=True)
class Resizing:
    """What a running meter becomes when the plan changes. What is settled and reserved stays."""

    quota_tokens: int
    overage_cap_tokens: int
    overage_price_nanousd: int
    banked_tokens: int
    banked_nanousd: int
    counts_reserved: bool
    """The figures hold only for the reservations that were seen."""


def resize(meter: Meter, account: Account) -> Resizing:
    """The meter on the account's plan: neither makes overage of what was no overage, nor forgives any.

    Overage so far is banked at the old price, unless quota and price stay as they are. A smaller plan's quota ends at
    what is used and reserved already, as far as the larger plan covered it. The cap counts all overage of the period.
    """
    plan, price = account.plan, account.plan.overage_price_nanousd_per_token
    tokens, nanousd, quota = meter.banked_tokens, meter.banked_nanousd, meter.quota_tokens
    if (quota, meter.overage_price_nanousd) != (plan.stored_quota_tokens + tokens, price):
        beyond = meter.tokens_beyond_quota
        tokens, nanousd, quota = tokens + beyond, nanousd + beyond * meter.overage_price_nanousd, quota + beyond
    wanted = plan.stored_quota_tokens + tokens
    return Resizing(
        quota_tokens=max(wanted, min(quota, meter.settled_tokens + meter.reserved_tokens)),
        overage_cap_tokens=account.overage_left_tokens(tokens, nanousd),
        overage_price_nanousd=price,
        banked_tokens=tokens,
        banked_nanousd=nanousd,
        counts_reserved=wanted < quota,
    )


@dataclass(frozen=True, slots=True)
class Ask:
    """What one call wants to reserve."""

    prompt_bound_tokens: int
    """Billable upper bound of the prompt."""
    output_tokens: int
    """Raw output tokens to reserve now (max_tokens, or the first slice of it)."""
    output_weight: int
    """Thousandths of a billable token per output token of this model."""
    may_clamp: bool
    """Take less output than asked for when that is what is left."""
    deadline_at_seconds: float
    """When the owner is dead for sure: the function's own deadline, epoch seconds."""
    idempotency_key: str | None = None
    body_sha256: str | None = None
    """Hex digest stored with the idempotency marker."""
    limits: KeyLimits | None = None
    """The calling key's own."""

    @property
    def budget_tokens(self) -> int | None:
        return None if self.limits is None else self.limits.budget_tokens

    def billable_output(self, output_tokens: int) -> int:
        return -(-output_tokens * self.output_weight // 1000)

    def affordable_output(self, billable_tokens: int) -> int:
        return max(0, billable_tokens * 1000 // self.output_weight)

    @property
    def amount_tokens(self) -> int:
        return self.prompt_bound_tokens + self.billable_output(self.output_tokens)


@dataclass(frozen=True, slots=True)
class Grant:
    """An open reservation in its owner's hands."""

    key: MeterKey
    reservation: Reservation
    output_tokens: int
    """Raw output tokens this grant pays for: the asked ones, or fewer when clamped."""
    overage_cap_tokens: int
    meter: Meter
    """The meter as it stood right after the reservation."""
    sent_twice: bool
    """A request of this reservation was sent more than once: its end leaves a tombstone."""
    idempotency_key: str | None = None
    """The client's key that is marked as used by this reservation."""
    limits: KeyLimits | None = None
    """The calling key's, as they were when this was granted."""

    @property
    def budget_tokens(self) -> int | None:
        return None if self.limits is None else self.limits.budget_tokens


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a reservation turns into."""

    used_tokens: int
    """Billable tokens to charge."""
    written_off_tokens: int = 0
    counts: TokenCounts = field(default_factory=TokenCounts)
    cost_picousd: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What was really booked for a grant."""

    charged_tokens: int
    written_off_tokens: int
    meter: Meter | None
    """The meter after the write; None when an earlier attempt of ours, or the late correction, did it."""
    late: bool = False
    """The reservation had been swept and the charge was corrected."""


def charge_for_unknown_end(
    policy: ExpiryPolicy, reservation: Reservation, prompt_tokens: int, bound_tokens: int, delivered_tokens: int
) -> tuple[int, int]:
    """(used, written off) when upstream never reported the end.

    `prompt_tokens`: billable prompt as far as known (the bound before message_start). `bound_tokens`: billable prompt
    plus everything max_tokens allowed. `delivered_tokens`: billable output seen to pass. Strict charges all that may
    have been generated; the others charge what was delivered and show the rest of the reservation as written off.
    What is known to have passed is never less than used, also beyond the reservation.
    """
    known_tokens = prompt_tokens + delivered_tokens
    if policy is ExpiryPolicy.STRICT:
        return max(known_tokens, min(reservation.amount_tokens, bound_tokens)), 0
    return known_tokens, max(0, reservation.amount_tokens - known_tokens)


def charge_for_expiry(policy: ExpiryPolicy, reservation: Reservation) -> int:
    """Billable tokens charged for a reservation whose owner vanished; the rest of it is written off."""
    if policy is ExpiryPolicy.STRICT:
        return reservation.amount_tokens
    if policy is ExpiryPolicy.INPUT:
        return min(reservation.amount_tokens, reservation.prompt_bound_tokens)
    return 0
