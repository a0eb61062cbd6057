"""`python -m dev` as a whole: it starts, streams a metered answer, keeps its state, and leaves nothing behind."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.stack import ROOT, RunningStack, launch_stack, running_stack, wait_for_stack

pytestmark = pytest.mark.stack

MODEL = "claude-haiku-5-5"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("stack"), script="pace_ms=2") as running:
        yield running


def ask(stack: RunningStack, key: str, text: str = "Hello", **more: object) -> list[bytes]:
    """One streamed message; its parts as they came."""
    body = {"model": MODEL, "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": text}], **more}
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
    request = urllib.request.Request(f"{stack.gateway_url}/v1/messages", json.dumps(body).encode(), headers)
    parts = []
    with urllib.request.urlopen(request, timeout=20) as response:
        while part := response.read1():
            parts.append(part)
    return parts


def get(stack: RunningStack, path: str, token: str | None = None) -> tuple[int, Any]:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    request = urllib.request.Request(stack.gateway_url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def all_gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_the_description_has_what_the_design_promises(stack: RunningStack) -> None:
    assert set(stack.description) == {
        "pid", "gateway_url", "demo", "near_quota", "cognito", "dynamodb", "fake_claude_url", "fake_stripe_url",
    }  # fmt: skip
    assert stack.description["pid"] == stack.process.pid
    assert set(stack.description["demo"]) == {"email", "password", "api_key"}
    assert set(stack.description["cognito"]) == {"issuer", "jwks_url", "client_id"}


def test_the_demo_key_streams_what_upstream_sent_and_is_metered(stack: RunningStack) -> None:
    parts = ask(stack, stack.demo_key)
    assert len(parts) > 5
    body = b"".join(parts)
    assert body == stack.sent_by_claude(stack.exchanges()[-1]["request_id"])
    assert body.endswith(b'data: {"type":"message_stop"}\n\n')
    assert line_about(stack, "POST /v1/messages", "demo", "in 9 out")


def line_about(stack: RunningStack, *words: str) -> bool:
    """Whether a line of the request log with all these words comes."""
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        if any(all(word in line for word in words) for line in stack.output().splitlines()):
            return True
        time.sleep(0.05)
    return False


def test_the_upstream_key_and_not_the_callers_goes_up(stack: RunningStack) -> None:
    ask(stack, stack.demo_key)
    headers = json.dumps(stack.exchanges()[-1]["headers"])
    assert stack.upstream_key in headers
    assert stack.demo_key not in headers


def test_the_near_quota_user_has_little_left(stack: RunningStack) -> None:
    status, usage = get(stack, "/usage/current", stack.access_token("near_quota"))
    assert status == 200
    assert "99400" in json.dumps(usage) or "99,400" in json.dumps(usage)
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(stack, stack.near_quota_key, "word " * 1000)
    with caught.value as refused:
        assert (refused.code, json.loads(refused.read())["error"]["type"]) == (429, "billing_error")
        assert refused.headers["x-should-retry"] == "false"


def test_the_password_signs_in_and_the_token_opens_the_api(stack: RunningStack) -> None:
    status, me = get(stack, "/auth/me", stack.access_token())
    assert status == 200
    assert me["user"]["email"] == "demo@example.com"
    assert get(stack, "/auth/me")[0] == 401


def raw(stack: RunningStack, path: str) -> tuple[str, str, str]:
    """(content type, content security policy, text) of a page."""
    with urllib.request.urlopen(stack.gateway_url + path, timeout=20) as response:
        headers = response.headers
        return headers["content-type"], headers["content-security-policy"], response.read().decode()


@pytest.mark.parametrize("path", ["/docs", "/_dev/mail", "/_dev/billing", "/_dev/notices"])
def test_a_page_brings_all_it_needs_and_may_ask_nobody_else(stack: RunningStack, path: str) -> None:
    kind, policy, text = raw(stack, path)
    assert kind.startswith("text/html")
    assert policy.startswith("default-src 'none'")
    assert "connect-src 'self'" in policy
    assert "http://" not in text
    assert "https://" not in text


def test_the_api_description_is_served_as_from_here(stack: RunningStack) -> None:
    kind, _, text = raw(stack, "/openapi.json")
    written = json.loads((ROOT / "docs" / "openapi.json").read_text())
    served = json.loads(text)
    assert kind == "application/json"
    assert served["paths"] == written["paths"]
    assert [server["url"] for server in served["servers"]] == ["/"]


def test_a_code_is_mailed_and_printed_and_tokens_carry_the_plan(stack: RunningStack) -> None:
    """By way of the stack's own front of Cognito, with the function that the pool calls."""
    email, password = "new@example.com", "analytical-Engine-1843"
    assert post(stack, "/auth/register", {"email": email, "password": password}) == 202
    [mail] = stack.mails(email)
    assert line_about(stack, "MAIL", email, mail["code"], "/_dev/mail")
    form = {"email": email, "password": password}
    assert post(stack, "/auth/confirm", form | {"code": f"{(int(mail['code']) + 1) % 1_000_000:06}"}) == 400
    assert post(stack, "/auth/confirm", form | {"code": mail["code"]}) == 200
    token = stack.access_token().split(".")[1]
    assert json.loads(base64.urlsafe_b64decode(token + "=="))["plan"] == "pro"


def post(stack: RunningStack, path: str, body: object) -> int:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(stack.gateway_url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_recycling_replaces_every_process(stack: RunningStack) -> None:
    ask(stack, stack.demo_key)
    before = stack.function_processes("claude", "idle")
    stack.recycle()
    ask(stack, stack.demo_key)
    assert before
    assert not set(before) & set(stack.function_processes("claude"))


def test_the_banner_shows_links_keys_and_lines_to_paste(stack: RunningStack) -> None:
    printed = stack.output()
    for words in (
        stack.gateway_url,
        "API docs  ",
        "Mailbox  ",
        "Billing  ",
        "Stripe  ",
        stack.demo_key,
        stack.near_quota_key,
        "curl -N ",
        "Python ",
        "Claude Code ",
    ):
        assert words in printed


def test_the_pasted_line_streams(stack: RunningStack) -> None:
    printed = stack.output()
    line = printed[printed.index("curl -N ") : printed.index("   Python ")]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=20, check=True)
    assert "event: message_stop" in done.stdout


def test_the_scheduled_function_runs_when_asked(stack: RunningStack) -> None:
    runs = stack.run_schedules()
    assert not [run for run in runs if "error" in run]
    assert line_about(stack, "SCHEDULE usage_reset")


def test_a_passed_threshold_reaches_operator_and_user(stack: RunningStack) -> None:
    stack.reset()
    ask(stack, stack.near_quota_key)
    assert stack.deliver_notices() == {"delivered": 2, "put_off": 0, "dead": 0, "untried": 0, "complete": True}
    rows = get(stack, "/_dev/notices.json")[1]["data"]
    told = {row["notice"]["data"]["threshold_percent"] for row in rows if row["kind"] == "webhook"}
    [mail] = [row for row in rows if row["kind"] == "mail"]
    assert told == {75, 90}
    assert (mail["to"], mail["from"]) == ("nearly@example.com", "no-reply@example.com")
    assert mail["subject"] == "You have used 99 % of the tokens of your Free plan"
    assert line_about(stack, "NOTICE", "nearly@example.com", "/_dev/notices")
    stack.reset()
    assert get(stack, "/_dev/notices.json")[1]["data"] == []


def test_a_reset_brings_the_demo_data_back_with_the_same_keys(stack: RunningStack) -> None:
    ask(stack, stack.demo_key)
    stack.reset()
    _, usage = get(stack, "/usage/current", stack.access_token("near_quota"))
    assert "99400" in json.dumps(usage)
    ask(stack, stack.demo_key)


def test_a_second_start_in_the_same_folder_says_who_is_there(stack: RunningStack) -> None:
    done = start_again(stack.base_dir, "--port", "0")
    assert done.returncode == 1
    assert f"runs at {stack.gateway_url} (pid {stack.process.pid})" in done.stdout


def test_a_port_held_by_another_stack_is_explained(stack: RunningStack, tmp_path: Path) -> None:
    done = start_again(tmp_path, "--port", stack.gateway_url.rsplit(":", 1)[1])
    assert done.returncode == 1
    assert "taken by the stack of another checkout" in done.stdout
    assert "PORT=0" in done.stdout


def test_a_port_held_by_another_program_is_explained(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = start_again(tmp_path, "--port", str(other.getsockname()[1]))
    assert done.returncode == 1
    assert "lsof -i :" in done.stdout


@pytest.mark.parametrize("port", ["abc", "70000", "-1"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    done = start_again(tmp_path, f"--port={port}")
    assert done.returncode == 1
    assert f"PORT={port} is no port" in done.stdout


def test_the_gateway_is_never_its_own_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pasted the Claude Code line with `export` has this variable set in the next terminal command, too."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:8799")
    done = start_again(tmp_path, "--port", "8799")
    assert done.returncode == 1
    assert "is this gateway itself" in done.stdout


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sk_live_4242", "is for the live account"),
        ("rk_live_4242", "is for the live account"),
        ("pk_test_1", "sk_test_"),
    ],
)
def test_only_test_keys_of_stripe_are_taken_and_none_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, words: str
) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", key)
    done = start_again(tmp_path, "--port", "0")
    assert done.returncode == 1
    assert words in done.stdout
    assert key not in done.stdout


def start_again(base_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dev", "--state-dir", str(base_dir), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_sigterm_leaves_nothing_running_and_a_restart_knows_the_key(tmp_path: Path) -> None:
    with running_stack(tmp_path) as first:
        ask(first, first.demo_key)
        everybody = family(first.process.pid)
        assert len(everybody) >= 4
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(10) == 0
        assert all_gone(everybody, 1)
        assert not (tmp_path / "stack.json").exists()
    with running_stack(tmp_path) as second:
        assert second.demo_key == first.demo_key
        assert second.description["cognito"]["issuer"] == first.description["cognito"]["issuer"]
        _, usage = get(second, "/usage/current", second.access_token())
        assert '"remaining": 2000000' not in json.dumps(usage)
        ask(second, second.demo_key)


def test_a_killed_stack_leaves_nothing_running(tmp_path: Path) -> None:
    process = launch_stack(tmp_path)
    wait_for_stack(process, tmp_path)
    everybody = family(process.pid)
    process.kill()
    process.wait()
    assert all_gone(everybody[1:], 8)


def test_an_interrupt_while_it_starts_leaves_nothing_running(tmp_path: Path) -> None:
    process = launch_stack(tmp_path)
    limit = time.monotonic() + 20
    while len(everybody := family(process.pid)) < 4 and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    assert all_gone(everybody, 1)


def test_another_upstream_is_used_when_one_is_given(tmp_path: Path, stack: RunningStack) -> None:
    """ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY point the gateway elsewhere; here at the other stack's fake Claude."""
    upstream = {"ANTHROPIC_BASE_URL": stack.fake_claude_url, "ANTHROPIC_API_KEY": stack.upstream_key}
    with running_stack(tmp_path, environment=upstream) as other:
        assert other.description["fake_claude_url"] is None
        before = len(stack.exchanges())
        ask(other, other.demo_key)
        assert len(stack.exchanges()) == before + 1


def test_single_keys_work_on_a_terminal(tmp_path: Path) -> None:
    on_a_terminal = [sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))"]
    process = launch_stack(tmp_path, before=on_a_terminal, stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        description = wait_for_stack(process, tmp_path)
        stack = RunningStack(process, tmp_path, description, 0.0)
        everybody = family(description["pid"])
        for key, words in ((b"m", "SCHEDULE usage_reset"), (b"r", "data reset"), (b"q", "nothing is left running")):
            process.stdin.write(key)
            process.stdin.flush()
            assert line_about(stack, words)
        assert all_gone(everybody, 5)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
