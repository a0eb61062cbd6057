"""The data plane: Claude's own API, metered. Paths, bytes and errors are those of Anthropic's API."""

from __future__ import annotations

from datetime import UTC, datetime

from tollgate.domain.errors import NotFoundError
from tollgate.domain.pricing import Model
from tollgate.domain.principals import Principal
from tollgate.edge.claude_views import key_view, model_page, model_view, newest_first, served_models, usage_event
from tollgate.edge.function_url import FunctionUrl, HttpRequest
from tollgate.edge.headers import forwarded, idempotency_key_of, target_of
from tollgate.edge.simple_form import API_VERSION, message_body
from tollgate.flows.current_usage import find_current_usage
from tollgate.flows.message_calls import MessageCall
from tollgate.storage.requests import RequestOutcome
from tollgate.wiring import ClaudeTools, build_claude

url: FunctionUrl[ClaudeTools] = FunctionUrl(build_claude)
handler = url.handle


@url.route("POST", "/v1/messages")
def relay_message(request: HttpRequest) -> None:
    """A message, streamed or not: relayed byte for byte, metered beside."""
    call = MessageCall(
        request_id=request.request_id,
        principal=_caller(request),
        body=request.body,
        deadline_at_seconds=request.deadline_at_seconds,
        target=target_of("/v1/messages", request.raw_query),
        headers=forwarded(request.headers),
        idempotency_key=idempotency_key_of(request.headers),
    )
    url.tools.relay.relay(call, request.reply)


@url.route("POST", "/claude/stream")
def stream_simple_form(request: HttpRequest) -> None:
    """The simple form for apps: Claude's events, then one `usage` event."""
    call = MessageCall(
        request_id=request.request_id,
        principal=_caller(request),
        body=message_body(request.body, lambda: _models_of(request)[0].id),
        deadline_at_seconds=request.deadline_at_seconds,
        headers={"anthropic-version": API_VERSION, "content-type": "application/json"},
        idempotency_key=idempotency_key_of(request.headers),
    )
    relayed = url.tools.relay.relay(call, request.reply)
    if request.reply.event_stream and relayed.outcome is not RequestOutcome.REFUSED:
        request.reply.write(usage_event(relayed))


@url.route("POST", "/v1/messages/count_tokens")
def count_tokens(request: HttpRequest) -> None:
    """Outside every quota, and never charged."""
    principal = _caller(request)
    target = target_of("/v1/messages/count_tokens", request.raw_query)
    answer = url.tools.counter.count(principal, target, forwarded(request.headers), request.body)
    request.reply.pass_down(answer.status, answer.headers, answer.body)


@url.route("GET", "/v1/models")
def list_models(request: HttpRequest) -> None:
    """The models of the caller's plan."""
    request.reply.send_json(model_page(newest_first(_models_of(request)), request.query))


@url.route("GET", "/v1/models/{model}")
def get_model(request: HttpRequest) -> None:
    """One of them, by id or alias."""
    wanted = url.tools.catalog.resolve_model(request.parameters["model"])
    found = [model for model in _models_of(request) if model is wanted]
    if not found:
        raise NotFoundError(f"model: {request.parameters['model'][:100]}", error_code="model_not_found")
    request.reply.send_json(model_view(found[0]))


@url.route("GET", "/v1/key")
def get_key(request: HttpRequest) -> None:
    """What a key may know about itself."""
    tools = url.tools
    principal = _caller(request)
    usage = find_current_usage(tools.accounts.find(principal, fresh=True), tools.meters, tools.ledger, tools.clock)
    request.reply.send_json(key_view(principal, tools.authenticator.api_key_of(request.headers), usage))


@url.route("GET", "/v1/organizations/usage_report/messages")
def report_usage(request: HttpRequest) -> None:
    """The caller's own use, in the shape of Anthropic's Admin API."""
    from tollgate.edge.admin_reports import usage_report  # noqa: PLC0415  reports are rare, and starts are not

    account = url.tools.accounts.find(_caller(request), fresh=True)
    request.reply.send_json(usage_report(url.tools.reports(), account, request.raw_query, _now()))


@url.route("GET", "/v1/organizations/cost_report")
def report_cost(request: HttpRequest) -> None:
    """What the caller's use cost, in the shape of Anthropic's Admin API."""
    from tollgate.edge.admin_reports import cost_report  # noqa: PLC0415  reports are rare, and starts are not

    account = url.tools.accounts.find(_caller(request), fresh=True)
    request.reply.send_json(cost_report(url.tools.reports(), account, request.raw_query, _now()))


@url.route("HEAD", "/api/hello")
@url.route("GET", "/api/hello")
@url.route("HEAD", "/")
@url.route("GET", "/")
def hello(request: HttpRequest) -> None:
    """Reachability, which clients probe without a credential."""
    if request.method == "HEAD":
        request.reply.send(200, {"content-type": "application/json", "request-id": request.request_id}, b"")
    else:
        request.reply.send_json({"message": "hello"})


def _caller(request: HttpRequest) -> Principal:
    """Who calls. Raises AuthenticationError."""
    principal = url.tools.authenticator.principal_of(request.headers)
    request.known["user_id"] = principal.user_id
    return principal


def _models_of(request: HttpRequest) -> list[Model]:
    """The models the caller may use now, in the catalog's order; never empty.

    Raises AuthenticationError, NotFoundError.
    """
    tools = url.tools
    principal = _caller(request)
    plan = tools.accounts.find(principal).plan
    models = served_models(tools.catalog.models.values(), plan, principal, _now())
    if not models:
        raise NotFoundError("Your plan and key have no model that is still served.", error_code="model_not_found")
    return models


def _now() -> datetime:
    return datetime.fromtimestamp(url.tools.clock.now_seconds(), UTC)
