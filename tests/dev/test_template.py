"""How the local stack reads template.yaml."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from dev.template import REGION, JwtAuthorizer, Template, TemplateError

ROOT = Path(__file__).resolve().parent.parent.parent
BINDINGS = {"Table": "table-1", "UserPool": "us-east-1_pool", "UserPoolClient": "client-1"}

SMALL = """
Parameters:
  Stage: {Type: String, Default: dev}
  Flag: {Type: String, Default: "false"}
  Origins: {Type: CommaDelimitedList, Default: "https://a.example, https://b.example"}
Conditions:
  Flagged: !Equals [!Ref Flag, "true"]
  Neither: !Not [!Condition Flagged]
Globals:
  Function:
    Timeout: 15
    Environment: {Variables: {STAGE: !Ref Stage, SHARED: all}}
Resources:
  Core: {Type: AWS::Serverless::LayerVersion, Properties: {ContentUri: core}}
  Extra: {Type: AWS::Serverless::LayerVersion, Properties: {ContentUri: extra}}
  Pool: {Type: AWS::Cognito::UserPool, Properties: {UserPoolName: !Sub "${AWS::StackName}-users"}}
  Work:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: work
      Handler: app.handler
      Timeout: 600
      Layers: [!Ref Core, !Ref Extra]
      Environment:
        Variables:
          SHARED: own
          FLAG: !If [Flagged, "yes", !Ref AWS::NoValue]
          ISSUER: !Sub "https://cognito-idp.${AWS::Region}.amazonaws.com/${Pool}"
          LITERAL: !Sub "${!Kept}"
          JOINED: !Join ["-", [a, !Ref Stage]]
      FunctionUrlConfig:
        AuthType: NONE
        InvokeMode: RESPONSE_STREAM
        Cors: {AllowOrigins: !Ref Origins, AllowHeaders: [X-One], MaxAge: 60}
"""


def small(folder: Path, text: str = SMALL, **parameters: str) -> Template:
    for name in ("core", "extra", "work"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "template.yaml"
    path.write_text(dedent(text))
    return Template(path, parameters)


def test_globals_are_merged_with_the_functions_own_values(tmp_path: Path) -> None:
    work = small(tmp_path).local({"Pool": "pool-1"}).functions["Work"]
    assert work.timeout_seconds == 600
    assert work.environment["STAGE"] == "dev"
    assert work.environment["SHARED"] == "own"


@pytest.mark.parametrize(("longest_seconds", "timeout_seconds"), [(599, 599), (600, 600), (601, 600), (None, 600)])
def test_timeouts_can_be_shortened_but_not_lengthened(
    tmp_path: Path, longest_seconds: int | None, timeout_seconds: int
) -> None:
    functions = small(tmp_path).local({"Pool": "pool-1"}, longest_seconds=longest_seconds).functions
    assert functions["Work"].timeout_seconds == timeout_seconds


def test_references_substitutions_and_joins_become_values(tmp_path: Path) -> None:
    environment = small(tmp_path, Stage="blue").local({"Pool": "pool-1"}).functions["Work"].environment
    assert environment["STAGE"] == "blue"
    assert environment["ISSUER"] == f"https://cognito-idp.{REGION}.amazonaws.com/pool-1"
    assert environment["LITERAL"] == "${Kept}"
    assert environment["JOINED"] == "a-blue"


def test_the_pool_names_its_triggers_as_the_stack_names_its_functions() -> None:
    template = Template(ROOT / "template.yaml")
    _, pool = template.properties("AWS::Cognito::UserPool")
    arn = pool["LambdaConfig"]["PreTokenGenerationConfig"]["LambdaArn"]
    functions = template.local(BINDINGS).functions.values()
    assert [function.label for function in functions if function.arn == arn] == ["pre_token_generation"]


@pytest.mark.parametrize(("flag", "value"), [("true", "yes"), ("false", None)])
def test_no_value_leaves_the_entry_out(tmp_path: Path, flag: str, value: str | None) -> None:
    environment = small(tmp_path, Flag=flag).local({"Pool": "pool-1"}).functions["Work"].environment
    assert environment.get("FLAG") == value


def test_layers_keep_their_order_and_become_folders(tmp_path: Path) -> None:
    work = small(tmp_path).local({"Pool": "pool-1"}).functions["Work"]
    assert work.layers == (tmp_path / "core", tmp_path / "extra")


def test_a_list_parameter_is_split(tmp_path: Path) -> None:
    url = small(tmp_path).local({"Pool": "pool-1"}).functions["Work"].url
    assert url is not None
    assert url.streams
    assert url.cors is not None
    assert url.cors.allow_origins == ("https://a.example", "https://b.example")
    assert url.cors.allow_headers == ("x-one",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("CodeUri: work", "CodeUri: nowhere"), "Work: there is no folder nowhere"),
        (("!Ref Extra", "!Ref Nothing"), "!Ref Nothing names nothing"),
        (("!If [Flagged,", "!If [Unknown,"), "there is no condition Unknown"),
        (("!Join [", "!Cidr ["), "does not know Fn::Cidr"),
        (("AuthType: NONE", "AuthType: AWS_IAM"), "AuthType NONE only"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(TemplateError, match=complaint):
        small(tmp_path, SMALL.replace(*change)).local({"Pool": "pool-1"})


QUEUES = """
  Work:
    Type: AWS::SQS::Queue
    Properties:
      VisibilityTimeout: 90
      RedrivePolicy: {deadLetterTargetArn: !GetAtt Dead.Arn, maxReceiveCount: 5}
  Dead: {Type: AWS::SQS::Queue}
  Absent: {Type: AWS::SQS::Queue, Condition: Flagged}
  Worker:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: work
      Environment: {Variables: {URL: !Ref Work, NAME: !GetAtt Work.QueueName}}
      Events:
        Batch:
          Type: SQS
          Properties:
            Queue: !GetAtt Work.Arn
            BatchSize: 5
            Enabled: true
            FunctionResponseTypes: [ReportBatchItemFailures]
"""
WITH_QUEUES = SMALL.replace("  Work:\n", "  Plain:\n") + QUEUES


def test_queues_and_who_is_given_their_messages(tmp_path: Path) -> None:
    local = small(tmp_path, WITH_QUEUES).local({"Pool": "pool-1", "Work": "http://queue"})
    work, dead = local.queues["Work"], local.queues["Dead"]
    assert (work.attributes, work.dead_letters, work.max_receive_count) == ({"VisibilityTimeout": "90"}, "Dead", 5)
    assert (dead.attributes, dead.dead_letters) == ({}, None)
    environment = local.functions["Worker"].environment
    assert (environment["URL"], environment["NAME"]) == ("http://queue", work.name)
    [mapping] = local.mappings
    assert (mapping.function, mapping.queue, mapping.batch_size) == ("Worker", "Work", 5)
    assert mapping.reports_failures


@pytest.mark.parametrize(("flag", "made"), [("true", True), ("false", False)])
def test_a_resource_whose_condition_does_not_hold_is_not_there(tmp_path: Path, flag: str, made: bool) -> None:
    assert ("Absent" in small(tmp_path, WITH_QUEUES, Flag=flag).local({"Pool": "pool-1"}).queues) is made


def test_a_mapping_that_is_switched_off_gives_nobody_messages(tmp_path: Path) -> None:
    off = WITH_QUEUES.replace("Enabled: true", "Enabled: false")
    assert small(tmp_path, off).local({"Pool": "pool-1"}).mappings == ()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("Queue: !GetAtt Work.Arn", "Queue: arn:other"), "there is no queue arn:other"),
        (("BatchSize: 5", "FilterCriteria: {}"), "does not know FilterCriteria"),
        (("VisibilityTimeout: 90", "FifoQueue: true"), "standard queues only"),
    ],
)
def test_a_queue_that_cannot_be_followed_is_refused(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(TemplateError, match=complaint):
        small(tmp_path, WITH_QUEUES.replace(*change)).local({"Pool": "pool-1"})


def test_an_unknown_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no parameter Stagge"):
        small(tmp_path, Stagge="x")


def test_the_projects_own_template_is_understood_whole() -> None:
    local = Template(ROOT / "template.yaml", {"AllowTestKeys": "true"}).local(BINDINGS)
    folders = {path.parent.name for path in (ROOT / "functions").glob("*/app.py")}
    assert {function.label for function in local.functions.values()} == folders
    assert local.url_function is not None
    assert local.url_function.label == "claude"
    assert local.url_function.environment["TABLE_NAME"] == "table-1"
    assert local.url_function.environment["ALLOW_TEST_KEYS"] == "true"
    assert [schedule.expression for schedule in local.schedules]


def test_the_projects_routes_are_behind_its_authorizer_unless_they_say_otherwise() -> None:
    routes = {route.key: route for route in Template(ROOT / "template.yaml").local(BINDINGS).routes}
    assert routes["GET /auth/me"].authorizer == JwtAuthorizer(
        "CognitoJwt", f"https://cognito-idp.{REGION}.amazonaws.com/us-east-1_pool", ("client-1",)
    )
    assert routes["GET /health"].authorizer is None


def test_every_variable_that_the_stack_overrides_is_declared() -> None:
    """`sam local` drops undeclared variables silently; the local stack behaves the same, so they must be declared."""
    functions = Template(ROOT / "template.yaml").local(BINDINGS).functions.values()
    claude = next(function for function in functions if function.label == "claude")
    assert "UPSTREAM_BASE_URL" in claude.environment
    for function in functions:
        assert {"AWS_ENDPOINT_URL_DYNAMODB", "COGNITO_JWKS_URL"} <= set(function.environment)
