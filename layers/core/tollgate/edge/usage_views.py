"""What users are told of their use: days, single calls, exports; and the cursors that lead through them."""

from __future__ import annotations

import csv
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from io import StringIO
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlencode

from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.forecast import forecast
from tollgate.domain.money import PICOUSD_PER_NANOUSD, PICOUSD_PER_USD, decimal, dollars
from tollgate.domain.rollups import RowKey, RowKind, Rows, Sums, day_of, days_between, end_of, start_of, total
from tollgate.edge.errors import rfc3339
from tollgate.edge.views import usage_view
from tollgate.flows.usage_reports import CORRECTED, EXPIRED, CallPage, ToldCall, Wanted
from tollgate.storage.requests import RequestPosition

if TYPE_CHECKING:
    from tollgate.domain.principals import Principal
    from tollgate.domain.rollups import PeriodUse
    from tollgate.flows.current_usage import CurrentUsage
    from tollgate.flows.roll_up_usage import DaysUse

MOST_DAYS: Final = 366
USUAL_DAYS: Final = 30
EARLIEST_DAY: Final = date(2000, 1, 1)
LATEST_DAY: Final = date(2099, 12, 31)
"""That can be asked for."""
GROUPS_AT_MOST: Final = 4_000
"""Of one answer: 3 MB or so."""
EXPORT_BYTES_AT_MOST: Final = 5_000_000
"""As JSON text, which is what Lambda counts; it ends an answer at 6 MB."""
EXPORT_CALLS_AT_MOST: Final = 5_000
MEDIA_TYPES: Final = {"csv": "text/csv; charset=utf-8; header=present", "jsonl": "application/jsonl"}
_OUTCOMES_OF_REQUESTS: Final = ("complete", "truncated", "upstream_error", "deadline", "over_quota")
_ID: Final = re.compile(r"[!-~]{1,200}")
_STARTS_A_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True)
class Span:
    """Days (UTC), both included."""

    first: date
    last: date

    @property
    def since(self) -> datetime:
        return start_of(self.first)

    @property
    def before(self) -> datetime:
        return end_of(self.last)


def span_of(first: str | None, last: str | None, now: datetime) -> Span:
    """As asked for; the last 30 days where nothing is said. Raises InvalidRequestError."""
    last_day = _day("to", last) if last is not None else max(day_of(now), _day("from", first) if first else date.min)
    usual = max(EARLIEST_DAY, last_day - timedelta(days=USUAL_DAYS - 1))
    first_day = _day("from", first) if first is not None else usual
    if first_day > last_day:
        _refuse("from", "must not be after to")
    if (last_day - first_day).days >= MOST_DAYS:
        _refuse("from", f"to and from may include {MOST_DAYS} days")
    return Span(first_day, last_day)


def _day(name: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        _refuse(name, "must be a day such as 2026-11-20")


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name}: {why}", error_code="invalid_field")


# ---- the running period


def current_usage_view(usage: CurrentUsage, use: PeriodUse, now: datetime) -> dict[str, object]:
    """The running period: the meter, the forecast, and what the records add up to."""
    meter = usage.meter
    heading = None if meter is None else forecast(meter, now, _came_at(usage))
    return {
        **usage_view(usage),
        "cost": _cost(0 if meter is None else meter.cost_picousd),
        "overage": _overage(0, 0) if meter is None else _overage(meter.overage_tokens, meter.overage_nanousd),
        "forecast": None
        if heading is None
        else {
            "method": "straight_line",
            "used_tokens": heading.used_tokens,
            "used_requests": heading.used_requests,
            "overage": _overage(heading.overage_tokens, heading.overage_nanousd),
            "cost": _cost(heading.cost_picousd),
            "quota_reached_at": None if heading.quota_reached_at is None else rfc3339(heading.quota_reached_at),
        },
        "recorded": _figures_of_kinds(use.requests, use.expired, use.unbooked),
        "exact": use.exact,
    }


def _came_at(usage: CurrentUsage) -> datetime:
    """When the account was made; not its anchor, which a subscription moves later."""
    return usage.account.profile.created_at or usage.period.start_at


def _cost(picousd: int) -> dict[str, object]:
    return {"picousd": picousd, "display": dollars(picousd)}


def _overage(tokens: int, nanousd: int) -> dict[str, object]:
    return {"tokens": tokens, "nanousd": nanousd, "display": dollars(nanousd * PICOUSD_PER_NANOUSD)}


# ---- days


def days_view(use: DaysUse, span: Span, group_by: str) -> dict[str, object]:
    """As many of the days as one answer holds, one at least."""
    data: list[dict[str, object]] = []
    told: list[Rows] = []
    groups, days = 0, days_between(span.first, span.last)
    for day in days:
        rows = use.rows.get(day, {})
        day_groups = _groups(rows, group_by)
        if data and groups + len(day_groups) > GROUPS_AT_MOST:
            break
        groups += len(day_groups)
        told.append(rows)
        data.append({"date": day.isoformat(), "totals": _figures(rows.items()), "groups": day_groups})
    left = days[len(data) :]
    return {
        "first_day": span.first.isoformat(),
        "last_day": span.last.isoformat(),
        "group_by": group_by,
        "data": data,
        "totals": _figures(row for rows in told for row in rows.items()),
        "exact": use.exact,
        "counted_through_at": rfc3339(use.counted_through_at),
        "has_more": bool(left),
        "next_from": left[0].isoformat() if left else None,
    }


def _groups(rows: Rows, group_by: str) -> list[dict[str, object]]:
    if group_by == "day":
        return []
    groups: dict[tuple[str | None, str | None], list[tuple[RowKey, Sums]]] = {}
    for key, sums in rows.items():
        name = (key.model, None) if group_by == "model" else (None, key.key_id)
        groups.setdefault(name, []).append((key, sums))
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] or "", group[0][1] or ""))
    return [{"model": model, "key_id": key_id, **_figures(of_group)} for (model, key_id), of_group in ordered]


def _figures(rows: Iterable[tuple[RowKey, Sums]]) -> dict[str, object]:
    of_kind: dict[RowKind, list[Sums]] = {kind: [] for kind in RowKind}
    for key, sums in rows:
        of_kind[key.kind].append(sums)
    return _figures_of_kinds(*(total(of_kind[kind]) for kind in (RowKind.REQUEST, RowKind.EXPIRED, RowKind.UNBOOKED)))


def _figures_of_kinds(requests: Sums, expired: Sums, unbooked: Sums) -> dict[str, object]:
    # Every call that has a record is in what was seen, and every one that was charged in what was booked.
    booked, seen = requests + expired, requests + unbooked
    return {
        "requests": booked.requests,
        "charged_tokens": booked.charged_tokens,
        "written_off_tokens": booked.written_off_tokens,
        "by_kind": _counts(seen),
        "cost": _cost(seen.cost_picousd),
        "web_searches": seen.web_searches,
        "web_fetches": seen.web_fetches,
        "outcomes": {name: getattr(requests, name) for name in _OUTCOMES_OF_REQUESTS},
        "estimated": {"requests": seen.estimated_requests, "tokens": seen.estimated_tokens},
        "expired": {
            "requests": expired.expired,
            "charged_tokens": expired.charged_tokens,
            "written_off_tokens": expired.written_off_tokens,
            "corrected_requests": expired.corrected,
        },
        "unbooked": {"requests": unbooked.requests, "cost": _cost(unbooked.cost_picousd)},
    }


def _counts(sums: Sums) -> dict[str, int]:
    return {
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "cache_write_5m_tokens": sums.cache_write_5m_tokens,
        "cache_write_1h_tokens": sums.cache_write_1h_tokens,
        "cache_read_tokens": sums.cache_read_tokens,
    }


# ---- single calls


def calls_view(page: CallPage, cursors: Cursors) -> dict[str, object]:
    """A page of calls."""
    return {
        "data": [
            {
                **_call(call),
                "by_kind": _counts(call.sums),
                "cost": _cost(call.sums.cost_picousd),
            }
            for call in page.calls
        ],
        "has_more": page.next is not None,
        "next_after": None if page.next is None else cursors.text(page.next),
    }


def _call(call: ToldCall) -> dict[str, object]:
    record, expired = call.record, call.expired
    lost = CORRECTED if expired is not None and expired.corrected else EXPIRED
    return {
        "id": call.position.request_id,
        "kind": call.key.kind.value,
        "at": rfc3339(call.position.began_at),
        "outcome": lost if record is None else record.outcome.value,
        "period_id": call.key.period_id,
        "plan_id": None if record is None else record.plan_id,
        "key_id": call.key.key_id,
        "model": call.key.model,
        "served_model": call.key.served_model,
        "streamed": None if record is None else record.streamed,
        "estimated": record is None or record.estimated,
        "duration_ms": None if record is None else record.duration_ms,
        "first_byte_ms": None if record is None else record.first_byte_ms,
        "charged_tokens": call.sums.charged_tokens,
        "written_off_tokens": call.sums.written_off_tokens,
        "reserved_tokens": None if expired is None else expired.amount_tokens,
        "web_searches": call.sums.web_searches,
        "web_fetches": call.sums.web_fetches,
        "speed": call.key.speed,
        "service_tier": call.key.service_tier,
        "inference_geo": call.key.inference_geo,
    }


class Cursors:
    """Places in one list: of one user, one route and one filter.

    A cursor says no more than where to go on, in the caller's own records and nobody else's. The digest makes a cursor
    of another list, or of another user, a mistake that is told.
    """

    def __init__(self, principal: Principal, route: str, **filters: str | None) -> None:
        self._list = json.dumps([principal.tenant_id, principal.user_id, route, sorted(filters.items())], default=str)

    def text(self, position: RequestPosition) -> str:
        instant = position.began_at.astimezone(UTC).isoformat()
        body = json.dumps([instant, position.request_id], separators=(",", ":")).encode()
        return urlsafe_b64encode(self._digest(body) + body).decode().rstrip("=")

    def position(self, text: str | None) -> RequestPosition | None:
        """Raises InvalidRequestError for what is no cursor of this list."""
        if text is None:
            return None
        try:
            data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
            position = _position_of(json.loads(data[8:])) if self._digest(data[8:]) == data[:8] else None
        except (ValueError, OverflowError, RecursionError):
            position = None
        # Anybody can compute the digest. What is not exactly as we write it is no cursor, whatever it may mean.
        if position is None or self.text(position) != text:
            _refuse("after", "is not a cursor of this list; filters must stay as they were")
        return position

    def _digest(self, body: bytes) -> bytes:
        return sha256(self._list.encode() + b"\0" + body).digest()[:8]


def _position_of(told: object) -> RequestPosition | None:
    """None: it is not [instant, id] with an instant that a record can have, and an id that a key can hold."""
    if not isinstance(told, list) or [type(each) for each in told] != [str, str]:
        return None
    instant, request_id = datetime.fromisoformat(told[0]), told[1]
    if instant.tzinfo is None or _ID.fullmatch(request_id) is None:
        return None
    return RequestPosition(instant, request_id) if EARLIEST_DAY <= day_of(instant) <= LATEST_DAY else None


def wanted_calls(span: Span, model: str | None = None, key_id: str | None = None, outcome: str | None = None) -> Wanted:
    return Wanted(span.since, span.before, model=model, key_id=key_id, outcome=outcome)


# ---- exports


@dataclass(frozen=True, slots=True)
class Export:
    """One answer of an export. `headers` say where to go on."""

    media_type: str
    headers: Mapping[str, str]
    text: str


def export_of(page: CallPage, cursors: Cursors, format_name: str, query: Mapping[str, str], *, first: bool) -> Export:
    """As many calls of the page as one answer holds. Only the first page of a CSV has the names of its columns."""
    lines, size, last = [], 0, page.next
    if first and format_name == "csv":
        lines.append(_csv_line(_COLUMNS))
    for number, call in enumerate(page.calls):
        fields = _flat(call)
        line = _csv_line([fields[name] for name in _COLUMNS]) if format_name == "csv" else _json_line(fields)
        size += len(json.dumps(line))
        if number and size > EXPORT_BYTES_AT_MOST:
            last = page.calls[number - 1].position
            break
        lines.append(line)
    headers = {"content-disposition": f'attachment; filename="usage.{format_name}"'}
    if last is not None:
        after = cursors.text(last)
        link = f"</usage/export?{urlencode({**query, 'after': after})}>"
        headers |= {"tollgate-next-after": after, "link": f'{link}; rel="next"'}
    return Export(MEDIA_TYPES[format_name], headers, "".join(lines))


_COLUMNS: Final = (
    "at",
    "id",
    "kind",
    "outcome",
    "period_id",
    "plan_id",
    "key_id",
    "model",
    "served_model",
    "streamed",
    "estimated",
    "duration_ms",
    "first_byte_ms",
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "charged_tokens",
    "written_off_tokens",
    "reserved_tokens",
    "cost_picousd",
    "cost_usd",
    "web_searches",
    "web_fetches",
    "speed",
    "service_tier",
    "inference_geo",
)


def _flat(call: ToldCall) -> dict[str, Any]:
    return {
        **_call(call),
        **_counts(call.sums),
        "cost_picousd": call.sums.cost_picousd,
        "cost_usd": decimal(call.sums.cost_picousd, PICOUSD_PER_USD),
    }


def _json_line(fields: Mapping[str, Any]) -> str:
    return json.dumps({name: fields[name] for name in _COLUMNS}, separators=(",", ":")) + "\n"


def _csv_line(values: Sequence[Any]) -> str:
    """By RFC 4180. Text that a spreadsheet would take for a formula is made plain text by an apostrophe."""
    text = StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_STARTS_A_FORMULA):
        return f"'{value}"
    return value
