"""The limits of the open routes through the function's own door: what callers are told, and what a flood reaches."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator

import pytest

from tests.support.auth_function import AuthFunction, auth_function
from tests.support.fake_cognito import FakeCognito

ADA, PASSWORD = "ada@example.com", "correct horse battery"
REQUESTS = 300
BODIES: dict[str, dict[str, str]] = {
    "/auth/register": {"email": ADA, "password": PASSWORD},
    "/auth/confirm": {"email": ADA, "code": "123456", "password": PASSWORD},
    "/auth/resend": {"email": ADA},
    "/auth/login": {"email": ADA, "password": "wrong horse battery"},
    "/auth/login/mfa": {"email": ADA, "session": "s" * 40, "code": "123456"},
    "/auth/refresh": {"refresh_token": "r" * 40},
    "/auth/password/forgot": {"email": ADA},
    "/auth/password/reset": {"email": ADA, "code": "123456", "password": PASSWORD},
}


@pytest.fixture
def pool() -> Iterator[FakeCognito]:
    with FakeCognito(time.time) as pool:
        yield pool


@pytest.fixture
def auth(pool: FakeCognito, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuthFunction]:
    with auth_function(monkeypatch, AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER=pool.url) as function:
        yield function


@pytest.fixture
def tight(pool: FakeCognito, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuthFunction]:
    """One request an address and minute, so that no time given back gets in the way of a test by the real clock."""
    with auth_function(
        monkeypatch, AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER=pool.url, OPEN_ROUTE_RATE_PERCENT="1"
    ) as function:
        yield function


@pytest.mark.parametrize("path", BODIES)
def test_a_refusal_says_when_to_come_back_and_a_flood_reaches_nothing(
    tight: AuthFunction, pool: FakeCognito, path: str
) -> None:
    """Without a table every question to it would be answered 500. CPU is that of the whole handler, log line too."""
    assert tight.send(f"POST {path}", BODIES[path]).status != 429
    refused = tight.send(f"POST {path}", BODIES[path])
    assert refused.status == 429
    assert refused.body["error"]["type"] == "rate_limit_error"
    assert refused.error_code == "too_many_attempts"
    assert refused.headers["retry-after"].isdecimal()
    assert 1 <= int(refused.headers["retry-after"]) <= 24 * 3600
    tight.table.client.delete_table(TableName=tight.table.name)
    asked = len(pool.calls)
    best_seconds = min(one_run(tight, path) for _ in range(3))
    assert len(pool.calls) == asked
    assert best_seconds / REQUESTS < 0.001


def one_run(auth: AuthFunction, path: str) -> float:
    """CPU seconds of so many requests, each refused."""
    gc.collect()
    began = time.process_time()
    for _ in range(REQUESTS):
        assert auth.send(f"POST {path}", BODIES[path]).status == 429
    return time.process_time() - began


def test_no_header_changes_the_address_that_is_counted(tight: AuthFunction) -> None:
    """Each request says it comes from elsewhere; the mailbox changes too, so that only the address is left to count."""
    names = ("x-forwarded-for", "x-real-ip", "forwarded", "cf-connecting-ip", "true-client-ip", "x-client-ip", "via")
    statuses = [
        tight.send(
            "POST /auth/resend", {"email": f"user{n}@example.com"}, headers=dict.fromkeys(names, f"192.0.2.{n}")
        ).status
        for n in range(4)
    ]
    assert statuses == [202, 429, 429, 429]
    tight.source_ip = "192.0.2.99"
    assert tight.send("POST /auth/resend", {"email": "user9@example.com"}).status == 202


def test_wrong_passwords_wait_the_same_for_who_exists_and_who_does_not(auth: AuthFunction, pool: FakeCognito) -> None:
    pool.add(ADA, PASSWORD)
    told = []
    for number, email in enumerate((ADA, "nobody@example.com")):
        auth.source_ip = f"203.0.113.{number}"
        answers = [auth.send("POST /auth/login", {"email": email, "password": "wrong"}) for _ in range(6)]
        told.append([(answer.status, answer.error_code) for answer in answers])
    assert told[0] == told[1] == [(401, "invalid_credentials")] * 5 + [(429, "too_many_attempts")]


def test_who_remembers_the_password_is_not_kept_waiting(auth: AuthFunction, pool: FakeCognito) -> None:
    pool.add(ADA, PASSWORD)
    for _ in range(3):
        for _ in range(4):
            assert auth.send("POST /auth/login", {"email": ADA, "password": "wrong"}).status == 401
        assert auth.send("POST /auth/login", {"email": ADA, "password": PASSWORD}).status == 200


def test_a_throw_away_address_is_refused_openly_and_no_mail_is_sent(auth: AuthFunction, pool: FakeCognito) -> None:
    answer = auth.send("POST /auth/register", {"email": "a@mx.mailinator.com", "password": PASSWORD})
    assert (answer.status, answer.error_code) == (400, "email_domain_not_accepted")
    assert pool.calls == []


def test_an_operator_may_scale_what_one_address_may_do(pool: FakeCognito, monkeypatch: pytest.MonkeyPatch) -> None:
    with auth_function(
        monkeypatch, AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER=pool.url, OPEN_ROUTE_RATE_PERCENT="20"
    ) as auth:
        statuses = [auth.send("POST /auth/resend", {"email": f"user{n}@example.com"}).status for n in range(3)]
    assert statuses == [202, 202, 429]


def test_no_password_is_logged_even_when_the_operator_sets_the_level_to_debug(
    auth: AuthFunction, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lambda gives the root logger the level of the template's LogLevel."""
    caplog.set_level(logging.DEBUG)
    auth.send("POST /auth/login", {"email": ADA, "password": "canary-password-5e0c"})
    auth.send("POST /auth/register", {"email": ADA, "password": "canary-password-5e0c"})
    written = caplog.text + str(capsys.readouterr())
    assert "request_refused" in written
    assert "canary-password-5e0c" not in written


def test_neither_addresses_nor_e_mails_are_stored_by_the_door(auth: AuthFunction) -> None:
    for path, body in BODIES.items():
        auth.send(f"POST {path}", body)
    stored = auth.stored()
    assert "OpenRouteRate" in stored
    assert auth.source_ip not in stored
    assert ADA not in stored
