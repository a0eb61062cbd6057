"""Relay one message: reserve, send it up, pass every byte down, settle with the provider's own counts.

Promises: nothing is sent before its whole cost is reserved (on soft quotas with slices: its first slice); the body
goes up as it came but for a clamped `max_tokens`; the answer comes down byte for byte; nothing is sent upstream twice;
and every reservation ends here, exactly once, or else by the sweep.

All I/O goes through the collaborators given; `tests/simulation` drives this very module with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from tollgate.domain.errors import (
    InvalidRequestError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    QuotaExceededError,
    StaleAccountError,
    StoreUnavailableError,
    TollgateError,
    UpstreamUnavailableError,
)
from tollgate.domain.ledger import Ask, Grant, Meter, MeterKey, Settled, Settlement, charge_for_unknown_end
from tollgate.domain.message_requests import MessageRequest, parse_message_request
from tollgate.domain.periods import period_at
from tollgate.domain.pricing import Model, cost_picousd
from tollgate.domain.principals import Account, MaxTokensPolicy, Principal
from tollgate.domain.sources import Clock
from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry
from tollgate.flows.ledger import Ledger
from tollgate.providers.claude import (
    Upstream,
    UpstreamAnswer,
    UpstreamLostError,
    UpstreamNotReachedError,
    UpstreamRequest,
    refusal_of,
    upstream_fault,
)
from tollgate.providers.claude_stream import (
    ErrorReported,
    MessageStarted,
    StreamBroken,
    StreamReader,
    usage_of_message,
)
from tollgate.storage.requests import RequestOutcome, RequestRecord, Requests

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.flows.accounts import Accounts

SOFT_DEADLINE_SECONDS: Final = 10
"""Stop this long before the function is killed: enough for an error event and a settlement under retries."""
ADMISSION_ROUNDS: Final = 3
"""Times an account may turn out to be older than its meter before the call is refused."""
CHARGED_BYTES_PER_TOKEN: Final = 4
"""For output nobody counted: Anthropic's own gateway charges aborted answers a token for every four characters."""
COVERED_BYTES_PER_TOKEN: Final = 3
"""For topping up in time: rather a slice too early than too late."""
MAX_WHOLE_BYTES: Final = 16 * 1024 * 1024
"""An answer that is not streamed is held in memory; 128,000 tokens are less than 1 MB."""
MAX_ERROR_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MessageCall:
    """One authenticated request for a message."""

    request_id: str
    principal: Principal
    body: bytes
    """The JSON body as it came."""
    deadline_at_seconds: float
    """When this function is killed, epoch seconds."""
    target: str = "/v1/messages"
    """Path and query for upstream."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For upstream, already filtered (`tollgate.edge.headers.forwarded`)."""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the caller stands, for the headers of an answer."""

    account: Account
    meter: Meter


class Reply(Protocol):
    """The answer to the caller. No method raises because the caller went away: the relay goes on to settle."""

    def start(self, status: int, headers: Mapping[str, str], standing: Standing) -> None:
        """Once, before anything else: status and upstream's headers (lower-case names, unfiltered)."""

    def write(self, data: bytes) -> None:
        """Bytes for the caller, passed on at once."""

    def write_error(self, error: Exception) -> None:
        """An error of ours, inside an event stream that has started."""


class Journal(Protocol):
    """Where outcomes are told: `tollgate.telemetry.Telemetry`, or nowhere in the simulator."""

    def event(self, name: str, **fields: str | int | bool | None) -> None: ...

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None: ...

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Relayed:
    """How a relayed call ended and what was booked."""

    outcome: RequestOutcome
    estimated: bool
    usage: Usage
    charged_tokens: int
    written_off_tokens: int
    cost_picousd: int
    standing: Standing
    """After the settlement, as far as known."""


class MessageRelay:
    """Relays messages for many callers; holds nothing between calls."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        catalog: Catalog,
        ledger: Ledger,
        upstream: Upstream,
        requests: Requests,
        clock: Clock,
        journal: Journal,
        note_use: Callable[[Principal], None],
    ) -> None:
        """`note_use` is told the caller of every call that was served, when all else is done; it never raises."""
        self.accounts = accounts
        self.catalog = catalog
        self.ledger = ledger
        self.upstream = upstream
        self.requests = requests
        self.clock = clock
        self.journal = journal
        self.note_use = note_use

    def relay(self, call: MessageCall, reply: Reply) -> Relayed:
        """Serve one call. Raises a TollgateError only while nothing has been written to `reply`.

        Once the answer has started, an error of ours is an `error` event in it and the returned outcome says so.
        """
        began_at_seconds = self.clock.now_seconds()
        request = parse_message_request(call.body)
        admission = self._admit(call, request, began_at_seconds)
        return _Exchange(self, call, reply, admission, began_at_seconds).run()

    def model_named(self, name: str) -> Model:
        """A model for pricing: one that nobody has priced counts as the dearest."""
        model = self.catalog.resolve_model(name)
        if model is None:
            self.journal.event("unpriced_model_served", model=name)
        return model or self.catalog.dearest_model

    def _admit(self, call: MessageCall, request: MessageRequest, now_seconds: float) -> _Admission:
        stale = False
        for _ in range(ADMISSION_ROUNDS):
            account = self.accounts.find(call.principal, fresh=stale)
            model = self._check(account, call.principal, request)
            output_tokens = _allowed_output(account, call.principal, request)
            period = period_at(
                account.plan.period_kind, account.profile.anchor_at, datetime.fromtimestamp(now_seconds, UTC)
            )
            ask = _ask(call, account, model, request, output_tokens)
            try:
                grant = self.ledger.reserve(account, MeterKey(account.tenant_id, account.user_id, period), ask)
            except StaleAccountError:
                stale = True
                continue
            if grant.output_tokens < ask.output_tokens:
                output_tokens = grant.output_tokens
            return self._admission(account, model, request, grant, output_tokens)
        raise StoreUnavailableError("The plan of this account is being changed. Try again.")

    def _check(self, account: Account, principal: Principal, request: MessageRequest) -> Model:
        """Everything a plan and a key decide before any write."""
        plan = account.plan
        if not account.profile.paid:
            raise PaymentRequiredError(f"The subscription is unpaid. {plan.upgrade_message}".rstrip())
        if not account.profile.email_verified:
            raise PermissionDeniedError(
                "The e-mail address of this account has not been confirmed. Confirm it, then sign in once.",
                error_code="email_not_verified",
            )
        model = self.catalog.resolve_model(request.model)
        if model is None:
            raise NotFoundError(f"model: {request.model[:100]}", error_code="model_not_found")
        if not plan.allows_model(model.id):
            raise InvalidRequestError(
                f"model: {model.id} is not part of the {plan.name} plan. {plan.upgrade_message}".rstrip(),
                error_code="model_not_in_plan",
            )
        if not principal.allows_model(model.id):
            raise InvalidRequestError(
                f"model: {model.id} is not one of the models that this API key may use.", error_code="model_not_in_key"
            )
        if plan.hard and request.unbounded:
            raise InvalidRequestError(
                f"The {plan.name} plan has a hard quota and takes only requests whose cost is bounded before the call."
                f" This one contains: {', '.join(request.unbounded)}. {plan.upgrade_message}".rstrip(),
                error_code="unbounded_request",
            )
        return model

    def _admission(
        self, account: Account, model: Model, request: MessageRequest, grant: Grant, output_tokens: int
    ) -> _Admission:
        body = request.body
        if output_tokens < request.max_tokens:
            try:
                body = request.with_max_tokens(output_tokens)
            except InvalidRequestError:
                self.release(grant)
                raise
        return _Admission(account, model, grant, output_tokens, body, request.stream)

    def release(self, grant: Grant) -> Settled | None:
        """Give a reservation back; None when the table did not answer and the sweep has to."""
        try:
            return self.ledger.release(grant)
        except StoreUnavailableError as error:
            self.journal.failure("release_left_to_sweep", error, period_id=grant.key.period.id)
            return None


@dataclass(frozen=True, slots=True)
class _Admission:
    """A call that may go up."""

    account: Account
    model: Model
    grant: Grant
    output_tokens: int
    """What `max_tokens` in `body` says."""
    body: bytes
    streamed: bool


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why an answer does not end by itself, and what the caller is told."""

    outcome: RequestOutcome
    error: TollgateError


class _Exchange:
    """One admitted call on its way up and down."""

    def __init__(
        self, relay: MessageRelay, call: MessageCall, reply: Reply, admission: _Admission, began_at_seconds: float
    ) -> None:
        self._relay = relay
        self._call = call
        self._reply = reply
        self._admission = admission
        self._grant = admission.grant
        self._weights = admission.model.weights
        self._began_at_seconds = began_at_seconds
        self._soft_deadline_seconds = call.deadline_at_seconds - SOFT_DEADLINE_SECONDS
        self._reader = StreamReader()
        self._first_byte_at_seconds: float | None = None
        self._upstream_request_id: str | None = None
        self._prompt_tokens: int | None = None
        """Billable, once message_start told."""
        self._upstream_error = False
        self._refused_top_up: QuotaExceededError | None = None
        self._models: dict[str, Model] = {}
        self._covered_tokens = self._grant.output_tokens
        """Output tokens the reservation pays for so far."""
        self._top_up_at_tokens = self._next_top_up()

    def run(self) -> Relayed:
        answer = self._send()
        try:
            self._upstream_request_id = answer.headers.get("request-id")
            if answer.status >= 300:
                return self._pass_refusal(answer)
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return self._pass_stream(answer)
            return self._pass_whole(answer)
        finally:
            answer.close()

    # ---- up

    def _send(self) -> UpstreamAnswer:
        call = self._call
        request = UpstreamRequest("POST", call.target, call.headers, self._admission.body)
        try:
            return self._relay.upstream.send(request, self._seconds_left())
        except UpstreamNotReachedError as error:
            self._relay.release(self._grant)
            self._relay.journal.failure("upstream_not_reached", error, request_id=call.request_id)
            raise UpstreamUnavailableError(
                "Claude could not be reached. Nothing was charged; try again.", error_code="upstream_unreachable"
            ) from error
        except UpstreamLostError as error:
            self._fail(error)
        except TollgateError:  # our own credential could not be had
            self._relay.release(self._grant)
            raise

    def _pass_refusal(self, answer: UpstreamAnswer) -> Relayed:
        """Upstream said no before generating anything: nothing is charged, and the request does not count."""
        try:
            body = self._collect(answer, MAX_ERROR_BYTES)
            refusal = refusal_of(answer.status, body)
        except UpstreamLostError:
            refusal = upstream_fault()
        settled = self._relay.release(self._grant)
        self._relay.journal.event(
            "message_refused_upstream",
            request_id=self._call.request_id,
            user_id=self._grant.key.user_id,
            model=self._admission.model.id,
            upstream_status=answer.status,
            upstream_request_id=self._upstream_request_id,
            error_code=None if refusal is None else refusal.error_code,
            duration_ms=self._milliseconds_since_begin(),
        )
        if refusal is not None:
            self._relay.journal.measure({_METRIC_OF_REFUSAL.get(refusal.error_code, "UpstreamFaults"): 1})
            raise refusal
        standing = self._standing(settled)
        self._reply.start(answer.status, answer.headers, standing)
        self._reply.write(body)
        return Relayed(RequestOutcome.REFUSED, False, Usage(), 0, 0, 0, standing)

    # ---- down, at once

    def _pass_whole(self, answer: UpstreamAnswer) -> Relayed:
        """An answer that is not streamed is settled before it is passed on, so its headers tell the new standing."""
        try:
            body = self._collect(answer, MAX_WHOLE_BYTES)
        except UpstreamLostError as error:
            self._fail(error)
        self._first_byte_at_seconds = self._relay.clock.now_seconds()
        usage = usage_of_message(body)
        if usage is None:
            relayed = self._finish_unknown(RequestOutcome.TRUNCATED)
        else:
            relayed = self._finish_known(RequestOutcome.COMPLETE, usage)
        self._reply.start(answer.status, answer.headers, relayed.standing)
        self._reply.write(body)
        return relayed

    def _collect(self, answer: UpstreamAnswer, most_bytes: int) -> bytes:
        body = bytearray()
        while chunk := answer.read(self._seconds_left()):
            body += chunk
            if len(body) > most_bytes:
                raise UpstreamLostError("the body is too large")
        return bytes(body)

    # ---- down, as it comes

    def _pass_stream(self, answer: UpstreamAnswer) -> Relayed:
        self._reply.start(answer.status, answer.headers, self._standing(None))
        stop = self._pump(answer)
        if stop is not None:
            self._reply.write_error(stop.error)
            # What upstream may still be generating is not waited for: nobody will read it.
            answer.close()
        outcome = stop.outcome if stop else RequestOutcome.COMPLETE
        if stop is None and self._upstream_error:
            outcome = RequestOutcome.UPSTREAM_ERROR
        if self._reader.usage_is_final:
            return self._finish_known(outcome, self._reader.usage)
        return self._finish_unknown(outcome)

    def _pump(self, answer: UpstreamAnswer) -> _Stop | None:
        """Pass bytes until the end; None: upstream ended the answer itself, well or with an error of its own."""
        reader, reply = self._reader, self._reply
        while True:
            left = self._seconds_left()
            if left <= 0:
                return self._ended_early()
            try:
                chunk = answer.read(left)
            except UpstreamLostError:
                return self._ended_early()
            if not chunk:
                return self._ended_early()
            if self._first_byte_at_seconds is None:
                self._first_byte_at_seconds = self._relay.clock.now_seconds()
            between_events = reader.between_events
            stop = self._look(chunk)
            if stop is not None:
                # The chunk stays back: it may hold the whole of what is not paid for.
                if not between_events:
                    reply.write(b"\n")
                return stop
            reply.write(chunk)

    def _ended_early(self) -> _Stop | None:
        """What the end of reading means: nothing when the answer was complete, else why it is not."""
        if self._reader.stopped or self._upstream_error:
            return None
        if not self._reader.between_events:
            # Ends the line begun, not the event: its rest joins our error event, and no client parses half a JSON.
            self._reply.write(b"\n")
        if self._seconds_left() <= 0:
            return _Stop(RequestOutcome.DEADLINE, _deadline_error())
        return _Stop(RequestOutcome.TRUNCATED, _lost_error())

    def _look(self, chunk: bytes) -> _Stop | None:
        for event in self._reader.feed(chunk):
            match event:
                case MessageStarted(usage):
                    stop = self._cover_prompt(usage)
                    if stop is not None:
                        return stop
                case ErrorReported():
                    self._upstream_error = True
                case StreamBroken():
                    return _Stop(RequestOutcome.TRUNCATED, _lost_error())
        if self._top_up_at_tokens is not None:
            return self._cover_output()
        return None

    def _cover_prompt(self, usage: Usage) -> _Stop | None:
        """The true prompt is known: when it is larger than the bound, reserve the rest or stop."""
        self._prompt_tokens = self._billable(replace(usage, entries=_without_output(usage.entries)))
        excess_tokens = self._prompt_tokens - self._grant.reservation.prompt_bound_tokens
        if excess_tokens > 0:
            self._relay.journal.measure({"PromptAboveBound": 1})
            stop = self._top_up(excess_tokens)
            if stop is not None:
                return stop
        if self._top_up_at_tokens is not None:
            # A prompt below its bound leaves room for output that need not be topped up.
            room_tokens = self._grant.reservation.amount_tokens - self._prompt_tokens
            self._covered_tokens = max(self._covered_tokens, self._weights.affordable_output(room_tokens))
            self._top_up_at_tokens = self._next_top_up()
        return None

    def _top_up(self, extra_tokens: int) -> _Stop | None:
        try:
            self._grant = self._relay.ledger.top_up(self._grant, extra_tokens)
        except QuotaExceededError as error:
            return _Stop(RequestOutcome.OVER_QUOTA, error)
        except StoreUnavailableError as error:
            if self._admission.account.plan.hard:
                return _Stop(RequestOutcome.OVER_QUOTA, error)
            # A soft quota takes the excess at settlement, as far as its cap allows.
            self._relay.journal.failure("top_up_unanswered", error, request_id=self._call.request_id)
        return None

    def _cover_output(self) -> _Stop | None:
        """Soft quotas in slices: reserve the next slice before the last one is used up, or stop when it is."""
        estimate_tokens = max(
            self._reader.delivered_bytes // COVERED_BYTES_PER_TOKEN, self._reader.reported_output_tokens
        )
        if self._top_up_at_tokens is None or estimate_tokens < self._top_up_at_tokens:
            return None
        if self._refused_top_up is not None:
            return _Stop(RequestOutcome.OVER_QUOTA, self._refused_top_up)
        more_tokens = min(self._slice_tokens, self._admission.output_tokens - self._covered_tokens)
        stop = self._top_up(self._weights.billable_output(more_tokens))
        if stop is not None and isinstance(stop.error, QuotaExceededError):
            self._refused_top_up = stop.error
            self._top_up_at_tokens = self._covered_tokens
        else:
            self._covered_tokens += more_tokens
            self._top_up_at_tokens = self._next_top_up()
        return None

    @property
    def _slice_tokens(self) -> int:
        return self._admission.account.plan.slice_output_tokens or self._admission.output_tokens

    def _next_top_up(self) -> int | None:
        """Output tokens at which the next slice is due: a quarter of a slice early. None: all is covered."""
        if self._covered_tokens >= self._admission.output_tokens:
            return None
        return max(0, self._covered_tokens - self._slice_tokens // 4)

    # ---- the end

    def _fail(self, cause: UpstreamLostError) -> NoReturn:
        """Lost before anything was passed on, so the caller gets a status."""
        late = self._seconds_left() <= 0
        self._finish_unknown(RequestOutcome.DEADLINE if late else RequestOutcome.TRUNCATED)
        raise (_deadline_error() if late else _lost_error()) from cause

    def _finish_known(self, outcome: RequestOutcome, usage: Usage) -> Relayed:
        settlement = Settlement(
            used_tokens=self._billable(usage), counts=usage.counts, cost_picousd=self._cost_picousd(usage)
        )
        return self._finish(outcome, usage, settlement, estimated=False)

    def _finish_unknown(self, outcome: RequestOutcome) -> Relayed:
        """The provider's final counts never came: the plan's rule decides, on what is known to have passed."""
        reported = self._reader.usage
        delivered_tokens = max(
            self._reader.delivered_bytes // CHARGED_BYTES_PER_TOKEN, self._reader.reported_output_tokens
        )
        prompt_tokens = self._prompt_tokens
        if prompt_tokens is None:
            prompt_tokens = self._grant.reservation.prompt_bound_tokens
        used, written_off = charge_for_unknown_end(
            self._admission.account.plan.expiry_policy,
            self._grant.reservation,
            prompt_tokens,
            prompt_tokens + self._weights.billable_output(self._admission.output_tokens),
            self._weights.billable_output(delivered_tokens),
        )
        usage = replace(reported, entries=_with_output(reported.entries, delivered_tokens))
        settlement = Settlement(used, written_off, usage.counts, self._cost_picousd(usage))
        return self._finish(outcome, usage, settlement, estimated=True)

    def _finish(self, outcome: RequestOutcome, usage: Usage, settlement: Settlement, *, estimated: bool) -> Relayed:
        settled = self._settle(settlement)
        relayed = Relayed(
            outcome=outcome,
            estimated=estimated,
            usage=usage,
            charged_tokens=settled.charged_tokens if settled else settlement.used_tokens,
            written_off_tokens=settled.written_off_tokens if settled else settlement.written_off_tokens,
            cost_picousd=settlement.cost_picousd,
            standing=self._standing(settled),
        )
        record = self._record(relayed)
        try:
            self._relay.requests.put(record)
        except StoreUnavailableError as error:
            self._relay.journal.failure("request_not_recorded", error, request_id=record.request_id)
        self._tell(relayed, record, late=settled is not None and settled.late)
        self._relay.note_use(self._call.principal)
        return relayed

    def _settle(self, settlement: Settlement) -> Settled | None:
        """None when the table did not answer: the sweep then ends the reservation, visibly."""
        try:
            return self._relay.ledger.settle(self._grant, settlement)
        except StoreUnavailableError as error:
            self._relay.journal.failure(
                "settlement_left_to_sweep",
                error,
                request_id=self._call.request_id,
                user_id=self._grant.key.user_id,
                period_id=self._grant.key.period.id,
                billable_tokens=settlement.used_tokens,
            )
            self._relay.journal.measure({"SettlementLeftToSweep": 1})
            return None

    def _record(self, relayed: Relayed) -> RequestRecord:
        usage, counts = relayed.usage, relayed.usage.counts
        first_byte, began_at = self._first_byte_at_seconds, datetime.fromtimestamp(self._began_at_seconds, UTC)
        price = self._model_of(usage, UsageEntry(counts)).price_row(counts.prompt_tokens, began_at)
        return RequestRecord(
            tenant_id=self._grant.key.tenant_id,
            user_id=self._grant.key.user_id,
            request_id=self._call.request_id,
            reservation_id=self._grant.reservation.id,
            credential_id=self._call.principal.credential_id,
            period_id=self._grant.key.period.id,
            plan_id=self._admission.account.plan.id,
            began_at=began_at,
            duration_ms=self._milliseconds_since_begin(),
            first_byte_ms=None if first_byte is None else int((first_byte - self._began_at_seconds) * 1000),
            model=self._admission.model.id,
            served_model=usage.model,
            outcome=relayed.outcome,
            estimated=relayed.estimated,
            counts=counts,
            prompt_tokens=counts.prompt_tokens,
            price_from=price.effective_from,
            price_max_prompt_tokens=price.max_prompt_tokens,
            charged_tokens=relayed.charged_tokens,
            written_off_tokens=relayed.written_off_tokens,
            cost_picousd=relayed.cost_picousd,
            streamed=self._admission.streamed,
            speed=usage.speed,
            service_tier=usage.service_tier,
            inference_geo=usage.inference_geo,
            web_searches=usage.web_searches,
            web_fetches=usage.web_fetches,
            upstream_request_id=self._upstream_request_id,
        )

    def _tell(self, relayed: Relayed, record: RequestRecord, *, late: bool) -> None:
        counts = record.counts
        self._relay.journal.event(
            "message_relayed",
            request_id=record.request_id,
            tenant_id=record.tenant_id,
            user_id=record.user_id,
            credential=self._call.principal.credential.value,
            credential_id=record.credential_id,
            plan_id=record.plan_id,
            period_id=record.period_id,
            model=record.model,
            outcome=record.outcome.value,
            estimated=record.estimated,
            late=late,
            streamed=record.streamed,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cache_write_5m_tokens=counts.cache_write_5m_tokens,
            cache_write_1h_tokens=counts.cache_write_1h_tokens,
            cache_read_tokens=counts.cache_read_tokens,
            charged_tokens=record.charged_tokens,
            written_off_tokens=record.written_off_tokens,
            remaining_tokens=relayed.standing.meter.remaining_tokens,
            cost_picousd=record.cost_picousd,
            first_byte_ms=record.first_byte_ms,
            duration_ms=record.duration_ms,
            upstream_request_id=record.upstream_request_id,
            client_session_id=self._call.headers.get("x-claude-code-session-id"),
        )

    # ---- figures

    def _seconds_left(self) -> float:
        return self._soft_deadline_seconds - self._relay.clock.now_seconds()

    def _milliseconds_since_begin(self) -> int:
        return int((self._relay.clock.now_seconds() - self._began_at_seconds) * 1000)

    def _standing(self, settled: Settled | None) -> Standing:
        meter = settled.meter if settled is not None else None
        return Standing(self._admission.account, meter or self._grant.meter)

    def _model_of(self, usage: Usage, entry: UsageEntry) -> Model:
        name = entry.model or usage.model
        if name is None:
            return self._admission.model
        if name not in self._models:
            self._models[name] = self._relay.model_named(name)
        return self._models[name]

    def _billable(self, usage: Usage) -> int:
        return sum(self._model_of(usage, entry).weights.billable_tokens(entry.counts) for entry in usage.entries)

    def _cost_picousd(self, usage: Usage) -> int:
        began_at = datetime.fromtimestamp(self._began_at_seconds, UTC)
        return sum(
            cost_picousd(
                self._model_of(usage, entry),
                entry.counts,
                began_at,
                speed=usage.speed,
                service_tier=usage.service_tier,
                inference_geo=usage.inference_geo,
                web_searches=0 if position else usage.web_searches,
            )
            for position, entry in enumerate(usage.entries)
        )


_METRIC_OF_REFUSAL: Final = {"upstream_unavailable": "UpstreamKeyFaults", "upstream_busy": "UpstreamBusy"}


def _allowed_output(account: Account, principal: Principal, request: MessageRequest) -> int:
    """`max_tokens` as far as the plan allows it; a key may choose to be refused instead."""
    most = account.plan.max_output_tokens
    if most is None or request.max_tokens <= most:
        return request.max_tokens
    if principal.max_tokens_policy is MaxTokensPolicy.REFUSE:
        raise InvalidRequestError(
            f"max_tokens: the {account.plan.name} plan allows at most {most} for one answer, asked for"
            f" {request.max_tokens}.",
            error_code="max_tokens_too_large",
        )
    request.with_max_tokens(most)  # refuses a thinking budget that would not fit, before anything is reserved
    return most


def _ask(call: MessageCall, account: Account, model: Model, request: MessageRequest, output_tokens: int) -> Ask:
    slice_tokens = None if account.plan.hard else account.plan.slice_output_tokens
    return Ask(
        prompt_bound_tokens=model.weights.billable_prompt_bound(request.prompt_bound_tokens),
        output_tokens=output_tokens if slice_tokens is None else min(output_tokens, slice_tokens),
        output_weight=model.weights.output,
        may_clamp=call.principal.max_tokens_policy is MaxTokensPolicy.CLAMP,
        deadline_at_seconds=call.deadline_at_seconds,
        idempotency_key=call.idempotency_key,
        body_sha256=None if call.idempotency_key is None else sha256(call.body).hexdigest(),
        limits=call.principal.limits,
    )


def _without_output(entries: tuple[UsageEntry, ...]) -> tuple[UsageEntry, ...]:
    return tuple(replace(entry, counts=replace(entry.counts, output_tokens=0)) for entry in entries)


def _with_output(entries: tuple[UsageEntry, ...], output_tokens: int) -> tuple[UsageEntry, ...]:
    """Put an estimate in place of output counts that were never final."""
    first, *others = _without_output(entries) or (UsageEntry(TokenCounts()),)
    return (replace(first, counts=replace(first.counts, output_tokens=output_tokens)), *others)


def _lost_error() -> TollgateError:
    return UpstreamUnavailableError(
        "The connection to Claude broke before the answer was complete. What was generated is charged as your plan"
        " says; asking again is a new request.",
        error_code="upstream_lost",
    )


def _deadline_error() -> TollgateError:
    return UpstreamUnavailableError(
        "The answer took longer than this gateway may run and was stopped. What was generated is charged.",
        error_code="deadline_reached",
    )
