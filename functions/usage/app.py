"""What the caller has used: the running period, days, single calls, and all of it as a file."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Query
from aws_lambda_powertools.event_handler.openapi.types import OpenAPIResponse

from tollgate.domain.errors import StoreUnavailableError
from tollgate.edge.http_api import HttpApi, refusals
from tollgate.edge.usage_documents import (
    CallsDocument,
    CurrentUsageDocument,
    Day,
    DaysDocument,
    ExportFormat,
    Grouping,
    ToldOutcome,
)
from tollgate.edge.usage_views import (
    EXPORT_CALLS_AT_MOST,
    Cursors,
    calls_view,
    current_usage_view,
    days_view,
    export_of,
    span_of,
    wanted_calls,
)
from tollgate.flows.current_usage import find_current_usage
from tollgate.wiring import UsageTools, build_usage

api: HttpApi[UsageTools] = HttpApi(build_usage, strict_queries=True)
handler = api.handle

From = Annotated[
    Day | None, Query(alias="from", description="First day (UTC); 30 days with the last one if not given.")
]
To = Annotated[Day | None, Query(description="Last day (UTC), included; today if not given.")]
After = Annotated[str | None, Query(min_length=1, max_length=300, description="The last page's `next_after`.")]
KeyId = Annotated[str | None, Query(min_length=1, max_length=64)]
ModelId = Annotated[
    str | None, Query(min_length=1, max_length=100, description="Asked for, or served: `model` or `served_model`.")
]
FILE: dict[int, OpenAPIResponse] = {
    int(HTTPStatus.OK): {
        "description": "The calls; where to go on stands in the headers `link` and `tollgate-next-after`, if it does.",
        "content": {
            "text/csv": {"schema": {"type": "string", "examples": ["at,id,kind,…\r\n"]}},
            "application/jsonl": {"schema": {"type": "string", "examples": ['{"at":"2026-11-20T10:30:00Z",…}\n']}},
        },
    }
}


@api.get("/usage/current", responses=refusals(StoreUnavailableError))
def current() -> CurrentUsageDocument:
    """Used, reserved and remaining by kind, cost, overage, forecast and the reset time; figures as of now."""
    tools = api.tools
    account = tools.accounts.find(api.caller(), fresh=True)
    usage = find_current_usage(account, tools.meters, tools.ledger, tools.clock)
    use = tools.reports.roll_ups.period_use(account.tenant_id, account.user_id, usage.period)
    return CurrentUsageDocument.model_validate(current_usage_view(usage, use, _now()))


@api.get("/usage/daily", responses=refusals(StoreUnavailableError))
def daily(first: From = None, to: To = None, group_by: Grouping = "day") -> DaysDocument:
    """Use by day, exact to now: by model, by key, or as a whole. At most 366 days at once."""
    tools, caller, span = api.tools, api.caller(), span_of(first, to, _now())
    use = tools.reports.roll_ups.days(caller.tenant_id, caller.user_id, span.first, span.last)
    return DaysDocument.model_validate(days_view(use, span, group_by))


@api.get("/usage/requests", responses=refusals(StoreUnavailableError))
def requests(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: After = None,
    model: ModelId = None,
    key_id: KeyId = None,
    outcome: ToldOutcome | None = None,
    first: From = None,
    to: To = None,
) -> CallsDocument:
    """Single calls, newest first; their records are kept for 90 days."""
    caller, span = api.caller(), span_of(first, to, _now())
    cursors = Cursors(caller, "requests", model=model, key_id=key_id, outcome=outcome, first=first, to=to)
    wanted = wanted_calls(span, model, key_id, outcome)
    page = api.tools.reports.newest_calls(caller.tenant_id, caller.user_id, wanted, cursors.position(after), limit)
    return CallsDocument.model_validate(calls_view(page, cursors))


@api.get("/usage/export", responses={**refusals(StoreUnavailableError), **FILE})
def export(
    file_format: Annotated[ExportFormat, Query(alias="format")] = "csv",
    first: From = None,
    to: To = None,
    after: After = None,
) -> Response[str]:
    """Single calls as CSV or JSON lines, oldest first, in pieces of at most 5,000 calls.

    While an answer has the header `link`, the file goes on there: ask until there is none, and put the pieces together.
    """
    caller, span = api.caller(), span_of(first, to, _now())
    query = {"format": file_format, "from": span.first.isoformat(), "to": span.last.isoformat()}
    cursors = Cursors(caller, "export", **query)
    page = api.tools.reports.oldest_calls(
        caller.tenant_id, caller.user_id, wanted_calls(span), cursors.position(after), EXPORT_CALLS_AT_MOST
    )
    piece = export_of(page, cursors, file_format, query, first=after is None)
    return Response(HTTPStatus.OK, content_type=piece.media_type, body=piece.text, headers=dict(piece.headers))


def _now() -> datetime:
    return datetime.fromtimestamp(api.tools.clock.now_seconds(), UTC)
