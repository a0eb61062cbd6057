"""The operator's address: notices as signed JSON over HTTPS, one POST each.

The address comes from the deployment's own settings and from nowhere else, so nothing that a user writes decides where
this function connects to. It must be https (this machine excepted), a redirect is not followed, and nothing of the
answer is read but its status.

The signature is that of Stripe's webhooks under another name: `tollgate-signature: t=<epoch seconds>,v1=<hex>`, where
v1 is HMAC-SHA256 of `<t>.<body>`; one v1 for each secret while they are changed. docs/notices.md shows how to check it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from tollgate.domain.notices import NotDeliveredError, NoticeRefusedError, UsageNotice

SIGNATURE_HEADER: Final = "tollgate-signature"
SECONDS: Final = 5
"""For connecting, and again for each silence after that."""
REFUSES_ONE_NOTICE: Final = frozenset({400, 409, 413, 422})
"""Answers about what was sent. Every other failure is the address's own, and the next notice would meet it too."""


class OperatorWebhook:
    """One address. `secrets` answers the signing secrets, newest first, never none."""

    def __init__(self, url: str, secrets: Callable[[], tuple[str, ...]], stage: str) -> None:
        self._url = urlsplit(url)
        self._secrets = secrets
        self._stage = stage

    def send(self, notice: UsageNotice, at: datetime) -> None:
        """Deliver one notice; `at` is the time in the signature.

        Raises NotDeliveredError unless answered 2xx (NoticeRefusedError: this notice alone was refused), and
        UpstreamUnavailableError when our own secret cannot be read.
        """
        body = json.dumps(notice_document(notice, self._stage), separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "tollgate",
            "tollgate-notice-id": notice.id,
            SIGNATURE_HEADER: signature(body, self._secrets(), at),
        }
        status = self._post(body, headers)
        if not 200 <= status < 300:
            kind = NoticeRefusedError if status in REFUSES_ONE_NOTICE else NotDeliveredError
            raise kind(f"the operator's address answered {status}")

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        encrypted = self._url.scheme == "https"
        kind = HTTPSConnection if encrypted else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=SECONDS)
        try:
            connection.request("POST", self._url.path or "/", body, headers)
            return connection.getresponse().status
        except (OSError, HTTPException) as error:
            raise NotDeliveredError(f"the operator's address did not answer: {type(error).__name__}") from error
        finally:
            connection.close()


def signature(body: bytes, secrets: tuple[str, ...], at: datetime) -> str:
    """The value of the signature's header."""
    seconds = int(at.timestamp())
    signed = f"{seconds}.".encode() + body
    values = [f"v1={hmac.new(secret.encode(), signed, sha256).hexdigest()}" for secret in secrets]
    return ",".join((f"t={seconds}", *values))


def notice_document(notice: UsageNotice, stage: str) -> dict[str, object]:
    """What is sent. It names the user by id: whose mail address that is, the operator knows."""
    return {
        "id": notice.id,
        "type": "usage.threshold_passed",
        "stage": stage,
        "created_at": _rfc3339(notice.noticed_at),
        "data": {
            "tenant_id": notice.tenant_id,
            "user_id": notice.user_id,
            "plan_id": notice.plan_id,
            "period": {
                "id": notice.period.id,
                "start_at": _rfc3339(notice.period.start_at),
                "end_at": _rfc3339(notice.period.end_at),
            },
            "unit": notice.share.unit.value,
            "threshold_percent": notice.threshold_percent,
            "used_percent": notice.share.percent,
            "used": notice.share.used,
            "quota": notice.share.quota,
        },
    }


def _rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
