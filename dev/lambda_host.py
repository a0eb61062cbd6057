"""Runs each function as Lambda does: in processes of its own behind the Runtime API, one invocation at a time each.

A process is started when no idle one is there, reused afterwards, killed when its invocation passes the timeout, and
replaced when it dies. It sees the environment that Lambda gives and what the template declares, nothing of the
developer's own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dev.processes import Child, Processes
from dev.runtime_api import Failed, Part, RuntimeApi, RuntimeInitError, RuntimeUnusableError
from dev.template import REGION, Function, TemplateError

INIT_SECONDS: Final = 30.0
"""Lambda allows ten seconds; a laptop under load may need more."""
STARTS_AT_ONCE: Final = max(2, os.cpu_count() or 2)
"""More would only slow each other down, and the first to finish serves the next request anyway."""
WATCH_SECONDS: Final = 2.0
"""A killed process's output ends at once, unless a child of its own still holds it open."""
JOURNEYS_KEPT: Final = 8
LAYER_ROOT: Final = "/opt/python/"
BOOTSTRAP: Final = Path(__file__).with_name("bootstrap.py")
MOVING_CLOCK: Final = Path(__file__).with_name("moving_clock")
"""On the import path of functions that share the clock of the double of Stripe."""

LogSink = Callable[[Function, "Journey | None", str], None]
"""Told of every line that a function's process writes, and for which invocation it did."""


@dataclass(eq=False, slots=True)
class Journey:
    """One invocation, for those who watch: which process took it, and what that process said meanwhile."""

    request_id: str
    pid: int = 0
    lines: list[str] = field(default_factory=list)


class FunctionHost:
    """The processes of one function."""

    def __init__(
        self,
        function: Function,
        overrides: Mapping[str, str],
        processes: Processes,
        log: LogSink,
        *,
        concurrency: int,
        clock_file: Path | None = None,
    ) -> None:
        """`overrides` replace template variables; `concurrency` bounds the processes, further requests wait.

        `clock_file`: says by how many seconds the function's clock is ahead; without it, it is the machine's.
        """
        self.function = function
        self._overrides = overrides
        self._processes = processes
        self._log = log
        self._concurrency = concurrency
        self._clock_file = clock_file
        self._state = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._failures: deque[Failed] = deque()
        self._starting = 0
        self._waiting = 0
        self._generation = 0
        self._closed = False
        self._command = _command(function)

    def prewarm(self) -> bool:
        """Starts one process and returns when it waits for work; False when it did not start, which has been logged."""
        with self._state:
            self._starting += 1
        return self._start_worker()

    def invoke(self, event: bytes, journey: Journey, timeout_seconds: float | None = None) -> Iterator[Part]:
        """Runs the function once and yields its answer's parts as they come.

        Blocks. `timeout_seconds` shortens the function's own timeout. A caller that stops iterating leaves the process
        unusable: iterate to the end, as on Lambda nobody can cancel an invocation.
        """
        timeout = min(self.function.timeout_seconds, timeout_seconds or self.function.timeout_seconds)
        while True:
            worker = self._take()
            if isinstance(worker, Failed):
                yield worker
                return
            try:
                parts = worker.begin(event, journey, timeout)
                break
            except RuntimeUnusableError:
                worker.end()  # it died while idle
                self._forget(worker)
        last: Part | None = None
        try:
            for part in parts:
                last = part
                yield part
        finally:
            usable = not isinstance(last, Failed) or last.kind in ("error", "trailers")
            self._give_back(worker, usable=usable and last is not None)

    def processes(self) -> list[dict[str, object]]:
        """What runs now, for the control endpoint."""
        with self._state:
            rows = [(worker, "idle") for worker in self._idle] + [(worker, "busy") for worker in self._busy]
        return [{"function": self.function.label, "pid": worker.pid, "state": state} for worker, state in rows]

    def recycle(self) -> None:
        """Lets no process live on that holds anything from before now: idle ones end, busy ones after their work."""
        with self._state:
            self._generation += 1
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def close(self) -> None:
        """Ends everything at once."""
        with self._state:
            self._closed = True
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            self._state.notify_all()
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.end()

    def _take(self) -> _Worker | Failed:
        with self._state:
            self._waiting += 1
            try:
                while True:
                    if self._closed:
                        return Failed("Sandbox.Stopped", "the local stack is stopping", "error")
                    if self._idle:
                        worker = self._idle.pop()
                        self._busy.add(worker)
                        return worker
                    if self._failures:
                        return self._failures.popleft()
                    self._grow()
                    self._state.wait()
            finally:
                self._waiting -= 1

    def _grow(self) -> None:
        running = len(self._busy) + len(self._idle) + self._starting
        if self._starting < min(self._waiting, STARTS_AT_ONCE) and running < self._concurrency:
            self._starting += 1
            threading.Thread(target=self._start_worker, name=f"start-{self.function.label}", daemon=True).start()

    def _start_worker(self) -> bool:
        worker: _Worker | None = None
        failed: Failed | None = None
        generation = self._generation
        try:
            worker = _Worker(self)
            worker.wait_ready()
        except RuntimeInitError as error:
            failed = error.failed
        except OSError as error:  # cannot be executed, or took longer than INIT_SECONDS (TimeoutError)
            failed = Failed("Runtime.InvalidEntrypoint", str(error), "init")
        if failed is not None and not self._closed:
            self._log(self.function, None, f"did not start: {failed.error_type}: {failed.message}")
        with self._state:
            self._starting -= 1
            alive = worker is not None and failed is None and not worker.exited
            keep = alive and not self._closed and generation == self._generation
            if keep and worker is not None:
                self._idle.append(worker)
            elif failed is not None and self._waiting:
                self._failures.append(failed)
            self._state.notify_all()
        if worker is not None and not keep:
            worker.end()
        return failed is None

    def _give_back(self, worker: _Worker, *, usable: bool) -> None:
        with self._state:
            self._busy.discard(worker)
            keep = usable and not self._closed and worker.generation == self._generation and not worker.exited
            if keep:
                self._idle.append(worker)
            self._state.notify_all()
        if not keep:
            worker.end()

    def _forget(self, worker: _Worker) -> None:
        with self._state:
            self._busy.discard(worker)
            with contextlib.suppress(ValueError):
                self._idle.remove(worker)
            self._state.notify_all()

    # What a worker needs from its host.

    @property
    def generation(self) -> int:
        return self._generation

    def start_process(self, address: str) -> Child:
        """Starts the runtime as Lambda would, talking to this Runtime API."""
        environment = lambda_environment(self.function, self._overrides, address, self._clock_file)
        return self._processes.start(self._command, cwd=self.function.code, env=environment)

    def on_line(self, journey: Journey | None, line: str) -> None:
        self._log(self.function, journey, line)

    def on_exit(self, worker: _Worker) -> None:
        self._forget(worker)


class _Worker:
    """One process with its Runtime API."""

    def __init__(self, host: FunctionHost) -> None:
        self._host = host
        self.generation = host.generation
        self.exited = False
        self._journeys: deque[Journey] = deque(maxlen=JOURNEYS_KEPT)
        self._api = RuntimeApi()
        try:
            self._child = host.start_process(self._api.address)
        except OSError:
            self._api.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{self._child.pid}", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_ready(self) -> None:
        """Returns when the function waits for its first event; RuntimeInitError when it never will."""
        self._api.wait_ready(INIT_SECONDS)

    def begin(self, event: bytes, journey: Journey, timeout_seconds: float) -> Iterator[Part]:
        """Gives the process its next event; RuntimeUnusableError when it cannot take one."""
        invocation = self._api.invoke(
            event,
            request_id=journey.request_id,
            timeout_seconds=timeout_seconds,
            function_arn=self._host.function.arn,
        )
        journey.pid = self.pid
        self._journeys.append(journey)
        return invocation.parts(INIT_SECONDS)

    def kill(self) -> None:
        """Ends the process at once; whatever it was doing fails."""
        self._child.send(signal.SIGKILL)

    def end(self) -> None:
        """Kills the process and returns when nothing of it is left."""
        self.kill()
        self._watcher.join(WATCH_SECONDS)
        self._api.close()

    def _watch(self) -> None:
        """Reads what the process prints until it ends, then says how it ended."""
        for line in self._child.output:
            text = line.decode(errors="replace").rstrip("\n")
            journey = self._journey_of(text)
            if journey is not None:
                journey.lines.append(text)
            self._host.on_line(journey, text)
        status = self._child.wait()
        self._child.output.close()
        self.exited = True
        self._host.on_exit(self)
        self._api.process_exited(_exit_text(status))
        self._api.close()

    def _journey_of(self, text: str) -> Journey | None:
        """The invocation that a line names, else the newest: this thread may lag behind the process."""
        known = list(self._journeys)
        return next((item for item in known if item.request_id in text), known[-1] if known else None)


def lambda_environment(
    function: Function, overrides: Mapping[str, str], address: str, clock_file: Path | None = None
) -> dict[str, str]:
    """The variables of a function's process. `overrides` replace what the template declares, and add nothing to it."""
    moved: dict[str, str] = {} if clock_file is None else {"TOLLGATE_DEV_CLOCK_FILE": str(clock_file)}
    folders = function.layers if clock_file is None else (MOVING_CLOCK, *function.layers)
    declared = {**function.environment, **{name: overrides[name] for name in overrides if name in function.environment}}
    return {
        "PATH": os.defpath,
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        # Lambda's user has no home; without this the developer's own AWS configuration would be found.
        "HOME": "/nonexistent",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "LAMBDA_TASK_ROOT": str(function.code),
        "LAMBDA_RUNTIME_DIR": str(BOOTSTRAP.parent),
        "_HANDLER": function.handler,
        "AWS_LAMBDA_RUNTIME_API": address,
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "AWS_LAMBDA_LOG_FORMAT": function.log_format,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "local",
        **declared,
        **moved,
    }


def _command(function: Function) -> list[str]:
    """What Lambda executes: its bootstrap, or the wrapper with the bootstrap as its arguments."""
    bootstrap = [sys.executable, str(BOOTSTRAP)]
    wrapper = function.environment.get("AWS_LAMBDA_EXEC_WRAPPER")
    if not wrapper:
        return bootstrap
    # Layers are not unpacked to /opt here; each keeps its folder and is on the import path by it.
    for layer in function.layers:
        found = layer / wrapper.removeprefix(LAYER_ROOT)
        if wrapper.startswith(LAYER_ROOT) and found.is_file():
            return [str(found), *bootstrap]
    raise TemplateError(f"{function.logical_id}: no layer holds {wrapper}")


def _exit_text(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal: {signal.Signals(-status).name}"
    return f"exit status {status}"
