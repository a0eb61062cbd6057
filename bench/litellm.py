"""LiteLLM's proxy as a peer: pinned, in an environment of its own, one worker, without Postgres and Redis.

Its keys come from a custom check instead of a database, with budgets that it counts in memory: the cheapest set-up that
still knows its callers, so its figures are kinder than those of a deployment with keys in Postgres. Its own part that
books real cost, which it registers only beside a database, is registered here: else a budget would shrink by each
request's worst case.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.function import MODEL, ROOT
from bench.process_stats import cpu_seconds

ENVIRONMENT = ROOT / ".dev" / "litellm"
START_SECONDS = 300.0
ABSENT = "LiteLLM is not installed in .dev/litellm: `make bench` installs it from requirements/litellm.txt"

_CUSTOM_AUTH = """
import json, os
from litellm.proxy._types import UserAPIKeyAuth

_KEYS = json.loads(os.environ["BENCH_KEYS"])
_to_do = [1] if os.environ["BENCH_BOOKS"] == "yes" else []

def _keep_books():
    # The proxy registers this itself only when a database is connected; without it every reservation stands for ever.
    import litellm
    from litellm.proxy import proxy_server as proxy
    proxy.spend_event_producer = proxy.build_spend_event_producer(
        proxy.CollectorSettings(), fallback=proxy.run_spend_event
    )
    logger = proxy.ProxyDBLogger(proxy.spend_event_producer)
    litellm.logging_callback_manager.add_litellm_callback(logger)
    litellm.logging_callback_manager.add_litellm_async_success_callback(logger)

async def find(request, api_key):
    if api_key not in _KEYS:
        raise Exception("no such key")
    while _to_do:
        _to_do.pop()
        _keep_books()
    return UserAPIKeyAuth(api_key=api_key, token=api_key, spend=0.0, **_KEYS[api_key])
"""


@dataclass(frozen=True, slots=True)
class KeyBudget:
    """What a key of the proxy may use; None: no bound."""

    max_budget: float | None = None
    """US dollars."""
    tpm_limit: int | None = None
    """Tokens a minute."""


def version() -> str | None:
    """The installed version; None when there is none."""
    found = sorted(ENVIRONMENT.glob("lib/python*/site-packages/litellm-*.dist-info"))
    return found[0].name.removeprefix("litellm-").removesuffix(".dist-info") if found else None


class LiteLlm:
    """One running proxy. `start_cpu_seconds` and `start_seconds`: until it answered its first request with 200."""

    def __init__(
        self,
        folder: Path,
        upstream_port: int,
        keys: Mapping[str, KeyBudget],
        *,
        strict: bool = False,
        books: bool = False,
    ) -> None:
        """`strict`: with its flag that refuses a request whose worst case does not fit the budget. `books`: with the
        part that replaces reservations by real cost, which it leaves out when it has no database."""
        folder.mkdir(parents=True)
        (folder / "bench_auth.py").write_text(_CUSTOM_AUTH)
        (folder / "config.json").write_text(json.dumps(_config(upstream_port, strict=strict)))
        self.port = _free_port()
        command = [ENVIRONMENT / "bin" / "litellm", "--config", "config.json", "--host", "127.0.0.1"]
        began = time.monotonic()
        self._log = (folder / "log.txt").open("wb")
        self._process = subprocess.Popen(
            [*map(str, command), "--port", str(self.port), "--num_workers", "1"],
            cwd=folder,
            env=_environment(folder, keys, books=books),
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self._process.pid
        try:
            self._wait(folder / "log.txt", next(iter(keys)))
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.monotonic() - began
        self.start_cpu_seconds = cpu_seconds(self.pid)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _wait(self, log: Path, key: str) -> None:
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit and self._process.poll() is None:
            if self._is_up(key):
                return
            time.sleep(0.05)
        raise RuntimeError(f"LiteLLM did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def _is_up(self, key: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = {"model": MODEL, "max_tokens": 1, "stream": True, "messages": [{"role": "user", "content": "x"}]}
        try:
            headers = {"x-api-key": key, "content-type": "application/json"}
            connection.request("POST", "/v1/messages", json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return answer.status == 200


def _free_port() -> int:
    """A port below those that systems give away by themselves: it binds seconds after it was chosen."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randint(18_000, 28_000)))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port


def _config(upstream_port: int, *, strict: bool) -> dict[str, object]:
    upstream = {
        "model": f"anthropic/{MODEL}",
        "api_base": f"http://127.0.0.1:{upstream_port}",
        "api_key": "sk-ant-bench",
    }
    return {
        "model_list": [{"model_name": MODEL, "litellm_params": upstream}],
        "general_settings": {
            "master_key": f"sk-{secrets.token_hex(32)}",
            "custom_auth": "bench_auth.find",
            "custom_auth_run_common_checks": True,
            "fail_closed_budget_enforcement": strict,
        },
    }


def _environment(folder: Path, keys: Mapping[str, KeyBudget], *, books: bool) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": str(folder),
        "BENCH_KEYS": json.dumps({key: asdict(budget) for key, budget in keys.items()}),
        "BENCH_BOOKS": "yes" if books else "no",
        # Nothing is to leave this machine, and what it logs of each request is not to be measured.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
        "DISABLE_ADMIN_UI": "True",
        "NO_DOCS": "True",
    }
