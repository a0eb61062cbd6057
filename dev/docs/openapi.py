"""docs/openapi.json: every route of the HTTP API, from the handlers' own signatures.

Each function's resolver describes its routes; what only the template knows (which of them are open) and what only the
error table knows (what a refusal looks like) is added here, and the functions are merged into one document. The data
plane is not in it: it is Claude's own API, and Anthropic documents that.
"""

from __future__ import annotations

import importlib
import inspect
import json
import tomllib
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools.event_handler.api_gateway import Route
from aws_lambda_powertools.event_handler.openapi.types import OpenAPIResponse

from dev.template import LocalTemplate, Template
from tollgate.domain import errors
from tollgate.edge.errors import ERROR_TABLE, ErrorRow
from tollgate.edge.http_api import HttpApi, refusals

Json = dict[str, Any]

_PHYSICAL_IDS: Final = {"Table": "table", "UserPool": "pool", "UserPoolClient": "client"}
_SECURITY: Final = "accessToken"
_JSON: Final = "application/json"
_ALWAYS: Final = (errors.RateLimitedError, errors.StoreUnavailableError, Exception)
_WITH_INPUT: Final = (errors.InvalidRequestError,)
_WITH_BODY: Final = (errors.RequestTooLargeError, errors.UnsupportedMediaTypeError)
_WITH_AUTHORIZER: Final = (errors.AuthenticationError,)
_GATEWAY_STATUSES: Final = {401, 413, 429, 500, 503}
"""API Gateway itself gives these too, before or instead of the function, in its own words."""
_NOT_OURS: Final = {"HTTPValidationError", "ValidationError", "ResponseValidationError"}
"""Powertools' own refusals, which HttpApi replaces."""
_FILLERS: Final[dict[str, object]] = {"string": "…", "integer": 1, "number": 1, "boolean": True, "null": None}
_ABOUT: Final = """\
The control plane of Tollgate: accounts, API keys, usage. Messages go to the data plane, which is Claude's own API \
under another base URL: use Anthropic's SDKs there.

Every refusal wears Claude's error envelope. `error.details.error_code` says what happened in one word; `request-id` \
helps to find a request in the logs. Who the caller is comes from the access token and from nothing else."""
_TOKEN: Final = "Access token of the deployment's Cognito user pool, as POST /auth/login answers it."


class OpenApiError(Exception):
    """Handlers and template do not agree, or a route does not say enough about itself."""


def page(root: Path) -> str:
    """The document as JSON text. Raises OpenApiError."""
    return json.dumps(document(root), indent=1, ensure_ascii=False) + "\n"


def document(root: Path) -> Json:
    """The OpenAPI 3.1 document of all functions behind the HTTP API. Raises OpenApiError."""
    template = Template(root / "template.yaml").local(_PHYSICAL_IDS)
    open_routes = {route.key for route in template.routes if route.authorizer is None}
    paths: dict[str, Json] = {}
    schemas: dict[str, Json] = {}
    for label in sorted({template.functions[route.function].label for route in template.routes}):
        described = _described(label, open_routes)
        for path, operations in described["paths"].items():
            paths.setdefault(path, {}).update(operations)
        for name, schema in described["components"]["schemas"].items():
            if name not in _NOT_OURS and schemas.setdefault(name, schema) != schema:
                raise OpenApiError(f"two functions have different models called {name}")
    _compare(paths, template)
    _add_examples(paths, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tollgate", "version": _version(root), "description": _ABOUT, "license": {"name": "MIT"}},
        "servers": [_server()],
        "security": [{_SECURITY: []}],
        "tags": [{"name": label} for label in sorted({tag for op in _operations(paths) for tag in op["tags"]})],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted((schemas | _error_schemas()).items())),
            "headers": _headers(),
            "securitySchemes": {
                _SECURITY: {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": _TOKEN,
                }
            },
        },
    }


def _described(label: str, open_routes: set[str]) -> Json:
    """What one function's resolver says about its routes, completed."""
    api: HttpApi[Any] = importlib.import_module(f"functions.{label}.app").api
    for route in (*api._static_routes, *api._dynamic_routes):
        # All of this is read from the route when the document is made, and from nowhere else.
        summary, text = _docstring(route.func, label)
        name = getattr(route.func, "__name__", "route")
        route.operation_id = f"{label}_{name}"
        route.tags = [label]
        route.summary = route.summary or summary
        route.description = route.description or text or None
        is_open = f"{route.method} {route.openapi_path}" in open_routes
        success: OpenAPIResponse = {"description": "The answer."}
        if route.status_code == HTTPStatus.NO_CONTENT:
            success = {"description": "Done.", "content": {}}  # without it, the return type is told as a body
        defaults = _default_refusals(route, is_open=is_open)
        route.responses = {route.status_code: success, **defaults, **(route.responses or {})}
    text = api.get_openapi_json_schema(title=label, version="1", openapi_version="3.1.0")
    found: Json = json.loads(text, parse_float=_number)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(operation, is_open=f"{method.upper()} {path}" in open_routes)
    return found


def _number(text: str) -> int | float:
    """Powertools writes the bound of an integer as 1.0."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _docstring(function: object, label: str) -> tuple[str, str]:
    """(first sentence without its full stop, the rest) of a handler's docstring."""
    text = inspect.cleandoc(getattr(function, "__doc__", None) or "")
    if not text:
        raise OpenApiError(f"{label}.{getattr(function, '__name__', '?')} has no docstring to describe it with")
    first, _, rest = text.partition("\n\n")
    first = " ".join(first.split())
    return first.removesuffix("."), " ".join(rest.split())


def _default_refusals(route: Route, *, is_open: bool) -> dict[int, OpenAPIResponse]:
    dependant = route.dependant
    kinds: list[type[Exception]] = list(_ALWAYS)
    if dependant.body_params or dependant.query_params or dependant.path_params:
        kinds += _WITH_INPUT
    if dependant.body_params:
        kinds += _WITH_BODY
    if not is_open:
        kinds += _WITH_AUTHORIZER
    return refusals(*kinds)


def _complete(operation: Json, *, is_open: bool) -> None:
    """Removes what is Powertools' own, adds what every answer has."""
    operation["security"] = [] if is_open else [{_SECURITY: []}]
    answers = operation["responses"]
    if "$ref" in str(answers.get("422", {})) and "HTTPValidationError" in str(answers["422"]):
        del answers["422"]
    for status, answer in list(answers.items()):
        if "ResponseValidationError" in str(answer):
            answers[status] = dict(refusals(Exception)[500])
    operation["responses"] = dict(sorted((status, _answer(int(status), answer)) for status, answer in answers.items()))


def _answer(status: int, answer: Json) -> Json:
    headers = {"request-id": {"$ref": "#/components/headers/request-id"}}
    if status < HTTPStatus.BAD_REQUEST:
        content = {"content": answer["content"]} if answer.get("content") else {}
        return {"description": answer["description"], "headers": headers, **content}
    # `refusals` puts the rows' own words into the description.
    rows = [row for row in ERROR_TABLE if int(row.status) == status and row.when in answer["description"]]
    if any(not row.should_retry for row in rows):
        headers["x-should-retry"] = {"$ref": "#/components/headers/x-should-retry"}
    if status in {429, 503}:
        headers["retry-after"] = {"$ref": "#/components/headers/retry-after"}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = {"$ref": "#/components/headers/www-authenticate"}
    schema: Json = {"$ref": "#/components/schemas/Error"}
    if status in _GATEWAY_STATUSES:
        schema = {"anyOf": [schema, {"$ref": "#/components/schemas/GatewayRefusal"}]}
    examples = {row.codes[0]: {"value": _example(row)} for row in rows}
    text = answer["description"]
    return {
        "description": text[:1].upper() + text[1:] + ".",
        "headers": headers,
        "content": {_JSON: {"schema": schema, "examples": examples}},
    }


def _example(row: ErrorRow) -> Json:
    details = {"error_code": row.codes[0]}
    message = row.when[:1].upper() + row.when[1:] + "."
    error = {"type": row.type, "message": message, "details": details}
    return {"type": "error", "error": error, "request_id": "0c1d2e3f-4a5b-4c6d-8e9f-001122334455"}


def _error_schemas() -> dict[str, Json]:
    types = sorted({row.type for row in ERROR_TABLE})
    codes = sorted({code for row in ERROR_TABLE for code in row.codes})
    tokens = {"type": "integer", "minimum": 0}
    details: Json = {
        "type": "object",
        "required": ["error_code"],
        "properties": {
            "error_code": {"type": "string", "enum": codes},
            "remaining_tokens": tokens,
            "needed_tokens": tokens,
            "resets_at": {"type": "string", "format": "date-time"},
        },
    }
    error = {
        "type": "object",
        "required": ["type", "message", "details"],
        "properties": {"type": {"type": "string", "enum": types}, "message": {"type": "string"}, "details": details},
    }
    return {
        "Error": {
            "title": "Error",
            "description": "Claude's error envelope, which Anthropic's SDKs turn into typed errors.",
            "type": "object",
            "required": ["type", "error", "request_id"],
            "properties": {"type": {"const": "error"}, "error": error, "request_id": {"type": "string"}},
        },
        "GatewayRefusal": {
            "title": "GatewayRefusal",
            "description": "API Gateway's own words, where it refuses before or instead of Tollgate.",
            "type": "object",
            "required": ["message"],
            "properties": {"message": {"type": "string"}},
            "additionalProperties": False,
        },
    }


def _headers() -> dict[str, Json]:
    text = {"type": "string"}
    return {
        "request-id": {"description": "Names this request in the operator's logs.", "schema": text},
        "retry-after": {"description": "Whole seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
        "x-should-retry": {
            "description": "`false` where sending the same request again cannot help; SDKs obey it.",
            "schema": {"const": "false"},
        },
        "www-authenticate": {"description": "Why API Gateway did not accept the token.", "schema": text},
    }


def _compare(paths: Mapping[str, Json], template: LocalTemplate) -> None:
    """A route that only one side knows is never reached, or not documented."""
    described = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    declared = {route.key for route in template.routes}
    if described != declared:
        raise OpenApiError(f"only handlers know {described - declared}, only template.yaml {declared - described}")


def _operations(paths: Mapping[str, Json]) -> list[Json]:
    return [operation for operations in paths.values() for operation in operations.values()]


# --- Examples


def _add_examples(paths: Mapping[str, Json], schemas: Mapping[str, Json]) -> None:
    """Bodies and good answers as a whole, put together from the examples of their fields."""
    for operation in _operations(paths):
        holders = [operation.get("requestBody", {})]
        holders += [answer for status, answer in operation["responses"].items() if int(status) < 400]
        for holder in holders:
            for content in holder.get("content", {}).values():
                content.setdefault("example", _sample(content["schema"], schemas))


def _sample(schema: Json, schemas: Mapping[str, Json]) -> Any:  # noqa: ANN401  any JSON
    if "$ref" in schema:
        return _sample(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    if schema.get("examples"):
        return schema["examples"][0]
    for name in ("const", "default"):
        if schema.get(name) is not None:
            return schema[name]
    if "enum" in schema:
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return _sample(schema[name][0], schemas)
    if "properties" in schema:
        return {name: _sample(field, schemas) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_sample(schema["items"], schemas)] if schema.get("items") else []
    if schema.get("type") == "object":
        return {}
    return schema.get("minimum", _FILLERS.get(schema.get("type", "string"), "…"))


def _server() -> Json:
    return {
        "url": "https://{api_id}.execute-api.{region}.amazonaws.com",
        "description": "The stack's output ApiUrl.",
        "variables": {"api_id": {"default": "a1b2c3d4e5"}, "region": {"default": "us-east-1"}},
    }


def _version(root: Path) -> str:
    version: str = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return version
