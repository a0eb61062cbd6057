"""Usage periods: half-open intervals [start, end) in UTC, named by a stable id that is part of the meter's key."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tollgate.domain.plans import PeriodKind

_THIRTY_DAYS: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class UsagePeriod:
    """[start_at, end_at), aware UTC."""

    start_at: datetime
    end_at: datetime

    @property
    def id(self) -> str:
        """`2026-11` for a calendar month, else the start `2026-11-15T103000Z`."""
        if self.start_at == self.start_at.replace(day=1, hour=0, minute=0, second=0, microsecond=0):
            return self.start_at.strftime("%Y-%m")
        return self.start_at.strftime("%Y-%m-%dT%H%M%SZ")

    def __contains__(self, instant: datetime) -> bool:
        return self.start_at <= instant < self.end_at


def period_at(kind: PeriodKind, anchor_at: datetime, instant: datetime) -> UsagePeriod:
    """The usage period that contains `instant`.

    Anchored months start on the anchor's day and time of each month, or on the month's last day where that day does
    not exist (an anchor of the 31st gives 28 February, then 31 March: it never drifts). Thirty days are 30 times
    86,400 seconds from the anchor on, whatever clocks on walls do. Both instants must be aware: a naive one would mean
    whatever time zone the machine is set to, and is refused with ValueError.
    """
    if anchor_at.utcoffset() is None or instant.utcoffset() is None:
        raise ValueError("a usage period needs aware instants, got a naive one")
    anchor = datetime(1970, 1, 1, tzinfo=UTC) if kind is PeriodKind.CALENDAR_MONTH else anchor_at.astimezone(UTC)
    anchor = anchor.replace(microsecond=0)
    moment = instant.astimezone(UTC)
    if kind is PeriodKind.EVERY_30_DAYS:
        start_at = anchor + (moment - anchor) // _THIRTY_DAYS * _THIRTY_DAYS
        return UsagePeriod(start_at, start_at + _THIRTY_DAYS)
    months = moment.year * 12 + moment.month - 1
    if moment < _start_in_month(anchor, months):
        months -= 1
    return UsagePeriod(_start_in_month(anchor, months), _start_in_month(anchor, months + 1))


def _start_in_month(anchor: datetime, months: int) -> datetime:
    year, month = divmod(months, 12)
    day = min(anchor.day, monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)
