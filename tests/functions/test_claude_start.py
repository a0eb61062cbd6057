"""What the claude function loads at its start: every import there is paid for in each cold start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "STAGE": "test",
    "TABLE_NAME": "t",
    "COGNITO_ISSUER": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Example",
    "COGNITO_CLIENT_IDS": "c",
    "KEY_PEPPER_PARAMETER": "/p",
    "UPSTREAM_API_KEY_PARAMETER": "/k",
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
}
# Clients and frameworks the data plane does without, each worth a tenth of a second or more.
TOO_SLOW = {
    "anthropic",
    "asyncio",
    "httpx",
    "moto",
    "pydantic",
    "pynamodb",
    "requests",
    "stripe",
    "aws_lambda_powertools.event_handler",
}
MODULES_AT_MOST = 560
"""The standard library of 3.11 to 3.13 included. CPU and memory are measured by `make bench`, not tested."""
PROGRAM = """
import sys
import functions.claude.app as app
app.url.tools
print(*sorted(sys.modules), sep=",")
"""


def loaded() -> set[str]:
    """The modules of a process that has imported the function and built its tools."""
    path = f"{ROOT / 'layers/core'}:{ROOT / 'layers/stream_runtime'}:{ROOT}"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=SETTINGS | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return set(ran.stdout.strip().split(","))


def test_it_starts_lean() -> None:
    modules = loaded()
    assert "tollgate.flows.relay_message" in modules
    assert modules & TOO_SLOW == set()
    assert len(modules) <= MODULES_AT_MOST


def test_importing_it_builds_nothing() -> None:
    """SnapStart and `sam local` import first and set the environment later."""
    path = f"{ROOT / 'layers/core'}:{ROOT / 'layers/stream_runtime'}:{ROOT}"
    program = "import functions.claude.app as app; assert 'tools' not in vars(app.url)"
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=True)
