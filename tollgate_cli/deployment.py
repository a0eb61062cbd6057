"""The deployment that a command looks at: its table, its catalog, its users. Reads, unless a command says otherwise."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from heapq import merge
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from tollgate.catalog.loader import Catalog
from tollgate.domain.principals import Profile
from tollgate.flows.earnings import PeriodReader
from tollgate.flows.roll_up_usage import Books
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.notices import Notices
from tollgate.storage.period_summaries import PeriodSummaries
from tollgate.storage.requests import Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table
from tollgate.storage.users import SHARDS, Users
from tollgate_cli.connections import Connections, read_named_catalog
from tollgate_cli.output import CommandError, UsageError, aside, failures

POOL_OUTPUT: Final = "UserPoolId"
TABLE_OUTPUT: Final = "TableName"
EARLIEST_DAY: Final = date(2000, 1, 1)
LATEST_DAY: Final = date(2099, 12, 31)

OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "stack": (
        Annotated[str | None, typer.Option("--stack", envvar="TOLLGATE_STACK", help="Deployed stack.", metavar="NAME")],
        None,
    ),
    "table": (
        Annotated[
            str | None,
            typer.Option(
                "--table", envvar="TOLLGATE_TABLE", help="DynamoDB table, instead of the stack's.", metavar="NAME"
            ),
        ],
        None,
    ),
    "endpoint_url": (
        Annotated[
            str | None,
            typer.Option("--endpoint-url", help="Another DynamoDB, such as that of make dev.", metavar="URL"),
        ],
        None,
    ),
    "region": (Annotated[str | None, typer.Option("--region", help="AWS region.", metavar="NAME")], None),
    "tenant": (Annotated[str, typer.Option("--tenant", help="Whose users.", metavar="ID")], "main"),
    "catalog": (
        Annotated[
            str,
            typer.Option("--catalog", envvar="CATALOG", help="Name of a shipped catalog, or a folder.", metavar="NAME"),
        ],
        "default",
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")], False),
}
"""What every command about a deployment takes."""


class CommandClock:
    """`tollgate.domain.sources.Clock` of this machine."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def now_seconds(self) -> float:
        return self._connections.now().timestamp()

    def pause(self, wait_seconds: float) -> None:
        self._connections.pause(wait_seconds)


@dataclass(frozen=True)
class Person:
    """One user, as found."""

    tenant_id: str
    user_id: str
    place: str = ""
    """In the list of users."""


class Deployment:
    """One deployment, opened for one run of a command."""

    def __init__(
        self,
        connections: Connections,
        *,
        stack: str | None,
        table: str | None,
        endpoint_url: str | None,
        region: str | None,
        tenant: str,
        catalog: str,
        as_json: bool,
    ) -> None:
        self.connections = connections
        self.stack = stack
        self.tenant_id = tenant
        self.as_json = as_json
        self.clock = CommandClock(connections)
        self._region = region
        self._endpoint_url = _checked_address(endpoint_url)
        self._table_name = table
        self._catalog_name = catalog

    def client(self, service: str) -> Any:  # noqa: ANN401  any of boto3's
        where = {"region_name": self._region} if self._region else {}
        if service == "dynamodb" and self._endpoint_url:
            where["endpoint_url"] = self._endpoint_url
        return self.connections.aws_client(service, **where) if where else self.connections.aws_client(service)

    @functools.cached_property
    def table(self) -> Table:
        name = self._table_name
        if name is None:
            if self.stack is None:
                raise CommandError("Which deployment? Name the stack (--stack), or its table (--table).")
            name = self.output(TABLE_OUTPUT)
        return Table(self.client("dynamodb"), name)

    @functools.cached_property
    def catalog(self) -> Catalog:
        return read_named_catalog(self._catalog_name)

    @functools.cached_property
    def outputs(self) -> dict[str, str]:
        """Of the stack. Raises CommandError when none was named."""
        if self.stack is None:
            raise CommandError("This needs the stack's name (--stack).")
        answer = self.client("cloudformation").describe_stacks(StackName=self.stack)
        return {each["OutputKey"]: str(each["OutputValue"]) for each in answer["Stacks"][0].get("Outputs", [])}

    def output(self, name: str) -> str:
        """Raises CommandError when the stack has none of this name."""
        if name not in self.outputs:
            raise CommandError(f"Stack {self.stack} has no output {name}. Is it Tollgate's, and its newest version?")
        return self.outputs[name]

    @property
    def users(self) -> Users:
        return Users(self.table)

    @property
    def meters(self) -> Meters:
        return Meters(self.table)

    @property
    def requests(self) -> Requests:
        return Requests(self.table)

    @property
    def days(self) -> DayRollUps:
        return DayRollUps(self.table)

    @property
    def subscriptions(self) -> Subscriptions:
        return Subscriptions(self.table)

    def books(self, person: Person) -> Books:
        """What the ledger did with a user's calls."""
        return Books(self.meters, self.catalog, person.tenant_id, person.user_id)

    @property
    def periods(self) -> PeriodReader:
        """What usage periods came to."""
        summaries = PeriodSummaries(self.table)
        return PeriodReader(self.meters, self.requests, self.days, summaries, self.catalog, self.clock)

    @property
    def notices(self) -> Notices:
        return Notices(self.table)

    @property
    def keys(self) -> ApiKeys:
        return ApiKeys(self.table)

    @property
    def now(self) -> datetime:
        return self.connections.now()

    # ---- people

    def people(self, *, after: str = "") -> Iterator[Person]:
        """All users, oldest first, read as they are wanted."""
        shards = [self.users.list_shard(shard, after=after) for shard in range(SHARDS)]
        return (Person(tenant, user, place) for place, tenant, user in merge(*shards) if tenant == self.tenant_id)

    def person(self, named: str) -> Person:
        """By id or by e-mail address. Raises CommandError when there is none."""
        found = self.by_email(named) if "@" in named else Person(self.tenant_id, named)
        if found is None or self.users.find_profile(found.tenant_id, found.user_id) is None:
            raise CommandError(f"There is no user {named} in tenant {self.tenant_id}.")
        return found

    def profile(self, person: Person) -> Profile:
        """Raises CommandError for an entry of the list whose profile is gone."""
        found = self.users.find_profile(person.tenant_id, person.user_id)
        if found is None:
            raise CommandError(f"User {person.user_id} has no profile.")
        return found

    def by_email(self, address: str) -> Person | None:
        """The user pool knows addresses; without a stack, the profiles are gone through."""
        if self.stack is not None:
            quoted = address.replace("\\", "\\\\").replace('"', '\\"')
            answer = self.client("cognito-idp").list_users(
                UserPoolId=self.output(POOL_OUTPUT), Filter=f'email = "{quoted}"', Limit=2
            )
            for user in answer["Users"]:
                attributes = {each["Name"]: each["Value"] for each in user["Attributes"]}
                return Person(self.tenant_id, attributes["sub"])
            return None
        wanted = address.casefold()
        for person in self.each_person("Looking for the address"):
            profile = self.users.find_profile(person.tenant_id, person.user_id)
            if profile is not None and (profile.email or "").casefold() == wanted:
                return person
        return None

    def each_person(self, what: str, only: str | None = None) -> Iterator[Person]:
        """All users, or the one that is named, with a progress bar on standard error."""
        if only is not None:
            yield self.person(only)
            return
        people = list(self.people())
        columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=aside(), transient=True) as progress:
            yield from progress.track(people, total=len(people))


def deployed(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a command of a function whose first argument is a Deployment: with OPTIONS, and errors in words."""
    own = inspect.signature(command, eval_str=True)
    _, *parameters = own.parameters.values()
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
        for name, (kind, default) in OPTIONS.items()
    ]

    def run(**given: Any) -> None:  # noqa: ANN401  whatever the command takes
        with failures():
            connections: Connections = given.pop("context").obj
            command(Deployment(connections, **{name: given.pop(name) for name in OPTIONS}), **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = own.replace(parameters=[context, *parameters, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (context, *parameters, *shared)}
    return run


def days_option(since: datetime | None, until: datetime | None, *, today: date, usual_days: int) -> tuple[date, date]:
    """(first, last), both included, of --from and --to; so many last days when nothing is said. Raises UsageError."""
    for name, value in (("--from", since), ("--to", until)):
        if value is not None and not EARLIEST_DAY <= value.date() <= LATEST_DAY:
            raise UsageError(f"{name} must be a day from {EARLIEST_DAY} to {LATEST_DAY}.")
    last = today if until is None else until.date()
    first = max(EARLIEST_DAY, last - timedelta(days=usual_days - 1)) if since is None else since.date()
    if first > last:
        raise UsageError(f"--from {first} is later than --to {last}.")
    return first, last


def month_option(text: str | None, now: datetime) -> str:
    """`2026-11`; the present month when nothing is said. Raises UsageError."""
    month = text or f"{now:%Y-%m}"
    if not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", month, re.ASCII):
        raise UsageError(f"{month} is no month; write it like 2026-11.")
    return month


def _checked_address(url: str | None) -> str | None:
    """As botocore takes it. Raises UsageError."""
    try:
        parts = urlsplit(url or "http://x")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError("--endpoint-url must be an address such as http://127.0.0.1:8000.")
    return url
