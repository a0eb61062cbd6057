"""`tollgate summaries`: how usage periods were closed, and what came late, is an estimate or is in no record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from tollgate.flows.reconcile import TOKEN_KINDS
from tollgate.storage.period_summaries import PeriodSummaries, PeriodSummary
from tollgate_cli.deployment import Deployment, deployed
from tollgate_cli.figures import count, moment, rfc3339, table_of, usd
from tollgate_cli.output import console, print_json

COLUMNS: Final = (
    "User",
    "Period",
    "Plan",
    "Charged",
    "Written off",
    "Estimated",
    "Orphans",
    "Unbooked",
    "Late",
    "Unrecorded",
    "Cost",
    "Closed",
)
_FIGURES: Final = (
    "plan_id",
    "quota_tokens",
    "charged_tokens",
    "written_off_tokens",
    "settled_requests",
    "cost_picousd",
    "overage_tokens",
    "overage_nanousd",
    "estimated_requests",
    "estimated_tokens",
    "expired_requests",
    "corrected_requests",
    "unbooked_requests",
    "unbooked_picousd",
    "reopened",
    "late_tokens",
    "late_written_off_tokens",
    "late_picousd",
    "unrecorded_tokens",
    "unrecorded_written_off_tokens",
    "unrecorded_picousd",
)


@deployed
def summaries(
    deployment: Deployment,
    user: Annotated[str | None, typer.Option("--user", help="Only this user: id or address.", metavar="USER")] = None,
    unreconciled: Annotated[
        bool, typer.Option("--unreconciled", help="Only those whose records did not add up to the meter.")
    ] = False,
) -> None:
    """How usage periods were closed: what was charged, and of that what came late, was guessed or is in no record."""
    found = [each for each in _found(deployment, user) if not (unreconciled and each.reconciled)]
    if deployment.as_json:
        print_json({"summaries": [summary_document(each) for each in found]})
        return
    console().print(table_of(f"Closed usage periods: {len(found)}", COLUMNS, map(_row, found), right=COLUMNS[3:-1]))


def _found(deployment: Deployment, user: str | None) -> Iterator[PeriodSummary]:
    reader = PeriodSummaries(deployment.table)
    for person in deployment.each_person("Reading", user):
        yield from reader.list_of_user(person.tenant_id, person.user_id)


def _row(summary: PeriodSummary) -> tuple[str, ...]:
    return (
        summary.user_id,
        summary.period.id,
        summary.plan_id,
        count(summary.charged_tokens),
        count(summary.written_off_tokens),
        count(summary.estimated_requests),
        count(summary.expired_requests),
        count(summary.unbooked_requests),
        _beside(summary.late_tokens, summary.late_picousd) if summary.reopened else "",
        "" if summary.reconciled else _beside(summary.unrecorded_tokens, summary.unrecorded_picousd),
        usd(summary.cost_picousd),
        moment(summary.closed_at),
    )


def _beside(tokens: int, picousd: int) -> str:
    return f"{tokens:+,} ({usd(picousd)})"


def summary_document(summary: PeriodSummary) -> dict[str, Any]:
    """All that was kept of a period."""
    return {
        "user_id": summary.user_id,
        "period_id": summary.period.id,
        "start_at": rfc3339(summary.period.start_at),
        "end_at": rfc3339(summary.period.end_at),
        **{name: getattr(summary, name) for name in _FIGURES},
        **{name: getattr(summary.counts, name) for name in TOKEN_KINDS},
        **{f"unrecorded_{name}": getattr(summary.unrecorded_counts, name) for name in TOKEN_KINDS},
        "reconciled": summary.reconciled,
        "first_closed_at": rfc3339(summary.first_closed_at),
        "closed_at": rfc3339(summary.closed_at),
    }
