"""The notices function whole: its real handler and wiring, an address at a real socket, SES at moto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest

from functions.notices import app
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, REGION, CountedTable, moto_table
from tests.support.notices import ThresholdWorld
from tests.support.scripted_http import ScriptedServer, answer
from tollgate.config import ConfigurationError
from tollgate.edge.stripe_signatures import verify
from tollgate.storage.notices import NoticeState
from tollgate.wiring import SystemClock

SECRET = "a-secret-of-the-operator"
PARAMETER = "/tollgate/test/operator-webhook-secret"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        monkeypatch.setenv("STAGE", "test")
        monkeypatch.setenv("TABLE_NAME", NAME)
        session: Any = botocore.session.get_session()
        session.create_client("ssm", region_name=REGION).put_parameter(
            Name=PARAMETER, Value=f"{SECRET} an-older-one", Type="SecureString"
        )
        session.create_client("sesv2", region_name=REGION).create_email_identity(EmailIdentity="example.com")
        app._tools.cache_clear()
        yield table
        app._tools.cache_clear()


@pytest.fixture
def world(table: CountedTable) -> ThresholdWorld:
    world = ThresholdWorld(table, email="ada@example.com")
    world.clock.seconds = SystemClock().now_seconds()
    return world


def run() -> dict[str, int | bool]:
    return app.handler({}, LambdaContext(remaining_ms=55_000))


def test_what_is_noted_is_told_to_the_operator_and_mailed_to_the_user(
    world: ThresholdWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.use(800)
    with ScriptedServer(answer(b"")) as operator:
        monkeypatch.setenv("OPERATOR_WEBHOOK_URL", f"{operator.url}/hooks")
        monkeypatch.setenv("OPERATOR_WEBHOOK_SECRET_PARAMETER", PARAMETER)
        monkeypatch.setenv("MAIL_FROM", "no-reply@example.com")
        assert run() == {"delivered": 1, "put_off": 0, "dead": 0, "untried": 0, "complete": True}
        assert run() == {"delivered": 0, "put_off": 0, "dead": 0, "untried": 0, "complete": True}
        [request] = operator.requests
    head, _, body = request.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    verify(body, headers["tollgate-signature"], [SECRET], SystemClock().now_seconds())
    assert json.loads(body)["data"]["threshold_percent"] == 75
    [stored] = world.stored
    assert (stored.state, stored.webhook_sent, stored.mail_sent) == (NoticeState.DELIVERED, True, True)
    written = capsys.readouterr().out
    assert "notices_delivered" in written
    assert SECRET not in written
    assert "ada@example.com" not in written


def test_an_address_that_is_down_is_told_about_and_tried_again_later(
    world: ThresholdWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.use(800)
    with ScriptedServer(answer(b"", "503 Unavailable")) as operator:
        monkeypatch.setenv("OPERATOR_WEBHOOK_URL", f"{operator.url}/hooks")
        monkeypatch.setenv("OPERATOR_WEBHOOK_SECRET_PARAMETER", PARAMETER)
        assert run()["put_off"] == 1
        assert run()["put_off"] == 0
    assert "notice_webhook_failed" in capsys.readouterr().out


def test_a_secret_that_cannot_be_read_delivers_nothing_unsigned(
    world: ThresholdWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.use(800)
    with ScriptedServer(answer(b"")) as operator:
        monkeypatch.setenv("OPERATOR_WEBHOOK_URL", f"{operator.url}/hooks")
        monkeypatch.setenv("OPERATOR_WEBHOOK_SECRET_PARAMETER", "/tollgate/test/not-there")
        assert run()["put_off"] == 1
        assert operator.requests == []


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/", "ftp://hooks.example.com/", "https://u:p@hooks.example.com/", "https://h/?x=1"]
)
def test_an_address_that_is_not_encrypted_or_carries_a_credential_is_refused_at_the_start(
    table: CountedTable, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("OPERATOR_WEBHOOK_URL", url)
    with pytest.raises(ConfigurationError, match="OPERATOR_WEBHOOK_URL"):
        run()


@pytest.mark.parametrize("sender", ["Tollgate <no-reply@example.com>", "no-reply", "a@b, c@d", "a@b\r\nBcc: c@d"])
def test_a_sender_that_is_no_plain_address_is_refused_at_the_start(
    table: CountedTable, monkeypatch: pytest.MonkeyPatch, sender: str
) -> None:
    monkeypatch.setenv("MAIL_FROM", sender)
    with pytest.raises(ConfigurationError, match="MAIL_FROM"):
        run()
