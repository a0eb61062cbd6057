"""Request records to store, and a small world to report on them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast

from tests.simulation.memory_table import MemoryTable
from tests.support.scripted_dynamodb import ScriptedClient
from tollgate.catalog.loader import load_catalog
from tollgate.domain.pricing import cost_picousd
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.roll_up_usage import UsageRollUps
from tollgate.flows.usage_reports import UsageReports
from tollgate.storage.meters import Meters
from tollgate.storage.requests import RequestOutcome, RequestRecord, Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.table import Table, attributes, user_pk

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HAIKU, SONNET = "claude-haiku-4-5", "claude-sonnet-5-5"
CATALOG = load_catalog("default")


def a_record(began_at: datetime = NOW, **changes: Any) -> RequestRecord:  # noqa: ANN401  any field of RequestRecord
    """A complete call of `u1` on Haiku; its cost is that of its counts."""
    counts = changes.pop("counts", TokenCounts(100, 50))
    model = CATALOG.models[changes.get("model", HAIKU)]
    price = model.price_row(counts.prompt_tokens, began_at)
    record = RequestRecord(
        tenant_id="main",
        user_id="u1",
        request_id=f"req_{began_at:%d%H%M%S%f}",
        reservation_id="r1",
        credential_id="key_1",
        period_id="2026-11",
        plan_id="pro",
        began_at=began_at,
        duration_ms=900,
        first_byte_ms=40,
        model=model.id,
        served_model=f"{model.id}-20251001",
        outcome=RequestOutcome.COMPLETE,
        estimated=False,
        counts=counts,
        prompt_tokens=counts.prompt_tokens,
        price_from=price.effective_from,
        price_max_prompt_tokens=price.max_prompt_tokens,
        charged_tokens=counts.total_tokens,
        written_off_tokens=0,
        cost_picousd=cost_picousd(model, counts, began_at, web_searches=changes.get("web_searches", 0)),
        streamed=True,
        speed=None,
        service_tier="standard",
        inference_geo=None,
        web_searches=0,
        web_fetches=0,
        upstream_request_id=None,
        nonce="n1",
    )
    return replace(record, **changes)


class UsageWorld:
    """A table in memory, a clock to turn, and what reports on it. Is Clock and IdSource itself."""

    def __init__(self, now: datetime = NOW) -> None:
        self.seconds = now.timestamp()
        self.memory = MemoryTable("t")
        self.client = ScriptedClient(self.memory, self.now_seconds)
        self.table = Table(cast("Any", self.client), "t")
        self.requests = Requests(self.table)
        self.meters = Meters(self.table)
        self.stored = DayRollUps(self.table)
        self.roll_ups = self.new_roll_ups()
        self.reports = UsageReports(self.roll_ups, self.requests, self.meters, CATALOG, self)
        self._ids = 0

    def new_roll_ups(self, **bounds: int) -> UsageRollUps:
        """Another process on the same table."""
        return UsageRollUps(self.requests, self.stored, self.meters, CATALOG, self, self, **bounds)

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def advance(self, **by: float) -> None:
        self.seconds += timedelta(**by).total_seconds()

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.seconds += wait_seconds

    def new_id(self, length: int) -> str:
        self._ids += 1
        return str(self._ids).rjust(length, "i")

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)

    def put(self, *records: RequestRecord) -> None:
        for record in records:
            self.requests.put(record)

    def put_expired(self, swept_at: datetime, **changes: Any) -> None:  # noqa: ANN401  attributes of the item
        """The record of a swept reservation, as `Meters.expire` leaves it."""
        period, reservation = changes.pop("period", "2026-11"), changes.pop("reservation", "r1")
        values = {
            "Type": "ExpiredReservation",
            "period": period,
            "amount": 700,
            "charged": 300,
            "written_off": 400,
            "outcome": "expired",
            "swept_at": int(swept_at.timestamp()),
            "expires_at": int(swept_at.timestamp()) + 90 * 24 * 3600,
            **changes,
        }
        key = {"PK": user_pk("main", "u1"), "SK": f"EXPIRED#{period}#{reservation}#n1"}
        self.client.put_item(TableName="t", Item=attributes(**key, **values))

    def days(self, first: date, last: date) -> dict[date, int]:
        """Charged tokens by day."""
        use = self.roll_ups.days("main", "u1", first, last)
        assert use.exact
        return {day: sum(sums.charged_tokens for sums in rows.values()) for day, rows in use.rows.items() if rows}

    def forget_records(self) -> None:
        """What DynamoDB does after 90 days."""
        for partition in self.memory.partitions.values():
            for sk in [sk for sk in partition if sk.startswith(("REQUEST#", "EXPIRED#"))]:
                del partition[sk]
