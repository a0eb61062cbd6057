"""The double on a loopback port: Stripe's API, the pages of Checkout, portal and invoices, and what steers it.

`GET /_double/clock`, `POST /_double/advance {"seconds": n}`, `POST /_double/reset`, `GET /_double/refused`,
`GET /_double/deliveries`, `POST /_double/deliveries {"kind": "thin", "copies": 2, "shuffled": true}`,
`POST /_double/act/<name> {…}` with a method of the world (`fail_payments`, `refund`, `dispute`, …). A browser can send
none of them: each wants the header `x-tollgate-dev`.
"""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from dev.stripe_double.delivery import Deliveries
from dev.stripe_double.keeper import ACTIONS, Json, Keeper
from dev.stripe_double.pages import PAGES, Pages

BODY_BYTES_AT_MOST: Final = 4 * 1024 * 1024
HEADER: Final = "x-tollgate-dev"
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
_LOOPBACK: Final = {"127.0.0.1", "localhost"}
_SESSIONS: Final = "/v1/checkout/sessions"

Reply = tuple[int, dict[str, str], bytes]


class DoubleServer(ThreadingHTTPServer):
    """Serves until `shutdown`."""

    daemon_threads = True

    def __init__(
        self,
        listener: socket.socket,
        keeper: Keeper,
        deliveries: Deliveries | None,
        pages: Pages,
        *,
        shares_clock: bool = False,
    ) -> None:
        """`listener` listens on loopback already. `shares_clock`: callers live by this world's clock."""
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.keeper = keeper
        self.deliveries = deliveries
        self.pages = pages
        self._shares_clock = shares_clock

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        parts = urlsplit(target)
        if headers.get("host", "").rsplit(":", 1)[0] not in _LOOPBACK:
            return _json(403, {"message": "ask by 127.0.0.1 or localhost"})
        if parts.path.startswith("/_double/"):
            return self._steer(method, parts.path.removeprefix("/_double/"), headers, body)
        if parts.path.startswith(PAGES):
            page = self.pages.answer(method, parts.path, parts.query, body.decode(errors="replace"))
            policy = {"content-security-policy": POLICY, "cache-control": "no-store", "referrer-policy": "no-referrer"}
            return page.status, {**policy, **page.headers}, page.body
        answer = self.keeper.ask(method, target, headers, self._in_its_time(method, parts.path, body))
        return answer.status, dict(answer.headers), answer.body

    def _in_its_time(self, method: str, path: str, body: bytes) -> bytes:
        """A checkout's end is an instant of the caller's clock; this world's may be ahead of that."""
        ahead = 0 if self._shares_clock else int(self.keeper.offset.total_seconds())
        if not (ahead and method == "POST" and path == _SESSIONS):
            return body
        fields = parse_qsl(body.decode(), keep_blank_values=True)
        return urlencode([(n, str(int(v) + ahead) if n == "expires_at" else v) for n, v in fields]).encode()

    def _steer(self, method: str, name: str, headers: dict[str, str], body: bytes) -> Reply:
        if method != "GET" and HEADER not in headers:
            return _json(403, {"message": f"send the header {HEADER}: 1"})
        try:
            given: Json = json.loads(body or b"{}")
            found = self._steered(method, name, given)
        except (ValueError, TypeError, KeyError) as error:
            return _json(400, {"message": f"{type(error).__name__}: {error}"})
        return _json(404, {"message": "Not Found"}) if found is None else _json(200, found)

    def _steered(self, method: str, name: str, given: Json) -> Json | None:
        match method, name.partition("/"):
            case "GET", ("clock", _, _):
                return self._clock()
            case "POST", ("advance", _, _):
                self.keeper.travel(timedelta(seconds=int(given["seconds"])), self._wait_tried)
                return self._clock()
            case "POST", ("reset", _, _):
                if self.deliveries is not None:
                    self.deliveries.forget()
                self.keeper.reset()
                return self._clock()
            case "GET", ("refused", _, _):
                return {"data": self.keeper.read(lambda world: [repr(item) for item in world.refused])}
            case "GET", ("deliveries", _, _):
                return {"data": [] if self.deliveries is None else list(self.deliveries.attempts)}
            case "POST", ("deliveries", _, _) if self.deliveries is not None:
                self.deliveries.set_manner(**given)
                return {}
            case "POST", ("act", _, action) if action in ACTIONS:
                self.keeper.act(action, given)
                return {}
        return None

    def _wait_tried(self) -> None:
        if self.deliveries is not None:
            self.deliveries.wait_tried()

    def _clock(self) -> Json:
        return {
            "now": self.keeper.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "offset_seconds": int(self.keeper.offset.total_seconds()),
            "deliveries": 0 if self.deliveries is None else len(self.deliveries.attempts),
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is one packet
    server: DoubleServer

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002, ANN401  the base class's signature
        """Says nothing: the API's requests are the functions' own business."""

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > BODY_BYTES_AT_MOST:
            self.close_connection = True
            self._send(*_json(413, {"message": "too large"}))
            return
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(*self.server.answer(self.command, self.path, headers, body))

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(status: int, value: Any) -> Reply:  # noqa: ANN401
    return status, {"content-type": "application/json"}, json.dumps(value).encode()
