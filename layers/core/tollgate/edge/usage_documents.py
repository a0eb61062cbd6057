"""What the routes of usage take and give, as pydantic models. Every number is whole; `display` is for people."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tollgate.edge.documents import AnswerDocument, Timestamp, Tokens, UsageDocument

Day = Annotated[str, Field(pattern=r"^20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$", examples=["2026-11-20"])]
Count = Annotated[int, Field(ge=0)]
Picousd = Annotated[int, Field(ge=0, description="10^-12 US dollars")]
Grouping = Literal["day", "model", "key"]
ToldOutcome = Literal["complete", "truncated", "upstream_error", "deadline", "over_quota", "expired", "corrected"]
ExportFormat = Literal["csv", "jsonl"]


class CostDocument(AnswerDocument):
    """What Claude cost; not what anybody owes."""

    picousd: Picousd
    display: Annotated[str, Field(examples=["$0.000498"])]


class UsageOverageDocument(AnswerDocument):
    """Use beyond the quota, and what is owed for it."""

    tokens: Tokens
    nanousd: Annotated[int, Field(ge=0, description="10^-9 US dollars")]
    display: Annotated[str, Field(examples=["$1.25"])]


class EstimatedDocument(AnswerDocument):
    """Calls whose end the provider never told, and what was charged for them: nothing here where they are unbooked."""

    requests: Count
    tokens: Tokens


class ExpiredDocument(AnswerDocument):
    """Calls that crashed: their reservations ended by time, and were charged by the plan's rule."""

    requests: Count
    charged_tokens: Tokens
    written_off_tokens: Tokens
    corrected_requests: Annotated[
        int, Field(ge=0, description="Ended after all: what they are charged stands with the other requests.")
    ]


class UnbookedDocument(AnswerDocument):
    """Calls that ended while the ledger was out of reach: what they used, charged as crashed ones."""

    requests: Count
    cost: CostDocument


class CountsDocument(AnswerDocument):
    """The provider's own counts."""

    input_tokens: Tokens
    output_tokens: Tokens
    cache_write_5m_tokens: Tokens
    cache_write_1h_tokens: Tokens
    cache_read_tokens: Tokens


class OutcomesDocument(AnswerDocument):
    """Calls by how they ended."""

    complete: Count
    truncated: Count
    upstream_error: Count
    deadline: Count
    over_quota: Count


class FiguresDocument(AnswerDocument):
    """Sums over calls. `charged_tokens` and `written_off_tokens` include the expired ones; `by_kind` and `cost` the
    unbooked ones, which Claude counted like any other.
    """

    requests: Count
    charged_tokens: Tokens
    written_off_tokens: Tokens
    by_kind: CountsDocument
    cost: CostDocument
    web_searches: Count
    web_fetches: Count
    outcomes: OutcomesDocument
    estimated: EstimatedDocument
    expired: ExpiredDocument
    unbooked: UnbookedDocument


class ForecastDocument(AnswerDocument):
    """The period's end, if it goes on as it did so far: a straight line through now, from the period's start or, in a
    user's first period, from the making of the account."""

    method: Literal["straight_line"]
    used_tokens: Tokens
    used_requests: Annotated[int, Field(ge=0)]
    overage: UsageOverageDocument
    cost: CostDocument
    quota_reached_at: Annotated[
        Timestamp | None,
        Field(description="Of tokens or of calls, whichever is first. Null: not in this period, or it was before."),
    ]


class CurrentUsageDocument(UsageDocument):
    """The running period as the meter has it, where it is heading, and what the records of its calls add up to."""

    cost: CostDocument
    overage: UsageOverageDocument
    forecast: Annotated[ForecastDocument | None, Field(description="Null while too little is known.")]
    recorded: FiguresDocument
    exact: Annotated[bool, Field(description="False: `recorded` is still being counted; ask again.")]


class GroupDocument(FiguresDocument):
    """Figures of one model or one key; both null for calls that crashed, of which neither is known."""

    model: str | None
    key_id: str | None


class DayDocument(AnswerDocument):
    """One day (UTC)."""

    date: Day
    totals: FiguresDocument
    groups: Annotated[list[GroupDocument], Field(description="Empty when grouped by day.")]


class DaysDocument(AnswerDocument):
    """Use by day, oldest first, days without any included. When `has_more`, go on with `from` set to `next_from`."""

    first_day: Day
    last_day: Day
    group_by: Grouping
    data: list[DayDocument]
    totals: Annotated[FiguresDocument, Field(description="Of the days in `data`.")]
    exact: Annotated[bool, Field(description="False: days after `counted_through_at` are still being counted.")]
    counted_through_at: Timestamp
    has_more: bool
    next_from: Day | None


class CallDocument(AnswerDocument):
    """One call. What nobody knows of a call that crashed is null."""

    id: str
    kind: Annotated[
        Literal["request", "expired", "unbooked"],
        Field(
            description="expired: it crashed, and was charged by time. unbooked: its charge is that of an expired one."
        ),
    ]
    at: Annotated[Timestamp, Field(description="Its begin; of an expired one, when that was found out.")]
    outcome: ToldOutcome
    period_id: str
    plan_id: str | None
    key_id: str | None
    model: str | None
    served_model: str | None
    streamed: bool | None
    estimated: bool
    duration_ms: Count | None
    first_byte_ms: Count | None
    by_kind: CountsDocument
    charged_tokens: Tokens
    written_off_tokens: Tokens
    reserved_tokens: Annotated[int | None, Field(ge=0, description="What an expired one held.")]
    cost: CostDocument
    web_searches: Count
    web_fetches: Count
    speed: str | None
    service_tier: str | None
    inference_geo: str | None


class CallsDocument(AnswerDocument):
    """Calls, newest first. When `has_more`, ask again with `after` set to `next_after`.

    A page may hold fewer than `limit`, even none, where few calls fit the filter.
    """

    data: list[CallDocument]
    has_more: bool
    next_after: str | None
