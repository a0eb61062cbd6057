"""Settings: complete or refused, and never printed."""

from __future__ import annotations

import dataclasses

import pytest

from tollgate.config import (
    API_KEYS_NEED,
    LARGEST_MAX_BODY_BYTES,
    SIGN_IN_NEEDS,
    STRIPE_NEEDS,
    TOKENS_NEED,
    UPSTREAM_NEEDS,
    WEBHOOK_NEEDS,
    ConfigurationError,
    load_settings,
    needed,
)

CANARY = "canary-value-9f3b"
GATEWAY = (*TOKENS_NEED, *API_KEYS_NEED, *UPSTREAM_NEEDS, *SIGN_IN_NEEDS, *STRIPE_NEEDS, *WEBHOOK_NEEDS)
COMPLETE = {
    "STAGE": "dev",
    "TABLE_NAME": "tollgate-dev",
    "COGNITO_ISSUER": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Example",
    "COGNITO_CLIENT_IDS": "client-a, client-b",
    "COGNITO_CLIENT_ID": "client-a",
    "KEY_PEPPER_PARAMETER": "/tollgate/dev/key-pepper",
    "UPSTREAM_API_KEY_PARAMETER": "/tollgate/dev/anthropic-api-key",
    "AWS_REGION": "eu-west-1",
    "STRIPE_SECRET_KEY_PARAMETER": "/tollgate/dev/stripe-secret-key",
    "STRIPE_WEBHOOK_SECRET_PARAMETER": "/tollgate/dev/stripe-webhook-secret",
    "STRIPE_EVENT_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/111122223333/tollgate-events",
    "STRIPE_EVENT_DLQ_URL": "https://sqs.eu-west-1.amazonaws.com/111122223333/tollgate-dead-letters",
}


def test_a_complete_environment_gives_complete_settings() -> None:
    settings = load_settings(COMPLETE, required=GATEWAY)
    assert settings.cognito_client_ids == {"client-a", "client-b"}
    assert settings.cognito_jwks_url == f"{COMPLETE['COGNITO_ISSUER']}/.well-known/jwks.json"
    assert settings.upstream_base_url == "https://api.anthropic.com"
    assert settings.catalog_name == "default"
    assert settings.default_plan_id is None
    assert settings.allow_test_keys is False


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_each_missing_or_empty_setting_is_refused_by_name(name: str, value: str | None) -> None:
    environ = {key: text for key, text in COMPLETE.items() if key != name}
    if value is not None:
        environ[name] = value
    with pytest.raises(ConfigurationError, match=f"{name} is not set") as refusal:
        load_settings(environ, required=GATEWAY)
    assert refusal.value.missing == (name,)


def test_everything_that_is_missing_or_wrong_is_named_at_once() -> None:
    environ = {"COGNITO_ISSUER": "not a url", "ALLOW_TEST_KEYS": "yes", "MAX_BODY_BYTES": "many"}
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(environ, required=GATEWAY)
    assert set(refusal.value.missing) == set(COMPLETE) - {"COGNITO_ISSUER"}
    assert set(refusal.value.wrong) == {"COGNITO_ISSUER", "ALLOW_TEST_KEYS", "MAX_BODY_BYTES"}
    assert all(name in str(refusal.value) for name in (*COMPLETE, "ALLOW_TEST_KEYS", "MAX_BODY_BYTES"))


@pytest.mark.parametrize(
    "name", ["STAGE", "CATALOG", "DEFAULT_PLAN", "COGNITO_ISSUER", "COGNITO_JWKS_URL", "UPSTREAM_BASE_URL"]
)
def test_a_wrong_value_is_never_printed(name: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(COMPLETE | {name: f"{CANARY} with blanks"})
    assert CANARY not in str(refusal.value)


def test_a_function_that_needs_no_upstream_starts_without_its_settings() -> None:
    settings = load_settings({"STAGE": "dev", "TABLE_NAME": "t"})
    assert settings.upstream_api_key_parameter is None
    assert settings.cognito_client_ids == frozenset()


def test_using_a_setting_that_was_not_required_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        needed(load_settings({"STAGE": "dev", "TABLE_NAME": "t"}).cognito_issuer)


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("https://keys.example.com/jwks.json", True),
        ("http://127.0.0.1:4566/pool/.well-known/jwks.json", True),
        ("http://localhost:4566/jwks.json", True),
        ("http://host.docker.internal:4566/jwks.json", True),
        ("http://keys.example.com/jwks.json", False),
        ("http://localhost.example.com/jwks.json", False),
        ("http://127.0.0.1.example.com/jwks.json", False),
        ("file:///etc/passwd", False),
        ("https://user:pass@keys.example.com/jwks.json", False),
        ("https://keys.example.com:port/jwks.json", False),
        ("https://", False),
        ("https://[::1", False),
        ("https://keys.example.com./jwks.json", True),
        ("https://keys..example.com/jwks.json", False),
        (f"https://{'k' * 63}.example.com/jwks.json", True),
        (f"https://{'k' * 64}.example.com/jwks.json", False),
    ],
)
def test_signing_keys_come_encrypted_or_from_this_machine(url: str, accepted: bool) -> None:
    environ = COMPLETE | {"COGNITO_JWKS_URL": url}
    if accepted:
        assert load_settings(environ).cognito_jwks_url == url
    else:
        with pytest.raises(ConfigurationError, match="COGNITO_JWKS_URL must be"):
            load_settings(environ)


def test_an_unencrypted_issuer_needs_no_key_url_of_its_own_to_be_refused() -> None:
    with pytest.raises(ConfigurationError, match="COGNITO_JWKS_URL must be https"):
        load_settings(COMPLETE | {"COGNITO_ISSUER": "http://pool.example.com"})


@pytest.mark.parametrize("value", [",", " , ,"])
def test_a_client_list_without_a_client_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="COGNITO_CLIENT_IDS must be"):
        load_settings(COMPLETE | {"COGNITO_CLIENT_IDS": value})


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("0", False),
        ("1", True),
        ("2", True),
        (str(LARGEST_MAX_BODY_BYTES - 1), True),
        (str(LARGEST_MAX_BODY_BYTES), True),
        (str(LARGEST_MAX_BODY_BYTES + 1), False),
        ("-1", False),
        ("1.0", False),
        ("1e3", False),
        ("٣", False),
    ],
)
def test_the_body_limit_is_a_whole_number_that_lambda_can_deliver(value: str, accepted: bool) -> None:
    environ = COMPLETE | {"MAX_BODY_BYTES": value}
    if accepted:
        assert load_settings(environ).max_body_bytes == int(value)
    else:
        with pytest.raises(ConfigurationError, match="MAX_BODY_BYTES must be"):
            load_settings(environ)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [("0", False), ("1", True), ("100", True), ("1000000", True), ("1000001", False), ("50%", False), ("-1", False)],
)
def test_the_limits_of_the_open_routes_are_scaled_by_whole_percents(value: str, accepted: bool) -> None:
    environ = COMPLETE | {"OPEN_ROUTE_RATE_PERCENT": value}
    if accepted:
        assert load_settings(environ).open_route_rate_percent == int(value)
    else:
        with pytest.raises(ConfigurationError, match="OPEN_ROUTE_RATE_PERCENT must be"):
            load_settings(environ)


def test_unset_the_limits_of_the_open_routes_are_the_shipped_ones() -> None:
    settings = load_settings(COMPLETE)
    assert (settings.open_route_rate_percent, settings.disposable_domains_file) == (100, None)


@pytest.mark.parametrize("value", ["domains.txt", "./domains.txt", "file:///opt/domains.txt"])
def test_a_file_of_domains_is_named_by_its_absolute_path(value: str) -> None:
    assert load_settings(COMPLETE | {"DISPOSABLE_DOMAINS_FILE": "/opt/d.txt"}).disposable_domains_file == "/opt/d.txt"
    with pytest.raises(ConfigurationError, match="DISPOSABLE_DOMAINS_FILE must be the absolute path"):
        load_settings(COMPLETE | {"DISPOSABLE_DOMAINS_FILE": value})


@pytest.mark.parametrize(("value", "allowed"), [("true", True), ("false", False), ("", False)])
def test_test_keys_are_allowed_only_by_the_word_true(value: str, allowed: bool) -> None:
    assert load_settings(COMPLETE | {"ALLOW_TEST_KEYS": value}).allow_test_keys is allowed


@pytest.mark.parametrize("value", ["True", "1", "yes", "truefalse"])
def test_any_other_word_for_test_keys_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="ALLOW_TEST_KEYS must be true or false"):
        load_settings(COMPLETE | {"ALLOW_TEST_KEYS": value})


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_settings(COMPLETE).stage = "prod"  # type: ignore[misc]


def test_without_an_environment_given_the_process_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPLETE.items():
        monkeypatch.setenv(name, value)
    assert load_settings(required=GATEWAY).table_name == "tollgate-dev"
