"""The command's groups. What each does is in a module of its own; what it says about errors is here."""

from __future__ import annotations

import typer

from tollgate_cli import events, notices, plans, reconcile, users
from tollgate_cli.connections import Connections
from tollgate_cli.doctor import doctor
from tollgate_cli.export import export
from tollgate_cli.keys import keys
from tollgate_cli.margin import margin
from tollgate_cli.requests import requests
from tollgate_cli.summaries import summaries
from tollgate_cli.usage import usage

app = typer.Typer(
    name="tollgate",
    help="Sell plans and look after a deployment.",
    no_args_is_help=True,
    # Its tracebacks print the values of variables, and some of those are secrets.
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(plans.app, name="plans")
app.add_typer(events.app, name="events")
app.add_typer(users.app, name="users")
app.add_typer(notices.app, name="notices")
app.add_typer(reconcile.app, name="reconcile")
for command in (usage, summaries, keys, requests, margin, export, doctor):
    app.command()(command)


@app.callback()
def connect(context: typer.Context) -> None:
    """Sell plans and look after a deployment."""
    if context.obj is None:
        context.obj = Connections()
