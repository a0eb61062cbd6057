"""A function process under test, and its answers read to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.runtime_api import Buffered, Chunk, Failed, Invocation, Part, Prelude, RuntimeApi

LAYER = Path(__file__).parents[2] / "layers" / "stream_runtime"
BOOTSTRAP = LAYER / "tollgate_runtime" / "bootstrap"
TASK_ROOT = Path(__file__).parent / "task"
FUNCTION_ARN = "arn:aws:lambda:eu-central-1:123456789012:function:under-test"


def environment(handler: str, **variables: str) -> dict[str, str]:
    """What Lambda sets for a function on python3.13, and nothing of this machine but PATH."""
    return {
        "PATH": os.environ["PATH"],
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "LAMBDA_TASK_ROOT": str(TASK_ROOT),
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "_HANDLER": handler,
        **variables,
    }


@dataclass
class Answer:
    """Every part of one invocation's answer."""

    prelude: Prelude | None = None
    chunks: list[Chunk] = field(default_factory=list)
    buffered: bytes | None = None
    failed: Failed | None = None

    @property
    def body(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Answer:
        answer = cls()
        for part in parts:
            match part:
                case Prelude():
                    answer.prelude = part
                case Chunk():
                    answer.chunks.append(part)
                case Buffered(payload):
                    answer.buffered = payload
                case Failed():
                    answer.failed = part
        return answer


class FunctionProcess:
    """One process of a function, and the Runtime API that it talks to."""

    def __init__(self, api: RuntimeApi, process: subprocess.Popen[bytes], output: Path) -> None:
        self.api = api
        self.process = process
        self._output = output
        self._count = 0

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._output.read_text()

    def invoke(self, event: dict[str, Any], *, timeout_seconds: float = 20) -> Invocation:
        self._count += 1
        return self.api.invoke(
            json.dumps(event).encode(),
            request_id=f"request-{self._count}",
            timeout_seconds=timeout_seconds,
            function_arn=FUNCTION_ARN,
        )

    def answer(self, event: dict[str, Any], *, timeout_seconds: float = 20) -> Answer:
        """The whole answer to one event."""
        return Answer.of(self.invoke(event, timeout_seconds=timeout_seconds).parts(20))

    def wait_output(self, text: str) -> None:
        """Return once it printed `text`; AssertionError when it does not."""
        until = time.monotonic() + 20
        while text not in self.output:
            assert time.monotonic() < until, self.output
            time.sleep(0.02)

    def wait_exited(self) -> int:
        """Wait until it ended by itself, tell the Runtime API, and return its exit status."""
        status = self.process.wait(timeout=20)
        self.api.process_exited(f"exit status {status}")
        return status

    def stop(self) -> None:
        """Kill it with all that it started, reap it, close its Runtime API."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.api.process_exited()
        self.api.close()
