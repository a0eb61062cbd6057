"""The command's groups. What each does is in a module of its own; what it says about errors is here."""

from __future__ import annotations

import typer

from tollgate_cli import events, plans
from tollgate_cli.connections import Connections

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


@app.callback()
def connect(context: typer.Context) -> None:
    """Sell plans and look after a deployment."""
    if context.obj is None:
        context.obj = Connections()
