"""What every function loads until it can serve: each module is paid for in each cold start.

Counts, not times: they are the same on every machine. Processor time and memory are measured by `make bench`.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from bench.starts import places_in_checkout
from tests.support.sam import functions_of, load_template

MODULES_AT_MOST = {
    "api_keys": 730,
    "auth": 730,
    "billing": 735,
    "claude": 560,
    "notices": 560,
    "pre_token_generation": 560,
    "stripe_webhook": 735,
    "usage": 735,
    "usage_reset": 560,
}
"""Measured on 3.11 with some room for the standard library of 3.13. More is somebody's decision, made here."""
NOWHERE = {
    "anthropic",
    "bench",
    "boto3",
    "dev",
    "httpx",
    "httpx2",
    "hypothesis",
    "moto",
    "pynamodb",
    "pytest",
    "requests",
    "rich",
    "stripe",
    "tests",
    "tollgate_cli",
    "typer",
    "yaml",
}
"""Slow ones, for what they do at a start, and what is not deployed at all. Stripe's client is loaded by the first call
that needs it: most calls of billing don't."""
WITHOUT_DOCUMENTS = {"aws_lambda_powertools.event_handler", "pydantic", "asyncio"}
"""Routes with documents cost 170 modules; these functions have none."""
FRAMEWORK = {"api_keys", "auth", "billing", "stripe_webhook", "usage"}
"""Those behind the HTTP API, which have such routes."""


@lru_cache
def loaded(function: str) -> frozenset[str]:
    """The modules of a process that has imported the function and built what it works with."""
    return frozenset(places_in_checkout()[function].start()["modules"])


def packages(modules: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_every_function_has_its_budget() -> None:
    assert MODULES_AT_MOST.keys() == functions_of(load_template()).keys()


@pytest.mark.parametrize("function", sorted(MODULES_AT_MOST))
def test_a_start_loads_no_more_than_its_budget(function: str) -> None:
    modules = loaded(function)
    assert "tollgate.wiring" in modules
    assert len(modules) <= MODULES_AT_MOST[function]


@pytest.mark.parametrize("function", sorted(MODULES_AT_MOST))
def test_no_start_loads_what_is_slow_or_not_deployed(function: str) -> None:
    assert packages(loaded(function)) & NOWHERE == set()


@pytest.mark.parametrize("function", sorted(MODULES_AT_MOST.keys() - FRAMEWORK))
def test_a_function_without_documents_loads_no_framework_for_them(function: str) -> None:
    assert loaded(function) & WITHOUT_DOCUMENTS == set()


@pytest.mark.parametrize("function", sorted(MODULES_AT_MOST.keys() - {"claude"}))
def test_only_the_data_plane_loads_the_streaming_runtime(function: str) -> None:
    assert "tollgate_runtime" not in packages(loaded(function))


def test_only_the_data_plane_loads_the_relay() -> None:
    """A guard for this test itself: the probe sees what is built, not only what is imported."""
    assert {"botocore.client", "tollgate.flows.relay_message"} <= loaded("claude")
