"""A user's calls one by one, and their use in hours and minutes: read from the records, with a bound on each answer.

Calls that crashed have no request record. Their expired reservations stand among the records by the instant at which
they were swept, so that no list leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

from tollgate.domain.rollups import RowKey, RowKind, Rows, Sums, add_row
from tollgate.flows.roll_up_usage import Books, expired_sums
from tollgate.storage.requests import RECORD_SECONDS, RequestOutcome, RequestPosition, RequestRecord, Requests

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.domain.sources import Clock
    from tollgate.flows.roll_up_usage import UsageRollUps
    from tollgate.storage.meters import ExpiredReservation, Meters

READ_AT_MOST: Final = 2_000
"""Records looked at for one page, however few of them fit its filter: two megabytes, a fraction of a second."""
READ_AT_ONCE: Final = 250
BUCKET_RECORDS_AT_MOST: Final = 20_000
EXPIRED: Final = "expired"
CORRECTED: Final = "corrected"
_OF_NO_REQUEST: Final = "~"
"""Begins the name of an expired reservation; no request id does."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which calls: those in [since, before) that have all of this. None: any."""

    since: datetime
    before: datetime
    model: str | None = None
    """Asked for, or served."""
    key_id: str | None = None
    outcome: str | None = None

    def takes(self, record: RequestRecord) -> bool:
        return (
            self.model in (None, record.model, record.served_model)
            and self.key_id in (None, record.credential_id)
            and self.outcome in (None, record.outcome.value)
        )

    def takes_expired(self, one: ExpiredReservation) -> bool:
        """Nobody knows an orphan's model and key, so no filter for one finds it."""
        outcome = CORRECTED if one.corrected else EXPIRED
        return (
            self.since <= one.swept_at < self.before
            and self.model is None
            and self.key_id is None
            and self.outcome in (None, outcome)
        )

    @property
    def takes_every_record(self) -> bool:
        return self.model is None and self.key_id is None and self.outcome is None

    @property
    def takes_records(self) -> bool:
        return self.outcome is None or self.outcome in set(RequestOutcome)


@dataclass(frozen=True, slots=True)
class ToldCall:
    """One call, or what is left of it, with what the ledger charged."""

    position: RequestPosition
    key: RowKey
    sums: Sums
    record: RequestRecord | None
    """None: the call crashed; `expired` tells the rest."""
    expired: ExpiredReservation | None


@dataclass(frozen=True, slots=True)
class CallPage:
    """`next`: where to go on; None: nothing is left. Further calls may come after a page without any."""

    calls: tuple[ToldCall, ...]
    next: RequestPosition | None


@dataclass(frozen=True, slots=True)
class Buckets:
    """Rows by the start of their bucket; all that began before `through_at` is in them."""

    rows: dict[datetime, Rows]
    through_at: datetime


class UsageReports:
    """Reads what one user did. Raises StoreUnavailableError."""

    def __init__(
        self,
        roll_ups: UsageRollUps,
        requests: Requests,
        meters: Meters,
        catalog: Catalog,
        clock: Clock,
        *,
        read_at_most: int = READ_AT_MOST,
        read_at_once: int = READ_AT_ONCE,
        bucket_records_at_most: int = BUCKET_RECORDS_AT_MOST,
    ) -> None:
        self.roll_ups = roll_ups
        self._requests = requests
        self._meters = meters
        self._catalog = catalog
        self._clock = clock
        self._read_at_most = read_at_most
        self._read_at_once = read_at_once
        self._bucket_records_at_most = bucket_records_at_most

    def oldest_at(self) -> datetime:
        """Records that began earlier are gone, or may be gone at any time."""
        return datetime.fromtimestamp(self._clock.now_seconds() - RECORD_SECONDS, UTC)

    def newest_calls(
        self, tenant_id: str, user_id: str, wanted: Wanted, after: RequestPosition | None, most: int
    ) -> CallPage:
        """A page of calls, newest first, after the one named."""
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        before = min(after or RequestPosition(wanted.before), RequestPosition(wanted.before), key=_order)
        page_size = most + 1 if wanted.takes_every_record else self._read_at_once
        pages = self._requests.pages(
            tenant_id, user_id, RequestPosition(wanted.since), before, newest_first=True, page_size=page_size
        )
        found: list[ToldCall] = []
        stopped: RequestPosition | None = None
        for looked_at, page in enumerate(pages if wanted.takes_records else (), 1):
            found += [_told(books, record) for record in page if wanted.takes(record)]
            if page and (len(found) > most or looked_at * page_size >= self._read_at_most):
                stopped = _position(page[-1])
                break
        found += [_told_expired(one) for one in books.expired.values() if wanted.takes_expired(one)]
        found = [call for call in found if _order(call.position) < _order(before)]
        found.sort(key=lambda call: _order(call.position), reverse=True)
        if len(found) > most:
            return CallPage(tuple(found[:most]), found[most - 1].position)
        return CallPage(tuple(found), stopped)

    def oldest_calls(
        self, tenant_id: str, user_id: str, wanted: Wanted, after: RequestPosition | None, most: int
    ) -> CallPage:
        """The same, oldest first: what is told once does not move when new calls come."""
        books = Books(self._meters, self._catalog, tenant_id, user_id)
        since = RequestPosition(wanted.since)
        if after is not None:
            # The first place after the one named: no name goes on with this character.
            since = max(since, RequestPosition(after.began_at, f"{after.request_id}!"), key=_order)
        pages = self._requests.pages(tenant_id, user_id, since, RequestPosition(wanted.before))
        records = (record for page in pages for record in page)
        found = [_told(books, record) for record in islice(records, most + 1)]
        stopped = found[-1].position if len(found) > most else None
        found += [
            _told_expired(one)
            for one in books.expired.values()
            if wanted.takes_expired(one)
            and _order(since) <= _order(_expired_position(one))
            and (stopped is None or _order(_expired_position(one)) < _order(stopped))
        ]
        found.sort(key=lambda call: _order(call.position))
        if len(found) > most:
            return CallPage(tuple(found[:most]), found[most - 1].position)
        return CallPage(tuple(found), None)

    def buckets(self, tenant_id: str, user_id: str, since: datetime, before: datetime, width: timedelta) -> Buckets:
        """Use in [since, before) by buckets of less than a day; as many whole ones as may be read, one at least."""
        rows: dict[datetime, Rows] = {}
        read, last_start = 0, since
        for instant, found in self.roll_ups.live_rows(tenant_id, user_id, since, before):
            start = since + (instant - since) // width * width
            of_records = found[0][0].kind is not RowKind.EXPIRED
            if of_records and read >= self._bucket_records_at_most and start > last_start:
                return Buckets({at: of for at, of in rows.items() if at < start}, start)
            for key, sums in found:
                add_row(rows.setdefault(start, {}), key, sums)
            if of_records:
                read, last_start = read + len(found), start
        return Buckets(rows, before)


def _told(books: Books, record: RequestRecord) -> ToldCall:
    key, sums = books.row_of(record) or books.open_row_of(record)
    return ToldCall(_position(record), key, sums, record, None)


def _told_expired(one: ExpiredReservation) -> ToldCall:
    return ToldCall(_expired_position(one), RowKey(RowKind.EXPIRED, one.period_id), expired_sums(one), None, one)


def _position(record: RequestRecord) -> RequestPosition:
    return RequestPosition(record.began_at, record.request_id)


def _expired_position(one: ExpiredReservation) -> RequestPosition:
    return RequestPosition(one.swept_at, f"{_OF_NO_REQUEST}{one.reservation_id}.{one.nonce}")


def _order(position: RequestPosition) -> tuple[datetime, str]:
    """As the table sorts them."""
    return position.began_at, position.request_id
