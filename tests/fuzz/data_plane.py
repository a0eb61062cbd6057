"""The claude function in this process: its real handler, routes, flows and storage, on the simulator's exact table.

So an input costs half a millisecond and a hundred thousand of them a minute. Upstream is a script; keys and tokens are
made and verified by the real code.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from functions.claude import app
from tests.simulation.memory_table import MemoryTable
from tests.support.clocks import NOON, FakeClock
from tests.support.fake_upstream import FakeUpstream
from tests.support.lambda_context import LambdaContext
from tests.support.recorded_streams import STREAMS
from tests.support.scripted_dynamodb import ScriptedClient
from tests.support.user_pool import CLIENT_ID, ISSUER, KeySetSource, UserPool
from tollgate.catalog.loader import load_catalog
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.principals import Profile
from tollgate.flows.accounts import Accounts
from tollgate.flows.authenticate import Authenticator
from tollgate.flows.count_tokens import TokenCounter
from tollgate.flows.key_use import KeyUses
from tollgate.flows.ledger import Ledger
from tollgate.flows.note_activity import ActivityNotes
from tollgate.flows.notices import UsageThresholds
from tollgate.flows.relay_message import MessageRelay
from tollgate.providers.cognito import SigningKeys, TokenVerifier
from tollgate.storage.activity import Activity
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.notices import Notices
from tollgate.storage.requests import Requests
from tollgate.storage.table import Table
from tollgate.storage.users import Users
from tollgate.telemetry import Telemetry
from tollgate.wiring import ClaudeTools, SystemIds

PEPPER = b"CANARY-pepper"
PROMPT = "CANARY-prompt"
COOKIE = "CANARY-cookie"
MODEL = "claude-haiku-4-5"
MAX_BODY_BYTES = 100_000
PLANS = ("free", "pro", "enterprise")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class DataPlane:
    """One container of the function, and callers on every plan."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.upstream = FakeUpstream(STREAMS["text with a ping"].data)
        self.pool = UserPool()
        self.memory = MemoryTable("fuzz")
        self._client = ScriptedClient(self.memory, self.clock.now_seconds)
        self._table = Table(cast("Any", self._client), "fuzz")
        self._numbers = 0
        self.keys = {plan: self._add_user(f"user-{plan}", plan) for plan in PLANS}
        self.tools = self._build()

    def call(self, method: str, path: str, body: bytes, headers: dict[str, str], query: str = "") -> Answer:
        """One invocation, as a function URL makes it."""
        return self.invoke(
            {
                "version": "2.0",
                "rawPath": path,
                "rawQueryString": query,
                "headers": headers,
                "requestContext": {"http": {"method": method, "path": path}, "requestId": "r"},
                "body": base64.b64encode(body).decode(),
                "isBase64Encoded": True,
            }
        )

    def invoke(self, event: dict[str, Any]) -> Answer:
        self._numbers += 1
        self.clock.advance(7.0)  # so that short windows refuse some calls and not all
        found = app.handler(event, LambdaContext("claude", f"req-{self._numbers}", 600_000))
        assert found is not None
        body = base64.b64decode(found["body"]) if found["isBase64Encoded"] else found["body"].encode()
        return Answer(found["statusCode"], found["headers"], body)

    @contextmanager
    def upstream_says(self, chunks: list[bytes], headers: dict[str, str]) -> Iterator[None]:
        """Another answer for a while."""
        before, self.tools.relay.upstream = self.upstream, FakeUpstream(*chunks, headers=headers)
        try:
            yield
        finally:
            self.tools.relay.upstream = before

    def token(self, user: str = "user-pro") -> str:
        return self.pool.access_token(self.clock.now_seconds(), sub=user)

    def check_upstream(self) -> None:
        """Nothing of the caller's went up that is not Claude's business; then it is forgotten."""
        for request in self.upstream.requests:
            said = repr(request.headers)
            assert COOKIE not in said, said
            assert not [key for key in self.keys.values() if key in said], said
            assert not {"authorization", "x-api-key", "cookie", "host"} & request.headers.keys(), said
        self.upstream.requests.clear()
        self.upstream.answers.clear()
        self._client.calls.clear()

    def check_meters(self) -> None:
        """Nothing is held once all calls have ended, and the sums are right."""
        for _, sk, item in self.memory.items():
            if sk.startswith("USAGE#"):
                held = [name for name in item if name.startswith("r#")]
                assert not held, (item["PK"], held)
                figures = {name: int(item[name]["N"]) for name in ("quota", "settled", "remaining", "overage_cap")}
                assert figures["remaining"] == figures["quota"] - figures["settled"], figures
                assert figures["remaining"] >= -figures["overage_cap"], figures

    def _add_user(self, user_id: str, plan_id: str) -> str:
        now = datetime.fromtimestamp(NOON, UTC)
        secret = mint_api_key(KeyMode.TEST, user_id.encode().ljust(32, b"*"))
        Users(self._table).create_profile(Profile("main", user_id, plan_id, plan_version=1, anchor_at=now))
        ApiKeys(Table(cast("Any", _PutsOnly(self._client)), "fuzz")).put_key(
            ApiKey(
                id=f"key-{user_id}",
                key_hash=hash_api_key(secret, PEPPER),
                tenant_id="main",
                user_id=user_id,
                mode=KeyMode.TEST,
                last_four=secret[-4:],
                created_at=now,
            )
        )
        return secret

    def _build(self) -> ClaudeTools:
        catalog, clock, table = load_catalog("default"), self.clock, self._table
        telemetry = Telemetry(service="claude", stage="fuzz", clock=clock)
        meters, report = Meters(table), telemetry.report
        ledger, accounts = Ledger(meters, clock, SystemIds()), Accounts(Users(table), catalog, clock)
        keys = SigningKeys(KeySetSource(self.pool.key_set()).fetch, clock, report)
        verifier = TokenVerifier(issuer=ISSUER, client_ids=frozenset({CLIENT_ID}), keys=keys, clock=clock)
        return ClaudeTools(
            clock=clock,
            telemetry=telemetry,
            max_body_bytes=MAX_BODY_BYTES,
            catalog=catalog,
            authenticator=Authenticator(ApiKeys(table), verifier, lambda: PEPPER, clock, allow_test_keys=True),
            accounts=accounts,
            meters=meters,
            ledger=ledger,
            relay=MessageRelay(
                accounts=accounts,
                catalog=catalog,
                ledger=ledger,
                upstream=self.upstream,
                requests=Requests(table),
                clock=clock,
                journal=telemetry,
                note_active=ActivityNotes(Activity(table), clock, report).note,
                note_use=KeyUses(ApiKeys(table), clock, report).note,
                note_standing=UsageThresholds(Notices(table), catalog.notices.thresholds_percent, clock, report).note,
            ),
            counter=TokenCounter(self.upstream, clock),
            reports=_no_reports,
        )


class _PutsOnly:
    """Of a transaction, the puts: the simulator's table has no string sets, in which a user's places for keys are."""

    def __init__(self, client: ScriptedClient) -> None:
        self._client = client

    def transact_write_items(self, TransactItems: list[dict[str, Any]]) -> None:  # noqa: N803  boto3's own form
        for part in TransactItems:
            if "Put" in part:
                self._client.put_item(**part["Put"])


def _no_reports() -> Any:  # noqa: ANN401
    raise AssertionError("reports are not part of this")


@contextmanager
def data_plane() -> Iterator[DataPlane]:
    """In place of the container's own tools, which would be built from the environment at the first request."""
    plane = DataPlane()
    before = app.url.__dict__.get("tools")
    app.url.__dict__["tools"] = plane.tools
    try:
        yield plane
    finally:
        app.url.__dict__.pop("tools")
        if before is not None:
            app.url.__dict__["tools"] = before
