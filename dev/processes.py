"""Child processes of the local stack: each in a session of its own, ended with its whole group, never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

TERM_SECONDS = 5.0
"""How long a child may take to end after SIGTERM; then its group is killed."""


class Processes:
    """Starts children and knows which are alive. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[Child] = set()
        self._closed = False
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("watchdog.py"))],
            stdin=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        output: int | IO[bytes] = subprocess.PIPE,
        sockets: Sequence[socket.socket] = (),
    ) -> Child:
        """Starts a child with exactly this environment; stderr goes where stdout goes. OSError when it cannot run.

        `sockets` stay open in the child, under the same numbers.
        """
        popen = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[one.fileno() for one in sockets],
        )
        child = Child(self, popen)
        with self._lock:
            closed = self._closed
            if not closed:
                self._alive.add(child)
                self._tell(f"+{child.pid}")
        if closed:
            child.kill()
        return child

    def stop_all(self, *, gently: bool = True) -> None:
        """Ends every child, all at the same time; nothing runs when this returns, and nothing can be started again."""
        with self._lock:
            self._closed = True
            children = list(self._alive)
        for child in children:
            child.send(signal.SIGTERM if gently else signal.SIGKILL)
        for child in children:
            child.stop()
        if self._watchdog.stdin is not None and not self._watchdog.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.close()
        self._watchdog.wait()

    def forget(self, child: Child) -> None:
        """The child was reaped: its number may belong to somebody else from now on."""
        with self._lock:
            if child in self._alive:
                self._alive.discard(child)
                self._tell(f"-{child.pid}")

    def _tell(self, line: str) -> None:
        if self._watchdog.stdin is not None and not self._watchdog.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(line + "\n")


class Child:
    """One process and the group it leads."""

    def __init__(self, owner: Processes, popen: subprocess.Popen[bytes]) -> None:
        self._owner = owner
        self._popen = popen
        self._reaping = threading.Lock()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def output(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """The exit status; None when it still runs after the time. Only reaping lets the number be used again."""
        try:
            status = self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        self._owner.forget(self)
        return status

    def send(self, number: signal.Signals) -> None:
        """A signal to the whole group, if the child still runs."""
        with self._reaping, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._popen.poll() is None:
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self, timeout_seconds: float = TERM_SECONDS) -> None:
        """Asks it to end, then makes it end."""
        self.send(signal.SIGTERM)
        if self.wait(timeout_seconds) is None:
            self.kill()
