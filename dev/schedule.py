"""When a ScheduleV2 event is due: `rate(…)`, `cron(…)` and `at(…)` of EventBridge Scheduler, in UTC.

https://docs.aws.amazon.com/scheduler/latest/UserGuide/schedule-types.html
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from dev.template import TemplateError

_UNITS: Final = {"minute": 60, "hour": 3600, "day": 86_400}
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_YEAR_AHEAD: Final = timedelta(days=366)


def next_run_at(expression: str, after: datetime) -> datetime | None:
    """The first due instant after `after`; None when there is none within a year. TemplateError if not understood."""
    kind, _, rest = expression.partition("(")
    text = rest.removesuffix(")").strip()
    match kind.strip():
        case "rate":
            found = re.fullmatch(r"(\d+) (minute|hour|day)s?", text)
            if found and int(found[1]) > 0:
                return after + timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        case "at":
            due = datetime.fromisoformat(text).replace(tzinfo=UTC)
            return due if due > after else None
        case "cron" if len(text.split()) == 6:
            return _next_cron(text.split(), after)
    raise TemplateError(f"the local stack does not understand the schedule {expression}")


def _next_cron(fields: list[str], after: datetime) -> datetime | None:
    minutes = _values(fields[0], 0, 59)
    hours = _values(fields[1], 0, 23)
    days = _values(fields[2], 1, 31)
    months = _values(fields[3], 1, 12, _MONTHS)
    weekdays = _values(fields[4], 1, 7, _DAYS)
    years = _values(fields[5], 1970, 2199)
    moment = after.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    end = moment + _YEAR_AHEAD
    while moment < end:
        if moment.year in years and moment.month in months and moment.day in days and _weekday(moment) in weekdays:
            if moment.hour in hours and moment.minute in minutes:
                return moment
            moment += timedelta(minutes=1)
        else:
            moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
    return None


def _weekday(moment: datetime) -> int:
    return moment.isoweekday() % 7 + 1  # AWS counts from Sunday, which is 1


def _values(text: str, low: int, high: int, names: tuple[str, ...] = ()) -> set[int]:
    """The numbers a cron field stands for: `*`, `?`, lists, ranges and steps, names where there are names."""
    found: set[int] = set()
    for part in text.upper().split(","):
        span, _, step = part.partition("/")
        for position, name in enumerate(names):
            span = span.replace(name, str(position + 1))
        if span in ("*", "?"):
            first, last = low, high
        elif re.fullmatch(r"\d+(-\d+)?", span):
            begin, _, end = span.partition("-")
            first = int(begin)
            last = int(end) if end else high if step else first
        else:
            raise TemplateError(f"the local stack does not understand {part} in a cron expression")
        found |= set(range(first, last + 1, int(step or 1)))
    return found
