"""The prompt, the caller and our own keys through the routes of Claude, with errors that quote all they were sent.

test_canaries.py does the same for every other route, and tests/stack/test_canary.py for odd requests through sockets.
"""

from __future__ import annotations

import io
from typing import Any

import pytest

from tests.support.claude_function import MODEL, PEPPER, UPSTREAM_KEY, ClaudeFunction, claude_function
from tests.support.dependencies import DEAD, dependency, to_moto, to_server
from tests.support.everything_written import everything_written

PROMPT = "canary-prompt"
SAID = [{"role": "user", "content": PROMPT}]
CALLS: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("POST", "/v1/messages", {"model": MODEL, "max_tokens": 64, "stream": True, "messages": SAID}),
    ("POST", "/v1/messages", {"model": MODEL, "max_tokens": 64, "messages": SAID}),
    ("POST", "/v1/messages", {"model": MODEL, "max_tokens": PROMPT, "messages": SAID}),
    ("POST", "/v1/messages", {"model": "no-such-model", "max_tokens": 64, "messages": SAID}),
    ("POST", "/claude/stream", {"messages": SAID, "system": PROMPT}),
    ("POST", "/claude/stream", {"messages": SAID, "surprise": PROMPT}),
    ("POST", "/v1/messages/count_tokens", {"model": MODEL, "messages": SAID}),
    ("GET", "/v1/models", None),
    ("GET", f"/v1/models/{MODEL}", None),
    ("GET", "/v1/key", None),
    ("GET", "/v1/nothing", None),
)
OUR_FAULT = (401, 402, 403, 429, 500, 503, DEAD)
"""Upstream's words about these concern us; those about the caller's own request are the caller's."""


def ask_claude(function: ClaudeFunction, written: io.StringIO) -> tuple[list[str], str]:
    """(answers that are no success, everything written)."""
    refused = []
    with everything_written(written):
        for number, (method, path, body) in enumerate(CALLS):
            headers = {"idempotency-key": f"canary-idempotency-{number}", "x-user-id": "canary-identity"}
            for key in ("", f"{function.key[:-6]}zzzzzz"):
                answer = function.call(
                    method, path, body or b"", key=key, headers=headers, query="api_key=canary-query"
                )
                if answer.status != 200:
                    refused.append(f"{method} {path} -> {answer.status} {answer.headers} {answer.body.decode()}")
    return refused, written.getvalue()


@pytest.mark.parametrize("failing", ["nothing", "table", *(f"claude {status}" for status in OUR_FAULT)])
def test_no_call_tells_or_writes_our_key_the_prompt_or_who_calls(failing: str) -> None:
    with pytest.MonkeyPatch.context() as patch, dependency(to_moto) as table:
        patch.setenv("AWS_ENDPOINT_URL_DYNAMODB", table.url)
        patch.setenv("POWERTOOLS_LOG_LEVEL", "DEBUG")
        with claude_function(patch) as function, dependency(to_server(function.claude.url)) as claude:
            patch.setenv("UPSTREAM_BASE_URL", claude.url)
            table.status = 500 if failing == "table" else None
            claude.status = int(failing.split()[1]) if failing.startswith("claude") else None
            refused, written = ask_claude(function, io.StringIO())
        secrets = {PROMPT, UPSTREAM_KEY, PEPPER, function.key, "canary-", "TENANT#main#", "Traceback"}
    assert refused
    assert "request_" in written
    if claude.status:
        assert any(UPSTREAM_KEY in text and PROMPT in text for text in claude.quoted), "or else nothing was tried"
    for text in (*refused, written):
        assert [secret for secret in secrets if secret in text] == [], text
