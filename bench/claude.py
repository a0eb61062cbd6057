"""The claude function alone, with a stop-watch inside: what a start, a stream and an event cost, and what it asks of
the table.

Figures that hold on any machine are counts and ratios; processor time is of this one.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.function import ROOT, FunctionProcess, Surroundings
from bench.upstream import TEXT

FORBIDDEN = ("anthropic", "moto", "pydantic", "pynamodb", "stripe")
FLOOR = "bench.passthrough.handler"
SHORT_EVENTS, LONG_EVENTS, PACE_MS = 10, 110, 2
WARM_STREAMS = 5
IN_TURN = 10


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    warm_up: int = 20
    streams: int = 60
    starts: int = 5


SMALL = Size(warm_up=2, streams=4, starts=1)

TARGETS = {
    "start_cpu_seconds": 0.30,
    "start_rss_mb": 60,
    "cpu_ms_per_stream": 0.5,
    "cpu_us_per_paced_event": 60,
    "cpu_ms_of_110_paced_events": 0.5 + 110 * 0.060,
    "writes_before_first_byte": 1,
    "settlements": 1,
    "records": 1,
    "reads_with_warm_cache": 0,
}


def measure(around: Surroundings, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything about the one function."""
    say("start: CPU, memory, modules")
    results: dict[str, Any] = {"start": _start(around, size)}
    with ExitStack() as stack:

        def process(**named: Any) -> FunctionProcess:  # noqa: ANN401  those of FunctionProcess
            function = FunctionProcess(around, **named)
            stack.callback(function.close)
            return function

        functions = {"stream": process(counted=False), "floor": process(handler=FLOOR)}
        say("streams: CPU inside and outside of database calls, beside a function that only passes through")
        results |= _streams(functions, size)
        say("steps: calls of functions")
        results["steps"] = {
            "stream": _steps(process(counted=False, steps=True)),
            "floor": _steps(process(handler=FLOOR, steps=True)),
        }
        say("time to the first byte, against the upstream directly")
        results["first_byte"] = _first_byte(around, functions["stream"], size)
        results["rss_mb_after_load"] = round(functions["stream"].rss_bytes / 2**20, 1)
        say("table: calls and units per request")
        counted = process()
        for _ in range(WARM_STREAMS):
            counted.stream(SHORT_EVENTS, 0)
        results["table"] = _table(around, counted)
        results["log_bytes_per_request"] = _log_bytes(counted)
    results["targets"] = _judge(results)
    return results


def _start(around: Surroundings, size: Size) -> dict[str, Any]:
    """CPU and memory of a process up to its first request for an event; modules by count. Least of several starts."""
    rows = []
    for _ in range(size.starts + 1):  # the first one writes the byte code
        function = FunctionProcess(around, timed=False)
        rows.append((function.start_cpu_seconds, function.start_rss_bytes))
        function.close()
    bare = FunctionProcess(around, handler="bench.bare.handler", timed=False)
    bare_cpu = bare.start_cpu_seconds
    bare.close()
    without = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=str(around.byte_code / "never"))
    modules = _modules(around, without)
    return {
        "cpu_seconds": round(min(cpu for cpu, _ in rows[1:]), 3),
        "cpu_seconds_without_byte_code": round(modules["cpu_seconds"], 3),
        "cpu_seconds_of_an_empty_function": round(bare_cpu, 3),
        "rss_mb": round(min(rss for _, rss in rows[1:]) / 2**20, 1),
        "modules": modules["modules"],
        "forbidden_modules": modules["forbidden"],
    }


def _modules(around: Surroundings, environment: dict[str, str]) -> dict[str, Any]:
    code = (
        "import json, sys, time\n"
        "import tollgate_runtime.client, functions.claude.app as app\n"
        "app.url.tools\n"
        f"found = [name for name in {FORBIDDEN!r} if name in sys.modules]\n"
        "print(json.dumps({'modules': len(sys.modules), 'forbidden': found, 'cpu_seconds': time.process_time()}))\n"
    )
    function = around.environment("127.0.0.1:1", handler="", timed=False)
    del function["PYTHONPYCACHEPREFIX"]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **function},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


def _streams(functions: dict[str, FunctionProcess], size: Size) -> dict[str, dict[str, Any]]:
    """CPU per stream and per event, from two lengths each: the slope is the event, the rest of a burst the stream."""
    for function in functions.values():
        for _ in range(size.warm_up):
            function.stream(SHORT_EVENTS, 0)
    short = _costs(functions, size.streams, SHORT_EVENTS, PACE_MS)
    long = _costs(functions, size.streams, LONG_EVENTS, PACE_MS)
    burst_short = _costs(functions, size.streams, SHORT_EVENTS, 0)
    burst_long = _costs(functions, size.streams, LONG_EVENTS * 10, 0)
    return {name: _figures(short[name], long[name], burst_short[name], burst_long[name]) for name in functions}


def _figures(
    short: dict[str, float], long: dict[str, float], burst_short: dict[str, float], burst_long: dict[str, float]
) -> dict[str, Any]:
    per_event = (long["outside_us"] - short["outside_us"]) / (LONG_EVENTS - SHORT_EVENTS)
    per_burst = (burst_long["outside_us"] - burst_short["outside_us"]) / (LONG_EVENTS * 10 - SHORT_EVENTS)
    return {
        "cpu_us_per_paced_event": round(per_event, 1),
        "cpu_us_per_burst_event": round(per_burst, 2),
        "cpu_ms_per_stream_outside_database": round((burst_short["outside_us"] - SHORT_EVENTS * per_burst) / 1000, 3),
        "cpu_ms_of_110_paced_events": round(long["outside_us"] / 1000, 2),
        "cpu_ms_in_database_calls": round(short["database_us"] / 1000, 3),
        "database_calls": short["calls"],
    }


def _costs(
    functions: dict[str, FunctionProcess], streams: int, events: int, pace_ms: int
) -> dict[str, dict[str, float]]:
    """Medians of what the stop-watches in the processes said. A few streams of each in turn, so that whatever else
    this machine does falls on all of them alike."""
    costs: dict[str, list[dict[str, int]]] = {name: [] for name in functions}
    for done in range(0, streams, IN_TURN):
        for name, function in functions.items():
            for _ in range(min(IN_TURN, streams - done)):
                function.stream(events, pace_ms)
                costs[name].append(function.costs[-1])
    return {
        name: {
            "outside_us": statistics.median(cost["total_us"] - cost["database_us"] for cost in found),
            "database_us": statistics.median(cost["database_us"] for cost in found),
            "calls": statistics.median(cost["calls"] for cost in found),
        }
        for name, found in costs.items()
    }


def _steps(function: FunctionProcess) -> dict[str, Any]:
    """Calls of functions in one warm stream, and in each event of it. Other work on the machine changes them by a few,
    when events wait for each other: medians."""
    for _ in range(WARM_STREAMS):
        function.stream(SHORT_EVENTS, PACE_MS)
    short, in_database = _median_steps(function, SHORT_EVENTS)
    long, _ = _median_steps(function, LONG_EVENTS)
    per_event = (long - short) / (LONG_EVENTS - SHORT_EVENTS)
    return {
        "per_stream_outside_database": round(short - SHORT_EVENTS * per_event),
        "per_stream_in_database_calls": round(in_database),
        "per_event": round(per_event, 1),
    }


def _median_steps(function: FunctionProcess, events: int) -> tuple[float, float]:
    """(outside of database calls, inside)."""
    before = len(function.costs)
    for _ in range(WARM_STREAMS):
        function.stream(events, PACE_MS)
    found = function.costs[before:]
    return statistics.median(cost["steps"] for cost in found), statistics.median(
        cost["database_steps"] for cost in found
    )


def _table(around: Surroundings, function: FunctionProcess) -> dict[str, Any]:
    """Calls and capacity of ten requests with everything warm."""
    around.aws.reset()
    for _ in range(10):
        function.stream(SHORT_EVENTS, 0)
    return {
        "calls_per_request": {name: count / 10 for name, count in sorted(around.aws.calls.items())},
        "capacity_units_per_request": {name: units / 100 for name, units in sorted(around.aws.units.items())},
    }


def _log_bytes(function: FunctionProcess) -> float:
    """What it writes of ten requests, which is stored and paid for by the byte."""
    before = function.log_bytes
    for _ in range(10):
        function.stream(SHORT_EVENTS, 0)
    time.sleep(0.2)  # lines come through a pipe
    return (function.log_bytes - before) / 10


def _first_byte(around: Surroundings, function: FunctionProcess, size: Size) -> dict[str, Any]:
    """Interleaved: one direct, one through the function; medians."""
    direct, through = [], []
    for _ in range(size.streams):
        direct.append(_direct(around.upstream_port))
        through.append(function.stream(SHORT_EVENTS, 0)[0])
    added = statistics.median(through) - statistics.median(direct)
    return {
        "direct_ms": round(statistics.median(direct) * 1000, 2),
        "through_ms": round(statistics.median(through) * 1000, 2),
        "added_ms": round(added * 1000, 2),
    }


def _direct(port: int) -> float:
    body = json.dumps({"messages": [{"content": TEXT.format(events=SHORT_EVENTS, pace_ms=0)}]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    began = time.monotonic()
    connection.request("POST", "/v1/messages", body)
    response = connection.getresponse()
    response.read1(1)
    first = time.monotonic() - began
    response.read()
    connection.close()
    return first


def _judge(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    calls = results["table"]["calls_per_request"]
    figures = {
        "start_cpu_seconds": results["start"]["cpu_seconds"],
        "start_rss_mb": results["start"]["rss_mb"],
        "cpu_ms_per_stream": results["stream"]["cpu_ms_per_stream_outside_database"],
        "cpu_us_per_paced_event": results["stream"]["cpu_us_per_paced_event"],
        "cpu_ms_of_110_paced_events": results["stream"]["cpu_ms_of_110_paced_events"],
        "writes_before_first_byte": calls.get("UpdateItem", 0) - 1,
        "settlements": calls.get("UpdateItem", 0) - 1,
        "records": calls.get("PutItem", 0),
        "reads_with_warm_cache": calls.get("GetItem", 0) + calls.get("Query", 0),
    }
    return {
        name: {"figure": figure, "target": TARGETS[name], "met": figure <= TARGETS[name]}
        for name, figure in figures.items()
    }
