"""How much of the running usage period a user has used, with reservations of dead owners ended first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.periods import UsagePeriod, period_at
from tollgate.domain.principals import Account
from tollgate.domain.sources import Clock

if TYPE_CHECKING:
    from tollgate.flows.ledger import Ledger
    from tollgate.storage.meters import Meters


@dataclass(frozen=True, slots=True)
class CurrentUsage:
    """One user's running period. `meter` is None until the period's first request."""

    account: Account
    period: UsagePeriod
    meter: Meter | None


def find_current_usage(account: Account, meters: Meters, ledger: Ledger, clock: Clock) -> CurrentUsage:
    """The period that contains now, and its meter as stored.

    Looking is one of the three occasions on which expired reservations end (the others: the next refusal, the hourly
    job), so nobody sees tokens held by a call that is gone. Raises StoreUnavailableError.
    """
    now = clock.now_seconds()
    period = period_at(account.plan.period_kind, account.profile.anchor_at, datetime.fromtimestamp(now, UTC))
    key = MeterKey(account.tenant_id, account.user_id, period)
    meter = meters.find(key)
    if meter is not None and meter.expired(now):
        ledger.sweep(meter, account.plan.expiry_policy)
        meter = meters.find(key)
    return CurrentUsage(account, period, meter)
