"""A running stack as tests of the whole product use it: users of their own, plain HTTP calls, what is stored."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3

from tests.support.stack import RunningStack
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.periods import period_at
from tollgate.domain.plans import PeriodKind
from tollgate.domain.principals import MaxTokensPolicy, Profile
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table, plain
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_cognito_idp import CognitoIdentityProviderClient

MODEL = "claude-haiku-5-5"
HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
PASSWORD = "tollgate-tests-only"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller got. `whole`: the answer ended as HTTP says; False: the connection broke before."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True

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
        return events_of(self.body)


@dataclass(frozen=True, slots=True)
class User:
    """Somebody on a plan, with an API key; with a password too when made with `sign_in`."""

    id: str
    key: str
    plan_id: str
    email: str
    period_kind: PeriodKind = PeriodKind.ANCHORED_MONTH
    anchor_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Gateway:
    """One stack, called and looked into from outside."""

    def __init__(self, stack: RunningStack) -> None:
        self.stack = stack
        session = boto3.session.Session("local", "local", region_name="us-east-1")
        where = stack.description["dynamodb"]
        self.table = Table(session.client("dynamodb", endpoint_url=where["endpoint_url"]), where["table"])
        self._session = session

    def close(self) -> None:
        self.table.client.close()
        if "cognito" in self.__dict__:
            self.cognito.close()

    @cached_property
    def cognito(self) -> CognitoIdentityProviderClient:
        endpoint_url, _, _ = self._jwks_url.rpartition(f"/{self.pool_id}/")
        return self._session.client("cognito-idp", endpoint_url=endpoint_url)

    @property
    def pool_id(self) -> str:
        return str(self.stack.description["cognito"]["issuer"]).rpartition("/")[2]

    @property
    def _jwks_url(self) -> str:
        return str(self.stack.description["cognito"]["jwks_url"])

    def remembered(self) -> dict[str, Any]:
        """The stack's own secrets."""
        found: dict[str, Any] = json.loads((self.stack.base_dir / "state" / "remembered.json").read_text())
        return found

    # Users.

    def add_user(
        self,
        plan_id: str = "pro",
        *,
        policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP,
        paid: bool = True,
        sign_in: bool = False,
        period_kind: PeriodKind = PeriodKind.ANCHORED_MONTH,
        **changes: Any,  # noqa: ANN401  any field of ApiKey
    ) -> User:
        """A user nobody else uses, so that a test knows every token on the meter.

        `period_kind`: the plan's, where the meter is looked into. `changes`: of the API key.
        """
        email = f"{secrets.token_hex(6)}@example.com"
        user_id = self._sign_up(email) if sign_in else f"u-{secrets.token_hex(6)}"
        now = datetime.now(UTC)
        profile = Profile("main", user_id, plan_id, plan_version=1, anchor_at=now, email=email, paid=paid)
        Users(self.table).create_profile(profile)
        user = User(user_id, "", plan_id, email, period_kind, now)
        return User(user_id, self.add_key(user, policy=policy, **changes), plan_id, email, period_kind, now)

    def add_key(self, user: User, *, policy: MaxTokensPolicy = MaxTokensPolicy.CLAMP, **changes: Any) -> str:  # noqa: ANN401
        """Another API key of a user, stored as the product stores it."""
        key = mint_api_key(KeyMode.TEST, secrets.token_bytes(32))
        stored: dict[str, Any] = {
            "id": secrets.token_hex(6),
            "key_hash": hash_api_key(key, self.remembered()["pepper"].encode()),
            "tenant_id": "main",
            "user_id": user.id,
            "mode": KeyMode.TEST,
            "last_four": key[-4:],
            "created_at": datetime.now(UTC),
            "max_tokens_policy": policy,
        }
        ApiKeys(self.table).put_key(ApiKey(**stored | changes))
        return key

    def tokens(self, user: User) -> tuple[str, str]:
        """(access token, ID token) of a user made with `sign_in`, as Cognito gives them for the password."""
        answer = self.cognito.initiate_auth(
            ClientId=self.stack.description["cognito"]["client_id"],
            AuthFlow="USER_PASSWORD_AUTH",
            AuthParameters={"USERNAME": user.email, "PASSWORD": PASSWORD},
        )
        result = answer["AuthenticationResult"]
        return result["AccessToken"], result["IdToken"]

    def _sign_up(self, email: str) -> str:
        attributes: Any = [{"Name": "email", "Value": email}, {"Name": "email_verified", "Value": "true"}]
        pool_id = self.pool_id
        created = self.cognito.admin_create_user(
            UserPoolId=pool_id, Username=email, MessageAction="SUPPRESS", UserAttributes=attributes
        )
        self.cognito.admin_set_user_password(UserPoolId=pool_id, Username=email, Password=PASSWORD, Permanent=True)
        return next(each["Value"] for each in created["User"]["Attributes"] if each["Name"] == "sub")

    # Calls.

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One HTTP request, its answer read to the end or to where it broke. `headers` replace the usual ones."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with self.open(method, path, data, key=key, headers=headers) as response:
            content, whole = bytearray(), True
            try:
                while part := response.read1(65536):
                    content += part
            except (http.client.HTTPException, OSError):
                whole = False
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, bytes(content), whole)

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """A response whose head has come; the rest is the caller's to read."""
        parts = urlsplit(self.stack.gateway_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        sent = {**HEADERS, **({} if key is None else {"x-api-key": key}), **(headers or {})}
        try:
            connection.request(method, path, body, sent)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def send(self, user: User, text: str = "Hello", **changes: Any) -> Answer:  # noqa: ANN401  any JSON
        """One message, streamed unless `stream=False`."""
        return self.call("POST", "/v1/messages", message(text, **changes), key=user.key)

    # What came of it.

    def standing(self, user: User) -> dict[str, Any]:
        """GET /v1/key."""
        answer = self.call("GET", "/v1/key", key=user.key)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json["data"]
        return found

    def meter(self, user: User) -> Meter:
        """The meter as stored."""
        meter = self.find_meter(user)
        assert meter is not None
        return meter

    def find_meter(self, user: User) -> Meter | None:
        """The same, None before the first call; with the sums checked that hold after every write."""
        period = period_at(user.period_kind, user.anchor_at, datetime.now(UTC))
        meter = Meters(self.table).find(MeterKey("main", user.id, period))
        if meter is None:
            return None
        assert meter.remaining_tokens == meter.quota_tokens - meter.settled_tokens - meter.reserved_tokens
        assert meter.open_count == len(meter.reservations)
        assert meter.remaining_tokens >= -meter.overage_cap_tokens
        return meter

    def items(self) -> list[dict[str, Any]]:
        """Everything in the table."""
        pages = self.table.client.get_paginator("scan").paginate(TableName=self.table.name)
        return [plain(item) for page in pages for item in page["Items"]]

    def exchange(self, answer: Answer) -> dict[str, Any]:
        """What the fake Claude saw of this answer's request."""
        wanted = answer.headers["x-upstream-request-id"]
        return next(each for each in self.stack.exchanges() if each["request_id"] == wanted)

    def received_by_claude(self, answer: Answer) -> bytes:
        """The body that reached upstream for this answer."""
        return self._of_exchange(answer, "received")

    def sent_by_claude(self, answer: Answer) -> bytes:
        """The bytes upstream answered with."""
        return self._of_exchange(answer, "sent")

    def _of_exchange(self, answer: Answer, part: str) -> bytes:
        parts = urlsplit(self.stack.fake_claude_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("GET", f"/_fake/exchanges/{answer.headers['x-upstream-request-id']}/{part}")
            response = connection.getresponse()
            assert response.status == 200
            return response.read()
        finally:
            connection.close()


def message(text: str = "Hello", **changes: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
    """A streamed message request; `[[fake …]]` in the text tells the fake Claude what to do. None drops a field."""
    body = {"model": MODEL, "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": text}]} | changes
    return {name: value for name, value in body.items() if value is not None}


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """(name, document) of each event of a stream's bytes."""
    found = []
    for block in body.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
        found.append((lines["event"], json.loads(lines["data"])))
    return found
