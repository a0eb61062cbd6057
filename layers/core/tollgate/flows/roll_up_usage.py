"""Roll request records up into days, and tell a user's days exactly: what is rolled up, and the rest live.

Nothing of this is on the hot path. A record is put when its call has ended, under the instant at which it began; so the
records of an instant are complete only when every call that began by then is dead and all it sent has landed. That is
ROLL_UP_LAG_SECONDS, and nothing younger is rolled up: it is read from the records, each time.

Two watermarks keep each record from being counted twice or not at all, whatever dies or runs at once: a day holds
exactly the records that began before its `through_at`, and is only replaced by who has seen its present text; the
user's mark says before which instant all days are complete, and moves after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, groupby
from typing import Final

from tollgate.catalog.loader import Catalog
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import MAX_ROUNDS, SKEW_SECONDS, TOMBSTONE_SECONDS, Meter, MeterName
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.pricing import CostParts, cost_parts
from tollgate.domain.rollups import (
    LONG_PROMPT_TOKENS,
    DayRollUp,
    PeriodUse,
    RowKey,
    RowKind,
    Rows,
    Sums,
    add_row,
    day_of,
    end_of,
    start_of,
    total,
)
from tollgate.domain.sources import Clock, IdSource
from tollgate.storage.meters import ExpiredReservation, Meters
from tollgate.storage.requests import RECORD_SECONDS, RequestPosition, RequestRecord, Requests
from tollgate.storage.rollups import DayRollUps

LONGEST_CALL_SECONDS: Final = 600
"""Timeout of the claude function: a call ends, one way or the other, this long after its begin at most."""
ROLL_UP_LAG_SECONDS: Final = 1800
"""No record lands later after its begin: LONGEST_CALL_SECONDS, then TOMBSTONE_SECONDS in which a request that was sent
may still arrive (DynamoDB refuses its signature later), and what two clocks differ. The rest is margin."""
RECORDS_AT_MOST: Final = 20_000
"""Read in one go; 20 MB or so, a few seconds."""
WORTH_ROLLING_UP: Final = 500
"""Records of a day that still runs: fewer are read faster than a day is written."""
DAYS_KEPT: Final = RECORD_SECONDS // (24 * 3600)


@dataclass(frozen=True, slots=True)
class RolledUp:
    """What a run did. `through_at`: everything that began before it is in the days."""

    through_at: datetime
    records: int
    complete: bool
    """False: it stopped at its deadline, its most records, or a call that the sweep has yet to end; run it again."""


@dataclass(frozen=True, slots=True)
class DaysUse:
    """A user's days, live part included."""

    rows: dict[date, Rows]
    counted_through_at: datetime
    exact: bool
    """False: there was more to read than one go may read. The days up to `counted_through_at` are exact."""


class RecordsGoneError(Exception):
    """A day whose records are no longer all there cannot be made again from them."""


@dataclass(slots=True)
class _Pass:
    """One reading of records in the order of their begin."""

    days: dict[date, Rows] = field(default_factory=dict)
    seen: dict[date, DayRollUp] = field(default_factory=dict)
    records: int = 0
    old_records: int = 0
    """Of these, those that could be rolled up."""
    stopped_at: datetime | None = None
    """Begin of the first record that was not taken; None: all were."""


class UsageRollUps:
    """Writes roll-ups, and reads days. Raises StoreUnavailableError."""

    def __init__(
        self,
        requests: Requests,
        days: DayRollUps,
        meters: Meters,
        catalog: Catalog,
        clock: Clock,
        ids: IdSource,
        *,
        records_at_most: int = RECORDS_AT_MOST,
    ) -> None:
        self._requests = requests
        self._days = days
        self._meters = meters
        self._catalog = catalog
        self._clock = clock
        self._ids = ids
        self._records_at_most = records_at_most

    # ---- writing

    def roll_up_days(
        self,
        tenant_id: str,
        user_id: str,
        *,
        until: datetime | None = None,
        deadline_at_seconds: float | None = None,
    ) -> RolledUp:
        """Roll up all that began before `until` and is old enough.

        Safe to repeat, to run twice at once, and to kill.
        """
        goal = self._goal(until)
        for _ in range(MAX_ROUNDS):
            mark = self._mark(tenant_id, user_id)
            if goal <= mark:
                return RolledUp(mark, 0, complete=True)
            books = Books(self._meters, self._catalog, tenant_id, user_id)
            read = self._read_old(books, mark, goal, deadline_at_seconds)
            through_at = max(mark, read.stopped_at or goal)
            if self._write(books, read, mark, through_at):
                return RolledUp(through_at, read.records, complete=read.stopped_at is None)
        raise StoreUnavailableError("The usage store is busy.")

    def rebuild_day(self, tenant_id: str, user_id: str, day: date) -> RolledUp:
        """Make a day anew from its records, whatever stood there. Raises RecordsGoneError."""
        if start_of(day) < self._oldest():
            raise RecordsGoneError(day.isoformat())
        for _ in range(MAX_ROUNDS):
            # Never less than is rolled up already, by whatever clock.
            goal = min(end_of(day), max(self._goal(None), self._mark(tenant_id, user_id)))
            books = Books(self._meters, self._catalog, tenant_id, user_id)
            seen = self._days.find_day(tenant_id, user_id, day)
            read = _Pass()
            for began_at, records in self._instants(books, start_of(day), goal):
                if not self._take(books, read, began_at, records, most=None):
                    return RolledUp(began_at, 0, complete=False)
            rows = read.days.get(day, {})
            books.add_expired(rows, day)
            if self._days.put_day(tenant_id, user_id, self._rolled(day, goal, rows), seen):
                return RolledUp(goal, read.records, complete=True)
        raise StoreUnavailableError("The usage store is busy.")

    def _read_old(self, books: Books, mark: datetime, goal: datetime, deadline_at_seconds: float | None) -> _Pass:
        """The records in [mark, goal) that are not in their days yet."""
        read = _Pass()
        for began_at, records in self._instants(books, mark, goal):
            day = day_of(began_at)
            if day not in read.days:
                if deadline_at_seconds is not None and self._clock.now_seconds() >= deadline_at_seconds:
                    read.stopped_at = start_of(day)
                    break
                read.days[day] = {}
                seen = self._days.find_day(books.tenant_id, books.user_id, day)
                if seen is not None:
                    read.seen[day] = seen
            if not self._take(books, read, began_at, records, most=self._records_at_most):
                break
        return read

    def _take(
        self, books: Books, read: _Pass, began_at: datetime, records: list[RequestRecord], *, most: int | None
    ) -> bool:
        """Add the records of one instant to their day; False when the reading ends before them."""
        day = day_of(began_at)
        seen = read.seen.get(day)
        if seen is not None and began_at < seen.through_at:
            return True  # in the day already: a run died before it moved the mark
        rows = [row for row in map(books.row_of, records) if row is not None]
        if len(rows) < len(records) or (most is not None and read.records >= most):
            read.stopped_at = began_at
            return False
        for key, sums in rows:
            add_row(read.days.setdefault(day, {}), key, sums)
        read.records += len(rows)
        return True

    def _write(self, books: Books, read: _Pass, mark: datetime, through_at: datetime) -> bool:
        """The days, oldest first, then the mark; False when another run was faster with one of them."""
        # Of a day that still runs, too: a user who never comes back has no other run.
        with_expired = {day for day in books.expired_days() if mark < end_of(day)}
        for day in sorted(with_expired | read.days.keys()):
            seen = read.seen.get(day)
            if day not in read.days:
                seen = self._days.find_day(books.tenant_id, books.user_id, day)
            upto = max(start_of(day), min(through_at, end_of(day)))
            if seen is not None and seen.through_at >= upto:
                continue
            rows = dict(seen.rows) if seen is not None else {}
            for key, sums in read.days.get(day, {}).items():
                add_row(rows, key, sums)
            if day in with_expired:
                books.add_expired(rows, day)
            if not self._days.put_day(books.tenant_id, books.user_id, self._rolled(day, upto, rows), seen):
                return False
        if read.days or with_expired:
            self._days.move_mark(books.tenant_id, books.user_id, through_at)
        return True

    def _rolled(self, day: date, through_at: datetime, rows: Rows) -> DayRollUp:
        return DayRollUp(day, through_at, rows, self._ids.new_id(8))

    # ---- reading

    def days(self, tenant_id: str, user_id: str, first: date, last: date, *, bounded: bool = True) -> DaysUse:
        """The days from `first` to `last`, both included, exact to now. Days of no use have no rows.

        Whole days that are not rolled up yet are, on the way. Not `bounded`, it is exact however much there is to read:
        for one day, and for who has the time.
        """
        most = self._records_at_most if bounded else None
        mark = self._roll_up_on_the_way(tenant_id, user_id)
        stored = {rolled.day: rolled for rolled in self._days.list_days(tenant_id, user_id, first, last)}
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        read = _Pass(days={day: dict(rolled.rows) for day, rolled in stored.items()}, seen=stored)
        for began_at, records in self._instants(books, max(mark, start_of(first)), end_of(last)):
            if not self._take_live(books, read, began_at, records, most=most):
                break
        for day in books.expired_days():
            # While their records are there, they are what counts in a day that is not whole; then, what it has stored.
            gone = start_of(day) < self._oldest() + timedelta(days=1)
            if first <= day <= last and not (day in stored and (stored[day].whole or gone)):
                books.add_expired(read.days.setdefault(day, {}), day)
        if read.old_records >= WORTH_ROLLING_UP:
            self.roll_up_days(tenant_id, user_id)
        now = datetime.fromtimestamp(self._clock.now_seconds(), UTC)
        return DaysUse(read.days, read.stopped_at or min(now, end_of(last)), exact=read.stopped_at is None)

    def period_use(self, tenant_id: str, user_id: str, period: UsagePeriod) -> PeriodUse:
        """What the records say of one usage period, whatever day they are of."""
        # A call that began shortly before the period was admitted in it.
        first = day_of(period.start_at - timedelta(seconds=LONGEST_CALL_SECONDS))
        use = self.days(tenant_id, user_id, first, day_of(period.end_at))
        of_kind: dict[RowKind, list[Sums]] = {kind: [] for kind in RowKind}
        for rows in use.rows.values():
            for key, sums in rows.items():
                if key.period_id == period.id and key.kind is not RowKind.EXPIRED:
                    of_kind[key.kind].append(sums)
        # A sweep that came days late counts for its period all the same, while its record is kept.
        of_kind[RowKind.EXPIRED] = [
            expired_sums(one) for one in self._meters.list_expired(tenant_id, user_id) if one.period_id == period.id
        ]
        return PeriodUse(
            requests=total(of_kind[RowKind.REQUEST]),
            expired=total(of_kind[RowKind.EXPIRED]),
            unbooked=total(of_kind[RowKind.UNBOOKED]),
            exact=use.exact,
        )

    def live_rows(
        self, tenant_id: str, user_id: str, since: datetime, before: datetime
    ) -> Iterator[tuple[datetime, list[tuple[RowKey, Sums]]]]:
        """Rows of each instant in [since, before) from the records alone, in order; expired reservations first."""
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        for one in sorted(books.expired.values(), key=lambda one: one.swept_at):
            if since <= one.swept_at < before:
                yield one.swept_at, [(RowKey(RowKind.EXPIRED, one.period_id), expired_sums(one))]
        for began_at, records in self._instants(books, since, before):
            yield began_at, [books.row_of(record) or books.open_row_of(record) for record in records]

    def _roll_up_on_the_way(self, tenant_id: str, user_id: str) -> datetime:
        """The mark, after whole days have been rolled up."""
        mark, midnight = self._mark(tenant_id, user_id), start_of(day_of(self._goal(None)))
        if mark >= midnight:
            return mark
        return max(mark, self.roll_up_days(tenant_id, user_id, until=midnight).through_at)

    def _take_live(
        self, books: Books, read: _Pass, began_at: datetime, records: list[RequestRecord], *, most: int | None
    ) -> bool:
        rolled = read.seen.get(day_of(began_at))
        if rolled is not None and began_at < rolled.through_at:
            return True
        if most is not None and read.records >= most:
            read.stopped_at = began_at
            return False
        rows = read.days.setdefault(day_of(began_at), {})
        for record in records:
            add_row(rows, *(books.row_of(record) or books.open_row_of(record)))
        read.records += len(records)
        if began_at < self._goal(None):
            read.old_records += len(records)
        return True

    def _instants(
        self, books: Books, since: datetime, before: datetime
    ) -> Iterator[tuple[datetime, list[RequestRecord]]]:
        """The records in [since, before), those that began at one instant together: a watermark is an instant."""
        pages = self._requests.pages(books.tenant_id, books.user_id, RequestPosition(since), RequestPosition(before))
        for began_at, records in groupby(chain.from_iterable(pages), key=lambda record: record.began_at):
            yield began_at, list(records)

    def _goal(self, until: datetime | None) -> datetime:
        old_enough = datetime.fromtimestamp(self._clock.now_seconds() - ROLL_UP_LAG_SECONDS, UTC)
        return old_enough if until is None else min(until, old_enough)

    def _oldest(self) -> datetime:
        """The first instant of which all records are still there for sure."""
        return datetime.fromtimestamp(self._clock.now_seconds() - RECORD_SECONDS, UTC)

    def _mark(self, tenant_id: str, user_id: str) -> datetime:
        # Nothing was rolled up yet: from the oldest record there can be. DynamoDB is days late to delete some.
        first = start_of(day_of(self._oldest() - timedelta(days=3)))
        return self._days.find_mark(tenant_id, user_id) or first


class Books:
    """What the ledger did with a user's calls, as far as their records alone do not tell."""

    def __init__(self, meters: Meters, catalog: Catalog, tenant_id: str, user_id: str) -> None:
        self.tenant_id = tenant_id
        self.user_id = user_id
        self.expired = {
            (one.period_id, one.reservation_id, one.nonce): one for one in meters.list_expired(tenant_id, user_id)
        }
        self._meters = meters
        self._catalog = catalog
        self._found: dict[str, Meter | None] = {}

    def row_of(self, record: RequestRecord) -> tuple[RowKey, Sums] | None:
        """A record's row; None while its reservation is open, and nobody knows yet what will be charged."""
        if record.booked:
            return _row(self._catalog, record, RowKind.REQUEST, record.charged_tokens, record.written_off_tokens)
        swept = self.expired.get((record.period_id, record.reservation_id, record.nonce))
        if swept is not None and swept.corrected:
            return _row(self._catalog, record, RowKind.REQUEST, swept.charged_tokens, swept.written_off_tokens)
        if swept is not None:
            return _row(self._catalog, record, RowKind.UNBOOKED, 0, 0)
        if self._is_open(record):
            return None
        # The settlement landed although nobody was told.
        return _row(self._catalog, record, RowKind.REQUEST, record.charged_tokens, record.written_off_tokens)

    def open_row_of(self, record: RequestRecord) -> tuple[RowKey, Sums]:
        """Of a record whose reservation is still open: nothing is charged until it ends."""
        return _row(self._catalog, record, RowKind.UNBOOKED, 0, 0)

    def expired_days(self) -> set[date]:
        return {day_of(one.swept_at) for one in self.expired.values()}

    def add_expired(self, rows: Rows, day: date) -> None:
        """Put the day's expired reservations in, in place of any there were."""
        for key in [key for key in rows if key.kind is RowKind.EXPIRED]:
            del rows[key]
        for one in self.expired.values():
            if day_of(one.swept_at) == day:
                add_row(rows, RowKey(RowKind.EXPIRED, one.period_id), expired_sums(one))

    def _is_open(self, record: RequestRecord) -> bool:
        if record.period_id not in self._found:
            self._found[record.period_id] = self._meters.find_named(
                MeterName(self.tenant_id, self.user_id, record.period_id)
            )
        meter = self._found[record.period_id]
        reservation = meter.reservations.get(record.reservation_id) if meter is not None else None
        return reservation is not None and reservation.nonce == record.nonce


def expired_sums(one: ExpiredReservation) -> Sums:
    """A corrected one is told by the request's own record."""
    if one.corrected:
        return Sums(corrected=1)
    return Sums(requests=1, charged_tokens=one.charged_tokens, written_off_tokens=one.written_off_tokens, expired=1)


def _row(
    catalog: Catalog, record: RequestRecord, kind: RowKind, charged_tokens: int, written_off_tokens: int
) -> tuple[RowKey, Sums]:
    counts, parts = record.counts, _parts(catalog, record)
    outcome = {record.outcome.value: 1}
    sums = Sums(
        requests=1,
        estimated_requests=int(record.estimated),
        estimated_tokens=charged_tokens if record.estimated else 0,
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cache_write_5m_tokens=counts.cache_write_5m_tokens,
        cache_write_1h_tokens=counts.cache_write_1h_tokens,
        cache_read_tokens=counts.cache_read_tokens,
        charged_tokens=charged_tokens,
        written_off_tokens=written_off_tokens,
        cost_picousd=record.cost_picousd,
        web_searches=record.web_searches,
        web_fetches=record.web_fetches,
        input_picousd=parts.input_picousd,
        output_picousd=parts.output_picousd,
        cache_write_5m_picousd=parts.cache_write_5m_picousd,
        cache_write_1h_picousd=parts.cache_write_1h_picousd,
        cache_read_picousd=parts.cache_read_picousd,
        web_search_picousd=parts.web_search_picousd,
        **outcome,
    )
    return row_key(record, kind), sums


def row_key(record: RequestRecord, kind: RowKind) -> RowKey:
    return RowKey(
        kind=kind,
        period_id=record.period_id,
        key_id=record.credential_id,
        model=record.model,
        served_model=record.served_model,
        service_tier=record.service_tier,
        inference_geo=record.inference_geo,
        speed=record.speed,
        long_prompt=record.prompt_tokens > LONG_PROMPT_TOKENS,
    )


def _parts(catalog: Catalog, record: RequestRecord) -> CostParts:
    """The record's cost by kind of token; all zero where one price row does not explain it.

    Several models may have worked on one answer, and the catalog of today may have other prices than it had.
    """
    model = catalog.resolve_model(record.served_model or record.model) or catalog.dearest_model
    parts = cost_parts(
        model,
        record.counts,
        record.began_at,
        speed=record.speed,
        service_tier=record.service_tier,
        inference_geo=record.inference_geo,
        web_searches=record.web_searches,
    )
    return parts if parts.total_picousd == record.cost_picousd else CostParts()


assert LONGEST_CALL_SECONDS + TOMBSTONE_SECONDS + 2 * SKEW_SECONDS <= ROLL_UP_LAG_SECONDS
