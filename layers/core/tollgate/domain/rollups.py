"""Sums over request records: what a day's use is rolled up into, and what every report is made of.

Whole numbers only, and nothing is dropped: what is in no record's row is in a row of its own kind. A row keeps every
property that a report can group by, so that reports of any grouping are sums of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from operator import add, attrgetter
from typing import Final

from tollgate.domain.tokens import TokenCounts

LONG_PROMPT_TOKENS: Final = 200_000
"""Above it Anthropic's reports speak of the context window `200k-1M`."""


class RowKind(StrEnum):
    """What became of the calls of a row."""

    REQUEST = "request"
    """The ledger booked what the record says."""
    EXPIRED = "expired"
    """The call crashed and its reservation was swept: charged by the plan's rule, its tokens are not known."""
    UNBOOKED = "unbooked"
    """The record is there, but the ledger never took its settlement: tokens and cost are real, the charge is zero,
    because the sweep's stands in the row of expired ones."""


@dataclass(frozen=True, slots=True)
class RowKey:
    """What all calls of a row have in common; None: not known, or not told by the provider."""

    kind: RowKind
    period_id: str
    """Of the meter that was charged: a day of two usage periods has rows of both."""
    key_id: str | None = None
    """The API key, or the app client of an access token."""
    model: str | None = None
    """The id asked for, as in the catalog."""
    served_model: str | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    long_prompt: bool = False
    """More than LONG_PROMPT_TOKENS went in."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Figures of some calls; they add up field by field."""

    requests: int = 0
    estimated_requests: int = 0
    """Of which the provider never told the end."""
    estimated_tokens: int = 0
    """What was charged for those."""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    charged_tokens: int = 0
    written_off_tokens: int = 0
    cost_picousd: int = 0
    web_searches: int = 0
    web_fetches: int = 0
    input_picousd: int = 0
    output_picousd: int = 0
    cache_write_5m_picousd: int = 0
    cache_write_1h_picousd: int = 0
    cache_read_picousd: int = 0
    web_search_picousd: int = 0
    """These six are the cost by what it was paid for, as far as one price row explains it."""
    complete: int = 0
    truncated: int = 0
    upstream_error: int = 0
    deadline: int = 0
    over_quota: int = 0
    expired: int = 0
    corrected: int = 0
    """These seven count calls by outcome. A corrected one was expired, until its owner came late: the owner's record
    has the charge, and is counted by its own outcome as well."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(*map(add, _VALUES(self), _VALUES(other)))

    @property
    def values(self) -> tuple[int, ...]:
        """In the order of the fields."""
        values: tuple[int, ...] = _VALUES(self)
        return values

    @property
    def counts(self) -> TokenCounts:
        return TokenCounts(
            self.input_tokens,
            self.output_tokens,
            self.cache_write_5m_tokens,
            self.cache_write_1h_tokens,
            self.cache_read_tokens,
        )

    @property
    def outcomes(self) -> dict[str, int]:
        """Calls by outcome; those that occurred."""
        return {name: count for name in OUTCOMES if (count := getattr(self, name))}

    @property
    def unexplained_picousd(self) -> int:
        """The part of the cost that is in none of the parts."""
        return self.cost_picousd - sum(self.values[place] for place in _COST_PARTS)


_FIELDS: Final = tuple(field.name for field in fields(Sums))
_VALUES: Final = attrgetter(*_FIELDS)
COST_PARTS: Final = (
    "input_picousd",
    "output_picousd",
    "cache_write_5m_picousd",
    "cache_write_1h_picousd",
    "cache_read_picousd",
    "web_search_picousd",
)
_COST_PARTS: Final = tuple(map(_FIELDS.index, COST_PARTS))
OUTCOMES: Final = ("complete", "truncated", "upstream_error", "deadline", "over_quota", "expired", "corrected")

Rows = dict[RowKey, Sums]


def add_row(rows: Rows, key: RowKey, sums: Sums) -> None:
    found = rows.get(key)
    rows[key] = sums if found is None else found + sums


def total(sums: Iterable[Sums]) -> Sums:
    return sum(sums, Sums())


@dataclass(frozen=True, slots=True)
class DayRollUp:
    """One day (UTC) of one user as stored: exact for all records that began before `through_at`."""

    day: date
    through_at: datetime
    """Records from here on are not in it yet."""
    rows: Mapping[RowKey, Sums]
    generation: str
    """Names this text of the day; each write makes another."""

    @property
    def whole(self) -> bool:
        return self.through_at >= end_of(self.day)


@dataclass(frozen=True, slots=True)
class PeriodUse:
    """What records say of one usage period, by what became of the calls."""

    requests: Sums
    expired: Sums
    unbooked: Sums
    exact: bool
    """False: there was more to read than could be read; call again."""

    @property
    def booked(self) -> Sums:
        """What the meter must have."""
        return self.requests + self.expired

    @property
    def seen(self) -> Sums:
        """All calls that have a record: what the provider counted."""
        return self.requests + self.unbooked


def start_of(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def end_of(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def day_of(instant: datetime) -> date:
    return instant.astimezone(UTC).date()


def days_between(first: date, last: date) -> list[date]:
    """Both included."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]
