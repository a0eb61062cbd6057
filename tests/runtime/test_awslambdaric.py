"""What our client relies on in awslambdaric, whose internals move between patch releases.

A failure here means: read the difference, adapt layers/stream_runtime/tollgate_runtime/client.py, then this list.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import awslambdaric
import pytest
from awslambdaric import bootstrap
from awslambdaric.lambda_config import LambdaConfigProvider
from awslambdaric.lambda_runtime_client import InvocationRequest, LambdaRuntimeClient, LambdaRuntimeClientError

from tests.runtime.function_process import LAYER

VERSION = "4.2.2"


def test_the_version_read_is_the_version_installed_and_shipped() -> None:
    requirements = (LAYER / "requirements.txt").read_text()
    shipped = re.findall(r"^awslambdaric==([^\s\\]+)", requirements, re.MULTILINE)
    assert (awslambdaric.__version__, shipped) == (VERSION, [VERSION])


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (LambdaRuntimeClient.__init__, ["self", "lambda_runtime_address", "use_thread_for_polling_next"]),
        (LambdaRuntimeClient.wait_next_invocation, ["self"]),
        (
            LambdaRuntimeClient.post_invocation_result,
            ["self", "invoke_id", "result_data", "content_type", "invocation_id"],
        ),
        (
            LambdaRuntimeClient.post_invocation_error,
            ["self", "invoke_id", "error_response_data", "xray_fault", "invocation_id"],
        ),
        (LambdaRuntimeClient.post_init_error, ["self", "error_response_data", "error_type_override"]),
        (LambdaRuntimeClientError.__init__, ["self", "endpoint", "response_code", "response_body"]),
        (bootstrap.run, ["handler", "lambda_runtime_client"]),
        (LambdaConfigProvider.__init__, ["self", "args", "environ"]),
    ],
)
def test_signatures_are_those_that_were_read(function: Callable[..., Any], parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_an_invocation_carries_what_the_sink_needs() -> None:
    names = inspect.getsource(LambdaRuntimeClient.wait_next_invocation)
    assert "invoke_id=" in names
    assert "invocation_id=" in names
    assert InvocationRequest(invoke_id="a").invoke_id == "a"


def test_the_configuration_offers_what_the_start_asks() -> None:
    config = LambdaConfigProvider(["", "app.handler"], {"AWS_LAMBDA_RUNTIME_API": "a:1"})
    assert (config.handler, config.api_address) == ("app.handler", "a:1")
    assert (config.use_thread_polling, config.is_multi_concurrent) == (False, False)
