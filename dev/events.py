"""Lambda events as API Gateway's HTTP API, function URLs and EventBridge Scheduler build them (payload format 2.0).

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from dev.template import ACCOUNT_ID, REGION, Function, Route, Schedule

EVENT_BYTES_AT_MOST = 6 * 1024 * 1024
"""Lambda's limit of a synchronous invocation: the whole event as JSON, base64 included."""

Json = dict[str, Any]

# What reaches a function belongs to the request, not to the connection it came over.
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
}
_TEXT_TYPES = {"application/json", "application/javascript", "application/xml"}


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, received whole. Header names are lower case, in the order they came."""

    method: str
    raw_path: str
    """As sent, percent-encoded."""
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    source_ip: str
    received_at: datetime

    def header(self, name: str) -> str | None:
        """All values of a header joined by commas; None when it was not sent."""
        values = [value for key, value in self.headers if key == name]
        return ",".join(values) if values else None

    @property
    def path(self) -> str:
        return unquote(self.raw_path)


def function_url_event(request: Request, function: Function, request_id: str) -> Json:
    """The event of a function URL with AuthType NONE."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": request.raw_path,
        **_common(request),
        "requestContext": {
            **_context(request, "$default", request_id, request.raw_path),
            "apiId": "local",
            "domainName": "local.lambda-url.us-east-1.on.aws",
            "domainPrefix": "local",
        },
        **_body(request),
    }


def http_api_event(
    request: Request, route: Route, path_parameters: dict[str, str], claims: Json | None, request_id: str
) -> Json:
    """The event of an HTTP API route; `claims` are those of the token that the authorizer accepted."""
    context = {
        **_context(request, route.key, request_id, request.path),
        "apiId": "local",
        "domainName": "local.execute-api.us-east-1.amazonaws.com",
        "domainPrefix": "local",
    }
    if route.authorizer is not None and claims is not None:
        texts = {name: _claim_text(value) for name, value in claims.items()}
        context["authorizer"] = {"jwt": {"claims": texts, "scopes": list(route.authorizer.scopes) or None}}
    event = {
        "version": "2.0",
        "routeKey": route.key,
        "rawPath": request.path,
        **_common(request),
        "requestContext": context,
    }
    if path_parameters:
        event["pathParameters"] = path_parameters
    return {**event, **_body(request)}


def schedule_event(schedule: Schedule, scheduled_at: datetime, execution_id: str) -> bytes:
    """A Scheduler run's event: the template's Input with its context attributes filled in."""
    values = {
        "<aws.scheduler.schedule-arn>": f"arn:aws:scheduler:{REGION}:{ACCOUNT_ID}:schedule/default/{schedule.name}",
        "<aws.scheduler.scheduled-time>": scheduled_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "<aws.scheduler.execution-id>": execution_id,
        "<aws.scheduler.attempt-number>": "1",
    }
    text = schedule.input
    for name, value in values.items():
        text = text.replace(name, value)
    return text.encode()


def encode(event: Json) -> bytes:
    """The event as the function's runtime receives it."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


def match_route(routes: tuple[Route, ...], method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """The most specific route for a path and its parameters, as an HTTP API chooses it; None when no route fits."""
    found = [
        (route, parameters)
        for route in routes
        if route.method in (method, "ANY") and (parameters := _path_parameters(route.path, path)) is not None
    ]
    return max(found, key=lambda item: _specificity(item[0]), default=None)


def knows_path(routes: tuple[Route, ...], path: str) -> bool:
    """Whether any route, of whatever method, has this path."""
    return any(_path_parameters(route.path, path) is not None for route in routes)


def _path_parameters(pattern: str, path: str) -> dict[str, str] | None:
    wanted, given = pattern.strip("/").split("/"), path.strip("/").split("/")
    parameters: dict[str, str] = {}
    for position, part in enumerate(wanted):
        if part.endswith("+}"):
            rest = "/".join(given[position:])
            return {**parameters, part[1:-2]: rest} if rest else None
        if position >= len(given):
            return None
        if part.startswith("{") and given[position]:
            parameters[part[1:-1]] = given[position]
        elif part != given[position]:
            return None
    return parameters if len(wanted) == len(given) else None


def _specificity(route: Route) -> tuple[bool, int, bool]:
    greedy = route.path.endswith("+}")
    fixed = sum(not part.startswith("{") for part in route.path.split("/"))
    return not greedy, fixed, route.method != "ANY"


def _common(request: Request) -> Json:
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in request.headers:
        if name == "cookie":
            cookies += [part.strip() for part in value.split(";") if part.strip()]
        elif name not in _HOP_BY_HOP:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    headers["x-forwarded-for"] = request.source_ip
    headers["x-forwarded-port"] = "443"
    headers["x-forwarded-proto"] = "https"
    common: Json = {"rawQueryString": request.query, "headers": headers}
    if cookies:
        common["cookies"] = cookies
    if request.query:
        parameters: dict[str, str] = {}
        for name, value in parse_qsl(request.query, keep_blank_values=True):
            parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
        common["queryStringParameters"] = parameters
    return common


def _context(request: Request, route_key: str, request_id: str, path: str) -> Json:
    return {
        "accountId": "anonymous" if route_key == "$default" else ACCOUNT_ID,
        "http": {
            "method": request.method,
            "path": path,
            "protocol": "HTTP/1.1",
            "sourceIp": request.source_ip,
            "userAgent": request.header("user-agent") or "",
        },
        "requestId": request_id,
        "routeKey": route_key,
        "stage": "$default",
        "time": request.received_at.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(request.received_at.timestamp() * 1000),
    }


def _body(request: Request) -> Json:
    if not request.body:
        return {"isBase64Encoded": False}
    content_type = (request.header("content-type") or "").split(";")[0].strip().lower()
    if content_type in _TEXT_TYPES or content_type.startswith("text/"):
        try:
            return {"body": request.body.decode(), "isBase64Encoded": False}
        except UnicodeDecodeError:
            pass  # not text after all
    return {"body": base64.b64encode(request.body).decode(), "isBase64Encoded": True}


def _claim_text(value: object) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
