"""Every events/<function>-<case>.json through the real handler: what is pasted into `sam local invoke` works.

The function gets the template's own environment, a table made from the template, and no right that its role lacks.
"""

from __future__ import annotations

import gc
import hashlib
import hmac
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import botocore.handlers
import pytest
from moto import mock_aws

from dev.fake_claude import FakeClaude
from tests.support.billing_function import RETURN_URL, SECRET_KEY, stripe_world, sync_plans
from tests.support.fake_cognito import FakeCognito
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import aws_session, read_descriptions_once
from tests.support.sam import ROOT, environment_of, functions_of, load_template, rights_of, role_of, table_definition
from tests.support.stripe_wire import StripeWire, stripe_wire
from tollgate.catalog.loader import load_catalog
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.table import Table, hot_path_client

if TYPE_CHECKING:
    from types_boto3_ssm.client import SSMClient

TEMPLATE = load_template()
EVENTS = sorted((ROOT / "events").glob("*.json"))
API_KEY_PLACEHOLDER = "{{api_key}}"
SIGNATURE_PLACEHOLDER = "{{stripe_signature}}"
PEPPER = "not-so-secret-pepper-of-a-test"
SIGNING_SECRET = "whsec_test"


@dataclass(frozen=True, slots=True)
class Case:
    """The answer an event must get."""

    status: int
    error_code: str | None = None
    has: tuple[str, ...] = ()
    """Pieces of the body."""


CASES = {
    "api_keys-create": Case(201, has=('"key":"tg_live_', '"budget_tokens":50000')),
    "api_keys-create-invalid": Case(400, "invalid_field"),
    "api_keys-create-no-authorizer": Case(401, "invalid_credentials"),
    "api_keys-get": Case(200, has=('"id":"key_1"', '"state":"active"')),
    "api_keys-get-unknown": Case(404, "not_found"),
    "api_keys-list": Case(200, has=('"id":"key_1"', '"has_more":false')),
    "api_keys-rename": Case(200, has=('"name":"desktopapp"',)),
    "api_keys-report": Case(202, has=('"received"',)),
    "api_keys-revoke": Case(204),
    "api_keys-rotate": Case(200, has=('"key":"tg_live_', '"state":"replaced"')),
    "auth-confirm": Case(200, has=('"confirmed"',)),
    "auth-confirm-wrong-code": Case(400, "invalid_code"),
    "auth-delete-me": Case(204),
    "auth-health": Case(200, has=('"ok"',)),
    "auth-login": Case(200, has=('"access_token"', '"refresh_token"', '"free"', '"remaining"')),
    "auth-login-mfa-wrong-code": Case(400, "invalid_code"),
    "auth-login-second-factor": Case(200, has=('"SOFTWARE_TOKEN_MFA"', '"session"')),
    "auth-login-unconfirmed": Case(401, "invalid_credentials"),
    "auth-login-wrong-password": Case(401, "invalid_credentials"),
    "auth-logout": Case(204),
    "auth-logout-everywhere": Case(204),
    "auth-me": Case(200, has=('"b4c8e4a8-7011-70f2-9d3e-5c1f0a2b3c4d"', '"free"')),
    "auth-me-foreign-client": Case(401, "invalid_credentials"),
    "auth-me-id-token": Case(401, "invalid_credentials"),
    "auth-me-no-authorizer": Case(401, "invalid_credentials"),
    "auth-mfa-associate": Case(200, has=('"secret"', '"otpauth_uri"')),
    "auth-mfa-disable": Case(200, has=('"disabled"',)),
    "auth-mfa-disable-wrong-password": Case(403, "wrong_password"),
    "auth-mfa-verify-wrong-code": Case(400, "invalid_code"),
    "auth-password-forgot": Case(202, has=('"accepted"',)),
    "auth-password-reset": Case(200, has=('"password_reset"',)),
    "auth-password-reset-wrong-code": Case(400, "invalid_code"),
    "auth-preferences": Case(200, has=('"theme"',)),
    "auth-profile": Case(200, has=('"display_name"',)),
    "auth-put-preferences": Case(200, has=('"dark"',)),
    "auth-put-preferences-unknown-field": Case(400, "invalid_field"),
    "auth-put-profile": Case(200, has=('"Europe/London"',)),
    "auth-put-profile-email": Case(400, "invalid_field"),
    "auth-refresh": Case(200, has=('"access_token"', '"refresh_token"')),
    "auth-refresh-unknown": Case(401, "invalid_credentials"),
    "auth-register": Case(202, has=('"accepted"',)),
    "auth-register-short-password": Case(400, "invalid_field"),
    "auth-register-throw-away-address": Case(400, "email_domain_not_accepted"),
    "auth-resend": Case(202, has=('"accepted"',)),
    "billing-change-plan-not-subscribed": Case(409, "not_subscribed"),
    "billing-checkout": Case(201, has=('"url":"https://checkout.stripe.com/', '"expires_at"')),
    "billing-checkout-foreign-page": Case(403, "return_url_not_allowed"),
    "billing-checkout-not-sold": Case(404, "plan_not_sold"),
    "billing-first-key-not-due": Case(409, "first_key_not_due"),
    "billing-invoices": Case(200, has=('"data":[]',)),
    "billing-overage": Case(200, has=('"allowed":false', '"chosen":false')),
    "billing-overage-not-in-plan": Case(403, "overage_not_in_plan"),
    "billing-plans": Case(200, has=('"id":"pro"', '"price_cents":2900')),
    "billing-portal-nothing-bought": Case(409, "not_subscribed"),
    "billing-status": Case(200, has=('"subscription":null', '"id":"free"')),
    "billing-status-no-authorizer": Case(401, "invalid_credentials"),
    "claude-count-tokens": Case(200, has=('"input_tokens"',)),
    "claude-hello": Case(200),
    "claude-key": Case(200),
    "claude-messages": Case(200, has=('"type"', '"usage"', '"stop_reason"')),
    "claude-messages-bad-json": Case(400, "invalid_json"),
    "claude-messages-model-not-in-plan": Case(400, "model_not_in_plan"),
    "claude-messages-no-auth": Case(401, "invalid_credentials"),
    "claude-messages-stream": Case(200, has=("event: message_start", "event: message_stop")),
    "claude-messages-unknown-key": Case(401, "invalid_credentials"),
    "claude-messages-unknown-model": Case(404, "model_not_found"),
    "claude-model": Case(200, has=('"claude-haiku-4-5"',)),
    "claude-model-unknown": Case(404, "model_not_found"),
    "claude-models": Case(200, has=('"has_more"', '"claude-haiku-4-5"')),
    "claude-simple-stream": Case(200, has=("event: message_stop", "event: usage")),
    "claude-cost-report": Case(200, has=('"starting_at":"2026-11-01T00:00:00Z"', '"has_more"')),
    "claude-cost-report-by-hour": Case(400, "invalid_field"),
    "claude-usage-report": Case(200, has=('"starting_at":"2026-11-01T00:00:00Z"', '"next_page":"page_')),
    "claude-unknown-route": Case(404, "not_found"),
    "claude-wrong-method": Case(405, "method_not_allowed"),
    "stripe_webhook-forged": Case(400, "invalid_request"),
    "stripe_webhook-live": Case(400, "invalid_request"),
    "stripe_webhook-snapshot": Case(200, has=('"done"',)),
    "stripe_webhook-thin": Case(200, has=('"done"',)),
    "stripe_webhook-unknown-type": Case(200, has=('"unknown_type"',)),
    "usage-current": Case(200, has=('"remaining"',)),
    "usage-current-no-authorizer": Case(401, "invalid_credentials"),
    "usage-daily": Case(200, has=('"group_by":"model"', '"date":"2026-11-20"', '"exact":true')),
    "usage-daily-wrong-order": Case(400, "invalid_field"),
    "usage-export": Case(200, has=("at,id,kind,outcome",)),
    "usage-requests": Case(200, has=('"data":[]', '"has_more":false')),
    "usage-requests-foreign-cursor": Case(400, "invalid_field"),
}
"""Of the events over HTTP; `usage_reset` answers to nobody, and a trigger to Cognito."""
QUIET = {
    "notices-scheduled",
    "stripe_webhook-event-bus",
    "stripe_webhook-queue",
    "usage_reset-scheduled",
}
"""Events that come by schedule, bus or queue, each with a test of its own."""
CLAIMED = {
    "pre_token_generation-first-version": None,
    "pre_token_generation-refresh": "free",
    "pre_token_generation-sign-in": "free",
    "pre_token_generation-sign-in-page": "free",
}
"""The plan that the trigger adds to tokens; None: it leaves its event alone."""


@dataclass(slots=True)
class Deployment:
    """One function as deployed, on moto, with Claude's double behind it."""

    function: str
    api_key: str
    used_rights: set[tuple[str, str]] = field(default_factory=set)
    """(action, resource) of every AWS call made."""

    def invoke(self, event: dict[str, Any]) -> Any:  # noqa: ANN401  a function answers what it likes
        if SIGNATURE_PLACEHOLDER in event.get("headers", {}).values():
            event["headers"]["stripe-signature"] = signature_of(event["body"])
        text = json.dumps(event).replace(API_KEY_PLACEHOLDER, self.api_key)
        handler: Callable[[Any, Any], Any] = importlib.import_module(f"functions.{self.function}.app").handler
        return handler(json.loads(text), LambdaContext(remaining_ms=60_000))

    def note(self, model: Any, params: dict[str, Any], **_: object) -> None:  # noqa: ANN401  botocore's OperationModel
        """A `before-call` hook of botocore: what the call needs the right to do."""
        arguments = json.loads(params["body"])
        if model.auth_type != "none":
            self.used_rights |= set(_rights_needed(model.service_model.service_name, model.name, arguments))


def signature_of(body: str) -> str:
    """As Stripe would sign this body now."""
    seconds = int(time.time())
    made = hmac.new(SIGNING_SECRET.encode(), f"{seconds}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={seconds},v1={made}"


def _rights_needed(service: str, operation: str, arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if service == "ssm":
        for name in arguments["Names"]:
            yield f"ssm:{operation}", f"arn:aws:ssm:us-east-1:111122223333:parameter{name}"
    elif service == "cognito-idp":
        yield f"{service}:{operation}", "<UserPool.Arn>"
    elif operation == "TransactWriteItems":
        action_of = {"ConditionCheck": "ConditionCheckItem"} | {
            kind: f"{kind}Item" for kind in ("Put", "Update", "Delete")
        }
        for entry in arguments["TransactItems"]:
            [(kind, _)] = entry.items()
            yield f"{service}:{action_of[kind]}", "<Table.Arn>"
    else:
        index = f"/index/{arguments['IndexName']}" if "IndexName" in arguments else ""
        yield f"{service}:{operation}", f"<Table.Arn>{index}"


@pytest.fixture(scope="module")
def claude() -> Iterator[FakeClaude]:
    with FakeClaude(seed=1) as server:
        yield server


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeWire]:
    """Where the default catalog is for sale."""
    with stripe_wire(stripe_world()) as wire:
        sync_plans(wire, load_catalog("default"))
        yield wire


@pytest.fixture
def pool() -> Iterator[FakeCognito]:
    """The users that events/ are about."""
    issuer = environment_of("auth", TEMPLATE)["COGNITO_ISSUER"]
    with FakeCognito(time.time, pool_id=issuer.rpartition("/")[2]) as pool:
        password = "correct horse battery"
        ada = pool.add("ada@example.com", password, sub="b4c8e4a8-7011-70f2-9d3e-5c1f0a2b3c4d")
        ada.reset_code = "123456"
        ada.secret = "JBSWY3DPEHPK3PXP"
        ada.refresh_tokens.add("refresh.of.ada")
        pool.bearers["eyJ0.eyJ0.c2ln"] = ada.sub
        pool.add("waiting@example.com", password, confirmed=False).code = "123456"
        pool.add("guarded@example.com", password).second_factor = True
        yield pool


@pytest.fixture
def deploy(
    monkeypatch: pytest.MonkeyPatch, claude: FakeClaude, pool: FakeCognito, stripe: StripeWire
) -> Iterator[Callable[[str], Deployment]]:
    """Deploys a function: its environment, its table, its secrets, a fresh container."""
    read_descriptions_once(monkeypatch)
    with mock_aws():

        def deploy_function(name: str) -> Deployment:
            environ = environment_of(name, TEMPLATE)
            if "UPSTREAM_BASE_URL" in environ:
                environ["UPSTREAM_BASE_URL"] = claude.url
            if "STRIPE_API_BASE_URL" in environ:
                environ["STRIPE_API_BASE_URL"] = stripe.url
            if "BILLING_RETURN_URLS" in environ:
                environ["BILLING_RETURN_URLS"] = RETURN_URL
            environ["AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER"] = pool.url
            environ |= {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
            # CloudFormation gives a queue's address where the template refers to it.
            address = "https://sqs.us-east-1.amazonaws.com/111122223333/"
            environ |= {name: address + name.lower() for name in environ if name.endswith(("QUEUE_URL", "DLQ_URL"))}
            for variable, value in environ.items():
                monkeypatch.setenv(variable, value)
            _end_container()
            deployment = Deployment(name, _prepare(environ))
            hooks = [*botocore.handlers.BUILTIN_HANDLERS, ("before-call", deployment.note)]
            monkeypatch.setattr(botocore.handlers, "BUILTIN_HANDLERS", hooks)
            return deployment

        yield deploy_function
        _end_container()


def _end_container() -> None:
    """A container ends without a word, its idle connection to upstream with it: here the socket is collected."""
    loaded = [module for module in sys.modules if module.startswith("functions.")]
    for module in loaded:
        del sys.modules[module]
    if "functions.claude.app" not in loaded:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _prepare(environ: dict[str, str]) -> str:
    """Makes the table, the secrets and one user's API key; the key."""
    session = aws_session()
    client = hot_path_client("us-east-1", session=session)
    client.create_table(**table_definition(TEMPLATE))
    ssm = cast("SSMClient", session.create_client("ssm", region_name="us-east-1"))
    names = environment_of("claude", TEMPLATE) | environment_of("stripe_webhook", TEMPLATE)
    secrets = {
        "KEY_PEPPER_PARAMETER": PEPPER,
        "UPSTREAM_API_KEY_PARAMETER": "sk-ant-test",
        "STRIPE_SECRET_KEY_PARAMETER": SECRET_KEY,
        "STRIPE_WEBHOOK_SECRET_PARAMETER": SIGNING_SECRET,
    }
    for variable, value in secrets.items():
        ssm.put_parameter(Name=names[variable], Value=value, Type="SecureString")
    key = mint_api_key(KeyMode.LIVE, bytes(range(32)))
    stored = ApiKey(
        id="key_1",
        key_hash=hash_api_key(key, PEPPER.encode()),
        tenant_id="main",
        user_id="b4c8e4a8-7011-70f2-9d3e-5c1f0a2b3c4d",
        mode=KeyMode.LIVE,
        last_four=key[-4:],
        created_at=datetime(2026, 11, 1, tzinfo=UTC),
    )
    ApiKeys(Table(client, environ["TABLE_NAME"])).put_key(stored)
    return key


def function_of(event_name: str) -> str:
    """`usage_reset` for `usage_reset-scheduled`."""
    return event_name.partition("-")[0]


def event_named(name: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((ROOT / "events" / f"{name}.json").read_text())
    return event


@pytest.mark.parametrize("name", CASES)
def test_an_event_gets_its_answer(name: str, deploy: Callable[[str], Deployment]) -> None:
    """With no more rights than the function's role gives."""
    deployment = deploy(function_of(name))
    answer = deployment.invoke(event_named(name))
    assert answer["statusCode"] == CASES[name].status, answer
    headers = {key.lower(): value for key, value in answer["headers"].items()}
    assert headers["request-id"]
    body = answer.get("body") or ""
    for piece in CASES[name].has:
        assert piece.replace(" ", "") in body.replace(" ", ""), body
    if CASES[name].error_code is not None:
        error = json.loads(body)
        assert error["type"] == "error"
        assert error["error"]["details"]["error_code"] == CASES[name].error_code
        assert error["request_id"] == headers["request-id"]
    assert_rights_suffice(deployment)


def test_the_hourly_run_answers_to_its_own_event(deploy: Callable[[str], Deployment]) -> None:
    deployment = deploy("usage_reset")
    assert deployment.invoke(event_named("usage_reset-scheduled"))["complete"] is True
    assert_rights_suffice(deployment)


def test_the_minutely_run_answers_to_its_own_event(deploy: Callable[[str], Deployment]) -> None:
    deployment = deploy("notices")
    assert deployment.invoke(event_named("notices-scheduled")) == {
        "delivered": 0,
        "put_off": 0,
        "dead": 0,
        "untried": 0,
        "complete": True,
    }
    assert_rights_suffice(deployment)


def test_the_webhook_takes_what_the_event_bus_brings(deploy: Callable[[str], Deployment]) -> None:
    deployment = deploy("stripe_webhook")
    assert deployment.invoke(event_named("stripe_webhook-event-bus")) == {"outcome": "done"}
    assert_rights_suffice(deployment)


def test_the_webhook_works_off_its_queue_and_names_what_must_come_again(deploy: Callable[[str], Deployment]) -> None:
    deployment = deploy("stripe_webhook")
    event = event_named("stripe_webhook-queue")
    bad = event["Records"][1]["messageId"]
    assert deployment.invoke(event) == {"batchItemFailures": [{"itemIdentifier": bad}]}
    assert_rights_suffice(deployment)


@pytest.mark.parametrize("name", CLAIMED)
def test_the_trigger_answers_to_its_events(name: str, deploy: Callable[[str], Deployment]) -> None:
    """Each twice: the second time in a container that is warm."""
    deployment = deploy("pre_token_generation")
    for _ in range(2):
        event = event_named(name)
        if CLAIMED[name] is not None:
            claims = {"claimsToAddOrOverride": {"plan": CLAIMED[name]}}
            details = {"idTokenGeneration": claims, "accessTokenGeneration": claims}
            event["response"]["claimsAndScopeOverrideDetails"] = details
        assert deployment.invoke(event_named(name)) == event
    assert_rights_suffice(deployment)


def assert_rights_suffice(deployment: Deployment) -> None:
    rights = rights_of(role_of(deployment.function, TEMPLATE), TEMPLATE)
    for action, resource in deployment.used_rights:
        assert action in rights.get(resource, set()), f"{deployment.function} may not {action} on {resource}"


@pytest.mark.parametrize(
    "name",
    [
        "api_keys-create-no-authorizer",
        "auth-me-no-authorizer",
        "billing-plans",
        "billing-status-no-authorizer",
        "billing-checkout-foreign-page",
        "usage-current-no-authorizer",
        "claude-messages-no-auth",
        "claude-hello",
    ],
)
def test_what_its_looks_decide_costs_no_read(name: str, deploy: Callable[[str], Deployment]) -> None:
    """A flood of anonymous requests touches neither the table nor the secrets."""
    deployment = deploy(function_of(name))
    deployment.invoke(event_named(name))
    assert deployment.used_rights == set()


def test_every_event_has_a_case_and_every_case_an_event() -> None:
    names = {path.stem for path in EVENTS}
    assert names == CASES.keys() | CLAIMED.keys() | QUIET
    assert {function_of(name) for name in names} == functions_of(TEMPLATE).keys()


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_no_event_holds_a_credential_that_opens_anything(path: Any) -> None:  # noqa: ANN401
    headers = json.loads(path.read_text()).get("headers", {})
    assert headers.get("x-api-key", API_KEY_PLACEHOLDER) == API_KEY_PLACEHOLDER
    assert headers.get("authorization", "Bearer " + API_KEY_PLACEHOLDER) in {
        f"Bearer {API_KEY_PLACEHOLDER}",
        "Bearer eyJ0.eyJ0.c2ln",  # where a token would be; API Gateway has checked it by then
        "Bearer " + mint_api_key(KeyMode.LIVE, bytes(32)),  # well formed, and nobody's
    }


def test_the_scheduled_event_is_what_the_template_sends() -> None:
    [schedule] = [
        event["Properties"]
        for event in functions_of(TEMPLATE)["usage_reset"]["Events"].values()
        if event["Type"] == "ScheduleV2"
    ]
    assert json.loads(schedule["Input"]).keys() == event_named("usage_reset-scheduled").keys()
