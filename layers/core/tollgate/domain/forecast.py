"""Where a usage period is heading: a straight line from its start through now.

As much for each second to come as for each second so far, until a quota lets nobody further. It knows no weekends and
no plans; it is the figure that anybody can check. Whole numbers, rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil
from typing import Final

from tollgate.domain.ledger import Meter
from tollgate.domain.plans import UNLIMITED

SHORTEST_SECONDS: Final = 24 * 3600
"""Less of a period says nothing: people sleep."""
FEWEST_REQUESTS: Final = 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """At the period's end, if it goes on as so far."""

    used_tokens: int
    used_requests: int
    overage_tokens: int
    """As far as the cap lets it grow; what is owed for it at the meter's price: `overage_nanousd`."""
    overage_nanousd: int
    cost_picousd: int
    quota_reached_at: datetime | None
    """When nothing is left of the first quota to be used up, of tokens or of calls; None: of neither in this period, or
    it was before, or there is no quota."""


def forecast(meter: Meter, now: datetime, since: datetime) -> Forecast | None:
    """None when too little is known: less than a day of the period has passed, or hardly anything was used in it.

    `since`: when the user came. Who came in the middle of a period has used nothing before.
    """
    period = meter.key.period
    began_at = max(period.start_at, since)
    passed, whole = int((now - began_at).total_seconds()), int((period.end_at - began_at).total_seconds())
    if passed < SHORTEST_SECONDS or passed >= whole or meter.settled_requests < FEWEST_REQUESTS:
        return None
    # All grows alike, and the ledger lets nobody beyond a quota and its cap, whatever the line says.
    ends = _reaches(meter.settled_tokens, meter.quota_tokens, beyond=meter.overage_cap_tokens)
    ends += _reaches(meter.settled_requests, meter.quota_requests)
    growth = max(Fraction(1), min([Fraction(whole, passed), *ends]))
    used_tokens = int(meter.settled_tokens * growth)
    beyond = max(0, used_tokens - meter.quota_tokens) if meter.quota_tokens < UNLIMITED else 0
    return Forecast(
        used_tokens=used_tokens,
        used_requests=int(meter.settled_requests * growth),
        overage_tokens=meter.banked_tokens + beyond,
        overage_nanousd=meter.banked_nanousd + beyond * meter.overage_price_nanousd,
        cost_picousd=int(meter.cost_picousd * growth),
        quota_reached_at=_quota_reached_at(meter, began_at, passed, growth),
    )


def _reaches(used: int, quota: int, beyond: int = 0) -> list[Fraction]:
    """By how much use has to grow to reach a quota, or so much beyond it; nothing for what never does."""
    return [Fraction(quota + beyond, used)] if used and quota < UNLIMITED else []


def _quota_reached_at(meter: Meter, began_at: datetime, passed_seconds: int, growth: Fraction) -> datetime | None:
    quotas = _reaches(meter.settled_tokens, meter.quota_tokens) + _reaches(meter.settled_requests, meter.quota_requests)
    reached = [each for each in quotas if 1 < each <= growth]
    return began_at + timedelta(seconds=ceil(passed_seconds * min(reached))) if reached else None
