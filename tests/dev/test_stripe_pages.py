"""Checkout, portal and invoices of the double, as a browser gets them."""

from __future__ import annotations

import json
import re
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from dev.engines import stripe_listener
from dev.stripe_double.keeper import Keeper
from dev.stripe_double.pages import Pages, use_addresses
from dev.stripe_double.server import DoubleServer
from dev.stripe_double.world import StripeWorld

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
Json = dict[str, Any]


@dataclass
class Shop:
    """An account with one plan and one customer, behind a socket."""

    url: str
    now: list[datetime]
    made: Json = field(default_factory=dict)

    def api(self, method: str, path: str, **parameters: str) -> Json:
        data = urlencode({name.replace("__", "[") + "]" * ("__" in name): v for name, v in parameters.items()}).encode()
        status, _, text = self.fetch(method, path, data if method == "POST" else None, authorization="Bearer sk_test_x")
        assert status == 200, text
        return dict(json.loads(text))

    def fetch(self, method: str, path: str, data: bytes | None = None, **headers: str) -> tuple[int, Json, str]:
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=20) as response:
                return response.status, dict(response.headers), response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()

    def page(self, path: str, **form: str) -> tuple[int, str]:
        """The page's status, and its text or where it leads."""
        status, headers, text = self.fetch("POST" if form else "GET", path, urlencode(form).encode() if form else None)
        return status, headers.get("location", text)

    def steer(self, name: str, **body: Any) -> Json:  # noqa: ANN401
        status, _, text = self.fetch("POST", f"/_double/{name}", json.dumps(body).encode(), **{"x-tollgate-dev": "1"})
        assert status == 200, text
        return dict(json.loads(text))

    def checkout(self, **more: str) -> str:
        """Path of an open checkout's page."""
        given = {
            "mode": "subscription",
            "customer": self.made["customer"],
            "success_url": "http://shop.example/done?id={CHECKOUT_SESSION_ID}",
            "cancel_url": "http://shop.example/cart",
        }
        items = {"line_items[0][price]": self.made["price"], "line_items[0][quantity]": "1"}
        data = urlencode({**given, **items, **more}).encode()
        status, _, text = self.fetch("POST", "/v1/checkout/sessions", data, authorization="Bearer sk_test_x")
        assert status == 200, text
        return str(json.loads(text)["url"]).removeprefix(self.url)

    def portal(self, customer: str | None = None) -> str:
        made = self.api("POST", "/v1/billing_portal/sessions", customer=customer or self.made["customer"])
        return str(made["url"]).removeprefix(self.url)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


@contextmanager
def serving() -> Iterator[Shop]:
    now = [NOW]

    def make(at: datetime, seed: int) -> StripeWorld:
        world = StripeWorld(now=at, seed=seed, webhook_secret="whsec_x", account_id="acct_1")
        use_addresses(world, url)
        return world

    listener = stripe_listener()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    keeper = Keeper(make, None, clock=lambda: now[0], seed=lambda: secrets.randbits(32), on_events=lambda _: None)
    server = DoubleServer(listener, keeper, None, Pages(keeper, {"authorization": "Bearer sk_test_pages"}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Shop(url, now)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def shop() -> Iterator[Shop]:
    with serving() as shop:
        product = shop.api("POST", "/v1/products", name="Pro <b>& more")["id"]
        shop.made["price"] = shop.api(
            "POST", "/v1/prices", product=product, currency="usd", unit_amount="2900", recurring__interval="month"
        )["id"]
        shop.made["customer"] = shop.api("POST", "/v1/customers", email="ada@example.com")["id"]
        features = {
            "features[subscription_cancel][enabled]": "true",
            "features[invoice_history][enabled]": "true",
            "features[payment_method_update][enabled]": "true",
        }
        shop.fetch(
            "POST",
            "/v1/billing_portal/configurations",
            urlencode(features).encode(),
            authorization="Bearer sk_test_x",
        )
        yield shop


def test_checkout_shows_what_is_bought_and_by_whom_and_nothing_is_markup(shop: Shop) -> None:
    status, text = shop.page(shop.checkout())
    assert status == 200
    assert "ada@example.com" in text
    assert "$29.00" in text
    assert "Pro &lt;b&gt;&amp; more" in text
    assert "<b>& more" not in text
    assert 'href="http://shop.example/cart"' in text


def test_a_paid_checkout_leads_to_the_shop_also_when_it_is_clicked_again(shop: Shop) -> None:
    path = shop.checkout()
    for _ in range(2):
        status, location = shop.page(f"{path}/pay", card="ok")
        assert (status, location) == (303, f"http://shop.example/done?id={path.rpartition('/')[2]}")
    assert "This checkout is done" in shop.page(path)[1]


def test_a_declined_card_leaves_the_checkout_open(shop: Shop) -> None:
    path = shop.checkout()
    status, text = shop.page(f"{path}/pay", card="declined")
    assert (status, "The card was declined" in text) == (402, True)
    assert shop.page(f"{path}/pay", card="ok")[0] == 303


def test_the_bank_is_asked_and_may_say_no(shop: Shop) -> None:
    path = shop.checkout()
    assert "Your bank asks" in shop.page(f"{path}/pay", card="authenticates")[1]
    assert shop.page(f"{path}/pay", card="refused")[0] == 402
    assert "Your bank asks" in shop.page(f"{path}/pay", card="authenticates")[1]
    assert shop.page(f"{path}/pay", card="confirmed")[0] == 303


def test_a_trial_is_told_and_costs_nothing_today(shop: Shop) -> None:
    path = shop.checkout(**{"subscription_data[trial_period_days]": "14"})
    text = shop.page(path)[1]
    assert "14 days free, then $29.00 per month" in text
    assert "Start the trial" in text
    assert "$0.00" in text
    assert shop.page(f"{path}/pay", card="ok")[0] == 303


def test_a_promotion_code_is_taken_off_or_said_to_be_none(shop: Shop) -> None:
    coupon = shop.api("POST", "/v1/coupons", percent_off="20", duration="once")["id"]
    shop.api("POST", "/v1/promotion_codes", promotion__type="coupon", promotion__coupon=coupon, code="SPRING")
    path = shop.checkout(allow_promotion_codes="true")
    assert "There is no code NOPE" in shop.page(f"{path}?code=NOPE")[1]
    text = shop.page(f"{path}?code=SPRING")[1]
    assert "SPRING (20 % off)" in text
    assert "Subscribe for $23.20" in text
    assert shop.page(f"{path}/pay", card="ok", code="SPRING")[0] == 303
    invoice = shop.api("GET", "/v1/invoices")["data"][0]
    assert invoice["total"] == 2320
    assert "$23.20" in shop.page(f"/invoice/{invoice['id']}")[1]


def test_an_expired_checkout_says_so_and_takes_nothing(shop: Shop) -> None:
    path = shop.checkout()
    shop.steer("advance", seconds=2 * 86_400)
    assert shop.page(path)[0] == 410
    assert shop.page(f"{path}/pay", card="ok")[0] == 410
    assert shop.api("GET", "/v1/subscriptions")["data"] == []


def test_a_checkout_of_somebody_who_lives_in_the_past_is_open_as_long_as_they_meant(shop: Shop) -> None:
    """The caller's clock is behind after a journey in time: the end that it names is moved along."""
    shop.steer("advance", seconds=30 * 86_400)
    ends_at = NOW + timedelta(hours=1)
    path = shop.checkout(expires_at=str(int(ends_at.timestamp())))
    assert shop.page(path)[0] == 200
    shop.now[0] = ends_at + timedelta(seconds=1)
    assert shop.page(path)[0] == 410


def test_the_portal_cancels_and_takes_that_back(shop: Shop) -> None:
    shop.page(f"{shop.checkout()}/pay", card="ok")
    path = shop.portal()
    text = shop.page(path)[1]
    assert "renews on 20 Dec 2026" in text
    [subscription] = set(re.findall(r"sub_\w+", text))
    assert "until <b>20 Dec 2026</b>" in shop.page(f"{path}/cancel?subscription={subscription}")[1]
    assert "ends on 20 Dec 2026" in shop.page(f"{path}/cancel", subscription=subscription)[1]
    assert "renews on 20 Dec 2026" in shop.page(f"{path}/resume", subscription=subscription)[1]


def test_a_card_that_fails_leaves_an_invoice_open_which_a_new_card_pays(shop: Shop) -> None:
    shop.page(f"{shop.checkout()}/pay", card="ok")
    path = shop.portal()
    assert "are declined" in shop.page(f"{path}/card", card="declined")[1]
    shop.steer("advance", seconds=31 * 86_400)
    text = shop.page(path)[1]
    assert "past due" in text
    [invoice] = re.findall(r'name="invoice" value="(\w+)"', text)
    refused = shop.page(f"{path}/invoice", invoice=invoice)
    assert refused[0] == 400
    assert 'role="alert"' in refused[1]
    assert shop.page(f"/invoice/{invoice}/pay", card="x")[0] == 402
    assert "past due" not in shop.page(f"{path}/card", card="ok")[1]
    assert shop.api("GET", f"/v1/invoices/{invoice}")["status"] == "paid"


def test_a_portal_does_nothing_to_what_is_somebody_elses(shop: Shop) -> None:
    shop.page(f"{shop.checkout()}/pay", card="ok")
    own = shop.page(shop.portal())[1]
    [subscription] = set(re.findall(r"sub_\w+", own))
    [invoice] = set(re.findall(r"/invoice/(in_\w+)", own))
    other = shop.portal(shop.api("POST", "/v1/customers", email="eve@example.com")["id"])
    assert "No subscription" in shop.page(other)[1]
    assert shop.page(f"{other}/cancel?subscription={subscription}")[0] == 404
    assert shop.page(f"{other}/cancel", subscription=subscription)[0] == 400
    assert shop.page(f"{other}/invoice", invoice=invoice)[0] == 404
    assert "renews on" in shop.page(shop.portal())[1]


@pytest.mark.parametrize(
    "path",
    [
        "/checkout/cs_test_none",
        "/checkout/",
        "/portal/bps_none",
        "/invoice/in_none",
        "/portal/bps_none/cancel?subscription=x",
        "/checkout/..%2f..%2fv1",
    ],
)
def test_an_address_of_nothing_says_so(shop: Shop, path: str) -> None:
    status, text = shop.page(path)
    assert (status, "Nothing is here" in text) == (404, True)


def test_pages_load_nothing_and_no_site_can_steer_or_read_them(shop: Shop) -> None:
    _, headers, text = shop.fetch("GET", shop.checkout())
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in text
    assert shop.fetch("POST", "/_double/reset", b"{}")[0] == 403
    assert shop.fetch("GET", "/_double/clock", host="evil.example")[0] == 403
    assert shop.fetch("POST", "/_double/act/reset", b"{}", **{"x-tollgate-dev": "1"})[0] == 404
    assert shop.fetch("POST", "/_double/act/refund", b'{"no": 1}', **{"x-tollgate-dev": "1"})[0] == 400
