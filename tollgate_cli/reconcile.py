"""`tollgate reconcile`: what must be equal, compared. Status 1 when anything differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from tollgate.domain.rollups import RowKey, Sums
from tollgate.flows.check_summaries import check_summaries
from tollgate.flows.reconcile import (
    TOKEN_KINDS,
    Difference,
    Drift,
    OverageCheck,
    OverageReconciler,
    Reconciler,
    UserCheck,
    permille_of,
)
from tollgate.flows.reconcile import drifts as drifts_of
from tollgate.providers.anthropic_reports import AnthropicReports, ReportError
from tollgate.providers.secrets import is_one_line
from tollgate.providers.stripe_meter import StripeMeter
from tollgate.storage.overage import OverageAccounts
from tollgate.storage.period_summaries import PeriodSummaries
from tollgate_cli.deployment import Deployment, days_option, deployed
from tollgate_cli.figures import count, percent, table_of
from tollgate_cli.output import FAILED, CommandError, UsageError, aside, console, print_json
from tollgate_cli.plans import KeyParameter, Live

app = typer.Typer(help="Compare what must be equal. Reads only.", no_args_is_help=True)

ADMIN_KEY_VARIABLE: Final = "ANTHROPIC_ADMIN_KEY"
ADMIN_URL_VARIABLE: Final = "ANTHROPIC_ADMIN_BASE_URL"
"""Not ANTHROPIC_BASE_URL: where that leads is no business of an admin key."""
MOST_DAYS: Final = 89

OnlyUser = Annotated[str | None, typer.Option("--user", help="Only this user: id or address.", metavar="USER")]
DIFFERENCE_COLUMNS = ("What", "User", "Period or day", "Figure", "By records", "Found", "Apart")


@app.command()
@deployed
def ledger(deployment: Deployment, user: OnlyUser = None) -> None:
    """Meters against request records, roll-ups and the summaries of closed periods, for every user."""
    reader, summaries, checked = _reader(deployment), PeriodSummaries(deployment.table), UserCheck()
    for person in deployment.each_person("Comparing", user):
        checked += reader.check(person.tenant_id, person.user_id)
        closed = check_summaries(deployment.meters, summaries, person.tenant_id, person.user_id)
        checked += UserCheck(tuple(closed))
    if deployment.as_json:
        told = {"differences": list(map(asdict, checked.differences)), "moving": list(map(asdict, checked.moving))}
        print_json(asdict(replace(checked, differences=(), moving=())) | told)
    else:
        _print_differences("Differences", checked.differences, "red")
        _print_differences("Moving: calls ended while we looked; look again at these users", checked.moving, "yellow")
        console().print(_totals(checked))
        if not checked.differences:
            console().print(
                f"[green]No difference:[/] {checked.users:,} users, {checked.periods:,} usage periods,"
                f" {checked.days:,} days and {checked.records:,} records{' agree' if not checked.moving else ''}."
            )
    _fail_if(checked.differences)


@app.command()
@deployed
def stripe(
    deployment: Deployment, user: OnlyUser = None, key_parameter: KeyParameter = None, live: Live = False
) -> None:
    """Overage that our ledger says is owed, against what Stripe's meter counts and its invoices bill."""
    connections = deployment.connections
    key = connections.stripe_key(key_parameter, live=live)
    reader = OverageReconciler(
        OverageAccounts(deployment.table),
        deployment.meters,
        deployment.subscriptions,
        StripeMeter(
            lambda: key,
            deployment.catalog.billing.meter_event_name,
            base_url=connections.stripe_base_url,
            http_client=connections.stripe_wire,
        ),
        deployment.clock,
    )
    checks: list[OverageCheck] = []
    for person in deployment.each_person("Asking Stripe", user):
        checks += reader.check(person.tenant_id, person.user_id)
    different = [check for check in checks if check.differs]
    if deployment.as_json:
        documents = [asdict(check) | {"differs": check.differs} for check in checks]
        print_json({"unit": "hundredths of a cent", "checks": documents, "differences": len(different)})
    else:
        columns = ("User", "What", "Our ledger", "Stripe", "")
        rows = [(check.user_id, check.place, count(check.owed), count(check.told), _verdict(check)) for check in checks]
        console().print(table_of("Overage in hundredths of a cent", columns, rows, right=columns[2:4]))
    _fail_if(different)


@app.command()
@deployed
def anthropic(
    deployment: Deployment,
    since: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DAY")] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], metavar="DAY")] = None,
    tolerance: Annotated[int, typer.Option(min=0, max=1000, help="Permille of drift that is no difference.")] = 0,
    key_id: Annotated[
        list[str] | None,
        typer.Option("--key-id", help="Only what this key of Anthropic's was used for (apikey_…).", metavar="ID"),
    ] = None,
    workspace_id: Annotated[
        list[str] | None,
        typer.Option("--workspace-id", help="Only what was used in this workspace (wrkspc_…).", metavar="ID"),
    ] = None,
) -> None:
    """Our request records against Anthropic's usage report, by day (UTC) and model: needs ANTHROPIC_ADMIN_KEY."""
    admin_key = deployment.connections.environ.get(ADMIN_KEY_VARIABLE, "").strip()
    if not admin_key:
        raise CommandError(f"Set {ADMIN_KEY_VARIABLE} to an admin key of the Anthropic organisation.")
    if not is_one_line(admin_key):
        raise CommandError(f"{ADMIN_KEY_VARIABLE} is not one line of printable ASCII; it is not shown here.")
    today = deployment.now.date()
    first, last = days_option(since, until, today=today - timedelta(days=1), usual_days=7)
    if first < today - timedelta(days=MOST_DAYS):
        raise UsageError(f"Records are kept 90 days: choose --from and --to in the last {MOST_DAYS} days.")
    base_url = deployment.connections.environ.get(ADMIN_URL_VARIABLE, "https://api.anthropic.com")
    try:
        reports = AnthropicReports(lambda: admin_key, base_url, pause=deployment.clock.pause)
        theirs = list(reports.usage(first, last, key_ids=key_id or (), workspace_ids=workspace_id or ()))
    except ReportError as error:
        raise CommandError(str(error)) from error
    found = drifts_of(_our_use(deployment, first, last), theirs, deployment.catalog)
    different = [drift for drift in found if drift.exceeds(tolerance)]
    if deployment.as_json:
        print_json({"days": [_drift_document(drift) for drift in found], "differences": len(different)})
    else:
        _print_drifts(found)
    _fail_if(different)


def _reader(deployment: Deployment) -> Reconciler:
    return Reconciler(deployment.meters, deployment.requests, deployment.days, deployment.catalog, deployment.clock)


def _fail_if(differences: object) -> None:
    if differences:
        raise typer.Exit(FAILED)


def _print_differences(title: str, differences: tuple[Difference, ...], color: str) -> None:
    if not differences:
        return
    rows = [
        (
            each.kind,
            each.user_id,
            each.place,
            each.figure,
            count(each.expected),
            count(each.found),
            f"{each.found - each.expected:+,}",
        )
        for each in differences
    ]
    made = table_of(f"{title}: {len(rows)}", DIFFERENCE_COLUMNS, rows, right=DIFFERENCE_COLUMNS[4:])
    made.border_style = color
    console().print(made)


def _totals(checked: UserCheck) -> Any:  # noqa: ANN401  a table of rich's
    rows = [
        ("orphans: calls whose owner vanished", count(checked.expired), count(checked.expired_tokens)),
        ("calls whose use is an estimate", count(checked.estimated), count(checked.estimated_tokens)),
        ("settlements that were left to the sweep", count(checked.unbooked), ""),
        ("written off", "", count(checked.written_off_tokens)),
        ("open, to be swept", count(checked.unswept), ""),
    ]
    return table_of("No faults, but look", ("What", "Calls", "Tokens"), rows, right=("Calls", "Tokens"))


def _verdict(check: OverageCheck) -> str:
    if check.differs:
        return "[red]differs[/]"
    if check.uncounted:
        return "not counted yet"
    return "equal" if check.told == check.owed else "not all told yet"


def _our_use(deployment: Deployment, first: date, last: date) -> Iterator[tuple[date, RowKey, Sums]]:
    reader = _reader(deployment)
    for person in deployment.each_person("Reading records"):
        yield from reader.use_by_day(person.tenant_id, person.user_id, first, last)


def _print_drifts(found: list[Drift]) -> None:
    columns = ("Day", "Model", "Kind", "Recorded", "Anthropic", "Apart", "Drift", "Estimated", "Orphans that day")
    rows = []
    for drift in found:
        for kind in TOKEN_KINDS:
            ours, theirs = getattr(drift.ours, kind), getattr(drift.theirs, kind)
            if ours == theirs:
                continue
            share = permille_of(theirs - ours, theirs)
            rows.append(
                (
                    drift.day.isoformat(),
                    drift.model,
                    kind.removesuffix("_tokens"),
                    count(ours),
                    count(theirs),
                    f"{theirs - ours:+,}",
                    percent(share),
                    count(drift.estimated),
                    count(drift.expired),
                )
            )
    if rows:
        console().print(table_of("Drift", columns, rows, right=columns[3:]))
        aside().print(
            "Other use of the organisation is drift too: name what is yours (--key-id, --workspace-id).",
            style="dim",
        )
    else:
        console().print(f"[green]No drift[/] on {len(found)} days and models.")


def _drift_document(drift: Drift) -> dict[str, Any]:
    return {
        "day": drift.day.isoformat(),
        "model": drift.model,
        "recorded": asdict(drift.ours),
        "reported": asdict(drift.theirs),
        "drift_tokens": drift.tokens,
        "drift_permille": drift.permille,
        "estimated_requests": drift.estimated,
        "orphans_of_the_day": drift.expired,
    }
