"""Runs `python -m dev` for tests: on a free port, with a state folder of its own, from start to a checked end.

A test module takes the session's stack by importing the fixture into its folder's conftest:
`from tests.support.stack import stack`. A test that needs its own calls `running_stack`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60.0
"""Includes installing the engines where that has not been done yet."""
STOP_SECONDS = 15.0
NOT_INHERITED = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "MAKEFLAGS",
    "MAKELEVEL",
    "PORT",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
)
"""What a developer may have set for the stack must not change what a test sees."""


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A stack that answers."""

    process: subprocess.Popen[bytes]
    base_dir: Path
    description: dict[str, Any]
    """stack.json."""
    started_in_seconds: float

    @property
    def gateway_url(self) -> str:
        return str(self.description["gateway_url"])

    @property
    def fake_claude_url(self) -> str:
        return str(self.description["fake_claude_url"])

    @property
    def demo_key(self) -> str:
        return str(self.description["demo"]["api_key"])

    @property
    def near_quota_key(self) -> str:
        return str(self.description["near_quota"]["api_key"])

    @property
    def upstream_key(self) -> str:
        """The key with which the gateway calls the fake Claude."""
        remembered = json.loads((self.base_dir / "state" / "remembered.json").read_text())
        return str(remembered["fake_upstream_key"])

    def output(self) -> str:
        """What the stack has printed so far."""
        return (self.base_dir / "output.txt").read_text(errors="replace")

    def logs(self, name: str) -> str:
        """The log file of a function (its folder's name) or an engine."""
        path = self.base_dir / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def script(self, text: str) -> None:
        """Changes how the fake Claude behaves for everybody; "" is its plain self."""
        self._call("PUT", f"{self.fake_claude_url}/_fake/script", text.encode())

    def exchanges(self) -> list[dict[str, Any]]:
        """What the fake Claude was asked lately, oldest first."""
        found: list[dict[str, Any]] = self._call("GET", f"{self.fake_claude_url}/_fake/exchanges")["data"]
        return found

    def sent_by_claude(self, upstream_request_id: str) -> bytes:
        """The bytes of a fake Claude's answer."""
        return self._recorded(upstream_request_id, "sent")

    def received_by_claude(self, upstream_request_id: str) -> bytes:
        """The body of a request as the fake Claude got it."""
        return self._recorded(upstream_request_id, "received")

    def _recorded(self, request_id: str, part: str) -> bytes:
        url = f"{self.fake_claude_url}/_fake/exchanges/{request_id}/{part}"
        with urllib.request.urlopen(url, timeout=20) as response:
            data: bytes = response.read()
        return data

    def function_processes(self, function: str, state: str | None = None) -> list[int]:
        """Process ids of a function's processes, all or only the `idle` or `busy` ones."""
        rows = self._call("GET", f"{self.gateway_url}/_dev/functions")["processes"]
        return [row["pid"] for row in rows if row["function"] == function and state in (None, row["state"])]

    def reset(self) -> None:
        """Puts the demo data back to the start; keys stay the same."""
        self._call("POST", f"{self.gateway_url}/_dev/reset")

    def recycle(self) -> None:
        """New processes for every function, as after a deployment: nothing is remembered from before."""
        self._call("POST", f"{self.gateway_url}/_dev/recycle")

    def mails(self, to: str) -> list[dict[str, str]]:
        """What Cognito mailed to an address, newest first."""
        rows: list[dict[str, str]] = self._call("GET", f"{self.gateway_url}/_dev/mail.json")["data"]
        return [row for row in rows if row["to"] == to]

    def run_schedules(self) -> list[dict[str, Any]]:
        """Runs every scheduled function now; what each returned."""
        runs: list[dict[str, Any]] = self._call("POST", f"{self.gateway_url}/_dev/schedules")["runs"]
        return runs

    def deliver_notices(self) -> dict[str, Any]:
        """Delivers the notices that are due; what came of it."""
        result: dict[str, Any] = self._call("POST", f"{self.gateway_url}/_dev/notices/deliver")["result"]
        return result

    def billing(self) -> dict[str, Any]:
        """What the billing page asks first; `open` once plans can be bought."""
        return self._call("GET", f"{self.gateway_url}/_dev/billing.json")

    def advance(self, seconds: int) -> None:
        """Lets time pass at the double of Stripe; what is due happens, and is told."""
        self._call("POST", f"{self.gateway_url}/_dev/billing/advance/{seconds}")

    def stripe(self, method: str, name: str, body: object = None) -> dict[str, Any]:
        """Steers the double of Stripe."""
        data = None if body is None else json.dumps(body).encode()
        return self._call(method, f"{self.description['fake_stripe_url']}/_double/{name}", data)

    def access_token(self, who: str = "demo") -> str:
        """A fresh Cognito access token of `demo` or `near_quota`."""
        user, cognito = self.description[who], self.description["cognito"]
        endpoint_url, _, _ = cognito["jwks_url"].removesuffix("/.well-known/jwks.json").rpartition("/")
        session = boto3.session.Session("local", "local", region_name="us-east-1")
        client = session.client("cognito-idp", endpoint_url=endpoint_url)
        result = client.initiate_auth(
            ClientId=cognito["client_id"],
            AuthFlow="USER_PASSWORD_AUTH",
            AuthParameters={"USERNAME": user["email"], "PASSWORD": user["password"]},
        )
        return result["AuthenticationResult"]["AccessToken"]

    def _call(self, method: str, url: str, data: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(url, data, {"x-tollgate-dev": "1"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.loads(response.read())
        return answer


@contextlib.contextmanager
def running_stack(
    base_dir: Path, *arguments: str, script: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    """A stack with its own state in `base_dir`, stopped by SIGTERM at the end.

    `script`: the fake Claude's default behaviour (at full speed unless it says otherwise). `environment`: variables
    given to the stack besides the test's own.
    """
    begun_at = time.monotonic()
    process = launch_stack(base_dir, *arguments, script=script, environment=environment)
    try:
        description = wait_for_stack(process, base_dir)
        yield RunningStack(process, base_dir, description, time.monotonic() - begun_at)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def launch_stack(
    base_dir: Path,
    *arguments: str,
    script: str = "",
    environment: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Starts `python -m dev` without waiting for it. `before`: a command that runs it as its arguments."""
    base_dir.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    command = [*before, sys.executable, "-m", "dev", "--state-dir", str(base_dir), "--fake-claude", script]
    if "--port" not in arguments:
        command += ["--port", "0"]
    with (base_dir / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env={**inherited, **(environment or {})},
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def wait_for_stack(process: subprocess.Popen[bytes], base_dir: Path) -> dict[str, Any]:
    """stack.json, once it is there and the gateway answers; AssertionError with what was printed when that fails."""
    path, limit = base_dir / "stack.json", time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        if path.is_file():
            description: dict[str, Any] = json.loads(path.read_text())
            return description
        time.sleep(0.02)
    printed = (base_dir / "output.txt").read_text(errors="replace")
    raise AssertionError(f"the local stack did not start (status {process.poll()}):\n{printed}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for all tests of the session; a test that spends the demo user's quota calls `reset`."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running
