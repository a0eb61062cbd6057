"""Stands between one function process and the table: passes requests on, or has them meet with a misfortune.

Answers SSM itself. Tells the books of everything that the engine did.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.books import Books
from tests.chaos.plans import Call, TableFate, TableFates, table_fates
from tests.chaos.wire import Listener, Request, read_request, reset

ERRORS = {
    TableFate.THROTTLED: (400, "ProvisionedThroughputExceededException"),
    TableFate.CONFLICT: (400, "TransactionConflictException"),
    TableFate.FAILED: (500, "InternalServerError"),
    TableFate.FAILED_APPLIED: (500, "InternalServerError"),
}
LOST = (TableFate.LOST_BEFORE, TableFate.LOST_AFTER, TableFate.LATE, TableFate.LATE_AFTER_SWEEP)
SILENCE_SECONDS = 1.3
"""The client gives up after one."""
WRITES = ("UpdateItem", "PutItem", "DeleteItem", "TransactWriteItems")

Answer = tuple[int, bytes]


class TableProxy:
    """One for each slot, so that it knows whose request it sees."""

    def __init__(self, engine_url: str, secrets: dict[str, str], kill: Callable[[], None]) -> None:
        self.books = Books()
        self.faults: Counter[str] = Counter()
        self._engine = urlsplit(engine_url)
        self._secrets = secrets
        self._kill = kill
        self._call: Call | None = None
        self._fates: TableFates | None = None
        self._requests = 0
        self._late: list[tuple[str, Request]] = []
        self._timers: list[threading.Timer] = []
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._listener = Listener(self._serve, "table")
        self.url = self._listener.url

    def begin(self, call: Call) -> None:
        """From now on the process works on this call."""
        self._call, self._fates, self._requests = call, table_fates(call), 0

    def deliver_late(self) -> int:
        """Lands what was held until after the sweep; how many there were."""
        with self._lock:
            late, self._late = self._late, []
        for call_id, request in late:
            self._apply(call_id, request)
        return len(late)

    def wait_for_timers(self) -> None:
        with self._lock:
            timers, self._timers = self._timers, []
        for timer in timers:
            timer.join()

    def close(self) -> None:
        self._listener.close()
        self.wait_for_timers()
        for connection in self._idle:
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as reader:
            while (request := read_request(reader)) is not None:
                answer = self._meet(request)
                if answer is None:
                    reset(connection)
                    return
                _send(connection, answer)

    def _meet(self, request: Request) -> Answer | None:
        """The answer, or None: the connection breaks."""
        call, fates = self._call, self._fates
        target = request.headers.get("x-amz-target", "")
        if target.startswith("AmazonSSM"):
            return self._parameters(request)
        assert call is not None
        assert fates is not None
        self._requests += 1
        number, operation = self._requests, target.rpartition(".")[2]
        fate, seconds = fates.next()
        if call.kill is not None and call.kill.at == "table_before" and call.kill.number == number:
            self._kill()
            return None
        answer = self._suffer(fate, seconds, call.id, operation, request)
        if call.kill is not None and call.kill.at == "table_after" and call.kill.number == number:
            self._kill()
            return None
        return answer

    def _suffer(self, fate: TableFate, seconds: float, call_id: str, operation: str, request: Request) -> Answer | None:
        if fate is TableFate.CONFLICT and operation not in WRITES:
            fate = TableFate.THROTTLED  # reads meet no conflict
        if fate is not TableFate.FINE:
            with self._lock:
                self.faults[fate.value] += 1
        match fate:
            case TableFate.LOST_BEFORE:
                return None
            case TableFate.LATE:
                self._later(seconds, call_id, request)
                return None
            case TableFate.LATE_AFTER_SWEEP:
                with self._lock:
                    self._late.append((call_id, request))
                return None
            case TableFate.THROTTLED | TableFate.FAILED:
                return _error(*ERRORS[fate])
            case TableFate.CONFLICT:
                return _conflict(operation, request)
            case TableFate.SLOW | TableFate.SILENT:
                time.sleep(seconds / 2 if fate is TableFate.SLOW else SILENCE_SECONDS)
            case _:
                pass
        answer = self._apply(call_id, request)
        if fate in (TableFate.DUPLICATE, TableFate.DUPLICATE_SECOND):
            second = self._apply(call_id, request)
            answer = second if fate is TableFate.DUPLICATE_SECOND else answer
        if fate is TableFate.FAILED_APPLIED:
            return _error(*ERRORS[fate])
        return None if fate is TableFate.LOST_AFTER else answer

    def _later(self, seconds: float, call_id: str, request: Request) -> None:
        timer = threading.Timer(seconds, self._apply, [call_id, request])
        timer.daemon = True
        with self._lock:
            self._timers = [one for one in self._timers if one.is_alive()] + [timer]
            timer.start()

    def _apply(self, call_id: str, request: Request) -> Answer:
        status, body = self._ask(request)
        if status == 200:
            operation = request.headers["x-amz-target"].rpartition(".")[2]
            if operation in WRITES:
                self.books.applied(call_id, operation, json.loads(request.body), json.loads(body or b"{}"))
        return status, body

    def _ask(self, request: Request) -> Answer:
        """The engine's answer, over a connection that nobody else uses meanwhile."""
        kept = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        while True:
            with self._lock:
                idle = self._idle.pop() if self._idle else None
            connection = idle or http.client.HTTPConnection(self._engine.hostname or "", self._engine.port, timeout=20)
            try:
                connection.request("POST", "/", request.body, kept)
                response = connection.getresponse()
                answer = response.status, response.read()
            except http.client.RemoteDisconnected:
                connection.close()
                if idle is None:
                    raise
                continue  # the engine had closed it before the request came
            with self._lock:
                self._idle.append(connection)
            return answer

    def _parameters(self, request: Request) -> Answer:
        names = json.loads(request.body)["Names"]
        found = [{"Name": name, "Value": self._secrets[name], "Type": "SecureString"} for name in names]
        return 200, json.dumps({"Parameters": found, "InvalidParameters": []}).encode()


def _send(connection: socket.socket, answer: Answer) -> None:
    status, body = answer
    head = f"HTTP/1.1 {status} -\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def _error(status: int, code: str, **more: Any) -> Answer:  # noqa: ANN401  any JSON
    document = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "chaos", **more}
    return status, json.dumps(document).encode()


def _conflict(operation: str, request: Request) -> Answer:
    if operation != "TransactWriteItems":
        return _error(400, "TransactionConflictException")
    reasons = [{"Code": "None"} for _ in json.loads(request.body)["TransactItems"]]
    reasons[0] = {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}
    return _error(400, "TransactionCanceledException", CancellationReasons=reasons)
