"""What users paid, by the months that they paid for: invoices as Stripe has them paid, in whole pico-USD.

What was paid for a month is that month's revenue whatever becomes of the subscription later. A price that is paid by
the year is spread over its months. Amounts of a currency other than USD are taken as if they were USD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from tollgate.domain.money import PICOUSD_PER_CENT
from tollgate.domain.periods import period_at
from tollgate.domain.plans import Billing, PeriodKind
from tollgate.domain.pricing import WHOLE_PERMILLE

_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class PaidLine:
    """One line of an invoice: a plan's price for [start, end), or something given back of it (below zero)."""

    plan_id: str | None
    """None: it is no plan's price, but overage or somebody else's."""
    amount_cents: int
    """After discounts and without taxes."""
    start_at: datetime
    end_at: datetime


@dataclass(frozen=True, slots=True)
class PaidInvoice:
    """An invoice on which nothing is owed any more."""

    id: str
    customer_id: str
    paid_cents: int
    """What came in for it; the rest was in the customer's balance."""
    lines: tuple[PaidLine, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """What falls on one month of a user."""

    month: str
    """`2026-11`: in which that part of the paid time begins, as the usage period beside it does."""
    plan_id: str | None
    price_picousd: int
    fees_picousd: int


def shares_of(invoice: PaidInvoice, billing: Billing) -> Iterator[Share]:
    """The prices of plans on it by month, with Stripe's fees for them. Overage is the meters' to tell, not its own fee.

    A payment's fixed fee goes where the longest of its prices goes; where it has none, with the first line.
    """
    permille = billing.fee_permille + billing.billing_fee_permille
    prices = [line for line in invoice.lines if line.plan_id is not None]
    for line in prices:
        for start_at, picousd in parts(line.amount_cents * PICOUSD_PER_CENT, line.start_at, line.end_at):
            yield Share(_month(start_at), line.plan_id, picousd, -(-picousd * permille // WHOLE_PERMILLE))
    if invoice.paid_cents > 0 and invoice.lines:
        bearer = max(prices or invoice.lines[:1], key=lambda line: (line.amount_cents > 0, line.end_at - line.start_at))
        for start_at, picousd in parts(billing.fee_cents * PICOUSD_PER_CENT, bearer.start_at, bearer.end_at):
            yield Share(_month(start_at), bearer.plan_id, 0, picousd)


def parts(picousd: int, start_at: datetime, end_at: datetime) -> list[tuple[datetime, int]]:
    """An amount for [start, end) by the months of that time, each with its begin; they add up to the amount.

    Months are counted from the end, so that what is given back of a year falls on the months that it was paid for.
    """
    whole_seconds = int((end_at - start_at).total_seconds())
    if whole_seconds <= 0:  # something for no time at all
        return [(start_at, picousd)]
    begins = [end_at]
    while begins[-1] > start_at:
        begins.append(max(start_at, period_at(PeriodKind.ANCHORED_MONTH, end_at, begins[-1] - _SECOND).start_at))
    begins.reverse()
    upto = [picousd * int((begin - start_at).total_seconds()) // whole_seconds for begin in begins]
    return [(begin, upto[number + 1] - upto[number]) for number, begin in enumerate(begins[:-1])]


def _month(instant: datetime) -> str:
    return instant.strftime("%Y-%m")
