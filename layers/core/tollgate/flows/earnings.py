"""What users brought and cost in a month: plans' prices, overage, Stripe's fees, and Claude's bill.

Prices are those that were paid for the month, by Stripe's invoices, so the past stays as it was. Without Stripe they
are an estimate by the subscriptions of today. Claude's cost is that of all calls whose counts are known, those included
whose settlement was left to the sweep; what an orphan without a record cost is known to nobody, so those are counted
beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from tollgate.catalog.loader import Catalog
from tollgate.domain.ledger import Meter
from tollgate.domain.margins import payment_fees_picousd
from tollgate.domain.money import PICOUSD_PER_CENT, PICOUSD_PER_NANOUSD
from tollgate.domain.plans import Billing, Plan
from tollgate.domain.principals import NANOUSD_PER_CENT
from tollgate.domain.revenue import PaidInvoice, shares_of
from tollgate.domain.rollups import PeriodUse, RowKey, RowKind, Sums, day_of, end_of, start_of
from tollgate.domain.sources import Clock
from tollgate.domain.subscriptions import Interval, Subscriber, SubscriptionStatus
from tollgate.flows.roll_up_usage import LONGEST_CALL_SECONDS, Books, expired_sums
from tollgate.storage.meters import Meters
from tollgate.storage.period_summaries import PeriodSummaries, PeriodSummary, summary_of
from tollgate.storage.requests import RequestPosition, Requests
from tollgate.storage.rollups import DayRollUps

MONTHS = 12
PAYING = frozenset({SubscriptionStatus.ACTIVE, SubscriptionStatus.PAST_DUE})
LONGEST_PRICE = timedelta(days=367)
"""A year's price is paid so long before its last month begins."""
LATEST_LINE = timedelta(days=40)
"""What a month's use adds is on an invoice so long after the month at the latest: that of the next one."""


@dataclass(frozen=True, slots=True)
class Earning:
    """Of one user's plan in a month, or of several together."""

    periods: int = 0
    """Usage periods that began in the month; none for who paid and did not call."""
    price_picousd: int = 0
    overage_picousd: int = 0
    fees_picousd: int = 0
    cost_picousd: int = 0
    """Of all calls whose counts are known."""
    charged_tokens: int = 0
    written_off_tokens: int = 0
    estimated: int = 0
    """Calls whose end the provider never told."""
    orphans: int = 0
    """Calls that the sweep has ended. Without a record, their cost is in no figure."""
    unbooked: int = 0
    """Calls with a record whose settlement never reached the ledger: their cost is in `cost_picousd`, and no meter."""
    unbooked_picousd: int = 0

    @property
    def revenue_picousd(self) -> int:
        return self.price_picousd + self.overage_picousd

    @property
    def margin_picousd(self) -> int:
        return self.revenue_picousd - self.fees_picousd - self.cost_picousd

    @property
    def margin_permille(self) -> int | None:
        """Of the revenue, toward zero; None without any."""
        if self.revenue_picousd <= 0:
            return None
        share = abs(self.margin_picousd) * 1000 // self.revenue_picousd
        return -share if self.margin_picousd < 0 else share

    def __add__(self, other: Earning) -> Earning:
        return Earning(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Earning)))


class PeriodReader:
    """What usage periods came to: as they were closed, or as of now. Reads only. Raises StoreUnavailableError."""

    def __init__(
        self,
        meters: Meters,
        requests: Requests,
        days: DayRollUps,
        summaries: PeriodSummaries,
        catalog: Catalog,
        clock: Clock,
    ) -> None:
        self._meters = meters
        self._requests = requests
        self._days = days
        self._summaries = summaries
        self._catalog = catalog
        self._clock = clock

    def summary(self, meter: Meter) -> PeriodSummary:
        """Its summary, or what that would be if the period were closed now."""
        key = meter.key
        found = self._summaries.find(key.tenant_id, key.user_id, key.period.id)
        if found is not None and meter.closed_at is not None:
            return found
        return summary_of(meter, self._use(meter), datetime.fromtimestamp(self._clock.now_seconds(), UTC), found)

    def _use(self, meter: Meter) -> PeriodUse:
        """What the days that are rolled up say of the period, and the records of the rest."""
        tenant_id, user_id, period = meter.key.tenant_id, meter.key.user_id, meter.key.period
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        of_kind = dict.fromkeys(RowKind, Sums())
        for key, sums in self._rows(books, meter):
            if key.period_id == period.id and key.kind is not RowKind.EXPIRED:
                of_kind[key.kind] += sums
        for one in books.expired.values():
            if one.period_id == period.id:
                of_kind[RowKind.EXPIRED] += expired_sums(one)
        return PeriodUse(of_kind[RowKind.REQUEST], of_kind[RowKind.EXPIRED], of_kind[RowKind.UNBOOKED], exact=True)

    def _rows(self, books: Books, meter: Meter) -> Iterator[tuple[RowKey, Sums]]:
        period, owner = meter.key.period, (books.tenant_id, books.user_id)
        # A call that began shortly before the period was admitted in it.
        first, last = day_of(period.start_at - timedelta(seconds=LONGEST_CALL_SECONDS)), day_of(period.end_at)
        stored = {rolled.day: rolled for rolled in self._days.list_days(*owner, first, last)}
        for rolled in stored.values():
            yield from rolled.rows.items()
        since = max(start_of(first), self._days.find_mark(*owner) or start_of(first))
        for page in self._requests.pages(*owner, RequestPosition(since), RequestPosition(end_of(last))):
            for record in page:
                rolled_up = stored.get(day_of(record.began_at))
                if rolled_up is None or record.began_at >= rolled_up.through_at:
                    yield books.row_of(record) or books.open_row_of(record)


def usage_of(meter: Meter, summary: PeriodSummary, billing: Billing, *, overage_payments: int) -> Earning:
    """What a usage period brought beyond the plan's price, and cost. `overage_payments`: of its own for the overage."""
    overage_cents = meter.overage_nanousd // NANOUSD_PER_CENT
    payments = overage_payments if overage_cents else 0
    return Earning(
        periods=1,
        overage_picousd=meter.overage_nanousd * PICOUSD_PER_NANOUSD,
        fees_picousd=payment_fees_picousd(billing, overage_cents, payments=payments),
        cost_picousd=meter.cost_picousd + summary.unbooked_picousd,
        charged_tokens=meter.settled_tokens,
        written_off_tokens=meter.written_off_tokens,
        estimated=summary.estimated_requests,
        orphans=summary.expired_requests,
        unbooked=summary.unbooked_requests,
        unbooked_picousd=summary.unbooked_picousd,
    )


def paid_in(month: str, invoices: Iterable[PaidInvoice], billing: Billing) -> dict[tuple[str, str | None], Earning]:
    """What was paid for a month (`2026-11`), by customer and plan; plan None: a payment for overage alone."""
    found: dict[tuple[str, str | None], Earning] = {}
    for invoice in invoices:
        for share in shares_of(invoice, billing):
            if share.month == month and (share.price_picousd or share.fees_picousd):
                name = invoice.customer_id, share.plan_id
                earned = Earning(price_picousd=share.price_picousd, fees_picousd=share.fees_picousd)
                found[name] = found.get(name, Earning()) + earned
    return found


def estimated_price(plan: Plan, subscriber: Subscriber, billing: Billing, before: datetime) -> Earning:
    """One month's price by the subscription of today, for a month that ends at `before`.

    Nothing for a plan that is held without paying, on trial, or was bought later. A subscription that has changed since
    counts as it is now.
    """
    remote = subscriber.subscription
    if remote is None or remote.status not in PAYING or remote.trial_unpaid or remote.plan_id != plan.id:
        return Earning()
    if max(remote.created_at, remote.trial_end_at or remote.created_at) >= before:
        return Earning()
    cents = plan.price_cents
    if remote.interval is Interval.YEAR and plan.annual_price_cents is not None:
        cents = plan.annual_price_cents
        price, fees = cents * PICOUSD_PER_CENT // MONTHS, payment_fees_picousd(billing, cents) // MONTHS
        return Earning(price_picousd=price, fees_picousd=fees)
    return Earning(price_picousd=cents * PICOUSD_PER_CENT, fees_picousd=payment_fees_picousd(billing, cents))
