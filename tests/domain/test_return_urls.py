"""Where users may be sent back to: what could be read in two ways goes nowhere."""

from __future__ import annotations

import pytest

from tollgate.domain.errors import PermissionDeniedError
from tollgate.domain.return_urls import LONGEST_URL, ReturnUrls

URLS = ReturnUrls(("https://app.example.com/billing", "http://localhost:3000", "https://other.example.com:8443/a/"))


@pytest.mark.parametrize(
    "url",
    [
        "https://app.example.com/billing",
        "https://app.example.com/billing/",
        "https://app.example.com/billing/done",
        "https://app.example.com/billing?session={CHECKOUT_SESSION_ID}",
        "https://app.example.com/billing?next=%2Fa#part/two",
        "http://localhost:3000",
        "http://localhost:3000/any/page.html",
        "https://other.example.com:8443/a",
        "https://other.example.com:8443/a/b",
    ],
)
def test_listed_pages_and_what_lies_below_them_are_taken_as_they_stand(url: str) -> None:
    assert URLS.check("success_url", url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https://app.example.com",  # above the listed page
        "https://app.example.com/",
        "https://app.example.com/billings",
        "https://app.example.com/Billing",
        "http://app.example.com/billing",
        "HTTPS://app.example.com/billing",
        "https://APP.example.com/billing",
        "https://app.example.com./billing",
        "https://app.example.com:443/billing",
        "https://app.example.com:/billing",
        "https://app.example.com:0443/billing",
        "https://app.example.com.evil.example/billing",
        "https://evilapp.example.com/billing",
        "https://app.example.com@evil.example/billing",
        "https://user:password@app.example.com/billing",
        "https://app.example.com\\@evil.example/billing",
        "https://evil.example\\.app.example.com/billing",
        "https:\\\\app.example.com/billing",
        "https:app.example.com/billing",
        "//app.example.com/billing",
        "/billing",
        "https:///app.example.com/billing",
        "https://app.example.com//evil.example/billing",
        "https://app.example.com/billing//evil.example",
        "https://app.example.com/billing/../other",
        "https://app.example.com/billing/..",
        "https://app.example.com/billing/./x",
        "https://app.example.com/billing/%2e%2e/other",
        "https://app.example.com/billing%2F..%2Fother",
        "https://app.example.com/billing/..;/other",
        "https://app.example.com/billing\t",
        "https://app.example.com/billing\n",
        " https://app.example.com/billing",
        "https://app.example.com/billing x",
        "https://app.example.com/billing\x00",
        "https://app.example.com/b\u0131lling",
        "https://\uff41pp.example.com/billing",
        "https://app\u3002example.com/billing",
        "https://app.example.com/billing?x=\u2028",
        "javascript://app.example.com/billing",
        "data:text/html,x",
        "ftp://app.example.com/billing",
        "http://localhost:3001/",
        "http://localhost",
        "http://127.0.0.1:3000/",
        "https://other.example.com/a",
        "https://other.example.com:8443/b",
        "https://app.example.com/billing/" + "x" * LONGEST_URL,
    ],
)
def test_everything_else_is_refused_by_the_name_of_its_field(url: str) -> None:
    with pytest.raises(PermissionDeniedError) as refusal:
        URLS.check("cancel_url", url)
    assert refusal.value.error_code == "return_url_not_allowed"
    assert refusal.value.public_message.startswith("cancel_url: ")
    assert "evil" not in refusal.value.public_message


@pytest.mark.parametrize("length", [LONGEST_URL - 1, LONGEST_URL])
def test_the_longest_address_is_taken(length: int) -> None:
    start = "https://app.example.com/billing/"
    url = start + "x" * (length - len(start))
    assert URLS.check("success_url", url) == url


def test_an_empty_list_lets_nobody_anywhere() -> None:
    with pytest.raises(PermissionDeniedError):
        ReturnUrls(()).check("success_url", "https://app.example.com/billing")
