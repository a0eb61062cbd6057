"""The usage function, from API Gateway's event to the answer: days, single calls, exports, and the running period."""

from __future__ import annotations

import csv
import importlib
import io
import json
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.support.http_events import claims_of, http_event
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, CountedTable, moto_table
from tests.support.request_records import HAIKU, SONNET, a_record
from tests.support.user_pool import CLIENT_ID, ISSUER, SUBJECT
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import Ask, MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.ledger import Ledger
from tollgate.storage.meters import Meters
from tollgate.storage.requests import RequestOutcome, Requests
from tollgate.storage.users import Users
from tollgate.wiring import SystemClock, SystemIds

ENVIRONMENT = {"STAGE": "test", "TABLE_NAME": NAME, "COGNITO_ISSUER": ISSUER, "COGNITO_CLIENT_IDS": CLIENT_ID}
LAMBDA_ANSWER_BYTES = 6 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str
    size: int
    """Of the whole answer as Lambda counts it."""

    @property
    def body(self) -> Any:  # noqa: ANN401  any JSON
        return json.loads(self.text)


Get = Callable[..., Answer]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def get(table: CountedTable, monkeypatch: pytest.MonkeyPatch) -> Get:
    monkeypatch.delitem(sys.modules, "functions.usage.app", raising=False)

    def call(path: str, subject: str = SUBJECT, method: str = "GET", **query: str) -> Answer:
        event = http_event(method, path, claims_of(subject), rawQueryString=urlencode(query))
        if query:
            event["queryStringParameters"] = query
        answer = importlib.import_module("functions.usage.app").handler(event, LambdaContext())
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        return Answer(answer["statusCode"], headers, answer["body"], len(json.dumps(answer)))

    return call


def now() -> datetime:
    return datetime.now(UTC)


def put(table: CountedTable, began_at: datetime, **changes: Any) -> None:  # noqa: ANN401  any field of RequestRecord
    Requests(table).put(a_record(began_at, **{"user_id": SUBJECT, **changes}))


def assert_refused(answer: Answer, field: str) -> None:
    assert answer.status == 400
    assert answer.body["error"]["details"]["error_code"] == "invalid_field"
    assert answer.body["error"]["message"].startswith((field, f"query.{field}"))


# --- Days


def test_somebody_who_used_nothing_gets_thirty_empty_days(get: Get, table: CountedTable) -> None:
    answer = get("/usage/daily")
    assert answer.status == 200
    assert len(answer.body["data"]) == 30
    assert answer.body["last_day"] == now().date().isoformat()
    assert answer.body["exact"] is True
    assert (answer.body["has_more"], answer.body["next_from"]) == (False, None)
    assert answer.body["totals"]["requests"] == 0
    assert answer.body["totals"]["cost"] == {"picousd": 0, "display": "$0.00"}
    assert all(day["totals"]["charged_tokens"] == 0 and day["groups"] == [] for day in answer.body["data"])
    assert table.items() == []


@pytest.mark.parametrize(
    ("group_by", "names"),
    [
        ("day", []),
        ("model", [(HAIKU, None, 300), (SONNET, None, 150)]),
        ("key", [(None, "key_1", 150), (None, "key_2", 300)]),
    ],
)
def test_use_is_told_by_day_and_group(
    get: Get, table: CountedTable, group_by: str, names: list[tuple[str | None, str | None, int]]
) -> None:
    yesterday = now() - timedelta(days=1)
    put(table, yesterday)
    put(table, yesterday + timedelta(microseconds=1), credential_id="key_2")
    put(table, yesterday + timedelta(microseconds=2), credential_id="key_2", model=SONNET)
    day = yesterday.date().isoformat()
    for _ in range(2):
        body = get("/usage/daily", group_by=group_by, **{"from": day, "to": day}).body
        [found] = body["data"]
        assert (found["date"], found["totals"]["charged_tokens"]) == (day, 450)
        assert [(one["model"], one["key_id"], one["charged_tokens"]) for one in found["groups"]] == names
        assert body["totals"] == found["totals"]


def test_estimates_write_offs_and_crashed_calls_are_told_beside_the_sums(get: Get, table: CountedTable) -> None:
    put(table, now(), estimated=True, outcome=RequestOutcome.TRUNCATED, charged_tokens=70, written_off_tokens=30)
    _put_expired(table, charged=300, written_off=400)
    totals = get("/usage/daily").body["totals"]
    assert (totals["requests"], totals["charged_tokens"], totals["written_off_tokens"]) == (2, 370, 430)
    assert totals["estimated"] == {"requests": 1, "tokens": 70}
    assert totals["outcomes"]["truncated"] == 1
    assert totals["expired"] == {
        "requests": 1,
        "charged_tokens": 300,
        "written_off_tokens": 400,
        "corrected_requests": 0,
    }
    groups = get("/usage/daily", group_by="model").body["data"][-1]["groups"]
    assert [(one["model"], one["charged_tokens"]) for one in groups] == [(None, 300), (HAIKU, 70)]


def _put_expired(table: CountedTable, charged: int, written_off: int) -> None:
    table.client.put_item(
        TableName=NAME,
        Item={
            "PK": {"S": f"TENANT#main#USER#{SUBJECT}"},
            "SK": {"S": "EXPIRED#2026-11#r1#n1"},
            "Type": {"S": "ExpiredReservation"},
            "amount": {"N": str(charged + written_off)},
            "charged": {"N": str(charged)},
            "written_off": {"N": str(written_off)},
            "outcome": {"S": "expired"},
            "swept_at": {"N": str(int(now().timestamp()) - 1)},
        },
    )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2026-11-20", "to": "2026-11-19"}, "from"),
        ({"from": "2026-02-30"}, "from"),
        ({"to": "2026-02-30"}, "to"),
        ({"from": "20261120"}, "from"),
        ({"from": "1999-01-01"}, "from"),
        ({"from": "2025-01-01", "to": "2026-01-02"}, "from"),
        ({"group_by": "user"}, "group_by"),
        ({"group_by": ""}, "group_by"),
    ],
)
def test_what_is_no_range_is_refused_by_name(get: Get, query: dict[str, str], field: str) -> None:
    assert_refused(get("/usage/daily", **query), field)


@pytest.mark.parametrize(("last", "status"), [("2025-12-31", 200), ("2026-01-01", 200), ("2026-01-02", 400)])
def test_a_leap_years_days_fit_and_one_more_does_not(get: Get, last: str, status: int) -> None:
    assert get("/usage/daily", **{"from": "2025-01-01", "to": last}).status == status


@pytest.mark.parametrize(
    ("last", "days"), [("2000-01-01", 1), ("2000-01-29", 29), ("2000-01-30", 30), ("2000-01-31", 30)]
)
def test_thirty_days_end_where_days_begin(get: Get, last: str, days: int) -> None:
    assert len(get("/usage/daily", to=last).body["data"]) == days


def test_days_to_come_are_empty(get: Get) -> None:
    body = get("/usage/daily", **{"from": "2099-12-30", "to": "2099-12-31"}).body
    assert [day["date"] for day in body["data"]] == ["2099-12-30", "2099-12-31"]


def test_more_groups_than_one_answer_holds_go_on_with_the_next_day(get: Get, table: CountedTable) -> None:
    from tollgate.domain.rollups import DayRollUp, RowKey, RowKind, Sums, end_of
    from tollgate.storage.rollups import DayRollUps

    first = now().date() - timedelta(days=10)
    for number in range(4):
        day = first + timedelta(days=number)
        rows = {
            RowKey(RowKind.REQUEST, "2026-11", key_id=f"key_{key}"): Sums(requests=1, charged_tokens=10**15)
            for key in range(1_500)
        }
        DayRollUps(table).put_day("main", SUBJECT, DayRollUp(day, end_of(day), rows, f"g{number}"), None)
    DayRollUps(table).move_mark("main", SUBJECT, end_of(first + timedelta(days=9)))
    seen: list[str] = []
    start: str | None = first.isoformat()
    while start is not None:
        answer = get("/usage/daily", group_by="key", **{"from": start, "to": (first + timedelta(days=3)).isoformat()})
        assert answer.size < LAMBDA_ANSWER_BYTES
        assert len(answer.body["data"]) == 2
        seen += [day["date"] for day in answer.body["data"]]
        assert answer.body["has_more"] is (answer.body["next_from"] is not None)
        start = answer.body["next_from"]
    assert seen == [(first + timedelta(days=number)).isoformat() for number in range(4)]


def test_nobody_sees_the_use_of_somebody_else(get: Get, table: CountedTable) -> None:
    put(table, now() - timedelta(days=1), user_id="victim")
    put(table, now(), user_id="victim")
    _put_expired(table, 300, 400)
    for path in ("/usage/daily", "/usage/requests", "/usage/export"):
        for subject in ("eve", "victi", "victim#REQUEST"):
            text = get(path, subject).text
            assert HAIKU not in text
            assert "300" not in text
    assert get("/usage/daily", "victim").body["totals"]["requests"] == 2


# --- Single calls


def test_no_calls_are_an_empty_page(get: Get) -> None:
    assert get("/usage/requests").body == {"data": [], "has_more": False, "next_after": None}


def test_a_call_tells_what_it_used_cost_and_was_charged(get: Get, table: CountedTable) -> None:
    put(table, now(), counts=TokenCounts(10, 5, 3, 2, 1), first_byte_ms=None, speed="fast")
    [call] = get("/usage/requests").body["data"]
    assert call["by_kind"] == {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_write_5m_tokens": 3,
        "cache_write_1h_tokens": 2,
        "cache_read_tokens": 1,
    }
    assert (call["kind"], call["outcome"], call["model"], call["key_id"]) == ("request", "complete", HAIKU, "key_1")
    assert (call["charged_tokens"], call["estimated"], call["first_byte_ms"], call["speed"]) == (
        21,
        False,
        None,
        "fast",
    )
    assert call["cost"]["picousd"] > 0


def test_a_crashed_call_is_in_the_list(get: Get, table: CountedTable) -> None:
    _put_expired(table, 300, 400)
    [call] = get("/usage/requests").body["data"]
    assert (call["kind"], call["outcome"], call["estimated"], call["model"]) == ("expired", "expired", True, None)
    assert (call["charged_tokens"], call["written_off_tokens"], call["reserved_tokens"]) == (300, 400, 700)


def test_pages_are_walked_by_cursor(get: Get, table: CountedTable) -> None:
    names = [f"req_{number}" for number in range(7)]
    for number, name in enumerate(names):
        put(table, now() - timedelta(minutes=1, seconds=number), request_id=name)
    seen: list[str] = []
    query = {"limit": "3"}
    while True:
        body = get("/usage/requests", **query).body
        seen += [call["id"] for call in body["data"]]
        if not body["has_more"]:
            break
        query["after"] = body["next_after"]
    assert seen == names
    assert body["next_after"] is None


def test_a_cursor_of_another_list_or_another_user_is_refused(get: Get, table: CountedTable) -> None:
    for number in range(3):
        put(table, now() - timedelta(seconds=number))
        put(table, now() - timedelta(seconds=number), user_id="eve")
    cursor = get("/usage/requests", limit="1").body["next_after"]
    assert get("/usage/requests", after=cursor).status == 200
    assert_refused(get("/usage/requests", "eve", after=cursor), "after")
    assert_refused(get("/usage/requests", after=cursor, outcome="complete"), "after")
    assert_refused(get("/usage/export", after=cursor), "after")
    for text in ("x", "....", cursor[:-2], cursor + "AAAA", "é", "A" * 300, cursor.swapcase()):
        assert_refused(get("/usage/requests", after=text), "after")


def forged(told: object, *, subject: str = SUBJECT, raw: bytes | None = None) -> str:
    """A cursor of the plain list, by somebody who has read how they are made: the digest has no key."""
    filters = {"model": None, "key_id": None, "outcome": None, "first": None, "to": None}
    of_list = json.dumps(["main", subject, "requests", sorted(filters.items())])
    body = raw if raw is not None else json.dumps(told, separators=(",", ":")).encode()
    digest = sha256(of_list.encode() + b"\0" + body).digest()[:8]
    return urlsafe_b64encode(digest + body).decode().rstrip("=")


@pytest.mark.parametrize(
    "told",
    [
        ["2026-11-20T00:00:00", "req_1"],
        ["2026-11-20", "req_1"],
        ["2026-11-20T02:00:00+02:00", "req_1"],
        ["2026-11-20T00:00:00Z", "req_1"],
        ["2026-11-20T00:00:00+00:00", 5],
        ["2026-11-20T00:00:00+00:00", None],
        ["2026-11-20T00:00:00+00:00", ""],
        ["2026-11-20T00:00:00+00:00", "a b"],
        ["2026-11-20T00:00:00+00:00", "\ud800"],
        ["2026-11-20T00:00:00+00:00", "x" * 201],
        ["2026-11-20T00:00:00+00:00", "x", "y"],
        ["0001-01-01T00:00:00+23:59", "x"],
        ["9999-12-31T23:59:59-23:59", "x"],
        ["1999-12-31T23:59:59.999999+00:00", "x"],
        ["2100-01-01T00:00:00+00:00", "x"],
        [5, "x"],
        ["a"],
        [],
        {"2026-11-20T00:00:00+00:00": 1, "b": 2},
        "ab",
        5,
        None,
    ],
)
def test_a_forged_cursor_is_refused_whatever_it_holds(get: Get, table: CountedTable, told: object) -> None:
    put(table, now() - timedelta(seconds=5))
    _put_expired(table, 3, 4)
    assert_refused(get("/usage/requests", after=forged(told)), "after")


@pytest.mark.parametrize("raw", [b"", b"[", b"\xff", b"[" * 200, b'["2026-11-20T00:00:00+00:00", "a"]', b"NaN"])
def test_a_forged_cursor_of_no_json_of_ours_is_refused(get: Get, raw: bytes) -> None:
    assert_refused(get("/usage/requests", after=forged(None, raw=raw)), "after")


@pytest.mark.parametrize("instant", ["2000-01-01T00:00:00+00:00", "2099-12-31T23:59:59.999999+00:00"])
def test_a_cursor_that_somebody_made_well_shows_their_own_list_and_no_more_of_it(
    get: Get, table: CountedTable, instant: str
) -> None:
    put(table, now() - timedelta(seconds=5), request_id="mine")
    put(table, now() - timedelta(days=40), request_id="before")
    put(table, now() - timedelta(seconds=5), request_id="theirs", user_id="eve")
    told = [call["id"] for call in get("/usage/requests", after=forged([instant, "a"])).body["data"]]
    assert told == (["mine"] if instant > "2050" else [])
    assert_refused(get("/usage/requests", after=forged([instant, "a"], subject="eve")), "after")


@pytest.mark.parametrize(
    ("path", "query", "names"),
    [
        ("/usage/requests", {"key": "key_2"}, ["key"]),
        ("/usage/requests", {"models": "x", "limit": "5", "Outcome": "complete"}, ["Outcome", "models"]),
        ("/usage/daily", {"group": "model"}, ["group"]),
        ("/usage/export", {"model": HAIKU}, ["model"]),
        ("/usage/current", {"from": "2026-11-20"}, ["from"]),
        ("/usage/requests", {"first": "2026-11-20"}, ["first"]),
        ("/usage/requests", {"x" * 300: "1"}, ["x" * 60]),
    ],
)
def test_a_parameter_that_a_route_does_not_have_is_refused_by_name(
    get: Get, path: str, query: dict[str, str], names: list[str]
) -> None:
    answer = get(path, **query)
    assert_refused(answer, "query.")
    assert answer.body["error"]["message"] == f"query.{', '.join(names)}: no parameter of this route"


@pytest.mark.parametrize(("path", "status"), [("/usage/daily", 405), ("/usage/nothing", 404)])
def test_whatever_the_parameters_a_wrong_method_or_path_is_told_first(get: Get, path: str, status: int) -> None:
    assert get(path, method="TRACE", first="2026-11-20").status == status


def test_a_model_is_found_by_the_id_asked_for_and_by_the_one_served(get: Get, table: CountedTable) -> None:
    put(table, now() - timedelta(seconds=1), request_id="a", model=HAIKU, served_model=f"{HAIKU}-20251001")
    put(table, now() - timedelta(seconds=2), request_id="b", model=HAIKU, served_model=SONNET)
    put(table, now() - timedelta(seconds=3), request_id="c", model=HAIKU, served_model=None)
    for model, expected in ((HAIKU, ["a", "b", "c"]), (f"{HAIKU}-20251001", ["a"]), (SONNET, ["b"]), ("x", [])):
        assert [call["id"] for call in get("/usage/requests", model=model).body["data"]] == expected


def test_an_estimate_that_was_never_booked_is_counted_among_the_estimates(get: Get, table: CountedTable) -> None:
    """Its counts and cost are in the sums; its charge is that of the expired call that the sweep made of it."""
    put(table, now() - timedelta(seconds=5), booked=False, estimated=True, charged_tokens=150)
    _put_expired(table, 150, 0)
    for body in (get("/usage/daily").body["totals"], get("/usage/daily", group_by="key").body["totals"]):
        assert (body["requests"], body["charged_tokens"]) == (1, 150)
        assert body["by_kind"]["input_tokens"] == 100
        assert body["estimated"] == {"requests": 1, "tokens": 0}
        assert (body["unbooked"]["requests"], body["expired"]["requests"]) == (1, 1)
    calls = get("/usage/requests").body["data"]
    assert {call["kind"]: call["charged_tokens"] for call in calls} == {"expired": 150, "unbooked": 0}


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"outcome": "refused"}, {"model": ""}, {"from": "now"}],
)
def test_wrong_filters_are_refused_by_name(get: Get, query: dict[str, str]) -> None:
    assert_refused(get("/usage/requests", **query), next(iter(query)))


def test_filters_reach_the_list(get: Get, table: CountedTable) -> None:
    put(table, now() - timedelta(seconds=1), request_id="a")
    put(table, now() - timedelta(seconds=2), request_id="b", model=SONNET)
    put(table, now() - timedelta(seconds=3), request_id="c", credential_id="key_2")
    put(table, now() - timedelta(seconds=4), request_id="d", outcome=RequestOutcome.DEADLINE)
    put(table, now() - timedelta(days=40), request_id="e")
    for query, expected in (
        ({"model": SONNET}, ["b"]),
        ({"key_id": "key_2"}, ["c"]),
        ({"outcome": "deadline"}, ["d"]),
        ({}, ["a", "b", "c", "d"]),
        ({"to": (now() - timedelta(days=30)).date().isoformat()}, ["e"]),
    ):
        assert [call["id"] for call in get("/usage/requests", **query).body["data"]] == expected


# --- Exports


def exported(get: Get, **query: str) -> str:
    """The whole file, by the loop that docs/usage.md shows."""
    text, after = "", dict[str, str]()
    while True:
        answer = get("/usage/export", **query, **after)
        assert answer.status == 200
        assert answer.size < LAMBDA_ANSWER_BYTES
        text += answer.text
        if "link" not in answer.headers:
            assert "tollgate-next-after" not in answer.headers
            return text
        target = answer.headers["link"].partition(">")[0].removeprefix("<")
        assert urlsplit(target).path == "/usage/export"
        assert answer.headers["link"].endswith('rel="next"')
        after = {"after": parse_qs(urlsplit(target).query)["after"][0]}
        assert answer.headers["tollgate-next-after"] == after["after"]


def test_an_empty_export_is_its_head_alone(get: Get) -> None:
    answer = get("/usage/export")
    assert answer.text.startswith("at,id,kind,outcome,")
    assert answer.text.count("\r\n") == 1
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="usage.csv"'
    assert get("/usage/export", format="jsonl").text == ""


def test_csv_and_json_lines_tell_the_same_whole_numbers(get: Get, table: CountedTable) -> None:
    large = 2**63 + 12_345_678_901
    put(table, now() - timedelta(seconds=5), cost_picousd=large, charged_tokens=2**53 + 1)
    put(table, now() - timedelta(seconds=4), first_byte_ms=None, outcome=RequestOutcome.OVER_QUOTA, estimated=True)
    _put_expired(table, 300, 400)
    rows = list(csv.DictReader(io.StringIO(exported(get), newline="")))
    lines = [json.loads(line) for line in exported(get, format="jsonl").splitlines()]
    assert len(rows) == len(lines) == 3
    for row, line in zip(rows, lines, strict=True):
        assert list(row) == list(line)
        for name, value in line.items():
            told = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            assert row[name] == told
    assert rows[0]["cost_picousd"] == str(large)
    assert rows[0]["cost_usd"] == f"{large // 10**12}.{large % 10**12:012d}".rstrip("0")
    assert rows[0]["charged_tokens"] == str(2**53 + 1)
    assert (rows[2]["kind"], rows[2]["charged_tokens"], rows[2]["reserved_tokens"]) == ("expired", "300", "700")


def test_text_that_a_spreadsheet_would_run_is_made_plain(get: Get, table: CountedTable) -> None:
    """A model's name comes from upstream, and quotes, commas and line ends are text like any other."""
    evil = ['=HYPERLINK("http://x","y")', "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '"quoted", and\nbroken']
    for number, text in enumerate(evil):
        put(table, now() - timedelta(seconds=20 - number), served_model=text)
    rows = list(csv.DictReader(io.StringIO(exported(get), newline="")))
    told = [row["served_model"] for row in rows]
    assert told == [f"'{text}" for text in evil[:-1]] + evil[-1:]
    lines = exported(get, format="jsonl").splitlines()
    assert [json.loads(line)["served_model"] for line in lines] == evil


def test_a_large_export_comes_in_pieces_that_lambda_can_answer(get: Get, table: CountedTable) -> None:
    """Long texts, so that the size ends a piece and not the number of calls."""
    for number in range(60):
        put(table, now() - timedelta(seconds=100 - number), request_id=f"req_{number:03d}", served_model="é" * 20_000)
    for name in ("csv", "jsonl"):
        text = exported(get, format=name)
        assert [f"req_{number:03d}" in text for number in range(60)] == [True] * 60
        assert text.count("req_") == 60
        assert text.count("at,id,kind") == int(name == "csv")


def test_other_formats_are_refused(get: Get) -> None:
    assert_refused(get("/usage/export", format="xlsx"), "format")


# --- The running period


def test_the_running_period_tells_money_forecast_overage_and_records(get: Get, table: CountedTable) -> None:
    clock = SystemClock()
    anchor = (now() - timedelta(days=10)).replace(microsecond=0)
    profile = Users(table).create_profile(Profile("main", SUBJECT, "free", 1, anchor))
    account = Account.of(profile, load_catalog("default").plan("free"))
    period = period_at(account.plan.period_kind, anchor, now())
    ledger, key = Ledger(Meters(table), clock, SystemIds()), MeterKey("main", SUBJECT, period)
    for number in range(4):
        ask = Ask(0, 1_500, 1000, may_clamp=False, deadline_at_seconds=clock.now_seconds() + 60)
        grant = ledger.reserve(account, key, ask)
        ledger.settle(grant, Settlement(1_500, 0, TokenCounts(1_000, 500), cost_picousd=3_500_000_000))
        put(
            table,
            now() - timedelta(seconds=number),
            period_id=period.id,
            charged_tokens=1_500,
            cost_picousd=3_500_000_000,
            counts=TokenCounts(1_000, 500),
        )
    body = get("/usage/current").body
    assert body["tokens"]["used"] == 6_000
    assert body["cost"] == {"picousd": 14_000_000_000, "display": "$0.014"}
    assert body["overage"] == {"tokens": 0, "nanousd": 0, "display": "$0.00"}
    assert body["exact"] is True
    recorded = body["recorded"]
    assert (recorded["requests"], recorded["charged_tokens"]) == (4, 6_000)
    assert recorded["cost"]["picousd"] == body["cost_picousd"]
    if now() - period.start_at < timedelta(days=1):
        assert body["forecast"] is None
    else:
        heading = body["forecast"]
        assert heading["method"] == "straight_line"
        assert heading["used_tokens"] >= 6_000
        assert isinstance(heading["cost"]["picousd"], int)


def test_a_new_user_has_no_forecast_and_nothing_recorded(get: Get) -> None:
    body = get("/usage/current").body
    assert body["forecast"] is None
    assert body["recorded"]["requests"] == 0
    assert body["overage"]["nanousd"] == 0
