"""The functions behind the HTTP API: Powertools' resolver, with our errors and the verified caller.

Identity comes from the claims in the JWT authorizer's context, which API Gateway puts there after it has verified the
token, and from nowhere else. This module is not for the streaming function: the resolver would slow its start.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler import exceptions as powertools_errors
from aws_lambda_powertools.utilities.typing import LambdaContext

from tollgate.domain.errors import AuthenticationError, MethodNotAllowedError, NotFoundError, TollgateError
from tollgate.domain.principals import Principal
from tollgate.domain.sources import Clock
from tollgate.edge.errors import render
from tollgate.flows.authenticate import MISSING, principal_of_claims
from tollgate.telemetry import Telemetry


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


class HttpApi(APIGatewayHttpResolver, Generic[T]):
    """One function's routes. Nothing is built before the first request; every answer carries `request-id`."""

    def __init__(self, build: Callable[[], T]) -> None:
        # Debug mode answers with stack traces; an environment variable must not be able to turn it on.
        super().__init__(debug=False)
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
        answer.setdefault("headers", {})
        answer["headers"] |= {"request-id": context.aws_request_id, "cache-control": "no-store"}
        return answer

    def caller(self) -> Principal:
        """The verified caller of the current request. Raises AuthenticationError when no authorizer vouches for one."""
        claims: Any = self.current_event.raw_event
        for name in ("requestContext", "authorizer", "jwt", "claims"):
            claims = claims.get(name) if isinstance(claims, dict) else None
        if not isinstance(claims, dict):
            raise AuthenticationError(MISSING)
        return principal_of_claims(claims, self.tools.client_ids)

    def _known_user_id(self) -> str | None:
        """For the log; a caller who is nobody is no reason to fail again."""
        try:
            return self.caller().user_id
        except AuthenticationError:
            return None

    def _refuse(self, error: Exception) -> Response[str]:
        request_id = self.lambda_context.aws_request_id
        now = datetime.fromtimestamp(self.tools.clock.now_seconds(), UTC)
        status, headers, body = render(error, request_id, now=now)
        telemetry, user_id = self.tools.telemetry, self._known_user_id()
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
        methods = sorted(route.method for route in self._static_routes if route.rule.match(path))
        if methods:
            return self._refuse(MethodNotAllowedError(f"Use {' or '.join(methods)} here."))
        return self._refuse(NotFoundError("There is no such route."))
