"""The function behind a function URL: routes, the request, and every refusal in Claude's envelope.

Not Powertools' resolver: it cannot stream, and would slow the start. Authentication is the routes' own first step,
since keys and access tokens come in the same header; what is refused before it costs no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote

from tollgate.domain.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, TollgateError
from tollgate.domain.sources import Clock
from tollgate.edge.bodies import body_of
from tollgate.edge.errors import render
from tollgate.edge.replies import LambdaReply
from tollgate.telemetry import Telemetry


class Context(Protocol):
    """The part of Lambda's context that is used."""

    @property
    def aws_request_id(self) -> str: ...

    def get_remaining_time_in_millis(self) -> int: ...


class Tools(Protocol):
    """What every function behind a function URL is built with."""

    @property
    def clock(self) -> Clock: ...

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def max_body_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as Lambda hands it on (payload format 2.0)."""

    request_id: str
    method: str
    path: str
    raw_query: str
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes
    deadline_at_seconds: float
    reply: LambdaReply
    parameters: Mapping[str, str]
    """What the route's pattern took from the path."""
    known: dict[str, str] = field(default_factory=dict)
    """What a route finds out about its caller (`user_id`), for the log line of a refusal."""

    @property
    def query(self) -> dict[str, str]:
        """Decoded; of a name given twice the last value."""
        return dict(parse_qsl(self.raw_query, keep_blank_values=True))


_OUR_KEY_FAULTS = ("secrets_unavailable",)
"""What upstream says of a key of ours, the relay counts; one that cannot even be read or sent is known here."""

Route = Callable[[HttpRequest], None]
T = TypeVar("T", bound=Tools)


class FunctionUrl(Generic[T]):
    """One function's routes. Nothing is built before the first request."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._routes: list[tuple[str, tuple[str, ...], Route]] = []

    @cached_property
    def tools(self) -> T:
        """This container's collaborators. Raises ConfigurationError, which ends the invocation and names the lack."""
        return self._build()

    def route(self, method: str, pattern: str) -> Callable[[Route], Route]:
        """Register a route; `{name}` in the pattern takes one part of the path."""

        def register(route: Route) -> Route:
            self._routes.append((method, _parts(pattern), route))
            return route

        return register

    def handle(self, event: dict[str, Any], context: Context) -> dict[str, Any] | None:
        """The Lambda handler. None when the answer was streamed."""
        tools = self.tools
        reply = LambdaReply(context.aws_request_id, tools.clock)
        known: dict[str, str] = {}
        try:
            route, parameters = self._find(event)
            route(self._request(event, context, reply, parameters, known))
        except Exception as error:  # noqa: BLE001  the entry: whatever it is, the caller gets an answer
            self._refuse(event, error, reply, known)
        return reply.result()

    def _find(self, event: Mapping[str, Any]) -> tuple[Route, dict[str, str]]:
        method, parts = _method(event), _parts(event.get("rawPath", "/"))
        methods: list[str] = []
        for route_method, pattern, route in self._routes:
            parameters = _match(pattern, parts)
            if parameters is not None:
                if route_method == method:
                    return route, parameters
                methods.append(route_method)
        if methods:
            raise MethodNotAllowedError(f"Use {' or '.join(methods)} here.")
        raise NotFoundError("There is no such route.")

    def _request(
        self,
        event: Mapping[str, Any],
        context: Context,
        reply: LambdaReply,
        parameters: dict[str, str],
        known: dict[str, str],
    ) -> HttpRequest:
        headers = {name.lower(): value for name, value in event.get("headers", {}).items()}
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise InvalidRequestError("Send the body without content-encoding.", error_code="unsupported_encoding")
        return HttpRequest(
            request_id=context.aws_request_id,
            method=_method(event),
            path=event.get("rawPath", "/"),
            raw_query=event.get("rawQueryString", ""),
            headers=headers,
            body=body_of(event, self.tools.max_body_bytes),
            deadline_at_seconds=self.tools.clock.now_seconds() + context.get_remaining_time_in_millis() / 1000,
            reply=reply,
            parameters=parameters,
            known=known,
        )

    def _refuse(self, event: Mapping[str, Any], error: Exception, reply: LambdaReply, known: dict[str, str]) -> None:
        telemetry, clock = self.tools.telemetry, self.tools.clock
        status, headers, body = render(error, reply.request_id, now=datetime.fromtimestamp(clock.now_seconds(), UTC))
        facts: dict[str, str | int] = {"request_id": reply.request_id, "method": _method(event), "status": status}
        facts |= known
        if isinstance(error, TollgateError):
            telemetry.event("request_refused", error_code=error.error_code, plan_id=error.plan_id, **facts)
            if error.error_code in _OUR_KEY_FAULTS:
                telemetry.measure({"UpstreamKeyFaults": 1})
        else:
            telemetry.failure("request_failed", error, **facts)
        if not reply.started:
            reply.send(status, headers, body)
        elif reply.event_stream:
            reply.write_error(error)


def _method(event: Mapping[str, Any]) -> str:
    return str(event.get("requestContext", {}).get("http", {}).get("method", ""))


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/"))


def _match(pattern: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    parameters: dict[str, str] = {}
    for expected, part in zip(pattern, parts, strict=True):
        if expected.startswith("{"):
            parameters[expected[1:-1]] = unquote(part)
        elif expected != part:
            return None
    return parameters
