"""`tollgate requests`: a user's calls, newest first, and the calls whose owner vanished."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Annotated, Any, Final

import typer

from tollgate.domain.rollups import RowKind
from tollgate.flows.roll_up_usage import Books, expired_sums
from tollgate.storage.meters import ExpiredReservation
from tollgate.storage.requests import RequestOutcome, RequestPosition, RequestRecord
from tollgate_cli.deployment import EARLIEST_DAY, LATEST_DAY, Deployment, deployed
from tollgate_cli.figures import count, moment, rfc3339, said, table_of, usd
from tollgate_cli.output import UsageError, aside, console, print_json
from tollgate_cli.users import Named

COLUMNS = ("Began (UTC)", "Model", "Outcome", "In", "Out", "Charged", "Written off", "Cost", "ms", "Key", "Request")
PAGE = 200
KEPT = timedelta(days=95)
"""Longer than DynamoDB takes to delete them."""
REQUEST_FIELDS: Final = (
    "request_id",
    "user_id",
    "began_at",
    "period_id",
    "plan_id",
    "credential_id",
    "model",
    "served_model",
    "outcome",
    "estimated",
    "kind",
    "reservation_id",
    "streamed",
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "web_searches",
    "charged_tokens",
    "written_off_tokens",
    "cost_picousd",
    "duration_ms",
    "first_byte_ms",
    "upstream_request_id",
)
"""Of request_document, in order."""
ORPHAN_FIELDS: Final = (
    "period_id",
    "reservation_id",
    "swept_at",
    "corrected",
    "amount_tokens",
    "charged_tokens",
    "written_off_tokens",
)
"""Of orphan_document."""


@deployed
def requests(
    deployment: Deployment,
    user: Named,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at a time.")] = 50,
    before: Annotated[
        str | None, typer.Option(help="Only what began before this instant, as JSON spells it.", metavar="INSTANT")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only calls of this model.", metavar="ID")] = None,
    key: Annotated[str | None, typer.Option(help="Only calls with this key.", metavar="ID")] = None,
    outcome: Annotated[RequestOutcome | None, typer.Option(help="Only calls that ended so.")] = None,
    estimated: Annotated[bool, typer.Option("--estimated", help="Only calls whose use is an estimate.")] = False,
) -> None:
    """A user's calls, newest first; records are kept 90 days. Orphans, whose records nobody wrote, come below."""
    person = deployment.person(user)
    until = deployment.now + timedelta(hours=1) if before is None else _instant(before)
    pages = deployment.requests.pages(
        person.tenant_id,
        person.user_id,
        RequestPosition(deployment.now - KEPT),
        RequestPosition(until),
        newest_first=True,
        page_size=PAGE,
    )
    wanted = (
        record
        for record in chain.from_iterable(pages)
        if (model is None or model in (record.model, record.served_model))
        and (key is None or record.credential_id == key)
        and (outcome is None or record.outcome is outcome)
        and (record.estimated or not estimated)
    )
    found = list(islice(wanted, limit + 1))
    more, found = len(found) > limit, found[:limit]
    books = deployment.books(person)
    orphans = [each for each in books.expired.values() if not each.corrected]
    if deployment.as_json:
        print_json(
            {
                "user_id": person.user_id,
                "requests": [request_document(books, record) for record in found],
                "next_before": rfc3339(found[-1].began_at) if more else None,
                "orphans": [orphan_document(each) for each in orphans],
            }
        )
        return
    rows = [_row(books, record) for record in found]
    console().print(table_of(f"Calls of {person.user_id}: {len(rows)}", COLUMNS, rows, right=COLUMNS[3:9]))
    if orphans:
        console().print(_orphans(orphans))
    if more:
        aside().print(f"There are more: --before {rfc3339(found[-1].began_at)}", soft_wrap=True)


def _row(books: Books, record: RequestRecord) -> tuple[str, ...]:
    key, sums = books.row_of(record) or books.open_row_of(record)
    states = (("estimated", record.estimated), ("unbooked", key.kind is RowKind.UNBOOKED))
    marks = [word for word, applies in states if applies]
    return (
        f"{record.began_at:%Y-%m-%d %H:%M:%S}",
        record.model,
        ", ".join([record.outcome.value, *marks]),
        count(record.prompt_tokens),
        count(record.counts.output_tokens),
        count(sums.charged_tokens),
        count(sums.written_off_tokens),
        usd(record.cost_picousd),
        count(record.duration_ms),
        said(record.credential_id),
        said(record.request_id),
    )


def _orphans(orphans: list[ExpiredReservation]) -> Any:  # noqa: ANN401  a table of rich's
    columns = ("Swept (UTC)", "Period", "Reservation", "Held", "Charged", "Written off")
    rows = [
        (
            moment(each.swept_at),
            each.period_id,
            said(each.reservation_id),
            count(each.amount_tokens),
            count(each.charged_tokens),
            count(each.written_off_tokens),
        )
        for each in orphans
    ]
    return table_of(f"Orphans, calls whose owner vanished: {len(rows)}", columns, rows, right=columns[3:])


def request_document(books: Books, record: RequestRecord) -> dict[str, Any]:
    """One record as it is exported, with what the ledger charged: of an unbooked one, its orphan has the charge."""
    key, sums = books.row_of(record) or books.open_row_of(record)
    return {
        "request_id": record.request_id,
        "user_id": record.user_id,
        "began_at": rfc3339(record.began_at),
        "period_id": record.period_id,
        "plan_id": record.plan_id,
        "credential_id": record.credential_id,
        "model": record.model,
        "served_model": record.served_model,
        "outcome": record.outcome.value,
        "estimated": record.estimated,
        "kind": key.kind.value,
        "reservation_id": record.reservation_id,
        "streamed": record.streamed,
        "input_tokens": record.counts.input_tokens,
        "output_tokens": record.counts.output_tokens,
        "cache_write_5m_tokens": record.counts.cache_write_5m_tokens,
        "cache_write_1h_tokens": record.counts.cache_write_1h_tokens,
        "cache_read_tokens": record.counts.cache_read_tokens,
        "web_searches": record.web_searches,
        "charged_tokens": sums.charged_tokens,
        "written_off_tokens": sums.written_off_tokens,
        "cost_picousd": record.cost_picousd,
        "duration_ms": record.duration_ms,
        "first_byte_ms": record.first_byte_ms,
        "upstream_request_id": record.upstream_request_id,
    }


def orphan_document(orphan: ExpiredReservation) -> dict[str, Any]:
    """One orphan as it is exported. Of a corrected one, its record has the charge."""
    sums = expired_sums(orphan)
    return {
        "period_id": orphan.period_id,
        "reservation_id": orphan.reservation_id,
        "swept_at": rfc3339(orphan.swept_at),
        "corrected": orphan.corrected,
        "amount_tokens": orphan.amount_tokens,
        "charged_tokens": sums.charged_tokens,
        "written_off_tokens": sums.written_off_tokens,
    }


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{text} is no instant; write it like 2026-11-20T12:00:00Z.") from None
    if not EARLIEST_DAY <= found.date() <= LATEST_DAY:
        raise UsageError(f"--before must be from {EARLIEST_DAY} to {LATEST_DAY}.")
    return found
