"""The simulator's table against a real engine: requests written by the real storage code get the same answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError

from tests.simulation.answers import metadata
from tests.simulation.memory_table import Answer, MemoryTable, Request, write_units
from tests.support.engines import TABLE_NAME, ExactTable, exact_table
from tollgate.domain.ledger import Meter, MeterKey, Reservation
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import ExpiryPolicy, PeriodKind, Plan, QuotaKind
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.storage.meters import Booking, Changing, Expired, KeyStep, Meters, RateStep, RunningMeter
from tollgate.storage.table import Table, attributes, user_pk
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

pytestmark = pytest.mark.engine

OPERATIONS = 2_000
SEED = 20_261_120


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExactTable]:
    with exact_table(tmp_path_factory.mktemp("engine")) as table:
        yield table


def test_the_simulators_table_answers_as_a_real_engine_does(engine: ExactTable) -> None:
    both = _Both(engine)
    driver = _Driver(both, random.Random(SEED))
    for _ in range(OPERATIONS):
        driver.step()

    assert both.applied > OPERATIONS // 5
    assert both.refused > OPERATIONS // 10
    assert both.transactions > OPERATIONS // 10
    assert both.contents(engine) == {(pk, sk): item for pk, sk, item in both.memory.items()}


def test_an_equal_token_is_applied_once(engine: ExactTable) -> None:
    """Both tables: the second of two equal transactions changes nothing and is answered like the first."""
    both = _Both(engine)
    key = {"PK": {"S": "TOKEN"}, "SK": {"S": "A"}}
    both.put_item(TableName=TABLE_NAME, Item={**key, "n": {"N": "0"}})
    update = {
        "TableName": TABLE_NAME,
        "Key": key,
        "UpdateExpression": "SET n = n + :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    for _ in range(2):
        both.transact_write_items(TransactItems=[{"Update": update}], ClientRequestToken="the-same-token")

    assert both.get_item(TableName=TABLE_NAME, Key=key, ConsistentRead=True)["Item"]["n"] == {"N": "1"}


@pytest.mark.parametrize("size", [1023, 1024, 1025])
def test_write_units_change_where_the_engine_changes_them(engine: ExactTable, size: int) -> None:
    if engine.engine != "dynoxide":
        pytest.skip(f"{engine.engine} does not count capacity as AWS does")
    item: dict[str, Any] = {"PK": {"S": "SIZE"}, "SK": {"S": str(size)}, "n": {"N": "-12345"}, "text": {"S": ""}}
    both = _Both(engine)
    from tests.simulation.memory_table import item_size

    item["text"] = {"S": "x" * (size - item_size(item))}
    answer = both.put_item(TableName=TABLE_NAME, Item=item, ReturnConsumedCapacity="TOTAL")

    assert answer["ConsumedCapacity"]["CapacityUnits"] == write_units(None, item)


class _Both:
    """A DynamoDB client that asks the engine and the simulator's table, and compares."""

    def __init__(self, engine: ExactTable) -> None:
        self.real = engine.client()
        self.memory = MemoryTable(TABLE_NAME)
        self.applied = self.refused = self.transactions = 0
        self._tokens = iter(range(10**9))

    def update_item(self, **request: Any) -> Answer:  # noqa: ANN401  boto3's own form
        return self._ask("UpdateItem", request)

    def put_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._ask("PutItem", request)

    def delete_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._ask("DeleteItem", request)

    def get_item(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._ask("GetItem", request)

    def query(self, **request: Any) -> Answer:  # noqa: ANN401
        return self._ask("Query", request)

    def transact_write_items(self, **request: Any) -> Answer:  # noqa: ANN401
        self.transactions += 1
        request.setdefault("ClientRequestToken", f"{id(self)}-{next(self._tokens)}"[-36:])
        return self._ask("TransactWriteItems", request)

    def _ask(self, operation: str, request: Request) -> Answer:
        methods = {
            "UpdateItem": self.real.update_item,
            "PutItem": self.real.put_item,
            "DeleteItem": self.real.delete_item,
            "GetItem": self.real.get_item,
            "Query": self.real.query,
            "TransactWriteItems": self.real.transact_write_items,
        }
        theirs = _outcome(lambda: methods[operation](**request))  # type: ignore[operator]
        ours = _outcome(lambda: self.memory.apply(operation, request, 0.0))
        assert _comparable(operation, ours) == _comparable(operation, theirs), (operation, request)
        if isinstance(ours, ClientError):
            self.refused += 1
            raise ours
        self.applied += operation not in {"GetItem", "Query"}
        return ours

    def contents(self, engine: ExactTable) -> dict[tuple[str, str], Any]:
        found = {}
        for page in engine.client().get_paginator("scan").paginate(TableName=TABLE_NAME):
            for item in page["Items"]:
                found[item["PK"]["S"], item["SK"]["S"]] = item
        return {key: item for key, item in found.items() if key in dict.fromkeys(self._keys())}

    def _keys(self) -> list[tuple[str, str]]:
        return [(pk, sk) for pk, sk, _ in self.memory.items()]


def _outcome(ask: Callable[[], Any]) -> Answer | ClientError:
    try:
        answer: Answer = ask()
    except ClientError as error:
        error.response["ResponseMetadata"] = metadata()  # type: ignore[typeddict-item]
        return error
    return answer


def _comparable(operation: str, outcome: Answer | ClientError) -> object:
    """Everything production code may look at; wording is not."""
    if not isinstance(outcome, ClientError):
        shown: dict[str, Any] = {
            name: outcome[name] for name in ("Attributes", "Item", "ConsumedCapacity") if name in outcome
        }
        if operation == "Query":
            shown["Items"] = [{"PK": item["PK"], "SK": item["SK"]} for item in outcome["Items"]]
        return shown
    response: Any = outcome.response
    reasons = [(reason.get("Code"), reason.get("Item")) for reason in response.get("CancellationReasons", [])]
    return type(outcome).__name__, response["Error"]["Code"], response.get("Item"), reasons


@dataclass(slots=True)
class _Driver:
    """Random operations of the real storage code on few ids, so that most meet something."""

    both: _Both
    rng: random.Random

    def __post_init__(self) -> None:
        table = Table(cast("DynamoDBClient", self.both), TABLE_NAME)
        self.meters, self.users = Meters(table), Users(table)
        self.versions = dict.fromkeys(("ada", "bob"), 1)
        for user in self.versions:
            self.users.create_profile(Profile("main", user, "plan0", 1, _START))

    meters: Meters = None  # type: ignore[assignment]
    users: Users = None  # type: ignore[assignment]
    versions: dict[str, int] = None  # type: ignore[assignment]

    def step(self) -> None:
        rng = self.rng
        user = rng.choice(list(self.versions))
        key = MeterKey("main", user, _PERIODS[rng.randrange(len(_PERIODS))])
        meter = self.meters.find(key)
        if meter is None:
            self.meters.create(key, _plan(rng), self.versions[user] + rng.choice([0, 0, 0, 1]))
            return
        often = (self._reserve, self._reserve, self._settle)
        others = (self._reserve_once, self._settle, self._top_up, self._forbid, self._expire, self._correct)
        plans = (self._change_plan, self._carry_plan, self._write_unchanged, self._forget, self._list)
        rng.choice((*often, *others, *plans))(key, meter)

    def _some_reservation(self, meter: Meter) -> Reservation:
        """Mostly one that is open, sometimes with another amount, sometimes a stranger."""
        rng = self.rng
        if meter.reservations and rng.random() < 0.8:
            found = rng.choice(list(meter.reservations.values()))
            return found if rng.random() < 0.8 else replace(found, amount_tokens=found.amount_tokens + 1)
        return _reservation(rng)

    def _rate(self) -> RateStep | None:
        rng = self.rng
        return rng.choice([None, RateStep(rng.randrange(3000), 500, 1000, idle=rng.random() < 0.5)])

    def _reserve(self, key: MeterKey, meter: Meter) -> None:
        plan = replace(_plan(self.rng), id=meter.plan_id)
        step, reservation = self._key_step(_reservation(self.rng))
        self.meters.reserve(
            key,
            reservation,
            plan=plan,
            plan_version=meter.plan_version + self.rng.choice([0, 0, 0, 1]),
            overage_cap_tokens=meter.overage_cap_tokens,
            rate=self._rate(),
            key_step=step,
        )

    def _key_step(self, reservation: Reservation) -> tuple[KeyStep | None, Reservation]:
        """Now and then the call comes with a key that has a budget, a rate or both."""
        rng = self.rng
        if rng.random() < 0.5:
            return None, reservation
        step = KeyStep(f"key{rng.randrange(2)}", rng.choice([None, 100, 900]), self._rate())
        if step.budget_tokens is None and step.rate is None:
            return None, reservation
        return step, reservation if step.budget_tokens is None else replace(reservation, key_id=step.id)

    def _reserve_once(self, key: MeterKey, meter: Meter) -> None:
        step, reservation = self._key_step(_reservation(self.rng))
        self.meters.reserve_once(
            key,
            reservation,
            plan=_plan(self.rng),
            plan_version=meter.plan_version,
            overage_cap_tokens=meter.overage_cap_tokens,
            rate=self._rate(),
            idempotency_key=f"key-{self.rng.randrange(30)}",
            body_sha256="0" * 64,
            now_seconds=self.rng.choice([1_000, 100_000, 300_000]),
            key_step=step,
        )

    def _settle(self, key: MeterKey, meter: Meter) -> None:
        rng, reservation = self.rng, self._some_reservation(meter)
        others = [name for name in meter.tombstones if name != reservation.id]
        self.meters.settle(
            key,
            reservation,
            _booking(rng, reservation.amount_tokens),
            tombstone_at_seconds=rng.choice([None, 77]),
            drop_tombstones=tuple(rng.sample(others, k=min(len(others), rng.randrange(3)))),
        )

    def _top_up(self, key: MeterKey, meter: Meter) -> None:
        reservation = self._some_reservation(meter)
        bigger = replace(reservation, amount_tokens=reservation.amount_tokens + self.rng.randrange(1, 300))
        cap, budget = meter.overage_cap_tokens + self.rng.choice([0, 0, 1]), self.rng.choice([None, 500, 900])
        self.meters.top_up(key, reservation, bigger, cap, budget)

    def _forbid(self, key: MeterKey, meter: Meter) -> None:
        self.meters.forbid(key, self._some_reservation(meter).id, 99)

    def _expire(self, key: MeterKey, meter: Meter) -> None:
        reservation = self._some_reservation(meter)
        self.meters.expire(key, reservation, _booking(self.rng, reservation.amount_tokens), 5)

    def _correct(self, key: MeterKey, meter: Meter) -> None:
        reservation = self._some_reservation(meter)
        found = self.meters.find_expired(key, reservation)
        expired = found or Expired(10, charged := self.rng.randrange(10), 10 - charged, corrected=False)
        self.meters.correct(key, reservation, expired, _booking(self.rng, 50), meter.overage_cap_tokens, 600)

    def _change_plan(self, key: MeterKey, meter: Meter) -> None:
        rng, seen = self.rng, self.versions[key.user_id] - self.rng.choice([0, 0, 0, 1])
        account = self._account(key.user_id, seen + 1)
        other = MeterKey("main", key.user_id, _PERIODS[rng.randrange(len(_PERIODS))])
        leaves = None if other == key else RunningMeter(other, rng.choice([None, self.meters.find(other)]))
        condition = rng.choice(["attribute_not_exists(PK)", "attribute_exists(PK)"])
        put: Any = {
            "TableName": TABLE_NAME,
            "Item": attributes(PK=user_pk("main", key.user_id), SK=f"SUBSCRIBER{rng.randrange(3)}", version=seen),
            "ConditionExpression": condition,
        }
        done = self.meters.change_entitlements(
            replace(account.profile, plan_version=seen),
            account,
            enters=RunningMeter(key, rng.choice([meter, meter, meter, None])),
            leaves=leaves,
            also=rng.choice([[], [], [{"Put": put}]]),
        )
        if done is Changing.DONE:
            self.versions[key.user_id] = seen + 1

    def _account(self, user: str, version: int) -> Account:
        rng, plan = self.rng, _plan(self.rng)
        plan = replace(plan, overage_price_microusd_per_1k_tokens=rng.choice([0, 7]))
        profile = Profile("main", user, plan.id, version, _START, trial=rng.random() < 0.2)
        return Account.of(replace(profile, overage_cap_cents=rng.choice([None, 0, 1])), plan)

    def _write_unchanged(self, key: MeterKey, meter: Meter) -> None:
        profile = self._account(key.user_id, self.versions[key.user_id] - self.rng.choice([0, 1])).profile
        self.meters.write_unchanged(profile, [])

    def _carry_plan(self, key: MeterKey, meter: Meter) -> None:
        self.meters.carry_plan(key, meter, self._account(key.user_id, self.versions[key.user_id]))

    def _forget(self, key: MeterKey, meter: Meter) -> None:
        self.meters.forget_marker(key, f"key-{self.rng.randrange(30)}", self._some_reservation(meter))

    def _list(self, key: MeterKey, meter: Meter) -> None:
        before = _START.replace(month=self.rng.randrange(9, 13))
        assert list(self.meters.list_ending(self.rng.randrange(16), before)) is not None


_START = datetime(2026, 11, 1, tzinfo=UTC)
_PERIODS = [UsagePeriod(_START.replace(month=month), _START.replace(month=month + 1)) for month in (9, 10, 11)]


def _reservation(rng: random.Random) -> Reservation:
    return Reservation(f"id{rng.randrange(12)}", rng.randrange(1, 400), 1_800_000_000, f"n{rng.randrange(3)}", 5)


def _booking(rng: random.Random, amount: int) -> Booking:
    charged = rng.randrange(amount + 1)
    counts = TokenCounts(*(rng.randrange(9) for _ in range(5)))
    return Booking(charged, amount - charged, counts, rng.randrange(10**12), returns_request=rng.random() < 0.2)


def _plan(rng: random.Random) -> Plan:
    plan = Plan(
        id=f"plan{rng.randrange(3)}",
        name="Plan",
        quota_kind=QuotaKind.HARD,
        quota_tokens=rng.choice([1_000, 3_000, None]),
        quota_requests=rng.choice([5, 40, None]),
        overage_cap_tokens=rng.choice([0, 500]),
        overage_price_microusd_per_1k_tokens=0,
        price_cents=0,
        period_kind=PeriodKind.CALENDAR_MONTH,
        models=frozenset(),
        requests_per_minute=None,
        burst_requests=1,
        max_open_reservations=rng.choice([2, 8]),
        max_output_tokens=None,
        slice_output_tokens=None,
        expiry_policy=ExpiryPolicy.STRICT,
    )
    has_pool = plan.quota_tokens is not None and rng.random() < 0.5
    return replace(plan, pool_tokens=rng.choice([1, 4]) * plan.most_tokens) if has_pool else plan
