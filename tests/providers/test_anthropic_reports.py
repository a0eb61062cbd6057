"""Anthropic's usage report: what is asked for, asking again within bounds, and a key that only goes where it may."""

from __future__ import annotations

import json
from datetime import date
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.support.scripted_http import Behaviour, ScriptedServer, answer
from tollgate.providers.anthropic_reports import AnthropicReports, ReportError

KEY = "sk-ant-admin-canary"
DAY = date(2026, 11, 20)
NOTHING = answer(json.dumps({"data": [], "has_more": False, "next_page": None}).encode())


class Waited(list[float]):
    """How long was waited, each time."""


def asked(behaviour: Behaviour, key: str = KEY, **filters: list[str]) -> tuple[list[bytes], Waited]:
    waited = Waited()
    with ScriptedServer(behaviour) as server:
        reports = AnthropicReports(lambda: key, server.url, pause=waited.append)
        caught = _failure(reports, **filters)
        assert caught is None or "canary" not in f"{caught!r} {caught.__cause__!r}"
    return server.requests, waited


def _failure(reports: AnthropicReports, **filters: list[str]) -> ReportError | None:
    try:
        list(reports.usage(DAY, DAY, **filters))
    except ReportError as error:
        return error
    return None


def parameters(request: bytes) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(request.split(b" ")[1].decode()).query)


def test_the_whole_organisation_is_asked_for_when_nothing_is_named() -> None:
    [request], _ = asked(NOTHING)
    assert not {"api_key_ids[]", "workspace_ids[]"} & dict(parameters(request)).keys()


def test_keys_and_workspaces_narrow_the_report() -> None:
    [request], _ = asked(NOTHING, key_ids=["apikey_1", "apikey_2"], workspace_ids=["wrkspc_1"])
    told = parameters(request)
    assert [value for name, value in told if name == "api_key_ids[]"] == ["apikey_1", "apikey_2"]
    assert [value for name, value in told if name == "workspace_ids[]"] == ["wrkspc_1"]


@pytest.mark.parametrize(
    ("told", "waits"),
    [("0", [1, 4]), ("3", [3, 4]), ("60", [60, 60]), ("61", [60, 60]), ("Fri, 20 Nov 2026", [1, 4]), ("-1", [1, 4])],
)
def test_who_is_limited_waits_as_long_as_told_but_no_longer_than_a_minute(told: str, waits: list[float]) -> None:
    requests, waited = asked(answer(b"{}", "429 Too Many Requests", Retry_After=told))
    assert waited == waits
    assert len(requests) == 3


def test_a_refused_key_is_not_tried_again() -> None:
    requests, waited = asked(answer(b"{}", "401 Unauthorized"))
    assert (len(requests), waited) == (1, [])


@pytest.mark.parametrize("key", [f"{KEY}\nsecond", f"\u201c{KEY}\u201d", ""])
def test_a_key_that_no_header_can_carry_is_not_tried_at_all(key: str) -> None:
    assert asked(NOTHING, key) == ([], [])


@pytest.mark.parametrize(
    "address", ["http://api.anthropic.com", "ftp://127.0.0.1", "https://", "https://h:99999", "api.anthropic.com"]
)
def test_the_key_goes_nowhere_in_the_clear(address: str) -> None:
    with pytest.raises(ReportError, match="https"):
        AnthropicReports(lambda: KEY, address, pause=lambda _: None)


def test_a_host_that_can_be_none_is_said_to_be_none() -> None:
    reports = AnthropicReports(lambda: KEY, "https://a..b", pause=lambda _: None)
    with pytest.raises(ReportError, match="address") as caught:
        list(reports.usage(DAY, DAY))
    assert "canary" not in str(caught.value)
