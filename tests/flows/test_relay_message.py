"""The relay of one message: what is held, what goes up, what comes down, and what is charged at each possible end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.support.fake_upstream import EVENT_STREAM, JSON, Chunk, Doing, FakeUpstream
from tests.support.ledger_world import START, LedgerWorld, a_plan
from tests.support.recorded_streams import BLOCK, OVERLOADED, PING, STOP, STREAMS, ended, event, started, text
from tests.support.scripted_dynamodb import Fate
from tollgate.catalog.loader import load_catalog
from tollgate.domain.errors import (
    AuthenticationError,
    DuplicateRequestError,
    InvalidRequestError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    QuotaExceededError,
    StoreUnavailableError,
    TollgateError,
    UpstreamBusyError,
    UpstreamUnavailableError,
)
from tollgate.domain.ledger import MeterKey
from tollgate.domain.message_requests import parse_message_request
from tollgate.domain.plans import ExpiryPolicy, QuotaKind
from tollgate.domain.principals import CredentialKind, KeyLimits, MaxTokensPolicy, Principal
from tollgate.domain.subscriptions import Entitlements
from tollgate.domain.tokens import TokenCounts
from tollgate.edge.errors import error_event
from tollgate.flows.accounts import Accounts
from tollgate.flows.message_calls import MessageCall, Relayed, Standing
from tollgate.flows.note_activity import ActivityNotes
from tollgate.flows.relay_message import SOFT_DEADLINE_SECONDS, MessageRelay
from tollgate.providers.claude import UpstreamLostError, UpstreamNotReachedError
from tollgate.storage.activity import Activity
from tollgate.storage.requests import RequestOutcome, Requests
from tollgate.storage.table import Table, plain

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog

MODEL = "claude-haiku-4-5"
COMPLETE = (started(), BLOCK, PING, text("Hello "), text("world"), ended(), STOP)
"""10 prompt tokens, 7 output tokens."""


class Reply:
    """`tollgate.flows.message_calls.Reply`, remembered."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.standing: Standing | None = None
        self.body = bytearray()
        self.errors: list[Exception] = []

    def start(self, status: int, headers: Mapping[str, str], standing: Standing) -> None:
        assert self.status is None
        self.status, self.headers, self.standing = status, headers, standing

    def write(self, data: bytes) -> None:
        assert self.status is not None
        self.body += data

    def write_error(self, error: Exception) -> None:
        self.errors.append(error)
        self.write(error_event(error, "req_1"))


class Journal:
    """`tollgate.flows.message_calls.Journal`, remembered."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.metrics: list[str] = []

    def event(self, name: str, **fields: str | int | bool | None) -> None:
        self.lines.append((name, fields))

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None:
        self.lines.append((name, fields | {"error": type(error).__name__}))

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None:
        self.metrics += values

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.lines]


def _unheard(name: str, error: Exception) -> None:
    """Nothing is reported."""
    raise AssertionError(name) from error


class World(LedgerWorld):
    """A user, a scripted upstream, and the relay between them."""

    def __init__(self, upstream: FakeUpstream, **plan: Any) -> None:  # noqa: ANN401  any field of Plan
        super().__init__(a_plan(**({"quota_tokens": 10_000} | plan)))
        self.upstream = upstream
        self.journal = Journal()
        self.active: list[MeterKey] = []
        self.noted: list[Principal] = []
        self.reply = Reply()
        self.catalog = cast("Catalog", _CatalogOf(self))
        table = Table(cast("Any", self.client), "t")
        self.relay = MessageRelay(
            accounts=Accounts(self.users, self.catalog, self),
            catalog=self.catalog,
            ledger=self.ledger,
            upstream=upstream,
            requests=Requests(table),
            clock=self,
            journal=self.journal,
            note_active=self.active.append,
            note_standing=lambda _: None,
            note_use=self.noted.append,
        )
        self.open_meter()

    def send(
        self,
        body: bytes = b"",
        *,
        policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP,
        allowed_models: frozenset[str] = frozenset(),
        limits: KeyLimits | None = None,
        **call: Any,  # noqa: ANN401
    ) -> Relayed:
        principal = Principal(
            "main", self.profile.user_id, CredentialKind.API_KEY, "key_1", policy, allowed_models, limits
        )
        fields: dict[str, Any] = {"deadline_at_seconds": self.seconds + 600, "headers": {"anthropic-beta": "x"}} | call
        return self.relay.relay(MessageCall("req_1", principal, body or a_body(), **fields), self.reply)

    def refused(self, body: bytes = b"", **call: Any) -> TollgateError:  # noqa: ANN401
        with pytest.raises(TollgateError) as caught:
            self.send(body, **call)
        assert self.reply.status is None
        return caught.value

    def pass_time(self, seconds: float) -> Doing:
        def turn() -> None:
            self.seconds += seconds

        return turn

    def lose_calls(self, *fates: Fate) -> Doing:
        def break_table() -> None:
            self.client.next_calls(*fates)

        return break_table

    @property
    def record(self) -> dict[str, Any]:
        [record] = self.records
        return record

    @property
    def records(self) -> list[dict[str, Any]]:
        items = (plain(item) for _, _, item in self.table.items())
        return [item for item in items if item["Type"] == "Request"]


class _CatalogOf:
    """The default catalog, with the world's plan in it."""

    def __init__(self, world: LedgerWorld) -> None:
        self._world = world
        self._catalog = load_catalog("default")
        self.default_plan_id = "test"
        self.dearest_model = self._catalog.dearest_model

    def plan(self, _: str) -> Any:  # noqa: ANN401  a Plan
        return self._world.plan

    def resolve_model(self, name: str) -> Any:  # noqa: ANN401  a Model
        return self._catalog.resolve_model(name)


def a_body(**changes: Any) -> bytes:  # noqa: ANN401  any JSON
    fields = {"model": MODEL, "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps(fields | changes).encode()


def bound(body: bytes) -> int:
    return parse_message_request(body).prompt_bound_tokens


def soft(**plan: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"quota_kind": QuotaKind.SOFT, "expiry_policy": ExpiryPolicy.INPUT} | plan


class TestACompleteAnswer:
    def test_passes_byte_for_byte_and_is_charged_by_the_providers_counts(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        relayed = world.send()
        assert world.reply.body == b"".join(COMPLETE)
        assert (world.reply.status, world.reply.headers) == (200, EVENT_STREAM)
        assert relayed.outcome is RequestOutcome.COMPLETE
        assert not relayed.estimated
        meter = world.meter
        assert (meter.settled_tokens, meter.written_off_tokens, meter.open_count) == (17, 0, 0)
        assert meter.counts == TokenCounts(10, 7)
        assert relayed.standing.meter == meter

    def test_of_a_key_with_limits_makes_no_write_more(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send(limits=KeyLimits("key_1", "key_1", budget_tokens=5_000, requests_per_minute=60, burst_requests=5))
        assert world.client.calls[-3:] == ["UpdateItem", "UpdateItem", "PutItem"]
        assert world.client.calls.count("UpdateItem") == 2
        assert world.meter.key_tokens == {"key_1": 17}

    def test_tells_who_was_served_when_all_is_written(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send()
        assert [principal.credential_id for principal in world.noted] == ["key_1"]

    def test_of_a_key_for_other_models_is_refused_before_any_write(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        error = world.refused(allowed_models=frozenset({"claude-of-another-name"}))
        assert error.error_code == "model_not_in_key"
        assert (world.noted, world.client.calls.count("UpdateItem")) == ([], 0)

    def test_makes_one_write_before_the_first_byte_and_two_after_the_end(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send()
        world.client.calls.clear()
        world.reply = Reply()
        world.upstream.before_head = lambda: before.extend(world.client.calls)
        before: list[str] = []
        world.send()
        assert before == ["UpdateItem"]
        assert world.client.calls == ["UpdateItem", "UpdateItem", "PutItem"]

    def test_notes_once_an_hour_that_its_meter_is_in_use_while_upstream_works(self) -> None:
        """One put more, between the request that went up and the head of its answer; else the three writes."""
        world = World(FakeUpstream(*COMPLETE), quota_tokens=100_000)
        world.relay.note_active = ActivityNotes(Activity(Table(cast("Any", world.client), "t")), world, _unheard).note
        world.send()
        calls, before = [], []
        world.upstream.before_head = lambda: before.append(len(world.client.calls))
        for seconds in (0, 1, 3600, 0):
            world.seconds += seconds
            world.client.calls.clear()
            world.reply = Reply()
            world.send()
            calls.append(world.client.calls.copy())
        assert before == [1, 1, 3, 1]
        assert calls[0] == calls[1] == calls[3] == ["UpdateItem", "UpdateItem", "PutItem"]
        # The profile is read anew once a minute, whoever calls.
        assert calls[2] == ["GetItem", "UpdateItem", "PutItem", "UpdateItem", "PutItem"]

    def test_whose_request_did_not_get_out_is_no_activity(self) -> None:
        upstream = FakeUpstream()
        upstream.before_head = UpstreamNotReachedError("refused")
        world = World(upstream)
        world.refused()
        assert world.active == []

    @pytest.mark.parametrize("recorded", STREAMS.values(), ids=STREAMS)
    def test_is_relayed_the_same_in_chunks_of_one_byte(self, recorded: Any) -> None:  # noqa: ANN401
        chunks = [recorded.data[at : at + 1] for at in range(len(recorded.data))]
        world = World(FakeUpstream(*chunks), **soft(overage_cap_tokens=100_000))
        relayed = world.send()
        assert world.reply.body == recorded.data
        assert relayed.estimated is not recorded.final

    def test_goes_up_as_it_came(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        body = b' {"max_tokens" : 100, "messages":[], "model":"claude-haiku-4-5" , "new": [1.50, "\\u00e9"]}\n'
        world.send(body, target="/v1/messages?beta=true")
        [request] = world.upstream.requests
        assert (request.method, request.target, request.body) == ("POST", "/v1/messages?beta=true", body)
        assert request.headers == {"anthropic-beta": "x"}

    def test_leaves_a_record_with_all_that_a_margin_needs(self) -> None:
        usage: dict[str, Any] = {
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "cache_read_input_tokens": 40,
            "speed": "standard",
            "inference_geo": "us",
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        }
        world = World(FakeUpstream())
        world.upstream.says(started(**usage), world.pass_time(2), ended(), STOP)
        world.upstream.before_head = world.pass_time(1)
        world.send()
        assert world.record | {"cost_picousd": 0} == {
            "PK": "TENANT#main#USER#u1",
            "SK": "REQUEST#2026-11-20T12:00:00.000000Z#req_1",
            "Type": "Request",
            "expires_at": int(START.timestamp()) + 90 * 24 * 3600,
            "request_id": "req_1",
            "reservation_id": "iiiiiii1",
            "credential_id": "key_1",
            "period_id": "2026-11",
            "plan_id": "test",
            "began_at": "2026-11-20T12:00:00.000000Z",
            "duration_ms": 3000,
            "first_byte_ms": 1000,
            "model": MODEL,
            "served_model": MODEL,
            "outcome": "complete",
            "estimated": False,
            "input_tokens": 10,
            "output_tokens": 7,
            "cache_write_5m_tokens": 10,
            "cache_write_1h_tokens": 20,
            "cache_read_tokens": 40,
            "prompt_tokens": 80,
            "price_from": "2025-10-15",
            "charged_tokens": 87,
            "written_off_tokens": 0,
            "cost_picousd": 0,
            "streamed": True,
            "speed": "standard",
            "service_tier": "standard",
            "inference_geo": "us",
            "web_searches": 2,
            "web_fetches": 1,
            "upstream": "anthropic",
            "upstream_request_id": "req_up",
            "nonce": "iiiii2",
            "booked": True,
        }

    def test_is_priced_by_the_model_that_served_it(self) -> None:
        served = World(FakeUpstream(started("claude-opus-5-5"), ended(), STOP))
        asked = World(FakeUpstream(started(), ended(), STOP))
        assert served.send().cost_picousd > asked.send().cost_picousd > 0
        assert (served.record["model"], served.record["served_model"]) == (MODEL, "claude-opus-5-5")

    def test_of_a_model_nobody_priced_is_never_free(self) -> None:
        world = World(FakeUpstream(started("claude-next-9"), ended(), STOP))
        dearest = World(FakeUpstream(started("claude-fable-5-1"), ended(), STOP))
        assert world.send().cost_picousd >= dearest.send().cost_picousd
        assert world.journal.names.count("unpriced_model_served") == 1

    def test_with_compaction_is_charged_for_it_too(self) -> None:
        world = World(FakeUpstream(STREAMS["compaction, which stands only in the iterations"].data), **soft())
        assert world.send().charged_tokens == 17 + 1080

    def test_is_told_in_one_line_without_a_word_of_it(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send(a_body(messages=[{"role": "user", "content": "CANARY"}]), headers={"x-claude-code-session-id": "s1"})
        [(name, fields)] = world.journal.lines
        assert name == "message_relayed"
        assert fields["outcome"] == "complete"
        assert (fields["input_tokens"], fields["output_tokens"], fields["charged_tokens"]) == (10, 7, 17)
        assert fields["remaining_tokens"] == 10_000 - 17
        assert fields["client_session_id"] == "s1"
        assert "CANARY" not in repr(world.journal.lines)
        assert "CANARY" not in repr(world.records)

    def test_that_is_not_streamed_is_settled_before_it_is_passed_on(self) -> None:
        body = json.dumps({"model": MODEL, "usage": {"input_tokens": 10, "output_tokens": 7}}).encode()
        world = World(FakeUpstream(body[:20], body[20:], headers=JSON))
        relayed = world.send(a_body(stream=False))
        assert world.reply.body == body
        assert world.reply.standing == relayed.standing
        assert world.reply.standing is not None
        assert world.reply.standing.meter.settled_tokens == 17
        assert not world.record["streamed"]

    def test_whose_caller_went_away_is_still_settled_exactly(self) -> None:
        """Reply swallows what a broken caller raises; the relay reads on to the end."""
        world = World(FakeUpstream(*COMPLETE))
        world.reply.write = lambda data: None  # type: ignore[method-assign]
        assert world.send().charged_tokens == 17


class TestAdmission:
    @pytest.mark.parametrize("name", ["gpt-5", "claude-unknown-1", "haiku", "claude-haiku-4-5-2025"])
    def test_a_model_nobody_knows_is_not_found(self, name: str) -> None:
        error = World(FakeUpstream()).refused(a_body(model=name))
        assert isinstance(error, NotFoundError)
        assert (error.error_code, error.public_message) == ("model_not_found", f"model: {name}")

    def test_a_model_outside_the_plan_is_a_bad_request(self) -> None:
        """What Anthropic's gateway protocol asks for; a 403 would read "Failed to authenticate" in Claude Code."""
        error = World(FakeUpstream(), models=frozenset({"claude-sonnet-5-5"})).refused()
        assert isinstance(error, InvalidRequestError)
        assert error.error_code == "model_not_in_plan"
        assert "Upgrade at example.com." in error.public_message

    def test_a_dated_snapshot_counts_as_its_model(self) -> None:
        world = World(FakeUpstream(*COMPLETE), models=frozenset({MODEL}))
        world.send(a_body(model="claude-haiku-4-5-20251001"))
        assert world.record["model"] == MODEL

    def test_an_unpaid_subscription_is_told_so(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.profile = replace(world.profile, user_id="u2", paid=False)
        world.users.create_profile(world.profile)
        assert isinstance(world.refused(), PaymentRequiredError)

    def test_an_account_whose_address_nobody_confirmed_calls_nothing(self) -> None:
        """Until the user pool says that it is confirmed; a profile made by the first call is a confirmed user's."""
        world = World(FakeUpstream(*COMPLETE))
        world.profile = replace(world.profile, user_id="u2", email="ada@example.com")
        world.users.create_profile(world.profile)
        world.users.mark_unverified("main", "u2")
        error = world.refused()
        assert isinstance(error, PermissionDeniedError)
        assert error.error_code == "email_not_verified"
        world.users.put_email("main", "u2", "ada@example.com")
        world.seconds += 61  # what the account was is remembered for a minute
        world.send()
        assert len(world.upstream.requests) == 1

    @pytest.mark.parametrize("kind", QuotaKind)
    def test_a_shape_without_a_bound_is_refused_by_name_on_hard_quotas_and_passed_on_soft_ones(
        self, kind: QuotaKind
    ) -> None:
        world = World(FakeUpstream(*COMPLETE), quota_kind=kind)
        body = a_body(tools=[{"type": "web_search_20260318"}], fallbacks="default")
        if kind is QuotaKind.SOFT:
            world.send(body)
            assert world.upstream.requests[0].body == body
        else:
            error = world.refused(body)
            assert error.error_code == "unbounded_request"
            assert "fallbacks, tool web_search_20260318" in error.public_message

    def test_a_malformed_body_holds_nothing(self) -> None:
        world = World(FakeUpstream())
        assert isinstance(world.refused(b"{"), InvalidRequestError)
        assert world.client.calls == []

    @pytest.mark.parametrize(("asked", "sent"), [(99, 99), (100, 100), (101, 100)])
    def test_max_tokens_is_clamped_to_the_plan(self, asked: int, sent: int) -> None:
        world = World(FakeUpstream(*COMPLETE), max_output_tokens=100)
        world.send(a_body(max_tokens=asked))
        assert world.upstream.requests[0].body == a_body(max_tokens=sent)

    @pytest.mark.parametrize(("asked", "fits"), [(100, True), (101, False)])
    def test_a_key_may_choose_refusal_instead(self, asked: int, fits: bool) -> None:
        world = World(FakeUpstream(*COMPLETE), max_output_tokens=100)
        if fits:
            world.send(a_body(max_tokens=asked), policy=MaxTokensPolicy.REFUSE)
        else:
            error = world.refused(a_body(max_tokens=asked), policy=MaxTokensPolicy.REFUSE)
            assert error.error_code == "max_tokens_too_large"

    def test_max_tokens_is_clamped_to_what_is_left(self) -> None:
        room = bound(a_body()) + 40
        world = World(FakeUpstream(*COMPLETE), quota_tokens=room)
        world.send(a_body())
        assert world.upstream.requests[0].body == a_body(max_tokens=40)

    def test_what_is_left_is_not_enough_for_a_key_that_chose_refusal(self) -> None:
        world = World(FakeUpstream(*COMPLETE), quota_tokens=bound(a_body()) + 40)
        assert isinstance(world.refused(policy=MaxTokensPolicy.REFUSE), QuotaExceededError)

    def test_nothing_left_is_a_refusal_with_the_reset(self) -> None:
        world = World(FakeUpstream(*COMPLETE), quota_tokens=100)
        error = world.refused()
        assert isinstance(error, QuotaExceededError)
        assert error.resets_at == world.key.period.end_at
        assert world.upstream.requests == []

    def test_a_thinking_budget_above_the_plans_clamp_is_refused_before_anything_is_held(self) -> None:
        world = World(FakeUpstream(), max_output_tokens=1500)
        error = world.refused(a_body(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 2000}))
        assert error.error_code == "thinking_budget_too_large"
        assert world.client.calls == ["GetItem"]  # the profile

    def test_a_thinking_budget_above_what_is_left_is_refused_and_nothing_stays_held(self) -> None:
        body = a_body(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 2000})
        world = World(FakeUpstream(), quota_tokens=bound(body) + 1000)
        assert world.refused(body).error_code == "thinking_budget_too_large"
        assert (world.meter.open_count, world.meter.remaining_tokens) == (0, bound(body) + 1000)

    def test_an_account_older_than_its_meter_is_loaded_again(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send()
        world.plan = a_plan(quota_tokens=20_000)
        world.ledger.change_entitlements(world.account, Entitlements(world.plan.id, None, trial=True), world.plan)
        world.reply = Reply()
        assert world.send().standing.account.profile.plan_version == 2

    def test_an_idempotency_key_serves_once(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send(idempotency_key="k1")
        world.reply = Reply()
        assert isinstance(world.refused(idempotency_key="k1"), DuplicateRequestError)
        assert len(world.upstream.requests) == 1

    def test_without_the_table_nothing_is_served(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.send()
        world.reply = Reply()
        world.client.next_calls(*[Fate.NEVER_ARRIVED] * 9)
        assert isinstance(world.refused(), StoreUnavailableError)
        assert len(world.upstream.requests) == 1


class TestHiddenInput:
    @pytest.mark.parametrize("excess", [-1, 0, 1])
    def test_a_prompt_above_its_bound_is_reserved_when_message_start_tells(self, excess: int) -> None:
        prompt = bound(a_body()) + excess
        world = World(FakeUpstream(started(input_tokens=prompt), *COMPLETE[1:]))
        world.send()
        assert world.client.calls.count("UpdateItem") == (3 if excess > 0 else 2)
        assert world.meter.settled_tokens == prompt + 7
        assert ("PromptAboveBound" in world.journal.metrics) is (excess > 0)

    @pytest.mark.parametrize("cut", range(1, 60, 7))
    def test_when_it_does_not_fit_the_answer_stops_before_any_of_it_is_passed_on(self, cut: int) -> None:
        stream = b"".join((started(input_tokens=50_000), *COMPLETE[1:]))
        world = World(FakeUpstream(stream[:cut], stream[cut:]))
        relayed = world.send()
        assert relayed.outcome is RequestOutcome.OVER_QUOTA
        assert b"Hello" not in world.reply.body
        [error] = world.reply.errors
        assert isinstance(error, QuotaExceededError)
        assert world.reply.body == stream[:cut] + b"\n" + error_event(error, "req_1")
        assert world.upstream.answers[0].closed

    def test_what_was_used_and_could_not_be_charged_is_written_off_where_it_can_be_seen(self) -> None:
        world = World(FakeUpstream(started(input_tokens=50_000), *COMPLETE[1:]))
        relayed = world.send()
        assert relayed.charged_tokens + relayed.written_off_tokens >= 50_000
        assert world.meter.settled_tokens <= 10_000
        assert world.meter.open_count == 0

    @pytest.mark.parametrize(("kind", "stops"), [(QuotaKind.HARD, True), (QuotaKind.SOFT, False)])
    def test_a_top_up_that_nobody_answers_stops_hard_quotas_only(self, kind: QuotaKind, stops: bool) -> None:
        prompt = bound(a_body()) + 100
        world = World(FakeUpstream(), quota_kind=kind)
        world.upstream.says(world.lose_calls(Fate.NEVER_ARRIVED), started(input_tokens=prompt), *COMPLETE[1:])
        relayed = world.send()
        assert relayed.outcome is (RequestOutcome.OVER_QUOTA if stops else RequestOutcome.COMPLETE)
        assert world.meter.open_count == 0


def whole(**usage: Any) -> bytes:  # noqa: ANN401  any JSON
    """An answer that is not streamed."""
    content = [{"type": "text", "text": "SECRET"}]
    return json.dumps({"type": "message", "model": MODEL, "content": content, "usage": usage}).encode()


class TestAWholeAnswerThatTurnsOutLarger:
    BODY = a_body(stream=False)
    HELD = bound(BODY) + 100

    def world(self, used_tokens: int, **plan: Any) -> World:  # noqa: ANN401
        answer = whole(input_tokens=used_tokens - 7, output_tokens=7)
        return World(FakeUpstream(answer, headers=JSON), **({"quota_tokens": 2000} | plan))

    @pytest.mark.parametrize("more", [-1, 0, 1, 500])
    def test_is_delivered_and_charged_in_full_while_the_quota_has_room(self, more: int) -> None:
        world = self.world(self.HELD + more)
        relayed = world.send(self.BODY)
        assert (relayed.outcome, relayed.charged_tokens) == (RequestOutcome.COMPLETE, self.HELD + more)
        assert relayed.written_off_tokens == 0
        assert b"SECRET" in world.reply.body

    @pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False), (400_000, False)])
    def test_is_not_delivered_by_a_hard_quota_that_cannot_pay_for_it(self, more: int, fits: bool) -> None:
        world = self.world(2000 + more)
        if fits:
            assert world.send(self.BODY).outcome is RequestOutcome.COMPLETE
        else:
            assert isinstance(world.refused(self.BODY), QuotaExceededError)
            assert world.reply.body == b""
            assert world.record["outcome"] == "over_quota"
            assert world.record["charged_tokens"] + world.record["written_off_tokens"] == 2000 + more
        assert world.meter.open_count == 0
        assert world.meter.settled_tokens <= 2000

    def test_is_delivered_by_a_soft_quota_and_shows_what_was_written_off(self) -> None:
        world = self.world(9000, **soft(overage_cap_tokens=500))
        relayed = world.send(self.BODY)
        assert (relayed.charged_tokens, relayed.written_off_tokens) == (2500, 6500)
        assert b"SECRET" in world.reply.body

    def test_is_seen_where_bounds_are_watched(self) -> None:
        world = self.world(self.HELD + 500)
        world.send(self.BODY)
        assert "PromptAboveBound" in world.journal.metrics


class TestSlices:
    def world(self, output_tokens: int, **plan: Any) -> World:  # noqa: ANN401
        """An answer of about `output_tokens`, three bytes each, in a plan with slices of 100."""
        deltas = [text("abc" * 10) for _ in range(output_tokens // 10)]
        upstream = FakeUpstream(started(), *deltas, ended(output_tokens=output_tokens), STOP)
        return World(upstream, **(soft(slice_output_tokens=100, quota_tokens=1000) | plan))

    def test_only_the_first_slice_is_held_at_the_start(self) -> None:
        world = self.world(10)
        world.send(a_body(max_tokens=64_000))
        assert world.reply.standing is not None
        assert world.reply.standing.meter.remaining_tokens == 1000 - bound(a_body(max_tokens=64_000)) - 100
        assert world.upstream.requests[0].body == a_body(max_tokens=64_000)

    @pytest.mark.parametrize(("output_tokens", "top_ups"), [(50, 0), (300, 1), (600, 4)])
    def test_another_slice_is_held_before_the_last_is_used_up(self, output_tokens: int, top_ups: int) -> None:
        """The room that the prompt's bound left over is used first."""
        world = self.world(output_tokens)
        world.send(a_body(max_tokens=64_000))
        assert world.client.calls.count("UpdateItem") == 2 + top_ups
        assert world.meter.settled_tokens == 10 + output_tokens

    def test_the_answer_ends_when_the_cap_is_reached(self) -> None:
        world = self.world(5000, overage_cap_tokens=500)
        relayed = world.send(a_body(max_tokens=64_000))
        assert relayed.outcome is RequestOutcome.OVER_QUOTA
        assert isinstance(world.reply.errors[0], QuotaExceededError)
        assert 1000 < world.meter.settled_tokens <= 1500
        assert world.meter.open_count == 0

    def test_hidden_output_beyond_the_cap_is_written_off(self) -> None:
        """Thinking that is not shown is seen only in the final counts."""
        world = World(
            FakeUpstream(started(), text("x"), ended(output_tokens=5000), STOP),
            **soft(slice_output_tokens=100, quota_tokens=1000, overage_cap_tokens=500),
        )
        relayed = world.send(a_body(max_tokens=64_000))
        assert relayed.outcome is RequestOutcome.COMPLETE
        assert (relayed.charged_tokens, relayed.written_off_tokens) == (1500, 3510)
        assert world.meter.remaining_tokens == -500

    def test_a_clamp_near_the_cap_goes_into_the_body(self) -> None:
        body = a_body(max_tokens=64_000)
        world = self.world(10, quota_tokens=bound(body) + 40)
        world.send(body)
        assert world.upstream.requests[0].body == a_body(max_tokens=40)

    def test_hard_quotas_hold_it_all_at_once(self) -> None:
        world = self.world(10, quota_kind=QuotaKind.HARD)
        world.send(a_body(max_tokens=700))
        assert world.reply.standing is not None
        assert world.reply.standing.meter.remaining_tokens < 300


PROMPT = 10
LARGE = a_body(messages=[{"role": "user", "content": "word " * 400}])


class TestAnswersWithoutCounts:
    """A prompt that upstream did not tell in numbers is charged by its bound, and the record says that it is one."""

    @pytest.mark.parametrize("policy", ExpiryPolicy)
    @pytest.mark.parametrize("value", [None, "10", -5, 10.0, True, 10**40])
    def test_a_prompt_told_in_no_number_is_never_free(self, value: object, policy: ExpiryPolicy) -> None:
        world = World(FakeUpstream(started(input_tokens=value), *COMPLETE[1:]), expiry_policy=policy)
        relayed = world.send(LARGE)
        assert (relayed.outcome, relayed.estimated) == (RequestOutcome.TRUNCATED, True)
        assert relayed.charged_tokens >= bound(LARGE) > 2000
        assert world.reply.body == b"".join((started(input_tokens=value), *COMPLETE[1:]))

    def test_nor_is_one_of_an_answer_that_never_started(self) -> None:
        world = World(FakeUpstream(*COMPLETE[1:]), expiry_policy=ExpiryPolicy.INPUT)
        assert world.send(LARGE).charged_tokens >= bound(LARGE)
        assert world.record["estimated"]

    @pytest.mark.parametrize("usage", [{"output_tokens": 7}, {"input_tokens": True, "output_tokens": 7}])
    def test_nor_is_one_of_an_answer_that_is_not_streamed(self, usage: dict[str, Any]) -> None:
        world = World(FakeUpstream(whole(**usage), headers=JSON), expiry_policy=ExpiryPolicy.INPUT)
        relayed = world.send(a_body(stream=False))
        assert relayed.estimated
        assert relayed.charged_tokens >= bound(a_body(stream=False))
        assert b"SECRET" in world.reply.body

    def test_what_is_known_beyond_the_bound_counts_beside_what_is_not(self) -> None:
        first = started(input_tokens=5000, cache_read_input_tokens="x")
        world = World(FakeUpstream(first, *COMPLETE[1:]), **soft())
        assert world.send().charged_tokens >= 5000

    def test_a_count_beyond_all_reason_is_not_written_off_as_if_it_were_one(self) -> None:
        world = World(FakeUpstream(*COMPLETE[:-2], ended(output_tokens=10**40), STOP))
        relayed = world.send()
        assert relayed.estimated
        assert relayed.charged_tokens + relayed.written_off_tokens <= bound(a_body()) + 100

    def test_an_answer_that_begins_again_is_charged_for_both(self) -> None:
        world = World(FakeUpstream(started(input_tokens=3000), started(input_tokens=2000), *COMPLETE[1:]), **soft())
        relayed = world.send()
        assert relayed.estimated
        assert relayed.charged_tokens >= 5000 + 7

    def test_an_answer_that_begins_again_stops_at_a_hard_quota_too(self) -> None:
        beginnings = [started(input_tokens=4000) for _ in range(5)]
        world = World(FakeUpstream(*beginnings, *COMPLETE[1:]))
        assert world.send().outcome is RequestOutcome.OVER_QUOTA
        assert b"Hello" not in world.reply.body

    def test_an_event_that_nobody_knows_need_not_be_json(self) -> None:
        heartbeat = b"event: heartbeat\ndata: still alive\n\n"
        world = World(FakeUpstream(*COMPLETE[:2], heartbeat, *COMPLETE[2:]))
        relayed = world.send()
        assert (relayed.outcome, relayed.charged_tokens) == (RequestOutcome.COMPLETE, 17)
        assert heartbeat in world.reply.body

    def test_padding_and_spacing_do_not_change_what_a_cut_answer_costs(self) -> None:
        charged = set()
        for form in (
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"abcd"}}',
            b'{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "abcd"}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"abcd"}                   }',
        ):
            delta = b"event: content_block_delta\ndata: " + form + b"\n\n"
            world = World(FakeUpstream(started(), *[delta] * 400, UpstreamLostError("reset")), **soft())
            charged.add(world.send(a_body(max_tokens=4000)).charged_tokens)
        assert charged == {PROMPT + 400}

    def test_spaced_events_reach_the_next_slice_like_any_other(self) -> None:
        spaced = b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": "%b"}}\n\n' % (
            b"abc" * 10
        )
        world = World(
            FakeUpstream(started(), *[spaced] * 500, ended(output_tokens=5000), STOP),
            **soft(slice_output_tokens=100, quota_tokens=1000, overage_cap_tokens=500),
        )
        assert world.send(a_body(max_tokens=64_000)).outcome is RequestOutcome.OVER_QUOTA


class Unlucky(Reply):
    """A reply with a fault of its own: `start` or a `write` raises what no reply should."""

    def __init__(self, *, at_write: int | None = None) -> None:
        super().__init__()
        self._at_write = at_write

    def start(self, status: int, headers: Mapping[str, str], standing: Standing) -> None:
        if self._at_write is None:
            raise ValueError("HTTP cannot carry the header")
        super().start(status, headers, standing)

    def write(self, data: bytes) -> None:
        self._at_write = (self._at_write or 0) - 1
        if self._at_write < 0:
            raise MemoryError
        super().write(data)


class TestFaultsOfOurOwn:
    """Whatever breaks between reservation and settlement, the reservation does not stay open until the sweep."""

    @pytest.mark.parametrize("at_write", [None, *range(len(COMPLETE))])
    def test_a_reply_that_breaks_is_settled_and_recorded_and_told_as_it_was(self, at_write: int | None) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.reply = Unlucky(at_write=at_write)
        with pytest.raises(ValueError if at_write is None else MemoryError):
            world.send()
        assert world.meter.open_count == 0
        known = at_write is not None and at_write >= COMPLETE.index(STOP) - 1
        expected = 17 if known else bound(a_body()) + 100 if at_write is None else PROMPT + 100
        assert (world.meter.settled_tokens, world.record["estimated"]) == (expected, not known)
        assert world.upstream.answers[0].closed

    def test_a_whole_answer_whose_reply_breaks_is_settled_once(self) -> None:
        world = World(FakeUpstream(whole(input_tokens=10, output_tokens=7), headers=JSON))
        world.reply = Unlucky()
        with pytest.raises(ValueError, match="carry"):
            world.send(a_body(stream=False))
        assert (world.meter.settled_tokens, world.meter.open_count) == (17, 0)
        assert len(world.records) == 1

    def test_a_refusal_whose_reply_breaks_costs_nothing(self) -> None:
        world = World(FakeUpstream(b"{}", status=400, headers=JSON))
        world.reply = Unlucky()
        with pytest.raises(ValueError, match="carry"):
            world.send()
        assert (world.meter.remaining_tokens, world.meter.open_count) == (10_000, 0)
        assert world.records == []

    @pytest.mark.parametrize(("status", "settled"), [(200, True), (400, False), (500, False)])
    def test_an_upstream_that_breaks_in_its_answer_is_settled_by_what_its_status_said(
        self, status: int, settled: bool
    ) -> None:
        world = World(FakeUpstream(ZeroDivisionError(), status=status, headers=JSON))
        with pytest.raises(ZeroDivisionError):
            world.send()
        assert world.meter.open_count == 0
        assert bool(world.meter.settled_tokens) is settled

    def test_an_upstream_that_breaks_in_sending_may_have_cost(self) -> None:
        world = World(FakeUpstream())
        world.upstream.before_head = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            world.send()
        assert (world.meter.settled_tokens, world.meter.open_count) == (bound(a_body()) + 100, 0)

    def test_a_settlement_that_breaks_is_not_tried_twice(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        calls: list[str] = []

        def settle(*_: object) -> None:
            calls.append("settle")
            raise ZeroDivisionError

        world.ledger.settle = settle  # type: ignore[method-assign,assignment]
        with pytest.raises(ZeroDivisionError):
            world.send()
        assert calls == ["settle"]


class TestBrokenAnswers:
    @pytest.mark.parametrize("policy", ExpiryPolicy)
    @pytest.mark.parametrize("events", range(len(COMPLETE) + 1))
    @pytest.mark.parametrize("how", ["ends", "breaks"])
    def test_a_stream_cut_after_each_event_is_settled_once_by_the_plans_rule(
        self, events: int, policy: ExpiryPolicy, how: str
    ) -> None:
        chunks: list[Chunk] = [*COMPLETE[:events]]
        if how == "breaks":
            chunks.append(UpstreamLostError("ConnectionResetError"))
        world = World(FakeUpstream(*chunks), expiry_policy=policy)
        relayed = world.send()
        held = bound(a_body()) + 100
        meter = world.meter
        assert (meter.open_count, meter.remaining_tokens) == (0, 10_000 - meter.settled_tokens)
        assert world.record["outcome"] == ("complete" if events == len(COMPLETE) else "truncated")
        if events >= len(COMPLETE) - 1:  # the final counts are known
            assert (relayed.charged_tokens, relayed.estimated) == (17, False)
            return
        assert relayed.estimated
        if policy is ExpiryPolicy.STRICT:
            assert relayed.charged_tokens == (held if events == 0 else PROMPT + 100)
        else:
            delivered = sum(len(words) for words in ("Hello ", "world")[: max(0, events - 3)]) // 4
            charged = bound(a_body()) if events == 0 else PROMPT + delivered
            assert charged <= relayed.charged_tokens <= charged + 2
            assert relayed.charged_tokens + relayed.written_off_tokens == held

    def test_a_stream_cut_at_every_byte_is_settled_once_and_ends_with_an_error_event(self) -> None:
        whole = b"".join(COMPLETE)
        for cut in range(len(whole)):
            world = World(FakeUpstream(whole[:cut]))
            world.send()
            assert world.meter.open_count == 0
            assert len(world.records) == 1
            body = bytes(world.reply.body)
            assert body.startswith(whole[:cut])
            if whole[:cut].endswith(STOP):
                continue
            # Whoever reads events reads the error last, under its own name, whatever was cut before it.
            last = [block for block in body.split(b"\n\n") if block][-1]
            assert [line for line in last.split(b"\n") if line.startswith(b"event:")][-1] == b"event: error"

    def test_an_error_that_upstream_sends_passes_as_it_is(self) -> None:
        world = World(FakeUpstream(started(), text("half"), OVERLOADED), expiry_policy=ExpiryPolicy.INPUT)
        relayed = world.send()
        assert world.reply.body == started() + text("half") + OVERLOADED
        assert world.reply.errors == []
        assert relayed.outcome is RequestOutcome.UPSTREAM_ERROR
        assert relayed.charged_tokens == PROMPT + 1

    def test_what_is_no_event_stream_is_not_passed_on_for_ever(self) -> None:
        world = World(FakeUpstream(started(), event("message_delta")[:-4] + b"\n\n", b"more"))
        relayed = world.send()
        assert relayed.outcome is RequestOutcome.TRUNCATED
        assert not world.reply.body.endswith(b"more")

    @pytest.mark.parametrize("content_type", ["TEXT/EVENT-STREAM", "text/Event-Stream; charset=utf-8"])
    def test_a_stream_is_one_in_any_case(self, content_type: str) -> None:
        world = World(FakeUpstream(*COMPLETE, headers={"content-type": content_type}))
        assert world.send().charged_tokens == 17
        assert world.record["estimated"] is False

    def test_never_books_nothing_after_bytes_were_delivered(self) -> None:
        world = World(FakeUpstream(text("x" * 400)), expiry_policy=ExpiryPolicy.VOID)
        assert world.send().charged_tokens >= 100

    @pytest.mark.parametrize("stream", [True, False])
    def test_at_the_soft_deadline_the_answer_is_stopped_and_settled(self, stream: bool) -> None:
        body = a_body(stream=stream)
        world = World(FakeUpstream(headers=EVENT_STREAM if stream else JSON))
        world.upstream.says(started(), world.pass_time(590), UpstreamLostError("TimeoutError"))
        if stream:
            assert world.send(body).outcome is RequestOutcome.DEADLINE
            [error] = world.reply.errors
        else:
            error = world.refused(body)
        assert isinstance(error, UpstreamUnavailableError)
        assert error.error_code == "deadline_reached"
        assert world.record["outcome"] == "deadline"
        assert world.meter.open_count == 0

    def test_reading_never_waits_past_the_soft_deadline(self) -> None:
        world = World(FakeUpstream())
        world.upstream.says(started(), world.pass_time(100), ended(), STOP)
        world.send(deadline_at_seconds=world.seconds + 300)
        assert world.upstream.answers[0].timeouts[:3] == [300 - SOFT_DEADLINE_SECONDS] * 2 + [190]

    def test_a_connection_that_breaks_before_the_answer_may_have_been_used(self) -> None:
        world = World(FakeUpstream())
        world.upstream.before_head = UpstreamLostError("RemoteDisconnected")
        assert world.refused().error_code == "upstream_lost"
        assert world.meter.settled_tokens == bound(a_body()) + 100
        assert len(world.upstream.requests) == 1

    @pytest.mark.parametrize("body", [b"", b'{"usage":{}}', b"<html>"])
    def test_an_answer_that_tells_no_usage_is_passed_on_and_estimated(self, body: bytes) -> None:
        world = World(FakeUpstream(body, headers=JSON), expiry_policy=ExpiryPolicy.INPUT)
        relayed = world.send(a_body(stream=False))
        assert world.reply.body == body
        assert relayed.estimated
        assert relayed.charged_tokens == bound(a_body(stream=False))

    def test_an_answer_that_was_cut_is_not_passed_on(self) -> None:
        world = World(FakeUpstream(b'{"usage":', UpstreamLostError("IncompleteRead"), headers=JSON))
        assert world.refused(a_body(stream=False)).error_code == "upstream_lost"
        assert world.meter.open_count == 0


def envelope(message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": "t", "message": message}}).encode()


class TestUpstreamRefusals:
    @pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 422])
    def test_what_is_about_the_callers_request_passes_byte_for_byte_and_costs_nothing(self, status: int) -> None:
        world = World(FakeUpstream(envelope("prompt is too long"), status=status, headers=JSON), quota_requests=5)
        relayed = world.send()
        assert world.reply.status == status
        assert world.reply.body == envelope("prompt is too long")
        assert relayed.outcome is RequestOutcome.REFUSED
        meter = world.meter
        assert (meter.settled_tokens, meter.remaining_tokens, meter.remaining_requests) == (0, 10_000, 5)
        assert world.records == []

    @pytest.mark.parametrize(
        ("status", "message", "code", "metric"),
        [
            (401, "invalid x-api-key", "upstream_unavailable", "UpstreamKeyFaults"),
            (403, "not allowed", "upstream_unavailable", "UpstreamKeyFaults"),
            (400, "You have reached your specified API usage limits.", "upstream_unavailable", "UpstreamKeyFaults"),
            (307, "", "upstream_unavailable", "UpstreamKeyFaults"),
            (429, "rate limited", "upstream_busy", "UpstreamBusy"),
            (529, "overloaded", "upstream_busy", "UpstreamBusy"),
            (500, "oops", "upstream_error", "UpstreamFaults"),
            (503, "down", "upstream_error", "UpstreamFaults"),
        ],
    )
    def test_what_is_about_us_becomes_an_error_of_ours_and_costs_nothing(
        self, status: int, message: str, code: str, metric: str
    ) -> None:
        world = World(FakeUpstream(envelope(message + " CANARY"), status=status, headers=JSON))
        error = world.refused()
        assert isinstance(error, UpstreamBusyError | UpstreamUnavailableError)
        assert not isinstance(error, AuthenticationError)
        assert error.error_code == code
        assert "CANARY" not in error.public_message + repr(world.journal.lines)
        assert world.journal.metrics == [metric]
        assert (world.meter.remaining_tokens, world.meter.open_count) == (10_000, 0)

    def test_a_refusal_that_was_cut_is_an_error_of_ours(self) -> None:
        world = World(FakeUpstream(UpstreamLostError("IncompleteRead"), status=400, headers=JSON))
        assert world.refused().error_code == "upstream_error"
        assert world.meter.remaining_tokens == 10_000

    def test_an_upstream_nobody_reached_costs_nothing(self) -> None:
        world = World(FakeUpstream())
        world.upstream.before_head = UpstreamNotReachedError("ConnectionRefusedError")
        assert world.refused().error_code == "upstream_unreachable"
        assert (world.meter.remaining_tokens, world.meter.open_count) == (10_000, 0)

    def test_a_key_of_ours_that_cannot_be_read_costs_nothing(self) -> None:
        world = World(FakeUpstream())
        world.upstream.before_head = UpstreamUnavailableError("…", error_code="secrets_unavailable")
        assert world.refused().error_code == "secrets_unavailable"
        assert (world.meter.remaining_tokens, world.meter.open_count) == (10_000, 0)


class TestTimeLeft:
    @pytest.mark.parametrize(("more_seconds", "asked"), [(-1, 0), (0, 0), (1, 1)])
    def test_upstream_is_not_asked_for_what_there_is_no_time_to_relay(self, more_seconds: int, asked: int) -> None:
        world = World(FakeUpstream(*COMPLETE), quota_requests=5)
        deadline = world.seconds + SOFT_DEADLINE_SECONDS + more_seconds
        if asked:
            world.send(deadline_at_seconds=deadline)
        else:
            error = world.refused(deadline_at_seconds=deadline)
            assert (type(error), error.error_code) == (UpstreamUnavailableError, "no_time_left")
            assert world.meter.remaining_requests == 5
            assert world.records == []
        assert len(world.upstream.requests) == asked
        assert world.meter.open_count == 0


class TestTheSameKeyAgain:
    """Where nothing was generated, the caller may try again under the same idempotency key."""

    def again(self, world: World, upstream: FakeUpstream, body: bytes = b"") -> None:
        world.relay.upstream = upstream
        world.reply = Reply()
        assert world.send(body, idempotency_key="k").outcome is RequestOutcome.COMPLETE

    @pytest.mark.parametrize(
        "misfortune",
        [
            UpstreamNotReachedError("refused"),
            UpstreamUnavailableError("…", error_code="secrets_unavailable"),
        ],
    )
    def test_after_an_upstream_that_was_never_asked(self, misfortune: Exception) -> None:
        world = World(FakeUpstream())
        world.upstream.before_head = misfortune
        world.refused(idempotency_key="k")
        self.again(world, FakeUpstream(*COMPLETE))

    @pytest.mark.parametrize("status", [401, 429, 500, 503, 529])
    def test_after_a_refusal_of_upstream(self, status: int) -> None:
        world = World(FakeUpstream(b"{}", status=status, headers=JSON))
        world.refused(idempotency_key="k")
        self.again(world, FakeUpstream(*COMPLETE))

    def test_after_a_call_for_which_no_time_was_left(self) -> None:
        world = World(FakeUpstream(*COMPLETE))
        world.refused(idempotency_key="k", deadline_at_seconds=world.seconds + 1)
        self.again(world, world.upstream)

    def test_after_a_thinking_budget_that_did_not_fit(self) -> None:
        thinking = {"type": "enabled", "budget_tokens": 5000}
        body = a_body(max_tokens=6000, thinking=thinking)
        world = World(FakeUpstream(*COMPLETE), quota_tokens=bound(body) + 4000)
        assert world.refused(body, idempotency_key="k").error_code == "thinking_budget_too_large"
        self.again(world, world.upstream, a_body(max_tokens=1000))

    def test_but_not_after_one_that_may_have_been_processed(self) -> None:
        world = World(FakeUpstream())
        world.upstream.before_head = UpstreamLostError("RemoteDisconnected")
        world.refused(idempotency_key="k")
        assert isinstance(world.refused(idempotency_key="k"), DuplicateRequestError)


class TestRefusalsInTheLog:
    def test_a_refusal_knows_whose_plan_it_was(self) -> None:
        world = World(FakeUpstream(b"{}", status=529, headers=JSON))
        assert world.refused().plan_id == "test"
        assert world.refused(a_body(model="gpt-5")).plan_id == "test"
        assert world.refused(b"{").plan_id is None

    def test_a_refusal_names_some_of_many_shapes_without_a_bound(self) -> None:
        tools = [{"type": f"tool_number_{number:04d}"} for number in range(1000)]
        message = World(FakeUpstream()).refused(a_body(tools=tools)).public_message
        assert "tool_number_0000" in message
        assert "and 992 more" in message
        assert len(message) < 1000


class TestAnUnwillingTable:
    def test_a_settlement_nobody_answers_is_left_to_the_sweep(self) -> None:
        world = World(FakeUpstream())
        world.upstream.says(*COMPLETE, world.lose_calls(*[Fate.NEVER_ARRIVED] * 2))
        relayed = world.send()
        assert world.reply.body == b"".join(COMPLETE)
        assert (relayed.outcome, relayed.charged_tokens) == (RequestOutcome.COMPLETE, 17)
        assert world.journal.names == ["settlement_left_to_sweep", "message_relayed"]
        assert world.meter.open_count == 1
        world.seconds += 600 + 61
        world.ledger.sweep(world.meter, ExpiryPolicy.STRICT)
        assert world.meter.open_count == 0

    def test_a_settlement_whose_answer_was_lost_is_charged_once(self) -> None:
        world = World(FakeUpstream())
        world.upstream.says(*COMPLETE, world.lose_calls(Fate.APPLIED_NEVER_ANSWERED))
        assert world.send().charged_tokens == 17
        assert world.meter.settled_tokens == 17

    def test_a_record_that_cannot_be_written_does_not_spoil_the_answer(self) -> None:
        lost = (Fate.FINE, Fate.NEVER_ARRIVED)
        world = World(FakeUpstream())
        world.upstream.says(*COMPLETE, world.lose_calls(*lost))
        assert world.send().outcome is RequestOutcome.COMPLETE
        assert world.journal.names == ["request_not_recorded", "message_relayed"]
        assert world.meter.settled_tokens == 17

    def test_a_release_nobody_answers_is_left_to_the_sweep(self) -> None:
        world = World(FakeUpstream(status=400, headers=JSON))
        world.upstream.says(envelope("no"), world.lose_calls(*[Fate.NEVER_ARRIVED] * 2))
        assert world.send().outcome is RequestOutcome.REFUSED
        assert "release_left_to_sweep" in world.journal.names
