"""`tollgate notices`: passed usage thresholds that were not told yet, and telling those again that were given up."""

from __future__ import annotations

from itertools import chain, islice
from typing import Annotated

import typer

from tollgate.storage.notices import SHARDS, DueNotice, StoredNotice, due_at
from tollgate_cli.deployment import Deployment, deployed
from tollgate_cli.figures import moment, rfc3339, table_of
from tollgate_cli.output import console, print_json

app = typer.Typer(help="Look after notices of usage.", no_args_is_help=True)

COLUMNS = ("State", "User", "Period", "Of", "Passed", "Noticed", "Attempts", "Operator", "Mail", "Next")


@app.command("list")
@deployed
def list_command(
    deployment: Deployment,
    dead: Annotated[bool, typer.Option("--dead", help="Only those that were given up.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="No more than so many.")] = 200,
) -> None:
    """Notices that wait to be delivered, and those that were given up."""
    waiting: chain[DueNotice] = chain.from_iterable(
        () if dead else deployment.notices.list_waiting(shard) for shard in range(SHARDS)
    )
    entries = islice(chain(deployment.notices.list_dead(), waiting), limit)
    found = [(entry, stored) for entry in entries if (stored := deployment.notices.find(entry)) is not None]
    if deployment.as_json:
        print_json({"notices": [_document(entry, stored) for entry, stored in found]})
        return
    rows = [
        (
            stored.state.value,
            stored.notice.user_id,
            stored.notice.period.id,
            stored.notice.share.unit.value,
            f"{stored.notice.threshold_percent} %",
            moment(stored.notice.noticed_at),
            str(stored.attempts),
            "told" if stored.webhook_sent else "",
            "sent" if stored.mail_sent else "",
            moment(due_at(entry)),
        )
        for entry, stored in found
    ]
    console().print(table_of(f"Notices: {len(rows)}", COLUMNS, rows, right=("Attempts",)))


@app.command()
@deployed
def replay(deployment: Deployment) -> None:
    """Let all notices that were given up wait again: the next minute tries them. This writes."""
    entries = list(deployment.notices.list_dead())
    revived = sum(deployment.notices.revive(entry, deployment.now) for entry in entries)
    if deployment.as_json:
        print_json({"revived": revived})
    else:
        console().print(f"[green]{revived} notices wait to be delivered again.[/]")


def _document(entry: DueNotice, stored: StoredNotice) -> dict[str, object]:
    notice = stored.notice
    return {
        "id": notice.id,
        "state": stored.state.value,
        "user_id": notice.user_id,
        "period_id": notice.period.id,
        "unit": notice.share.unit.value,
        "threshold_percent": notice.threshold_percent,
        "used": notice.share.used,
        "quota": notice.share.quota,
        "noticed_at": rfc3339(notice.noticed_at),
        "attempts": stored.attempts,
        "webhook_sent": stored.webhook_sent,
        "mail_sent": stored.mail_sent,
        "next_at": rfc3339(due_at(entry)),
    }
