"""What a user brought and cost in a usage period: the plan's price, overage, Stripe's fees, and Claude's bill.

Computed from what is stored now: a subscription that changed in the meantime counts as it is. Claude's cost is that of
the settled calls; what an orphan cost is known to nobody, so those are counted beside.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tollgate.domain.ledger import Meter
from tollgate.domain.margins import payment_fees_picousd
from tollgate.domain.plans import Billing, Plan
from tollgate.domain.principals import NANOUSD_PER_CENT
from tollgate.domain.subscriptions import Interval, Subscriber, SubscriptionStatus

PICOUSD_PER_CENT = 10_000_000_000
MONTHS = 12
PAYING = frozenset({SubscriptionStatus.ACTIVE, SubscriptionStatus.PAST_DUE})


@dataclass(frozen=True, slots=True)
class Earning:
    """Of one usage period, or of several together."""

    periods: int = 0
    price_picousd: int = 0
    overage_picousd: int = 0
    fees_picousd: int = 0
    cost_picousd: int = 0
    charged_tokens: int = 0
    written_off_tokens: int = 0
    orphans: int = 0
    """Calls whose owner vanished: their cost is in no figure."""

    @property
    def revenue_picousd(self) -> int:
        return self.price_picousd + self.overage_picousd

    @property
    def margin_picousd(self) -> int:
        return self.revenue_picousd - self.fees_picousd - self.cost_picousd

    @property
    def margin_permille(self) -> int | None:
        """Of the revenue, toward zero; None without any."""
        return int(self.margin_picousd * 1000 / self.revenue_picousd) if self.revenue_picousd else None

    def __add__(self, other: Earning) -> Earning:
        return Earning(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Earning)))


def earning_of(meter: Meter, plan: Plan | None, subscriber: Subscriber, billing: Billing, *, orphans: int) -> Earning:
    """`plan`: that of the meter; None: no longer in the catalog, so nobody knows its price."""
    overage_cents = meter.overage_nanousd // NANOUSD_PER_CENT
    price_picousd, fees_picousd = _price(plan, subscriber, billing)
    if overage_cents:
        # On the invoice of the price, so only the share counts; a yearly price is on another invoice.
        separate = 0 if price_picousd and _interval(subscriber) is Interval.MONTH else 1
        fees_picousd += payment_fees_picousd(billing, overage_cents, payments=separate)
    return Earning(
        periods=1,
        price_picousd=price_picousd,
        overage_picousd=meter.overage_nanousd * 1000,
        fees_picousd=fees_picousd,
        cost_picousd=meter.cost_picousd,
        charged_tokens=meter.settled_tokens,
        written_off_tokens=meter.written_off_tokens,
        orphans=orphans,
    )


def _price(plan: Plan | None, subscriber: Subscriber, billing: Billing) -> tuple[int, int]:
    """(price, fees) of one month; nothing for a plan that is held without paying, or on trial."""
    remote = subscriber.subscription
    if plan is None or remote is None or remote.status not in PAYING or remote.plan_id != plan.id:
        return 0, 0
    if _interval(subscriber) is Interval.YEAR and plan.annual_price_cents is not None:
        cents = plan.annual_price_cents
        return cents * PICOUSD_PER_CENT // MONTHS, payment_fees_picousd(billing, cents) // MONTHS
    return plan.price_cents * PICOUSD_PER_CENT, payment_fees_picousd(billing, plan.price_cents)


def _interval(subscriber: Subscriber) -> Interval | None:
    return None if subscriber.subscription is None else subscriber.subscription.interval
