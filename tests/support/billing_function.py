"""functions/billing on a table of moto, with Stripe's double behind it and plans that the product itself has synced."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import botocore.session
import pytest

from dev.stripe_double.contract import Contract, installed_contract
from dev.stripe_double.world import StripeWorld
from tests.support.http_events import claims_of, http_event
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, REGION, CountedTable, moto_table
from tests.support.stripe_wire import StripeWire, stripe_wire
from tests.support.user_pool import CLIENT_ID, ISSUER
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.domain.ledger import Ask, Settlement
from tollgate.domain.principals import Account, CredentialKind, Principal
from tollgate.domain.subscriptions import Subscriber
from tollgate.flows.ledger import Ledger, account_key
from tollgate.flows.sync_plans import PlansSync
from tollgate.providers.stripe_admin import StripeAdmin

if TYPE_CHECKING:
    from types_boto3_ssm.client import SSMClient

SECRET_KEY = "sk_test_of_the_tests"
RETURN_URL = "https://app.example.com/billing"
ENVIRONMENT = {
    "STAGE": "test",
    "TABLE_NAME": NAME,
    "COGNITO_ISSUER": ISSUER,
    "COGNITO_CLIENT_IDS": CLIENT_ID,
    "KEY_PEPPER_PARAMETER": "/tollgate/test/key-pepper",
    "STRIPE_SECRET_KEY_PARAMETER": "/tollgate/test/stripe-secret-key",
    "BILLING_RETURN_URLS": f"{RETURN_URL},http://localhost:3000",
}
PLANS = """
default_plan = "free"

[billing]
promotion_codes = true
grace_days = 7

[plans.free]
name = "Free"
price_cents = 0
quota_kind = "hard"
quota_tokens = 100000
models = ["claude-haiku-5-5"]
max_open_reservations = 8
expiry_policy = "strict"
period_kind = "calendar_month"
upgrade_message = "Upgrade at app.example.com."

[plans.pro]
name = "Pro"
price_cents = 2900
annual_price_cents = 29000
trial_days = 14
trial_quota_tokens = 200000
quota_kind = "soft"
quota_tokens = 2000000
overage_cap_tokens = 1000000
overage_price_microusd_per_1k_tokens = 20000
overage_opt_in = true
issue_first_key = true
models = "all"
max_open_reservations = 8
expiry_policy = "strict"
period_kind = "anchored_month"

[plans.team]
name = "Team"
price_cents = 9900
annual_price_cents = 99000
quota_kind = "soft"
quota_tokens = 10000000
overage_cap_tokens = 5000000
overage_price_microusd_per_1k_tokens = 15000
overage_opt_in = true
models = "all"
max_open_reservations = 8
expiry_policy = "strict"
period_kind = "anchored_month"

[plans.gift]
name = "Gift"
price_cents = 0
quota_kind = "hard"
quota_tokens = 500000
models = "all"
max_open_reservations = 8
expiry_policy = "strict"
period_kind = "anchored_month"
"""
"""Pro is sold with a trial, by the month or the year; Team without one; Gift is given by the operator."""

CONTEXT = LambdaContext()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    raw: str

    @property
    def code(self) -> str:
        code: str = self.body["error"]["details"]["error_code"]
        return code


@cache
def contract() -> Contract:
    """Derived once for all tests of a process: it takes two seconds."""
    return installed_contract(None)


class BillingFunction:
    """One container of the function, the world behind it, and what people do in between."""

    def __init__(self, table: CountedTable, wire: StripeWire, catalog: Catalog, number: int = 0) -> None:
        self.table = table
        self.wire = wire
        self.world = wire.world
        self.catalog = catalog
        self.ada, self.eve = f"ada-{number}", f"eve-{number}"
        """Two users; who is not named is Ada."""

    def of_new_users(self, number: int) -> BillingFunction:
        """The same container and the same Stripe, for two users whom nobody knows yet."""
        self.wire.asked.clear()
        self.table.calls.clear()
        return BillingFunction(self.table, self.wire, self.catalog, number)

    @property
    def app(self) -> Any:  # noqa: ANN401  the function's module
        return importlib.import_module("functions.billing.app")

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str | None = "",
        query: dict[str, str] | None = None,
        context: LambdaContext = CONTEXT,
    ) -> Answer:
        changes: dict[str, Any] = {} if body is None else {"body": json.dumps(body)}
        if query:
            changes["queryStringParameters"] = query
            changes["rawQueryString"] = "&".join(f"{name}={value}" for name, value in query.items())
        event = http_event(method, path, None if user is None else claims_of(user or self.ada), **changes)
        event["headers"]["content-type"] = "application/json"
        answer = self.app.handler(event, context)
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        raw = answer.get("body") or ""
        return Answer(answer["statusCode"], headers, json.loads(raw) if raw else None, raw)

    def status(self, user: str = "") -> Any:  # noqa: ANN401  any JSON
        answer = self.ask("GET", "/billing/status", user=user)
        assert answer.status == 200, answer.raw
        return answer.body

    def order(self, plan: str = "pro", interval: str = "month", *, user: str = "", **fields: str) -> Answer:
        form = {"plan": plan, "interval": interval, "success_url": f"{RETURN_URL}/done", "cancel_url": RETURN_URL}
        return self.ask("POST", "/billing/checkout", form | fields, user=user)

    def checkout(self, plan: str = "pro", interval: str = "month", *, user: str = "", **fields: str) -> str:
        """The id of a checkout that can be paid."""
        answer = self.order(plan, interval, user=user, **fields)
        assert answer.status == 201, answer.raw
        session_id: str = answer.body["id"]
        return session_id

    def subscribe(self, plan: str = "team", interval: str = "month", *, user: str = "") -> Any:  # noqa: ANN401
        """The status of a user who has bought the plan."""
        self.world.complete_checkout(self.checkout(plan, interval, user=user))
        return self.status(user)

    def change(self, plan: str, interval: str | None = None, *, preview: bool = False, user: str = "") -> Answer:
        form = {"plan": plan, "preview": preview} | ({} if interval is None else {"interval": interval})
        return self.ask("POST", "/billing/change-plan", form, user=user)

    def cancel_in_portal(self, user: str = "") -> None:
        """As the user clicks it there."""
        assert self.ask("POST", "/billing/portal", {"return_url": RETURN_URL}, user=user).status == 201
        [subscription] = self.subscriptions_alive(user)
        visits = [one["id"] for one in self.of_customer("billing_portal.session", user)]
        self.world.portal.cancel(visits[-1], subscription["id"])

    def sync(self, user: str = "") -> Any:  # noqa: ANN401
        """What a webhook would lead to; the status then."""
        self.app.api.tools.plans._sync.sync("main", user or self.ada)
        return self.status(user)

    def pass_time(self, span: timedelta) -> None:
        """At Stripe; the function's own clock is the real one."""
        self.world.advance(self.world.now + span)

    def use(self, tokens: int) -> None:
        """One call of so many billable tokens, as the claude function books it."""
        account, ledger = self.account(), self.app.api.tools.ledger
        spend(account, ledger, tokens)

    def account(self, user: str = "") -> Any:  # noqa: ANN401
        principal = Principal("main", user or self.ada, CredentialKind.ACCESS_TOKEN, CLIENT_ID)
        return self.app.api.tools.accounts.find(principal, fresh=True)

    def subscriber(self, user: str = "") -> Subscriber:
        found: Subscriber = self.app.api.tools.subscriptions.find("main", user or self.ada)
        return found

    def of_customer(self, kind: str, user: str = "") -> list[Any]:
        """Stripe's objects of the user's customer, by Stripe's own list."""
        customers = [one["id"] for one in self.world.all("customer") if self._is_of(one, user or self.ada)]
        return [one for one in self.world.all(kind) if one["customer"] in customers]

    @staticmethod
    def _is_of(customer: Any, user: str) -> bool:  # noqa: ANN401
        return bool(customer["metadata"].get("tollgate_user") == user)

    def subscriptions_alive(self, user: str = "") -> list[Any]:
        """All that the user pays for, by Stripe's word."""
        over = ("canceled", "incomplete_expired")
        return [one for one in self.of_customer("subscription", user) if one["status"] not in over]

    def api(self) -> Any:  # noqa: ANN401  Stripe's own client
        """For what the seller does in Stripe's dashboard."""
        return self.app.api.tools.stripe._stripe.client()


def stripe_world(behind: timedelta = timedelta(0)) -> StripeWorld:
    """Now, in test mode; or some time ago, for what has to have begun before our own now."""
    now = datetime.now(UTC).replace(microsecond=0) - behind
    return StripeWorld(now=now, seed=1, webhook_secret="whsec_1", account_id="acct_1", contract=contract())


def sync_plans(wire: StripeWire, catalog: Catalog) -> None:
    """As `tollgate plans sync` does."""
    admin = StripeAdmin(lambda: SECRET_KEY, base_url=wire.url)
    PlansSync(catalog, admin).run(hand_over=lambda _: None, done=lambda _: None)


def spend(account: Account, ledger: Ledger, tokens: int) -> None:
    """Reserves and settles a call in the account's running period."""
    now = datetime.now(UTC)
    ask = Ask(tokens, 0, 1000, may_clamp=False, deadline_at_seconds=now.timestamp() + 60)
    grant = ledger.reserve(account, account_key(account, now), ask)
    ledger.settle(grant, Settlement(tokens))


@contextmanager
def billing_function(
    folder: Path, *, behind: timedelta = timedelta(0), **environment: str
) -> Iterator[BillingFunction]:
    """Nobody has an account yet; plans are for sale. `folder`: for the catalog. `behind`: Stripe's clock."""
    (folder / "plans.toml").write_text(PLANS)
    catalog = load_catalog(str(folder))
    with (
        pytest.MonkeyPatch.context() as patch,
        moto_table(patch) as table,
        stripe_wire(stripe_world(behind)) as wire,
    ):
        patch.setattr("time.sleep", lambda seconds: None)  # between two tries of Stripe's own client
        settings = ENVIRONMENT | {"CATALOG": str(folder), "STRIPE_API_BASE_URL": wire.url} | environment
        for name, value in settings.items():
            patch.setenv(name, value)
        ssm = cast("SSMClient", botocore.session.get_session().create_client("ssm", region_name=REGION))
        for name, value in (("KEY_PEPPER_PARAMETER", "pepper"), ("STRIPE_SECRET_KEY_PARAMETER", SECRET_KEY)):
            ssm.put_parameter(Name=settings[name], Value=value, Type="SecureString")
        ssm.close()
        sync_plans(wire, catalog)
        wire.asked.clear()
        patch.delitem(sys.modules, "functions.billing.app", raising=False)
        yield BillingFunction(table, wire, catalog)
        sys.modules.pop("functions.billing.app", None)
        assert not wire.world.refused, f"Stripe would have refused {wire.world.refused}"
