"""One place for a function process behind a Runtime API of its own, as on Lambda: started, called, killed, replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev.runtime_api import Buffered, Chunk, Failed, Prelude, RuntimeApi
from tests.chaos.plans import Call, skew_seconds
from tests.chaos.table_proxy import TableProxy
from tests.chaos.upstream import Upstream
from tests.chaos.zygote import ROOT, Zygote

PEPPER = "chaos-pepper"
UPSTREAM_KEY = "sk-ant-CANARY-chaos"
SECRETS = {"/chaos/pepper": PEPPER, "/chaos/upstream": UPSTREAM_KEY}
START_SECONDS = 60.0
UNHANDLED = ("request_failed", "Traceback (most recent call last)", "[ERROR]", "Runtime.")
TOLD = ("settlement_left_to_sweep", "release_left_to_sweep", "request_not_recorded", "top_up_unanswered")
"""Lines of the log that are counted."""


@dataclass(slots=True)
class Result:
    """One call as its caller saw it."""

    call: Call
    status: int = 0
    body: bytes = b""
    failed: Failed | None = None
    killed: bool = False
    seconds: float = 0.0

    @property
    def error_code(self) -> str:
        if self.status < 300:
            return ""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(self.body)["error"]["details"]["error_code"])
        return ""


class Slot:
    """Serves one call after the other."""

    def __init__(
        self, number: int, seed: int, engine_url: str, zygote: Zygote, folder: Path, settings: dict[str, str]
    ) -> None:
        self.number = number
        self.kills = 0
        self.starts = 0
        self.timeouts = 0
        self.table = TableProxy(engine_url, SECRETS, self.kill)
        self.upstream = Upstream(self.kill)
        self._seed = seed
        self._zygote = zygote
        self._log = folder / f"slot-{number}.log"
        self._settings = settings
        self._api: RuntimeApi | None = None
        self._pid = 0
        self._killed = threading.Event()
        self._dying: threading.Thread | None = None
        self._lock = threading.Lock()

    def kill(self) -> None:
        """SIGKILL to the process, at once; the Runtime API is told as Lambda's is. The second kill does nothing."""
        with self._lock:
            if self._killed.is_set() or self._api is None:
                return
            self._killed.set()
            self.kills += 1
            os.kill(self._pid, signal.SIGKILL)
            self._dying = threading.Thread(target=self._bury, args=[self._api, self._pid, "signal: SIGKILL"])
            self._dying.start()

    def serve(self, call: Call, event: bytes) -> Result:
        """Starts a process if there is none. Bounded by the call's time-out."""
        api = self._ready()
        self.table.begin(call)
        self.upstream.begin(call)
        result = Result(call)
        began = time.monotonic()
        invocation = api.invoke(
            event,
            request_id=f"chaos-{call.id}",
            timeout_seconds=call.seconds,
            function_arn="arn:aws:lambda:::function:c",
        )
        body = bytearray()
        for part in invocation.parts(START_SECONDS):
            match part:
                case Prelude():
                    result.status = part.status_code
                case Chunk():
                    body += part.data
                case Buffered():
                    answer = json.loads(part.payload)
                    result.status, body = answer["statusCode"], bytearray(answer["body"].encode())
                case Failed():
                    result.failed = part
        result.seconds, result.body, result.killed = time.monotonic() - began, bytes(body), self._killed.is_set()
        self._after(result)
        return result

    def close(self) -> None:
        self._end("closed")
        self.table.close()
        self.upstream.close()

    def unhandled(self) -> list[str]:
        """Lines of the process's log that tell of a fault nobody handled."""
        return [line[:400] for line in self._lines() if any(word in line for word in UNHANDLED)]

    def told(self) -> Counter[str]:
        return Counter(word for line in self._lines() for word in TOLD if f'"{word}"' in line)

    def leaks(self) -> list[str]:
        return [line[:400] for line in self._lines() if "CANARY" in line or "chaos call" in line]

    def _lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines() if self._log.is_file() else []

    def _ready(self) -> RuntimeApi:
        if self._api is None:
            self._killed.clear()
            api = RuntimeApi()
            skew = skew_seconds(self._seed, self.number, self.starts)
            environment = {
                **self._settings,
                "AWS_LAMBDA_RUNTIME_API": api.address,
                "AWS_ENDPOINT_URL_DYNAMODB": self.table.url,
                "AWS_ENDPOINT_URL_SSM": self.table.url,
                "UPSTREAM_BASE_URL": self.upstream.url,
            }
            self._pid = self._zygote.start(environment, self._log, skew)
            self.starts += 1
            api.wait_ready(START_SECONDS)
            self._api = api
        return self._api

    def _after(self, result: Result) -> None:
        """As Lambda does: a process that was killed or ran into its time-out serves no further call."""
        failed = result.failed
        if self._killed.is_set():
            self._end("killed")
        elif failed is not None and failed.kind == "timeout":
            self.timeouts += 1
            self._end("timed out")
        elif not _is_alive(self._pid):
            self._end("died")

    def _end(self, _: str) -> None:
        with self._lock:
            api, self._api, dying = self._api, None, self._dying
        if dying is not None:
            dying.join()
            self._dying = None
        if api is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._bury(api, self._pid, "signal: SIGKILL")
            api.close()

    @staticmethod
    def _bury(api: RuntimeApi, pid: int, how: str) -> None:
        until = time.monotonic() + 10
        while _is_alive(pid) and time.monotonic() < until:
            time.sleep(0.002)
        api.process_exited(how)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run_all(slots: list[Slot], work: Callable[[Slot], None]) -> None:
    """The same on every slot at once; raises the first error."""
    errors: list[BaseException] = []

    def one(slot: Slot) -> None:
        try:
            work(slot)
        except BaseException as error:  # noqa: BLE001  told by the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=one, args=[slot]) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def settings(catalog: Path, table_name: str) -> dict[str, str]:
    """The environment that all processes share."""
    core, stream_runtime = ROOT / "layers" / "core", ROOT / "layers" / "stream_runtime"
    return {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(map(str, (core, stream_runtime))),
        "LAMBDA_TASK_ROOT": str(ROOT),
        "LAMBDA_RUNTIME_DIR": str(ROOT / "dev"),
        "_HANDLER": "functions.claude.app.handler",
        "AWS_LAMBDA_FUNCTION_NAME": "claude",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_LOG_GROUP_NAME": "chaos",
        "AWS_LAMBDA_LOG_STREAM_NAME": "chaos",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "STAGE": "chaos",
        "CATALOG": str(catalog),
        "TABLE_NAME": table_name,
        "COGNITO_ISSUER": "https://cognito-idp.us-east-1.amazonaws.com/us-east-1_chaos",
        "COGNITO_CLIENT_IDS": "chaos",
        "ALLOW_TEST_KEYS": "true",
        "UPSTREAM_API_KEY_PARAMETER": "/chaos/upstream",
        "KEY_PEPPER_PARAMETER": "/chaos/pepper",
        "POWERTOOLS_LOG_LEVEL": "INFO",
    }
