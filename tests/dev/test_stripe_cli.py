"""Stripe's own command sends its fixtures to the double, which answers and tells the events that they stand for.

Skipped where the command is not installed (`npm install --prefix .dev/stripe-cli @stripe/cli`, as `make` does).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / ".dev/stripe-cli/node_modules/.bin/stripe"
COMMAND = str(INSTALLED) if INSTALLED.exists() else shutil.which("stripe")
KEY = "sk_test_" + 24 * "0"
SECONDS = 60

needs_command = pytest.mark.skipif(
    COMMAND is None, reason="Stripe's command is not installed: npm install --prefix .dev/stripe-cli @stripe/cli"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a double in a process of its own."""
    command = [sys.executable, "-m", "dev.stripe_double", "--until-stdin-closes"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def trigger(event: str, address: str, home: Path) -> subprocess.CompletedProcess[str]:
    assert COMMAND is not None
    # Nothing of the developer's own configuration or account, and no word to Stripe about it.
    environ = {
        "HOME": str(home),
        "PATH": str(Path(shutil.which("node") or sys.executable).parent),
        "STRIPE_CLI_TELEMETRY_OPTOUT": "1",
        "XDG_CONFIG_HOME": str(home),
    }
    command = [COMMAND, "trigger", event, "--api-base", address, "--api-key", KEY]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)


def told(address: str) -> Counter[str]:
    request = urllib.request.Request(f"{address}/v1/events?limit=100", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return Counter(event["type"] for event in json.load(answer)["data"])


@needs_command
@pytest.mark.parametrize(
    "event",
    [
        "customer.created",
        "customer.deleted",
        "customer.subscription.created",
        "customer.subscription.deleted",
        "customer.subscription.updated",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.voided",
        "payment_method.attached",
        "price.created",
        "product.created",
    ],
)
def test_a_trigger_makes_its_event(event: str, address: str, tmp_path: Path) -> None:
    before = told(address)[event]
    done = trigger(event, address, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(address)[event] > before


@needs_command
@pytest.mark.parametrize(
    ("event", "says"),
    [
        ("charge.refunded", "unknown parameter: payment_method_types"),
        ("promotion_code.created", "unknown parameter: coupon"),
        ("subscription_schedule.created", "unknown parameter: phases[0][iterations]"),
    ],
)
def test_a_fixture_that_is_older_than_the_version_is_refused(
    event: str, says: str, address: str, tmp_path: Path
) -> None:
    """The command's own fixtures still send what 2026-10-28.endive has not got."""
    done = trigger(event, address, tmp_path)
    assert says in done.stdout + done.stderr
    assert told(address)[event] == 0
