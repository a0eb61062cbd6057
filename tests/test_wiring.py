"""The real clock and ids, and builders that refuse an incomplete configuration before anybody is served."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.support.moto_table import set_credentials
from tests.test_config import COMPLETE
from tollgate.config import ConfigurationError
from tollgate.wiring import (
    SystemClock,
    SystemIds,
    build_api_keys,
    build_auth,
    build_billing,
    build_claude,
    build_pre_token_generation,
    build_stripe_webhook,
    build_usage,
    build_usage_reset,
)

EVERYBODY = {"STAGE", "TABLE_NAME"}
TOKENS = EVERYBODY | {"COGNITO_ISSUER", "COGNITO_CLIENT_IDS"}
PEPPER = {"KEY_PEPPER_PARAMETER", "AWS_REGION"}
STRIPE = {"STRIPE_SECRET_KEY_PARAMETER", "AWS_REGION"}
NEEDED: dict[Callable[[], object], set[str]] = {
    build_api_keys: TOKENS | PEPPER,
    build_auth: TOKENS | PEPPER | STRIPE | {"COGNITO_CLIENT_ID"},
    build_billing: TOKENS | PEPPER | STRIPE,
    build_claude: TOKENS | PEPPER | {"UPSTREAM_API_KEY_PARAMETER"},
    build_pre_token_generation: EVERYBODY | {"AWS_REGION"},
    build_stripe_webhook: EVERYBODY
    | STRIPE
    | {"STRIPE_WEBHOOK_SECRET_PARAMETER", "STRIPE_EVENT_QUEUE_URL", "STRIPE_EVENT_DLQ_URL"},
    build_usage: TOKENS,
    build_usage_reset: EVERYBODY | STRIPE,
}


def test_the_real_clock_tells_the_time() -> None:
    before = time.time()
    assert before <= SystemClock().now_seconds() <= time.time()


@pytest.mark.parametrize("length", [1, 6, 8, 22])
def test_ids_are_base62_of_the_length_asked_for(length: int) -> None:
    assert re.fullmatch(rf"[0-9A-Za-z]{{{length}}}", SystemIds().new_id(length))


def test_ids_and_secrets_do_not_repeat() -> None:
    ids = SystemIds()
    assert len({ids.new_id(8) for _ in range(10_000)}) == 10_000
    assert len({ids.random_bytes(32) for _ in range(1_000)}) == 1_000


NEEDS = [(build, name) for build, names in NEEDED.items() for name in sorted(names)]


@pytest.mark.parametrize(("build", "missing"), NEEDS)
def test_a_builder_refuses_what_its_function_cannot_work_without(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], object], missing: str
) -> None:
    set_credentials(monkeypatch)
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigurationError) as refusal:
        build()
    assert refusal.value.missing == (missing,)


@pytest.mark.parametrize("build", NEEDED)
def test_a_builder_with_everything_builds_and_calls_nobody(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], object]
) -> None:
    """No port is open there: a call would raise."""
    set_credentials(monkeypatch)
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    for service in ("COGNITO_IDENTITY_PROVIDER", "DYNAMODB", "SQS", "SSM"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", "http://127.0.0.1:1")
    assert build()
