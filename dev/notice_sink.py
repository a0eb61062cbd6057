"""Where this stack's notices of usage arrive: the operator's address and SES, kept for a developer to read.

The operator's address does what docs/notices.md asks of one: it checks the signature, and knows a repeat by its id. SES
answers the one request that is made of it. Nothing leaves this machine.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tollgate.providers.operator_webhook import SIGNATURE_HEADER, signature

WEBHOOK_PATH: Final = "/operator"
SES_PATH: Final = "/v2/email/outbound-emails"
SENDER: Final = "no-reply@example.com"
KEPT: Final = 200
MAX_BODY_BYTES: Final = 256 * 1024

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    document: Json


class NoticeSink:
    """An address on loopback. `start`, then it takes what is sent; `close` at the end."""

    def __init__(self, on_notice: Callable[[str], None] = lambda line: None) -> None:
        """`on_notice`: told one line about each that is new."""
        self.secret = secrets.token_hex(32)
        """With which the operator's notices are signed."""
        self._on_notice = on_notice
        self._kept: deque[Json] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="notice-sink", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def webhook_url(self) -> str:
        return self.url + WEBHOOK_PATH

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def document(self) -> Json:
        """What has arrived, newest first."""
        with self._lock:
            return {
                "sender": SENDER,
                "operator_url": self.webhook_url,
                "secret": self.secret,
                "data": list(self._kept),
            }

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """`headers`: names in lower case. Raises ValueError, KeyError, TypeError, AttributeError on other shapes."""
        if path == WEBHOOK_PATH:
            return self._take_notice(headers.get(SIGNATURE_HEADER, ""), body)
        if path == SES_PATH:
            return self._take_mail(json.loads(body))
        return Answer(404, {"message": "Not Found"})

    def _take_notice(self, signed: str, body: bytes) -> Answer:
        if not _is_signed(body, signed, self.secret):
            return Answer(401, {"message": "The signature is not ours."})
        notice: Json = json.loads(body)
        with self._lock:
            known = next((row for row in self._kept if row.get("notice", {}).get("id") == notice["id"]), None)
            if known is not None:
                known["times"] += 1
                return Answer(200, {})
            self._kept.appendleft({"kind": "webhook", "at": _now(), "times": 1, "signature": signed, "notice": notice})
        data = notice["data"]
        self._on_notice(f"{data['threshold_percent']} % of {data['unit']} passed by {data['user_id']}")
        return Answer(200, {})

    def _take_mail(self, request: Json) -> Answer:
        content = request["Content"]["Simple"]
        mail = {
            "kind": "mail",
            "at": _now(),
            "from": request["FromEmailAddress"],
            "to": ", ".join(request["Destination"]["ToAddresses"]),
            "subject": content["Subject"]["Data"],
            "text": content["Body"]["Text"]["Data"],
        }
        with self._lock:
            self._kept.appendleft(mail)
        self._on_notice(f"mail to {mail['to']}: {mail['subject']}")
        return Answer(200, {"MessageId": secrets.token_hex(16)})


def _is_signed(body: bytes, signed: str, secret: str) -> bool:
    seconds = signed.partition(",")[0].removeprefix("t=")
    if not (seconds.isascii() and seconds.isdecimal()):
        return False
    at = datetime.fromtimestamp(min(int(seconds), 2**34), UTC)
    return hmac.compare_digest(signed.encode(), signature(body, (secret,), at).encode())


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _handler_for(sink: NoticeSink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = min(int(self.headers.get("content-length", 0)), MAX_BODY_BYTES)
            try:
                answer = sink.answer(
                    self.path, {name.lower(): value for name, value in self.headers.items()}, self.rfile.read(size)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                answer = Answer(400, {"message": "That is no notice."})
            content = json.dumps(answer.document).encode()
            self.send_response(answer.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the standard library's name
            """The log of requests is the gateway's."""

    return Handler
