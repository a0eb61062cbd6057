"""Where a usage period is heading: a straight line from its start through now.

As many tokens for each second to come as for each second so far. It knows no weekends and no plans; it is the figure
that anybody can check. Whole numbers, rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
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
    overage_tokens: int
    """As far as the cap lets it grow; what is owed for it at the meter's price: `overage_nanousd`."""
    overage_nanousd: int
    cost_picousd: int
    quota_reached_at: datetime | None
    """When nothing of the quota is left; None: not in this period, or it was reached before, or there is no quota."""


def forecast(meter: Meter, now: datetime) -> Forecast | None:
    """None when too little is known: less than a day of the period has passed, or hardly anything was used in it."""
    period = meter.key.period
    passed, whole = int((now - period.start_at).total_seconds()), int((period.end_at - period.start_at).total_seconds())
    if passed < SHORTEST_SECONDS or passed >= whole or meter.settled_requests < FEWEST_REQUESTS:
        return None
    wanted = meter.settled_tokens * whole // passed
    limited = meter.quota_tokens < UNLIMITED
    # The ledger lets nobody beyond quota and cap, whatever the line says.
    most = max(meter.settled_tokens, meter.quota_tokens + meter.overage_cap_tokens)
    used = min(wanted, most) if limited else wanted
    beyond = max(0, used - meter.quota_tokens) if limited else 0
    return Forecast(
        used_tokens=used,
        overage_tokens=meter.banked_tokens + beyond,
        overage_nanousd=meter.banked_nanousd + beyond * meter.overage_price_nanousd,
        cost_picousd=_scaled_cost(meter, used),
        quota_reached_at=_quota_reached_at(meter, passed, wanted) if limited else None,
    )


def _scaled_cost(meter: Meter, used_tokens: int) -> int:
    """The cost grows with the tokens, at the mixture of models so far."""
    return meter.cost_picousd * used_tokens // meter.settled_tokens if meter.settled_tokens else meter.cost_picousd


def _quota_reached_at(meter: Meter, passed_seconds: int, wanted_tokens: int) -> datetime | None:
    if meter.settled_tokens >= meter.quota_tokens or wanted_tokens < meter.quota_tokens:
        return None
    seconds = -(-meter.quota_tokens * passed_seconds // meter.settled_tokens)
    return meter.key.period.start_at + timedelta(seconds=seconds)
