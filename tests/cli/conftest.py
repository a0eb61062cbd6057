"""The real command in this process: its wire to Stripe ends in the double, its AWS is moto's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws
from typer.testing import CliRunner, Result

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tollgate_cli.app import app
from tollgate_cli.connections import Connections

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEY = "sk_test_canary"


def aws_client(service: str, *, region_name: str = "us-east-1", **where: str) -> Any:  # noqa: ANN401  any of boto3's
    return boto3.client(
        service,
        region_name=region_name,
        aws_access_key_id="x",
        aws_secret_access_key="x",
        aws_session_token="x",
        **where,
    )  # type: ignore[call-overload]


def stack_with(outputs: dict[str, str]) -> Callable[[str], Any]:
    """An AWS where every stack has these outputs; the rest of it is moto's, which has no CloudFormation here."""

    def client(service: str) -> Any:  # noqa: ANN401  any of boto3's
        made = aws_client(service)
        if service == "cloudformation":
            stubber = Stubber(made)
            rows = [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()]
            stack = {"StackName": "x", "CreationTime": NOW, "StackStatus": "CREATE_COMPLETE", "Outputs": rows}
            for _ in range(2):
                stubber.add_response("describe_stacks", {"Stacks": [stack]})
            stubber.activate()
        return made

    return client


@dataclass
class Command:
    """Runs `tollgate …`; what it wrote must never have the key in it."""

    world: StripeWorld
    environ: dict[str, str] = field(default_factory=lambda: {"STRIPE_SECRET_KEY": KEY})
    aws_client: Callable[[str], Any] = aws_client
    wire: InProcess | None = None

    def __call__(self, *arguments: str, typed: str = "", width: int = 120) -> Result:
        connections = Connections(
            environ=self.environ,
            aws_client=self.aws_client,
            stripe_wire=self.wire or InProcess(self.world),
            now=lambda: NOW,
        )
        runner = CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"})
        result = runner.invoke(app, arguments, input=typed, obj=connections)
        assert KEY not in result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *arguments: str) -> Any:  # noqa: ANN401  any JSON
        result = self(*arguments, "--json")
        return json.loads(result.stdout)


@pytest.fixture
def world() -> StripeWorld:
    return StripeWorld(now=NOW, seed=1, webhook_secret="whsec_test", account_id="acct_1")


@pytest.fixture
def tollgate(world: StripeWorld) -> Command:
    return Command(world)


@pytest.fixture
def aws() -> Iterator[None]:
    with mock_aws():
        yield
