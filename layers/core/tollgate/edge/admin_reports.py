"""Usage and cost of one's own account in the shapes of Anthropic's Admin API, by `x-api-key` or Bearer.

A client written for https://platform.claude.com/docs/en/api/admin/usage_report works when its base URL is changed. What
Anthropic has and we have not (workspaces, accounts of an organization) is null, and a filter for one finds nothing.
`tollgate` beside Anthropic's fields tells what has no place in them: estimates, what was written off, crashed calls.

Imported by the routes themselves: the claude function starts without it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import parse_qsl

from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.money import PICOUSD_PER_CENT, decimal
from tollgate.domain.rollups import RowKey, RowKind, Rows, Sums, day_of, end_of, start_of
from tollgate.edge.errors import rfc3339

if TYPE_CHECKING:
    from tollgate.domain.principals import Account
    from tollgate.flows.usage_reports import UsageReports


@dataclass(frozen=True, slots=True)
class _Width:
    """A bucket width: how many buckets a page has when nothing is said, and at most."""

    length: timedelta
    usual: int
    most: int


_DAY: Final = "1d"
_WIDTHS: Final = {
    _DAY: _Width(timedelta(days=1), 7, 31),
    "1h": _Width(timedelta(hours=1), 24, 168),
    "1m": _Width(timedelta(minutes=1), 60, 1440),
}
_PARAMETERS: Final = frozenset({"starting_at", "ending_at", "bucket_width", "group_by", "limit", "page"})
_NAMES_TOLD: Final = 5
_NAME_LENGTH_TOLD: Final = 60
_PAGE: Final = "page_"
_EARLIEST: Final = datetime(2020, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)

_SHORT, _LONG = "0-200k", "200k-1M"
_DIMENSIONS: Final[dict[str, Callable[[RowKey], str | None]]] = {
    "account_id": lambda _: None,
    "api_key_id": lambda key: key.key_id,
    "context_window": lambda key: _LONG if key.long_prompt else _SHORT,
    "inference_geo": lambda key: key.inference_geo or "not_available",
    "model": lambda key: key.served_model or key.model,
    "service_account_id": lambda _: None,
    "service_tier": lambda key: key.service_tier or "standard",
    "speed": lambda key: key.speed or "standard",
    "workspace_id": lambda _: None,
}
_FILTERS: Final = {
    "account_ids": "account_id",
    "api_key_ids": "api_key_id",
    "context_window": "context_window",
    "inference_geos": "inference_geo",
    "models": "model",
    "service_account_ids": "service_account_id",
    "service_tiers": "service_tier",
    "speeds": "speed",
    "workspace_ids": "workspace_id",
}
_TOKEN_KINDS: Final = (
    ("uncached_input_tokens", "input_picousd", "Input Tokens"),
    ("output_tokens", "output_picousd", "Output Tokens"),
    ("cache_read_input_tokens", "cache_read_picousd", "Input Tokens, Cache Read"),
    ("cache_creation.ephemeral_5m_input_tokens", "cache_write_5m_picousd", "Input Tokens, Cache Write (5m)"),
    ("cache_creation.ephemeral_1h_input_tokens", "cache_write_1h_picousd", "Input Tokens, Cache Write (1h)"),
    (None, "unexplained_picousd", "Tokens of several models"),
)
_NOTHING_DESCRIBED: Final[dict[str, str | None]] = {
    "context_window": None,
    "cost_type": None,
    "description": None,
    "inference_geo": None,
    "model": None,
    "service_tier": None,
    "speed": None,
    "token_type": None,
    "workspace_id": None,
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A report as asked for: `count` buckets from `since` on, `more` of them after these."""

    since: datetime
    count: int
    more: bool
    width: _Width
    daily: bool
    group_by: tuple[str, ...]
    filters: Mapping[str, frozenset[str]]

    @property
    def starts(self) -> list[datetime]:
        return [self.since + number * self.width.length for number in range(self.count)]


def usage_report(reports: UsageReports, account: Account, raw_query: str, now: datetime) -> dict[str, object]:
    """`GET /v1/organizations/usage_report/messages`. Raises InvalidRequestError, StoreUnavailableError."""
    asked = _asked(raw_query, now, widths=_WIDTHS, groups=_DIMENSIONS, filters=_FILTERS)
    return _report(reports, account, asked, lambda rows: {"results": _usage_results(rows, asked)})


def cost_report(reports: UsageReports, account: Account, raw_query: str, now: datetime) -> dict[str, object]:
    """`GET /v1/organizations/cost_report`: what Claude cost. Raises InvalidRequestError, StoreUnavailableError."""
    asked = _asked(raw_query, now, widths={_DAY: _WIDTHS[_DAY]}, groups={"workspace_id", "description"}, filters={})
    described = "description" in asked.group_by
    return _report(
        reports,
        account,
        asked,
        lambda rows: {
            "results": _described_costs(rows) if described else _whole_cost(rows),
            "tollgate": _ours(rows.items()),
        },
    )


def _report(
    reports: UsageReports, account: Account, asked: _Asked, told: Callable[[Rows], dict[str, object]]
) -> dict[str, object]:
    rows, through_at = _rows(reports, account, asked) if asked.count else ({}, asked.since)
    whole = [start for start in asked.starts if start + asked.width.length <= through_at]
    has_more = asked.more or len(whole) < asked.count
    return {
        "data": [
            {
                "starting_at": rfc3339(start),
                "ending_at": rfc3339(start + asked.width.length),
                **told(rows.get(start, {})),
            }
            for start in whole
        ],
        "has_more": has_more,
        "next_page": _page_of(whole[-1] + asked.width.length) if has_more and whole else None,
    }


def _rows(reports: UsageReports, account: Account, asked: _Asked) -> tuple[dict[datetime, Rows], datetime]:
    """Rows by start of their bucket, and until when they are exact: to the end of one bucket at least."""
    before = asked.since + asked.count * asked.width.length
    if asked.daily:
        first, last = day_of(asked.since), day_of(before) - timedelta(days=1)
        use = reports.roll_ups.days(account.tenant_id, account.user_id, first, last)
        if not use.exact and use.counted_through_at < end_of(first):
            # More use in a day than one go may read: that day alone, to its end. These routes have the time.
            use, before = (
                reports.roll_ups.days(account.tenant_id, account.user_id, first, first, bounded=False),
                end_of(first),
            )
        return {start_of(day): rows for day, rows in use.rows.items()}, before if use.exact else use.counted_through_at
    if asked.since < reports.oldest_at():
        _refuse("starting_at", "hours and minutes are kept for 90 days; ask for bucket_width=1d before that")
    found = reports.buckets(account.tenant_id, account.user_id, asked.since, before, asked.width.length)
    return found.rows, found.through_at


# ---- results


def _usage_results(rows: Rows, asked: _Asked) -> list[dict[str, object]]:
    groups: dict[tuple[str | None, ...], list[tuple[RowKey, Sums]]] = {}
    for key, sums in rows.items():
        if all(_is_one_of(key, name, wanted) for name, wanted in asked.filters.items()):
            name_of = tuple(_DIMENSIONS[name](key) for name in asked.group_by)
            groups.setdefault(name_of, []).append((key, sums))
    return [
        _usage_result(dict(zip(asked.group_by, values, strict=True)), group)
        for values, group in sorted(groups.items(), key=lambda one: tuple(value or "" for value in one[0]))
    ]


def _is_one_of(key: RowKey, name: str, wanted: frozenset[str]) -> bool:
    """A model is told by the id that was served, and also found by the one that was asked for."""
    return _DIMENSIONS[name](key) in wanted or (name == "model" and key.model in wanted)


def _usage_result(group: Mapping[str, str | None], rows: list[tuple[RowKey, Sums]]) -> dict[str, object]:
    sums = sum((sums for _, sums in rows), Sums())
    return {
        "uncached_input_tokens": sums.input_tokens,
        "cache_creation": {
            "ephemeral_1h_input_tokens": sums.cache_write_1h_tokens,
            "ephemeral_5m_input_tokens": sums.cache_write_5m_tokens,
        },
        "cache_read_input_tokens": sums.cache_read_tokens,
        "output_tokens": sums.output_tokens,
        "server_tool_use": {"web_search_requests": sums.web_searches},
        **{name: group.get(name) for name in _DIMENSIONS},
        "tollgate": _ours(rows),
    }


def _ours(rows: Iterable[tuple[RowKey, Sums]]) -> dict[str, int]:
    """What Anthropic's reports do not know."""
    of_kind = dict.fromkeys(RowKind, Sums())
    for key, sums in rows:
        of_kind[key.kind] += sums
    booked, unbooked = of_kind[RowKind.REQUEST] + of_kind[RowKind.EXPIRED], of_kind[RowKind.UNBOOKED]
    seen = of_kind[RowKind.REQUEST] + unbooked
    return {
        "requests": booked.requests,
        "charged_tokens": booked.charged_tokens,
        "written_off_tokens": booked.written_off_tokens,
        "estimated_requests": seen.estimated_requests,
        "estimated_tokens": seen.estimated_tokens,
        "expired_requests": booked.expired,
        "expired_charged_tokens": of_kind[RowKind.EXPIRED].charged_tokens,
        "unbooked_requests": unbooked.requests,
    }


def _whole_cost(rows: Rows) -> list[dict[str, object]]:
    if not rows:
        return []
    return [_cost(sum(sums.cost_picousd for sums in rows.values()), _NOTHING_DESCRIBED)]


def _described_costs(rows: Rows) -> list[dict[str, object]]:
    amounts: dict[tuple[tuple[str, str | None], ...], int] = {}
    for key, sums in rows.items():
        for description, picousd in _described(key, sums):
            name = tuple(description.items())
            amounts[name] = amounts.get(name, 0) + picousd
    ordered = sorted(amounts.items(), key=lambda one: tuple(value or "" for _, value in one[0]))
    return [_cost(picousd, dict(name)) for name, picousd in ordered if picousd]


def _described(key: RowKey, sums: Sums) -> Iterable[tuple[dict[str, str | None], int]]:
    model = _DIMENSIONS["model"](key)
    of_row = {name: _DIMENSIONS[name](key) for name in ("context_window", "inference_geo", "service_tier", "speed")}
    for token_type, part, words in _TOKEN_KINDS:
        told = {"cost_type": "tokens", "description": f"{model} Usage - {words}", "token_type": token_type}
        yield {**_NOTHING_DESCRIBED, **of_row, "model": model, **told}, getattr(sums, part)
    yield {**_NOTHING_DESCRIBED, "cost_type": "web_search", "description": "Web Search Usage"}, sums.web_search_picousd


def _cost(picousd: int, description: Mapping[str, str | None]) -> dict[str, object]:
    return {"amount": decimal(picousd, PICOUSD_PER_CENT), "currency": "USD", **description}


# ---- parameters


def _asked(
    raw_query: str,
    now: datetime,
    *,
    widths: Mapping[str, _Width],
    groups: Iterable[str],
    filters: Mapping[str, str],
) -> _Asked:
    given: dict[str, list[str]] = {}
    for name, value in parse_qsl(raw_query, keep_blank_values=True):
        given.setdefault(name.removesuffix("[]"), []).append(value)
    if unknown := sorted(given.keys() - _PARAMETERS - filters.keys()):
        # A filter with a typing error would tell the use of everything.
        _refuse(", ".join(name[:_NAME_LENGTH_TOLD] for name in unknown[:_NAMES_TOLD]), "is no parameter of this report")
    width_name = _one(given, "bucket_width") or _DAY
    if width_name not in widths:
        _refuse("bucket_width", f"must be {' or '.join(widths)}")
    width, allowed = widths[width_name], tuple(groups)
    group_by = tuple(dict.fromkeys(given.get("group_by", [])))
    if not set(group_by) <= set(allowed):
        _refuse("group_by", f"must be of {', '.join(sorted(allowed))}")
    starting_at = _one(given, "starting_at")
    if starting_at is None:
        raise InvalidRequestError("starting_at: field required", error_code="missing_field")
    begin = _instant("starting_at", starting_at)
    first, end = _snapped(begin, width), _end(given, begin, width, now)
    since = _page_start(given, first, end, width)
    left = max(0, (end - since) // width.length)
    count = min(_wanted_buckets(given, width), left)
    return _Asked(
        since=since,
        count=count,
        more=count < left,
        width=width,
        daily=width_name == _DAY,
        group_by=group_by,
        filters={filters[name]: frozenset(values) for name, values in given.items() if name in filters},
    )


def _end(given: Mapping[str, list[str]], starting_at: datetime, width: _Width, now: datetime) -> datetime:
    """Buckets end at or before it. Without a word of the caller's, the bucket that runs is the last one."""
    ending_at = _one(given, "ending_at")
    running = _snapped(now, width) + width.length
    if ending_at is None:
        return running
    end = _instant("ending_at", ending_at)
    if end <= starting_at:
        _refuse("ending_at", "must be later than starting_at")
    return min(running, _snapped(end, width))


def _page_start(given: Mapping[str, list[str]], first: datetime, end: datetime, width: _Width) -> datetime:
    page = _one(given, "page")
    if page is None:
        return first
    try:
        start = datetime.fromisoformat(b64decode(page.removeprefix(_PAGE), validate=True).decode())
    except (Base64Error, ValueError):
        _refuse("page", "is not the next_page of a report")
    if start.tzinfo is not UTC or not first <= start <= end or start != _snapped(start, width):
        _refuse("page", "is not the next_page of this report")
    return start


def _page_of(start: datetime) -> str:
    return _PAGE + b64encode(start.isoformat().encode()).decode()


def _wanted_buckets(given: Mapping[str, list[str]], width: _Width) -> int:
    text = _one(given, "limit")
    if text is None:
        return width.usual
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(width.most)) and 1 <= int(text) <= width.most):
        _refuse("limit", f"must be a whole number from 1 to {width.most}")
    return int(text)


def _one(given: Mapping[str, list[str]], name: str) -> str | None:
    return given[name][-1] if name in given else None


def _instant(name: str, text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
        instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        _refuse(name, "must be an instant such as 2026-11-20T00:00:00Z")
    if not _EARLIEST <= instant <= _LATEST:
        _refuse(name, "must be in this century, from 2020 on")
    return instant


def _snapped(instant: datetime, width: _Width) -> datetime:
    return instant - (instant - _EARLIEST) % width.length


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name}: {why}", error_code="invalid_field")
