"""Something between a function and what it depends on: passes requests on, or answers as the worst of servers would.

The worst answer for whoever keeps secrets is an error that quotes all it was sent, credentials among it.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import requests

from tests.support.moto_table import REGION

Reply = tuple[int, dict[str, str], bytes]
Onward = Callable[[str, str, dict[str, str], bytes], Reply]

DEAD = 0
"""In place of a status: the connection ends without an answer."""
OF_THE_CONNECTION = ("content-length", "transfer-encoding", "connection")
READS = {"GetItem", "BatchGetItem", "Query", "TransactGetItems"}


class Dependency:
    """`status`: what every request is answered with; None: what really happens."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status: int | None = None
        self.only_writes = False
        """Whether the table can still be read."""
        self.quoted: list[str] = []
        """What has been sent back in the text of an error."""

    def fails_at(self, operation: str) -> bool:
        return self.status is not None and not (self.only_writes and operation in READS)

    def complaint(self, seen: str, code: str) -> bytes:
        """An error of AWS and one of Stripe at once: each reads its own part."""
        self.quoted.append(seen)
        error = {"type": "invalid_request_error", "message": seen, "param": seen}
        return json.dumps({"__type": code, "message": seen, "Message": seen, "error": error}).encode()


def to_moto(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
    """DynamoDB itself, as moto has it for this process."""
    found = requests.request(
        method, f"https://dynamodb.{REGION}.amazonaws.com{path}", headers=headers, data=body, timeout=5
    )
    return found.status_code, {"content-type": "application/x-amz-json-1.0"}, found.content


def to_server(url: str) -> Onward:
    """A server at an address of loopback."""

    def ask(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
        connection.request(method, path, body, headers)
        found = connection.getresponse()
        content = found.read()
        connection.close()
        return found.status, dict(found.getheaders()), content

    return ask


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever goes away early does so without a word here: outputs are what the test looks into."""


@contextmanager
def dependency(onward: Onward, *, code: str = "ValidationException") -> Iterator[Dependency]:
    """Serves until the end of the block; `code` is the name of its errors."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            operation = self.headers.get("x-amz-target", "").rpartition(".")[2]
            if not front.fails_at(operation):
                status, headers, content = onward(self.command, self.path, dict(self.headers.items()), body)
            elif front.status == DEAD:
                self.close_connection = True
                return
            else:
                seen = f"{self.command} {self.path} {dict(self.headers.items())} {body.decode(errors='replace')}"
                status, headers, content = front.status or 500, {}, front.complaint(seen, code)
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in OF_THE_CONNECTION:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    front = Dependency(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield front
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
