"""Each function may do exactly what it does: these sets, on these resources, and nothing by wildcard."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sam import (
    functions_of,
    load_template,
    parameters_of,
    resolved,
    resources_of,
    rights_of,
    role_of,
    statements_of,
)

TEMPLATE = load_template()
ROLES = resources_of(TEMPLATE, "AWS::IAM::Role")
PARAMETERS = parameters_of(TEMPLATE)

TABLE = "<Table.Arn>"
SSM = "arn:aws:ssm:us-east-1:111122223333:parameter/tollgate/dev"
LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}

EXPECTED: dict[str, dict[str, set[str]]] = {
    "auth": {
        "<AuthLogGroup.Arn>": LOGS,
        TABLE: {
            "dynamodb:BatchGetItem",
            "dynamodb:ConditionCheckItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        # What signs people up and in takes no right.
        "<UserPool.Arn>": {
            "cognito-idp:AdminDeleteUser",
            "cognito-idp:AdminGetUser",
            "cognito-idp:AdminSetUserPassword",
            "cognito-idp:AdminUserGlobalSignOut",
        },
        f"{SSM}/key-pepper": {"ssm:GetParameters"},
        f"{SSM}/stripe-secret-key": {"ssm:GetParameters"},
    },
    "pre_token_generation": {
        "<PreTokenGenerationLogGroup.Arn>": LOGS,
        TABLE: {"dynamodb:GetItem"},
    },
    "api_keys": {
        "<ApiKeysLogGroup.Arn>": LOGS,
        TABLE: {
            "dynamodb:BatchGetItem",
            "dynamodb:ConditionCheckItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        f"{SSM}/key-pepper": {"ssm:GetParameters"},
    },
    "usage": {
        "<UsageLogGroup.Arn>": LOGS,
        TABLE: {
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
    },
    "billing": {
        "<BillingLogGroup.Arn>": LOGS,
        TABLE: {
            "dynamodb:BatchGetItem",
            "dynamodb:ConditionCheckItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        f"{SSM}/key-pepper": {"ssm:GetParameters"},
        f"{SSM}/stripe-secret-key": {"ssm:GetParameters"},
    },
    "stripe_webhook": {
        "<StripeWebhookLogGroup.Arn>": LOGS,
        TABLE: {
            "dynamodb:ConditionCheckItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        f"{SSM}/stripe-secret-key": {"ssm:GetParameters"},
        f"{SSM}/stripe-webhook-secret": {"ssm:GetParameters"},
        "<StripeEventQueue.Arn>": {
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
            "sqs:SendMessage",
        },
        "<StripeEventDeadLetterQueue.Arn>": {"sqs:SendMessage"},
    },
    "claude": {
        "<ClaudeLogGroup.Arn>": LOGS,
        # Transactions are granted by what is in them.
        TABLE: {
            "dynamodb:ConditionCheckItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        f"{SSM}/anthropic-api-key": {"ssm:GetParameters"},
        f"{SSM}/key-pepper": {"ssm:GetParameters"},
    },
    "usage_reset": {
        "<UsageResetLogGroup.Arn>": LOGS,
        TABLE: {
            "dynamodb:ConditionCheckItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        f"{SSM}/stripe-secret-key": {"ssm:GetParameters"},
        "<Table.Arn>/index/GSI1": {"dynamodb:Query"},
        "<UsageResetDeadLetterQueue.Arn>": {"sqs:SendMessage"},
    },
    "notices": {
        "<NoticesLogGroup.Arn>": LOGS,
        TABLE: {"dynamodb:GetItem", "dynamodb:UpdateItem"},
        "<Table.Arn>/index/GSI1": {"dynamodb:Query"},
    },
    "notices_schedule": {"<NoticesFunction.Arn>": {"lambda:InvokeFunction"}},
    "schedule": {
        "<UsageResetFunction.Arn>": {"lambda:InvokeFunction"},
        "<UsageResetDeadLetterQueue.Arn>": {"sqs:SendMessage"},
    },
}


def role(name: str) -> dict[str, Any]:
    schedules = {"schedule": "UsageResetScheduleRole", "notices_schedule": "NoticesScheduleRole"}
    return ROLES[schedules[name]] if name in schedules else role_of(name, TEMPLATE)


@pytest.mark.parametrize("name", EXPECTED)
def test_rights_are_exactly_these(name: str) -> None:
    assert rights_of(role(name), TEMPLATE) == EXPECTED[name]


def test_there_is_no_role_beside_these() -> None:
    assert len(ROLES) == len(EXPECTED) == len(functions_of(TEMPLATE)) + 2
    assert len({str(role(name)) for name in EXPECTED}) == len(EXPECTED)


def test_nothing_is_granted_by_wildcard() -> None:
    for name, entry in ROLES.items():
        assert "ManagedPolicyArns" not in entry["Properties"], name
        for statement in statements_of(entry):
            assert statement["Effect"] == "Allow"
            assert "*" not in str(statement["Action"]), name
            assert "*" not in str(statement["Resource"]), name
            assert not {"NotAction", "NotResource"} & statement.keys(), name


def test_roles_are_assumed_by_their_one_service() -> None:
    for name, entry in ROLES.items():
        [trust] = entry["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        service = "scheduler" if name.endswith("ScheduleRole") else "lambda"
        assert trust["Principal"] == {"Service": f"{service}.amazonaws.com"}
        assert trust["Action"] == "sts:AssumeRole"


def test_parameters_of_other_names_move_the_right_with_them() -> None:
    rights = rights_of(
        role("claude"), TEMPLATE, UpstreamApiKeyParameter="/shared/key", KeyPepperParameter="/shared/pepper"
    )
    secrets = {resource for resource, actions in rights.items() if "ssm:GetParameters" in actions}
    prefix = "arn:aws:ssm:us-east-1:111122223333:parameter/shared"
    assert secrets == {f"{prefix}/key", f"{prefix}/pepper"}


def test_notices_are_signed_and_mailed_with_rights_that_come_with_the_settings() -> None:
    rights = rights_of(
        role("notices"), TEMPLATE, OperatorWebhookUrl="https://hooks.example.com/t", MailFrom="no-reply@example.com"
    )
    identity = "arn:aws:ses:us-east-1:111122223333:identity"
    assert rights[f"{SSM}/operator-webhook-secret"] == {"ssm:GetParameters"}
    assert rights[f"{identity}/no-reply@example.com"] == rights[f"{identity}/example.com"] == {"ses:SendEmail"}


def test_a_key_of_ones_own_may_be_used_through_ssm_only() -> None:
    key = "arn:aws:kms:us-east-1:111122223333:key/0b1c2d3e-0000-4000-8000-000000000000"
    assert rights_of(role("claude"), TEMPLATE, SecretsKeyArn=key)[key] == {"kms:Decrypt"}
    [statement] = [statement for statement in statements_of(role("claude")) if statement["Action"] == ["kms:Decrypt"]]
    condition = resolved(statement["Condition"], TEMPLATE, PARAMETERS)
    assert condition == {"StringEquals": {"kms:ViaService": "ssm.us-east-1.amazonaws.com"}}
