"""The engine, the people, the slots: rounds of calls run in it, and each is reckoned to the token afterwards."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.books import Books, Held, Violation
from tests.chaos.plans import CUTS, MODEL, PEOPLE, WIDE, Call, Person, UpstreamFate
from tests.chaos.shapes import Shape, shape
from tests.chaos.slots import PEPPER, Result, Slot, run_all, settings
from tests.chaos.upstream import Exchange
from tests.chaos.zygote import Zygote
from tests.support.catalogs import write_catalog
from tests.support.clocks import raise_reported
from tests.support.engines import ExactTable, exact_table
from tollgate.catalog.loader import load_catalog
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.principals import Profile
from tollgate.flows.ledger import Ledger
from tollgate.flows.sweep_meters import expiry_policy, sweep_meters
from tollgate.storage.activity import SHARDS, Activity
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters, meter_of
from tollgate.storage.table import Table
from tollgate.storage.users import Users
from tollgate.wiring import SystemIds

SWEPT_AFTER_SECONDS = 3600.0
GRACE_SECONDS = 4.0
"""A call's answer is complete so soon after its time-out, on a busy machine too."""
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LaterClock:
    seconds: float

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        time.sleep(wait_seconds)


@dataclass(slots=True)
class Report:
    """What one round did and found."""

    seed: int
    figures: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    longest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class User:
    person: Person
    pk: str
    secret: str


class World:
    """Lives for many rounds; users are new in each."""

    def __init__(self, table: ExactTable, folder: Path, zygote: Zygote, *, slots: int, seed: int) -> None:
        self.engine = table.engine
        plans = {person.plan_id: person.catalog_plan for person in (*PEOPLE, WIDE)}
        catalog = write_catalog(folder / "catalog", **plans)
        self._catalog = load_catalog(str(catalog))
        self._client = table.client(attempts=3, connections=20)
        self._table = Table(self._client, table.name)
        self._users_made = 0
        environment = settings(catalog, table.name)
        self.slots = [Slot(number, seed, table.url, zygote, folder, environment) for number in range(slots)]

    def close(self) -> None:
        for slot in self.slots:
            slot.close()
        self._client.close()

    def run(self, seed: int, calls: Callable[[int], Iterable[Call]], people: tuple[Person, ...] = PEOPLE) -> Report:
        """One round: `calls(slot)` on each slot at once, then the reckoning. Nothing of it is left afterwards."""
        users = [self._add_user(person) for person in people]
        books = Books()
        books.caps = {user.pk: user.person.overage_cap_tokens for user in users}
        books.budgets = {user.pk: user.person.budget_tokens for user in users if user.person.budget_tokens is not None}
        for slot in self.slots:
            slot.table.books = books
            slot.upstream.exchanges = {}
        before = self._counts()
        results: list[Result] = []

        def work(slot: Slot) -> None:
            results.extend(slot.serve(call, _event(users[call.user], call)) for call in calls(slot.number))

        run_all(self.slots, work)
        report = Report(seed)
        self._sweep_all(users, report)
        self._reckon(users, books, results, report)
        report.figures.update(self._counts() - before)
        report.figures.update(books.seen)
        report.violations += books.violations
        report.longest_seconds = max((result.seconds for result in results), default=0.0)
        return report

    def unhandled(self) -> list[str]:
        return [line for slot in self.slots for line in slot.unhandled()]

    def leaks(self) -> list[str]:
        return [line for slot in self.slots for line in slot.leaks()]

    def told(self) -> Counter[str]:
        return sum((slot.told() for slot in self.slots), Counter[str]())

    def _counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for slot in self.slots:
            counts.update({f"table_{name}": number for name, number in slot.table.faults.items()})
            counts.update({f"upstream_{name}": number for name, number in slot.upstream.faults.items()})
            counts.update(kills=slot.kills, timeouts=slot.timeouts, starts=slot.starts)
        return counts

    def _add_user(self, person: Person) -> User:
        self._users_made += 1
        user_id = f"u-{self._users_made}"
        now = datetime.now(UTC).replace(microsecond=0)
        secret = mint_api_key(KeyMode.TEST, user_id.encode().ljust(32, b"*"))
        Users(self._table).create_profile(Profile("main", user_id, person.plan_id, plan_version=1, anchor_at=now))
        ApiKeys(self._table).put_key(
            ApiKey(
                id=f"key-{user_id}",
                key_hash=hash_api_key(secret, PEPPER.encode()),
                tenant_id="main",
                user_id=user_id,
                mode=KeyMode.TEST,
                last_four=secret[-4:],
                created_at=now,
                budget_tokens=person.budget_tokens,
            )
        )
        return User(person, f"TENANT#main#USER#{user_id}", secret)

    # ---- after the calls

    def _sweep_all(self, users: list[User], report: Report) -> None:
        """The hourly run at a later hour; then what was still under way lands, and the next hour's run."""
        self._look_back_from_now()
        for slot in self.slots:
            slot.table.wait_for_timers()
        now = time.time()
        self._sweep(users, now + SWEPT_AFTER_SECONDS, report)
        landed = sum(slot.table.deliver_late() for slot in self.slots)
        report.figures["landed_after_the_sweep"] += landed
        if landed:
            self._sweep(users, now + 2 * SWEPT_AFTER_SECONDS, report)

    def _look_back_from_now(self) -> None:
        """Until which hour the runs have looked: not as far as the later hours of the rounds before."""
        hour = int(time.time()) // 3600 * 3600 - 2 * 3600
        for shard in range(SHARDS):
            key = {"PK": {"S": f"ACTIVE#SWEPT#{shard}"}, "SK": {"S": "SWEPT"}}
            item = {**key, "Type": {"S": "SweptActivity"}, "hour": {"N": str(hour)}}
            self._client.put_item(TableName=self._table.name, Item=item)

    def _sweep(self, users: list[User], at_seconds: float, report: Report) -> None:
        """Told to the books by a proxy of its own, without faults."""
        clock, meters = LaterClock(at_seconds), Meters(self._watched())
        ledger = Ledger(meters, clock, SystemIds())
        done = sweep_meters(
            activity=Activity(self._table),
            meters=meters,
            ledger=ledger,
            catalog=self._catalog,
            clock=clock,
            report=raise_reported,
            deadline_at_seconds=at_seconds + 60,
        )
        report.figures["swept_hourly"] += done.expired_reservations
        for item in self._items(users, "USAGE#"):
            meter = meter_of(item)
            if meter.reservations:  # the mark of its activity was lost with the table's answer
                swept = ledger.sweep(meter, expiry_policy(self._catalog, meter))
                report.figures["swept_by_next_call_or_close"] += swept

    def _watched(self) -> Table:
        """The table by a client that tells the books of what it wrote."""
        return Table(_Telling(self._client, self.slots[0].table.books), self._table.name)  # type: ignore[arg-type]

    def _items(self, users: list[User], prefix: str) -> Iterator[Record]:
        for user in users:
            pages = self._client.get_paginator("query").paginate(
                TableName=self._table.name,
                KeyConditionExpression="PK = :pk AND begins_with(SK, :sk)",
                ExpressionAttributeValues={":pk": {"S": user.pk}, ":sk": {"S": prefix}},
                ConsistentRead=True,
            )
            for page in pages:
                yield from page["Items"]

    # ---- the reckoning

    def _reckon(self, users: list[User], books: Books, results: list[Result], report: Report) -> None:
        books.finish()
        for item in self._items(users, "USAGE#"):
            books.reckon_meter(item)
            report.figures["meters"] += 1
            report.figures["settled_tokens"] += int(item["settled"]["N"])
            report.figures["written_off_tokens"] += int(item["written_off"]["N"])
        exchanges = {name: one for slot in self.slots for name, one in slot.upstream.exchanges.items()}
        held: dict[str, list[Held]] = {}
        for one in books.held.values():
            held.setdefault(one.call_id, []).append(one)
        for result in results:
            report.figures["calls"] += 1
            report.figures[f"answered_{result.status}_{result.error_code}".rstrip("_")] += 1
            exchange = exchanges.get(result.call.id, Exchange())
            _judge_call(
                users[result.call.user].person, result, exchange, held.get(result.call.id, []), books, report.figures
            )
            _judge_answer(result, exchange, books)


def _judge_call(
    person: Person, result: Result, exchange: Exchange, held: list[Held], books: Books, figures: Counter[str]
) -> None:
    """What was booked for a call, against what upstream knows of it."""
    call, found = result.call, shape(exchange.shape or result.call.shape, result.call.line_end)
    ends = [end for one in held for end in one.ends]
    charged = sum(end.charged_tokens for end in ends)
    booked = charged + sum(end.written_off_tokens for end in ends)
    amount = sum(one.amount_tokens for one in held)
    if exchange.received > 1:
        books.report("double_call", call.id, f"sent upstream {exchange.received} times")
    if exchange.received and not held:
        books.report("unreserved_call", call.id, "sent upstream without a reservation")
    told = 0 if exchange.refused else found.told_tokens(exchange.sent_bytes)
    passed = found.told_tokens(_same_bytes(result.body, found.data))
    figures["told_tokens"] += told
    by_owner = [end for end in ends if end.kind != "swept"]
    if by_owner and booked < min(told, passed):
        books.report("lost_tokens", call.id, f"{booked} booked, passed on {passed}, upstream told of {told}")
    elif booked < told:
        # Nobody was left to enlarge the reservation to what message_start told, or nobody read on: upstream has
        # generated what no reservation could hold.
        figures["told_beyond_the_reservation_unread" if by_owner else "told_beyond_a_dead_reservation"] += told - booked
    most = max(amount, found.final_tokens) if exchange.received or not by_owner else amount
    if charged > most:
        books.report("double_bill", call.id, f"{charged} charged; reserved {amount}, used {found.final_tokens}: {held}")
    # One that nobody waited for any more is unknown to the function: it may have been processed.
    waited = result.error_code not in ("deadline_reached", "upstream_lost")
    if exchange.refused and waited and any(end.charged_tokens for end in by_owner):
        books.report("double_bill", call.id, f"{charged} charged for a refusal: {held}")
    if call.calm and call.kill is None and call.fate in CUTS and by_owner and person is WIDE:
        _judge_cut(call, found, booked, amount, books)
    read = exchange.whole and passed == found.final_tokens
    if read and by_owner == ends and found.final_at is not None and booked != found.final_tokens:
        books.report("conservation", call.id, f"{booked} booked for an answer of {found.final_tokens}: {held}")


def _judge_cut(call: Call, found: Shape, booked: int, amount: int, books: Books) -> None:
    """To the token: what upstream told, or else all that was reserved, charged or written off."""
    books.seen["cuts_checked"] += 1
    if found.final_at is not None and call.at > found.final_at:
        right = booked == found.final_tokens
    elif found.final_at is not None and call.at >= found.final_at - 2:  # within the empty line that ends the event
        right = booked in (found.final_tokens, amount)
    else:
        right = booked == max(amount, found.told_tokens(call.at))
    if not right:
        books.report("cut", call.id, f"{call.shape} {call.line_end} at {call.at}: {booked} booked of {amount}")


def _judge_answer(result: Result, exchange: Exchange, books: Books) -> None:
    """What the caller got: in time, handled, and byte for byte."""
    call, failed = result.call, result.failed
    if result.seconds > call.seconds + GRACE_SECONDS:
        books.report("hang", call.id, f"{result.seconds:.1f} s with a time-out of {call.seconds} s")
    if failed is not None and not result.killed and failed.kind != "timeout":
        books.report("unhandled", call.id, f"{failed.kind} {failed.error_type}: {failed.message[:200]}")
    if result.status == 500 or result.error_code == "internal_error":
        books.report("unhandled", call.id, f"answered {result.status} {result.error_code}")
    sent = shape(exchange.shape or call.shape, call.line_end).data
    stopped = b"event: error" in result.body
    if exchange.whole and result.status == 200 and failed is None and not stopped and result.body != sent:
        books.report("changed_bytes", call.id, f"{len(result.body)} bytes of {len(sent)}")
    if call.fate is UpstreamFate.WHOLE and not stopped and result.status == 200 and failed is None:
        books.seen["delivered_whole"] += 1


def _same_bytes(one: bytes, other: bytes) -> int:
    """How far they are the same."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (left, right) in pairs if left != right), len(other))


class _Telling:
    """A DynamoDB client whose transactions are told to the books; everything else passes."""

    def __init__(self, client: Any, books: Books) -> None:  # noqa: ANN401  boto3's generated class
        self._client = client
        self._books = books

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._client, name)

    def transact_write_items(self, **request: Any) -> Any:  # noqa: ANN401
        answer = self._client.transact_write_items(**request)
        self._books.applied("sweep", "TransactWriteItems", request, {})
        return answer


def _event(user: User, call: Call) -> bytes:
    body = {
        "model": MODEL,
        "max_tokens": call.max_tokens,
        "stream": True,
        "messages": [{"role": "user", "content": f"chaos call {call.id}!"}],
    }
    headers = {"x-api-key": user.secret, "content-type": "application/json", "anthropic-version": "2023-06-01"}
    if call.idempotency_key is not None:
        headers["idempotency-key"] = call.idempotency_key
    event = {
        "version": "2.0",
        "rawPath": "/v1/messages",
        "rawQueryString": "",
        "headers": headers,
        "requestContext": {"http": {"method": "POST", "path": "/v1/messages"}, "requestId": call.id},
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }
    return json.dumps(event).encode()


@contextmanager
def running_world(folder: Path, *, slots: int, seed: int = 0, mutant: str | None = None) -> Iterator[World]:
    with ExitStack() as stack:
        table = stack.enter_context(exact_table(folder))
        zygote = Zygote(mutant)
        stack.callback(zygote.close)
        world = World(table, folder, zygote, slots=slots, seed=seed)
        stack.callback(world.close)
        yield world
