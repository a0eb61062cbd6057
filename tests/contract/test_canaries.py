"""Secrets and personal data through every route of docs/openapi.json: well, with bad requests, with all that can fail.

What the functions depend on fails in the worst way there is: with errors that quote everything they were sent. Nothing
of it may be in a log line, a metric or an answer, but where it belongs: a new key in the answer that shows it once.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from dev.gateway import Answer
from tests.support.api_world import RETURN_URL, ApiWorld, Caller, api_world
from tests.support.billing_function import PLANS, SECRET_KEY
from tests.support.dependencies import DEAD, Dependency, dependency, to_moto, to_server
from tests.support.everything_written import everything_written
from tests.support.fake_cognito import totp
from tests.support.sam import ROOT

pytestmark = pytest.mark.slow

ROUTES = {
    f"{method.upper()} {path}"
    for path, operations in json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"].items()
    for method in operations
}
PASSWORD = "canary-Password-of-hers"
NEXT_PASSWORD = "canary-Password-that-is-next"
WRONG_CODE = "918273"
A_KEY = "tg_live_DLrsIHSbGVtekY4KBhMjbFMVRfof1B0Krl9a"
WORDS = {
    "password": "canary-Password",
    "e-mail": "canary-mail",
    "name": "canary-name",
    "idempotency key": "canary-idempotency",
    "query of a return URL": "canary-query",
    "promotion code": "CANARYPROMOTION",
    "pepper": "pepper-of-a-test",
    "Stripe's secret key": SECRET_KEY,
    "webhook secret": "whsec_1",
    "body of an event": "canary-event",
    "stack trace": "Traceback (most recent call last)",
    "key of an item": "TENANT#main#",
    "AWS secret": "wJalrXUtnFEMI",
}
"""What is looked for everywhere, beside the secrets that come into being on the way."""
PATTERNS = {
    "any API key": re.compile(r"tg_(?:live|test)_\w{8}"),  # more than the prefix, which is told and stored
    "any token": re.compile(r"eyJ[\w-]{8}"),
}
OWN = {f"GET /{path}" for path in ("auth/me", "user/profile", "usage/current")} | {
    f"POST /auth/{path}" for path in ("login", "login/mfa")
}
SIGNS_IN = {"POST /auth/login", "POST /auth/login/mfa", "POST /auth/refresh"}
SHOWS_A_KEY = {"POST /api-keys", "POST /api-keys/{key_id}/rotate", "POST /billing/first-key"}
BELONGS = {
    "e-mail": OWN | {"PUT /user/profile", "POST /auth/mfa"},  # an authenticator app shows whose code it is
    "name": OWN | {"PUT /user/profile"},
    "API key": SHOWS_A_KEY,
    "any API key": SHOWS_A_KEY,
    "any token": SIGNS_IN,
    "refresh token": SIGNS_IN,
    "TOTP secret": {"POST /auth/mfa"},
    "session": {"POST /auth/login"},
}
"""Answers of success that are for this."""
SECRETS_OF_OURS = ("pepper", "Stripe's secret key", "webhook secret")
FAULTS = [
    *(("table", status) for status in (400, DEAD)),
    ("writes", 500),
    *(("cognito", status) for status in (400, DEAD)),
    *(("stripe", status) for status in (400, 401, 500)),
]
QUOTED = {"table": "TENANT#main#", "writes": "TENANT#main#", "cognito": PASSWORD, "stripe": SECRET_KEY}
"""What would be seen if the text of an error were passed on."""
BAD_REQUESTS_AT_LEAST = 20


@dataclass
class Visitor:
    """Somebody with everything that can leak; what is here from the start is wrong."""

    caller: Caller
    refresh_token: str = "canary-refresh"
    session: str = "canary-session-of-twenty-and-more"
    totp_secret: str = ""
    key: str = ""
    key_id: str = "aaaaaaaaaaaa"


@dataclass
class World:
    """The functions, and what stands between them and what they depend on."""

    api: ApiWorld
    table: Dependency
    cognito: Dependency
    stripe: Dependency
    written: io.StringIO
    """Logs and metrics."""
    secrets: dict[str, set[str]] = field(default_factory=lambda: {name: {word} for name, word in WORDS.items()})
    """What is looked for, by what it is: the words above and what comes into being on the way."""
    found: list[str] = field(default_factory=list)
    """Where a secret was that does not belong there."""
    seen: Counter[str] = field(default_factory=Counter)
    """Answers, by route and by status."""
    numbers: Iterator[int] = field(default_factory=count)

    wreck: Callable[[Any], Any] | None = None
    """What is done to each body before it is sent."""

    def wrecked(self, how: Callable[[Any], Any]) -> World:
        """The same, where nobody sends what is right."""
        return replace(self, wreck=how)

    def dependency(self, name: str) -> Dependency:
        return {"table": self.table, "writes": self.table, "cognito": self.cognito, "stripe": self.stripe}[name]

    def visitor(self) -> Visitor:
        caller = self.api.signed_in(f"canary-mail-{next(self.numbers)}@example.com")
        self.api.cognito.member(caller.email).password = PASSWORD
        return Visitor(caller)

    def keep(self, what: str, value: str) -> str:
        self.secrets.setdefault(what, set()).add(value)
        return value

    def look_into(self, text: str, where: str, *, but_for: Container[str] = ()) -> None:
        for what, values in self.secrets.items():
            if what not in but_for and any(holds(text, value) for value in values):
                self.found.append(f"{what} in {where}")
        for what, pattern in PATTERNS.items():
            if what not in but_for and pattern.search(text):
                self.found.append(f"{what} in {where}")

    def ask(self, who: Visitor, route: str, body: object = None, query: str = "", **headers: str) -> Answer:
        """One request, and a look at its answer."""
        method, _, template = route.partition(" ")
        path = template.replace("{key_id}", who.key_id) + query
        if self.wreck is not None and isinstance(body, dict):
            body = self.wreck(body)
        answer = self.api.ask(method, path, body, caller=who.caller, **headers)
        self.look(route, answer)
        return answer

    def look(self, route: str, answer: Answer) -> None:
        self.seen[f"{answer.status // 100}xx"] += 1
        self.seen[f"{route} {answer.status // 100}xx"] += 1
        rightful = {what for what, routes in BELONGS.items() if route in routes} if answer.status < 300 else set()
        self.look_into(f"{answer.headers} {answer.body.decode()}", f"{route} -> {answer.status}", but_for=rightful)

    def read_logs(self, where: str) -> str:
        """What was written since the last time."""
        text = self.written.getvalue()
        self.written.seek(0)
        self.written.truncate()
        self.look_into(text, f"the logs: {where}")
        return text


def holds(text: str, value: str) -> bool:
    """Six digits are looked for as a word, because figures and times are full of digits."""
    return re.search(rf"(?<![\w.]){value}(?!\w)", text) is not None if value.isdigit() else value in text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Logs at DEBUG, as an operator may set it: Lambda sets the root logger's level with it."""
    written, catalog = io.StringIO(), tmp_path_factory.mktemp("catalog")
    (catalog / "plans.toml").write_text(PLANS.replace("trial_days = 14\ntrial_quota_tokens = 200000\n", ""))
    with api_world(catalog=str(catalog)) as api, ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        table = stack.enter_context(dependency(to_moto))
        cognito = stack.enter_context(dependency(to_server(api.cognito.url), code="NotAuthorizedException"))
        stripe = stack.enter_context(dependency(to_server(api.stripe.url)))
        patch.setenv("AWS_ENDPOINT_URL_DYNAMODB", table.url)
        patch.setenv("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", cognito.url)
        patch.setenv("STRIPE_API_BASE_URL", stripe.url)
        patch.setenv("POWERTOOLS_LOG_LEVEL", "DEBUG")
        yield World(api, table, cognito, stripe, written)


@pytest.fixture(autouse=True)
def _begin_anew(world: World) -> None:
    world.found.clear()
    world.seen.clear()


# ---- a whole life: each route at least once, with what is right at that moment


def live(world: World, who: Visitor) -> None:
    sign_up(world, who)
    sign_in(world, who)
    use_keys(world, who)
    buy(world, who)
    look_around(world, who)
    leave(world, who)


def sign_up(world: World, who: Visitor) -> None:
    new = f"new-{who.caller.email}"
    form = {"email": new, "name": "canary-name", "password": PASSWORD}
    world.ask(who, "POST /auth/register", form)
    world.ask(who, "POST /auth/resend", {"email": new})
    for code in (WRONG_CODE, code_in_the_mail(world, new)):
        world.ask(who, "POST /auth/confirm", {"email": new, "code": code, "password": PASSWORD})


def code_in_the_mail(world: World, address: str) -> str:
    codes = [code for to, code in world.api.cognito.mail if to == address]
    return world.keep("code", codes[-1] if codes else WRONG_CODE)


def sign_in(world: World, who: Visitor) -> None:
    email = who.caller.email
    login = {"email": email, "password": PASSWORD}
    take_tokens(world, who, world.ask(who, "POST /auth/login", login))
    world.ask(who, "POST /auth/login", login | {"password": NEXT_PASSWORD})
    take_tokens(world, who, world.ask(who, "POST /auth/refresh", {"refresh_token": who.refresh_token}))
    made = world.ask(who, "POST /auth/mfa", {"action": "associate", "password": PASSWORD})
    if made.status == 200:
        who.totp_secret = world.keep("TOTP secret", json.loads(made.body)["secret"])
    world.ask(who, "POST /auth/mfa", {"action": "verify", "code": WRONG_CODE})
    world.ask(who, "POST /auth/mfa", {"action": "verify", "code": second_factor(world, who)})
    answer = world.ask(who, "POST /auth/login", login)
    if answer.status == 200:
        who.session = json.loads(answer.body).get("session", who.session)
    world.keep("session", who.session)
    form = {"email": email, "session": who.session, "code": second_factor(world, who)}
    take_tokens(world, who, world.ask(who, "POST /auth/login/mfa", form))
    world.ask(who, "POST /auth/mfa", {"action": "disable", "password": PASSWORD})
    world.ask(who, "POST /auth/password/forgot", {"email": email})
    for code in (WRONG_CODE, code_in_the_mail(world, email)):
        world.ask(who, "POST /auth/password/reset", {"email": email, "code": code, "password": NEXT_PASSWORD})


def second_factor(world: World, who: Visitor) -> str:
    if not who.totp_secret:
        return WRONG_CODE
    return world.keep("code", totp(who.totp_secret, datetime.now(UTC).timestamp()))


def take_tokens(world: World, who: Visitor, answer: Answer) -> None:
    tokens = json.loads(answer.body) if answer.status == 200 else {}
    who.refresh_token = world.keep("refresh token", tokens.get("refresh_token", who.refresh_token))


def use_keys(world: World, who: Visitor) -> None:
    for name in ("canary-name", "canary-name of another body"):  # the second is refused: same key, another request
        made = world.ask(who, "POST /api-keys", {"name": "laptop " + name[12:]}, idempotency_key="canary-idempotency")
        if made.status == 201:
            document = json.loads(made.body)
            who.key, who.key_id = world.keep("API key", document["key"]), document["id"]
    world.ask(who, "GET /api-keys")
    world.ask(who, "GET /api-keys/{key_id}")
    world.ask(who, "PATCH /api-keys/{key_id}", {"budget_tokens": 1000})
    world.ask(who, "POST /api-keys/{key_id}/rotate", {"overlap_seconds": 60})
    world.ask(who, "POST /api-keys/report", {"key": who.key or A_KEY})
    world.ask(who, "DELETE /api-keys/{key_id}")


def buy(world: World, who: Visitor) -> None:
    url = f"{RETURN_URL}?token=canary-query"
    order = {"plan": "pro", "interval": "month", "success_url": url, "cancel_url": url}
    world.api.stripe.world.take_events()  # what became of those who left before would go to a queue that is not here
    world.ask(who, "GET /billing/plans")
    world.ask(who, "POST /billing/checkout", order | {"promotion": "CANARYPROMOTION"})
    made = world.ask(who, "POST /billing/checkout", order)
    if made.status == 201:
        world.api.stripe.world.complete_checkout(json.loads(made.body)["id"])
    world.ask(who, "GET /billing/status")
    world.ask(who, "POST /billing/first-key")
    world.ask(who, "POST /billing/overage", {"enabled": True, "cap_cents": 2000})
    world.ask(who, "GET /billing/invoices")
    world.ask(who, "POST /billing/portal", {"return_url": url})
    for preview in (True, False):
        world.ask(who, "POST /billing/change-plan", {"plan": "team", "interval": "month", "preview": preview})
    for event in world.api.stripe.world.take_events()[:4]:
        deliver(world, event)
    deliver(world, {"id": "evt_1", "object": "event", "type": "invoice.paid", "data": {"object": "canary-event"}})


def deliver(world: World, event: dict[str, Any]) -> None:
    """Signed as Stripe does, and by somebody else."""
    request = world.api.stripe.world.deliver(event | {"note": "canary-event"}, at=datetime.now(UTC))
    for body in (request.body, request.body + b" "):
        headers = tuple((name.lower(), value) for name, value in request.headers.items())
        answer = world.api.send("POST", "/stripe/webhook", "", headers, body)
        world.look("POST /stripe/webhook", answer)


def look_around(world: World, who: Visitor) -> None:
    for route in sorted(ROUTES):
        if route.startswith("GET ") and "{" not in route:
            world.ask(who, route)
    for form in ("csv", "jsonl"):
        world.ask(who, "GET /usage/export", query=f"?format={form}")
    world.ask(
        who, "PUT /user/profile", {"display_name": "canary-name", "locale": "de-CH", "time_zone": "Europe/Zurich"}
    )
    world.ask(who, "PUT /user/preferences", {"apps": {"notes": "canary-note"}})


def leave(world: World, who: Visitor) -> None:
    world.ask(who, "POST /auth/logout", {"refresh_token": who.refresh_token, "everywhere": True})
    world.ask(who, "DELETE /auth/me")


# ---- the tests


def test_nothing_secret_is_told_or_written_when_all_goes_well(world: World) -> None:
    with everything_written(world.written):
        live(world, world.visitor())
    assert "request_refused" in world.read_logs("all is well")
    assert not world.found
    assert [name for name in world.seen if name.endswith(" 5xx")] == []
    assert not [route for route in ROUTES if not world.seen[f"{route} 2xx"]], "each is to be seen at work"
    assert {"TOTP secret", "API key", "refresh token", "code"} <= set(world.secrets)


def test_nothing_that_came_into_being_is_stored_in_clear(world: World) -> None:
    live(world, world.visitor())
    stored = json.dumps(world.api.table.items())
    for what in {"password", "code", "API key", "refresh token", "TOTP secret", "session", *SECRETS_OF_OURS}:
        for value in world.secrets[what]:
            assert not holds(stored, value), what


WRECKS: dict[str, Callable[[Any], Any]] = {
    "a text of it": json.dumps,
    "every value in a list": lambda body: {name: [value] for name, value in body.items()},
    "every value too long": lambda body: {name: f" {value}\n" * 2_000 for name, value in body.items()},
    "another field": lambda body: body | {"surprise": json.dumps(body)},
}


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_refused_request_is_quoted_nowhere(world: World, wreck: str) -> None:
    with everything_written(world.written):
        live(world.wrecked(WRECKS[wreck]), world.visitor())
    assert "request_refused" in world.read_logs(wreck)
    assert not world.found
    assert [name for name in world.seen if name.endswith(" 5xx")] == []
    assert world.seen["4xx"] >= BAD_REQUESTS_AT_LEAST


@pytest.mark.parametrize(("failing", "status"), FAULTS)
def test_an_error_that_quotes_all_it_was_sent_is_quoted_nowhere(world: World, failing: str, status: int) -> None:
    who, dependency = world.visitor(), world.dependency(failing)
    sign_in(world, who)
    world.found.clear()
    dependency.quoted.clear()
    dependency.status, dependency.only_writes = status, failing == "writes"
    try:
        with everything_written(world.written):
            live(world, who)
    finally:
        dependency.status = None
    written = world.read_logs(f"{failing} answers {status}")
    assert '"status":503' in written or "request_failed" in written
    assert not world.found
    if status != DEAD:
        assert any(QUOTED[failing] in text for text in dependency.quoted), "or else nothing was tried"
