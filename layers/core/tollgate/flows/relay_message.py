"""Relay one message: reserve, send it up, pass every byte down, settle with the provider's own counts.

Promises: nothing is sent before its whole cost is reserved (on soft quotas with slices: its first slice); the body
goes up as it came but for a clamped `max_tokens`; the answer comes down byte for byte; nothing is sent upstream twice;
and every reservation ends here, exactly once, or else by the sweep.

All I/O goes through the collaborators given; `tests/simulation` drives this very module with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NoReturn

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
from tollgate.domain.ledger import Ask, Grant, MeterKey
from tollgate.domain.message_requests import MessageRequest, parse_message_request
from tollgate.domain.periods import period_at
from tollgate.domain.plans import Plan
from tollgate.domain.pricing import Model
from tollgate.domain.principals import Account, MaxTokensPolicy, Principal
from tollgate.domain.sources import Clock
from tollgate.domain.usage import Usage
from tollgate.flows.ledger import Ledger
from tollgate.flows.message_calls import Admission, Journal, MessageCall, Relayed, Reply, Standing
from tollgate.flows.settle_message import OpenCall, release
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
    is_event_stream,
    usage_of_message,
)
from tollgate.storage.requests import RequestOutcome, Requests

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
MAX_ID_CHARACTERS: Final = 128
"""Of upstream's request id, as it is kept."""
MAX_NAMED_SHAPES: Final = 8
"""Of those without a bound, in the text of a refusal; a request may have any number."""


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
        note_active: Callable[[MeterKey], None],
        note_use: Callable[[Principal], None],
        note_standing: Callable[[Standing], None],
    ) -> None:
        """Never raising: `note_active` is told while upstream works on a call on which meter it is held. Told when all
        else is done: `note_use` the caller of every call that was served, `note_standing` how the caller stands after
        every call that upstream may have seen, and after one that a quota refused.
        """
        self.accounts = accounts
        self.catalog = catalog
        self.ledger = ledger
        self.upstream = upstream
        self.requests = requests
        self.clock = clock
        self.journal = journal
        self.note_active = note_active
        self.note_use = note_use
        self.note_standing = note_standing

    def relay(self, call: MessageCall, reply: Reply) -> Relayed:
        """Serve one call. Raises a TollgateError only while nothing has been written to `reply`.

        Once the answer has started, an error of ours is an `error` event in it and the returned outcome says so.
        """
        began_at_seconds = self.clock.now_seconds()
        request = parse_message_request(call.body)
        admission = self._admit(call, request, began_at_seconds)
        with _refusals_of(admission.account.plan):
            exchange = _Exchange(self, call, reply, admission, began_at_seconds)
            try:
                relayed = exchange.run()
            finally:
                # Also of an answer that was charged and then refused, which may have been the last that fitted.
                self.note_standing(exchange.standing)
        self.note_use(call.principal)
        return relayed

    def model_named(self, name: str) -> Model:
        """A model for pricing: one that nobody has priced counts as the dearest."""
        model = self.catalog.resolve_model(name)
        if model is None:
            self.journal.event("unpriced_model_served", model=name)
        return model or self.catalog.dearest_model

    def _admit(self, call: MessageCall, request: MessageRequest, now_seconds: float) -> Admission:
        stale = False
        for _ in range(ADMISSION_ROUNDS):
            account = self.accounts.find(call.principal, fresh=stale)
            try:
                with _refusals_of(account.plan):
                    return self._admit_to(account, call, request, now_seconds)
            except StaleAccountError:
                stale = True
            except QuotaExceededError as error:
                # What a sweep charged or a smaller plan made of it is told here, for no settlement may follow.
                if error.meter is not None:
                    self.note_standing(Standing(account, error.meter))
                raise
        raise StoreUnavailableError("The plan of this account is being changed. Try again.")

    def _admit_to(self, account: Account, call: MessageCall, request: MessageRequest, now_seconds: float) -> Admission:
        model = self._check(account, call.principal, request)
        output_tokens = _allowed_output(account, call.principal, request)
        period = period_at(
            account.plan.period_kind, account.profile.anchor_at, datetime.fromtimestamp(now_seconds, UTC)
        )
        ask = _ask(call, account, model, request, output_tokens)
        grant = self.ledger.reserve(account, MeterKey(account.tenant_id, account.user_id, period), ask)
        if grant.output_tokens < ask.output_tokens:
            output_tokens = grant.output_tokens
        return self._admission(account, model, request, grant, output_tokens)

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
        if _is_exact(plan, principal) and request.unbounded:
            raise InvalidRequestError(
                f"The {'plan has a hard quota' if plan.hard else 'API key has a budget'} and takes only requests"
                f" whose cost is bounded before the call, on the {plan.name} plan."
                f" This one contains: {_listed(request.unbounded)}. {plan.upgrade_message}".rstrip(),
                error_code="unbounded_request",
            )
        return model

    def _admission(
        self, account: Account, model: Model, request: MessageRequest, grant: Grant, output_tokens: int
    ) -> Admission:
        body = request.body
        if output_tokens < request.max_tokens:
            try:
                body = request.with_max_tokens(output_tokens)
            except InvalidRequestError:
                release(self.ledger, self.journal, grant)
                raise
        return Admission(account, model, grant, output_tokens, body, request.stream)


@contextmanager
def _refusals_of(plan: Plan) -> Iterator[None]:
    """Whatever is refused in here is refused to somebody on this plan."""
    try:
        yield
    except TollgateError as error:
        error.plan_id = plan.id
        raise


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why an answer does not end by itself, and what the caller is told."""

    outcome: RequestOutcome
    error: TollgateError


class _Exchange:
    """One admitted call on its way up and down."""

    def __init__(
        self, relay: MessageRelay, call: MessageCall, reply: Reply, admission: Admission, began_at_seconds: float
    ) -> None:
        self._relay = relay
        self._call = call
        self._reply = reply
        self._admission = admission
        self._open = OpenCall(
            call,
            admission,
            began_at_seconds,
            ledger=relay.ledger,
            requests=relay.requests,
            clock=relay.clock,
            journal=relay.journal,
            model_named=relay.model_named,
        )
        self._weights = admission.model.weights
        self._soft_deadline_seconds = call.deadline_at_seconds - SOFT_DEADLINE_SECONDS
        self._reader = StreamReader()
        self._may_have_cost = False
        """Something went up, and nobody said that it was not processed."""
        self._prompt_tokens: int | None = None
        """Billable, once message_start told."""
        self._upstream_error = False
        self._refused_top_up: QuotaExceededError | None = None
        self._covered_tokens = admission.grant.output_tokens
        """Output tokens the reservation pays for so far."""
        self._top_up_at_tokens = self._next_top_up()

    @property
    def standing(self) -> Standing:
        """After what was settled last, as far as known."""
        return self._open.last_standing

    def run(self) -> Relayed:
        """Whatever breaks, a fault of our own included: what is held for the call does not stay held."""
        try:
            answer = self._send()
            try:
                return self._pass(answer)
            finally:
                answer.close()
        except Exception:
            if not self._open.ended:
                self._give_up()
            raise

    def _give_up(self) -> None:
        if self._may_have_cost:
            self._finish_as_known(RequestOutcome.TRUNCATED)
        else:
            self._open.release()

    # ---- up

    def _send(self) -> UpstreamAnswer:
        call = self._call
        if self._seconds_left() <= 0:
            raise UpstreamUnavailableError(
                "There was no time left to ask Claude. Nothing was charged; try again.", error_code="no_time_left"
            )
        request = UpstreamRequest("POST", call.target, call.headers, self._admission.body)
        self._may_have_cost = True
        try:
            return self._relay.upstream.send(
                request, self._seconds_left(), lambda: self._relay.note_active(self._admission.grant.key)
            )
        except UpstreamNotReachedError as error:
            self._may_have_cost = False
            self._relay.journal.failure("upstream_not_reached", error, request_id=call.request_id)
            raise UpstreamUnavailableError(
                "Claude could not be reached. Nothing was charged; try again.", error_code="upstream_unreachable"
            ) from error
        except UpstreamLostError as error:
            self._fail(error)
        except TollgateError:  # our own credential could not be had
            self._may_have_cost = False
            raise

    def _pass(self, answer: UpstreamAnswer) -> Relayed:
        self._open.upstream_request_id = answer.headers.get("request-id", "")[:MAX_ID_CHARACTERS] or None
        if answer.status >= 300:
            self._may_have_cost = False
            return self._pass_refusal(answer)
        if is_event_stream(answer.headers):
            return self._pass_stream(answer)
        return self._pass_whole(answer)

    def _pass_refusal(self, answer: UpstreamAnswer) -> Relayed:
        """Upstream said no before generating anything: nothing is charged, and the request does not count."""
        try:
            body = self._collect(answer, MAX_ERROR_BYTES)
            refusal = refusal_of(answer.status, body)
        except UpstreamLostError:
            refusal = upstream_fault()
        standing = self._open.standing(self._open.release())
        self._relay.journal.event(
            "message_refused_upstream",
            request_id=self._call.request_id,
            user_id=self._admission.account.user_id,
            model=self._admission.model.id,
            upstream_status=answer.status,
            upstream_request_id=self._open.upstream_request_id,
            error_code=None if refusal is None else refusal.error_code,
            duration_ms=self._open.milliseconds_since_begin(),
        )
        if refusal is not None:
            self._relay.journal.measure({_METRIC_OF_REFUSAL.get(refusal.error_code, "UpstreamFaults"): 1})
            raise refusal
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
        self._open.first_byte_at_seconds = self._relay.clock.now_seconds()
        usage = usage_of_message(body)
        if usage is None:
            relayed = self._finish_unknown(RequestOutcome.TRUNCATED)
        else:
            stop = self._cover_whole(usage)
            relayed = self._open.finish_known(stop.outcome if stop else RequestOutcome.COMPLETE, usage)
            if stop is not None:
                raise stop.error
        self._reply.start(answer.status, answer.headers, relayed.standing)
        self._reply.write(body)
        return relayed

    def _cover_whole(self, usage: Usage) -> _Stop | None:
        """A hard quota pays for the whole of an answer or does not deliver it."""
        reservation = self._open.grant.reservation
        if self._open.billable_prompt_tokens(usage) > reservation.prompt_bound_tokens:
            self._relay.journal.measure({"PromptAboveBound": 1})
        excess_tokens = self._open.billable_tokens(usage) - reservation.amount_tokens
        if _is_exact(self._admission.account.plan, self._call.principal) and excess_tokens > 0:
            return self._top_up(excess_tokens)
        return None

    def _collect(self, answer: UpstreamAnswer, most_bytes: int) -> bytes:
        body = bytearray()
        while chunk := answer.read(self._seconds_left()):
            body += chunk
            if len(body) > most_bytes:
                raise UpstreamLostError("the body is too large")
        return bytes(body)

    # ---- down, as it comes

    def _pass_stream(self, answer: UpstreamAnswer) -> Relayed:
        self._reply.start(answer.status, answer.headers, self._open.standing())
        stop = self._pump(answer)
        if stop is not None:
            self._reply.write_error(stop.error)
            # What upstream may still be generating is not waited for: nobody will read it.
            answer.close()
        outcome = stop.outcome if stop else RequestOutcome.COMPLETE
        if stop is None and self._upstream_error:
            outcome = RequestOutcome.UPSTREAM_ERROR
        return self._finish_as_known(outcome)

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
            if self._open.first_byte_at_seconds is None:
                self._open.first_byte_at_seconds = self._relay.clock.now_seconds()
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

    def _cover_prompt(self, usage: Usage | None) -> _Stop | None:
        """The true prompt is known: when it is larger than the bound, reserve the rest or stop."""
        if usage is None:
            self._prompt_tokens = None
            return None
        covered_tokens = max(self._open.grant.reservation.prompt_bound_tokens, self._prompt_tokens or 0)
        self._prompt_tokens = self._open.billable_prompt_tokens(usage)
        excess_tokens = self._prompt_tokens - covered_tokens
        if excess_tokens > 0:
            self._relay.journal.measure({"PromptAboveBound": 1})
            stop = self._top_up(excess_tokens)
            if stop is not None:
                return stop
        if self._top_up_at_tokens is not None:
            # A prompt below its bound leaves room for output that need not be topped up.
            room_tokens = self._open.grant.reservation.amount_tokens - self._prompt_tokens
            self._covered_tokens = max(self._covered_tokens, self._weights.affordable_output(room_tokens))
            self._top_up_at_tokens = self._next_top_up()
        return None

    def _top_up(self, extra_tokens: int) -> _Stop | None:
        try:
            self._open.grant = self._relay.ledger.top_up(self._open.grant, extra_tokens)
        except QuotaExceededError as error:
            return _Stop(RequestOutcome.OVER_QUOTA, error)
        except StoreUnavailableError as error:
            if _is_exact(self._admission.account.plan, self._call.principal):
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

    def _finish_as_known(self, outcome: RequestOutcome) -> Relayed:
        if self._reader.usage_is_final:
            return self._open.finish_known(outcome, self._reader.usage)
        # To its caller an answer may be whole that is none to us.
        return self._finish_unknown(RequestOutcome.TRUNCATED if outcome is RequestOutcome.COMPLETE else outcome)

    def _finish_unknown(self, outcome: RequestOutcome) -> Relayed:
        reader = self._reader
        delivered_tokens = max(reader.delivered_bytes // CHARGED_BYTES_PER_TOKEN, reader.reported_output_tokens)
        return self._open.finish_unknown(outcome, reader.usage, self._prompt_tokens, delivered_tokens)

    def _seconds_left(self) -> float:
        return self._soft_deadline_seconds - self._relay.clock.now_seconds()


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


def _is_exact(plan: Plan, principal: Principal) -> bool:
    """All is reserved before the call: what a hard quota, or the key's own budget, cannot pay for is not generated.

    Otherwise whoever sets a small budget would choose how much of an answer is written off.
    """
    return plan.hard or (principal.limits is not None and principal.limits.budget_tokens is not None)


def _ask(call: MessageCall, account: Account, model: Model, request: MessageRequest, output_tokens: int) -> Ask:
    slice_tokens = None if _is_exact(account.plan, call.principal) else account.plan.slice_output_tokens
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


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - MAX_NAMED_SHAPES
    return ", ".join(names[:MAX_NAMED_SHAPES]) + (f" and {more} more" if more > 0 else "")


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
