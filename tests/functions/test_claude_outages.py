"""The claude function when what it stands on is gone."""

from __future__ import annotations

import pytest

from tests.support.claude_function import ClaudeFunction, claude_function

CANARY = "CANARY-prompt-51ff"


def test_an_upstream_that_is_gone_is_told_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with claude_function(monkeypatch) as function:
        function.send()
        before = function.meter()["settled"]
        function.claude.stop()
        first, second = function.send(), function.send()
        # The kept connection broke with the request in it; the next one could not even be made.
        assert first.status == second.status == 503
        assert second.error["details"]["error_code"] == "upstream_unreachable"
        assert second.headers["retry-after"] == "5"
        meter = function.meter()
        assert meter["open_count"] == 0
        assert meter["settled"] - before <= first_charge(function)


def first_charge(function: ClaudeFunction) -> int:
    """What the first call after the outage was charged, if it was sent at all."""
    return sum(record["charged_tokens"] for record in function.items("Request")[1:])


def test_a_fault_of_ours_tells_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with claude_function(monkeypatch) as function:
        function.send()
        function.table.client.delete_table(TableName=function.table.name)
        answer = function.send(CANARY)
        assert (answer.status, answer.error["type"]) == (500, "api_error")
        assert answer.error["details"] == {"error_code": "internal_error"}
        written = capsys.readouterr().out
        assert CANARY not in written + answer.body.decode()
        assert "ResourceNotFound" not in answer.body.decode()
        assert '"request_failed"' in written


def test_a_function_that_lacks_a_setting_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with claude_function(monkeypatch) as function:
        monkeypatch.delenv("COGNITO_ISSUER")
        with pytest.raises(Exception, match="COGNITO_ISSUER is not set"):
            function.send()
