"""The template is one that SAM accepts and CloudFormation can deploy, in every configuration its parameters allow.

Three checks, because each lets through what another catches: `sam validate --lint` and cfn-lint pass a misspelt event
type and an undefined authorizer, `sam validate` passes a wrong property of what SAM generates.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from cfnlint.api import lint
from cfnlint.config import ManualArgs

from dev.packaging import find_sam
from tests.support.sam import REGION, ROOT, TEMPLATE, load_template, to_cloudformation

SUPPRESSED: dict[str, str] = {}
"""cfn-lint rule to the reason it is wrong about this template; none is."""


def run_sam(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    sam = find_sam()
    if sam is None:
        pytest.skip("aws-sam-cli is not installed; `make build` installs it into .dev/sam")
    environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), "AWS_DEFAULT_REGION": REGION, "SAM_CLI_TELEMETRY": "0"}
    return subprocess.run([sam, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [(), ("--lint",)], ids=["plain", "lint"])
def test_sam_validates_the_template(arguments: tuple[str, ...], tmp_path: Path) -> None:
    answer = run_sam("validate", "--template", str(TEMPLATE), *arguments, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {
            "Stage": "prod",
            "Architecture": "x86_64",
            "AlarmEmail": "ops@example.com",
            "AllowTestKeys": "true",
            "AllowedOrigins": "https://a.example.com,https://b.example.com",
            "ClaudeReservedConcurrency": "50",
            "SnapStart": "PublishedVersions",
            "BillingReturnUrls": "https://app.example.com/billing,http://localhost:3000",
            "StripeMode": "live",
            "StripeAccount": "acct_1Example",
            "StripeSecretKeyParameter": "/shared/stripe",
            "StripeWebhookSecretParameter": "/shared/webhook",
            "StripeEventBus": "aws.partner/stripe.com/ed_test_1",
            "UpstreamApiKeyParameter": "/shared/anthropic",
            "KeyPepperParameter": "/shared/pepper",
            "SecretsKeyArn": "arn:aws:kms:us-east-1:111122223333:key/0b1c2d3e-0000-4000-8000-000000000000",
        },
    ],
    ids=["defaults", "everything set"],
)
def test_what_sam_makes_of_it_passes_cfn_lint(parameters: dict[str, str]) -> None:
    """Errors, warnings and hints all count."""
    template = to_cloudformation(load_template(), **parameters)
    for name, value in parameters.items():
        template["Parameters"][name]["Default"] = value
    matches = lint(
        json.dumps(template),
        config=ManualArgs(regions=[REGION, "eu-central-1"], include_checks=["I"], ignore_checks=list(SUPPRESSED)),
    )
    assert [f"{match.rule.id} {match.path} {match.message}" for match in matches] == []


def test_every_environment_deploys_without_a_question() -> None:
    """`sam deploy` asks for what it does not know, and before it applies a change unless told not to."""
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())
    parameters = load_template()["Parameters"]
    assert {"default", "staging", "prod"} <= config.keys()
    stacks = set()
    for environment in ("default", "staging", "prod"):
        deploy = config[environment]["deploy"]["parameters"]
        assert (
            deploy["capabilities"] == "CAPABILITY_IAM"
        )  # and no more: no resource of ours has a name of its own there
        assert deploy["resolve_s3"] is True
        assert deploy["confirm_changeset"] is False
        overridden = dict(entry.split("=", 1) for entry in deploy["parameter_overrides"])
        assert overridden.keys() <= parameters.keys()
        assert "guided" not in deploy
        stacks.add(config[environment]["global"]["parameters"]["stack_name"])
    assert len(stacks) == 3


def test_no_environment_overrides_a_parameter_that_there_is_not() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())
    known = load_template()["Parameters"].keys()
    for environment, commands in config.items():
        if environment == "version":
            continue
        for command, entry in commands.items():
            overridden = {pair.split("=", 1)[0] for pair in entry["parameters"].get("parameter_overrides", [])}
            assert overridden <= known, f"{environment}.{command}"


def test_every_parameter_has_a_default_that_its_own_rules_allow() -> None:
    for name, parameter in load_template()["Parameters"].items():
        assert "Default" in parameter, name
        assert not parameter.get("NoEcho"), f"{name}: a secret is no parameter"
        assert parameter.get("Description"), name
        default = parameter["Default"]
        if "AllowedPattern" in parameter:
            assert re.fullmatch(parameter["AllowedPattern"], str(default)), name
            assert "ConstraintDescription" in parameter or "Description" in parameter, name
        assert default in parameter.get("AllowedValues", [default]), name


def test_every_parameter_is_grouped_once_for_the_console() -> None:
    template = load_template()
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert sorted(grouped) == sorted(template["Parameters"])
