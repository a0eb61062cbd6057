"""`tollgate export`: users, usage periods or calls, as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from tollgate.domain.rollups import end_of, start_of
from tollgate.storage.requests import RequestPosition
from tollgate_cli.deployment import Deployment, Person, day_option, deployed
from tollgate_cli.figures import safe_cell
from tollgate_cli.output import CommandError, aside
from tollgate_cli.requests import orphan_document, request_document
from tollgate_cli.usage import period_document
from tollgate_cli.users import profile_document


class What(StrEnum):
    USERS = "users"
    PERIODS = "periods"
    REQUESTS = "requests"
    ORPHANS = "orphans"


class Form(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


@deployed
def export(
    deployment: Deployment,
    what: Annotated[What, typer.Argument(help="What to write, one row each.")],
    form: Annotated[Form, typer.Option("--format", help="CSV with a head line, or JSON lines.")] = Form.CSV,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, which must not exist yet; else standard output.")
    ] = None,
    since: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DAY")] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], metavar="DAY")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user: id or address.", metavar="USER")] = None,
) -> None:
    """Write everything of a kind, user by user. --from and --to, both included, are for calls (90 days are kept)."""
    last = day_option(until, deployment.now.date())
    first = day_option(since, last - timedelta(days=92))
    written = 0
    with _opened(output) as file:
        writer: Any = None
        for person in deployment.each_person("Exporting", user):
            for document in _documents(deployment, person, what, first, last):
                written += 1
                if form is Form.JSONL:
                    file.write(json.dumps(document, separators=(",", ":")) + "\n")
                    continue
                if writer is None:
                    writer = csv.DictWriter(file, fieldnames=list(document), lineterminator="\n")
                    writer.writeheader()
                writer.writerow({name: safe_cell(value) for name, value in document.items()})
    aside().print(f"{written:,} rows written.")


def _documents(deployment: Deployment, person: Person, what: What, first: date, last: date) -> Iterator[dict[str, Any]]:
    match what:
        case What.USERS:
            yield profile_document(deployment.profile(person))
        case What.PERIODS:
            for meter in deployment.meters.list_of_user(person.tenant_id, person.user_id):
                yield {"user_id": person.user_id, **period_document(meter)}
        case What.REQUESTS:
            pages = deployment.requests.pages(
                person.tenant_id, person.user_id, RequestPosition(start_of(first)), RequestPosition(end_of(last))
            )
            yield from map(request_document, chain.from_iterable(pages))
        case What.ORPHANS:
            for orphan in deployment.meters.list_expired(person.tenant_id, person.user_id):
                yield {"user_id": person.user_id, **orphan_document(orphan), "corrected": orphan.corrected}


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("x", encoding="utf-8", newline="")
    except FileExistsError:
        raise CommandError(f"{path} exists already; nothing was written.") from None
    with file:
        path.chmod(0o600)  # addresses and use of people
        yield file
