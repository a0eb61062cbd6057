"""`tollgate export`: users, usage periods or calls, as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer

from tollgate.domain.rollups import day_of, end_of, start_of
from tollgate.storage.requests import RequestPosition
from tollgate_cli.deployment import Deployment, Person, days_option, deployed
from tollgate_cli.figures import safe_cell
from tollgate_cli.output import CommandError, UsageError, aside
from tollgate_cli.requests import ORPHAN_FIELDS, REQUEST_FIELDS, orphan_document, request_document
from tollgate_cli.usage import PERIOD_FIELDS, period_document
from tollgate_cli.users import PROFILE_FIELDS, profile_document


class What(StrEnum):
    USERS = "users"
    PERIODS = "periods"
    REQUESTS = "requests"
    ORPHANS = "orphans"


COLUMNS: Final[dict[What, tuple[str, ...]]] = {
    What.USERS: PROFILE_FIELDS,
    What.PERIODS: ("user_id", *PERIOD_FIELDS),
    What.REQUESTS: REQUEST_FIELDS,
    What.ORPHANS: ("user_id", *ORPHAN_FIELDS),
}
"""Known before the first row, so that a file without any has its head line all the same."""


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
    """Write everything of a kind, user by user.

    --from and --to, both included, are for calls by their begin and orphans by their sweep (90 days are kept).
    """
    if deployment.as_json:
        raise UsageError("An export has --format jsonl in place of --json.")
    if what in (What.USERS, What.PERIODS) and (since or until):
        raise UsageError("--from and --to are for requests and orphans.")
    first, last = days_option(since, until, today=deployment.now.date(), usual_days=93)
    written = 0
    with _opened(output) as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS[what], lineterminator="\n")
        if form is Form.CSV:
            writer.writeheader()
        for person in deployment.each_person("Exporting", user):
            for document in _documents(deployment, person, what, first, last):
                written += 1
                if form is Form.JSONL:
                    file.write(json.dumps(document, separators=(",", ":")) + "\n")
                else:
                    writer.writerow({name: safe_cell(value) for name, value in document.items()})
    aside().print(f"{written:,} rows written.")


def _documents(deployment: Deployment, person: Person, what: What, first: date, last: date) -> Iterator[dict[str, Any]]:
    match what:
        case What.USERS:
            yield profile_document(deployment.profile(person))
        case What.PERIODS:
            for meter in deployment.meters.list_of_user(person.tenant_id, person.user_id):
                yield {"user_id": person.user_id, **period_document(meter, deployment.periods.summary(meter))}
        case What.REQUESTS:
            pages = deployment.requests.pages(
                person.tenant_id, person.user_id, RequestPosition(start_of(first)), RequestPosition(end_of(last))
            )
            books = deployment.books(person)
            yield from (request_document(books, record) for record in chain.from_iterable(pages))
        case What.ORPHANS:
            for orphan in deployment.meters.list_expired(person.tenant_id, person.user_id):
                if first <= day_of(orphan.swept_at) <= last:
                    yield {"user_id": person.user_id, **orphan_document(orphan)}


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        # For its owner alone from the first byte on: it holds addresses and the use of people.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandError(f"{path} exists already; nothing was written.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
    except BaseException:
        # What is not whole is nobody's export, and would be in the way of the next.
        path.unlink(missing_ok=True)
        raise
