"""Compare what must be equal: meters, request records and roll-ups; our ledger and Stripe; our records and Anthropic.

Nothing is written. What differs is named with both figures. What is no fault but easily overlooked (orphans, estimated
use, use that was written off) is counted beside, so that it is seen each time somebody looks.

A running user's call may settle between two of our reads, so a user who seems to differ is read again, a few times.
What differs then, in figures that moved all the while, is told as moving: nobody knows whether it is a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Final, Protocol

from tollgate.catalog.loader import Catalog
from tollgate.domain.ledger import Meter
from tollgate.domain.overage import UNIT_NANOUSD, VISIBLE_AFTER, BilledLine, OverageAccount, targets, uncounted
from tollgate.domain.rollups import DayRollUp, RowKey, RowKind, Rows, Sums, add_row, day_of, end_of, start_of, total
from tollgate.domain.sources import Clock
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.roll_up_usage import Books, expired_sums
from tollgate.storage.meters import Meters
from tollgate.storage.overage import OverageAccounts
from tollgate.storage.requests import RECORD_SECONDS, RequestPosition, RequestRecord, Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.subscriptions import Subscriptions

LOOKS: Final = 3
PAUSE_SECONDS: Final = 1.0
RUNNING_CALL: Final = timedelta(minutes=10)
"""A call that began so long before a period may have been admitted in it."""
FIRST_DAY: Final = date(2020, 1, 1)
"""Before any there can be."""
TOLD_AFTER: Final = timedelta(hours=2)
"""How long after a window's end Stripe must know all of its overage: its invoice is a draft for an hour."""
COUNTED_AFTER: Final = timedelta(hours=2)
"""How long after an invoice is final the hourly job has counted it for sure."""
INVOICES_BACK: Final = timedelta(days=400)
"""A year's invoices and some."""

TOKEN_KINDS: Final = tuple(each.name for each in fields(TokenCounts))
FIGURES: Final = ("charged_tokens", "written_off_tokens", "requests", *TOKEN_KINDS, "cost_picousd")


@dataclass(frozen=True, slots=True)
class Difference:
    """Two figures that ought to be equal."""

    kind: str
    """`meter`: a meter and the records of its period; `roll_up`: a day and its records; `sums`: a meter in itself;
    `stripe`: overage that is owed and overage that Stripe knows of."""
    tenant_id: str
    user_id: str
    place: str
    """The usage period or the day."""
    figure: str
    expected: int
    """By the records; of Stripe, what is owed."""
    found: int


@dataclass(frozen=True, slots=True)
class UserCheck:
    """Users, looked through."""

    differences: tuple[Difference, ...] = ()
    moving: tuple[Difference, ...] = ()
    """Seen in figures that changed while we looked: look again when the user is quiet."""
    users: int = 0
    periods: int = 0
    days: int = 0
    records: int = 0
    expired: int = 0
    """Calls whose owner vanished (orphans)."""
    expired_tokens: int = 0
    """Charged for them."""
    estimated: int = 0
    estimated_tokens: int = 0
    written_off_tokens: int = 0
    unbooked: int = 0
    """Records whose settlement was left to the sweep."""
    unswept: int = 0
    """Open reservations whose owner is dead for sure: the next sweep ends them."""

    def __add__(self, other: UserCheck) -> UserCheck:
        return UserCheck(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(UserCheck)))


class Reconciler:
    """Reads only. Raises StoreUnavailableError."""

    def __init__(self, meters: Meters, requests: Requests, days: DayRollUps, catalog: Catalog, clock: Clock) -> None:
        self._meters = meters
        self._requests = requests
        self._days = days
        self._catalog = catalog
        self._clock = clock

    def check(self, tenant_id: str, user_id: str) -> UserCheck:
        """All usage periods and days of a user that are still kept."""
        stored = self._stored(tenant_id, user_id)
        found = self._look(stored)
        for _ in range(LOOKS - 1):
            if not found.differences:
                return found
            self._clock.pause(PAUSE_SECONDS)
            before, stored = stored, self._stored(tenant_id, user_id)
            found = self._look(stored)
        if not found.differences:
            return found
        # What stood still for two looks and the pause between them differs; of the rest, nobody can say.
        after = self._stored(tenant_id, user_id)
        moving = tuple(each for each in found.differences if after.moved_since(before, each))
        differences = tuple(each for each in found.differences if each not in moving)
        return replace(found, differences=differences, moving=moving)

    def use_by_day(self, tenant_id: str, user_id: str, first: date, last: date) -> Iterator[tuple[date, RowKey, Sums]]:
        """Rows of single calls from `first` to `last`, both included, from the records alone."""
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        for record in self._records(tenant_id, user_id, start_of(first), end_of(last)):
            yield day_of(record.began_at), *(books.row_of(record) or books.open_row_of(record))
        for one in books.expired.values():
            if first <= day_of(one.swept_at) <= last:
                yield day_of(one.swept_at), RowKey(RowKind.EXPIRED, one.period_id), expired_sums(one)

    def _stored(self, tenant_id: str, user_id: str) -> _Stored:
        meters = {meter.key.period.id: meter for meter in self._meters.list_of_user(tenant_id, user_id)}
        days = {each.day: each for each in self._days.list_days(tenant_id, user_id, FIRST_DAY, day_of(self._now()))}
        return _Stored(tenant_id, user_id, meters, days, self._days.find_mark(tenant_id, user_id))

    def _look(self, stored: _Stored) -> UserCheck:
        now, tenant_id, user_id = self._now(), stored.tenant_id, stored.user_id
        oldest = now - timedelta(seconds=RECORD_SECONDS)
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        read = _Read(tenant_id, user_id, oldest, stored.mark or oldest, stored.days)
        for record in self._records(tenant_id, user_id, oldest, now + timedelta(hours=1)):
            read.take(record.began_at, *(books.row_of(record) or books.open_row_of(record)))
        read.take_expired(books)
        meters = list(stored.meters.values())
        differences = (*read.compare_days(), *chain.from_iterable(map(read.compare_meter, meters)))
        differences += tuple(read.unmetered(stored.meters.keys()))
        return read.summary(differences, meters, now)

    def _records(self, tenant_id: str, user_id: str, since: datetime, before: datetime) -> Iterable[RequestRecord]:
        pages = self._requests.pages(tenant_id, user_id, RequestPosition(since), RequestPosition(before))
        return chain.from_iterable(pages)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_seconds(), UTC)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a look starts from: sums that are stored, each to be compared with the records."""

    tenant_id: str
    user_id: str
    meters: Mapping[str, Meter]
    """By usage period."""
    days: Mapping[date, DayRollUp]
    mark: datetime | None
    """All days are complete up to here; None: nothing was rolled up yet."""

    def moved_since(self, before: _Stored, difference: Difference) -> bool:
        """The figures that seem to differ are not the ones of `before`. A meter by itself is read at one instant."""
        if difference.kind == "sums":
            return False
        if self.mark != before.mark:
            return True
        if difference.kind == "roll_up":
            return self.day(difference.place) != before.day(difference.place)
        return self.sums(difference.place) != before.sums(difference.place)

    def day(self, text: str) -> DayRollUp | None:
        return self.days.get(date.fromisoformat(text))

    def sums(self, period_id: str) -> Sums | None:
        meter = self.meters.get(period_id)
        return None if meter is None else _sums_of(meter)


@dataclass(slots=True)
class _Read:
    """What one user's records say, beside what is stored of them."""

    tenant_id: str
    user_id: str
    oldest: datetime
    """Records from here on are all still there."""
    mark: datetime
    """All days are complete up to here."""
    stored: Mapping[date, DayRollUp]
    remade: dict[date, Rows] = field(default_factory=dict)
    """What the days ought to hold."""
    booked: dict[str, Sums] = field(default_factory=dict)
    """By usage period, what the ledger charged by the records."""
    expired: Sums = field(default_factory=Sums)
    all_records: Sums = field(default_factory=Sums)
    records: int = 0
    unbooked: int = 0

    def take(self, began_at: datetime, key: RowKey, sums: Sums) -> None:
        self.records += 1
        self.all_records += sums
        if key.kind is RowKind.REQUEST:
            self._book(key.period_id, sums)
        else:
            self.unbooked += 1
        day = day_of(began_at)
        if began_at < (self.stored[day].through_at if day in self.stored else self.mark):
            add_row(self.remade.setdefault(day, {}), key, sums)

    def take_expired(self, books: Books) -> None:
        for one in books.expired.values():
            self._book(one.period_id, expired_sums(one))
            self.expired += expired_sums(one)
        for day in books.expired_days():
            if end_of(day) <= self.mark or (day in self.stored and self.stored[day].whole):
                books.add_expired(self.remade.setdefault(day, {}), day)

    def _book(self, period_id: str, sums: Sums) -> None:
        self.booked[period_id] = self.booked.get(period_id, Sums()) + sums

    # ---- what differs

    def compare_days(self) -> Iterator[Difference]:
        """Of the days whose records are all still there."""
        for day in sorted(self.stored.keys() | self.remade.keys()):
            if start_of(day) < self.oldest:
                continue
            rows = self.remade.get(day, {})
            found = dict(self.stored[day].rows) if day in self.stored else {}
            if end_of(day) > self.mark and day in self.stored and not self.stored[day].whole:
                # Crashed calls of a day that still runs are told live; what it has stored is of its last run.
                found = {key: sums for key, sums in found.items() if key.kind is not RowKind.EXPIRED}
            if rows == found:
                continue
            told = list(self._differ("roll_up", day.isoformat(), total(rows.values()), total(found.values())))
            # The same sums in other rows: counted for another model or key.
            yield from told or [self._difference("roll_up", day.isoformat(), "rows", len(rows), len(found))]

    def compare_meter(self, meter: Meter) -> Iterator[Difference]:
        place = meter.key.period.id
        left = meter.quota_tokens - meter.settled_tokens - meter.reserved_tokens
        if left != meter.remaining_tokens:
            yield self._difference("sums", place, "remaining_tokens", left, meter.remaining_tokens)
        if meter.open_count != len(meter.reservations):
            yield self._difference("sums", place, "open_reservations", len(meter.reservations), meter.open_count)
        expected = self._expected(meter)
        if expected is not None:
            yield from self._differ("meter", place, expected, _sums_of(meter))

    def _expected(self, meter: Meter) -> Sums | None:
        """By the records, or else by the roll-ups; None where neither is complete."""
        period = meter.key.period
        if period.start_at - RUNNING_CALL >= self.oldest:
            return self.booked.get(period.id, Sums())
        if self.mark < period.end_at + RUNNING_CALL:
            return None
        rows = chain.from_iterable(rolled.rows.items() for rolled in self.stored.values())
        return total(sums for key, sums in rows if key.period_id == period.id and key.kind is not RowKind.UNBOOKED)

    def unmetered(self, period_ids: AbstractSet[str]) -> Iterator[Difference]:
        """Records of a usage period that has no meter."""
        for period_id in sorted(self.booked.keys() - period_ids):
            yield from self._differ("meter", period_id, self.booked[period_id], Sums())

    def _differ(self, kind: str, place: str, expected: Sums, found: Sums) -> Iterator[Difference]:
        for figure in FIGURES:
            if getattr(expected, figure) != getattr(found, figure):
                yield self._difference(kind, place, figure, getattr(expected, figure), getattr(found, figure))

    def _difference(self, kind: str, place: str, figure: str, expected: int, found: int) -> Difference:
        return Difference(kind, self.tenant_id, self.user_id, place, figure, expected, found)

    def summary(self, differences: tuple[Difference, ...], meters: list[Meter], now: datetime) -> UserCheck:
        return UserCheck(
            differences,
            users=1,
            periods=len(meters),
            days=len(self.stored),
            records=self.records,
            expired=self.expired.expired,
            expired_tokens=self.expired.charged_tokens,
            estimated=self.all_records.estimated_requests,
            estimated_tokens=self.all_records.estimated_tokens,
            written_off_tokens=sum(meter.written_off_tokens for meter in meters),
            unbooked=self.unbooked,
            unswept=sum(len(meter.expired(now.timestamp())) for meter in meters),
        )


def _sums_of(meter: Meter) -> Sums:
    counts = {name: getattr(meter.counts, name) for name in TOKEN_KINDS}
    return Sums(
        requests=meter.settled_requests,
        charged_tokens=meter.settled_tokens,
        written_off_tokens=meter.written_off_tokens,
        cost_picousd=meter.cost_picousd,
        **counts,
    )


# --- Stripe ---------------------------------------------------------------------------------------------------------


class StripeCounts(Protocol):
    """What Stripe says: `tollgate.providers.stripe_meter`."""

    def find_total(self, customer_id: str, start_at: datetime, end_at: datetime) -> int: ...

    def list_lines(self, subscription_id: str, since_at: datetime) -> tuple[BilledLine, ...]: ...


@dataclass(frozen=True, slots=True)
class OverageCheck:
    """Two figures of one user's overage, in hundredths of a cent."""

    tenant_id: str
    user_id: str
    place: str
    """The window (by its start) whose invoice is not final yet, an invoice, or all of it."""
    owed: int
    """By our ledger."""
    told: int
    """By Stripe."""
    final: bool
    """Both must be equal; until then Stripe may be behind, and never ahead."""
    uncounted: bool = False
    """Finalized so shortly ago that the hourly job may not have looked since."""

    @property
    def differs(self) -> bool:
        if self.uncounted:
            return False
        return self.told != self.owed if self.final else self.told > self.owed

    def difference(self) -> Difference:
        return Difference("stripe", self.tenant_id, self.user_id, self.place, "overage", self.owed, self.told)


class OverageReconciler:
    """Overage in the ledger, in the account that is told to Stripe, and at Stripe. Reads only.

    Raises StoreUnavailableError, StripeUnavailableError, StripeRefusedError.
    """

    def __init__(
        self,
        accounts: OverageAccounts,
        meters: Meters,
        subscriptions: Subscriptions,
        stripe: StripeCounts,
        clock: Clock,
    ) -> None:
        self._accounts = accounts
        self._meters = meters
        self._subscriptions = subscriptions
        self._stripe = stripe
        self._clock = clock

    def check(self, tenant_id: str, user_id: str) -> list[OverageCheck]:
        """Empty for who was never in overage."""
        now = datetime.fromtimestamp(self._clock.now_seconds(), UTC)
        account = self._accounts.find(tenant_id, user_id)
        meters = list(self._meters.list_of_user(tenant_id, user_id))
        if account is None:
            return list(_untold(tenant_id, user_id, meters, now))
        return [*self._windows(account, meters, now), *self._invoices(account, now)]

    def _windows(self, account: OverageAccount, meters: list[Meter], now: datetime) -> Iterator[OverageCheck]:
        wanted = targets(account, uncounted(account, meters))
        for window, owed in zip(account.windows, wanted, strict=True):
            told = self._stripe.find_total(window.customer_id, window.start_at, min(window.end_at, now))
            final = now >= window.end_at + TOLD_AFTER
            yield OverageCheck(account.tenant_id, account.user_id, f"window {window.id}", owed, told, final)
            if window.delivered and window.sent_at is not None and window.sent_at + VISIBLE_AFTER <= now:
                place = f"window {window.id}, as sent"
                yield OverageCheck(account.tenant_id, account.user_id, place, window.value, told, final=True)

    def _invoices(self, account: OverageAccount, now: datetime) -> Iterator[OverageCheck]:
        """Finalized lines that we counted, and those that Stripe has."""
        counted: dict[str, int] = {}
        for billed in self._accounts.list_billed(account.tenant_id, account.user_id):
            counted[billed.invoice_id] = counted.get(billed.invoice_id, 0) + billed.units
        whole = sum(counted.values())
        yield OverageCheck(account.tenant_id, account.user_id, "all invoices", whole, account.billed_units, final=True)
        subscription = self._subscriptions.find(account.tenant_id, account.user_id).subscription
        if subscription is None:
            return
        theirs: dict[str, int] = {}
        recent: set[str] = set()
        for line in self._stripe.list_lines(subscription.id, now - INVOICES_BACK):
            if line.final:
                theirs[line.invoice_id] = theirs.get(line.invoice_id, 0) + line.quantity
            if line.finalized_at is not None and now < line.finalized_at + COUNTED_AFTER:
                recent.add(line.invoice_id)
        for invoice_id, quantity in theirs.items():
            owed = counted.get(invoice_id, 0)
            if invoice_id in counted or quantity:
                # One that was finalized since the last look is counted at the next.
                late = invoice_id in recent and invoice_id not in counted
                place, user = f"invoice {invoice_id}", (account.tenant_id, account.user_id)
                yield OverageCheck(*user, place, owed, quantity, final=True, uncounted=late)


def _untold(tenant_id: str, user_id: str, meters: list[Meter], now: datetime) -> Iterator[OverageCheck]:
    """Overage of a user of whom Stripe was never told anything."""
    owing = [meter for meter in meters if meter.overage_nanousd]
    if owing:
        owed = sum(meter.overage_nanousd for meter in owing) // UNIT_NANOUSD
        final = now >= min(meter.key.period.end_at for meter in owing) + TOLD_AFTER
        yield OverageCheck(tenant_id, user_id, "never told", owed, 0, final)


# --- Anthropic ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drift:
    """One day and model: what we recorded and what Anthropic reports, by kind of token."""

    day: date
    model: str
    ours: TokenCounts
    theirs: TokenCounts
    estimated: int
    """Of our calls, those whose counts are estimates."""
    expired: int
    """Calls of the day of which we know no counts at all; not split by model."""

    @property
    def differs(self) -> bool:
        return self.ours != self.theirs

    @property
    def tokens(self) -> int:
        """What Anthropic counts beyond us, all kinds together; below zero: what we count beyond Anthropic."""
        return sum(getattr(self.theirs, name) - getattr(self.ours, name) for name in TOKEN_KINDS)

    @property
    def permille(self) -> int | None:
        """Of what Anthropic counts, rounded toward zero; None where that is nothing."""
        return permille_of(self.tokens, self.theirs.total_tokens)

    def exceeds(self, tolerance_permille: int) -> bool:
        """Apart by more than so much of what Anthropic counts. Kinds do not make up for each other."""
        apart: int = sum(abs(getattr(self.theirs, name) - getattr(self.ours, name)) for name in TOKEN_KINDS)
        return apart * 1000 > tolerance_permille * self.theirs.total_tokens


def permille_of(part: int, whole: int) -> int | None:
    """Rounded toward zero, exactly; None of nothing."""
    if not whole:
        return None
    share = abs(part) * 1000 // whole
    return share if part >= 0 else -share


def drifts(
    ours: Iterable[tuple[date, RowKey, Sums]], theirs: Iterable[tuple[date, str, TokenCounts]], catalog: Catalog
) -> list[Drift]:
    """Day by day and model by model, both sides under the catalog's name of the model."""
    recorded: dict[tuple[date, str], Sums] = {}
    expired: dict[date, int] = {}
    for day, key, sums in ours:
        if key.kind is RowKind.EXPIRED:
            expired[day] = expired.get(day, 0) + sums.expired
            continue
        place = day, _named(catalog, key.served_model or key.model or "")
        recorded[place] = recorded.get(place, Sums()) + sums
    reported: dict[tuple[date, str], TokenCounts] = {}
    for day, model, counts in theirs:
        place = day, _named(catalog, model)
        reported[place] = _plus(reported.get(place, TokenCounts()), counts)
    nothing = Sums()
    return [
        Drift(
            day,
            model,
            recorded.get((day, model), nothing).counts,
            reported.get((day, model), TokenCounts()),
            recorded.get((day, model), nothing).estimated_requests,
            expired.get(day, 0),
        )
        for day, model in sorted(recorded.keys() | reported.keys())
    ]


def _named(catalog: Catalog, model: str) -> str:
    found = catalog.resolve_model(model)
    return model if found is None else found.id


def _plus(one: TokenCounts, other: TokenCounts) -> TokenCounts:
    return TokenCounts(*(getattr(one, name) + getattr(other, name) for name in TOKEN_KINDS))
