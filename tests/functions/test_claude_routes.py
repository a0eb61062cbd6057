"""The claude function's other routes: the simple form, count_tokens, models, the key itself, and what is no route."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import cast

import pytest

from tests.support.claude_function import MODEL, ClaudeFunction, claude_function
from tests.support.scripted_http import ScriptedServer, answer
from tollgate.catalog.loader import load_catalog
from tollgate.domain.principals import CredentialKind, Principal
from tollgate.edge.claude_views import model_page, model_view, newest_first, served_models
from tollgate.flows.count_tokens import BURST

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40).decode()
HELLO = [{"role": "user", "content": "Hello"}]

ANYBODY = Principal("main", "u-1", CredentialKind.API_KEY, "key-1")


@pytest.fixture(scope="module")
def container() -> Iterator[ClaudeFunction]:
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as function:
        yield function


@pytest.fixture
def function(container: ClaudeFunction) -> ClaudeFunction:
    container.next_caller()
    return container


class TestSimpleForm:
    def test_streams_claudes_own_events_and_then_one_of_usage(self, function: ClaudeFunction) -> None:
        answer = function.call("POST", "/claude/stream", {"messages": HELLO, "model": MODEL, "max_tokens": 50})
        exchange = function.claude.exchanges[-1]
        sent = bytes(exchange.sent)
        assert answer.body.startswith(sent)
        assert exchange.usage is not None
        [(name, usage)] = [event for event in answer.events if event[0] == "usage"]
        assert answer.events[-1][0] == name
        assert usage["usage"]["input_tokens"] == exchange.usage["input_tokens"]
        assert usage["usage"]["output_tokens"] == exchange.usage["output_tokens"]
        meter = function.meter()
        assert usage["period"]["used"] == meter["settled"]
        assert usage["period"]["remaining"] == meter["remaining"]
        assert usage["period"]["reserved"] == 0
        assert usage["charged_tokens"] == exchange.usage["input_tokens"] + exchange.usage["output_tokens"]
        assert usage["cost_picousd"] > 0
        assert datetime.fromisoformat(usage["resets_at"]) > datetime.now(UTC)
        assert answer.headers["content-type"].startswith("text/event-stream")

    def test_sends_the_image_and_the_system_prompt(self, function: ClaudeFunction) -> None:
        form = {"messages": HELLO, "image": PNG, "system": "Be brief.", "model": MODEL}
        assert function.call("POST", "/claude/stream", form).status == 200
        body = json.loads(function.claude.exchanges[-1].body)
        assert body["system"] == "Be brief."
        assert [block["type"] for block in body["messages"][0]["content"]] == ["image", "text"]
        assert body["stream"] is True

    def test_adds_no_event_to_an_answer_that_is_no_stream(self, function: ClaudeFunction) -> None:
        """Asked for a stream, upstream may still answer with one JSON document."""
        document = b'{"type":"message","model":"claude-haiku-4-5","usage":{"input_tokens":9,"output_tokens":3}}'
        with ScriptedServer(answer(document, content_type="Application/JSON")) as server, function.upstream_at(server):
            found = function.call("POST", "/claude/stream", {"messages": HELLO, "model": MODEL})
        assert (found.status, found.body) == (200, document)
        assert function.meter()["settled"] == 12

    def test_tells_the_usage_of_a_broken_answer_too(self, function: ClaudeFunction) -> None:
        form = {"messages": [{"role": "user", "content": "Hi [[fake truncate_after=2]]"}], "model": MODEL}
        events = function.call("POST", "/claude/stream", form).events
        assert [name for name, _ in events[-2:]] == ["error", "usage"]
        assert events[-1][1]["estimated"] is True
        assert events[-1][1]["outcome"] == "truncated"

    def test_passes_what_upstream_refuses_without_an_event_of_ours(self, function: ClaudeFunction) -> None:
        form = {"messages": [{"role": "user", "content": "Hi [[fake error=400]]"}], "model": MODEL}
        answer = function.call("POST", "/claude/stream", form)
        assert (answer.status, answer.body) == (400, bytes(function.claude.exchanges[-1].sent))

    @pytest.mark.parametrize("form", [{}, {"messages": HELLO, "image": "%%%"}, {"messages": HELLO, "max_tokens": "5"}])
    def test_refuses_what_does_not_fit(self, function: ClaudeFunction, form: dict[str, object]) -> None:
        answer = function.call("POST", "/claude/stream", form)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert len(function.claude.exchanges) == 0

    def test_wants_a_credential_before_it_looks_at_anything(self, function: ClaudeFunction) -> None:
        assert function.call("POST", "/claude/stream", b"{", key=None).status == 401


class TestCountTokens:
    def test_passes_both_ways_byte_for_byte_and_is_not_charged(self, function: ClaudeFunction) -> None:
        body = json.dumps({"model": MODEL, "messages": HELLO}, indent=1).encode()
        answer = function.call("POST", "/v1/messages/count_tokens", body, query="beta=true")
        exchange = function.claude.exchanges[-1]
        assert (exchange.body, exchange.target) == (body, "/v1/messages/count_tokens?beta=true")
        assert answer.status == 200
        assert answer.body == bytes(exchange.sent)
        assert function.items("Meter") == function.items("Request") == []

    def test_is_never_stopped_by_a_quota(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-full", "free")
        function.send("x" * 95_000, key=free)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "y" * 150_000}]}
        assert function.call("POST", "/v1/messages/count_tokens", body, key=free).status == 200

    def test_has_a_rate_limit_of_its_own(self, function: ClaudeFunction) -> None:
        busy = function.add_user(f"{function.user_id}-busy", "pro")
        body = {"model": MODEL, "messages": HELLO}
        answers = [function.call("POST", "/v1/messages/count_tokens", body, key=busy) for _ in range(BURST + 5)]
        assert [answer.status for answer in answers[:BURST]] == [200] * BURST
        assert answers[-1].error["type"] == "rate_limit_error"
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert function.send(key=busy).status == 200

    @pytest.mark.parametrize(("status", "seen"), [(400, 400), (401, 503), (429, 529), (500, 503)])
    def test_tells_upstreams_refusals_as_messages_do(self, function: ClaudeFunction, status: int, seen: int) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"[[fake error={status}]]"}]}
        assert function.call("POST", "/v1/messages/count_tokens", body).status == seen


class TestModels:
    def test_are_those_of_the_plan_in_anthropics_list_shape(self, function: ClaudeFunction) -> None:
        page = function.call("GET", "/v1/models", query="limit=1000").json
        assert {model["id"] for model in page["data"]} == load_catalog("default").plan("pro").models
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        assert page["has_more"] is False
        for model in page["data"]:
            assert model["type"] == "model"
            assert model["display_name"].startswith("Claude")
            datetime.fromisoformat(model["created_at"])

    def test_one_is_found_by_id_or_alias(self, function: ClaudeFunction) -> None:
        assert function.call("GET", f"/v1/models/{MODEL}").json["id"] == MODEL
        assert function.call("GET", f"/v1/models/{MODEL}-20251001").json["id"] == MODEL

    @pytest.mark.parametrize("name", ["gpt-5", "claude-fable-5-1", "%2e%2e", "a%2Fb"])
    def test_what_is_not_in_the_plan_is_not_there(self, function: ClaudeFunction, name: str) -> None:
        answer = function.call("GET", f"/v1/models/{name}")
        assert (answer.status, answer.error["type"]) == (404, "not_found_error")

    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "after_id=nope"])
    def test_a_page_nobody_can_turn_to_is_refused(self, function: ClaudeFunction, query: str) -> None:
        assert function.call("GET", "/v1/models", query=query).status == 400

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_pages_follow_each_other_without_gap_or_overlap(self, limit: int) -> None:
        catalog = load_catalog("default")
        models = list(catalog.models.values())
        ids: list[str] = []
        page = model_page(models, {"limit": str(limit)})
        for _ in range(len(models) + 1):
            ids += [model["id"] for model in cast("list[dict[str, str]]", page["data"])]
            if not page["has_more"]:
                break
            page = model_page(models, {"limit": str(limit), "after_id": str(page["last_id"])})
        assert ids == [model.id for model in models]
        back = model_page(models, {"limit": str(limit), "before_id": models[-1].id})
        assert back["last_id"] == models[-2].id
        assert back["has_more"] is (limit < len(models) - 1)

    def test_newest_come_first(self, function: ClaudeFunction) -> None:
        created = [model["created_at"] for model in function.call("GET", "/v1/models").json["data"]]
        assert created == sorted(created, reverse=True)
        models = list(load_catalog("default").models.values())
        assert newest_first(models) == newest_first(reversed(models)) != models

    def test_those_of_a_plan_keep_the_catalogs_order_and_retired_ones_are_not_among_them(self) -> None:
        catalog = load_catalog("default")
        plan, now = catalog.plan("pro"), datetime(2026, 11, 20, tzinfo=UTC)
        models = list(catalog.models.values())
        served = served_models(models, plan, ANYBODY, now)
        assert served == [model for model in models if model.id in plan.models]
        assert served_models(reversed(models), plan, ANYBODY, now) == served[::-1]
        retiring = [model for model in catalog.models.values() if model.retires_at is not None]
        for model in retiring:
            assert model.retires_at is not None
            assert model_view(model)["lifecycle"] == "deprecated"
            assert model not in served_models([model], plan, ANYBODY, model.retires_at)


class TestKey:
    def test_tells_what_it_may_know_of_itself(self, function: ClaudeFunction) -> None:
        key = function.add_user(f"{function.user_id}-key", "free")
        function.send(key=key)
        data = function.call("GET", "/v1/key", key=key).json["data"]
        meter = function.meter(f"{function.user_id}-key")
        assert data["label"] == f"key of {function.user_id}-key"
        assert (data["limit"], data["usage"], data["limit_remaining"]) == (
            100_000,
            meter["settled"],
            meter["remaining"],
        )
        assert data["plan"] == {"id": "free", "name": "Free"}
        assert data["is_free_tier"] is True
        assert data["expires_at"] is None
        assert data["rate_limit"]["requests_per_minute"] == 20
        assert data["resets_at"] == data["limit_reset"]
        assert key not in json.dumps(data)

    def test_of_a_user_who_never_called_is_all_there(self, function: ClaudeFunction) -> None:
        data = function.call("GET", "/v1/key", key=function.add_user(f"{function.user_id}-new", "free")).json["data"]
        assert (data["usage"], data["reserved"], data["limit_remaining"]) == (0, 0, 100_000)

    def test_is_nobodys_without_a_credential(self, function: ClaudeFunction) -> None:
        assert function.call("GET", "/v1/key", key=None).status == 401


class TestRoutes:
    @pytest.mark.parametrize("path", ["/api/hello", "/"])
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_hello_needs_no_credential(self, function: ClaudeFunction, method: str, path: str) -> None:
        answer = function.call(method, path, key=None)
        assert answer.status == 200
        assert bool(answer.body) is (method == "GET")

    @pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/messages/x", "/v1/messages/batches", "/v2/messages"])
    def test_what_is_no_route_is_404_in_claudes_envelope(self, function: ClaudeFunction, path: str) -> None:
        answer = function.call("POST", path, key=None)
        assert (answer.status, answer.error["type"]) == (404, "not_found_error")

    @pytest.mark.parametrize(
        ("method", "path", "wanted"),
        [
            ("GET", "/v1/messages", "POST"),
            ("PUT", "/v1/messages/count_tokens", "POST"),
            ("DELETE", "/v1/models", "GET"),
        ],
    )
    def test_the_wrong_method_is_405_and_names_the_right_one(
        self, function: ClaudeFunction, method: str, path: str, wanted: str
    ) -> None:
        answer = function.call(method, path, key=None)
        assert answer.status == 405
        assert wanted in answer.error["message"]

    @pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/v1/key"])
    def test_what_is_about_the_caller_needs_one(self, function: ClaudeFunction, path: str) -> None:
        answer = function.call("GET", path, key=None)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")

    def test_an_empty_event_is_an_answer_and_no_stack_trace(self, function: ClaudeFunction) -> None:
        assert function.call("", "", key=None).status in (404, 405)
