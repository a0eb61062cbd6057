"""What goes wrong, drawn from one integer: the same seed gives the same calls, faults, kills and clocks.

Each call draws from a generator of its own, and its table's misfortunes in the order of its own requests, so that the
plan does not depend on how the slots' processes interleave; only that is the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.chaos.shapes import LONG, SHAPES, shape
from tollgate.domain.plans import ExpiryPolicy


class TableFate(StrEnum):
    """What becomes of one request to the table."""

    FINE = "fine"
    LOST_BEFORE = "lost_before_apply"
    LOST_AFTER = "lost_after_apply"
    DUPLICATE = "duplicate"
    """Arrives twice; the first answer counts."""
    DUPLICATE_SECOND = "duplicate_second_answer"
    LATE = "late"
    """Never answered, and lands a moment later."""
    LATE_AFTER_SWEEP = "late_after_sweep"
    THROTTLED = "throttled"
    CONFLICT = "conflict"
    FAILED = "failed"
    """500, not applied."""
    FAILED_APPLIED = "failed_applied"
    SLOW = "slow"
    SILENT = "silent"
    """Applied, and answered after the client has given up."""


class UpstreamFate(StrEnum):
    """What becomes of one request to Claude."""

    WHOLE = "whole"
    RESET = "reset"
    """RST in mid-answer."""
    CUT = "cut"
    """The connection ends in mid-answer."""
    ENDED = "ended"
    """The body ends as a whole one does, but early."""
    HUNG_UP = "hung_up"
    """Closed once the request was read."""
    NO_HTTP = "no_http"
    STALL = "stall"
    GARBAGE = "garbage"
    """Bytes of the stream are others."""
    FLOOD = "flood"
    """An event that never ends."""
    PINGS = "pings"
    """Events that never end."""
    ERROR_EVENT = "error_event"
    REFUSED = "refused"
    """A status of 300 or more."""


CUTS = (UpstreamFate.RESET, UpstreamFate.CUT, UpstreamFate.ENDED)
TABLE_WEIGHTS = {
    TableFate.FINE: 54,
    TableFate.LOST_BEFORE: 6,
    TableFate.LOST_AFTER: 7,
    TableFate.DUPLICATE: 6,
    TableFate.DUPLICATE_SECOND: 3,
    TableFate.LATE: 5,
    TableFate.LATE_AFTER_SWEEP: 2,
    TableFate.THROTTLED: 4,
    TableFate.CONFLICT: 5,
    TableFate.FAILED: 3,
    TableFate.FAILED_APPLIED: 4,
    TableFate.SLOW: 3,
    TableFate.SILENT: 0.3,
}
UPSTREAM_WEIGHTS = {
    UpstreamFate.WHOLE: 40,
    UpstreamFate.RESET: 8,
    UpstreamFate.CUT: 10,
    UpstreamFate.ENDED: 8,
    UpstreamFate.HUNG_UP: 4,
    UpstreamFate.NO_HTTP: 2,
    UpstreamFate.STALL: 3,
    UpstreamFate.GARBAGE: 6,
    UpstreamFate.FLOOD: 1,
    UpstreamFate.PINGS: 1,
    UpstreamFate.ERROR_EVENT: 5,
    UpstreamFate.REFUSED: 5,
}
KILLS_PERCENT = 24
CALM_PERCENT = 15
"""Of calls, those whose table has no faults."""
LONGEST_SECONDS = 16.0
SHORT_SECONDS = 10.3
"""Leaves the relay three tenths of a second before it stops by itself."""
HOPELESS_SECONDS = 1.0
"""The table is silent for longer: the function is killed at its deadline."""
TIMEOUT_WEIGHTS = {LONGEST_SECONDS: 88, SHORT_SECONDS: 6, 10.0: 3, HOPELESS_SECONDS: 3}
"""Time-outs of the function; ten seconds leave the relay nothing."""
STATUSES = (302, 400, 401, 403, 404, 429, 500, 529)
SKEWS_SECONDS = (0.0, 0.0, 1.0, -1.0, 4.5, -4.5, 90.0, -90.0)
"""Up to the promised bound of five seconds mostly, and far beyond it: sums must be right at any clock."""


@dataclass(frozen=True, slots=True)
class Kill:
    """When the process dies: at its n-th request to the table, or after n bytes of the answer from upstream."""

    at: str
    """`table_before`, `table_after` (applied, not answered) or `upstream`."""
    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call to Claude and its misfortunes."""

    id: str
    """Round, slot and number: stands in the prompt, so that upstream knows which call it sees."""
    user: int
    max_tokens: int
    shape: str
    line_end: str
    fate: UpstreamFate
    at: int
    """Byte of the stream where it happens."""
    status: int
    seconds: float
    """The function's time-out."""
    kill: Kill | None
    calm: bool
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """A user of one round."""

    plan_id: str
    quota_tokens: int
    overage_cap_tokens: int
    policy: ExpiryPolicy
    budget_tokens: int | None = None

    @property
    def catalog_plan(self) -> dict[str, int | str | list[str] | None]:
        soft = self.overage_cap_tokens > 0
        return {
            "quota_tokens": self.quota_tokens,
            "quota_kind": "soft" if soft else "hard",
            "overage_cap_tokens": self.overage_cap_tokens if soft else None,
            "overage_price_microusd_per_1k_tokens": 15_000 if soft else None,
            "slice_output_tokens": 64 if soft else None,
            "expiry_policy": self.policy.value,
            "models": [MODEL],
            "max_open_reservations": 12,
        }


MODEL = "claude-haiku-4-5"
PEOPLE = (
    Person("strict", 8_000, 0, ExpiryPolicy.STRICT),
    Person("input", 6_000, 0, ExpiryPolicy.INPUT),
    Person("void", 5_000, 0, ExpiryPolicy.VOID),
    Person("tight", 2_500, 0, ExpiryPolicy.INPUT),
    Person("tightstrict", 4_000, 0, ExpiryPolicy.STRICT),
    Person("soft", 1_000, 2_500, ExpiryPolicy.INPUT),
    Person("softstrict", 1_000, 6_000, ExpiryPolicy.STRICT),
    Person("budget", 60_000, 0, ExpiryPolicy.INPUT, budget_tokens=2_500),
)
WIDE = Person("wide", 2_000_000_000, 0, ExpiryPolicy.INPUT)
"""For campaigns that count cuts, not quotas."""


def draw_call(seed: int, slot: int, number: int) -> Call:
    """The n-th call of a slot in the round of this seed."""
    random = Random(f"call {seed} {slot} {number}")
    name = random.choice([*SHAPES, LONG, LONG])
    line_end = random.choice(["lf", "lf", "lf", "crlf", "cr"])
    found = shape(name, line_end)
    fate = random.choices([*UPSTREAM_WEIGHTS], [*UPSTREAM_WEIGHTS.values()])[0]
    position = random.randrange(len(found.data)) if random.random() < 0.8 else random.choice(found.events)
    slow = fate in (UpstreamFate.STALL, UpstreamFate.PINGS)
    seconds = (
        SHORT_SECONDS
        if slow
        else random.choices([LONGEST_SECONDS, SHORT_SECONDS, 10.0, HOPELESS_SECONDS], [88, 6, 3, 3])[0]
    )
    return Call(
        id=f"{seed}.{slot}.{number}",
        user=random.randrange(len(PEOPLE)),
        max_tokens=random.choice([16, 250, 250, 600, 1500]),
        shape=name,
        line_end=line_end,
        fate=fate,
        at=position,
        status=random.choice(STATUSES),
        seconds=seconds,
        kill=_draw_kill(random, len(found.data)),
        calm=random.randrange(100) < CALM_PERCENT,
        idempotency_key=f"once-{seed}-{slot}-{number}" if random.random() < 0.1 else None,
    )


def _draw_kill(random: Random, stream_bytes: int) -> Kill | None:
    if random.randrange(100) >= KILLS_PERCENT:
        return None
    at = random.choice(["table_before", "table_after", "table_after", "upstream", "upstream"])
    if at == "upstream":
        return Kill(at, random.randrange(stream_bytes))
    return Kill(at, random.choice([1, 2, 3, 3, 4, 4, 5, 6, 7, 8]))


def table_fates(call: Call) -> TableFates:
    return TableFates(Random(f"table {call.id}"), call)


class TableFates:
    """The misfortunes of one call's requests to the table, one after the other."""

    def __init__(self, random: Random, call: Call) -> None:
        self._random = random
        self._call = call

    def next(self) -> tuple[TableFate, float]:
        """(what happens, seconds that it takes where it takes any)."""
        if self._call.seconds <= HOPELESS_SECONDS:
            return TableFate.SILENT, 0.0
        fate = self._random.choices([*TABLE_WEIGHTS], [*TABLE_WEIGHTS.values()])[0]
        seconds = self._random.uniform(0.005, 0.25)
        return (TableFate.FINE if self._call.calm else fate), seconds


def skew_seconds(seed: int, slot: int, generation: int) -> float:
    """By how much the clock of a slot's process is wrong."""
    return Random(f"clock {seed} {slot} {generation}").choice(SKEWS_SECONDS)
