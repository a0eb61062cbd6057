"""Mail to users by Amazon SES: what a passed usage threshold means for them, as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from tollgate.domain.notices import NotDeliveredError, NoticeRefusedError, QuotaUnit, UsageNotice

if TYPE_CHECKING:
    import botocore.session

UNSUBSCRIBE: Final = "To get no such mail, set usage_emails to false in your preferences."
REFUSES_ONE_MAIL: Final = frozenset({"MessageRejected", "BadRequestException"})
"""SES's codes about a single mail or its recipient, such as an address that the sandbox does not know. Every other
code is about the account, the sender or SES itself, and the next mail would meet it too."""


class MailClient(Protocol):
    """The part of botocore's SES client that is used."""

    def send_email(self, **request: Any) -> object: ...  # noqa: ANN401  AWS's own names


def mail_client(session: botocore.session.Session, region: str) -> MailClient:
    """An SES client that answers or fails within eight seconds. One attempt: a second mail is worse than a late one."""
    config = Config(
        connect_timeout=2,
        read_timeout=6,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=1,
    )
    return cast("MailClient", session.create_client("sesv2", region_name=region, config=config))


class SesMailer:
    """Sends from one address, which SES must have verified."""

    def __init__(self, client: MailClient, sender: str) -> None:
        self._client = client
        self._sender = sender

    def send(self, notice: UsageNotice, plan_name: str, advice: str, address: str) -> None:
        """Raises NotDeliveredError (NoticeRefusedError: this mail alone), whose text names no address."""
        subject, lines = message(notice, plan_name, advice)
        try:
            self._client.send_email(
                FromEmailAddress=self._sender,
                Destination={"ToAddresses": [address]},
                Content={
                    "Simple": {
                        "Subject": _content(subject),
                        "Body": {"Text": _content("\n\n".join(lines) + "\n"), "Html": _content(_page(subject, lines))},
                        # Tells mail programs not to answer it with an "out of office".
                        "Headers": [{"Name": "Auto-Submitted", "Value": "auto-generated"}],
                    }
                },
                EmailTags=[{"Name": "tollgate-notice", "Value": notice.id}],
            )
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unnamed")
            kind = NoticeRefusedError if code in REFUSES_ONE_MAIL else NotDeliveredError
            raise kind(f"SES refused: {code}") from error
        except ParamValidationError as error:
            raise NoticeRefusedError("SES cannot be asked to send this mail") from error
        except BotoCoreError as error:
            raise NotDeliveredError(f"SES did not answer: {type(error).__name__}") from error


def message(notice: UsageNotice, plan_name: str, advice: str) -> tuple[str, list[str]]:
    """(subject, paragraphs)."""
    share, end = notice.share, f"{notice.period.end_at:%d %b %Y at %H:%M} UTC"
    what = "tokens" if share.unit is QuotaUnit.TOKENS else "requests"
    all_of_it = share.used >= share.quota
    subject = (
        f"You have used all {what} of your {plan_name} plan"
        if all_of_it
        else f"You have used {share.percent} % of the {what} of your {plan_name} plan"
    )
    paragraphs = [
        f"{subject}: {share.used:,} of {share.quota:,} in the usage period that ends on {end}.",
        f"Your quota renews then. {advice}".rstrip(),
        UNSUBSCRIBE,
    ]
    return subject, paragraphs


def _page(title: str, paragraphs: list[str]) -> str:
    from html import escape  # noqa: PLC0415  a millisecond that functions without mail need not pay at their start

    body = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>'
        f'<body style="font-family:sans-serif;line-height:1.5;max-width:36em">{body}</body></html>'
    )


def _content(text: str) -> dict[str, str]:
    return {"Data": text, "Charset": "UTF-8"}
