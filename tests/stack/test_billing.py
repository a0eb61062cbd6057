"""Buying, changing and leaving a plan, through sockets: the public API, the pages as a person clicks them, webhooks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import pytest

from tests.support.stack import ROOT, RunningStack, running_stack

pytestmark = pytest.mark.stack

MODEL = "claude-haiku-5-5"
TRIGGERS = (
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.trial_will_end",
    "customer.subscription.deleted",
    "customer.deleted",
)
"""The command's other fixtures use what API 2026-10-28.endive no longer takes, or what the product never does."""
LONG = "tell me " * 500
"""About a thousand tokens: more than the near-quota user has left."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        assert until(lambda: running.billing()["open"]), running.billing()
        yield running


def stripe_command() -> str | None:
    """The official CLI, installed by `make test` where there is npm, or on PATH."""
    own = ROOT / ".dev" / "stripe-cli" / "node_modules" / ".bin" / "stripe"
    return str(own) if own.is_file() else shutil.which("stripe")


def until(true: Callable[[], object], seconds: float = 30) -> bool:
    limit = time.monotonic() + seconds
    while not (found := bool(true())) and time.monotonic() < limit:
        time.sleep(0.1)
    return found


# Somebody with an HTTP client.


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        return str(self.body["error"].get("details", {}).get("error_code", ""))


@dataclass(frozen=True)
class Person:
    """The near-quota user's own app."""

    stack: RunningStack
    key: str
    token: str

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        given = {"content-type": "application/json", "authorization": f"Bearer {self.token}", **headers}
        data = None if body is None else json.dumps(body).encode()
        status, answered, raw = fetch(method, self.stack.gateway_url + path, data, given)
        return Answer(status, json.loads(raw or b"{}"), answered)

    def call(self, text: str = LONG) -> Answer:
        body = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": text}]}
        headers = {"x-api-key": self.key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
        data = json.dumps(body).encode()
        status, answered, raw = fetch("POST", f"{self.stack.gateway_url}/v1/messages", data, headers)
        return Answer(status, json.loads(raw), answered)

    def status(self) -> dict[str, Any]:
        found = self.ask("GET", "/billing/status")
        assert found.status == 200
        return dict(found.body)

    def plan(self) -> str:
        return str(self.status()["plan"]["id"])

    def buy(self, plan: str, interval: str = "month") -> Answer:
        page = f"{self.stack.gateway_url}/_dev/billing"
        return self.ask(
            "POST",
            "/billing/checkout",
            {
                "plan": plan,
                "interval": interval,
                "success_url": page + "?paid={CHECKOUT_SESSION_ID}",
                "cancel_url": page,
            },
        )

    def change(self, plan: str, *, preview: bool = False) -> dict[str, Any]:
        found = self.ask("POST", "/billing/change-plan", {"plan": plan, "preview": preview})
        assert found.status == 200, found
        return dict(found.body)

    def visit_portal(self) -> Page:
        found = self.ask("POST", "/billing/portal", {"return_url": f"{self.stack.gateway_url}/_dev/billing"})
        assert found.status == 201, found
        return visit(found.body["url"])


def near_quota(stack: RunningStack) -> Person:
    return Person(stack, stack.near_quota_key, stack.access_token("near_quota"))


# Somebody with a browser.


@dataclass
class Form:
    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)
    words: str = ""
    """What its button says."""


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._in_button = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(given.get("method", "get").upper(), given["action"]))
        elif tag == "input" and (given.get("type") != "radio" or "checked" in given):
            self.forms[-1].fields[given["name"]] = given.get("value", "")
        self._in_button = tag == "button"

    def handle_data(self, data: str) -> None:
        if self._in_button:
            self.forms[-1].words += data


@dataclass(frozen=True)
class Page:
    url: str
    status: int
    text: str

    def press(self, words: str, **chosen: str) -> Page:
        """Presses the button that says this, with other choices than the form came with."""
        parser = _Forms()
        parser.feed(self.text)
        [form] = [form for form in parser.forms if words in form.words]
        data = urlencode({**form.fields, **chosen})
        target = urljoin(self.url, form.action)
        return visit(target, data.encode()) if form.method == "POST" else visit(f"{target}?{data}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def fetch(method: str, url: str, data: bytes | None, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=60) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def visit(url: str, data: bytes | None = None) -> Page:
    """A page, and where it leads when it leads elsewhere."""
    status, headers, raw = fetch("GET" if data is None else "POST", url, data, {})
    if status in (302, 303):
        return visit(urljoin(url, {name.lower(): value for name, value in headers.items()}["location"]))
    return Page(url, status, raw.decode())


# The stories.


def test_a_user_out_of_quota_buys_changes_and_leaves(stack: RunningStack) -> None:
    person = near_quota(stack)
    _meets_the_quota(person)
    _pays(person)
    _goes_up_and_down(person)
    _leaves(person)
    _comes_back(person)
    assert stack.stripe("GET", "refused")["data"] == []
    failed = [attempt for attempt in stack.stripe("GET", "deliveries")["data"] if attempt["status"] != 200]
    assert failed == []
    assert "come back" not in stack.output(), "a queued event was not handled at once"


def _meets_the_quota(person: Person) -> None:
    refused = person.call()
    assert (refused.status, refused.code) == (429, "quota_exceeded")
    assert "Upgrade to Pro" in refused.body["error"]["message"]
    assert person.status()["subscription"] is None


def _pays(person: Person) -> None:
    """With a card that is declined, a bank that is not sure, and then for good: on Pro at the very next call."""
    bought = person.buy("pro")
    assert bought.status == 201, bought
    page = visit(bought.body["url"])
    assert "$29.00" in page.text
    assert "nearly@example.com" in page.text
    declined = page.press("Subscribe", card="declined")
    assert declined.status == 402
    assert "declined" in declined.text
    assert person.plan() == "free"
    asked = declined.press("Subscribe", card="authenticates")
    assert "Your bank asks" in asked.text
    unsure = asked.press("fail the authentication")
    assert unsure.status == 402
    assert (person.plan(), person.call().status) == ("free", 429)
    done = unsure.press("Subscribe", card="authenticates").press("complete the payment")
    assert urlsplit(done.url).path == "/_dev/billing"
    assert bought.body["id"] in done.url
    assert until(lambda: person.call().status == 200)
    status = person.status()
    assert (status["plan"]["id"], status["subscription"]["state"]) == ("pro", "active")
    assert status["tokens"]["quota"] == 2_000_000
    assert visit(bought.body["url"]).text.count("This checkout is done") > 0
    again = person.buy("enterprise")
    assert again.status == 409, again


def _goes_up_and_down(person: Person) -> None:
    preview = person.change("enterprise", preview=True)
    # Its price, less a month of Pro that has hardly begun.
    assert (preview["effect"], preview["due_now"]["amount_cents"]) == ("now", 7000)
    assert person.plan() == "pro"
    assert person.change("enterprise")["effect"] == "now"
    status = person.status()
    assert (status["plan"]["id"], status["tokens"]["quota"]) == ("enterprise", 10_000_000)
    assert status["tokens"]["used"] == 0  # a new period
    assert person.call().status == 200
    later = person.change("pro")
    assert later["effect"] == "at_period_end"
    assert person.status()["subscription"]["pending_change"]["plan"] == "pro"
    assert person.plan() == "enterprise"
    assert person.change("enterprise")["effect"] == "keep"
    assert person.status()["subscription"]["pending_change"] is None
    totals = [invoice["total_cents"] for invoice in person.ask("GET", "/billing/invoices").body["data"]]
    assert totals == [7000, 2900]


def _leaves(person: Person) -> None:
    """By the portal, and back, and again; the plan lasts to the end of what is paid for, and then it is Free."""
    portal = person.visit_portal()
    assert "Enterprise" in portal.text
    assert portal.text.count("$70.00") == 1
    ending = portal.press("Cancel the plan").press("Cancel at the period")
    assert "ends with what is paid for" in ending.text
    assert until(lambda: person.status()["subscription"]["ends_at"])
    ending.press("Keep the plan")
    assert until(lambda: person.status()["subscription"]["renews_at"])
    person.visit_portal().press("Cancel the plan").press("Cancel at the period")
    assert until(lambda: person.status()["subscription"]["ends_at"])
    assert person.plan() == "enterprise"
    person.stack.advance(32 * 86_400)
    assert until(lambda: person.plan() == "free")
    status = person.status()
    assert (status["subscription"]["state"], status["tokens"]["quota"]) == ("canceled", 100_000)
    assert person.call().status == 429


def _comes_back(person: Person) -> None:
    """Also where Stripe's clock is a month ahead of ours."""
    visit(person.buy("pro").body["url"]).press("Subscribe")
    assert until(lambda: person.call().status == 200)
    assert person.status()["subscription"]["state"] == "active"


def test_two_checkouts_at_once_end_in_one_subscription(stack: RunningStack) -> None:
    """Also when both pages are paid: whoever pays second is told that the page is over."""
    stack.reset()
    assert until(lambda: stack.billing()["open"])
    person = near_quota(stack)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(person.buy, ("pro", "enterprise")))
    opened = [answer.body["url"] for answer in answers if answer.status == 201]
    assert opened, answers
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(visit, opened))
        for page in pages:
            if "Subscribe" in page.text:
                pool.submit(page.press, "Subscribe")
    assert until(lambda: person.plan() in ("pro", "enterprise"))
    time.sleep(1)
    portal = person.visit_portal()
    assert portal.text.count("Cancel the plan") == 1


def test_the_same_order_twice_is_the_same_checkout(stack: RunningStack) -> None:
    stack.reset()
    assert until(lambda: stack.billing()["open"])
    person = near_quota(stack)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(person.buy, ("pro", "pro"))
    assert (first.status, second.status) == (201, 201)
    assert first.body == second.body


def test_events_that_come_twice_in_any_order_and_thin_change_nothing(stack: RunningStack) -> None:
    stack.reset()
    assert until(lambda: stack.billing()["open"])
    person = near_quota(stack)
    stack.stripe("POST", "deliveries", {"copies": 3, "shuffled": True, "kind": "thin"})
    visit(person.buy("pro").body["url"]).press("Subscribe")
    assert until(lambda: person.call().status == 200)
    stack.stripe("POST", "deliveries", {"copies": 1, "shuffled": False, "kind": "snapshot"})
    assert person.plan() == "pro"


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_what_stripes_own_command_triggers_reaches_our_function(
    stack: RunningStack, trigger: str, tmp_path: Path
) -> None:
    """Its fixtures belong to nobody of ours, so each event is taken and nothing comes of it."""
    command = stripe_command()
    if command is None:
        pytest.skip("Stripe's command is not installed: make .dev/stripe-cli.stamp")
    seen = len(stack.stripe("GET", "deliveries")["data"])
    address = str(stack.description["fake_stripe_url"])
    done = subprocess.run(
        [command, "trigger", trigger, "--api-base", address, "--api-key", "sk_test_of_the_command"],
        env={"HOME": str(tmp_path), "PATH": os.defpath, "STRIPE_CLI_TELEMETRY_OPTOUT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    def delivered() -> list[int]:
        attempts = stack.stripe("GET", "deliveries")["data"][seen:]
        return [attempt["status"] for attempt in attempts if attempt["type"] == trigger]

    assert until(lambda: 200 in delivered()), delivered()
    assert set(delivered()) == {200}


def test_what_was_bought_is_still_there_after_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("again")
    with running_stack(folder) as first:
        assert until(lambda: first.billing()["open"])
        person = near_quota(first)
        paid = visit(person.buy("pro").body["url"]).press("Subscribe")
        assert (paid.status, urlsplit(paid.url).path) == (200, "/_dev/billing")
        assert until(lambda: person.plan() == "pro")
    with running_stack(folder) as second:
        assert until(lambda: second.billing()["open"])
        person = near_quota(second)
        assert person.plan() == "pro"
        assert "Pro" in person.visit_portal().text
        assert person.change("enterprise")["effect"] == "now"
