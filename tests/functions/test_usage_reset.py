"""The scheduled job through its handler: a part that fails keeps no other from its turn, and the run has failed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, CountedTable, moto_table
from tests.support.sam import environment_of, load_template
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import MeterKey
from tollgate.domain.periods import period_at
from tollgate.domain.plans import PeriodKind
from tollgate.domain.principals import Profile
from tollgate.storage.meters import Meters
from tollgate.storage.users import Users

Invoke = Callable[[], dict[str, Any]]
LONG_AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(days=70)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    for name, value in environment_of("usage_reset", load_template()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TABLE_NAME", NAME)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def invoke(table: CountedTable, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """One container."""
    monkeypatch.delitem(sys.modules, "functions.usage_reset.app", raising=False)

    def call() -> dict[str, Any]:
        handler = importlib.import_module("functions.usage_reset.app").handler
        answer: dict[str, Any] = handler({}, LambdaContext(remaining_ms=300_000))
        return json.loads(json.dumps(answer))  # type: ignore[no-any-return]

    return call


def a_period_that_is_due(table: CountedTable) -> MeterKey:
    """Of a user on the default plan, who does not come back."""
    catalog = load_catalog("default")
    Users(table).create_profile(Profile("main", "ada", catalog.default_plan_id, 1, LONG_AGO))
    key = MeterKey("main", "ada", period_at(PeriodKind.CALENDAR_MONTH, LONG_AGO, LONG_AGO))
    Meters(table).create(key, catalog.plan(catalog.default_plan_id), 1)
    return key


def test_says_what_was_done(table: CountedTable, invoke: Invoke) -> None:
    key = a_period_that_is_due(table)
    assert invoke() == {
        "seen_meters": 0,
        "expired_reservations": 0,
        "synced_subscribers": 0,
        "closed_periods": 1,
        "left_periods": 0,
        "reported_users": 0,
        "opened_periods": 0,
        "complete": True,
    }
    meter = Meters(table).find(key)
    assert meter is not None
    assert meter.closed_at is not None


def test_a_part_that_fails_keeps_no_other_from_its_turn_and_fails_the_run(
    table: CountedTable, invoke: Invoke, capsys: pytest.CaptureFixture[str]
) -> None:
    """An item among the subscribers who are due that nobody can read."""
    key = a_period_that_is_due(table)
    for shard in range(4):
        broken = {"PK": f"broken{shard}", "SK": "x", "GSI1PK": f"DUE#{shard}", "GSI1SK": "0"}
        table.client.put_item(TableName=table.name, Item={name: {"S": value} for name, value in broken.items()})
    with pytest.raises(ValueError, match="unpack"):
        invoke()
    meter = Meters(table).find(key)
    assert meter is not None
    assert meter.closed_at is not None
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["part"] for line in lines if line.get("message") == "scheduled_part_failed"] == ["sync"]
