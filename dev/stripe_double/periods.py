"""When billing periods begin and end, and what part of a price a part of a period costs. Pure arithmetic."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

from dev.stripe_double.forms import Json

DAY = 86_400


def boundary(anchor: int, recurring: Json, index: int) -> int:
    """The `index`th period end counted from the anchor; a month that lacks the anchor's day ends on its last.

    Counted from the anchor and not from the period before: 31 January, 28 February, 31 March.
    """
    count = index * int(recurring["interval_count"])
    match recurring["interval"]:
        case "day":
            return anchor + count * DAY
        case "week":
            return anchor + count * 7 * DAY
        case "year":
            count *= 12
    start = datetime.fromtimestamp(anchor, UTC)
    year, month = divmod(start.year * 12 + start.month - 1 + count, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def end_after(anchor: int, recurring: Json, moment: int) -> int:
    """The first period end later than `moment`."""
    index = 1
    while (end := boundary(anchor, recurring, index)) <= moment:
        index += 1
    return end


def prorated(amount: int, remaining: int, whole: int) -> int:
    """`amount` for `remaining` of `whole` seconds, in whole cents, half a cent rounded away from nought.

    Each line is rounded by itself, so a credit and a debit of the same price for the same time cancel out.
    """
    if amount < 0:
        return -prorated(-amount, remaining, whole)
    return (2 * amount * remaining + whole) // (2 * whole)


def shared_out(total: int, weights: list[int]) -> list[int]:
    """`total` split in proportion to the weights, to the cent: what rounding leaves goes to the first ones."""
    whole = sum(weights)
    if whole <= 0:
        return [0] * len(weights)
    parts = [total * weight // whole for weight in weights]
    left = total - sum(parts)
    for index in sorted(range(len(weights)), key=lambda one: -(total * weights[one] % whole))[:left]:
        parts[index] += 1
    return parts
