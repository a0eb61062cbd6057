"""`tollgate doctor`: a deployment in order is called so, and each thing that is wrong is named with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.cli.conftest import aws_client
from tests.support.moto_table import NAME, REGION, CountedTable, moto_table
from tests.support.scripted_http import ScriptedServer, answer
from tollgate.domain.stripe_events import SNAPSHOT_TYPES
from tollgate.providers.stripe_client import API_VERSION, StripeConnection
from tollgate_cli.app import app
from tollgate_cli.connections import Connections

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECRETS = {
    "KEY_PEPPER_PARAMETER": "pepper-canary",
    "UPSTREAM_API_KEY_PARAMETER": "sk-ant-canary",
    "STRIPE_SECRET_KEY_PARAMETER": "sk_test_canary",
    "STRIPE_WEBHOOK_SECRET_PARAMETER": "whsec_canary",
}
WEBHOOK_URL = "https://api.example.com/stripe/webhook"


class Deployed:
    """A stack as AWS tells of it: what moto has, and what it has not."""

    def __init__(self, table: CountedTable, claude: ScriptedServer) -> None:
        self.claude = claude
        self.status = "UPDATE_COMPLETE"
        self.production, self.verified = True, ""
        self.schedules = {"UsageResetFunctionHourly": "ENABLED", "NoticesFunctionMinutely": "DISABLED"}
        self.stripe = StripeWorld(now=NOW, seed=1, webhook_secret="whsec_x", account_id="acct_1")
        self.table = table
        self.ssm, self.sqs, self.cognito = (self.made(name) for name in ("ssm", "sqs", "cognito-idp"))
        for variable, value in SECRETS.items():
            self.ssm.put_parameter(Name=f"/tollgate/prod/{variable}", Value=value, Type="SecureString")
        self.queues = {
            name: self.sqs.create_queue(QueueName=name)["QueueUrl"]
            for name in ("StripeEventQueue", "StripeEventDeadLetterQueue", "UsageResetDeadLetterQueue")
        }
        pool = self.cognito.create_user_pool(
            PoolName="users", LambdaConfig={"PreTokenGeneration": "arn:aws:lambda:eu-west-1:111122223333:function:x"}
        )
        self.pool_id = pool["UserPool"]["Id"]
        made = self.cognito.create_user_pool_client(
            UserPoolId=self.pool_id,
            ClientName="app",
            ExplicitAuthFlows=["ALLOW_USER_SRP_AUTH", "ALLOW_USER_PASSWORD_AUTH"],
        )
        self.client_id = made["UserPoolClient"]["ClientId"]
        self.variables = {name: f"/tollgate/prod/{name}" for name in SECRETS} | {
            "STAGE": "prod",
            "TABLE_NAME": NAME,
            "COGNITO_ISSUER": f"https://cognito-idp.{REGION}.amazonaws.com/{self.pool_id}",
            "COGNITO_CLIENT_IDS": self.client_id,
            "UPSTREAM_BASE_URL": claude.url,
            "STRIPE_LIVEMODE": "false",
            "ALLOW_TEST_KEYS": "false",
            "OPERATOR_WEBHOOK_SECRET_PARAMETER": "/tollgate/prod/operator-webhook-secret",
            "OPERATOR_WEBHOOK_URL": "",
            "MAIL_FROM": "",
        }
        dynamodb = table.client
        dynamodb.update_time_to_live(
            TableName=NAME, TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires_at"}
        )
        dynamodb.update_continuous_backups(
            TableName=NAME, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
        self._subscribe()

    def _subscribe(self) -> None:
        client = StripeConnection(lambda: "sk_test_canary", http_client=InProcess(self.stripe)).client()
        client.v1.billing.meters.create(
            {"display_name": "x", "event_name": "tollgate_overage", "default_aggregation": {"formula": "last"}}
        )
        events: Any = sorted(SNAPSHOT_TYPES)
        params: Any = {"url": WEBHOOK_URL, "enabled_events": events, "api_version": API_VERSION}
        self.webhook_id = client.v1.webhook_endpoints.create(params).id

    def made(self, service: str) -> Any:  # noqa: ANN401  any of boto3's
        return aws_client(service, region_name=REGION)

    def store(self, name: str, secret: str) -> object:
        return self.ssm.put_parameter(Name=f"/tollgate/prod/{name}", Value=secret, Type="SecureString", Overwrite=True)

    @property
    def outputs(self) -> dict[str, str]:
        return {
            "TableName": NAME,
            "UserPoolId": self.pool_id,
            "UserPoolClientId": self.client_id,
            "HttpApiUrl": self.claude.url,
            "StripeWebhookUrl": WEBHOOK_URL,
        }

    def client(self, service: str, **_: str) -> Any:  # noqa: ANN401  any of boto3's, or what stands in for it
        match service:
            case "cloudformation":
                return SimpleNamespace(describe_stacks=self._stacks, get_paginator=lambda _: self)
            case "lambda":
                return SimpleNamespace(
                    get_function_configuration=lambda **_: {"Environment": {"Variables": self.variables}}
                )
            case "sesv2":
                return self._ses()
            case "scheduler":
                return SimpleNamespace(get_schedule=lambda Name: {"State": self.schedules[Name]})  # noqa: N803
        return self.made(service)

    def _ses(self) -> SimpleNamespace:
        class NotFoundException(Exception):  # noqa: N818  AWS's own name
            pass

        def identity(EmailIdentity: str) -> dict[str, bool]:  # noqa: N803
            if EmailIdentity != self.verified:
                raise NotFoundException
            return {"VerifiedForSendingStatus": True}

        account = {"SendingEnabled": True, "ProductionAccessEnabled": self.production}
        return SimpleNamespace(
            get_account=lambda: account,
            get_email_identity=identity,
            exceptions=SimpleNamespace(NotFoundException=NotFoundException),
        )

    def _stacks(self, **_: str) -> dict[str, Any]:
        rows = [{"OutputKey": key, "OutputValue": value} for key, value in self.outputs.items()]
        return {"Stacks": [{"StackStatus": self.status, "Outputs": rows}]}

    def paginate(self, **_: str) -> Iterator[dict[str, Any]]:
        found = [("AWS::Lambda::Function", "ClaudeFunction", "claude"), ("AWS::DynamoDB::Table", "Table", NAME)]
        found += [("AWS::SQS::Queue", name, url) for name, url in self.queues.items()]
        found += [("AWS::Scheduler::Schedule", name, name) for name in self.schedules]
        names = ("ResourceType", "LogicalResourceId", "PhysicalResourceId")
        yield {"StackResourceSummaries": [dict(zip(names, row, strict=True)) for row in found]}

    def examine(self, *arguments: str) -> Result:
        connections = Connections(
            environ={}, aws_client=self.client, stripe_wire=InProcess(self.stripe), now=lambda: NOW
        )
        runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        result = runner.invoke(app, ["doctor", "--stack", "tollgate-prod", *arguments], obj=connections)
        for secret in (*SECRETS.values(), "canary"):
            assert secret not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "nobody foresaw" not in result.output
        return result

    def findings(self, level: str) -> list[tuple[str, str, str]]:
        found = json.loads(self.examine("--json").stdout)["findings"]
        return [(each["about"], each["text"], each["remedy"]) for each in found if each["level"] == level]


@pytest.fixture
def claude() -> Iterator[ScriptedServer]:
    with ScriptedServer(answer(b'{"data": []}', Date="Fri, 20 Nov 2026 12:00:01 GMT")) as server:
        yield server


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch, claude: ScriptedServer) -> Iterator[Deployed]:
    with moto_table(monkeypatch) as table:
        yield Deployed(table, claude)


def test_a_deployment_in_order_is_called_so(deployed: Deployed) -> None:
    result = deployed.examine()
    assert result.exit_code == 0, result.output
    assert deployed.findings("fail") == deployed.findings("warn") == []
    assert [about for about, _, _ in deployed.findings("skip")] == ["mail"]
    assert "our key is accepted" in result.output


Break = Callable[[Deployed], object]


def _drop_index(deployed: Deployed) -> None:
    deployed.table.client.update_table(TableName=NAME, GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": "GSI1"}}])


def _stripe(deployed: Deployed) -> Any:  # noqa: ANN401  the SDK's own client
    return StripeConnection(lambda: "sk_test_canary", http_client=InProcess(deployed.stripe)).client()


BROKEN: dict[str, tuple[Break, str, str]] = {
    "stack": (lambda it: setattr(it, "status", "UPDATE_ROLLBACK_COMPLETE"), "stack", "ROLLBACK"),
    "settings": (lambda it: it.variables.pop("COGNITO_ISSUER"), "settings", "COGNITO_ISSUER"),
    "test keys": (lambda it: it.variables.update(ALLOW_TEST_KEYS="true"), "settings", "Test keys"),
    "index": (_drop_index, "index", "missing"),
    "secret": (
        lambda it: it.ssm.delete_parameter(Name="/tollgate/prod/KEY_PEPPER_PARAMETER"),
        "secret",
        "/tollgate/prod/KEY_PEPPER_PARAMETER is not there",
    ),
    "plain secret": (
        lambda it: (
            it.ssm.delete_parameter(Name="/tollgate/prod/KEY_PEPPER_PARAMETER"),
            it.ssm.put_parameter(Name="/tollgate/prod/KEY_PEPPER_PARAMETER", Value="x", Type="String"),
        ),
        "secret",
        "not encrypted",
    ),
    "operator's secret": (
        lambda it: it.variables.update(OPERATOR_WEBHOOK_URL="https://hooks.example.com/"),
        "secret",
        "operator-webhook-secret is not there",
    ),
    "secret of two lines": (
        lambda it: it.store("KEY_PEPPER_PARAMETER", "pepper-canary\nanother"),
        "secret",
        "/tollgate/prod/KEY_PEPPER_PARAMETER is not one line of printable ASCII",
    ),
    "typographic secret": (
        lambda it: it.store("STRIPE_WEBHOOK_SECRET_PARAMETER", "\u201cwhsec_canary\u201d"),
        "secret",
        "/tollgate/prod/STRIPE_WEBHOOK_SECRET_PARAMETER is not one line of printable ASCII",
    ),
    "blank secret": (
        lambda it: (
            it.variables.update(OPERATOR_WEBHOOK_URL="https://hooks.example.com/"),
            it.store("operator-webhook-secret", " "),
        ),
        "secret",
        "operator-webhook-secret is blank",
    ),
    "operator's address": (
        lambda it: it.variables.update(OPERATOR_WEBHOOK_URL="https://a..b/x"),
        "settings",
        "ClaudeFunction: incomplete configuration: OPERATOR_WEBHOOK_URL must be",
    ),
    "setting": (
        lambda it: it.variables.update(STRIPE_LIVEMODE="yes"),
        "settings",
        "STRIPE_LIVEMODE must be true or false",
    ),
    "Claude's address": (
        lambda it: it.variables.update(UPSTREAM_BASE_URL="https://h:99999"),
        "Claude",
        "is no address",
    ),
    "Stripe's key of two lines": (
        lambda it: it.store("STRIPE_SECRET_KEY_PARAMETER", "sk_test_first\nsecond-canary"),
        "secret",
        "/tollgate/prod/STRIPE_SECRET_KEY_PARAMETER is not one line of printable ASCII",
    ),
    "app client": (
        lambda it: it.cognito.update_user_pool_client(
            UserPoolId=it.pool_id, ClientId=it.client_id, ExplicitAuthFlows=["ALLOW_USER_SRP_AUTH"]
        ),
        "app client",
        "lacks ALLOW_USER_PASSWORD_AUTH",
    ),
    "other client": (lambda it: it.variables.update(COGNITO_CLIENT_IDS="other"), "app client", "is not the one"),
    "Claude's key": (
        lambda it: setattr(it.claude, "behaviour", answer(b"{}", "401 Unauthorized")),
        "Claude",
        "answered 401",
    ),
    "live mode": (lambda it: it.variables.update(STRIPE_LIVEMODE="true"), "Stripe", "the key is for test mode"),
    "other account": (lambda it: it.variables.update(STRIPE_ACCOUNT="acct_9"), "Stripe", "acct_1"),
    "no webhook": (
        lambda it: _stripe(it).v1.webhook_endpoints.delete(it.webhook_id),
        "webhook",
        "does not send events",
    ),
    "sleeping webhook": (
        lambda it: _stripe(it).v1.webhook_endpoints.update(it.webhook_id, {"disabled": True}),
        "webhook",
        "is disabled",
    ),
    "few events": (
        lambda it: _stripe(it).v1.webhook_endpoints.update(it.webhook_id, {"enabled_events": ["invoice.paid"]}),
        "webhook",
        "does not send",
    ),
    "dead letters": (
        lambda it: it.sqs.send_message(QueueUrl=it.queues["StripeEventDeadLetterQueue"], MessageBody="x"),
        "dead letters",
        "holds 1",
    ),
    "schedule": (
        lambda it: it.schedules.update(UsageResetFunctionHourly="DISABLED"),
        "schedule",
        "UsageResetFunctionHourly is DISABLED",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named_and_is_status_1(deployed: Deployed, name: str) -> None:
    breaks, about, text = BROKEN[name]
    breaks(deployed)
    assert deployed.examine().exit_code == 1
    assert [1 for failed, said, _ in deployed.findings("fail") if failed == about and text in said], deployed.findings(
        "fail"
    )


def test_what_can_wait_is_a_warning_and_status_1_only_when_asked(deployed: Deployed) -> None:
    deployed.table.client.update_continuous_backups(
        TableName=NAME, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": False}
    )
    assert [about for about, _, _ in deployed.findings("warn")] == ["backup"]
    assert deployed.examine().exit_code == 0
    assert deployed.examine("--strict").exit_code == 1


def test_a_clock_that_is_off_is_told(deployed: Deployed) -> None:
    deployed.claude.behaviour = answer(b"{}", Date="Fri, 20 Nov 2026 12:01:00 GMT")
    assert "60 s off" in str(deployed.findings("warn"))


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000"])
def test_a_clock_that_agrees_does_so_however_utc_is_written(deployed: Deployed, zone: str) -> None:
    deployed.claude.behaviour = answer(b"{}", Date=f"Fri, 20 Nov 2026 12:00:01 {zone}")
    assert deployed.findings("warn") == []


def test_a_date_that_is_none_says_nothing_of_the_clock(deployed: Deployed) -> None:
    deployed.claude.behaviour = answer(b"{}", Date="yesterday")
    assert "clock" not in [about for about, _, _ in deployed.findings("ok") + deployed.findings("warn")]


@pytest.mark.parametrize("key", ["sk-ant-canary\nsecond", "\u201csk-ant-canary\u201d", "sk-ant-canary\x7f"])
def test_a_key_that_no_header_can_carry_is_told_and_neither_tried_nor_shown(deployed: Deployed, key: str) -> None:
    deployed.store("UPSTREAM_API_KEY_PARAMETER", key)
    [(about, text, _)] = deployed.findings("fail")
    assert (about, text) == (
        "secret",
        "/tollgate/prod/UPSTREAM_API_KEY_PARAMETER is not one line of printable ASCII",
    )
    assert "Claude" in [about for about, _, _ in deployed.findings("skip")]
    assert not [each for each in deployed.claude.requests if b"/v1/models" in each]
    assert "sk-ant-canary" not in deployed.examine().output


@pytest.mark.parametrize("named", ["calls", "/opt/catalogs/calls/"])
def test_another_catalog_than_the_functions_is_a_warning(deployed: Deployed, named: str) -> None:
    """Plans, prices and margins would be told by it."""
    deployed.variables["CATALOG"] = named
    [(about, text, remedy)] = deployed.findings("warn")
    assert (about, text) == ("catalog", f"the functions have {named}, this command has default")
    assert "--catalog" in remedy
    assert deployed.examine("--catalog", "calls").exit_code == 0
    assert "calls, as in the functions" in deployed.examine("--catalog", "calls").output


@pytest.mark.parametrize(
    ("production", "verified", "worst", "says"),
    [
        (True, "no-reply@example.com", "ok", "may send"),
        (True, "example.com", "ok", "may send"),
        (False, "example.com", "warn", "sandbox"),
        (True, "other.example", "fail", "is not verified"),
    ],
)
def test_mail_is_looked_at_where_it_is_sent(
    deployed: Deployed, production: bool, verified: str, worst: str, says: str
) -> None:
    deployed.variables["MAIL_FROM"] = "no-reply@example.com"
    deployed.schedules["NoticesFunctionMinutely"] = "ENABLED"
    deployed.production, deployed.verified = production, verified
    assert says in str([text for about, text, _ in deployed.findings(worst) if about == "mail"])


def test_one_thing_out_of_reach_does_not_hide_the_others(deployed: Deployed) -> None:
    deployed.claude.behaviour = lambda connection, _: connection.close()
    failed = [about for about, _, _ in deployed.findings("fail")]
    assert failed == ["Claude", "HTTP API"]
    assert "table" in [about for about, _, _ in deployed.findings("ok")]
