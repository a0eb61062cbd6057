"""What the README tells to paste works: run as it stands there, against the running stack."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.stack import RunningStack

pytestmark = pytest.mark.stack

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TOUR = README.split("## In 30 seconds")[1].split("\n## ")[0]


SHOP = README.split("## Buy something")[1].split("\n## ")[0]


def block(language: str, containing: str, part: str = TOUR) -> str:
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL) if containing in text]
    return str(found)


@pytest.fixture(scope="module")
def pasted(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment after the README's own exports, with the stack's port in place of the usual one."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / ".dev").mkdir()
    shutil.copy(stack.base_dir / "stack.json", folder / ".dev" / "stack.json")
    exports = block("sh", "export").replace("http://127.0.0.1:8787", stack.gateway_url)
    ran = subprocess.run(
        ["sh", "-euc", f'{exports}\necho "$TOLLGATE_URL $TOLLGATE_KEY"'],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    url, key = ran.stdout.split()
    assert (url, key) == (stack.gateway_url, stack.demo_key)
    return {**os.environ, "TOLLGATE_URL": url, "TOLLGATE_KEY": key}


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
def test_the_curl_line_streams(pasted: dict[str, str]) -> None:
    ran = subprocess.run(
        ["sh", "-euc", block("sh", "curl")], env=pasted, capture_output=True, text=True, check=True, timeout=30
    )

    assert "event: message_start" in ran.stdout
    assert 'data: {"type":"message_stop"}' in ran.stdout


def test_the_python_lines_stream(pasted: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "hello.py"
    program.write_text(block("python", "Anthropic"), encoding="utf-8")

    ran = subprocess.run([sys.executable, program], env=pasted, capture_output=True, text=True, check=True, timeout=30)

    assert len(ran.stdout.split()) > 1
    assert ran.stderr == ""


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
def test_the_billing_lines_open_a_checkout(pasted: dict[str, str], stack: RunningStack) -> None:
    limit = time.monotonic() + 60
    while not stack.billing()["open"] and time.monotonic() < limit:
        time.sleep(0.2)

    ran = subprocess.run(
        ["sh", "-euc", block("sh", "checkout", SHOP)],
        env=pasted,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    decoder = json.JSONDecoder()
    opened, end = decoder.raw_decode(ran.stdout)
    status, _ = decoder.raw_decode(ran.stdout[end:].lstrip())
    assert opened["url"].startswith(f"{stack.description['fake_stripe_url']}/checkout/")
    assert status["checkout"]["url"] == opened["url"]
    assert status["plan"]["id"] == "free"
