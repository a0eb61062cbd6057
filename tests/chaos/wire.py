"""The little of HTTP/1.1 that both proxies need: whole requests in, any bytes out."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader


@dataclass(frozen=True, slots=True)
class Request:
    line: str
    headers: dict[str, str]
    """Lower-case names."""
    body: bytes


def read_request(reader: BufferedReader) -> Request | None:
    """None at the end of the connection, wherever it comes."""
    line = reader.readline(65_536)
    headers: dict[str, str] = {}
    while (field := reader.readline(65_536)) not in (b"\r\n", b""):
        name, _, value = field.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if not line or field != b"\r\n":
        return None
    length = int(headers.get("content-length", "0"))
    body = reader.read(length)
    return Request(line.decode("latin-1").strip(), headers, body) if len(body) == length else None


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Listener:
    """A loopback port; each connection has a thread."""

    def __init__(self, serve: Callable[[socket.socket], None], name: str) -> None:
        self._serve = serve
        self._name = name
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._closing = False
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        with socket.create_connection(self._socket.getsockname(), timeout=5):
            pass
        self._thread.join(5)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            if self._closing:
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._run, args=[connection], name=self._name, daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._serve(connection)
        except OSError:
            pass  # the other side is gone, which is what all this is about
