"""Functions in processes of their own, as Lambda runs them; real processes behind the real Runtime API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from dev.lambda_host import FunctionHost, Journey, lambda_environment
from dev.processes import Processes
from dev.runtime_api import Buffered, Chunk, Failed, Part, Prelude
from dev.template import Function, FunctionUrl, TemplateError

ROOT = Path(__file__).resolve().parent.parent.parent
STREAM_LAYER = ROOT / "layers" / "stream_runtime"
WRAPPER = "/opt/python/tollgate_runtime/bootstrap"

HANDLER = """
import json, os, sys, time

count = 0

def handler(event, context):
    global count
    count += 1
    do = event.get("do")
    if do == "environment":
        return dict(os.environ)
    if do == "raise":
        raise ValueError("as asked")
    if do == "exit":
        os._exit(7)
    if do == "sleep":
        time.sleep(event["seconds"])
    print(json.dumps({"message": "worked", "count": count}))
    return {"pid": os.getpid(), "count": count, "request_id": context.aws_request_id}
"""

STREAMING = """
import time
from tollgate_runtime import Response

def handler(event, context):
    with Response(200, {"content-type": "text/event-stream"}, ["a=1"]) as response:
        for number in range(event.get("chunks", 2)):
            response.write(f"chunk {number};")
            time.sleep(event.get("pause_seconds", 0))
        if event.get("fail"):
            raise ValueError("in the middle")
    return response.result()
"""


class Hosting:
    """Makes hosts, and ends what they started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = Processes()
        self._hosts: list[FunctionHost] = []
        self.lines: list[str] = []

    def host(
        self, code: str = HANDLER, *, timeout_seconds: int = 20, concurrency: int = 4, **environment: str
    ) -> FunctionHost:
        task = self._folder / f"task-{len(self._hosts)}"
        task.mkdir()
        (task / "app.py").write_text(dedent(code))
        streams = code is STREAMING
        function = Function(
            logical_id="Work",
            code=task,
            handler="app.handler",
            runtime="python3.13",
            timeout_seconds=timeout_seconds,
            memory_mb=256,
            layers=(STREAM_LAYER,) if streams else (),
            environment=environment | ({"AWS_LAMBDA_EXEC_WRAPPER": WRAPPER} if streams else {}),
            log_format="JSON",
            url=FunctionUrl(streams, None),
        )
        host = FunctionHost(function, {}, self._processes, self._on_line, concurrency=concurrency)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        self._processes.stop_all()

    def _on_line(self, _function: Function, _journey: Journey | None, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    made = Hosting(tmp_path)
    yield made
    made.close()


def run(host: FunctionHost, journey: Journey | None = None, **event: object) -> list[Part]:
    return list(host.invoke(json.dumps(event).encode(), journey or Journey("request-1")))


def result(parts: list[Part]) -> dict[str, object]:
    [part] = parts
    assert isinstance(part, Buffered), part
    found: dict[str, object] = json.loads(part.payload)
    return found


def failure(parts: list[Part]) -> Failed:
    last = parts[-1]
    assert isinstance(last, Failed), last
    return last


def test_an_idle_process_serves_the_next_request(hosting: Hosting) -> None:
    host = hosting.host()
    first, second = result(run(host)), result(run(host))
    assert first["pid"] == second["pid"]
    assert (first["count"], second["count"]) == (1, 2)
    assert second["request_id"] == "request-1"


def test_requests_at_the_same_time_get_a_process_each(hosting: Hosting) -> None:
    host = hosting.host()
    found = together(host, 2)
    assert len({answer["pid"] for answer in found}) == 2
    assert len(host.processes()) == 2


def test_beyond_the_cap_requests_wait_for_a_process(hosting: Hosting) -> None:
    host = hosting.host(concurrency=1)
    found = together(host, 3)
    assert len({answer["pid"] for answer in found}) == 1
    assert sorted(str(answer["count"]) for answer in found) == ["1", "2", "3"]


def together(host: FunctionHost, number: int) -> list[dict[str, object]]:
    """Sends that many slow requests at once."""
    found: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda: found.append(result(run(host, do="sleep", seconds=0.3)))) for _ in range(number)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_prewarmed_process_takes_the_first_request(hosting: Hosting) -> None:
    host = hosting.host()
    host.prewarm()
    [row] = host.processes()
    assert result(run(host))["pid"] == row["pid"]


def test_the_environment_is_lambdas_and_the_templates_and_nothing_else(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the developer's own")
    monkeypatch.setenv("AWS_PROFILE", "production")
    seen = result(run(hosting.host(STAGE="dev"), do="environment"))
    assert seen["STAGE"] == "dev"
    assert seen["AWS_LAMBDA_FUNCTION_NAME"] == "tollgate-local-Work"
    assert seen["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    assert {"ANTHROPIC_API_KEY", "AWS_PROFILE", "VIRTUAL_ENV", "USER"}.isdisjoint(seen)


def test_overrides_replace_declared_variables_and_add_none() -> None:
    function = Function("F", Path("f"), "app.handler", "python3.13", 3, 128, (), {"DECLARED": ""}, "JSON", None)
    environment = lambda_environment(function, {"DECLARED": "value", "UNDECLARED": "value"}, "127.0.0.1:1")
    assert environment["DECLARED"] == "value"
    assert "UNDECLARED" not in environment


def test_a_function_follows_the_clock_it_is_given(tmp_path: Path) -> None:
    """In what it calls now; what its runtime has left of the invocation is by the machine's clock."""
    function = Function("F", Path("f"), "app.handler", "python3.13", 3, 128, (), {}, "JSON", None)
    clock = tmp_path / "clock"
    environment = lambda_environment(function, {}, "127.0.0.1:1", clock)
    clock.write_text("      864000")
    script = dedent("""
        import time
        from awslambdaric.lambda_context import LambdaContext
        now = time.time()
        print(now, LambdaContext("", {}, {}, int((now - 864000 + 60) * 1000)).get_remaining_time_in_millis())
    """)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    now, left_ms = map(float, done.stdout.split())
    assert 0 <= time.time() + 864_000 - now < 30
    assert 50_000 < left_ms <= 60_000


def test_an_exception_leaves_the_process_in_service(hosting: Hosting) -> None:
    host = hosting.host()
    before = result(run(host))["pid"]
    failed = failure(run(host, do="raise"))
    assert (failed.error_type, failed.kind) == ("ValueError", "error")
    assert result(run(host))["pid"] == before


def test_a_process_that_dies_fails_its_request_and_is_replaced(hosting: Hosting) -> None:
    host = hosting.host()
    before = result(run(host))["pid"]
    failed = failure(run(host, do="exit"))
    assert "exit status 7" in failed.message
    assert result(run(host))["pid"] != before


def test_a_process_killed_while_idle_is_replaced_unnoticed(hosting: Hosting) -> None:
    host = hosting.host()
    before = result(run(host))["pid"]
    assert isinstance(before, int)
    os.kill(before, signal.SIGKILL)
    while host.processes():
        time.sleep(0.01)
    assert result(run(host))["pid"] != before


def test_a_request_past_the_timeout_fails_and_its_process_is_killed(hosting: Hosting) -> None:
    host = hosting.host(timeout_seconds=1)
    before = result(run(host))["pid"]
    begun_at = time.monotonic()
    failed = failure(run(host, do="sleep", seconds=30))
    assert failed.kind == "timeout"
    assert 1 <= time.monotonic() - begun_at < 5
    assert result(run(host))["pid"] != before
    assert not is_running(before)


def is_running(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return False
    return True


def test_a_function_that_cannot_start_fails_its_requests_and_says_why(hosting: Hosting) -> None:
    host = hosting.host("raise RuntimeError('no configuration')")
    failed = failure(run(host))
    assert failed.kind == "init"
    assert "no configuration" in failed.message
    assert any("did not start" in line for line in hosting.lines)


def test_what_a_process_prints_belongs_to_its_request(hosting: Hosting) -> None:
    host, journey = hosting.host(), Journey("request-7")
    run(host, journey)
    limit = time.monotonic() + 2
    while not journey.lines and time.monotonic() < limit:
        time.sleep(0.01)
    assert json.loads(journey.lines[-1])["message"] == "worked"


def test_chunks_arrive_while_the_function_still_works(hosting: Hosting) -> None:
    host = hosting.host(STREAMING)
    host.prewarm()
    parts = host.invoke(b'{"chunks": 3, "pause_seconds": 0.2}', Journey("r"))
    arrivals = [(time.monotonic(), part) for part in parts]
    prelude = arrivals[0][1]
    assert isinstance(prelude, Prelude)
    assert (prelude.status_code, prelude.cookies) == (200, ["a=1"])
    chunks = [(at, part.data) for at, part in arrivals if isinstance(part, Chunk)]
    assert b"".join(data for _, data in chunks) == b"chunk 0;chunk 1;chunk 2;"
    assert chunks[-1][0] - chunks[0][0] > 0.3


def test_a_failure_in_mid_stream_comes_after_the_chunks(hosting: Hosting) -> None:
    parts = run(hosting.host(STREAMING), fail=True)
    assert isinstance(parts[0], Prelude)
    assert (failure(parts).kind, failure(parts).error_type) == ("trailers", "Function.ValueError")


def test_recycling_ends_idle_processes(hosting: Hosting) -> None:
    host = hosting.host()
    before = result(run(host))
    host.recycle()
    after = result(run(host))
    assert before["pid"] != after["pid"]
    assert after["count"] == 1


def test_a_wrapper_that_no_layer_holds_is_refused(hosting: Hosting) -> None:
    with pytest.raises(TemplateError, match="no layer holds /opt/python/elsewhere"):
        hosting.host(AWS_LAMBDA_EXEC_WRAPPER="/opt/python/elsewhere")
