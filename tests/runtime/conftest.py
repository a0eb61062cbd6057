"""Functions in real processes, started by our bootstrap as Lambda starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.runtime_api import RuntimeApi
from tests.runtime.function_process import BOOTSTRAP, FunctionProcess, environment

StartFunction = Callable[..., FunctionProcess]


@pytest.fixture
def start_function(tmp_path: Path) -> Iterator[StartFunction]:
    """Start `handler` behind a Runtime API of its own; keywords are further environment variables."""
    started: list[FunctionProcess] = []

    def start(handler: str, *, invocation_ids: bool = True, **variables: str) -> FunctionProcess:
        api = RuntimeApi(invocation_ids=invocation_ids)
        output = tmp_path / f"output-{len(started)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [str(BOOTSTRAP), sys.executable, "/var/runtime/bootstrap.py"],
                env=environment(handler, AWS_LAMBDA_RUNTIME_API=api.address, **variables),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        function = FunctionProcess(api, process, output)
        started.append(function)
        return function

    yield start
    for function in started:
        function.stop()
