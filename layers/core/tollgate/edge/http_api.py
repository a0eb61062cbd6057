"""The functions behind the HTTP API: Powertools' resolver, with our errors and the verified caller.

Identity comes from the claims in the JWT authorizer's context, which API Gateway puts there after it has verified the
token, and from nowhere else. This module is not for the streaming function: the resolver would slow its start.

A route says what it takes and answers in its signature, in pydantic models of `tollgate.edge.documents`; Powertools
checks requests against it, and docs/openapi.json is generated from it. What a route refuses beyond the checks that
every route has is declared with `responses=refusals(…)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final, Generic, Protocol, TypeVar

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, ApiGatewayResolver, Response
from aws_lambda_powertools.event_handler import exceptions as powertools_errors
from aws_lambda_powertools.event_handler.api_gateway import Route
from aws_lambda_powertools.event_handler.middlewares import NextMiddleware
from aws_lambda_powertools.event_handler.middlewares.openapi_validation import OpenAPIRequestValidationMiddleware
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.event_handler.openapi.types import OpenAPIResponse
from aws_lambda_powertools.utilities.typing import LambdaContext

from tollgate.domain.errors import (
    AuthenticationError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PaymentFailedError,
    StripeRefusedError,
    TollgateError,
    UnsupportedMediaTypeError,
)
from tollgate.domain.message_requests import parse_object
from tollgate.domain.principals import Principal
from tollgate.domain.sources import Clock
from tollgate.edge.bodies import body_of
from tollgate.edge.errors import ERROR_TABLE, render
from tollgate.flows.authenticate import MISSING, principal_of_claims
from tollgate.telemetry import Telemetry

BODY_BYTES_AT_MOST: Final = 64 * 1024
"""Far above any document of these routes; the data plane has a limit of its own."""
LARGEST_WHOLE: Final = 2**53
"""Above it, a float has lost digits already."""
FAULTS_TOLD: Final = 5
NAME_LENGTH_TOLD: Final = 60
"""Names of fields that nobody knows are the caller's own text."""


class Tools(Protocol):
    """What every function behind the HTTP API is built with."""

    @property
    def clock(self) -> Clock: ...

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def client_ids(self) -> frozenset[str]:
        """App clients whose tokens are accepted."""


T = TypeVar("T", bound=Tools)


def refusals(*errors: type[Exception]) -> dict[int, OpenAPIResponse]:
    """Error answers of a route, for `responses=`: one per status, told by the rows of the error table."""
    found: dict[int, list[str]] = {}
    for row in ERROR_TABLE:
        if row.error in errors:
            found.setdefault(int(row.status), []).append(row.when)
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        status: {"description": "; ".join(when), "content": {"application/json": {"schema": schema}}}
        for status, when in found.items()
    }


class HttpApi(APIGatewayHttpResolver, Generic[T]):
    """One function's routes. Nothing is built before the first request; every answer carries `request-id`."""

    def __init__(self, build: Callable[[], T], *, strict_queries: bool = False) -> None:
        """`strict_queries`: a parameter that the route does not have is refused, as a filter it may be meant for."""
        # Debug mode answers with stack traces; an environment variable must not be able to turn it on. Without a status
        # of its own, an answer of ours that breaks its promise would be told as a mistake of the caller's.
        super().__init__(
            debug=False,
            enable_validation=True,
            response_validation_error_http_code=HTTPStatus.INTERNAL_SERVER_ERROR,
        )
        self._request_validation_middleware = _StrictRequests(strict_queries=strict_queries)
        self._build = build
        self.exception_handler(Exception)(self._refuse)
        self.not_found(self._refuse_route)

    @cached_property
    def tools(self) -> T:
        """This container's collaborators. Raises ConfigurationError, which ends the invocation and names the lack."""
        return self._build()

    def handle(self, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        """The Lambda handler: an HTTP API event (payload format 2.0) in, its answer out."""
        _ = self.tools  # an incomplete configuration fails here, before any route
        answer = self.resolve(event, context)
        headers = answer.setdefault("headers", {})
        headers |= {"request-id": context.aws_request_id, "cache-control": "no-store"}
        if answer["statusCode"] == HTTPStatus.NO_CONTENT:
            # Powertools writes `null` where a route returns nothing.
            answer["body"] = ""
            headers.pop("Content-Type", None)
        return answer

    def caller(self) -> Principal:
        """The verified caller of the current request. Raises AuthenticationError when no authorizer vouches for one."""
        claims: Any = self.current_event.raw_event
        for name in ("requestContext", "authorizer", "jwt", "claims"):
            claims = claims.get(name) if isinstance(claims, dict) else None
        if not isinstance(claims, dict):
            raise AuthenticationError(MISSING)
        return principal_of_claims(claims, self.tools.client_ids)

    def source_ip(self) -> str:
        """The address that API Gateway saw the request come from. No header is asked: anyone can write those."""
        address: str = self.current_event.raw_event["requestContext"]["http"]["sourceIp"]
        return address

    def _known_user_id(self) -> str | None:
        """For the log; a caller who is nobody is no reason to fail again."""
        try:
            return self.caller().user_id
        except AuthenticationError:
            return None

    def _refuse(self, error: Exception) -> Response[str]:
        if isinstance(error, RequestValidationError):
            error = _invalid_request(error.errors())
        request_id = self.lambda_context.aws_request_id
        now = datetime.fromtimestamp(self.tools.clock.now_seconds(), UTC)
        status, headers, body = render(error, request_id, now=now)
        telemetry, user_id = self.tools.telemetry, self._known_user_id()
        if isinstance(error, StripeRefusedError) and not isinstance(error, PaymentFailedError):
            # Nobody can buy until the operator has looked: the alarm counts these.
            telemetry.measure({"StripeRefusals": 1, "StripeAlarms": 1})
            telemetry.failure("stripe_refused", error, stripe_code=error.stripe_code, request_id=request_id)
        if isinstance(error, TollgateError):
            telemetry.event(
                "request_refused",
                request_id=request_id,
                status=status,
                error_code=error.error_code,
                user_id=user_id,
                plan_id=error.plan_id,
            )
        else:
            telemetry.failure("request_failed", error, request_id=request_id, status=status, user_id=user_id)
        return Response(status, content_type=None, headers=dict(headers), body=body.decode())

    def _refuse_route(self, _: powertools_errors.NotFoundError) -> Response[str]:
        path = self.current_event.path
        # As API Gateway chooses: what stands in the path literally comes before what a parameter would take.
        methods = _methods(self._static_routes, path) or _methods(self._dynamic_routes, path)
        if not methods:
            return self._refuse(NotFoundError("There is no such route."))
        answer = self._refuse(MethodNotAllowedError(f"Use {' or '.join(methods)} here."))
        answer.headers["allow"] = ", ".join(methods)
        return answer


def _methods(routes: Sequence[Route], path: str) -> list[str]:
    return sorted({route.method for route in routes if route.rule.match(path)})


class _StrictRequests(OpenAPIRequestValidationMiddleware):
    """Reads a body as one strict JSON object, and as nothing else.

    Powertools' own reading takes the first item of a list for the object, forms and files for JSON, the last of two
    equal keys, NaN, and answers 500 to what is not UTF-8. It leaves out query parameters that nobody declared: a filter
    with a typing error would tell everything.
    """

    def __init__(self, *, strict_queries: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._strict_queries = strict_queries

    def handler(self, app: ApiGatewayResolver, next_middleware: NextMiddleware) -> Response[Any]:
        route = app.context["_route"]
        # An answer 404 or 405 is a route, too, and has no parameters.
        if self._strict_queries and route in (*app._static_routes, *app._dynamic_routes):
            known = {parameter.alias for parameter in route.dependant.query_params}
            unknown = sorted((app.current_event.raw_event.get("queryStringParameters") or {}).keys() - known)
            if unknown:
                told = ", ".join(name[:NAME_LENGTH_TOLD] for name in unknown[:FAULTS_TOLD])
                raise InvalidRequestError(f"query.{told}: no parameter of this route", error_code="invalid_field")
        return super().handler(app, next_middleware)

    def _get_body(self, app: ApiGatewayResolver) -> dict[str, Any]:
        event = app.current_event.raw_event
        headers = {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise InvalidRequestError("Send the body without content-encoding.", error_code="unsupported_encoding")
        body = body_of(event, BODY_BYTES_AT_MOST)
        media_type = headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if body and media_type != "application/json":
            raise UnsupportedMediaTypeError("Send the body as application/json.")
        # No body, or null, is the absence that the route's signature may allow.
        present = body.strip() not in (b"", b"null")
        return {name: _whole(value) for name, value in parse_object(body).items()} if present else None  # type: ignore[return-value]


def _whole(value: Any) -> Any:  # noqa: ANN401  any JSON
    """The same JSON with 3.0 as 3: to JSON Schema they are one number, and an integer."""
    if isinstance(value, float) and abs(value) < LARGEST_WHOLE and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value


def _invalid_request(faults: Sequence[dict[str, Any]]) -> InvalidRequestError:
    """The refusal that names each field and what it should be; never what was sent."""
    told = [f"{_path(fault['loc'])}: {_sentence(fault)}" for fault in faults[:FAULTS_TOLD]]
    if len(faults) > FAULTS_TOLD:
        told.append(f"and {len(faults) - FAULTS_TOLD} more")
    missing = all(fault["type"] == "missing" for fault in faults)
    return InvalidRequestError("; ".join(told), error_code="missing_field" if missing else "invalid_field")


def _path(location: Sequence[str | int]) -> str:
    """`limits.tokens`, `models.0`; parameters keep their place: `query.limit`, `path.key_id`."""
    parts = [str(part)[:NAME_LENGTH_TOLD] for part in location]
    return ".".join(parts[1:] if parts[0] == "body" and len(parts) > 1 else parts)


def _sentence(fault: dict[str, Any]) -> str:
    # A validator of ours raises ValueError with its own words; pydantic puts a prefix before them.
    text = str(fault["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
