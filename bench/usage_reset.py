"""`make bench-reset`: what a run of the scheduled job costs, by how many users there are and how many are due.

Synthetic users on a real engine (dynoxide, which counts capacity as DynamoDB does): each has a meter in the index of
periods that are not closed, as storage writes it. The many whose periods run are written into the engine's file while
it is stopped, which takes minutes where a million requests would take hours; all else goes through requests. Those
whose period has ended have a profile and request records as well; those who were active have a mark. Then the job's own
flows run, and every answer's capacity is summed. What grows with all users is what must not. Results:
bench/results/usage_reset.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import botocore.session
from botocore.config import Config
from rich.console import Console
from rich.table import Table as Grid

from dev.engines import find_dynoxide, free_port
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import MeterKey
from tollgate.domain.periods import UsagePeriod, period_at
from tollgate.domain.plans import PeriodKind
from tollgate.domain.principals import Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.close_period import CLOSE_LAG_SECONDS, PeriodCloser
from tollgate.flows.ledger import Ledger
from tollgate.flows.roll_up_usage import UsageRollUps
from tollgate.flows.sweep_meters import sweep_meters
from tollgate.storage.activity import Activity
from tollgate.storage.meters import Meters
from tollgate.storage.period_summaries import PeriodSummaries
from tollgate.storage.requests import RequestOutcome, RequestRecord, Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.table import Table
from tollgate.storage.users import Users

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "bench" / "results" / "usage_reset.json"
NAME: Final = "bench"
NOW: Final = datetime(2026, 11, 20, 12, 40, tzinfo=UTC)
CATALOG: Final = load_catalog("default")
PRO: Final = CATALOG.plans["pro"]
RECORDS: Final = 5
"""Of each user who is due."""
ACTIVE: Final = 100
"""Users with a call in this hour, the same in each run."""
BATCH: Final = 25
SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
SETTLED: Final = TokenCounts(90, 10)
PICOUSD: Final = 140_000_000


class FixedClock:
    """Of the job: the day is made up, time stands still."""

    def now_seconds(self) -> float:
        return NOW.timestamp()

    def pause(self, wait_seconds: float) -> None:
        time.sleep(wait_seconds)


class CountedIds:
    """`tollgate.domain.sources.IdSource`."""

    def __init__(self) -> None:
        self._count = 0

    def new_id(self, length: int) -> str:
        self._count += 1
        return str(self._count).rjust(length, "0")

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)


class Journal:
    """Where the flows tell what they do: nowhere."""

    def event(self, name: str, **fields: str | int | bool | None) -> None: ...

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None:
        sys.exit(f"{name}: {error!r} {fields}")

    def measure(self, values: object, *, plan_id: str | None = None, model: str | None = None) -> None: ...


class Catcher:
    """Takes the items that storage puts, instead of storing them one by one."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def put_item(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401  boto3's own form
        self.items.append(request["Item"])
        return {}

    def transact_write_items(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401
        self.items += [part["Put"]["Item"] for part in request["TransactItems"] if "Put" in part]
        return {"ResponseMetadata": {}}


@dataclass(slots=True)
class Tally:
    """Of one run: calls, read and write units, and items that answers carried."""

    calls: Counter[str] = field(default_factory=Counter)
    read_units: float = 0
    write_units: float = 0
    items_read: int = 0

    def take(self, operation: str, answer: dict[str, Any]) -> None:
        self.calls[operation] += 1
        self.items_read += len(answer.get("Items", ())) + ("Item" in answer)
        capacity = answer.get("ConsumedCapacity", ())
        for part in capacity if isinstance(capacity, list) else [capacity]:
            units = part["CapacityUnits"]
            if operation in {"GetItem", "Query"}:
                self.read_units += units
            else:
                self.write_units += units


class Engine:
    """dynoxide with an empty table, in memory."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.tally = Tally()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        session = botocore.session.get_session()
        session.set_credentials("test", "test")
        config = Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=60)
        self.client: Any = session.create_client(
            "dynamodb", region_name="eu-west-1", endpoint_url=f"http://127.0.0.1:{port}", config=config
        )
        self.client.meta.events.register("provide-client-params.dynamodb", _ask_for_capacity)
        self.client.meta.events.register("after-call.dynamodb", self._count)
        self.table = Table(cast("Any", self.client), NAME)

    def _count(self, parsed: dict[str, Any], model: Any, **_: object) -> None:  # noqa: ANN401  botocore's
        if model.name in {"GetItem", "PutItem", "Query", "TransactWriteItems", "UpdateItem", "DeleteItem"}:
            self.tally.take(model.name, parsed) if "Error" not in parsed else None

    def post(self, operation: str, document: dict[str, Any]) -> dict[str, Any]:
        """Without botocore: signing a million items would take longer than storing them."""
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
            "X-Amz-Date": "20261120T120000Z",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20261120/eu-west-1/dynamodb/aws4_request,"
            " SignedHeaders=host, Signature=0",
        }
        self._connection.request("POST", "/", json.dumps(document), headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK:
            sys.exit(f"{operation}: {answer.status} {body[:300]!r}")
        parsed: dict[str, Any] = json.loads(body)
        return parsed

    def load(self, items: Iterable[dict[str, Any]]) -> None:
        batch: list[dict[str, Any]] = []
        for item in items:
            batch.append({"PutRequest": {"Item": item}})
            if len(batch) == BATCH:
                self.post("BatchWriteItem", {"RequestItems": {NAME: batch}})
                batch = []
        if batch:
            self.post("BatchWriteItem", {"RequestItems": {NAME: batch}})


def _ask_for_capacity(params: dict[str, Any], model: Any, **_: object) -> None:  # noqa: ANN401  botocore's
    if "ReturnConsumedCapacity" in model.input_shape.members:
        params["ReturnConsumedCapacity"] = "TOTAL"


@contextmanager
def running(database: Path) -> Iterator[Engine]:
    binary = find_dynoxide()
    if binary is None:
        sys.exit("This needs dynoxide, the engine that counts capacity as DynamoDB does: npm is missing.")
    port = free_port()
    command = [str(binary), "serve", "--port", str(port), "--db-path", str(database)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield _connected(port)
        finally:
            process.terminate()
            process.wait()


def _connected(port: int) -> Engine:
    for _ in range(300):
        try:
            engine = Engine(port)
            engine.post("ListTables", {})
        except ConnectionError:
            time.sleep(0.1)
        else:
            return engine
    sys.exit("dynoxide did not start")


def create_table(engine: Engine) -> None:
    names = ("PK", "SK", "GSI1PK", "GSI1SK")
    keys = [
        [{"AttributeName": partition, "KeyType": "HASH"}, {"AttributeName": sort, "KeyType": "RANGE"}]
        for partition, sort in (names[:2], names[2:])
    ]
    engine.post(
        "CreateTable",
        {
            "TableName": NAME,
            "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in names],
            "KeySchema": keys[0],
            "GlobalSecondaryIndexes": [
                {"IndexName": "GSI1", "KeySchema": keys[1], "Projection": {"ProjectionType": "KEYS_ONLY"}}
            ],
        },
    )


# ---- users


def meter_item(key: MeterKey) -> dict[str, Any]:
    """As storage writes it when the meter is opened."""
    catcher = Catcher()
    Meters(Table(cast("Any", catcher), NAME)).create(key, PRO, 1)
    return catcher.items[0]


def item_size(item: dict[str, Any]) -> int:
    """Bytes by DynamoDB's rules, near enough for units: names, texts, a byte for two digits."""
    return sum(
        len(name) + (len(value["S"]) if "S" in value else (len(value["N"].rstrip("0")) + 1) // 2 + 1)
        for name, value in item.items()
    )


def dormant(number: int) -> MeterKey:
    """A user whose period runs, as for most users of any service at any moment."""
    anchor = NOW - timedelta(seconds=3 * 3600 + number * 7919 % (22 * 24 * 3600))
    return MeterKey("main", f"user-{number:08d}", period_at(PeriodKind.ANCHORED_MONTH, anchor, NOW))


def write_dormant(database: Path, first: int, last: int) -> None:
    """Rows as the engine writes them itself, which `check_dormant` looks at by requests."""
    with closing(sqlite3.connect(database)) as file:
        file.execute("PRAGMA synchronous = OFF")
        for begin in range(first, last, 20_000):
            rows = [meter_item(dormant(number)) for number in range(begin, min(last, begin + 20_000))]
            file.executemany(
                f'INSERT INTO "{NAME}" (pk, sk, item_json, item_size) VALUES (?, ?, ?, ?)',
                (
                    (
                        f"S:{row['PK']['S']}",
                        f"S:{row['SK']['S']}",
                        json.dumps(row, separators=(",", ":")),
                        item_size(row),
                    )
                    for row in rows
                ),
            )
            file.executemany(
                f'INSERT INTO "{NAME}::gsi::GSI1" VALUES (?, ?, ?, ?, ?)',
                (
                    (
                        *(f"S:{row[name]['S']}" for name in ("GSI1PK", "GSI1SK", "PK", "SK")),
                        json.dumps(
                            {name: row[name] for name in ("GSI1PK", "GSI1SK", "PK", "SK")}, separators=(",", ":")
                        ),
                    )
                    for row in rows
                ),
            )
            file.commit()


def check_dormant(engine: Engine, users: int) -> None:
    """The engine takes what was written into its file for its own."""
    for number in (0, users // 2, users - 1):
        key = dormant(number)
        meter = Meters(engine.table).find(key)
        if meter is None or meter.key != key or meter.closed_at is not None:
            sys.exit(f"the engine does not know user {number}")


def due(run: int, count: int) -> Iterator[dict[str, Any]]:
    """Users whose period ended a moment ago, with calls in it."""
    end_at = NOW - timedelta(seconds=CLOSE_LAG_SECONDS)
    period = period_at(PeriodKind.ANCHORED_MONTH, end_at, end_at - timedelta(seconds=1))
    for number in range(count):
        key = MeterKey("main", f"due-{run}-{number:06d}", period)
        catcher = Catcher()
        table = Table(cast("Any", catcher), NAME)
        Users(table).create_profile(Profile("main", key.user_id, PRO.id, 1, end_at))
        for call in range(RECORDS):
            Requests(table).put(_record(key, call))
        used = SETTLED.total_tokens * RECORDS
        counted = {
            "settled": used,
            "remaining": PRO.stored_quota_tokens - used,
            "t_in": SETTLED.input_tokens * RECORDS,
            "t_out": SETTLED.output_tokens * RECORDS,
            "picousd": PICOUSD * RECORDS,
        }
        yield from catcher.items
        yield meter_item(key) | {name: {"N": str(value)} for name, value in counted.items()}


def _record(key: MeterKey, call: int) -> RequestRecord:
    model = next(iter(CATALOG.models))
    return RequestRecord(
        tenant_id=key.tenant_id,
        user_id=key.user_id,
        request_id=f"req_{call}",
        reservation_id=f"r{call}",
        credential_id="key_1",
        period_id=key.period.id,
        plan_id=PRO.id,
        began_at=key.period.end_at - timedelta(hours=call + 1),
        duration_ms=900,
        first_byte_ms=40,
        model=model,
        served_model=model,
        outcome=RequestOutcome.COMPLETE,
        estimated=False,
        counts=SETTLED,
        prompt_tokens=SETTLED.prompt_tokens,
        price_from=date(2026, 1, 1),
        price_max_prompt_tokens=None,
        charged_tokens=SETTLED.total_tokens,
        written_off_tokens=0,
        cost_picousd=PICOUSD,
        streamed=True,
        speed=None,
        service_tier="standard",
        inference_geo=None,
        web_searches=0,
        web_fetches=0,
        upstream_request_id=None,
        nonce=f"n{call}",
    )


def active() -> Iterator[dict[str, Any]]:
    """Users with a call in this hour."""
    catcher = Catcher()
    period = UsagePeriod(NOW - timedelta(days=3), NOW + timedelta(days=27))
    for number in range(ACTIVE):
        key = MeterKey("main", f"active-{number:04d}", period)
        Activity(Table(cast("Any", catcher), NAME)).note(key, NOW.replace(minute=0))
        yield meter_item(key)
    yield from catcher.items


# ---- runs


def run_job(engine: Engine) -> dict[str, Any]:
    """One run of all its parts but Stripe's."""
    meters, clock, ids, journal = Meters(engine.table), FixedClock(), CountedIds(), Journal()
    ledger = Ledger(meters, clock, ids)
    closer = PeriodCloser(
        meters=meters,
        ledger=ledger,
        roll_ups=UsageRollUps(Requests(engine.table), DayRollUps(engine.table), meters, CATALOG, clock, ids),
        summaries=PeriodSummaries(engine.table),
        users=Users(engine.table),
        catalog=CATALOG,
        clock=clock,
        journal=journal,
        hand_over_overage=lambda _: None,
    )
    engine.tally = Tally()
    began, deadline = time.perf_counter(), NOW.timestamp() + 1
    swept = sweep_meters(
        activity=Activity(engine.table),
        meters=meters,
        ledger=ledger,
        catalog=CATALOG,
        clock=clock,
        report=journal.failure,
        deadline_at_seconds=deadline,
    )
    closed = closer.close_due(deadline)
    closer.open_ahead(deadline)
    tally = engine.tally
    return {
        "swept_meters": swept.seen_meters,
        "closed_periods": closed.closed_periods,
        "unreconciled_periods": closed.unreconciled_periods,
        "seconds": round(time.perf_counter() - began, 2),
        "calls": dict(sorted(tally.calls.items())),
        "items_read": tally.items_read,
        "read_units": tally.read_units,
        "write_units": tally.write_units,
    }


def measure(engine: Engine, run: int, users: int, due_users: int) -> dict[str, Any]:
    engine.load(due(run, due_users))
    return {"users": users, "due_users": due_users} | run_job(engine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=1_000_000, help="most users to load")
    parser.add_argument("--due", type=int, default=20, help="users due while all users grow")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        results = _measure_all(Path(folder) / "dynamo.db", console, given)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    _show(console, results)
    return 0


def _measure_all(database: Path, console: Console, given: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    users, runs = 0, list[dict[str, Any]]()
    with running(database) as engine:
        create_table(engine)
        engine.load(active())
        run_job(engine)  # byte code, and the marks of hours long past
    for size in (size for size in SIZES if size <= given.users):
        with console.status(f"writing {size:,} users"):
            write_dormant(database, users, size)
            users = size
        with running(database) as engine:
            check_dormant(engine, users)
            runs.append(measure(engine, len(runs), users, given.due))
        console.print(runs[-1])
    with running(database) as engine:
        by_due = [measure(engine, 100 + count, users, count) for count in (0, given.due // 10, given.due * 5)]
    return {
        "measured_on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}, table on dynoxide",
        "seconds": round(time.perf_counter() - began),
        "active_users": ACTIVE,
        "records_of_a_due_user": RECORDS,
        "by_users": runs,
        "by_due_users": sorted([*by_due, runs[-1]], key=lambda row: int(row["due_users"])),
    }


def _show(console: Console, results: dict[str, Any]) -> None:
    for title, rows in (("all users grow", results["by_users"]), ("due users grow", results["by_due_users"])):
        grid = Grid(
            "users", "due", "closed", "calls", "items read", "read units", "write units", "seconds", title=title
        )
        for row in rows:
            grid.add_row(
                f"{row['users']:,}",
                f"{row['due_users']:,}",
                str(row["closed_periods"]),
                str(sum(row["calls"].values())),
                str(row["items_read"]),
                str(row["read_units"]),
                str(row["write_units"]),
                str(row["seconds"]),
            )
        console.print(grid)


if __name__ == "__main__":
    sys.exit(main())
