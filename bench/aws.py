"""The two AWS services the function calls, for a benchmark: SSM answered here, DynamoDB passed on and counted."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


class Aws:
    """A loopback endpoint before a DynamoDB engine; counts calls and write and read units by operation."""

    def __init__(self, engine_url: str, secrets: dict[str, str]) -> None:
        self.calls: Counter[str] = Counter()
        self.units: Counter[str] = Counter()
        self._engine = urlsplit(engine_url)
        self._secrets = secrets
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        with self._lock:
            self.calls.clear()
            self.units.clear()

    def _answer(self, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        service, _, operation = target.partition(".")
        if service == "AmazonSSM":
            names = json.loads(body)["Names"]
            found = [{"Name": name, "Value": self._secrets[name], "Type": "SecureString"} for name in names]
            return 200, json.dumps({"Parameters": found, "InvalidParameters": []}).encode()
        request: dict[str, Any] = json.loads(body) | {"ReturnConsumedCapacity": "TOTAL"}
        connection = http.client.HTTPConnection(self._engine.hostname or "", self._engine.port, timeout=10)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in {"content-length", "host"}}
            connection.request("POST", "/", json.dumps(request).encode(), kept)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        self._count(operation, answer)
        return response.status, answer

    def _count(self, operation: str, answer: bytes) -> None:
        capacity = json.loads(answer or b"{}").get("ConsumedCapacity", {})
        entries = capacity if isinstance(capacity, list) else [capacity]
        with self._lock:
            self.calls[operation] += 1
            self.units[operation] += int(sum(entry.get("CapacityUnits", 0) for entry in entries) * 10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        aws = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes; 40 ms of delayed ACK are not the product's

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer = aws._answer(self.headers["x-amz-target"], dict(self.headers.items()), body)
                self.send_response(status)
                self.send_header("content-type", "application/x-amz-json-1.0")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
                pass

        return Handler
