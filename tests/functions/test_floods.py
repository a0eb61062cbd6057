"""Floods by nobody we know: no call of the table, and less than a millisecond of CPU each."""

from __future__ import annotations

import gc
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.claude_function import ClaudeFunction, claude_function
from tollgate.domain.api_keys import KeyMode, mint_api_key

REQUESTS = 500
SEED = 20261120
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def function() -> Iterator[ClaudeFunction]:
    """With a table that cannot be reached: whoever asks it anything is answered 503."""
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as running:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            closed_port = listener.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{closed_port}")
        yield running


def test_a_question_to_the_table_would_show(function: ClaudeFunction) -> None:
    unknown = mint_api_key(KeyMode.LIVE, b"s" * 32)
    assert function.call("POST", "/v1/messages", b"{}", key=unknown).status == 503


def look_alike(dice: random.Random) -> str:
    return "tg_live_" + "".join(dice.choices(BASE62, k=36))


def junk_token(dice: random.Random) -> str:
    return ".".join("".join(dice.choices(BASE62, k=200)) for _ in range(3))


@pytest.mark.parametrize(
    "credential",
    [lambda _: "", lambda _: "x" * 100, look_alike, junk_token, lambda _: "x" * 9_000],
    ids=["none", "garbage", "key look-alikes", "junk tokens", "too long"],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/claude/stream", "/v1/messages/count_tokens"])
def test_the_data_plane_refuses_without_a_table_call(
    function: ClaudeFunction, path: str, credential: Callable[[random.Random], str]
) -> None:
    """Measured on the whole handler, log line and all; the best of three runs, because a machine has other work."""
    dice = random.Random(SEED)
    flood = [({"authorization": f"Bearer {text}"} if (text := credential(dice)) else {}) for _ in range(REQUESTS)]
    function.call("POST", path, function.message(), key=None)  # builds the container
    best_seconds = min(one_run(function, path, flood) for _ in range(3))
    assert not function.claude.exchanges
    assert best_seconds / REQUESTS < 0.001


def one_run(function: ClaudeFunction, path: str, flood: list[dict[str, str]]) -> float:
    """CPU seconds of all of them."""
    gc.collect()
    began = time.process_time()
    for headers in flood:
        assert function.call("POST", path, b"{}", key=None, headers=headers).status == 401
    return time.process_time() - began
