"""The claude function whole: its real handler and wiring on a moto table, with the fake Claude as its upstream."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

import boto3
import pytest

from dev.fake_claude import FakeClaude
from functions.claude import app
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, REGION, CountedTable, moto_table
from tests.support.scripted_http import ScriptedServer
from tests.support.user_pool import CLIENT_ID, ISSUER
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.principals import MaxTokensPolicy, Profile
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.users import Users

PEPPER = "pepper-for-tests"
UPSTREAM_KEY = "sk-ant-CANARY-our-own-key"
MODEL = "claude-haiku-4-5"
JSON_HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}


@dataclass(frozen=True)
class Answer:
    """What the caller got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  any JSON
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def events(self) -> list[tuple[str, Any]]:
        """(name, document) of each event of a stream."""
        found = []
        for block in self.body.decode().strip().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
            found.append((lines["event"], json.loads(lines["data"])))
        return found


class ClaudeFunction:
    """One container of the function, and the caller of the test at hand."""

    def __init__(self, table: CountedTable, claude: FakeClaude) -> None:
        self.table = table
        self.claude = claude
        self.request_id = ""
        """Of the last call."""
        self._users = count(1)
        self._numbers = count(1)
        self.next_caller()

    def next_caller(self, plan_id: str = "pro") -> None:
        """A new user calls from now on, and upstream forgets what it was asked: one container serves many tests."""
        self.user_id = f"u-{next(self._users)}"
        self.key = self.add_user(self.user_id, plan_id)
        self.claude.exchanges.clear()

    def add_user(
        self,
        user_id: str,
        plan_id: str,
        *,
        paid: bool = True,
        email_verified: bool = True,
        policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP,
        revoked: bool = False,
        **of_the_key: Any,  # noqa: ANN401  any field of ApiKey
    ) -> str:
        """A user and its API key, which is returned."""
        now = datetime.now(UTC)
        secret = mint_api_key(KeyMode.TEST, user_id.encode().ljust(32, b"*"))
        Users(self.table).create_profile(
            Profile(
                "main",
                user_id,
                plan_id,
                plan_version=1,
                anchor_at=now.replace(microsecond=0),
                paid=paid,
                email_verified=email_verified,
            )
        )
        ApiKeys(self.table).put_key(
            ApiKey(
                id=f"key-{user_id}",
                key_hash=hash_api_key(secret, PEPPER.encode()),
                tenant_id="main",
                user_id=user_id,
                mode=KeyMode.TEST,
                last_four=secret[-4:],
                created_at=now,
                name=f"key of {user_id}",
                max_tokens_policy=policy,
                revoked_at=now if revoked else None,
                **of_the_key,
            )
        )
        return secret

    @contextmanager
    def upstream_at(self, server: ScriptedServer) -> Iterator[None]:
        """For a while upstream is a server of the test's own, as if the container had been started with it."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            end_container()
            monkeypatch.setenv("UPSTREAM_BASE_URL", server.url)
            try:
                yield
            finally:
                end_container()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] = b"",
        *,
        key: str | None = "",
        headers: Mapping[str, str] | None = None,
        query: str = "",
        seconds: float = 600,
    ) -> Answer:
        """Invoke the handler as a function URL does. `key`: "" the user's own, None no credential."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = JSON_HEADERS | dict(headers or {})
        if key is not None:
            sent["x-api-key"] = key or self.key
        text = base64.b64encode(data).decode() if data else None
        return self._invoke(method, path, text, sent, encoded=bool(data), query=query, seconds=seconds)

    def invoke(self, method: str, path: str, text: str, *, encoded: bool) -> Answer:
        """Invoke with a body in the event as given."""
        return self._invoke(method, path, text, JSON_HEADERS | {"x-api-key": self.key}, encoded=encoded)

    def _invoke(
        self,
        method: str,
        path: str,
        text: str | None,
        headers: Mapping[str, str],
        *,
        encoded: bool,
        query: str = "",
        seconds: float = 600,
    ) -> Answer:
        event = {
            "version": "2.0",
            "rawPath": path,
            "rawQueryString": query,
            "headers": headers,
            "requestContext": {"http": {"method": method, "path": path}, "requestId": "r"},
            "body": text,
            "isBase64Encoded": encoded,
        }
        self.request_id = f"req-{next(self._numbers):04d}"
        context = LambdaContext("claude", self.request_id, int(seconds * 1000))
        answer = app.handler(event, context)
        assert answer is not None
        body = answer["body"]
        content = base64.b64decode(body) if answer["isBase64Encoded"] else body.encode()
        return Answer(answer["statusCode"], answer["headers"], content)

    def message(self, text: str = "Hello", **changes: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
        """A streamed message request; `[[fake …]]` in the text tells the fake what to do. None removes a field."""
        body = {
            "model": MODEL,
            "max_tokens": 64,
            "stream": True,
            "messages": [{"role": "user", "content": text}],
        } | changes
        return {name: value for name, value in body.items() if value is not None}

    def send(self, text: str = "Hello", *, key: str = "", seconds: float = 600, **changes: Any) -> Answer:  # noqa: ANN401
        return self.call("POST", "/v1/messages", self.message(text, **changes), key=key, seconds=seconds)

    def items(self, kind: str, user_id: str = "") -> list[dict[str, Any]]:
        """A user's stored items of one Type, as plain values."""
        found = [
            {name: int(value["N"]) if "N" in value else next(iter(value.values())) for name, value in item.items()}
            for item in self.table.items()
        ]
        key = f"TENANT#main#USER#{user_id or self.user_id}"
        return [item for item in found if item["Type"] == kind and item["PK"] == key]

    def meter(self, user_id: str = "") -> dict[str, Any]:
        [meter] = self.items("Meter", user_id)
        return meter


def end_container() -> None:
    """The next call starts a new one."""
    tools = app.url.__dict__.pop("tools", None)
    if tools is not None:
        tools.relay.upstream.close()


@contextmanager
def claude_function(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClaudeFunction]:
    """A fresh container: nothing is built, nothing is cached."""
    with FakeClaude(seed=1) as claude, moto_table(monkeypatch) as table:
        ssm = boto3.client("ssm", region_name=REGION)
        for name, value in {"/tg/pepper": PEPPER, "/tg/key": UPSTREAM_KEY}.items():
            ssm.put_parameter(Name=name, Value=value, Type="SecureString")
        ssm.close()
        for name, value in {
            "STAGE": "test",
            "TABLE_NAME": NAME,
            "COGNITO_ISSUER": ISSUER,
            "COGNITO_CLIENT_IDS": CLIENT_ID,
            "KEY_PEPPER_PARAMETER": "/tg/pepper",
            "UPSTREAM_API_KEY_PARAMETER": "/tg/key",
            "UPSTREAM_BASE_URL": claude.url,
            "ALLOW_TEST_KEYS": "true",
            "MAX_BODY_BYTES": "200000",
        }.items():
            monkeypatch.setenv(name, value)
        end_container()
        try:
            yield ClaudeFunction(table, claude)
        finally:
            end_container()
