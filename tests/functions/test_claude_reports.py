"""Usage and cost reports in the shape of Anthropic's Admin API, through the claude function's own door.

The shapes are those of platform.claude.com, `api/admin/usage_report` and `api/admin/cost_report`. The SDK has no method
for them (2.10); its clients call them by path.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.claude_function import Answer, ClaudeFunction, claude_function
from tests.support.request_records import HAIKU, SONNET, a_record
from tollgate.domain.tokens import TokenCounts
from tollgate.storage.requests import RequestOutcome, Requests
from tollgate.storage.table import attributes, user_pk

USAGE, COST = "/v1/organizations/usage_report/messages", "/v1/organizations/cost_report"
DIMENSIONS = {
    "account_id",
    "api_key_id",
    "context_window",
    "inference_geo",
    "model",
    "service_account_id",
    "service_tier",
    "speed",
    "workspace_id",
}


@pytest.fixture(scope="module")
def container() -> Iterator[ClaudeFunction]:
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as function:
        yield function


@pytest.fixture
def function(container: ClaudeFunction) -> ClaudeFunction:
    container.next_caller()
    return container


def midnight(days_ago: int = 0) -> datetime:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=days_ago)


def text(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def report(function: ClaudeFunction, path: str, *parameters: tuple[str, str], **more: str) -> Answer:
    return function.call("GET", path, query=urlencode([*parameters, *more.items()]))


def put(function: ClaudeFunction, began_at: datetime, **changes: Any) -> None:  # noqa: ANN401
    Requests(function.table).put(a_record(began_at, **{"user_id": function.user_id, **changes}))


def refused(answer: Answer, field: str) -> None:
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"].startswith(f"{field}: ")


class TestUsage:
    def test_has_anthropics_shape_and_empty_buckets(self, function: ClaudeFunction) -> None:
        put(function, midnight(2) + timedelta(hours=1), counts=TokenCounts(10, 5, 3, 2, 1), web_searches=4)
        answer = report(function, USAGE, starting_at=text(midnight(3)), ending_at=text(midnight(1)))
        assert answer.status == 200
        assert answer.json.keys() == {"data", "has_more", "next_page"}
        assert (answer.json["has_more"], answer.json["next_page"]) == (False, None)
        empty, full = answer.json["data"]
        assert empty == {"starting_at": text(midnight(3)), "ending_at": text(midnight(2)), "results": []}
        [result] = full["results"]
        assert result.pop("tollgate")["charged_tokens"] == 21
        assert {name: result.pop(name) for name in DIMENSIONS} == dict.fromkeys(DIMENSIONS)
        assert result == {
            "uncached_input_tokens": 10,
            "cache_creation": {"ephemeral_1h_input_tokens": 2, "ephemeral_5m_input_tokens": 3},
            "cache_read_input_tokens": 1,
            "output_tokens": 5,
            "server_tool_use": {"web_search_requests": 4},
        }

    def test_groups_by_any_of_the_names_together(self, function: ClaudeFunction) -> None:
        put(function, midnight(1) + timedelta(hours=1))
        put(function, midnight(1) + timedelta(hours=2), credential_id="key_2", model=SONNET, service_tier="batch")
        put(function, midnight(1) + timedelta(hours=3), prompt_tokens=200_001, inference_geo="us", speed="fast")
        groups = [("group_by[]", name) for name in ("model", "api_key_id", "context_window", "service_tier")]
        [day] = report(function, USAGE, *groups, starting_at=text(midnight(1)), ending_at=text(midnight())).json["data"]
        assert [
            (one["model"], one["api_key_id"], one["context_window"], one["service_tier"], one["inference_geo"])
            for one in day["results"]
        ] == [
            (f"{HAIKU}-20251001", "key_1", "0-200k", "standard", None),
            (f"{HAIKU}-20251001", "key_1", "200k-1M", "standard", None),
            (f"{SONNET}-20251001", "key_2", "0-200k", "batch", None),
        ]
        assert sum(one["uncached_input_tokens"] for one in day["results"]) == 300

    def test_filters(self, function: ClaudeFunction) -> None:
        put(function, midnight(1) + timedelta(hours=1))
        put(function, midnight(1) + timedelta(hours=2), credential_id="key_2")
        for name, value, count in (
            ("api_key_ids[]", "key_2", 1),
            ("models[]", f"{HAIKU}-20251001", 2),
            ("models[]", HAIKU, 2),
            ("models[]", SONNET, 0),
            ("service_tiers[]", "standard", 2),
            ("workspace_ids[]", "wrkspc_1", 0),
        ):
            [day] = report(
                function, USAGE, (name, value), starting_at=text(midnight(1)), ending_at=text(midnight())
            ).json["data"]
            assert sum(one["tollgate"]["requests"] for one in day["results"]) == count

    @pytest.mark.parametrize(
        ("path", "name", "says"),
        [
            (USAGE, "model", "model"),
            (USAGE, "api_key_id[]", "api_key_id"),
            (USAGE, "group_by[0]", "group_by[0]"),
            (COST, "models[]", "models"),
        ],
    )
    def test_refuses_a_parameter_that_it_does_not_have_by_name(
        self, function: ClaudeFunction, path: str, name: str, says: str
    ) -> None:
        refused(report(function, path, (name, "x"), starting_at=text(midnight(1))), says)

    @pytest.mark.parametrize(("seconds", "status"), [(-1, 400), (0, 400), (1, 200)])
    @pytest.mark.parametrize("path", [USAGE, COST])
    def test_ends_after_it_starts(self, function: ClaudeFunction, path: str, seconds: int, status: int) -> None:
        end = text(midnight(2) + timedelta(seconds=seconds))
        answer = report(function, path, starting_at=text(midnight(2)), ending_at=end)
        assert answer.status == status
        if status == 400:
            refused(answer, "ending_at")
        else:
            assert answer.json["data"] == []

    def test_counts_an_estimate_that_was_never_booked(self, function: ClaudeFunction) -> None:
        """Its reservation is gone with its meter's sums, and the sweep's record is there."""
        put(function, midnight(1) + timedelta(hours=1), booked=False, estimated=True, outcome=RequestOutcome.TRUNCATED)
        key = {"PK": user_pk("main", function.user_id), "SK": "EXPIRED#2026-11#r1#n1"}
        swept: dict[str, str | int] = {
            "amount": 150,
            "charged": 150,
            "written_off": 0,
            "outcome": "expired",
            "Type": "ExpiredReservation",
        }
        swept_at = int((midnight(1) + timedelta(hours=2)).timestamp())
        function.table.client.put_item(
            TableName=function.table.name, Item=attributes(**key, **swept, swept_at=swept_at)
        )
        [day] = report(function, USAGE, starting_at=text(midnight(1)), ending_at=text(midnight())).json["data"]
        told = day["results"][0]["tollgate"]
        assert (told["requests"], told["charged_tokens"], told["unbooked_requests"]) == (1, 150, 1)
        assert (told["estimated_requests"], told["estimated_tokens"]) == (1, 0)

    def test_pages_hold_every_bucket_once(self, function: ClaudeFunction) -> None:
        for day in range(1, 11):
            put(function, midnight(day) + timedelta(hours=5))
        seen: list[str] = []
        query = {"starting_at": text(midnight(10)), "limit": "3"}
        while True:
            answer = report(function, USAGE, **query).json
            seen += [bucket["starting_at"] for bucket in answer["data"]]
            if not answer["has_more"]:
                break
            query["page"] = answer["next_page"]
        # The running day is the last one when nobody says where to end.
        assert seen == [text(midnight(day)) for day in range(10, -1, -1)]

    @pytest.mark.parametrize(("width", "seconds", "usual"), [("1h", 3600, 24), ("1m", 60, 60)])
    def test_hours_and_minutes_are_exact(self, function: ClaudeFunction, width: str, seconds: int, usual: int) -> None:
        start = midnight(2)
        for number in (0, 1, usual - 1, usual):
            put(function, start + timedelta(seconds=number * seconds))
            put(function, start + timedelta(seconds=(number + 1) * seconds, microseconds=-1))
        answer = report(function, USAGE, starting_at=text(start + timedelta(seconds=seconds - 1)), bucket_width=width)
        buckets = answer.json["data"]
        assert len(buckets) == usual
        assert (buckets[0]["starting_at"], answer.json["has_more"]) == (text(start), True)
        told = [sum(one["tollgate"]["requests"] for one in bucket["results"]) for bucket in buckets]
        assert told == [2, 2, *[0] * (usual - 3), 2]

    def test_a_call_just_made_is_in_the_running_day_hour_and_minute(self, function: ClaudeFunction) -> None:
        body = {"model": HAIKU, "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
        assert function.call("POST", "/v1/messages", body).status == 200
        for width in ("1d", "1h", "1m"):
            start = datetime.now(UTC) - timedelta(minutes=2)
            data = report(function, USAGE, starting_at=text(start), bucket_width=width).json["data"]
            results = [one for bucket in data for one in bucket["results"]]
            assert sum(one["tollgate"]["requests"] for one in results) == 1
            assert sum(one["tollgate"]["charged_tokens"] for one in results) == function.meter()["settled"]

    def test_estimates_and_write_offs_are_told_beside(self, function: ClaudeFunction) -> None:
        put(
            function,
            midnight(1),
            estimated=True,
            outcome=RequestOutcome.TRUNCATED,
            charged_tokens=70,
            written_off_tokens=30,
        )
        [day] = report(function, USAGE, starting_at=text(midnight(1)), ending_at=text(midnight())).json["data"]
        assert day["results"][0]["tollgate"] == {
            "requests": 1,
            "charged_tokens": 70,
            "written_off_tokens": 30,
            "estimated_requests": 1,
            "estimated_tokens": 70,
            "expired_requests": 0,
            "expired_charged_tokens": 0,
            "unbooked_requests": 0,
        }


class TestCost:
    def test_is_in_cents_as_an_exact_decimal(self, function: ClaudeFunction) -> None:
        put(function, midnight(1), cost_picousd=1_237_891_200_000)
        [day] = report(function, COST, starting_at=text(midnight(1)), ending_at=text(midnight())).json["data"]
        [result] = day["results"]
        assert (result.pop("amount"), result.pop("currency")) == ("123.78912", "USD")
        assert set(result.values()) == {None}
        assert {"description", "model", "token_type", "cost_type", "service_tier", "context_window"} <= result.keys()

    def test_by_description_adds_up_to_the_whole(self, function: ClaudeFunction) -> None:
        put(function, midnight(1), counts=TokenCounts(1_000, 500, 300, 200, 100), web_searches=3)
        put(function, midnight(1) + timedelta(seconds=1), model=SONNET)
        put(function, midnight(1) + timedelta(seconds=2), cost_picousd=77)
        span = {"starting_at": text(midnight(1)), "ending_at": text(midnight())}
        [whole] = report(function, COST, **span).json["data"]
        [day] = report(function, COST, ("group_by[]", "description"), **span).json["data"]
        assert sum(Decimal(one["amount"]) for one in day["results"]) == Decimal(whole["results"][0]["amount"])
        kinds = {(one["model"], one["cost_type"], one["token_type"]) for one in day["results"]}
        haiku = f"{HAIKU}-20251001"
        assert kinds == {
            (haiku, "tokens", "uncached_input_tokens"),
            (haiku, "tokens", "output_tokens"),
            (haiku, "tokens", "cache_read_input_tokens"),
            (haiku, "tokens", "cache_creation.ephemeral_5m_input_tokens"),
            (haiku, "tokens", "cache_creation.ephemeral_1h_input_tokens"),
            (haiku, "tokens", None),
            (f"{SONNET}-20251001", "tokens", "uncached_input_tokens"),
            (f"{SONNET}-20251001", "tokens", "output_tokens"),
            (None, "web_search", None),
        }

    def test_is_by_day_only(self, function: ClaudeFunction) -> None:
        refused(report(function, COST, starting_at=text(midnight(1)), bucket_width="1h"), "bucket_width")


class TestBoth:
    @pytest.mark.parametrize("path", [USAGE, COST])
    def test_need_a_credential(self, function: ClaudeFunction, path: str) -> None:
        answer = function.call("GET", path, key=None, query="starting_at=2026-11-01T00:00:00Z")
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")

    @pytest.mark.parametrize("path", [USAGE, COST])
    def test_tell_nobody_elses_use(self, function: ClaudeFunction, path: str) -> None:
        put(function, midnight(1), user_id="victim")
        [day] = report(function, path, starting_at=text(midnight(1)), ending_at=text(midnight())).json["data"]
        assert day["results"] == []

    @pytest.mark.parametrize("path", [USAGE, COST])
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("starting_at", "yesterday"),
            ("starting_at", "1999-01-01T00:00:00Z"),
            ("starting_at", "0001-01-01T00:00:00+14:00"),
            ("ending_at", "2026-13-01T00:00:00Z"),
            ("limit", "0"),
            ("limit", "32"),
            ("limit", "٣"),
            ("limit", "-1"),
            ("bucket_width", "1w"),
            ("group_by[]", "user"),
            ("page", "page_x"),
            ("page", "page_MjAyNi0xMS0wMVQwMTowMDowMCswMDowMA=="),
            ("page", "page_MjAxOS0xMS0wMVQwMDowMDowMCswMDowMA=="),
            ("page", "page_MjAyNi0xMS0wMQ=="),
        ],
    )
    def test_refuse_what_they_cannot_follow(self, function: ClaudeFunction, path: str, name: str, value: str) -> None:
        refused(report(function, path, **{"starting_at": text(midnight(3)), name: value}), name.removesuffix("[]"))

    @pytest.mark.parametrize("path", [USAGE, COST])
    def test_need_a_start(self, function: ClaudeFunction, path: str) -> None:
        refused(report(function, path), "starting_at")

    def test_keep_hours_for_ninety_days_and_days_for_good(self, function: ClaudeFunction) -> None:
        old = text(midnight(100))
        refused(report(function, USAGE, starting_at=old, bucket_width="1h"), "starting_at")
        assert report(function, USAGE, starting_at=old).status == 200

    @pytest.mark.parametrize("path", [USAGE, COST])
    def test_a_start_in_the_future_is_an_empty_report(self, function: ClaudeFunction, path: str) -> None:
        answer = report(function, path, starting_at="2099-01-01T00:00:00Z").json
        assert answer == {"data": [], "has_more": False, "next_page": None}
