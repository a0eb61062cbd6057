"""A real HTTP server on this machine that answers as a test tells it to: well, badly, slowly or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType

Behaviour = Callable[[socket.socket, bytes], None]
"""Given the connection and the request that came over it; the connection is closed afterwards."""


def answer(body: bytes, status: str = "200 OK", **headers: str) -> Behaviour:
    """One complete answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return behave


class ScriptedServer:
    """Serves one connection at a time; `requests` holds what came, `behaviour` decides what goes back."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    @property
    def closing(self) -> threading.Event:
        """Set when the test is over, so that a slow behaviour can stop."""
        return self._closing

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        # Closing alone does not wake a thread that accepts; a last connection does.
        with socket.create_connection(self._listener.getsockname()):
            pass
        self._thread.join(timeout=10)
        self._listener.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            connection, _ = self._listener.accept()
            with connection:
                if self._closing.is_set():
                    return
                try:
                    request = _read_request(connection)
                    self.requests.append(request)
                    self.behaviour(connection, request)
                except OSError:
                    continue  # the client went away, which is what some tests are about


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65_536)):
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length and (part := connection.recv(65_536)):
        body += part
    return head + b"\r\n\r\n" + body
