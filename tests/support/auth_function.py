"""functions/auth on a table of moto, with a user pool of the test's choice behind it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import botocore.session
import pytest

from tests.support.http_events import claims_of, http_event
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, REGION, CountedTable, aws_session, moto_table
from tests.support.user_pool import CLIENT_ID, ISSUER

if TYPE_CHECKING:
    from types_boto3_ssm.client import SSMClient

PEPPER_PARAMETER = "/tollgate/test/key-pepper"
ENVIRONMENT = {
    "STAGE": "test",
    "TABLE_NAME": NAME,
    "COGNITO_ISSUER": ISSUER,
    "COGNITO_CLIENT_IDS": CLIENT_ID,
    "COGNITO_CLIENT_ID": CLIENT_ID,
    "KEY_PEPPER_PARAMETER": PEPPER_PARAMETER,
    # Nobody has put a key there: a deployment that sells nothing.
    "STRIPE_SECRET_KEY_PARAMETER": "/tollgate/test/stripe-secret-key",
}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    raw: str

    @property
    def error_code(self) -> str:
        code: str = self.body["error"]["details"]["error_code"]
        return code

    def told(self) -> tuple[int, dict[str, str], Any]:
        """All that a caller can tell two answers apart by."""
        return self.status, self.headers, self.body


class AuthFunction:
    """One container of the function."""

    def __init__(self, table: CountedTable) -> None:
        self.table = table
        self.source_ip = "203.0.113.7"
        self.waits: list[float] = []
        """Seconds that its code has waited; no time passes."""

    def send(
        self,
        route: str,
        body: object = None,
        *,
        user: str | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """`POST /auth/login`; `user` is the one whose token the authorizer has verified."""
        method, path = route.split()
        event = http_event(method, path, None if user is None else claims_of(user, client_id=self.client_id))
        event["requestContext"]["http"]["sourceIp"] = self.source_ip
        event["headers"] |= dict(headers or {})
        if body is not None:
            event["body"] = body if isinstance(body, str) else json.dumps(body)
            event["headers"]["content-type"] = "application/json"
        if token is not None:
            event["headers"]["authorization"] = f"Bearer {token}"
        answer = importlib.import_module("functions.auth.app").handler(event, LambdaContext())
        answered = {name.lower(): value for name, value in answer["headers"].items()}
        text = answer["body"] or ""
        return Answer(answer["statusCode"], answered, json.loads(text) if text else None, text)

    client_id = CLIENT_ID

    def stored(self) -> str:
        return json.dumps(self.table.items())


@contextmanager
def auth_function(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Iterator[AuthFunction]:
    """`environ`: settings beside ENVIRONMENT, or instead of them."""
    with moto_table(monkeypatch) as table:
        for name, value in (ENVIRONMENT | environ).items():
            monkeypatch.setenv(name, value)
        session = aws_session()
        monkeypatch.setattr(botocore.session, "get_session", lambda: session)
        ssm = cast("SSMClient", session.create_client("ssm", region_name=REGION))
        ssm.put_parameter(Name=PEPPER_PARAMETER, Value="pepper-of-a-test", Type="SecureString")
        monkeypatch.delitem(sys.modules, "functions.auth.app", raising=False)
        function = AuthFunction(table)
        function.client_id = environ.get("COGNITO_CLIENT_ID", CLIENT_ID)
        monkeypatch.setattr("time.sleep", function.waits.append)
        yield function
        sys.modules.pop("functions.auth.app", None)
        ssm.close()
