"""The mail that Cognito would send, kept where a developer can read it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

MAILS_KEPT = 200


@dataclass(frozen=True, slots=True)
class Mail:
    """One message with a code in it."""

    to: str
    subject: str
    text: str
    code: str
    sent_at: datetime
    expires_at: datetime


class Mailbox:
    """The last messages of everybody, newest first. Safe to use from several threads."""

    def __init__(self, on_mail: Callable[[Mail], None] = lambda mail: None) -> None:
        self._mails: deque[Mail] = deque(maxlen=MAILS_KEPT)
        self._lock = threading.Lock()
        self._on_mail = on_mail

    def deliver(self, mail: Mail) -> None:
        with self._lock:
            self._mails.appendleft(mail)
        self._on_mail(mail)

    def mails(self) -> list[Mail]:
        with self._lock:
            return list(self._mails)

    def clear(self) -> None:
        with self._lock:
            self._mails.clear()

    def document(self) -> dict[str, Any]:
        """All of it as JSON; instants are RFC 3339 in UTC."""
        return {"data": [_row(mail) for mail in self.mails()]}


def _row(mail: Mail) -> dict[str, str]:
    return {name: _text(value) for name, value in asdict(mail).items()}


def _text(value: str | datetime) -> str:
    return value if isinstance(value, str) else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
