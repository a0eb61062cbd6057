"""Anthropic's own usage report, for who holds an admin key of the organisation.

`GET /v1/organizations/usage_report/messages`, over plain HTTP: the SDK has no method for it. An admin key is no API
key: it cannot be used for messages, and individual accounts have none.
https://platform.claude.com/docs/en/manage-claude/usage-cost-api
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from tollgate.domain.tokens import TokenCounts

API_VERSION: Final = "2023-06-01"
DAYS_AT_ONCE: Final = 31
SECONDS: Final = 30
MOST_PAGES: Final = 1_000
"""Of one report; more are an answer that never ends."""


class ReportError(Exception):
    """The report could not be had. Its text is ours, and names no key."""


class AnthropicReports:
    """The reports of the organisation that an admin key belongs to."""

    def __init__(self, admin_key: Callable[[], str], base_url: str = "https://api.anthropic.com") -> None:
        self._admin_key = admin_key
        self._base_url = urlsplit(base_url)

    def usage(self, first: date, last: date) -> Iterator[tuple[date, str, TokenCounts]]:
        """(day, model, counts) of all messages from `first` to `last`, both included. Raises ReportError.

        A day of one model may come in several parts. The last five minutes are not in it yet.
        """
        parameters = [
            ("starting_at", f"{first}T00:00:00Z"),
            ("ending_at", f"{last + timedelta(days=1)}T00:00:00Z"),
            ("bucket_width", "1d"),
            ("group_by[]", "model"),
            ("limit", str(DAYS_AT_ONCE)),
        ]
        page: str | None = None
        for _ in range(MOST_PAGES):
            document = self._get([*parameters, *([("page", page)] if page else [])])
            try:
                yield from _rows(document)
                page = document["next_page"] if document["has_more"] else None
            except (KeyError, TypeError, ValueError) as error:
                raise ReportError("Anthropic's usage report has a form that this version does not know.") from error
            if page is None:
                return
        raise ReportError("Anthropic's usage report does not end.")

    def _get(self, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        kind = HTTPSConnection if self._base_url.scheme == "https" else HTTPConnection
        connection = kind(self._base_url.hostname or "", self._base_url.port, timeout=SECONDS)
        target = f"{self._base_url.path.rstrip('/')}/v1/organizations/usage_report/messages?{urlencode(parameters)}"
        headers = {"x-api-key": self._admin_key(), "anthropic-version": API_VERSION, "user-agent": "tollgate"}
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise ReportError(f"Anthropic did not answer: {type(error).__name__}.") from error
        finally:
            connection.close()
        if answer.status in (401, 403):
            raise ReportError("Anthropic refuses this key. The report needs an admin key (sk-ant-admin…).")
        if answer.status != 200:
            raise ReportError(f"Anthropic answered {answer.status}.")
        try:
            document: dict[str, Any] = json.loads(body)
        except ValueError as error:
            raise ReportError("Anthropic's answer is no JSON.") from error
        return document


def _rows(document: dict[str, Any]) -> Iterator[tuple[date, str, TokenCounts]]:
    for bucket in document["data"]:
        day = datetime.fromisoformat(bucket["starting_at"]).date()
        for result in bucket["results"]:
            writes = result.get("cache_creation") or {}
            yield (
                day,
                str(result.get("model") or "unnamed"),
                TokenCounts(
                    input_tokens=int(result["uncached_input_tokens"]),
                    output_tokens=int(result["output_tokens"]),
                    cache_write_5m_tokens=int(writes.get("ephemeral_5m_input_tokens", 0)),
                    cache_write_1h_tokens=int(writes.get("ephemeral_1h_input_tokens", 0)),
                    cache_read_tokens=int(result["cache_read_input_tokens"]),
                ),
            )
