"""Stripe's double at an address of loopback: functions reach it over HTTP, as they reach Stripe."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dev.stripe_double.faults import NOTHING, Fault, FaultPlan
from dev.stripe_double.world import StripeWorld

_LOST = {Fault.LOST_BEFORE, Fault.LOST_AFTER}
_UNDONE = {Fault.LOST_BEFORE, Fault.ERROR_BEFORE, Fault.CONFLICT, Fault.RATE_LIMITED}
_STATUSES = {Fault.ERROR_BEFORE: 500, Fault.ERROR_AFTER: 500, Fault.CONFLICT: 409, Fault.RATE_LIMITED: 429}


class StripeWire:
    """The way to a world; `faults` is asked for each request, and may be changed by the test."""

    def __init__(self, world: StripeWorld, url: str) -> None:
        self.world = world
        self.url = url
        self.faults: FaultPlan = NOTHING
        self.asked: list[tuple[str, str]] = []
        """Method and path of each request, in order."""
        self.down = False


@contextmanager
def stripe_wire(world: StripeWorld) -> Iterator[StripeWire]:
    """Serves until the end of the block, one thread a connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            wire.asked.append((self.command, self.path.partition("?")[0]))
            fault = Fault.LOST_BEFORE if wire.down else wire.faults(self.command, self.path)
            status, headers, content = (
                _STATUSES.get(fault, 500) if fault else 0,
                {},
                b'{"error": {"type": "api_error"}}',
            )
            if fault not in _UNDONE:
                answer = world.handle(self.command, self.path, dict(self.headers.items()), body)
                if fault is None or fault is Fault.SLOW:
                    status, headers, content = answer.status, dict(answer.headers), answer.body
            if fault in _LOST:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    wire = StripeWire(world, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
