"""What was paid falls on the months that it was paid for, to the unit."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tollgate.catalog.loader import load_catalog
from tollgate.domain.money import PICOUSD_PER_CENT
from tollgate.domain.revenue import PaidInvoice, PaidLine, parts, shares_of

BILLING = replace(load_catalog("default").billing, fee_permille=29, billing_fee_permille=7, fee_cents=30)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def by_month(*lines: PaidLine, paid_cents: int) -> dict[str, tuple[int, int]]:
    """Price and fees."""
    found: dict[str, tuple[int, int]] = {}
    for share in shares_of(PaidInvoice("in_1", "cus_1", paid_cents, lines), BILLING):
        price, fees = found.get(share.month, (0, 0))
        found[share.month] = price + share.price_picousd, fees + share.fees_picousd
    return found


@pytest.mark.parametrize(
    ("start", "end", "begins"),
    [
        ("2026-11-20", "2026-12-20", ["2026-11-20"]),
        ("2027-01-31", "2027-02-28", ["2027-01-31"]),
        ("2027-02-28", "2027-03-31", ["2027-02-28"]),
        ("2027-03-31", "2027-04-30", ["2027-03-31"]),
        ("2026-11-20", "2026-12-19", ["2026-11-20"]),
        ("2026-11-20", "2026-12-21", ["2026-11-20", "2026-11-21"]),
        ("2026-11-20", "2026-11-20", ["2026-11-20"]),
        ("2027-04-20", "2027-07-15", ["2027-04-20", "2027-05-15", "2027-06-15"]),
    ],
)
def test_months_are_counted_from_the_end(start: str, end: str, begins: list[str]) -> None:
    found = parts(1_000_003, at(start), at(end))
    assert [f"{begin:%Y-%m-%d}" for begin, _ in found] == begins
    assert sum(picousd for _, picousd in found) == 1_000_003


def test_whatever_the_time_and_the_amount_nothing_is_lost_between_months() -> None:
    rng = random.Random(5)
    for _ in range(500):
        start = at("2026-01-01") + timedelta(seconds=rng.randrange(10**8))
        end = start + timedelta(seconds=rng.choice([0, 1, rng.randrange(10**7), rng.randrange(4 * 10**7)]))
        amount = rng.randrange(-(10**15), 10**15)
        found = parts(amount, start, end)
        assert sum(picousd for _, picousd in found) == amount
        assert [begin for begin, _ in found] == sorted({begin for begin, _ in found})
        assert found[0][0] == start


def test_a_month_is_its_own_with_one_payments_fees() -> None:
    line = PaidLine("pro", 2_900, at("2026-11-20"), at("2026-12-20"))
    fees = 2_900 * PICOUSD_PER_CENT * 36 // 1000 + 30 * PICOUSD_PER_CENT
    assert by_month(line, paid_cents=2_900) == {"2026-11": (2_900 * PICOUSD_PER_CENT, fees)}


def test_what_is_given_back_of_a_year_falls_on_the_months_it_was_paid_for() -> None:
    """The year goes on as if it had never been sold from the change on, to the days of that month."""
    year = PaidLine("pro", 36_500, at("2027-01-15"), at("2028-01-15"))
    back = PaidLine("pro", -27_000, at("2027-04-20"), at("2028-01-15"))
    found = by_month(year, back, paid_cents=9_500)
    assert {month: price // PICOUSD_PER_CENT for month, (price, _) in found.items() if price} == {
        "2027-01": 3_100,
        "2027-02": 2_800,
        "2027-03": 3_100,
        "2027-04": 500,
    }
    fees = sum(fees for _, fees in found.values())
    assert fees - (9_500 * PICOUSD_PER_CENT * 36 // 1000 + 30 * PICOUSD_PER_CENT) in range(22)


def test_nothing_paid_has_no_fees_and_overage_alone_only_that_of_its_payment() -> None:
    trial = PaidLine("pro", 0, at("2026-11-20"), at("2026-12-04"))
    assert set(by_month(trial, paid_cents=0).values()) == {(0, 0)}
    overage = PaidLine(None, 700, at("2026-11-20"), at("2026-12-20"))
    assert by_month(overage, paid_cents=700) == {"2026-11": (0, 30 * PICOUSD_PER_CENT)}
