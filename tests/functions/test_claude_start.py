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
PROGRAM = """
import resource, sys
from pathlib import Path
import functions.claude.app as app
app.url.tools
print(*sorted(sys.modules), sep=",")
# Not ru_maxrss: it survives exec, and would tell the memory of the test run that started this.
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) * 1000), peak)
"""


def start() -> tuple[set[str], int, int]:
    """(modules, CPU milliseconds, KB of memory) of a process that has imported the function and built its tools."""
    path = f"{ROOT / 'layers/core'}:{ROOT / 'layers/stream_runtime'}:{ROOT}"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=SETTINGS | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    modules, figures = ran.stdout.strip().split("\n")
    milliseconds, kilobytes = figures.split()
    return set(modules.split(",")), int(milliseconds), int(kilobytes)


def test_it_starts_lean() -> None:
    modules, _, _ = start()
    assert "tollgate.flows.relay_message" in modules
    assert modules & TOO_SLOW == set()


def test_it_starts_within_its_budget() -> None:
    """0.30 s of CPU and 60 MB with byte code, which the first run here writes; the best of three, on a busy machine."""
    start()
    runs = [start() for _ in range(3)]
    assert min(milliseconds for _, milliseconds, _ in runs) <= 300
    assert min(kilobytes for _, _, kilobytes in runs) <= 60 * 1024


def test_importing_it_builds_nothing() -> None:
    """SnapStart and `sam local` import first and set the environment later."""
    path = f"{ROOT / 'layers/core'}:{ROOT / 'layers/stream_runtime'}:{ROOT}"
    program = "import functions.claude.app as app; assert 'tools' not in vars(app.url)"
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=True)
