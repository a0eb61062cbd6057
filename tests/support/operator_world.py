"""A deployment with users, calls and misfortunes, for the commands of an operator: the real ledger on a moto table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.clocks import FakeClock
from tests.support.ledger_world import START, Counting, an_ask
from tests.support.moto_table import CountedTable
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import Grant, Settlement
from tollgate.domain.plans import ExpiryPolicy
from tollgate.domain.pricing import cost_picousd
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.reconcile import Reconciler
from tollgate.flows.roll_up_usage import UsageRollUps
from tollgate.storage.meters import Meters
from tollgate.storage.requests import RequestOutcome, RequestRecord, Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.table import user_pk
from tollgate.storage.users import Users

MODEL = "claude-haiku-4-5"


@dataclass
class OperatorWorld:
    """Users of the default catalog; time moves when told to."""

    table: CountedTable

    def __post_init__(self) -> None:
        self.clock = FakeClock(START.timestamp())
        self.catalog = load_catalog("default")
        self.users, self.meters, self.requests = Users(self.table), Meters(self.table), Requests(self.table)
        self.days = DayRollUps(self.table)
        self.ids = Counting()
        self.ledger = Ledger(self.meters, self.clock, self.ids)
        self.roll_ups = UsageRollUps(self.requests, self.days, self.meters, self.catalog, self.clock, self.ids)
        self.reconciler = Reconciler(self.meters, self.requests, self.days, self.catalog, self.clock)
        self._numbers = 0

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.seconds, UTC)

    def pass_time(self, **parts: float) -> None:
        self.clock.advance(timedelta(**parts).total_seconds())

    def add_user(self, user_id: str, plan_id: str = "free", **profile: Any) -> None:  # noqa: ANN401
        anchor_at = self.now.replace(microsecond=0)
        self.users.create_profile(
            Profile("main", user_id, plan_id, 1, anchor_at, email=f"{user_id}@example.com", **profile)
        )

    def account(self, user_id: str) -> Account:
        profile = self.users.find_profile("main", user_id)
        assert profile is not None
        return Account.of(profile, self.catalog.plan(profile.plan_id))

    def reserve(self, user_id: str, tokens: int) -> Grant:
        account = self.account(user_id)
        ask = an_ask(tokens, deadline_at_seconds=self.clock.seconds + 60)
        return self.ledger.reserve(account, account_key(account, self.now), ask)

    def call(
        self,
        user_id: str,
        tokens: int = 1_000,
        *,
        estimated: bool = False,
        written_off: int = 0,
        model: str = MODEL,
        key: str = "key_1",
    ) -> RequestRecord:
        """One whole call: settled, and recorded."""
        grant = self.reserve(user_id, tokens)
        counts = TokenCounts(input_tokens=tokens - 10, output_tokens=10)
        found = self.catalog.resolve_model(model)
        assert found is not None
        cost = cost_picousd(found, counts, self.now)
        settled = self.ledger.settle(grant, Settlement(tokens, written_off, counts, cost))
        record = self._record(grant, counts, settled.charged_tokens, written_off, cost, estimated, model, key)
        self.requests.put(record)
        return record

    def lose_settlement(self, user_id: str, tokens: int = 500, *, estimated: bool = False) -> RequestRecord:
        """A call that ended while the ledger was out of reach: its record is there, its reservation stays open."""
        grant = self.reserve(user_id, tokens)
        counts = TokenCounts(input_tokens=tokens - 10, output_tokens=10)
        found = self.catalog.resolve_model(MODEL)
        assert found is not None
        cost = cost_picousd(found, counts, self.now)
        made = self._record(grant, counts, tokens, 0, cost, estimated, MODEL, "key_1")
        record = replace(made, booked=False)
        self.requests.put(record)
        return record

    def crash(self, user_id: str, tokens: int = 500) -> None:
        """A call whose function died: it stays open until it is swept."""
        self.reserve(user_id, tokens)

    def sweep(self, user_id: str) -> None:
        for meter in self.meters.list_of_user("main", user_id):
            self.ledger.sweep(meter, ExpiryPolicy.STRICT)

    def roll_up(self, user_id: str) -> None:
        assert self.roll_ups.roll_up_days("main", user_id).complete

    def _record(
        self,
        grant: Grant,
        counts: TokenCounts,
        charged: int,
        written_off: int,
        cost: int,
        estimated: bool,
        model: str,
        key: str,
    ) -> RequestRecord:
        self._numbers += 1
        return RequestRecord(
            tenant_id="main",
            user_id=grant.key.user_id,
            request_id=f"req-{self._numbers:04d}",
            reservation_id=grant.reservation.id,
            credential_id=key,
            period_id=grant.key.period.id,
            plan_id=grant.meter.plan_id,
            began_at=self.now,
            duration_ms=1200,
            first_byte_ms=300,
            model=model,
            served_model=f"{model}-20251001",
            outcome=RequestOutcome.TRUNCATED if estimated else RequestOutcome.COMPLETE,
            estimated=estimated,
            counts=counts,
            prompt_tokens=counts.prompt_tokens,
            price_from=datetime(2025, 1, 1, tzinfo=UTC).date(),
            price_max_prompt_tokens=None,
            charged_tokens=charged,
            written_off_tokens=written_off,
            cost_picousd=cost,
            streamed=True,
            speed=None,
            service_tier="standard",
            inference_geo=None,
            web_searches=0,
            web_fetches=0,
            upstream_request_id="req_011",
            nonce=grant.reservation.nonce,
        )

    # ---- what nobody should do

    def plant(self, user_id: str, sk_begins: str, **changes: int) -> None:
        """Changes the first item of the user whose sort key begins so, behind everybody's back."""
        [item, *_] = [
            each
            for each in self.table.items()
            if each["PK"]["S"] == user_pk("main", user_id) and each["SK"]["S"].startswith(sk_begins)
        ]
        for name, number in changes.items():
            item[name] = {"N": str(number)}
        self.table.client.put_item(TableName=self.table.name, Item=item)

    def drop(self, user_id: str, sk_begins: str) -> None:
        keys = [(each["PK"], each["SK"]) for each in self.table.items() if each["PK"]["S"] == user_pk("main", user_id)]
        pk, sk = next((pk, sk) for pk, sk in keys if sk["S"].startswith(sk_begins))
        self.table.client.delete_item(TableName=self.table.name, Key={"PK": pk, "SK": sk})
