"""All functions of the HTTP API in one process, behind the template's routes: what API Gateway does, without sockets.

Events are made by the local stack's own code; tokens are those of a fake user pool; the table is moto's. Every request
comes from another address, so that limits of addresses stand in nobody's way.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import botocore.session
import jwt
import pytest

from dev.events import Request, http_api_event, knows_path, match_route
from dev.gateway import Answer, proxy_answer
from dev.template import LocalTemplate, Route, Template
from tests.support.billing_function import SECRET_KEY, stripe_world, sync_plans
from tests.support.fake_cognito import FakeCognito
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, REGION, CountedTable, moto_table
from tests.support.sam import ROOT
from tests.support.stripe_wire import StripeWire, stripe_wire
from tests.support.user_pool import CLIENT_ID, ISSUER, private_key
from tollgate.catalog.loader import load_catalog
from tollgate.wiring import SystemClock

if TYPE_CHECKING:
    from types_boto3_ssm.client import SSMClient

PEPPER_PARAMETER = "/tollgate/test/key-pepper"
STRIPE_PARAMETER = "/tollgate/test/stripe-secret-key"
WEBHOOK_PARAMETER = "/tollgate/test/stripe-webhook-secret"
RETURN_URL = "https://app.example.com/billing"
PASSWORD = "correct-Horse-9-battery"
ENVIRONMENT = {
    "STAGE": "test",
    "TABLE_NAME": NAME,
    "COGNITO_ISSUER": ISSUER,
    "COGNITO_CLIENT_IDS": CLIENT_ID,
    "COGNITO_CLIENT_ID": CLIENT_ID,
    "KEY_PEPPER_PARAMETER": PEPPER_PARAMETER,
    "ALLOW_TEST_KEYS": "true",
    "STRIPE_SECRET_KEY_PARAMETER": STRIPE_PARAMETER,
    "STRIPE_WEBHOOK_SECRET_PARAMETER": WEBHOOK_PARAMETER,
    "STRIPE_EVENT_QUEUE_URL": f"https://sqs.{REGION}.amazonaws.com/123456789012/events",
    "STRIPE_EVENT_DLQ_URL": f"https://sqs.{REGION}.amazonaws.com/123456789012/dead-letters",
    "BILLING_RETURN_URLS": RETURN_URL,
}
CONTEXT = LambdaContext()


@dataclass(frozen=True)
class Caller:
    """A signed-in user."""

    user_id: str
    email: str
    access_token: str
    refresh_token: str


class ApiWorld:
    """One container of each function."""

    def __init__(self, table: CountedTable, cognito: FakeCognito, stripe: StripeWire) -> None:
        self.table = table
        self.cognito = cognito
        self.stripe = stripe
        self.template: LocalTemplate = Template(ROOT / "template.yaml").local(
            {"Table": NAME, "UserPool": ISSUER.rsplit("/", 1)[1], "UserPoolClient": CLIENT_ID}
        )
        self._addresses = count()

    def signed_in(self, email: str) -> Caller:
        """A new, confirmed user with an access token, whom the table does not know yet."""
        member = self.cognito.add(email, PASSWORD)
        now_seconds = SystemClock().now_seconds()
        token = self.cognito.tokens.access_token(now_seconds, sub=member.sub, username=member.sub)
        return Caller(member.sub, email, token, "")

    def sign_in(self, email: str) -> Caller:
        """A new, confirmed user's tokens, through the product's own route."""
        member = self.cognito.add(email, PASSWORD)
        answer = self.ask("POST", "/auth/login", {"email": email, "password": PASSWORD})
        assert answer.status == 200, answer.body
        tokens = json.loads(answer.body)
        return Caller(member.sub, email, tokens["access_token"], tokens["refresh_token"])

    def ask(
        self, method: str, path: str, body: object = None, *, caller: Caller | None = None, **headers: str
    ) -> Answer:
        """A JSON request; underscores in header names stand for hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if caller is not None:
            sent["authorization"] = f"Bearer {caller.access_token}"
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            sent.setdefault("content-type", "application/json")
        path, _, query = path.partition("?")
        return self.send(method, path, query, tuple(sent.items()), data)

    def send(self, method: str, raw_path: str, query: str, headers: tuple[tuple[str, str], ...], body: bytes) -> Answer:
        """Any request, as API Gateway would pass it on; but a wrong method reaches the function of its path."""
        number = next(self._addresses)
        request = Request(
            method=method,
            raw_path=raw_path,
            query=query,
            headers=headers,
            body=body,
            source_ip=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
            received_at=datetime.now(UTC),
        )
        found = match_route(self.template.routes, method, request.path)
        if found is None:
            if not knows_path(self.template.routes, request.path):
                return _told(404, "Not Found")
            route = next(route for route in self.template.routes if knows_path((route,), request.path))
            return self._run(Route(method, route.path, route.function, None), request, {}, None)
        route, parameters = found
        claims = self._claims(request) if route.authorizer is not None else None
        if route.authorizer is not None and claims is None:
            return _told(401, "Unauthorized")
        return self._run(route, request, parameters, claims)

    def _claims(self, request: Request) -> dict[str, Any] | None:
        token = (request.header("authorization") or "").removeprefix("Bearer ")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                private_key(self.cognito.tokens.key_name).public_key(),
                algorithms=["RS256"],
                issuer=ISSUER,
                options={"verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError):
            return None
        return claims if claims.get("client_id", claims.get("aud")) == CLIENT_ID else None

    def _run(self, route: Route, request: Request, parameters: dict[str, str], claims: dict[str, Any] | None) -> Answer:
        event = json.loads(json.dumps(http_api_event(request, route, parameters, claims, "gateway-request")))
        label = self.template.functions[route.function].label
        result = importlib.import_module(f"functions.{label}.app").handler(event, CONTEXT)
        answer = proxy_answer(json.dumps(result).encode())
        assert answer is not None
        return answer


def _told(status: int, message: str) -> Answer:
    headers = [("content-type", "application/json")]
    if status == 401:
        headers.append(("www-authenticate", "Bearer"))
    return Answer(status, headers, json.dumps({"message": message}).encode())


@contextmanager
def served(world: ApiWorld) -> Iterator[str]:
    """The world at an address of loopback, one request after the other."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            raw_path, _, query = self.path.partition("?")
            headers = tuple((name.lower(), value) for name, value in self.headers.items())
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            found = world.send(self.command, raw_path, query, headers, body)
            self.send_response(found.status)
            for name, value in (*found.headers, ("content-length", str(len(found.body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401  do_GET, do_POST, and whatever else is tried
            if name.startswith("do_"):
                return self._answer
            raise AttributeError(name)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def api_world(*, behind: timedelta = timedelta(0), catalog: str = "default") -> Iterator[ApiWorld]:
    """Empty: no table items, no users. `behind`: Stripe's clock; `catalog`: which plans, by name or folder."""
    # Answers about addresses take at least half a second, so that their time tells nothing; here nobody measures it.
    with (
        pytest.MonkeyPatch.context() as patch,
        moto_table(patch) as table,
        FakeCognito(SystemClock().now_seconds) as pool,
        stripe_wire(stripe_world(behind)) as stripe,
    ):
        patch.setattr("time.sleep", lambda seconds: None)
        sync_plans(stripe, load_catalog(catalog))
        stripe.asked.clear()
        addresses = {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": pool.url, "STRIPE_API_BASE_URL": stripe.url}
        environment = ENVIRONMENT | addresses | {"CATALOG": catalog}
        for name, value in environment.items():
            patch.setenv(name, value)
        ssm = cast("SSMClient", botocore.session.get_session().create_client("ssm", region_name=REGION))
        secrets = {PEPPER_PARAMETER: "pepper-of-a-test", STRIPE_PARAMETER: SECRET_KEY, WEBHOOK_PARAMETER: "whsec_1"}
        for name, value in secrets.items():
            ssm.put_parameter(Name=name, Value=value, Type="SecureString")
        for name in [name for name in sys.modules if name.startswith("functions.") and name.endswith(".app")]:
            patch.delitem(sys.modules, name)
        yield ApiWorld(table, pool, stripe)
        for name in [name for name in sys.modules if name.startswith("functions.") and name.endswith(".app")]:
            del sys.modules[name]
        ssm.close()
