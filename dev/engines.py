"""The engines of the local stack: ministack (Cognito, SSM, DynamoDB), dynoxide (the table, where present), the doubles.

Engines listen on loopback, on ports of their own choosing, and keep their state in the stack's folder. ministack pins a
botocore that cannot live beside ours, so it has an environment of its own, made here from requirements/engines.txt.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dev.processes import Child, Processes
from dev.template import REGION
from tollgate.domain.stripe_events import SNAPSHOT_TYPES, THIN_TYPES

ROOT: Final = Path(__file__).resolve().parent.parent
ENGINES_DIR: Final = ROOT / ".dev" / "engines"
REQUIREMENTS: Final = ROOT / "requirements" / "engines.txt"
START_SECONDS: Final = 30.0
_PORT_ATTEMPTS: Final = 3
_LOG_LINES_SHOWN: Final = 12


class EngineError(Exception):
    """An engine cannot be had or does not start; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine."""

    name: str
    url: str
    child: Child


@dataclass(frozen=True, slots=True)
class StripeSecrets:
    """What our functions and Stripe, or its double, know of each other."""

    key: str
    webhook: str
    account: str


def install_engines() -> bool:
    """Makes the engines' environment if it is missing or outdated; whether anything had to be done."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    marker = ENGINES_DIR / "installed.sha256"
    ENGINES_DIR.parent.mkdir(parents=True, exist_ok=True)
    with (ENGINES_DIR.parent / "engines.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks of one checkout may start together
        if marker.is_file() and marker.read_text() == wanted:
            return False
        for command in _install_commands():
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                tail = "\n".join(done.stderr.strip().splitlines()[-_LOG_LINES_SHOWN:])
                raise EngineError(f"the engines' environment could not be made ({' '.join(command[:3])} …):\n{tail}")
        marker.write_text(wanted)
    return True


def _install_commands() -> list[list[str]]:
    python = str(ENGINES_DIR / "bin" / "python")
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        make = [sys.executable, "-m", "venv", str(ENGINES_DIR)]
        return [make, [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(REQUIREMENTS)]]
    make = [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(ENGINES_DIR)]
    return [make, [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", str(REQUIREMENTS)]]


def find_dynoxide() -> Path | None:
    """The dynoxide binary: installed by npm under .dev, or on PATH. None: ministack serves the table."""
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine().lower())
    package = ROOT / ".dev" / "node_modules" / "@dynoxide" / f"{platform.system().lower()}-{machine}" / "dynoxide"
    if package.is_file() and os.access(package, os.X_OK):
        return package
    found = shutil.which("dynoxide")
    return None if found is None else Path(found)


def start_ministack(processes: Processes, state_dir: Path, log_dir: Path) -> Engine:
    """Cognito, SSM and DynamoDB. State is written to `state_dir` when it is asked to end, not when it is killed."""
    folder = state_dir / "ministack"
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)

    def command(port: int) -> tuple[list[str], dict[str, str]]:
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "MINISTACK_HOST": "127.0.0.1",
            "MINISTACK_REGION": REGION,
            "PERSIST_STATE": "1",
            "STATE_DIR": str(folder),
            "LOG_LEVEL": "WARNING",
            # It would listen for IoT devices and SFTP clients on all interfaces.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
        }
        return [str(ENGINES_DIR / "bin" / "python"), "-m", "ministack"], environment

    return _start(processes, "ministack", command, log_dir, lambda url: _answers(f"{url}/_ministack/ready"))


def start_dynoxide(processes: Processes, binary: Path, state_dir: Path, log_dir: Path) -> Engine:
    """DynamoDB on SQLite: survives even `kill -9`."""
    state_dir.mkdir(parents=True, exist_ok=True)

    def command(port: int) -> tuple[list[str], dict[str, str]]:
        database = str(state_dir / "dynamo.db")
        return [str(binary), "serve", "--host", "127.0.0.1", "--port", str(port), "--db-path", database], {}

    return _start(processes, "dynoxide", command, log_dir, _connects)


def start_fake_claude(processes: Processes, api_key: str, script: str, log_dir: Path) -> Engine:
    """The built-in double of Anthropic's API, taking only this key; `script`: its default behaviour."""
    arguments = ["--until-stdin-closes", "--api-key", api_key, "--script", script]

    def command(port: int) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-m", "dev.fake_claude", "--port", str(port), *arguments], {"PYTHONPATH": str(ROOT)}

    return _start(processes, "fake-claude", command, log_dir, _connects, stdin=subprocess.PIPE)


def stripe_listener() -> socket.socket:
    """Where the double of Stripe will answer: connections wait from now on."""
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def start_stripe_double(
    processes: Processes,
    listener: socket.socket,
    secrets: StripeSecrets,
    webhook_url: str,
    state_dir: Path,
    log_dir: Path,
    clock_file: Path | None = None,
) -> Engine:
    """The built-in double of Stripe, which takes over the listener; it answers when it has started."""
    arguments = ["--until-stdin-closes", "--account", secrets.account, "--webhook-url", webhook_url]
    arguments += [word for name in sorted({*SNAPSHOT_TYPES, *THIN_TYPES}) for word in ("--event-type", name)]
    arguments += ["--webhook-secret", secrets.webhook, "--journal", str(state_dir / "stripe.jsonl")]
    if clock_file is not None:
        arguments += ["--clock-file", str(clock_file)]
    command = [sys.executable, "-m", "dev.stripe_double", "--fd", str(listener.fileno()), *arguments]
    with listener, (log_dir / "stripe-double.log").open("ab") as log:
        port = listener.getsockname()[1]
        child = processes.start(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, output=log, sockets=[listener]
        )
    return Engine("stripe-double", f"http://127.0.0.1:{port}", child)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _start(
    processes: Processes,
    name: str,
    command: Callable[[int], tuple[list[str], Mapping[str, str]]],
    log_dir: Path,
    is_ready: Callable[[str], bool],
    stdin: int = subprocess.DEVNULL,
) -> Engine:
    """Starts an engine and waits until it answers; tries again when another program was faster to take the port."""
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / f"{name}.log"
    for _ in range(_PORT_ATTEMPTS):
        port = free_port()
        arguments, environment = command(port)
        with log.open("ab") as output:
            try:
                child = processes.start(arguments, cwd=ROOT, env=environment, stdin=stdin, output=output)
            except OSError as error:
                raise EngineError(f"{name} cannot be started: {error}") from error
        url = f"http://127.0.0.1:{port}"
        if _wait(child, is_ready, url):
            return Engine(name, url, child)
        child.kill()
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
    raise EngineError(f"{name} did not start; the end of {log}:\n{tail}")


def _wait(child: Child, is_ready: Callable[[str], bool], url: str) -> bool:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        if is_ready(url):
            return True
        if child.wait(0.02) is not None:
            return False
    return False


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        ready: bool = json.loads(response.read()).get("status") == "completed"
        return ready
    return False


def _connects(url: str) -> bool:
    port = int(url.rsplit(":", 1)[1])
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
