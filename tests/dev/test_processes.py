"""Nothing that the local stack starts may outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dev.processes import Processes

ROOT = Path(__file__).resolve().parent.parent.parent
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
]
PARENT = """
import sys, time
from pathlib import Path
from dev.processes import Processes
processes = Processes()
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
children = [processes.start(sleep, cwd=Path.cwd(), env={}) for _ in range(2)]
print(*(child.pid for child in children), flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Whether a process still does anything; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def test_stopping_ends_every_child(tmp_path: Path) -> None:
    processes = Processes()
    pids = [processes.start(SLEEP, cwd=tmp_path, env={}, output=subprocess.DEVNULL).pid for _ in range(3)]
    processes.stop_all()
    assert not any(map(is_running, pids))


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    processes = Processes()
    child = processes.start(STUBBORN, cwd=tmp_path, env={})
    child.output.readline()
    child.stop(timeout_seconds=0.2)
    child.output.close()
    assert not is_running(child.pid)
    processes.stop_all()


def test_a_childs_own_children_end_with_it(tmp_path: Path) -> None:
    processes = Processes()
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    child = processes.start(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, stdin=subprocess.PIPE
    )
    grandchild = int(child.output.readline())
    child.kill()
    child.output.close()
    child.stdin.close()
    assert wait_until_gone([grandchild], 2)
    processes.stop_all()


def test_nothing_can_be_started_after_the_end(tmp_path: Path) -> None:
    processes = Processes()
    processes.stop_all()
    child = processes.start(SLEEP, cwd=tmp_path, env={}, output=subprocess.DEVNULL)
    assert not is_running(child.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_children_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2
    assert wait_until_gone(pids, 5)
