"""`tollgate plans`: what plans leave their seller, and what Stripe has of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from tollgate.catalog.loader import Catalog
from tollgate.domain.margins import AGENT, CHAT, Mix, PlanMargins, Use, plan_margins
from tollgate.domain.selling import Change
from tollgate.flows.sync_plans import PlansSync, SyncConflictError, SyncUnsettledError
from tollgate.providers.stripe_admin import StripeAdmin
from tollgate_cli import margin_output, sync_output
from tollgate_cli.connections import Connections, read_named_catalog
from tollgate_cli.output import DIFFERENT, FAILED, CommandError, aside, console, failures, print_json

app = typer.Typer(help="Check plans, and bring them to Stripe.", no_args_is_help=True)

WEBHOOK_OUTPUT: Final = "StripeWebhookUrl"
MOST_SECRETS: Final = 10
"""In the parameter: those of both endpoints, and of replaced ones, whose deliveries may still come. Oldest go first."""
_SECRET: Final = re.compile(r"whsec_\S+")
_NAMED_MIXES: Final = {"chat": CHAT, "agent": AGENT}

CatalogName = Annotated[
    str, typer.Option("--catalog", envvar="CATALOG", help="Name of a shipped catalog, or a folder with a plans.toml.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]
At = Annotated[
    datetime | None,
    typer.Option("--at", formats=["%Y-%m-%d"], help="At the prices of this day (today).", metavar="DAY"),
]
KeyParameter = Annotated[
    str | None, typer.Option(help="SSM parameter that holds Stripe's key; else STRIPE_SECRET_KEY.", metavar="NAME")
]
Live = Annotated[bool, typer.Option("--live", help="The key is for the live account, and that is meant.")]
WebhookUrl = Annotated[
    str | None, typer.Option(help="Address of the webhook function. Without it webhooks are left alone.", metavar="URL")
]
Stack = Annotated[str | None, typer.Option(help="Deployed stack to take that address from.", metavar="NAME")]


# --- margins -------------------------------------------------------------------------------------------------------


@app.command()
def lint(context: typer.Context, catalog: CatalogName = "default", at: At = None, as_json: AsJson = False) -> None:
    """Check a catalog: what each plan leaves when all of it is used. Status 1 when a protected plan can lose money."""
    with failures():
        read, moment, use = read_named_catalog(catalog), _moment(context, at), Use()
        reports = _reports(read, moment, use)
        found = list(margin_output.verdicts(read, reports))
        if as_json:
            messages = [{"level": level, "message": message} for level, message in found]
            plans = [margin_output.plan_document(report) for report in reports]
            print_json({"catalog": read.name, "at": str(moment.date()), "messages": messages, "plans": plans})
        else:
            out = console()
            out.print(margin_output.lint_table(read, reports, moment))
            out.print(margin_output.worst_ways(reports))
            out.print(margin_output.assumptions(read, use), style="dim")
            for level, message in found:
                out.print(f"[{'bold red' if level == 'error' else 'yellow'}]{level}:[/] {message}")
            if not any(level == "error" for level, _ in found):
                out.print("[green]No protected plan can lose money.[/]")
    if any(report.fails for report in reports):
        raise typer.Exit(FAILED)


@app.command()
def simulate(
    context: typer.Context,
    catalog: CatalogName = "default",
    plan: Annotated[list[str] | None, typer.Option(help="Only this plan; may be repeated.", metavar="ID")] = None,
    mix: Annotated[
        str, typer.Option(help="chat (75/25), agent (85 % cached), or input/output[/cache writes/cache reads] in %.")
    ] = "chat",
    used: Annotated[int, typer.Option(min=0, max=10_000, help="Percent of the quota; above 100 is overage.")] = 100,
    call_tokens: Annotated[int, typer.Option(min=1, help="Of a call, where plans count calls.")] = 2_000,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Each plan model by model, for a use of your own."""
    with failures():
        read, moment = read_named_catalog(catalog), _moment(context, at)
        use = Use(mix=_mix(mix), used_permille=used * 10, call_tokens=call_tokens)
        unknown = [plan_id for plan_id in plan or () if plan_id not in read.plans]
        if unknown:
            raise CommandError(f"There is no plan {', '.join(unknown)}; there are: {', '.join(read.plans)}.")
        reports = [report for report in _reports(read, moment, use) if not plan or report.plan.id in plan]
        if as_json:
            plans = [margin_output.plan_document(report) for report in reports]
            print_json({"catalog": read.name, "at": str(moment.date()), "used_percent": used, "plans": plans})
            return
        out = console()
        for report in reports:
            out.print(margin_output.simulation_table(report, use))
        out.print(
            "Year: the margin of its typical use. Overage: what a million tokens of it leave at worst.", style="dim"
        )
        out.print(margin_output.assumptions(read, use), style="dim")


def _moment(context: typer.Context, at: datetime | None) -> datetime:
    connections: Connections = context.obj
    return connections.now() if at is None else at.replace(tzinfo=UTC)


def _reports(catalog: Catalog, at: datetime, use: Use) -> list[PlanMargins]:
    models = tuple(catalog.models.values())
    try:
        return [
            plan_margins(plan, models, catalog.billing, at, given=plan.id == catalog.default_plan_id, use=use)
            for plan in catalog.plans.values()
        ]
    except ValueError as error:
        raise CommandError(f"{error}") from error


def _mix(text: str) -> Mix:
    if text in _NAMED_MIXES:
        return _NAMED_MIXES[text]
    parts = text.split("/")
    if not 2 <= len(parts) <= 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise CommandError("--mix is chat, agent, or whole percents like 90/10 or 5/5/5/85.")
    given, output, write, read = (*(int(part) * 10 for part in parts), 0, 0)[:4]
    try:
        return Mix(input=given, output=output, cache_write_5m=write, cache_read=read)
    except ValueError as error:
        raise CommandError("--mix: the parts must add up to 100.") from error


# --- Stripe --------------------------------------------------------------------------------------------------------


@app.command()
def diff(
    context: typer.Context,
    catalog: CatalogName = "default",
    webhook_url: WebhookUrl = None,
    stack: Stack = None,
    key_parameter: KeyParameter = None,
    live: Live = False,
    as_json: AsJson = False,
) -> None:
    """Show what `sync` would do, and do nothing. Status 3 when there is something, 0 when there is not."""
    with failures():
        sync = _sync(context.obj, catalog, webhook_url, stack, key_parameter, live=live)
        changes = _changes_of(sync)
        if as_json:
            print_json({"changes": [sync_output.change_document(change) for change in changes]})
        else:
            _show(changes)
    if changes:
        raise typer.Exit(DIFFERENT)


@app.command("sync")
def sync_command(
    context: typer.Context,
    catalog: CatalogName = "default",
    webhook_url: WebhookUrl = None,
    stack: Stack = None,
    key_parameter: KeyParameter = None,
    live: Live = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store_secret: Annotated[
        str | None,
        typer.Option(help="SSM parameter for a new webhook's signing secret; else it is printed once.", metavar="NAME"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring products, prices, the meter, the portal and webhooks at Stripe to what the catalog says.

    Shows what it will do and asks first. Run it as often as you like: it does what is missing.
    """
    with failures():
        connections: Connections = context.obj
        sync = _sync(connections, catalog, webhook_url, stack, key_parameter, live=live)
        changes = _changes_of(sync)
        if as_json and changes and not yes:
            raise CommandError("--json asks nothing, so it needs --yes.")
        if not as_json:
            _show(changes)
        if changes and not yes and not typer.confirm("Do this?", err=True):
            raise CommandError("Nothing was changed.")
        secrets: list[str] = []
        made = _run(sync, changes, lambda secret: _hand_over(connections, secret, store_secret, secrets))
        if as_json:
            done = [sync_output.change_document(change) for change in made]
            print_json({"changes": done, "webhook_secrets": secrets, "stored_in": store_secret if made else None})
        elif made:
            console().print(f"[green]{len(made)} changes made.[/]")


def _sync(
    connections: Connections,
    catalog: str,
    webhook_url: str | None,
    stack: str | None,
    key_parameter: str | None,
    *,
    live: bool,
) -> PlansSync:
    read = read_named_catalog(catalog)
    key = connections.stripe_key(key_parameter, live=live)
    if webhook_url is None and stack is not None:
        webhook_url = connections.stack_output(stack, WEBHOOK_OUTPUT)
    if webhook_url is not None and not webhook_url.startswith(("https://", "http://127.0.0.1")):
        raise CommandError("The webhook's address must begin with https://.")
    stripe = StripeAdmin(lambda: key, base_url=connections.stripe_base_url, http_client=connections.stripe_wire)
    return PlansSync(read, stripe, webhook_url)


def _changes_of(sync: PlansSync) -> tuple[Change, ...]:
    with aside().status("Reading what Stripe has …"):
        work = sync.find_work()
    if work.conflicts:
        raise CommandError("\n".join(["Nothing was changed.", *work.conflicts]))
    return work.changes


def _show(changes: tuple[Change, ...]) -> None:
    if changes:
        console().print(sync_output.changes_table(changes))
    else:
        console().print("[green]Stripe has what the catalog says.[/]")


def _run(sync: PlansSync, changes: tuple[Change, ...], hand_over: Callable[[str], None]) -> list[Change]:
    made: list[Change] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    try:
        with Progress(*columns, console=aside(), transient=True) as progress:
            task = progress.add_task("Starting", total=len(changes))

            def done(change: Change) -> None:
                made.append(change)
                progress.update(task, advance=1, description=f"{change.action} {change.kind} {change.name}")

            sync.run(hand_over=hand_over, done=done, approved=changes)
    except SyncConflictError as error:
        raise CommandError("\n".join(error.conflicts)) from error
    except SyncUnsettledError as error:
        raise CommandError(
            "Stripe changed meanwhile. Is another sync running? Look again with `tollgate plans diff`."
        ) from error
    return made


def _hand_over(connections: Connections, secret: str, parameter: str | None, shown: list[str]) -> None:
    """Stripe tells a signing secret once: store it where the function reads it, or show it."""
    if parameter is None:
        shown.append(secret)
        aside().print(f"Signing secret of the new webhook, shown once: [bold]{secret}[/]", soft_wrap=True)
        return
    # Deliveries signed with the former secret may still come: the function tries all that are here.
    former = _SECRET.findall(connections.read_parameter(parameter))
    connections.store_parameter(parameter, " ".join([secret, *former][:MOST_SECRETS]))
