"""The local operator's address and SES: they take what the product sends, and nothing else."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest

from dev.notice_sink import KEPT, SENDER, WEBHOOK_PATH, NoticeSink
from tests.providers.test_operator_webhook import NOTICE
from tests.support.moto_table import set_credentials
from tollgate.domain.notices import NotDeliveredError
from tollgate.providers.mail import SesMailer, mail_client
from tollgate.providers.operator_webhook import OperatorWebhook

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def sink(lines: list[str]) -> Iterator[NoticeSink]:
    sink = NoticeSink(lines.append)
    sink.start()
    yield sink
    sink.close()


def webhook(sink: NoticeSink, secret: str = "") -> OperatorWebhook:
    return OperatorWebhook(sink.webhook_url, lambda: (secret or sink.secret,), "dev")


def kept(sink: NoticeSink) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sink.document()["data"]
    return found


def test_a_signed_notice_is_kept_and_told_once_however_often_it_comes(sink: NoticeSink, lines: list[str]) -> None:
    for _ in range(3):
        webhook(sink).send(NOTICE, NOW)
    [row] = kept(sink)
    assert (row["kind"], row["times"], row["notice"]["id"]) == ("webhook", 3, NOTICE.id)
    assert lines == [f"75 % of tokens passed by {NOTICE.user_id}"]


def test_what_is_signed_with_another_secret_is_refused(sink: NoticeSink) -> None:
    with pytest.raises(NotDeliveredError, match="401"):
        webhook(sink, "another").send(NOTICE, NOW)
    assert kept(sink) == []


@pytest.mark.parametrize("header", ["", "t=,v1=", "t=x,v1=x", "t=99999999999999999999,v1=x"])
def test_what_is_not_signed_at_all_is_refused(sink: NoticeSink, header: str) -> None:
    assert sink.answer(WEBHOOK_PATH, {"tollgate-signature": header}, b"{}").status == 401


def test_a_mail_is_kept_as_its_reader_sees_it(sink: NoticeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", sink.url)
    mailer = SesMailer(mail_client(botocore.session.get_session(), "us-east-1"), SENDER)
    mailer.send(NOTICE, "Pro", "", "ada@example.com")
    [row] = kept(sink)
    assert (row["kind"], row["from"], row["to"]) == ("mail", SENDER, "ada@example.com")
    assert row["subject"] == "You have used 80 % of the tokens of your Pro plan"
    assert "1,600,000 of 2,000,000" in row["text"]


@pytest.mark.parametrize(("path", "status"), [("/operator", 401), ("/v2/email/outbound-emails", 400), ("/", 404)])
def test_nonsense_is_refused_and_does_not_end_it(sink: NoticeSink, path: str, status: int) -> None:
    for body in (b"[]", b"{", b"{}"):
        connection = http.client.HTTPConnection(sink.url.removeprefix("http://"), timeout=5)
        connection.request("POST", path, body)
        assert connection.getresponse().status == status
        connection.close()
    assert kept(sink) == []


def test_it_keeps_the_newest_and_not_too_many(sink: NoticeSink) -> None:
    for number in range(KEPT + 2):
        webhook(sink).send(replace(NOTICE, threshold_percent=number), NOW)
    assert [row["notice"]["data"]["threshold_percent"] for row in (kept(sink)[0], kept(sink)[-1])] == [KEPT + 1, 2]
    sink.clear()
    assert kept(sink) == []
