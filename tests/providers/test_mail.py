"""Mail to users by SES, at SES's own wire."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import botocore.session
import pytest
from botocore.stub import ANY, Stubber
from moto import mock_aws

from tests.providers.test_operator_webhook import NOTICE
from tests.support.moto_table import set_credentials
from tollgate.domain.notices import NotDeliveredError, NoticeRefusedError, QuotaShare, QuotaUnit
from tollgate.providers.mail import SesMailer, mail_client, message

SENDER = "no-reply@example.com"
SesClient = Any
"""No types are installed for it."""
ADVICE = "Enterprise includes 10,000,000 tokens a month."


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> SesClient:
    set_credentials(monkeypatch)
    return mail_client(botocore.session.get_session(), "eu-west-1")


def test_says_how_much_of_what_is_used_until_when_and_what_to_do() -> None:
    subject, paragraphs = message(NOTICE, "Pro", ADVICE)
    assert subject == "You have used 80 % of the tokens of your Pro plan"
    text = "\n".join(paragraphs)
    assert "1,600,000 of 2,000,000" in text
    assert "01 Dec 2026 at 00:00 UTC" in text
    assert ADVICE in text
    assert "usage_emails" in text


@pytest.mark.parametrize(("used", "says"), [(9, "90 % of the requests"), (10, "all requests"), (11, "all requests")])
def test_all_of_it_is_said_plainly(used: int, says: str) -> None:
    subject, _ = message(replace(NOTICE, share=QuotaShare(QuotaUnit.REQUESTS, used, 10)), "Pro", "")
    assert says in subject


def test_is_sent_as_text_and_as_html_to_one_address(client: SesClient) -> None:
    with Stubber(client) as wire:
        content = {
            "Subject": {"Data": "You have used 80 % of the tokens of your R&D plan", "Charset": "UTF-8"},
            "Body": {"Text": ANY, "Html": ANY},
            "Headers": ANY,
        }
        expected = {
            "FromEmailAddress": SENDER,
            "Destination": {"ToAddresses": ["ada@example.com"]},
            "Content": {"Simple": content},
            "EmailTags": ANY,
        }
        wire.add_response("send_email", {"MessageId": "1"}, expected)
        sent: list[dict[str, Any]] = []
        client.meta.events.register("before-parameter-build.sesv2", lambda params, **_: sent.append(dict(params)))
        SesMailer(client, SENDER).send(NOTICE, "R&D", "", "ada@example.com")
    body = sent[0]["Content"]["Simple"]["Body"]
    assert "R&D plan" in body["Text"]["Data"]
    assert "R&amp;D plan" in body["Html"]["Data"]


def test_moto_takes_it_as_ses_would(client: SesClient) -> None:
    with mock_aws():
        made = mail_client(botocore.session.get_session(), "eu-west-1")
        made.create_email_identity(EmailIdentity="example.com")  # type: ignore[attr-defined]
        SesMailer(made, SENDER).send(NOTICE, "Pro", ADVICE, "ada@example.com")


@pytest.mark.parametrize(
    ("code", "of_this_mail"),
    [
        ("MessageRejected", True),
        ("BadRequestException", True),
        ("TooManyRequestsException", False),
        ("AccountSuspendedException", False),
        ("SendingPausedException", False),
        ("AccessDeniedException", False),
        ("InternalServiceError", False),
    ],
)
def test_a_refusal_of_ses_is_no_delivery_and_its_text_names_no_address(
    client: SesClient, code: str, of_this_mail: bool
) -> None:
    """Some are about the one mail: the sandbox does not know the recipient. The others would meet every mail."""
    with Stubber(client) as wire:
        wire.add_client_error("send_email", code, "Email address is not verified: ada@example.com")
        with pytest.raises(NotDeliveredError, match=code) as caught:
            SesMailer(client, SENDER).send(NOTICE, "Pro", ADVICE, "ada@example.com")
    assert isinstance(caught.value, NoticeRefusedError) == of_this_mail
    assert "ada" not in str(caught.value)


def test_an_address_that_cannot_be_sent_is_refused_as_one(client: SesClient) -> None:
    with pytest.raises(NoticeRefusedError):
        SesMailer(client, SENDER).send(NOTICE, "Pro", ADVICE, None)  # type: ignore[arg-type]
