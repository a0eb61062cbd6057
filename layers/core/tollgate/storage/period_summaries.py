"""Period summaries: what a usage period came to when it was closed, kept for good.

Written in the very transaction that closes the meter, so a summary tells exactly the meter that was closed. When
something comes late, the period is closed again and its summary says how much came after the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.ledger import Meter
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.rollups import PeriodUse
from tollgate.domain.tokens import TokenCounts
from tollgate.storage.table import (
    Table,
    attributes,
    epoch_seconds,
    from_epoch_seconds,
    plain,
    query_items,
    s,
    store_outages,
    user_pk,
)

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef


@dataclass(frozen=True, slots=True)
class PeriodSummary:
    """One closed usage period of a user. Sums are the meter's; `use` is what the records say beside it."""

    tenant_id: str
    user_id: str
    period: UsagePeriod
    plan_id: str
    quota_tokens: int
    charged_tokens: int
    written_off_tokens: int
    counts: TokenCounts
    cost_picousd: int
    settled_requests: int
    overage_tokens: int
    overage_nanousd: int
    estimated_requests: int
    """Of which the provider never told the end."""
    estimated_tokens: int
    """What was charged for those."""
    expired_requests: int
    """Orphans: their owner vanished, they were charged by the plan's rule."""
    corrected_requests: int
    unbooked_requests: int
    """With a record whose settlement was left to the sweep."""
    unbooked_picousd: int
    """What those cost; in no meter."""
    unrecorded_tokens: int
    """Charged, and in no record: meter less records. Not 0 where a record was never written, or somebody tampered."""
    unrecorded_written_off_tokens: int
    unrecorded_counts: TokenCounts
    unrecorded_picousd: int
    closed_at: datetime
    first_closed_at: datetime
    late_tokens: int = 0
    """Charged after `first_closed_at`; less than nothing when a correction gave tokens back."""
    late_written_off_tokens: int = 0
    late_picousd: int = 0
    reopened: int = 0
    """Times that something came late."""

    @property
    def reconciled(self) -> bool:
        """Records and meter agree, to the unit."""
        return not (
            self.unrecorded_tokens
            or self.unrecorded_written_off_tokens
            or self.unrecorded_picousd
            or self.unrecorded_counts != TokenCounts()
        )


def summary_of(meter: Meter, use: PeriodUse, closed_at: datetime, before: PeriodSummary | None) -> PeriodSummary:
    """`before`: how the same period was closed earlier."""
    booked, seen = use.booked, use.seen
    return PeriodSummary(
        tenant_id=meter.key.tenant_id,
        user_id=meter.key.user_id,
        period=meter.key.period,
        plan_id=meter.plan_id,
        quota_tokens=meter.quota_tokens,
        charged_tokens=meter.settled_tokens,
        written_off_tokens=meter.written_off_tokens,
        counts=meter.counts,
        cost_picousd=meter.cost_picousd,
        settled_requests=meter.settled_requests,
        overage_tokens=meter.overage_tokens,
        overage_nanousd=meter.overage_nanousd,
        estimated_requests=seen.estimated_requests,
        estimated_tokens=seen.estimated_tokens,
        expired_requests=use.expired.expired,
        corrected_requests=use.expired.corrected,
        unbooked_requests=use.unbooked.requests,
        unbooked_picousd=use.unbooked.cost_picousd,
        unrecorded_tokens=meter.settled_tokens - booked.charged_tokens,
        unrecorded_written_off_tokens=meter.written_off_tokens - booked.written_off_tokens,
        unrecorded_counts=_less(meter.counts, booked.counts),
        unrecorded_picousd=meter.cost_picousd - booked.cost_picousd,
        closed_at=closed_at,
        first_closed_at=before.first_closed_at if before else closed_at,
        late_tokens=before.late_tokens + meter.settled_tokens - before.charged_tokens if before else 0,
        late_written_off_tokens=(
            before.late_written_off_tokens + meter.written_off_tokens - before.written_off_tokens if before else 0
        ),
        late_picousd=before.late_picousd + meter.cost_picousd - before.cost_picousd if before else 0,
        reopened=before.reopened + 1 if before else 0,
    )


class PeriodSummaries:
    """Reads summaries, and makes the write that belongs into the meter's close. Raises StoreUnavailableError."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, tenant_id: str, user_id: str, period_id: str) -> PeriodSummary | None:
        """Access pattern: how one usage period was closed (consistent read)."""
        with store_outages():
            answer = self._table.client.get_item(
                TableName=self._table.name, Key=attributes(**_key(tenant_id, user_id, period_id)), ConsistentRead=True
            )
        return _from_item(plain(answer["Item"])) if "Item" in answer else None

    def list_of_user(self, tenant_id: str, user_id: str) -> Iterator[PeriodSummary]:
        """Access pattern: how a user's usage periods were closed, by usage period, paged (consistent read)."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :pk AND begins_with(SK, :prefix)",
            ExpressionAttributeValues={":pk": s(user_pk(tenant_id, user_id)), ":prefix": s(_PREFIX)},
            ConsistentRead=True,
        )
        return (_from_item(plain(item)) for item in found)

    def part_of_transaction(self, summary: PeriodSummary) -> TransactWriteItemTypeDef:
        """Its condition is the one of the meter's close: a summary is never written without that."""
        return {"Put": {"TableName": self._table.name, "Item": attributes(**_item(summary))}}


_PREFIX: Final = "SUMMARY#"
_PLAIN: Final = (
    "plan_id",
    "quota_tokens",
    "charged_tokens",
    "written_off_tokens",
    "cost_picousd",
    "settled_requests",
    "overage_tokens",
    "overage_nanousd",
    "estimated_requests",
    "estimated_tokens",
    "expired_requests",
    "corrected_requests",
    "unbooked_requests",
    "unbooked_picousd",
    "unrecorded_tokens",
    "unrecorded_written_off_tokens",
    "unrecorded_picousd",
    "late_tokens",
    "late_written_off_tokens",
    "late_picousd",
    "reopened",
)
"""Stored as they are, under their own names."""
_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
)


def _key(tenant_id: str, user_id: str, period_id: str) -> dict[str, str]:
    return {"PK": user_pk(tenant_id, user_id), "SK": f"{_PREFIX}{period_id}"}


def _item(summary: PeriodSummary) -> dict[str, str | int | bool | None]:
    return {
        "PK": user_pk(summary.tenant_id, summary.user_id),
        "SK": f"{_PREFIX}{summary.period.id}",
        "Type": "PeriodSummary",
        "start_at": epoch_seconds(summary.period.start_at),
        "end_at": epoch_seconds(summary.period.end_at),
        "closed_at": epoch_seconds(summary.closed_at),
        "first_closed_at": epoch_seconds(summary.first_closed_at),
        **{name: getattr(summary, name) for name in _PLAIN},
        **{name: getattr(summary.counts, name) for name in _COUNTS},
        **{f"unrecorded_{name}": getattr(summary.unrecorded_counts, name) for name in _COUNTS},
    }


def _from_item(item: dict[str, Any]) -> PeriodSummary:
    _, tenant_id, _, user_id = item["PK"].split("#", 3)
    return PeriodSummary(
        tenant_id=tenant_id,
        user_id=user_id,
        period=UsagePeriod(from_epoch_seconds(item["start_at"]), from_epoch_seconds(item["end_at"])),
        counts=TokenCounts(**{name: item[name] for name in _COUNTS}),
        unrecorded_counts=TokenCounts(**{name: item[f"unrecorded_{name}"] for name in _COUNTS}),
        closed_at=from_epoch_seconds(item["closed_at"]),
        first_closed_at=from_epoch_seconds(item["first_closed_at"]),
        **{name: item[name] for name in _PLAIN},
    )


def _less(counts: TokenCounts, others: TokenCounts) -> TokenCounts:
    return TokenCounts(**{name: getattr(counts, name) - getattr(others, name) for name in _COUNTS})
