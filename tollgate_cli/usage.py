"""`tollgate usage`: what a user has used, period by period, and the running one day by day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from itertools import chain
from typing import Annotated, Any, Final

import typer

from tollgate.domain.ledger import Meter
from tollgate.domain.rollups import RowKey, RowKind, Sums, total
from tollgate.flows.reconcile import Reconciler
from tollgate.storage.period_summaries import PeriodSummary
from tollgate_cli.deployment import Deployment, Person, deployed
from tollgate_cli.figures import count, moment, rfc3339, table_of, usd
from tollgate_cli.output import console, print_json
from tollgate_cli.users import Named

PERIOD_COLUMNS = (
    "Period",
    "Plan",
    "Used",
    "Quota",
    "Overage",
    "Owed",
    "Held",
    "Written off",
    "Requests",
    "Estimated",
    "Orphans",
    "Unbooked",
    "Cost",
    "Ends",
)
PERIOD_FIELDS: Final = (
    "period_id",
    "start_at",
    "end_at",
    "plan_id",
    "quota_tokens",
    "settled_tokens",
    "reserved_tokens",
    "written_off_tokens",
    "overage_tokens",
    "overage_nanousd",
    "requests",
    "open_reservations",
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "cost_picousd",
    "estimated_requests",
    "estimated_tokens",
    "expired_requests",
    "corrected_requests",
    "unbooked_requests",
    "unbooked_picousd",
    "unrecorded_tokens",
    "unrecorded_picousd",
    "late_tokens",
    "closed_at",
)
"""Of period_document, in order."""
DAYS_OF_RECORDS: Final = 89
"""Whole days whose records are all still there; of those before, the roll-ups are."""
DAY_COLUMNS = ("Day", "Requests", "Charged", "Written off", "Estimated", "Orphans", "Unbooked", "Cost")


@deployed
def usage(
    deployment: Deployment,
    user: Named,
    days: Annotated[int, typer.Option(min=0, max=3_660, help="So many last days, one by one.")] = 7,
) -> None:
    """What a user has used: every usage period, and the last days."""
    person = deployment.person(user)
    meters = list(deployment.meters.list_of_user(person.tenant_id, person.user_id))
    periods = [(meter, deployment.periods.summary(meter)) for meter in meters]
    by_day = _by_day(deployment, person, days)
    if deployment.as_json:
        documents = [{"day": day.isoformat(), **document} for day, document in by_day.items()]
        print_json(
            {"user_id": person.user_id, "periods": [period_document(*each) for each in periods], "days": documents}
        )
        return
    rows = [_period_row(*each) for each in periods]
    console().print(table_of(f"Usage periods of {person.user_id}", PERIOD_COLUMNS, rows, right=PERIOD_COLUMNS[2:-1]))
    if days:
        lines = [(day.isoformat(), *_day_row(document)) for day, document in by_day.items()]
        console().print(table_of("Days (UTC)", DAY_COLUMNS, lines, right=DAY_COLUMNS[1:]))


def _by_day(deployment: Deployment, person: Person, days: int) -> dict[date, dict[str, int]]:
    if not days:
        return {}
    today = deployment.now.date()
    first = today - timedelta(days=days - 1)
    recorded = max(first, today - timedelta(days=DAYS_OF_RECORDS - 1))
    reader = Reconciler(deployment.meters, deployment.requests, deployment.days, deployment.catalog, deployment.clock)
    found: dict[date, dict[RowKind, list[Sums]]] = {}
    rows = chain(
        _rolled_up(deployment, person, first, recorded - timedelta(days=1)),
        reader.use_by_day(person.tenant_id, person.user_id, recorded, today),
    )
    for day, key, sums in rows:
        found.setdefault(day, {}).setdefault(key.kind, []).append(sums)
    return {day: _document({kind: total(sums) for kind, sums in kinds.items()}) for day, kinds in sorted(found.items())}


def _rolled_up(deployment: Deployment, person: Person, first: date, last: date) -> Iterator[tuple[date, RowKey, Sums]]:
    """Of days whose records are gone."""
    for rolled in deployment.days.list_days(person.tenant_id, person.user_id, first, last):
        for key, sums in rolled.rows.items():
            yield rolled.day, key, sums


def _document(kinds: dict[RowKind, Sums]) -> dict[str, int]:
    """A call once: an unbooked one is counted, and charged, as the orphan that the sweep made of it."""
    whole = total(kinds.values())
    return {
        "requests": whole.requests - kinds.get(RowKind.UNBOOKED, Sums()).requests,
        "charged_tokens": whole.charged_tokens,
        "written_off_tokens": whole.written_off_tokens,
        "estimated_requests": whole.estimated_requests,
        "expired_requests": kinds.get(RowKind.EXPIRED, Sums()).expired,
        "unbooked_requests": kinds.get(RowKind.UNBOOKED, Sums()).requests,
        "cost_picousd": whole.cost_picousd,
    }


def _day_row(document: dict[str, int]) -> tuple[str, ...]:
    *figures, cost = document.values()
    return (*map(count, figures), usd(cost))


def period_document(meter: Meter, summary: PeriodSummary) -> dict[str, Any]:
    """Of one meter, as it stands, with what its records say beside it."""
    return {
        "period_id": meter.key.period.id,
        "start_at": rfc3339(meter.key.period.start_at),
        "end_at": rfc3339(meter.key.period.end_at),
        "plan_id": meter.plan_id,
        "quota_tokens": meter.quota_tokens,
        "settled_tokens": meter.settled_tokens,
        "reserved_tokens": meter.reserved_tokens,
        "written_off_tokens": meter.written_off_tokens,
        "overage_tokens": meter.overage_tokens,
        "overage_nanousd": meter.overage_nanousd,
        "requests": meter.settled_requests,
        "open_reservations": meter.open_count,
        "input_tokens": meter.counts.input_tokens,
        "output_tokens": meter.counts.output_tokens,
        "cache_write_5m_tokens": meter.counts.cache_write_5m_tokens,
        "cache_write_1h_tokens": meter.counts.cache_write_1h_tokens,
        "cache_read_tokens": meter.counts.cache_read_tokens,
        "cost_picousd": meter.cost_picousd,
        "estimated_requests": summary.estimated_requests,
        "estimated_tokens": summary.estimated_tokens,
        "expired_requests": summary.expired_requests,
        "corrected_requests": summary.corrected_requests,
        "unbooked_requests": summary.unbooked_requests,
        "unbooked_picousd": summary.unbooked_picousd,
        "unrecorded_tokens": summary.unrecorded_tokens,
        "unrecorded_picousd": summary.unrecorded_picousd,
        "late_tokens": summary.late_tokens,
        "closed_at": rfc3339(meter.closed_at),
    }


def _period_row(meter: Meter, summary: PeriodSummary) -> tuple[str, ...]:
    return (
        meter.key.period.id,
        meter.plan_id,
        count(meter.settled_tokens),
        count(meter.quota_tokens),
        count(meter.overage_tokens),
        usd(meter.overage_nanousd * 1000),
        count(meter.reserved_tokens),
        count(meter.written_off_tokens),
        count(meter.settled_requests),
        count(summary.estimated_requests),
        count(summary.expired_requests),
        count(summary.unbooked_requests),
        usd(meter.cost_picousd + summary.unbooked_picousd),
        moment(meter.key.period.end_at),
    )
