"""docs/settings.md: the parameters of a deployment and the variables that functions get from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dev.docs.markdown import NOTICE, code, table
from tollgate import config

VARIABLES = {
    "ALLOW_TEST_KEYS": ("`false`", "Whether `tg_test_` keys are accepted."),
    "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": ("AWS's own", "Another Cognito, for local runs."),
    "AWS_ENDPOINT_URL_DYNAMODB": ("AWS's own", "Another DynamoDB, for local runs."),
    "AWS_ENDPOINT_URL_SQS": ("AWS's own", "Another SQS, for local runs."),
    "AWS_ENDPOINT_URL_SESV2": ("AWS's own", "Another SES, for local runs."),
    "AWS_ENDPOINT_URL_SSM": ("AWS's own", "Another SSM, for local runs."),
    "AWS_LAMBDA_EXEC_WRAPPER": ("none", "Starts the function on the streaming runtime; Lambda reads it."),
    "BILLING_RETURN_URLS": ("none", "Pages that checkout and portal may send users back to, separated by commas."),
    "CATALOG": ("`default`", "Name of the plan catalog."),
    "COGNITO_CLIENT_ID": ("refused", "The app client that people sign in through at /auth/login."),
    "COGNITO_CLIENT_IDS": ("refused", "App clients whose access tokens are accepted, separated by commas."),
    "COGNITO_ISSUER": ("refused", "Issuer of those tokens: the user pool's address."),
    "COGNITO_JWKS_URL": ("the issuer's", "Where the issuer's signing keys are read, when not at the issuer itself."),
    "DEFAULT_PLAN": ("the catalog's", "Plan of a user who has not chosen one."),
    "DISPOSABLE_DOMAINS_FILE": ("the shipped list alone", "File of e-mail domains that may not register."),
    "KEY_PEPPER_PARAMETER": ("refused", "Name of the SSM SecureString under whose value API keys are hashed."),
    "MAX_BODY_BYTES": (f"`{config.DEFAULT_MAX_BODY_BYTES}`", "Largest request body taken, in bytes."),
    "MAIL_FROM": ("no mail", "Address that users are told from that they have passed a usage threshold."),
    "OPERATOR_WEBHOOK_SECRET_PARAMETER": (
        "refused with an address",
        "Name of the SSM SecureString under whose value notices to the operator are signed; several are one line.",
    ),
    "OPERATOR_WEBHOOK_URL": ("nobody is told", "Where the operator is told that a user has passed a usage threshold."),
    "OPEN_ROUTE_RATE_PERCENT": ("`100`", "What one address may do on the open routes, in percent of the limits."),
    "POWERTOOLS_LOG_LEVEL": ("`INFO`", "Least severe log line that is written."),
    "STAGE": ("refused", "Name of the deployment; part of the metrics' namespace."),
    "STRIPE_ACCOUNT": ("any", "Stripe account whose events are accepted."),
    "STRIPE_API_BASE_URL": ("Stripe's own", "Another Stripe, for local runs."),
    "STRIPE_EVENT_DLQ_URL": ("refused", "Queue of events that were given up."),
    "STRIPE_EVENT_QUEUE_URL": ("refused", "Queue of events that take longer."),
    "STRIPE_LIVEMODE": ("`false`", "Whether events of real money are accepted, or those of test mode."),
    "STRIPE_SECRET_KEY_PARAMETER": ("refused", "Name of the SSM SecureString that holds Stripe's secret key."),
    "STRIPE_WEBHOOK_SECRET_PARAMETER": ("refused", "Name of the SSM SecureString that holds the signing secrets."),
    "TABLE_NAME": ("refused", "The DynamoDB table."),
    "UPSTREAM_API_KEY_PARAMETER": ("refused", "Name of the SSM SecureString that holds the Anthropic API key."),
    "UPSTREAM_BASE_URL": (f"`{config.DEFAULT_UPSTREAM_BASE_URL}`", "Where requests are relayed to."),
}
"""By variable: what unset means ("refused": the function that needs it does not start), and what it is for."""


class DriftError(Exception):
    """The template and the texts of this module name different things."""


class _Loader(yaml.SafeLoader):
    """Reads the template's structure; what intrinsic functions would give is of no interest here."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def page(root: Path) -> str:
    """The page's text; raises DriftError for a variable that nobody described."""
    template = yaml.load((root / "template.yaml").read_text(encoding="utf-8"), _Loader)
    return "\n".join(
        [
            "# Settings",
            "",
            NOTICE.format(name="settings"),
            "",
            "## Parameters of a deployment",
            "",
            "Every one has a default. Set others in `samconfig.toml` under `parameter_overrides` of an environment:",
            '`parameter_overrides = ["Stage=prod", "AlarmEmail=ops@example.com"]`. `Architecture` belongs there twice,',
            "under `build` and under `deploy`.",
            "",
            *_parameter_sections(template),
            "## Variables of the functions",
            "",
            "The template fills them from the parameters. An empty variable counts as unset. A function that misses",
            "what it needs does not start, and its log says which variable that is.",
            "",
            table(["Variable", "Functions", "When unset", "What it is for"], _variable_rows(template)),
        ]
    )


def _parameter_sections(template: dict[str, Any]) -> list[str]:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    return [
        line
        for group in groups
        for line in (
            f"### {group['Label']['default']}",
            "",
            table(
                ["Parameter", "Default", "Allowed", "What it is for"],
                [_parameter_row(name, template["Parameters"][name]) for name in group["Parameters"]],
            ),
        )
    ]


def _parameter_row(name: str, parameter: dict[str, Any]) -> list[str]:
    default = parameter["Default"]
    return [code(name), code(str(default)) if default != "" else "empty", _allowed(parameter), parameter["Description"]]


def _allowed(parameter: dict[str, Any]) -> str:
    if "AllowedValues" in parameter:
        return ", ".join(code(str(value)) for value in parameter["AllowedValues"])
    if "MinValue" in parameter:
        upper = f" to {parameter['MaxValue']}" if "MaxValue" in parameter else " and above"
        return f"{parameter['MinValue']}{upper}"
    rule = parameter.get("ConstraintDescription") or code(parameter.get("AllowedPattern", ""))
    length = f"; at most {parameter['MaxLength']} characters" if "MaxLength" in parameter else ""
    return f"{rule}{length}"


def _variable_rows(template: dict[str, Any]) -> list[list[str]]:
    shared = template["Globals"]["Function"]["Environment"]["Variables"]
    functions = {
        resource["Properties"]["CodeUri"].removeprefix("functions/"): resource["Properties"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    users: dict[str, list[str]] = {name: ["all"] for name in shared}
    for function, properties in functions.items():
        for name in properties.get("Environment", {}).get("Variables", {}):
            users.setdefault(name, []).append(function)
    if users.keys() != VARIABLES.keys():
        raise DriftError(f"described in one place only: {sorted(users.keys() ^ VARIABLES.keys())}")
    return [[code(name), ", ".join(users[name]), *VARIABLES[name]] for name in sorted(users)]
