"""Stripe for the local stack: the double beside it, or Stripe itself in test mode, and the plans that it sells.

Functions learn only an address and a secret, as they would of the real one. Plans are brought to the double by the
product's own `tollgate plans sync`. All of that begins when the stack is ready, so that nobody waits for it. To an
account at Stripe nothing is written unasked.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dev.engines import ROOT, Engine, StripeSecrets, start_stripe_double, stripe_listener
from dev.processes import Processes
from dev.provision import Remembered
from dev.seed import PASSWORD, DemoUser
from tollgate.catalog.loader import Catalog

TEST_PREFIXES: Final = ("sk_test_", "rk_test_")
ACCOUNT: Final = "acct_tollgatelocal"
START_SECONDS: Final = 60.0
"""The first start reads the whole stripe package to know what Stripe takes."""
ADVANCE_SECONDS: Final = 120.0
WEBHOOK_PATH: Final = "/stripe/webhook"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StripeChoice:
    """Stripe's own test mode instead of the double."""

    key: str
    webhook_secret: str | None
    """As `stripe listen` prints it."""


class LocalStripe:
    """What stands for Stripe in one stack."""

    def __init__(
        self,
        choice: StripeChoice | None,
        remembered: Remembered,
        *,
        gateway_url: str,
        state_dir: Path,
        log_dir: Path,
        say: Callable[[str], None],
        clock_file: Path | None = None,
    ) -> None:
        """`say`: tells the developer what happened after the start. `clock_file`: where the double tells its clock."""
        self._choice = choice
        self._remembered = remembered
        self._gateway_url = gateway_url
        self._state_dir = state_dir
        self._log_dir = log_dir
        self._say = say
        self._clock_file = clock_file
        self._opening = threading.Lock()
        self._failure = ""
        self._open = choice is not None
        self._listener = stripe_listener() if choice is None else None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}" if self._listener else None
        """Of the double; connections wait there until it has started."""

    @property
    def secrets(self) -> StripeSecrets:
        own = self._remembered.fake_stripe_webhook_secret
        if self._choice is None:
            return StripeSecrets(self._remembered.fake_stripe_key, own, ACCOUNT)
        return StripeSecrets(self._choice.key, self._choice.webhook_secret or own, "")

    def start(self, processes: Processes) -> Engine | None:
        """Starts the double, without waiting until it answers."""
        if self._listener is None:
            return None
        listener, self._listener = self._listener, None
        return start_stripe_double(
            processes,
            listener,
            self.secrets,
            self._gateway_url + WEBHOOK_PATH,
            self._state_dir,
            self._log_dir,
            self._clock_file,
        )

    def close(self) -> None:
        """Lets go of the address where no double was started."""
        if self._listener is not None:
            self._listener.close()

    def describe(self) -> str:
        """One line for the banner."""
        if self._choice is None:
            return "built-in double, Checkout and webhooks answer   (real: export STRIPE_SECRET_KEY=sk_test_…)"
        if self._choice.webhook_secret is None:
            return "test mode, webhooks come when STRIPE_WEBHOOK_SECRET is set   (how: dev/README.md, Billing)"
        return f"test mode   (stripe listen --forward-to {self._gateway_url}{WEBHOOK_PATH})"

    def overrides(self) -> dict[str, str]:
        """What the functions' environment says of Stripe; another one than the double has its usual address."""
        origins = (self._gateway_url, self._gateway_url.replace("127.0.0.1", "localhost"))
        returns = ",".join(f"{origin}/_dev/" for origin in origins)
        return {"STRIPE_API_BASE_URL": self.url or "", "BILLING_RETURN_URLS": returns}

    def close_shop(self) -> None:
        """Nothing can be bought until `open_shop`."""
        self._open = self._choice is not None

    def open_shop(
        self, catalog: Catalog, catalog_name: str, save: Callable[[], None], *, emptied: bool = False
    ) -> None:
        """Waits for the double and brings it the plans, if it has not got them. Says what went wrong.

        `emptied`: forgets first whatever was sold.
        """
        if self._choice is not None:
            return
        with self._opening:
            digest = hashlib.sha256(repr(catalog).encode()).hexdigest()
            try:
                self._wait()
                if emptied:
                    self._steer("POST", "reset", {})
                if self._remembered.synced_plans != digest or not self._has_prices():
                    self._sync(catalog_name)
                    self._remembered.synced_plans = digest
                    save()
                    self._say(f"BILLING plans are for sale: {self._gateway_url}/_dev/billing")
                self._failure, self._open = "", True
            except (OSError, ValueError) as error:
                self._failure = str(error)
                self._say(f"nothing can be bought: {error}")

    def advance(self, seconds: int) -> Json:
        """Moves the double's clock; returns when what was due has happened and was told."""
        return self._steer("POST", "advance", {"seconds": seconds}, seconds=ADVANCE_SECONDS)

    def document(self, users: Sequence[DemoUser], model: str) -> Json:
        """What the billing page has to know before anybody has signed in."""
        clock = None
        if self.url is not None and self._open:
            with suppress(OSError):
                clock = self._steer("GET", "clock")
        return {
            "stripe_url": self.url,
            "open": self._open,
            "failure": self._failure,
            "clock": clock,
            "model": model,
            "users": [{"email": user.email, "password": PASSWORD, "api_key": user.api_key} for user in users],
        }

    def _wait(self) -> None:
        """Its connections wait until it has started, so this is one question."""
        self._steer("GET", "clock", seconds=START_SECONDS)

    def _has_prices(self) -> bool:
        headers = {"authorization": f"Bearer {self.secrets.key}"}
        request = urllib.request.Request(f"{self.url}/v1/prices?limit=1&active=true", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return bool(json.loads(response.read())["data"])

    def _sync(self, catalog_name: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tollgate_cli", "plans", "sync", "--yes", "--json", "--catalog", catalog_name],
            cwd=ROOT,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": os.pathsep.join([str(ROOT / "layers" / "core"), str(ROOT)]),
                "STRIPE_SECRET_KEY": self.secrets.key,
                "STRIPE_API_BASE_URL": self.url or "",
            },
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        (self._log_dir / "plans-sync.log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
            raise ValueError(f"`tollgate plans sync` says: {last[-1]} (more in {self._log_dir}/plans-sync.log)")

    def _steer(self, method: str, name: str, body: Json | None = None, *, seconds: float = 10.0) -> Json:
        data = None if body is None else json.dumps(body).encode()
        headers = {"x-tollgate-dev": "1", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/_double/{name}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=seconds) as response:
            answer: Json = json.loads(response.read())
        return answer
