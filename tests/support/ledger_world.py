"""A small world for tests of the ledger: one user on a plan, a clock to turn, a table with scripted misfortunes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from tests.simulation.memory_table import MemoryTable
from tests.support.scripted_dynamodb import ScriptedClient
from tollgate.domain.ledger import Ask, Grant, Meter, MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.plans import ExpiryPolicy, PeriodKind, Plan, QuotaKind
from tollgate.domain.principals import Account, Profile
from tollgate.domain.subscriptions import Entitlements
from tollgate.flows.ledger import Ledger, account_key
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table
from tollgate.storage.users import Users

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def a_plan(**changes: Any) -> Plan:  # noqa: ANN401  any field of Plan
    """A hard plan of 1,000 tokens without a rate limit; change what the test is about."""
    plan = Plan(
        id="test",
        name="Test",
        quota_kind=QuotaKind.HARD,
        quota_tokens=1_000,
        quota_requests=None,
        overage_cap_tokens=0,
        overage_price_microusd_per_1k_tokens=0,
        price_cents=0,
        period_kind=PeriodKind.CALENDAR_MONTH,
        models=frozenset(),
        requests_per_minute=None,
        burst_requests=1,
        max_open_reservations=20,
        max_output_tokens=None,
        slice_output_tokens=None,
        expiry_policy=ExpiryPolicy.STRICT,
        upgrade_message="Upgrade at example.com.",
    )
    return replace(plan, **changes)


def an_ask(amount_tokens: int = 100, **changes: Any) -> Ask:  # noqa: ANN401  any field of Ask
    """An ask for `amount_tokens`, 10 of them for the prompt, by a function that dies 60 s after START."""
    ask = Ask(
        prompt_bound_tokens=10,
        output_tokens=amount_tokens - 10,
        output_weight=1000,
        may_clamp=True,
        deadline_at_seconds=START.timestamp() + 60,
    )
    return replace(ask, **changes)


class Counting:
    """Ids in order: `id00001`, …; or a fixed list first, to make them collide."""

    def __init__(self, *first: str) -> None:
        self._first = list(first)
        self._count = 0

    def new_id(self, length: int) -> str:
        if self._first:
            return self._first.pop(0)
        self._count += 1
        return str(self._count).rjust(length, "i")

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)


class LedgerWorld:
    """One user `u1` of tenant `main`, its profile stored, its meter not yet opened."""

    def __init__(self, plan: Plan | None = None, ids: Counting | None = None) -> None:
        self.seconds = START.timestamp()
        self.pauses: list[float] = []
        self.table = MemoryTable("t")
        self.client = ScriptedClient(self.table, self.now_seconds)
        table = Table(cast("Any", self.client), "t")
        self.users = Users(table)
        self.meters = Meters(table)
        self.plan = plan or a_plan()
        self.profile = self.users.create_profile(Profile("main", "u1", self.plan.id, 1, START))
        self.account = Account.of(self.profile, self.plan)
        self.key = MeterKey("main", "u1", period_at(self.plan.period_kind, START, START))
        self.ledger = self.new_ledger(ids)
        self.client.calls.clear()

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.pauses.append(wait_seconds)

    def new_ledger(self, ids: Counting | None = None) -> Ledger:
        """Another process on the same table."""
        return Ledger(self.meters, self, ids or Counting())

    def change(self, plan: Plan, *, anchor_at: datetime | None = None, **changes: Any) -> Account:  # noqa: ANN401  any field of Entitlements
        """Other entitlements for the account in hand, which is another process's from now on: see `follow`."""
        return self.ledger.change_entitlements(self.account, Entitlements(plan.id, anchor_at, **changes), plan)

    def follow(self, account: Account) -> None:
        """This process has heard of a change: it goes on with the account as it is now."""
        self.account = account
        self.key = account_key(account, datetime.fromtimestamp(self.seconds, UTC))

    def use(self, tokens: int) -> Grant:
        """One call from beginning to end, in the account's running period."""
        grant = self.ledger.reserve(self.account, self.key, an_ask(tokens, may_clamp=False))
        self.ledger.settle(grant, Settlement(tokens))
        return grant

    def open_meter(self) -> None:
        """The first reservation of a period makes two calls more; tests that count calls have it behind them."""
        self.meters.create(self.key, self.plan, self.profile.plan_version)
        self.client.calls.clear()

    @property
    def meter(self) -> Meter:
        """The meter as stored, with the sums checked that hold after every write."""
        meter = self.meters.find(self.key)
        assert meter is not None
        assert meter.remaining_tokens == meter.quota_tokens - meter.settled_tokens - meter.reserved_tokens
        assert meter.open_count == len(meter.reservations)
        assert meter.remaining_tokens >= -meter.overage_cap_tokens
        return meter
