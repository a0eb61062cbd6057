"""The stream runtime under AWS's own Runtime Interface Emulator, the binary that the aws-sam-cli wheel carries.

The emulator collects a streamed answer and gives it out raw: JSON prelude, eight NUL bytes, body. It drops trailers. So
it cannot show streaming; it shows that AWS's side of the protocol accepts what we send, and goes on after every end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runtime.function_process import BOOTSTRAP, environment

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
TIMEOUT_SECONDS = 4


@pytest.fixture(scope="session")
def emulator_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = f"aws-lambda-rie-{ARCHITECTURES.get(platform.machine(), platform.machine())}"
    found = sorted((ROOT / ".dev" / "sam").glob(f"lib/python*/site-packages/samcli/local/rapid/{name}"))
    if sys.platform != "linux":
        pytest.skip("the Runtime Interface Emulator runs on Linux only")
    if not found:
        pytest.skip(f"no {name}: aws-sam-cli is not installed in .dev/sam (requirements/sam.txt)")
    binary = tmp_path_factory.mktemp("rie") / name
    shutil.copy(found[-1], binary)
    binary.chmod(0o755)  # wheels lose the bit under some installers
    return binary


@dataclass(frozen=True)
class Emulator:
    """An emulator that runs one function."""

    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def invoke(self, event: dict[str, Any]) -> tuple[int, bytes]:
        """POST the event; HTTP status and body of what comes back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def streamed(self, event: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Prelude and body of a streamed answer."""
        status, raw = self.invoke(event)
        prelude, delimiter, body = raw.partition(b"\0" * 8)
        assert (status, delimiter) == (200, b"\0" * 8), raw[:500]
        return json.loads(prelude), body

    def stop(self) -> None:
        """End it and whatever it started, which leads process groups of its own."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()  # first, or it would start a new runtime process
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()


@pytest.fixture
def start_emulator(emulator_binary: Path, tmp_path: Path) -> Iterator[Callable[..., Emulator]]:
    started: list[Emulator] = []

    def start(handler: str, **variables: str) -> Emulator:
        port, api_port = _free_ports()
        output = tmp_path / f"emulator-{len(started)}"
        command = [str(emulator_binary), "--log-level", "info"]
        command += ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
        command += ["--runtime-api-address", f"127.0.0.1:{api_port}"]
        variables = {"AWS_LAMBDA_FUNCTION_TIMEOUT": str(TIMEOUT_SECONDS), **variables}
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*command, str(BOOTSTRAP), sys.executable, handler],
                env=environment(handler, **variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        emulator = Emulator(port, process, output)
        started.append(emulator)
        _wait_listening(port, process, output)
        return emulator

    yield start
    for emulator in started:
        emulator.stop()


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


def _wait_listening(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"the emulator did not start: {output.read_text()}")


def test_streamed_answers_are_complete(start_emulator: Callable[..., Emulator]) -> None:
    emulator = start_emulator("handlers.echo")
    event = {"status": 402, "headers": {"x-a": "1"}, "cookies": ["c=1"], "pieces": ["a", "bc", "\u2603"]}
    for _ in range(3):
        prelude, body = emulator.streamed(event)
        assert prelude == {"statusCode": 402, "headers": {"x-a": "1"}, "cookies": ["c=1"]}
        assert body == "abc\u2603".encode()


def test_chunks_of_any_size_arrive_whole(start_emulator: Callable[..., Emulator]) -> None:
    sizes = [1, 65_536, 4_095, 4_096, 4_097, 300_000, 7]
    _, body = start_emulator("handlers.sized").streamed({"sizes": sizes})
    assert body == b"".join(bytes(i % 256 for i in range(size)) for size in sizes)


def test_an_empty_body_gets_one_newline(start_emulator: Callable[..., Emulator]) -> None:
    _, body = start_emulator("handlers.echo").streamed({"status": 204, "pieces": []})
    assert body == b"\n"


def test_a_raise_before_the_first_write_is_an_error_and_the_next_call_works(
    start_emulator: Callable[..., Emulator],
) -> None:
    emulator = start_emulator("handlers.echo")
    _, raw = emulator.invoke({})
    assert json.loads(raw)["errorType"] == "KeyError"
    assert emulator.streamed({"pieces": ["x"]})[1] == b"x"


def test_a_raise_midway_ends_the_answer_at_once_whatever_the_error_holds(
    start_emulator: Callable[..., Emulator],
) -> None:
    """Trailers of more than 4 KB would make it hang until the timeout: found on this very binary."""
    emulator = start_emulator("handlers.raises_midway")
    for message in ("short", "x" * 100_000, "\0" * 10_000, "\u2603" * 10_000):
        began_at = time.monotonic()
        prelude, body = emulator.streamed({"message": message, "depth": 300})
        assert (prelude["statusCode"], body) == (200, b"event: one\n\n")
        assert time.monotonic() - began_at < TIMEOUT_SECONDS - 1


def test_the_emulator_recovers_when_the_process_dies_midway(start_emulator: Callable[..., Emulator]) -> None:
    emulator = start_emulator("handlers.dies_if_asked")
    assert emulator.streamed({})[1] == b"alive"
    status, raw = emulator.invoke({"die": True})
    assert status == 502
    assert json.loads(raw)["errorType"] == "Runtime.ExitError"
    assert emulator.streamed({})[1] == b"alive"


def test_the_emulator_recovers_after_a_timeout(start_emulator: Callable[..., Emulator]) -> None:
    emulator = start_emulator("handlers.stalls_if_asked", AWS_LAMBDA_FUNCTION_TIMEOUT="1")
    assert emulator.streamed({})[1] == b"alive"
    _, raw = emulator.invoke({"stall": True})
    assert raw == b"Task timed out after 1.00 seconds"
    assert emulator.streamed({})[1] == b"alive"


def test_a_function_that_cannot_start_says_so(start_emulator: Callable[..., Emulator]) -> None:
    _, raw = start_emulator("unimportable.handler").invoke({})
    assert json.loads(raw)["errorType"] == "Runtime.ImportModuleError"


def test_under_sam_local_the_answer_is_the_proxy_response(start_emulator: Callable[..., Emulator]) -> None:
    status, raw = start_emulator("handlers.echo", AWS_SAM_LOCAL="true").invoke({"pieces": ["a", "b"]})
    assert status == 200
    assert json.loads(raw)["body"] == "ab"
