"""`make build` on a copy of the project: what would be uploaded starts, answers, deploys, and carries its byte code.

Built for this machine's processor so that it can run here, with python3.13 wherever it is found; without one, a copy of
the template that names the running version is built, and the test says so.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from dev.engines import EngineError, install_engines, start_ministack
from dev.packaging import BOTO_SERVICES, build, find_python, find_sam, runtime_version
from dev.processes import Processes
from dev.runtime_api import Buffered, Chunk, Prelude, RuntimeApi
from tests.support.sam import ROOT, environment_of, load_template, resources_of

pytestmark = pytest.mark.slow

TEMPLATE = load_template()
ARCHITECTURE = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
SOURCES = ("template.yaml", "samconfig.toml", "layers", "functions")
LAYER_MEGABYTES_AT_MOST = {"CoreLayer": 85, "StreamRuntimeLayer": 4}
"""A cold start loads them: growth should be somebody's decision."""
HEAVY = {"anthropic", "hypothesis", "litellm", "moto", "psutil", "pytest", "rich", "typer", "uvicorn"}
"""Not in the core layer: nothing that is deployed needs them."""


@dataclass(frozen=True, slots=True)
class Built:
    """A project folder after the build."""

    root: Path
    python: Path
    seconds: float

    @property
    def folder(self) -> Path:
        return self.root / ".aws-sam" / "build"

    def run_python(self, code: str, *paths: Path) -> str:
        """Runs code on the deployed version with these folders and the standard library, and nothing else."""
        program = f"import sys; sys.path[:0] = {[str(path) for path in paths]}\n{code}"
        done = subprocess.run(
            [self.python, "-I", "-S", "-B", "-c", program], capture_output=True, text=True, env={}, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def say(line: str) -> None:
    """Shown with the test's captured output, and by `pytest -rA`."""
    sys.stdout.write(f"{line}\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if find_sam() is None:
        pytest.skip("aws-sam-cli is not installed; `make build` installs it into .dev/sam")
    root = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        copy: Callable[..., Any] = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    template = root / "template.yaml"
    version = runtime_version(template)
    python = find_python(version, os.environ)
    if python is None:
        running = "{}.{}".format(*sys.version_info[:2])
        say(f"no python{version} with pip on this machine: building for python{running} instead")
        template.write_text(template.read_text().replace(f"python{version}", f"python{running}"))
        python = find_python(running, os.environ)
        if python is None:
            pytest.skip(f"python{running} has no pip, and sam build needs one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("__SAM_CLI_APP_DIR", str(root / "sam"))  # or it would note its telemetry choice in the home folder
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        started = time.monotonic()
        build(["--parameter-overrides", f"Architecture={ARCHITECTURE}"], root)
    built = Built(root, python, time.monotonic() - started)
    say(f"built in {built.seconds:.1f} s")
    return built


def test_every_function_and_layer_is_built(built: Built) -> None:
    artifacts = {path.name for path in built.folder.iterdir() if path.is_dir()}
    layers = resources_of(TEMPLATE, "AWS::Serverless::LayerVersion")
    assert artifacts == layers.keys() | resources_of(TEMPLATE, "AWS::Serverless::Function").keys()
    assert built.seconds < 90


def test_every_source_file_has_byte_code_that_is_never_compared_with_it(built: Built) -> None:
    """Read by the deployed version itself: its magic number, the unchecked flag, the hash of this very source."""
    code = """
import importlib.util, pathlib
sources = list(pathlib.Path(sys.path[0]).rglob("*.py"))
for source in sources:
    header = pathlib.Path(importlib.util.cache_from_source(str(source))).read_bytes()[:16]
    expected = importlib.util.MAGIC_NUMBER + b"\\1\\0\\0\\0" + importlib.util.source_hash(source.read_bytes())
    assert header == expected, source
print(len(sources))
"""
    assert int(built.run_python(code, built.folder)) > 500
    byte_codes = [path for path in built.folder.rglob("*.pyc") if path.parent.name == "__pycache__"]
    assert len(byte_codes) == int(built.run_python(code, built.folder))


def test_byte_code_names_the_deployed_place_and_not_this_machine(built: Built) -> None:
    """The same source gives the same bytes wherever it is built, so an unchanged layer is not uploaded again."""
    for path in built.folder.rglob("*.pyc"):
        assert str(built.root).encode() not in path.read_bytes(), path


def test_importing_from_a_layer_reads_byte_code_only(built: Built) -> None:
    layer = built.folder / "CoreLayer" / "python"
    code = """
import tollgate.wiring, tollgate
compiled = [m for m in list(sys.modules.values()) if (getattr(m, "__file__", None) or "").startswith(sys.path[0])]
import pathlib
assert compiled
for module in compiled:
    if module.__file__.endswith(".py"):
        assert pathlib.Path(module.__cached__).is_file(), module
print(tollgate.__file__)
"""
    assert Path(built.run_python(code, layer).strip()).parent == layer / "tollgate"


def test_layers_hold_what_is_needed_and_no_more(built: Built) -> None:
    core = built.folder / "CoreLayer" / "python"
    names = {path.name for path in core.iterdir()}
    assert not HEAVY & names
    services = {path.name for path in (core / "botocore" / "data").iterdir() if path.is_dir()}
    assert services == BOTO_SERVICES
    assert list(core.glob("*.dist-info/licenses/*")), "licences travel with the code"
    assert not list(built.folder.rglob("tests"))
    for name, limit in LAYER_MEGABYTES_AT_MOST.items():
        size = sum(path.stat().st_size for path in (built.folder / name).rglob("*") if path.is_file())
        say(f"{name}: {size / 1e6:.1f} MB")
        assert size < limit * 1_000_000, name


def test_nothing_is_deployed_that_only_develops_or_documents(built: Built) -> None:
    """Each function is its handler; layers are our package and what it imports."""
    for name in resources_of(TEMPLATE, "AWS::Serverless::Function"):
        files = {path.name for path in (built.folder / name).rglob("*.py")}
        assert files == {"app.py"}, name
        assert {path.suffix for path in (built.folder / name).rglob("*") if path.is_file()} == {".py", ".pyc"}, name
    for layer in resources_of(TEMPLATE, "AWS::Serverless::LayerVersion"):
        names = {path.name for path in (built.folder / layer / "python").iterdir()}
        assert not names & {"bench", "dev", "docs", "events", "functions", "tests", "tollgate_cli", "examples"}, layer
        assert not list((built.folder / layer).rglob("*.min.*")), layer
    assert not (built.folder / "CoreLayer" / "python" / "boto3" / "examples").exists()


def test_clients_of_every_kept_service_can_be_made_from_the_pruned_layer(built: Built) -> None:
    code = f"""
import botocore.session
session = botocore.session.Session()
for service in {sorted(BOTO_SERVICES)}:
    session.create_client(service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
print(session.get_available_services())
"""
    assert built.run_python(code, built.folder / "CoreLayer" / "python").strip() == str(sorted(BOTO_SERVICES))


def test_stripes_client_asks_without_the_types_that_were_pruned(built: Built) -> None:
    """8 of its 17 MB describe parameters to type checkers; nothing of them is imported when it runs."""
    layer = built.folder / "CoreLayer" / "python"
    assert not (layer / "stripe" / "params").exists()
    code = """
import stripe
class Wire(stripe.HTTPClient):
    name = "none"
    def request(self, method, url, headers, post_data=None, **_):
        return '{"id": "x", "object": "customer", "data": [], "has_more": false, "url": "/v1/x"}', 200, {}
api = stripe.StripeClient("sk_test_x", http_client=Wire())
api.v1.customers.create({"metadata": {"a": "b"}}, {"idempotency_key": "k"})
api.v1.subscriptions.list({"customer": "x", "expand": ["data.schedule"]})
api.v1.checkout.sessions.create({"mode": "subscription", "line_items": [{"price": "x", "quantity": 1}]})
api.v1.invoices.create_preview({"subscription": "x", "subscription_details": {"items": [{"id": "x"}]}})
api.v1.billing.meter_events.create({"event_name": "x", "payload": {"value": "1"}})
print("asked")
"""
    assert built.run_python(code, layer).strip() == "asked"


def test_the_wrapper_can_be_executed(built: Built) -> None:
    wrapper = built.folder / "StreamRuntimeLayer" / "python" / "tollgate_runtime" / "bootstrap"
    assert os.access(wrapper, os.X_OK)


# --- Running it -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Container:
    """A built function behind a Lambda Runtime API, started the way Lambda starts it."""

    api: RuntimeApi

    def invoke(self, event: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        arn = "arn:aws:lambda:us-east-1:111122223333:function:tollgate-test"
        invocation = self.api.invoke(event, request_id=str(uuid.uuid4()), timeout_seconds=20, function_arn=arn)
        status, body = 0, b""
        for part in invocation.parts(20):
            match part:
                case Prelude():
                    status = part.status_code
                case Chunk():
                    body += part.data
                case Buffered():
                    answer = json.loads(part.payload)
                    status, body = answer["statusCode"], answer.get("body", "").encode()
                case _:
                    pytest.fail(f"{part}")
        return status, body


@pytest.fixture
def start_container(built: Built, tmp_path: Path) -> Iterator[Callable[[str], Container]]:
    started: list[tuple[RuntimeApi, subprocess.Popen[bytes]]] = []

    def start(function: str) -> Container:
        names = {
            properties["Properties"]["CodeUri"].removeprefix("functions/"): name
            for name, properties in resources_of(TEMPLATE, "AWS::Serverless::Function").items()
        }
        task = built.folder / names[function]
        layers = [built.folder / name / "python" for name in ("CoreLayer", "StreamRuntimeLayer")]
        api = RuntimeApi()
        environ = environment_of(function, TEMPLATE) | {
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "AWS_LAMBDA_FUNCTION_NAME": function,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
            "LAMBDA_TASK_ROOT": str(task),
            "_HANDLER": "app.handler",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(path) for path in [task, *layers]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [str(built.python), "-m", "awslambdaric", "app.handler"]
        if "AWS_LAMBDA_EXEC_WRAPPER" in environ:
            wrapper = layers[1] / environ["AWS_LAMBDA_EXEC_WRAPPER"].removeprefix("/opt/python/")
            command = [str(wrapper), str(built.python), "/var/runtime/bootstrap.py"]
        with (tmp_path / f"{function}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=task, env=environ, stdout=log, stderr=log)
        started.append((api, process))
        api.wait_ready(20)
        return Container(api)

    yield start
    for api, process in started:
        process.kill()
        process.wait()
        api.close()


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ("auth-health", 200),
        ("auth-me-no-authorizer", 401),
        ("usage-current-no-authorizer", 401),
        ("billing-plans", 200),
        ("billing-status-no-authorizer", 401),
        ("claude-hello", 200),
        ("claude-messages-no-auth", 401),
    ],
)
def test_a_built_function_answers(event: str, status: int, start_container: Callable[[str], Container]) -> None:
    """Those events that need no table; the others run in tests/functions."""
    container = start_container(event.partition("-")[0])
    answered, body = container.invoke((ROOT / "events" / f"{event}.json").read_bytes())
    assert answered == status
    if status == 401:
        assert json.loads(body)["error"]["type"] == "authentication_error"


# --- Deploying it ---------------------------------------------------------------------------------------------------


def test_sam_deploy_asks_nothing_and_brings_the_stack_up(built: Built, tmp_path: Path) -> None:
    """The real `sam deploy`, nobody at the keyboard, against an emulator: samconfig.toml answers every question."""
    try:
        install_engines()
    except EngineError as error:
        pytest.skip(f"ministack cannot be installed: {error}")
    processes = Processes()
    try:
        endpoint = start_ministack(processes, tmp_path / "state", tmp_path / "log").url
        deployed = subprocess.run(
            [str(find_sam()), "deploy", "--no-progressbar"],
            cwd=built.root,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "SAM_CLI_TELEMETRY": "0",
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        account = boto3.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")
        assert_stack_is_up(account, endpoint)
    finally:
        processes.stop_all(gently=False)


def assert_stack_is_up(account: Any, endpoint: str) -> None:  # noqa: ANN401  a boto3 session
    stacks, functions, dynamodb, pools = (
        account.client(service, endpoint_url=endpoint)
        for service in ("cloudformation", "lambda", "dynamodb", "cognito-idp")
    )
    [stack] = stacks.describe_stacks(StackName="tollgate-dev")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    # Those with a condition belong to parts that a deployment chooses.
    assert outputs.keys() == {name for name, output in TEMPLATE["Outputs"].items() if "Condition" not in output}
    table = dynamodb.describe_table(TableName=outputs["TableName"])["Table"]
    assert table["DeletionProtectionEnabled"] is True
    assert [index["IndexName"] for index in table["GlobalSecondaryIndexes"]] == ["GSI1"]
    pool = pools.describe_user_pool_client(UserPoolId=outputs["UserPoolId"], ClientId=outputs["UserPoolClientId"])
    assert pool["UserPoolClient"]["WriteAttributes"] == ["email", "name"]
    resources = {
        resource["LogicalResourceId"]: resource["PhysicalResourceId"]
        for page in stacks.get_paginator("list_stack_resources").paginate(StackName="tollgate-dev")
        for resource in page["StackResourceSummaries"]
    }
    for name in resources_of(TEMPLATE, "AWS::Serverless::Function"):
        configuration = functions.get_function_configuration(FunctionName=resources[name])
        variables = configuration["Environment"]["Variables"]
        assert variables["TABLE_NAME"] == outputs["TableName"]
        # The pool calls the first, so it cannot know the pool's client: that would be a circle. Nobody's token comes to
        # the others.
        knows_no_tokens = name in ("PreTokenGenerationFunction", "StripeWebhookFunction", "NoticesFunction")
        assert variables["COGNITO_CLIENT_IDS"] == ("" if knows_no_tokens else outputs["UserPoolClientId"])
    url = functions.get_function_url_config(FunctionName=resources["ClaudeFunction"], Qualifier="live")
    assert (url["AuthType"], url["InvokeMode"], url["Cors"]["AllowOrigins"]) == ("NONE", "RESPONSE_STREAM", ["*"])
