"""`tollgate usage`: what a user has used, period by period, and the running one day by day."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Any

import typer

from tollgate.domain.ledger import Meter
from tollgate.domain.rollups import RowKind, Sums, total
from tollgate.flows.reconcile import Reconciler
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
    "Cost",
    "Ends",
)
DAY_COLUMNS = ("Day", "Requests", "Charged", "Written off", "Estimated", "Orphans", "Unbooked", "Cost")


@deployed
def usage(
    deployment: Deployment,
    user: Named,
    days: Annotated[int, typer.Option(min=0, max=89, help="So many last days, one by one.")] = 7,
) -> None:
    """What a user has used: every usage period, and the last days."""
    person = deployment.person(user)
    meters = list(deployment.meters.list_of_user(person.tenant_id, person.user_id))
    by_day = _by_day(deployment, person, days)
    if deployment.as_json:
        documents = [{"day": day.isoformat(), **document} for day, document in by_day.items()]
        print_json(
            {"user_id": person.user_id, "periods": [period_document(each) for each in meters], "days": documents}
        )
        return
    rows = [_period_row(meter) for meter in meters]
    console().print(table_of(f"Usage periods of {person.user_id}", PERIOD_COLUMNS, rows, right=PERIOD_COLUMNS[2:-1]))
    if days:
        lines = [(day.isoformat(), *_day_row(document)) for day, document in by_day.items()]
        console().print(table_of("Days (UTC), from the records", DAY_COLUMNS, lines, right=DAY_COLUMNS[1:]))


def _by_day(deployment: Deployment, person: Person, days: int) -> dict[date, dict[str, int]]:
    if not days:
        return {}
    today = deployment.now.date()
    reader = Reconciler(deployment.meters, deployment.requests, deployment.days, deployment.catalog, deployment.clock)
    found: dict[date, dict[RowKind, list[Sums]]] = {}
    for day, key, sums in reader.use_by_day(person.tenant_id, person.user_id, today - timedelta(days=days - 1), today):
        found.setdefault(day, {}).setdefault(key.kind, []).append(sums)
    return {day: _document({kind: total(sums) for kind, sums in kinds.items()}) for day, kinds in sorted(found.items())}


def _document(kinds: dict[RowKind, Sums]) -> dict[str, int]:
    whole = total(kinds.values())
    return {
        "requests": whole.requests,
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


def period_document(meter: Meter) -> dict[str, Any]:
    """Of one meter, as it stands."""
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
    }


def _period_row(meter: Meter) -> tuple[str, ...]:
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
        usd(meter.cost_picousd),
        moment(meter.key.period.end_at),
    )
