"""A small world of users whose usage periods end, and runs of the job that may be killed at any call to the table."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from tests.simulation.memory_table import Answer, MemoryTable
from tests.support.clocks import raise_reported
from tests.support.ledger_world import Counting, an_ask
from tests.support.request_records import a_record
from tests.support.scripted_dynamodb import ScriptedClient
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import Grant, Meter, MeterName, Settlement
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.close_period import CloseReport, PeriodCloser
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.note_activity import ActivityNotes
from tollgate.flows.roll_up_usage import UsageRollUps
from tollgate.flows.sweep_meters import sweep_meters
from tollgate.storage.activity import Activity
from tollgate.storage.meters import Meters
from tollgate.storage.period_summaries import PeriodSummaries, PeriodSummary
from tollgate.storage.requests import Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.table import Table
from tollgate.storage.users import Users

SIGNED_UP = datetime(2026, 10, 20, 12, 0, tzinfo=UTC)
END = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
"""Of everybody's period on a plan with anchored months."""
CATALOG = load_catalog("default")


class Killed(BaseException):
    """The process is gone: nothing of ours may catch it."""


class KillingClient(ScriptedClient):
    """Ends the process at a call, before or after it was applied; or lets somebody else act before a call."""

    def __init__(self, *given: Any) -> None:  # noqa: ANN401  as ScriptedClient
        super().__init__(*given)
        self.kill_at: int | None = None
        self.applied = False
        self.meanwhile: Any = None
        self.count = 0

    def _call(self, operation: str, request: dict[str, Any]) -> Answer:
        self.count += 1
        if self.count != self.kill_at:
            return super()._call(operation, request)
        if self.meanwhile is not None:
            self.kill_at = None
            self.meanwhile()
            return super()._call(operation, request)
        if self.applied:
            super()._call(operation, request)
        raise Killed


class Journal:
    """`tollgate.flows.message_calls.Journal`, remembered."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:  # noqa: ANN401
        self.lines.append((name, fields))

    def failure(self, name: str, error: BaseException, **fields: Any) -> None:  # noqa: ANN401
        self.lines.append((name, fields | {"error": type(error).__name__}))

    def measure(self, values: Any, **_: Any) -> None:  # noqa: ANN401
        self.lines.append(("metrics", dict(values)))


class ClosingWorld:
    """Users with calls in the period that ends at END, and the job."""

    def __init__(self, now: datetime = END - timedelta(hours=3)) -> None:
        self.seconds = now.timestamp()
        self.memory = MemoryTable("t")
        self.handed_over: list[tuple[str, int]] = []
        self.journal = Journal()
        self.ids = Counting()
        self.table = self.new_table()
        self._calls = 0

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.seconds += wait_seconds

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def turn_to(self, now: datetime) -> None:
        self.seconds = now.timestamp()

    def copy(self) -> ClosingWorld:
        """The same world once more: stored items are replaced, never changed, so they may be shared."""
        other = ClosingWorld(self.now)
        other.memory.partitions = {pk: dict(partition) for pk, partition in self.memory.partitions.items()}
        other.ids = deepcopy(self.ids)
        return other

    def new_table(self) -> Table:
        """Another process's."""
        return Table(cast("Any", KillingClient(self.memory, self.now_seconds)), "t")

    @property
    def client(self) -> KillingClient:
        return cast("KillingClient", self.table.client)

    # ---- calls

    def sign_up(self, user_id: str, plan_id: str = "pro", **profile: Any) -> Account:  # noqa: ANN401  any field
        stored = Users(self.table).create_profile(Profile("main", user_id, plan_id, 1, SIGNED_UP, **profile))
        return Account.of(stored, CATALOG.plans[plan_id])

    def begin(self, account: Account, tokens: int) -> Grant:
        """A call that reserves now, its activity noted, and may run for ten minutes."""
        ledger = Ledger(Meters(self.table), self, self.ids)
        ask = an_ask(tokens, may_clamp=False, deadline_at_seconds=self.seconds + 600)
        grant = ledger.reserve(account, account_key(account, self.now), ask)
        ActivityNotes(Activity(self.table), self, lambda *_: None).note(grant.key)
        return grant

    def end(self, grant: Grant, tokens: int, *, began_at: datetime | None = None, recorded: bool = True) -> None:
        """Settled now, and recorded under the instant of its begin."""
        self._calls += 1
        began_at = (began_at or self.now) + timedelta(microseconds=self._calls)
        counts = TokenCounts(tokens - 10, 10)
        record = a_record(began_at, counts=counts, charged_tokens=tokens, request_id=f"req_{self._calls}")
        Ledger(Meters(self.table), self, self.ids).settle(
            grant, Settlement(tokens, counts=counts, cost_picousd=record.cost_picousd)
        )
        if recorded:
            named = replace(
                record,
                user_id=grant.key.user_id,
                period_id=grant.key.period.id,
                reservation_id=grant.reservation.id,
                nonce=grant.reservation.nonce,
            )
            Requests(self.table).put(named)

    def call(self, account: Account, tokens: int) -> None:
        self.end(self.begin(account, tokens), tokens)

    # ---- the job

    def roll_ups(self) -> UsageRollUps:
        return UsageRollUps(Requests(self.table), DayRollUps(self.table), Meters(self.table), CATALOG, self, self.ids)

    def closer(self) -> PeriodCloser:
        return PeriodCloser(
            meters=Meters(self.table),
            ledger=Ledger(Meters(self.table), self, self.ids),
            roll_ups=self.roll_ups(),
            summaries=PeriodSummaries(self.table),
            users=Users(self.table),
            catalog=CATALOG,
            clock=self,
            journal=self.journal,
            hand_over_overage=lambda meter: self.handed_over.append((meter.key.user_id, meter.overage_nanousd)),
        )

    def sweep(self, *, seconds: float = 600) -> int:
        return sweep_meters(
            activity=Activity(self.table),
            meters=Meters(self.table),
            ledger=Ledger(Meters(self.table), self, self.ids),
            catalog=CATALOG,
            clock=self,
            report=raise_reported,
            deadline_at_seconds=self.seconds + seconds,
        ).expired_reservations

    def run(self) -> CloseReport:
        """One run of the job, all of its parts but Stripe's."""
        self.sweep()
        closed = self.closer().close_due(self.seconds + 600)
        self.closer().open_ahead(self.seconds + 600)
        return closed

    # ---- what stands

    def meter(self, user_id: str, period_id: str = "2026-10-20T120000Z") -> Meter:
        meter = Meters(self.table).find_named(MeterName("main", user_id, period_id))
        assert meter is not None
        return meter

    def summary(self, user_id: str, period_id: str = "2026-10-20T120000Z") -> PeriodSummary:
        summary = PeriodSummaries(self.table).find("main", user_id, period_id)
        assert summary is not None
        return summary

    def state(self, *without: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Everything stored, but for these attributes, names that are drawn anew, and marks that may be gone."""
        left_out = {"generation", *without}
        return {
            (pk, sk): {name: value for name, value in item.items() if name not in left_out}
            for pk, sk, item in self.memory.items()
            if not pk.startswith("ACTIVE#")
        }
