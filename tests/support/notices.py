"""A user on a moto table whose calls are settled, and whose passed thresholds are noted and delivered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import EndpointConnectionError

from tests.support.clocks import FakeClock, Reports
from tests.support.ledger_world import START, Counting, a_plan, an_ask
from tests.support.moto_table import CountedTable
from tollgate.domain.ledger import Settlement
from tollgate.domain.plans import Plan
from tollgate.domain.principals import Account, Profile
from tollgate.domain.subscriptions import Entitlements
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.message_calls import Standing
from tollgate.flows.notices import UsageThresholds
from tollgate.storage.meters import Meters
from tollgate.storage.notices import SHARDS, Notices, StoredNotice, due_at
from tollgate.storage.users import Users


class ThresholdWorld:
    """User `u1` of tenant `main` on a plan of 1,000 tokens."""

    def __init__(self, table: CountedTable, plan: Plan | None = None, **profile: Any) -> None:  # noqa: ANN401
        self.table = table
        self.clock = FakeClock(START.timestamp())
        self.reports = Reports()
        self.plan = plan or a_plan()
        self.users = Users(table)
        self.notices = Notices(table)
        self.meters = Meters(table)
        self.ledger = Ledger(self.meters, self.clock, Counting())
        stored = self.users.create_profile(Profile("main", "u1", self.plan.id, 1, START, **profile))
        self.account = Account.of(stored, self.plan)
        self.thresholds = self.new_process()

    def new_process(self, *thresholds_percent: int) -> UsageThresholds:
        return UsageThresholds(self.notices, thresholds_percent or (75, 90, 100), self.clock, self.reports)

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.seconds, UTC)

    def settle(self, tokens: int) -> Standing:
        """One whole call, without what comes after it."""
        grant = self.ledger.reserve(
            self.account,
            account_key(self.account, self.now),
            an_ask(tokens, deadline_at_seconds=self.clock.seconds + 60),
        )
        settled = self.ledger.settle(grant, Settlement(tokens))
        assert settled.meter is not None
        return Standing(self.account, settled.meter)

    def use(self, tokens: int) -> None:
        self.thresholds.note(self.settle(tokens))

    def move_to(self, plan: Plan) -> None:
        self.account = self.ledger.change_entitlements(self.account, Entitlements(plan.id, None), plan)

    @property
    def stored(self) -> list[StoredNotice]:
        return list(self.notices.list_of_user("main", "u1"))

    @property
    def percents(self) -> list[int]:
        return [stored.notice.threshold_percent for stored in self.stored]

    @property
    def due(self) -> list[timedelta]:
        """How long from now until each waiting notice is due."""
        entries = [entry for shard in range(SHARDS) for entry in self.notices.list_waiting(shard)]
        return [due_at(entry) - self.now for entry in entries]

    @contextmanager
    def silence(self, operation: str = "*") -> Iterator[None]:
        """The table does not answer."""

        def refuse(**_: object) -> None:
            raise EndpointConnectionError(endpoint_url="table")

        events, name = self.table.client.meta.events, f"before-call.dynamodb.{operation}"
        events.register(name, refuse)
        try:
            yield
        finally:
            events.unregister(name, refuse)
