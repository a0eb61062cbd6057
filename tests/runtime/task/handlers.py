"""Handlers that the tests of the stream runtime start in real processes; `LAMBDA_TASK_ROOT` is this folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from tollgate_runtime import Response, StreamBrokenError

Event = dict[str, Any]
Result = dict[str, Any] | None

_seen = 0


def echo(event: Event, _context: object) -> Result:
    """Status, headers, cookies and pieces as the event asks for."""
    headers = event.get("headers", {"content-type": "text/plain"})
    with Response(event.get("status", 200), headers, event.get("cookies", ())) as response:
        for piece in event["pieces"]:
            response.write(piece)
    return response.result()


def sized(event: Event, _context: object) -> Result:
    with Response(200, {"content-type": "application/octet-stream"}) as response:
        for size in event["sizes"]:
            response.write(bytes(index % 256 for index in range(size)))
    return response.result()


def paced(event: Event, _context: object) -> Result:
    with Response(200, {}) as response:
        for index in range(event["pieces"]):
            response.write(f"{index}\n")
            time.sleep(event["pause_seconds"])
    return response.result()


def acknowledged(event: Event, _context: object) -> Result:
    """Sends a piece only after the test has received the one before, which it tells by making a file."""
    folder = Path(event["folder"])
    with Response(200, {}) as response:
        for index in range(event["pieces"]):
            response.write(f"{index}")
            while not (folder / str(index)).exists():
                time.sleep(0.005)
    return response.result()


def header_first(event: Event, _context: object) -> Result:
    """Sends status and headers alone, then waits for the test."""
    with Response(202, {"x-early": "yes"}) as response:
        response.write(b"")
        while not Path(event["file"]).exists():
            time.sleep(0.005)
    return response.result()


def buffered(_event: Event, _context: object) -> Result:
    return {"statusCode": 418, "body": "short and stout"}


def counted(event: Event, context: Any) -> Result:  # noqa: ANN401
    """Tells what it knows of this invocation, and how many it has seen."""
    global _seen  # noqa: PLW0603
    _seen += 1
    with Response(200, {}) as response:
        remaining_ms = context.get_remaining_time_in_millis()
        trace = os.environ.get("_X_AMZN_TRACE_ID", "")
        response.write(f"{_seen} {context.aws_request_id} {context.invoked_function_arn} {remaining_ms} {trace}")
        if event.get("fail"):
            raise ValueError("as asked")
    return response.result()


def raises_before(_event: Event, _context: object) -> Result:
    with Response(200, {}):
        raise LookupError("nothing was sent")


def answers_otherwise(_event: Event, _context: object) -> Result:
    """Gives up a response that sent nothing for another one."""
    try:
        with Response(200, {"x-first": "1"}):
            _fail(0, "before the first write")
    except ArithmeticError:
        with Response(404, {"x-second": "2"}) as response:
            response.write("gone")
    return response.result()


def raises_midway(event: Event, _context: object) -> Result:
    with Response(200, {"content-type": "text/event-stream"}) as response:
        response.write(event.get("piece", "event: one\n\n"))
        _fail(event.get("depth", 0), event.get("message", "the rest is lost"))
    return response.result()


def _fail(depth: int, message: str) -> None:
    if depth:
        _fail(depth - 1, message)
    _innermost(message)


def _innermost(message: str) -> None:
    raise ArithmeticError(message)


def raises_midway_in_long_files(_event: Event, _context: object) -> Result:
    """Raises under twenty frames, each in a file whose name has 600 characters."""
    scope: dict[str, Any] = {"f0": lambda: _innermost("far down")}
    for number in range(1, 21):
        source = f"def f{number}():\n    f{number - 1}()\n"
        exec(compile(source, f"{number}-" + "long/" * 120, "exec"), scope)
    with Response(200, {}) as response:
        response.write("a")
        scope["f20"]()
    return response.result()


def dies_before(_event: Event, _context: object) -> Result:
    os._exit(3)


def dies_midway(_event: Event, _context: object) -> Result:
    with Response(200, {}) as response:
        response.write("half a sen")
        os._exit(3)


def stalls(event: Event, _context: object) -> Result:
    with Response(200, {}) as response:
        for piece in event["pieces"]:
            response.write(piece)
        time.sleep(60)
    return response.result()


def returns_late(event: Event, _context: object) -> Result:
    with Response(200, {}) as response:
        response.write("in time")
        time.sleep(event["pause_seconds"])
    return response.result()


def outlives_deadline(event: Event, _context: object) -> Result:
    """Goes on writing after its time; notes in a file how that ended."""
    with Response(200, {}) as response:
        try:
            while True:
                response.write("tick\n")
                time.sleep(0.05)
        except StreamBrokenError as error:
            Path(event["file"]).write_text(type(error).__name__)
            if event.get("raise"):
                raise
    return response.result()


def writes_late(_event: Event, _context: object) -> Result:
    with Response(200, {}) as response:
        response.write("in time")
    response.write("too late")
    return response.result()


def two_responses(_event: Event, _context: object) -> Result:
    with Response(200, {}) as first:
        first.write("one")
    with Response(200, {}) as second:
        second.write("two")
    return second.result()


def refused(event: Event, _context: object) -> Result:
    """Answers with the name of the error that its headers get."""
    try:
        Response(200, event["headers"], event.get("cookies", ()))
    except ValueError as error:
        with Response(200, {}) as response:
            response.write(str(error))
        return response.result()
    return None


def surroundings(_event: Event, _context: object) -> Result:
    """The process as a handler finds it."""
    import json

    import awslambdaric

    found = {"path": sys.path, "pythonpath": os.environ["PYTHONPATH"], "awslambdaric": awslambdaric.__file__}
    with Response(200, {}) as response:
        response.write(json.dumps(found))
    return response.result()


def dies_if_asked(event: Event, context: object) -> Result:
    if event.get("die"):
        return dies_midway(event, context)
    return echo({"pieces": ["alive"]}, context)


def stalls_if_asked(event: Event, context: object) -> Result:
    if event.get("stall"):
        return stalls({"pieces": ["a"]}, context)
    return echo({"pieces": ["alive"]}, context)
