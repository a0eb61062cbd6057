"""What the template promises about routes, data, secrets and observability."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dev.packaging import BOTO_SERVICES
from tests.support import engines
from tests.support.moto_table import moto_table
from tests.support.sam import (
    NO_VALUE,
    ROOT,
    Node,
    functions_of,
    load_template,
    parameters_of,
    resolved,
    resources_of,
    to_cloudformation,
)
from tollgate.config import ConfigurationError, load_settings
from tollgate.edge.account_documents import SHORTEST_PASSWORD
from tollgate.storage.stripe_events import LEASE_SECONDS

TEMPLATE = load_template()
FUNCTIONS = functions_of(TEMPLATE)
OPEN_ROUTES = {
    "GET /health",
    "POST /auth/register",
    "POST /auth/confirm",
    "POST /auth/resend",
    "POST /auth/login",
    "POST /auth/login/mfa",
    "POST /auth/refresh",
    "POST /auth/password/forgot",
    "POST /auth/password/reset",
    "POST /api-keys/report",
    "GET /billing/plans",
    # Stripe signs what it sends.
    "POST /stripe/webhook",
}
"""Routes of the HTTP API that anybody may call."""

NAMED_LIKE_A_SECRET = {"ALLOW_TEST_KEYS", "STRIPE_API_BASE_URL"}
SECRET_LIKE = re.compile(r"SECRET|PASSWORD|TOKEN|PEPPER|API_?KEY|CREDENTIAL|PRIVATE", re.IGNORECASE)


def only(kind: str) -> dict[str, Any]:
    [resource] = resources_of(TEMPLATE, kind).values()
    return resource


# --- Functions and routes -------------------------------------------------------------------------------------------


def test_every_function_folder_is_in_the_template_and_the_other_way_round() -> None:
    folders = {path.parent.name for path in (ROOT / "functions").glob("*/app.py")}
    assert folders == FUNCTIONS.keys()


def test_every_route_but_the_open_ones_is_behind_the_jwt_authorizer() -> None:
    """Read from what SAM generates: that is what API Gateway enforces."""
    template = to_cloudformation(TEMPLATE)
    [api] = resources_of(template, "AWS::ApiGatewayV2::Api").values()
    schemes = api["Properties"]["Body"]["components"]["securitySchemes"]
    assert schemes.keys() == {"CognitoJwt"}
    routes: dict[str, list[Any]] = {}
    for path, methods in api["Properties"]["Body"]["paths"].items():
        for method, route in methods.items():
            routes[f"{method.upper()} {path}"] = route.get("security", [])
    assert routes.keys() >= OPEN_ROUTES
    for route, security in routes.items():
        assert security == [{"NONE" if route in OPEN_ROUTES else "CognitoJwt": []}], route


def test_the_authorizer_takes_tokens_of_this_pool_and_client_only() -> None:
    auth = only("AWS::Serverless::HttpApi")["Properties"]["Auth"]
    assert auth["DefaultAuthorizer"] == "CognitoJwt"
    jwt = resolved(auth["Authorizers"]["CognitoJwt"]["JwtConfiguration"], TEMPLATE, parameters_of(TEMPLATE))
    environment = resolved(FUNCTIONS["claude"]["Environment"]["Variables"], TEMPLATE, parameters_of(TEMPLATE))
    assert jwt["issuer"] == environment["COGNITO_ISSUER"]
    assert jwt["audience"] == environment["COGNITO_CLIENT_IDS"].split(",") == ["<UserPoolClient>"]


def test_the_http_api_is_throttled_and_logs_no_credential() -> None:
    properties = only("AWS::Serverless::HttpApi")["Properties"]
    assert properties["FailOnWarnings"] is True
    assert 0 < properties["DefaultRouteSettings"]["ThrottlingRateLimit"] <= 1000
    assert 0 < properties["DefaultRouteSettings"]["ThrottlingBurstLimit"] <= 2000
    logged = set(re.findall(r"\$context\.([\w.]+)", properties["AccessLogSettings"]["Format"]))
    assert {"requestId", "routeKey", "status"} <= logged
    assert not any("claims" in name or "header" in name or "identity.user" in name for name in logged)


def test_the_claude_function_streams_from_a_url_that_it_guards_itself() -> None:
    claude = FUNCTIONS["claude"]
    assert claude["FunctionUrlConfig"]["AuthType"] == "NONE"
    assert claude["FunctionUrlConfig"]["InvokeMode"] == "RESPONSE_STREAM"
    wrapper = claude["Environment"]["Variables"]["AWS_LAMBDA_EXEC_WRAPPER"]
    assert wrapper == "/opt/python/tollgate_runtime/bootstrap"
    assert {"Ref": "StreamRuntimeLayer"} in claude["Layers"]
    assert "VpcConfig" not in claude  # a URL does not stream from inside a VPC
    template = to_cloudformation(TEMPLATE)
    granted = {
        permission["Properties"]["Action"]
        for permission in resources_of(template, "AWS::Lambda::Permission").values()
        if permission["Properties"]["Principal"] == "*"
    }
    assert granted == {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}  # both, since October 2025


def test_only_functions_with_the_stream_runtime_are_started_by_its_wrapper() -> None:
    for name, function in FUNCTIONS.items():
        has_layer = {"Ref": "StreamRuntimeLayer"} in function["Layers"]
        assert ("AWS_LAMBDA_EXEC_WRAPPER" in function["Environment"]["Variables"]) == has_layer, name


def test_timeouts_leave_room_below_what_lambda_allows() -> None:
    """A caller who left is not noticed and is paid for to the end; API Gateway itself gives up after 30 s."""
    for name, function in FUNCTIONS.items():
        kinds = {event["Type"] for event in function.get("Events", {}).values()}
        assert function["Timeout"] <= (30 if "HttpApi" in kinds else 600), name


# --- Browsers -------------------------------------------------------------------------------------------------------

ASKED_BY_THE_SDK_IN_A_BROWSER = {
    "authorization",
    "content-type",
    "anthropic-version",
    "anthropic-dangerous-direct-browser-access",
    "x-stainless-arch",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
}
READ_BY_CLIENTS = {
    "request-id",
    "retry-after",
    "x-should-retry",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-tokens-limit",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-tokens-reset",
}


def url_cors(**parameters: str) -> Node:
    cors = FUNCTIONS["claude"]["FunctionUrlConfig"]["Cors"]
    return resolved(cors, TEMPLATE, parameters_of(TEMPLATE, **parameters))


def api_cors(**parameters: str) -> Node:
    """As generated: SAM would pass on a list parameter as one string."""
    template = to_cloudformation(TEMPLATE, **parameters)
    [api] = resources_of(template, "AWS::ApiGatewayV2::Api").values()
    cors = api["Properties"]["Body"]["x-amazon-apigateway-cors"]
    return resolved(cors, TEMPLATE, parameters_of(TEMPLATE, **parameters))


def test_anthropics_client_works_from_a_browser() -> None:
    cors = url_cors()
    allowed = cors["AllowHeaders"]
    assert ASKED_BY_THE_SDK_IN_A_BROWSER | {"x-api-key", "anthropic-beta"} <= set(allowed)
    assert set(cors["ExposeHeaders"]) >= READ_BY_CLIENTS
    assert {"GET", "POST"} <= set(cors["AllowMethods"])
    for names in (allowed, cors["ExposeHeaders"]):
        assert names == sorted({name.lower() for name in names})
        assert "*" not in names
        assert len(names) <= 100


@pytest.mark.parametrize("origins", ["*", "https://a.example.com", "https://a.example.com,https://b.example.com"])
def test_origins_are_a_list_and_none_is_trusted_with_cookies(origins: str) -> None:
    url, api = url_cors(AllowedOrigins=origins), api_cors(AllowedOrigins=origins)
    assert url["AllowOrigins"] == api["allowOrigins"] == origins.split(",")
    assert url["AllowCredentials"] is False
    assert "allowCredentials" not in api


def test_without_an_origin_browsers_are_kept_out() -> None:
    assert url_cors(AllowedOrigins="") is api_cors(AllowedOrigins="") is NO_VALUE


# --- Secrets and configuration --------------------------------------------------------------------------------------


def test_no_variable_holds_a_secret() -> None:
    """Those that are named like one hold the name of an SSM parameter."""
    parameters = parameters_of(TEMPLATE)
    for name, function in FUNCTIONS.items():
        for variable, value in resolved(function["Environment"]["Variables"], TEMPLATE, parameters).items():
            if SECRET_LIKE.search(variable) and variable not in NAMED_LIKE_A_SECRET:
                assert variable.endswith("_PARAMETER"), f"{name}: {variable}"
                assert value.startswith(f"/tollgate/{parameters['Stage']}/"), f"{name}: {variable}"
            assert "sk-ant-" not in str(value)
            assert not re.search("(sk|rk|whsec)_", str(value))


SECRETS_OF = {
    # Who deletes an account ends what is paid for.
    "auth": {"KEY_PEPPER_PARAMETER", "STRIPE_SECRET_KEY_PARAMETER"},
    "billing": {"KEY_PEPPER_PARAMETER", "STRIPE_SECRET_KEY_PARAMETER"},
    "stripe_webhook": {"STRIPE_SECRET_KEY_PARAMETER", "STRIPE_WEBHOOK_SECRET_PARAMETER"},
    "usage_reset": {"STRIPE_SECRET_KEY_PARAMETER"},
    "notices": {"OPERATOR_WEBHOOK_SECRET_PARAMETER"},
    "api_keys": {"KEY_PEPPER_PARAMETER"},
    "claude": {"KEY_PEPPER_PARAMETER", "UPSTREAM_API_KEY_PARAMETER"},
}


def test_secrets_reach_only_the_function_that_uses_them() -> None:
    for name, function in FUNCTIONS.items():
        variables = function["Environment"]["Variables"].keys()
        named = {variable for variable in variables if variable.endswith("_PARAMETER")}
        assert named == SECRETS_OF.get(name, set()), name


@pytest.mark.parametrize(
    ("stage", "asked", "accepted"),
    [("dev", "true", "true"), ("dev", "false", "false"), ("prod", "true", "false"), ("prod", "false", "false")],
)
def test_test_keys_are_never_accepted_in_production(stage: str, asked: str, accepted: str) -> None:
    parameters = parameters_of(TEMPLATE, Stage=stage, AllowTestKeys=asked)
    for function in FUNCTIONS.values():
        assert resolved(function["Environment"]["Variables"]["ALLOW_TEST_KEYS"], TEMPLATE, parameters) == accepted


def test_endpoints_are_declared_and_empty() -> None:
    """`sam local` passes on only what the template declares; empty means AWS's own."""
    for function in FUNCTIONS.values():
        services = ("COGNITO_IDENTITY_PROVIDER", "DYNAMODB", "SSM")
        for variable in (*(f"AWS_ENDPOINT_URL_{service}" for service in services), "COGNITO_JWKS_URL"):
            assert function["Environment"]["Variables"][variable] == ""
    for name, function in FUNCTIONS.items():
        variables = function["Environment"]["Variables"]
        assert variables.get("STRIPE_API_BASE_URL", "") == "", name
        assert ("STRIPE_API_BASE_URL" in variables) == ("STRIPE_SECRET_KEY_PARAMETER" in variables), name
        assert variables.get("AWS_ENDPOINT_URL_SQS", "") == "", name
    assert "AWS_ENDPOINT_URL_SQS" in FUNCTIONS["stripe_webhook"]["Environment"]["Variables"]


def test_pruned_layers_keep_every_aws_service_that_code_calls() -> None:
    called = set()
    for folder in ("layers", "functions"):
        for source in (ROOT / folder).rglob("*.py"):
            called |= set(re.findall(r"""(?:client|resource)\(\s*["']([a-z0-9-]+)["']""", source.read_text()))
    assert called <= BOTO_SERVICES


# --- Publishing -----------------------------------------------------------------------------------------------------


def published_version(artifact: str = "s3://artifacts/1", **parameters: str) -> tuple[str, str]:
    """What decides whether CloudFormation publishes anew: the version's logical id and its description."""
    template = to_cloudformation(TEMPLATE, artifact=artifact, **parameters)
    [(name, version)] = resources_of(template, "AWS::Lambda::Version").items()
    description = resolved(version["Properties"]["Description"], template, parameters_of(TEMPLATE, **parameters))
    return name, description


CHANGES = {
    "Stage": "prod",
    "Architecture": "x86_64",
    "LogLevel": "DEBUG",
    "Catalog": "calls",
    "DefaultPlan": "pro",
    "AllowTestKeys": "true",
    "MaxBodyBytes": "1000000",
    "UpstreamBaseUrl": "https://claude.example.com",
    "UpstreamApiKeyParameter": "/elsewhere/key",
    "KeyPepperParameter": "/elsewhere/pepper",
    "SnapStart": "PublishedVersions",
}


@pytest.mark.parametrize("parameter", CHANGES)
def test_a_changed_parameter_publishes_a_new_version_of_the_claude_function(parameter: str) -> None:
    """Otherwise its URL would go on serving the old value."""
    assert published_version(**{parameter: CHANGES[parameter]}) != published_version()


def test_every_parameter_that_reaches_the_claude_function_is_among_them() -> None:
    claude = {key: FUNCTIONS["claude"][key] for key in ("Environment", "Architectures", "SnapStart", "LoggingConfig")}
    used = set(re.findall(r"""'Ref': '(\w+)'|\$\{(\w+)\}""", str(claude)))
    names = {name for pair in used for name in pair if name in TEMPLATE["Parameters"]}
    assert names | {"AllowTestKeys"} == CHANGES.keys()


def test_changed_code_or_layers_publish_a_new_version() -> None:
    assert published_version(artifact="s3://artifacts/2") != published_version()


def test_the_longest_description_of_a_version_is_one_that_lambda_takes() -> None:
    longest = {
        name: "x" * (parameter.get("MaxLength") or max(len(str(value)) for value in parameter["AllowedValues"]))
        for name, parameter in TEMPLATE["Parameters"].items()
        if name in CHANGES and ("MaxLength" in parameter or "AllowedValues" in parameter)
    }
    longest |= {"Stage": "x" * 20, "MaxBodyBytes": "6291456"}
    assert longest.keys() == CHANGES.keys()
    parts = resolved(FUNCTIONS["claude"]["VersionDescription"], TEMPLATE, parameters_of(TEMPLATE, **longest))
    assert len(parts) <= 256


# --- Data -----------------------------------------------------------------------------------------------------------


def test_the_table_is_the_one_that_storage_expects() -> None:
    table = only("AWS::DynamoDB::Table")["Properties"]
    assert [key["AttributeName"] for key in table["KeySchema"]] == ["PK", "SK"]
    [index] = table["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "GSI1"
    assert [key["AttributeName"] for key in index["KeySchema"]] == ["GSI1PK", "GSI1SK"]
    assert index["Projection"] == {"ProjectionType": "KEYS_ONLY"}
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert table["BillingMode"] == "PAY_PER_REQUEST"


def test_data_outlives_mistakes() -> None:
    table, pool = only("AWS::DynamoDB::Table"), only("AWS::Cognito::UserPool")
    for resource in (table, pool):
        assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain"
    assert table["Properties"]["DeletionProtectionEnabled"] is True
    assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["Properties"]["SSESpecification"] == {"SSEEnabled": True}
    assert pool["Properties"]["DeletionProtection"] == "ACTIVE"


def test_a_client_may_write_its_email_and_name_and_nothing_else() -> None:
    """Left out, all standard attributes could be written; custom ones would tempt code to trust them."""
    client = only("AWS::Cognito::UserPoolClient")["Properties"]
    assert client["WriteAttributes"] == ["email", "name"]
    assert not any(name.startswith("custom:") for name in client["WriteAttributes"] + client["ReadAttributes"])
    schema = only("AWS::Cognito::UserPool")["Properties"]["Schema"]
    assert [attribute["Name"] for attribute in schema] == ["email"]


def test_sign_in_reveals_no_accounts_and_tokens_end() -> None:
    client = only("AWS::Cognito::UserPoolClient")["Properties"]
    assert client["PreventUserExistenceErrors"] == "ENABLED"
    assert client["EnableTokenRevocation"] is True
    assert client["GenerateSecret"] is False
    assert set(client["ExplicitAuthFlows"]) == {"ALLOW_USER_SRP_AUTH", "ALLOW_USER_PASSWORD_AUTH"}
    # A stolen refresh token ends when its owner's is used; Cognito wants the old flow off for that.
    assert client["RefreshTokenRotation"]["Feature"] == "ENABLED"
    assert 0 < client["RefreshTokenRotation"]["RetryGracePeriodSeconds"] <= 60
    assert client["TokenValidityUnits"]["AccessToken"] == "minutes"
    assert client["AccessTokenValidity"] <= 60
    policy = only("AWS::Cognito::UserPool")["Properties"]["Policies"]["PasswordPolicy"]
    assert policy["MinimumLength"] == SHORTEST_PASSWORD >= 12


def test_a_second_factor_is_each_users_own_choice() -> None:
    pool = only("AWS::Cognito::UserPool")["Properties"]
    assert pool["MfaConfiguration"] == "OPTIONAL"
    assert pool["EnabledMfas"] == ["SOFTWARE_TOKEN_MFA"]  # no text messages: they cost, and numbers are stolen


def test_the_pool_asks_the_trigger_in_the_version_that_reaches_access_tokens() -> None:
    pool = only("AWS::Cognito::UserPool")["Properties"]
    arn = {"Fn::GetAtt": ["PreTokenGenerationFunction", "Arn"]}
    assert pool["LambdaConfig"] == {"PreTokenGenerationConfig": {"LambdaArn": arn, "LambdaVersion": "V2_0"}}
    assert pool["UserPoolTier"] == "ESSENTIALS"
    permission = TEMPLATE["Resources"]["PreTokenGenerationPermission"]["Properties"]
    assert permission["FunctionName"] == arn
    assert permission["Principal"] == "cognito-idp.amazonaws.com"
    assert permission["SourceArn"] == {"Fn::GetAtt": ["UserPool", "Arn"]}
    assert FUNCTIONS["pre_token_generation"]["Timeout"] < 5  # then Cognito gives up


def test_the_trigger_does_not_name_the_pool_that_names_it() -> None:
    """CloudFormation could make neither first."""
    function = to_cloudformation(TEMPLATE)["Resources"]["PreTokenGenerationFunction"]["Properties"]
    assert "UserPool" not in str(function)


# --- Sign-in page ---------------------------------------------------------------------------------------------------

SIGN_IN_PAGE = {
    "SignInDomainPrefix": "acme-chat",
    "CallbackUrls": "https://app.example.com/callback,com.example.app://callback,http://localhost:8400/callback",
    "LogoutUrls": "https://app.example.com/",
}


def resolved_client(**parameters: str) -> dict[str, Any]:
    properties = only("AWS::Cognito::UserPoolClient")["Properties"]
    client: dict[str, Any] = resolved(properties, TEMPLATE, parameters_of(TEMPLATE, **parameters))
    return {name: value for name, value in client.items() if value is not NO_VALUE}


def test_the_sign_in_page_gives_codes_to_exactly_these_addresses() -> None:
    client = resolved_client(**SIGN_IN_PAGE)
    assert client["AllowedOAuthFlowsUserPoolClient"] is True
    assert client["AllowedOAuthFlows"] == ["code"]
    assert client["GenerateSecret"] is False  # so Cognito wants PKCE's proof
    assert client["CallbackURLs"] == SIGN_IN_PAGE["CallbackUrls"].split(",")
    assert client["LogoutURLs"] == ["https://app.example.com/"]
    assert set(client["AllowedOAuthScopes"]) == {"openid", "email", "profile", "aws.cognito.signin.user.admin"}


@pytest.mark.parametrize("missing", [{"SignInDomainPrefix", "CallbackUrls", "LogoutUrls"}, {"CallbackUrls"}])
def test_without_its_parameters_there_is_no_sign_in_page(missing: set[str]) -> None:
    client = resolved_client(**{name: value for name, value in SIGN_IN_PAGE.items() if name not in missing})
    assert not {name for name in client if "OAuth" in name or name.endswith("URLs")}


@pytest.mark.parametrize("name", ["CallbackUrls", "LogoutUrls"])
def test_addresses_are_encrypted_except_on_the_users_own_machine(name: str) -> None:
    pattern = re.compile(TEMPLATE["Parameters"][name]["AllowedPattern"])
    for address in (
        "",
        "https://app.example.com/callback",
        "http://localhost",
        "http://localhost:8400/callback",
        "com.example.app://callback",
        "com.example.app:/callback",
        "https://a.example.com/,https://b.example.com/x?y=1",
    ):
        assert pattern.fullmatch(address), address
    for address in (
        "http://app.example.com/callback",
        "http://localhost.example.com/callback",
        "http://localhost@example.com/",
        "https://*.example.com/",
        "https://app.example.com/#x",
        "javascript://x",
        "javascript:alert(1)",
        "app://callback",
        "https://a.example.com/, https://b.example.com/",
        "https://a.example.com/,",
    ):
        assert not pattern.fullmatch(address), address


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("", True),
        ("https://hooks.example.com/t", True),
        ("https://hooks.example.com:8443/t/1", True),
        ("https://localhost", True),
        (f"https://{'a' * 63}.example.com", True),
        (f"https://{'a' * 64}.example.com", False),
        ("https://a..b/x", False),
        ("https://-a.example.com", False),
        ("https://.example.com", False),
        ("http://hooks.example.com", False),
        ("https://hooks.example.com/?key=1", False),
    ],
)
def test_notices_go_to_an_address_that_can_be_one(url: str, taken: bool) -> None:
    pattern = TEMPLATE["Parameters"]["OperatorWebhookUrl"]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, url)) is taken


# --- Stripe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "mode", "live"),
    [
        ("dev", "auto", "false"),
        ("prod", "auto", "true"),
        ("prod", "test", "false"),
        ("dev", "live", "true"),
        ("prod", "live", "true"),
    ],
)
def test_real_money_is_taken_in_production_unless_said_otherwise(stage: str, mode: str, live: str) -> None:
    parameters = parameters_of(TEMPLATE, Stage=stage, StripeMode=mode)
    variables = resolved(FUNCTIONS["stripe_webhook"]["Environment"]["Variables"], TEMPLATE, parameters)
    assert variables["STRIPE_LIVEMODE"] == live


def test_no_event_of_stripes_is_worked_on_twice_at_once_or_lost() -> None:
    function = FUNCTIONS["stripe_webhook"]
    queue = TEMPLATE["Resources"]["StripeEventQueue"]["Properties"]
    [source] = [event["Properties"] for event in function["Events"].values() if event["Type"] == "SQS"]
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"]  # as AWS advises
    assert queue["RedrivePolicy"] == {
        "deadLetterTargetArn": {"Fn::GetAtt": ["StripeEventDeadLetterQueue", "Arn"]},
        "maxReceiveCount": 20,
    }
    assert queue["VisibilityTimeout"] * 20 >= 3600  # as long as an invoice is a draft that can still be told
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]  # one bad event keeps no other waiting
    dead_letters = TEMPLATE["Resources"]["StripeEventDeadLetterQueue"]["Properties"]
    assert dead_letters["MessageRetentionPeriod"] == queue["MessageRetentionPeriod"] == 14 * 24 * 3600
    kept = function["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]
    assert kept == {"Type": "SQS", "Destination": {"Fn::GetAtt": ["StripeEventDeadLetterQueue", "Arn"]}}
    assert function["Timeout"] < LEASE_SECONDS  # a lease ends after its owner


def test_an_event_bus_is_listened_to_only_when_it_is_named() -> None:
    def parts(**parameters: str) -> set[str]:
        kinds = ("AWS::Events::Rule", "AWS::SQS::QueuePolicy")
        template = to_cloudformation(TEMPLATE, **parameters)
        conditions = {"HasStripeEventBus": bool(parameters)}
        return {
            kind
            for kind in kinds
            for resource in resources_of(template, kind).values()
            if conditions.get(resource.get("Condition", ""), True)
        }

    assert parts() == set()
    assert parts(StripeEventBus="aws.partner/stripe.com/ed_test_1") == {"AWS::Events::Rule", "AWS::SQS::QueuePolicy"}


@pytest.mark.parametrize(
    ("urls", "taken"),
    [
        ("", True),
        ("https://app.example.com", True),
        ("https://app.example.com/billing,http://localhost:3000/billing", True),
        ("http://app.example.com", False),
        ("https://App.example.com", False),
        ("https://user@app.example.com", False),
        ("https://app.example.com/%2e", False),
        ("https://app.example.com?x=1", False),
        ("https://app.example.com ,https://b.example.com", False),
    ],
)
def test_pages_to_return_to_are_plain_addresses(urls: str, taken: bool) -> None:
    """What the template takes, the function takes as well: a deployment that starts."""
    pattern = TEMPLATE["Parameters"]["BillingReturnUrls"]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, urls)) is taken
    if taken:
        read = load_settings({"STAGE": "dev", "TABLE_NAME": "t", "BILLING_RETURN_URLS": urls}).billing_return_urls
        assert ",".join(read) == urls
    else:
        with pytest.raises(ConfigurationError, match="BILLING_RETURN_URLS"):
            load_settings({"STAGE": "dev", "TABLE_NAME": "t", "BILLING_RETURN_URLS": urls})


# --- Schedule, logs, alarms -----------------------------------------------------------------------------------------


def test_a_failed_hourly_run_is_retried_and_then_kept() -> None:
    function = FUNCTIONS["usage_reset"]
    [schedule] = [event["Properties"] for event in function["Events"].values() if event["Type"] == "ScheduleV2"]
    assert schedule["RetryPolicy"]["MaximumRetryAttempts"] >= 1
    assert schedule["RetryPolicy"]["MaximumEventAgeInSeconds"] < 3600  # the next run comes anyway
    kept_by_lambda = function["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]["Destination"]
    assert schedule["DeadLetterConfig"]["Arn"] == kept_by_lambda == {"Fn::GetAtt": ["UsageResetDeadLetterQueue", "Arn"]}
    dead_letters = TEMPLATE["Resources"]["UsageResetDeadLetterQueue"]["Properties"]
    assert dead_letters["MessageRetentionPeriod"] == 14 * 24 * 3600
    assert dead_letters["SqsManagedSseEnabled"] is True
    assert schedule["Name"] != "UsageResetFunctionHourly"  # SAM's own, the same in every stack


def test_a_generation_is_never_run_twice_by_lambda_itself() -> None:
    assert FUNCTIONS["claude"]["EventInvokeConfig"]["MaximumRetryAttempts"] == 0


def test_every_function_logs_to_a_group_of_its_own_that_forgets() -> None:
    groups = resources_of(TEMPLATE, "AWS::Logs::LogGroup")
    used = [function["LoggingConfig"]["LogGroup"]["Ref"] for function in FUNCTIONS.values()]
    assert len(used) == len(set(used)) == len(FUNCTIONS)
    access_log = only("AWS::Serverless::HttpApi")["Properties"]["AccessLogSettings"]["DestinationArn"]
    assert set(groups) - set(used) == {"HttpApiLogGroup"}
    assert "HttpApiLogGroup" in str(access_log)
    for name, group in groups.items():
        assert group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
        assert "AWS::StackName" in str(group["Properties"]["LogGroupName"]), name


def test_every_alarm_reaches_the_topic_and_names_its_runbook_section() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    alarms = resources_of(TEMPLATE, "AWS::CloudWatch::Alarm")
    assert len(alarms) <= 17  # ten are free, each more is $0.10 a month: docs/operations.md, "What it costs"
    for name, alarm in alarms.items():
        properties = alarm["Properties"]
        assert properties["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        assert properties["TreatMissingData"] == "notBreaching", name  # no traffic is no fault
        section = re.search(r'"([^"]+)"\.?$', properties["AlarmDescription"].strip())
        assert section, name
        assert f"### {section[1]}" in runbook, name


def test_the_alarms_watch_what_hurts() -> None:
    watched = {
        (
            alarm["Properties"]["Namespace"] if isinstance(alarm["Properties"]["Namespace"], str) else "Tollgate",
            alarm["Properties"]["MetricName"],
        )
        for alarm in resources_of(TEMPLATE, "AWS::CloudWatch::Alarm").values()
    }
    assert watched == {
        ("AWS/Lambda", "Errors"),
        ("AWS/Lambda", "Throttles"),
        ("AWS/Lambda", "Duration"),
        ("AWS/Lambda", "Url5xxCount"),
        ("AWS/ApiGateway", "5xx"),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
        ("Tollgate", "NoticesGivenUp"),
        ("Tollgate", "PeriodsLeftOpen"),
        ("Tollgate", "PeriodsUnreconciled"),
        ("Tollgate", "UpstreamKeyFaults"),
        ("Tollgate", "PromptAboveBound"),
        ("Tollgate", "StripeAlarms"),
    }


def test_the_duration_alarm_rings_at_four_fifths_of_the_timeout() -> None:
    [alarm] = [
        alarm["Properties"]
        for alarm in resources_of(TEMPLATE, "AWS::CloudWatch::Alarm").values()
        if alarm["Properties"]["MetricName"] == "Duration"
    ]
    assert alarm["Threshold"] == FUNCTIONS["claude"]["Timeout"] * 1000 * 8 // 10


def test_our_own_metrics_are_ones_that_code_emits() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "layers" / "core").rglob("*.py"))
    sources += "".join(path.read_text() for path in (ROOT / "functions").rglob("*.py"))
    for name, alarm in resources_of(TEMPLATE, "AWS::CloudWatch::Alarm").items():
        properties = alarm["Properties"]
        if "Tollgate" in str(properties["Namespace"]):
            assert f'"{properties["MetricName"]}"' in sources, name
            [service] = [dimension["Value"] for dimension in properties["Dimensions"]]
            assert service in FUNCTIONS, name


# --- What stands in for it ------------------------------------------------------------------------------------------


def keys_of(table: Any) -> dict[str, Any]:  # noqa: ANN401  boto3's TableDescription
    """What makes a table that table: keys, and the index with its projection."""
    [index] = table["GlobalSecondaryIndexes"]
    return {
        "keys": table["KeySchema"],
        "index": (index["IndexName"], index["KeySchema"], index["Projection"]),
        "attributes": sorted(table["AttributeDefinitions"], key=lambda attribute: attribute["AttributeName"]),
    }


def test_tests_use_a_table_with_the_templates_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two helpers make tables for tests; neither may drift from what is deployed."""
    expected = keys_of(only("AWS::DynamoDB::Table")["Properties"])
    with moto_table(monkeypatch) as table:
        assert keys_of(table.client.describe_table(TableName=table.name)["Table"]) == expected
        engines.create_table(table.client, "another")
        assert keys_of(table.client.describe_table(TableName="another")["Table"]) == expected
