"""One process of the claude function, as Lambda runs it, for measuring: with its engine, secrets, a user and a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import psutil

from bench.aws import Aws
from bench.process_stats import cpu_seconds
from bench.upstream import TEXT
from dev.engines import find_dynoxide, start_dynoxide, start_ministack
from dev.processes import Processes
from dev.provision import TABLE_NAME, ensure_table
from dev.runtime_api import Buffered, Chunk, Failed, Prelude, RuntimeApi
from dev.template import Template
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.principals import MaxTokensPolicy, Profile
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.table import Table
from tollgate.storage.users import Users

ROOT = Path(__file__).parents[1]
LAYERS = (ROOT / "layers" / "core", ROOT / "layers" / "stream_runtime")
CLAUDE = "functions.claude.app.handler"
MODEL = "claude-haiku-4-5"
FIRST_TOKEN = b"event: content_block_delta"
PEPPER = "bench-pepper"
SECRETS = {"/bench/pepper": PEPPER, "/bench/upstream": "sk-ant-bench"}
CREDENTIALS = {
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
}


@dataclass
class Surroundings:
    """What the function talks to."""

    aws: Aws
    engine: str
    engine_url: str
    table: Table
    upstream_port: int
    upstream_pid: int
    api_key: str
    byte_code: Path

    def environment(
        self, address: str, *, handler: str, timed: bool, counted: bool = True, steps: bool = False
    ) -> dict[str, str]:
        """The function's variables, with the stop-watch around `handler` if `timed`, which counts `steps` too;
        byte code comes from a folder of its own, so that nothing is compiled at start."""
        return {
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join(map(str, LAYERS)),
            "PYTHONPYCACHEPREFIX": str(self.byte_code),
            "LAMBDA_TASK_ROOT": str(ROOT),
            "_HANDLER": "bench.instrumented.handler" if timed else handler,
            "BENCH_HANDLER": handler,
            "BENCH_STEPS": str(int(steps)),
            "AWS_LAMBDA_RUNTIME_API": address,
            "AWS_LAMBDA_FUNCTION_NAME": "claude",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_LOG_GROUP_NAME": "bench",
            "AWS_LAMBDA_LOG_STREAM_NAME": "bench",
            **CREDENTIALS,
            # The counting stands between; where times matter it stands aside.
            "AWS_ENDPOINT_URL_DYNAMODB": self.aws.url if counted else self.engine_url,
            "AWS_ENDPOINT_URL_SSM": self.aws.url,
            "STAGE": "bench",
            "CATALOG": str(ROOT / "bench" / "catalog"),
            "TABLE_NAME": TABLE_NAME,
            "COGNITO_ISSUER": "https://cognito-idp.us-east-1.amazonaws.com/us-east-1_bench",
            "COGNITO_CLIENT_IDS": "bench",
            "ALLOW_TEST_KEYS": "true",
            "UPSTREAM_BASE_URL": f"http://127.0.0.1:{self.upstream_port}",
            "UPSTREAM_API_KEY_PARAMETER": "/bench/upstream",
            "KEY_PEPPER_PARAMETER": "/bench/pepper",
            "POWERTOOLS_LOG_LEVEL": "INFO",
        }


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Engine, upstream and a user on the enterprise plan; all of it gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        processes = Processes()
        stack.callback(processes.stop_all, gently=False)
        dynoxide = find_dynoxide()
        if dynoxide is None:
            engine = start_ministack(processes, folder, folder)
        else:
            engine = start_dynoxide(processes, dynoxide, folder, folder)
        upstream = subprocess.Popen(
            [sys.executable, "-m", "bench.upstream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        stack.enter_context(upstream)  # closes its pipes and waits
        stack.callback(upstream.terminate)
        assert upstream.stdout is not None
        port = int(upstream.stdout.readline())
        aws = stack.enter_context(Aws(engine.url, SECRETS))
        client = boto3.session.Session().client(
            "dynamodb",
            endpoint_url=engine.url,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        ensure_table(client, Template(ROOT / "template.yaml"))
        table = Table(client, TABLE_NAME)
        key = add_user(table)
        yield Surroundings(aws, engine.name, engine.url, table, port, upstream.pid, key, folder / "byte-code")


def add_user(table: Table, user_id: str = "bench", plan_id: str = "bench") -> str:
    """A user on a plan of bench/catalog; the secret of their key."""
    now = datetime.now(UTC).replace(microsecond=0)
    secret = mint_api_key(KeyMode.TEST, os.urandom(32))
    Users(table).create_profile(Profile("main", user_id, plan_id, plan_version=1, anchor_at=now))
    ApiKeys(table).put_key(
        ApiKey(
            id=user_id,
            key_hash=hash_api_key(secret, PEPPER.encode()),
            tenant_id="main",
            user_id=user_id,
            mode=KeyMode.TEST,
            last_four=secret[-4:],
            created_at=now,
            name=user_id,
            max_tokens_policy=MaxTokensPolicy.CLAMP,
            revoked_at=None,
        )
    )
    return secret


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its caller saw it."""

    status: int
    body: bytes
    first_byte_seconds: float
    first_token_seconds: float
    """To the first piece of text; 0 when there was none."""
    last_byte_seconds: float
    seconds: float
    """To the end of the invocation, where there is one: what Lambda bills."""
    retries: int = 0
    """How often it was refused for a moment (429) and sent again, as Anthropic's clients do."""

    @property
    def is_whole_stream(self) -> bool:
        return self.status == 200 and b"event: message_stop" in self.body


class FunctionProcess:
    """One function process behind the Runtime API; `costs` collects what the stop-watch inside it wrote."""

    def __init__(
        self,
        around: Surroundings,
        *,
        handler: str = CLAUDE,
        timed: bool = True,
        counted: bool = True,
        steps: bool = False,
    ) -> None:
        self._around = around
        self._timed = timed
        self._api = RuntimeApi()
        environment = around.environment(self._api.address, handler=handler, timed=timed, counted=counted, steps=steps)
        bootstrap = LAYERS[1] / "tollgate_runtime" / "bootstrap"
        self._process = subprocess.Popen(
            [str(bootstrap), sys.executable], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.costs: list[dict[str, int]] = []
        self.log_bytes = 0
        self._lines: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._api.wait_ready(60)
        except BaseException:
            self.close()
            raise
        self.pid = self._process.pid
        self.start_cpu_seconds = self.cpu_seconds
        self.start_rss_bytes = self.rss_bytes
        self._count = 0

    @property
    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def stream(self, events: int, pace_ms: int) -> tuple[float, bytes]:
        """(seconds to the first byte, the body) of one streamed message."""
        answer = self.send(message_event(self._around.api_key, TEXT.format(events=events, pace_ms=pace_ms)))
        if not answer.is_whole_stream:
            raise RuntimeError(f"not a whole stream: {answer.status} {answer.body[:500]!r}\n" + "".join(self._lines))
        while self._timed and len(self.costs) < self._count and self._reader.is_alive():
            time.sleep(0.001)
        return answer.first_byte_seconds, answer.body

    def send(self, event: bytes) -> Answer:
        """Hands the process one event and reads its answer to the end. RuntimeError when the invocation failed."""
        self._count += 1
        began = time.monotonic()
        status, first, token, last, body = 0, 0.0, 0.0, 0.0, bytearray()
        invocation = self._api.invoke(
            event, request_id=f"bench-{self._count}", timeout_seconds=120, function_arn="arn:aws:lambda:::function:b"
        )
        for part in invocation.parts(120):
            match part:
                case Prelude():
                    status = part.status_code
                case Chunk():
                    last = part.received_at - began
                    first = first or last
                    body += part.data
                    if not token and FIRST_TOKEN in body:
                        token = last
                case Buffered():
                    answer = json.loads(part.payload)
                    status, body = answer["statusCode"], bytearray(answer.get("body", "").encode())
                    first = last = time.monotonic() - began
                case Failed():
                    raise RuntimeError(f"{part}\n" + "".join(self._lines))
        return Answer(status, bytes(body), first, token, last, time.monotonic() - began)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._api.close()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            self._lines.append(text)
            if text.startswith('{"bench"'):
                self.costs.append(json.loads(text)["bench"])
            else:
                self.log_bytes += len(line)


def message_event(api_key: str, text: str, *, max_tokens: int = 1024, stream: bool = True) -> bytes:
    """A function URL event of POST /v1/messages."""
    return url_event("POST", "/v1/messages", api_key, message_body(text, max_tokens=max_tokens, stream=stream))


def message_body(text: str, *, max_tokens: int = 1024, stream: bool = True) -> str:
    """What a client posts."""
    body = {
        "model": MODEL,
        "max_tokens": max_tokens,
        "stream": stream,
        "messages": [{"role": "user", "content": text}],
    }
    return json.dumps(body)


def url_event(method: str, path: str, api_key: str, body: str = "") -> bytes:
    """An event as function URLs send it."""
    event: dict[str, Any] = {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "x-api-key": api_key,
            "content-type": "application/json",
            "anthropic-version": "2023-06-01",
            "user-agent": "bench",
        },
        "requestContext": {"http": {"method": method, "path": path}, "requestId": "bench"},
        "body": body,
        "isBase64Encoded": False,
    }
    return json.dumps(event).encode()
