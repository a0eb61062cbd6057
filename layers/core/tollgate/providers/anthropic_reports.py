"""Anthropic's own usage report, for who holds an admin key of the organisation.

`GET /v1/organizations/usage_report/messages`, over plain HTTP: the SDK has no method for it. An admin key is no API
key: it cannot be used for messages, and individual accounts have none.
https://platform.claude.com/docs/en/manage-claude/usage-cost-api
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

from tollgate.domain.tokens import TokenCounts
from tollgate.providers.secrets import is_one_line

API_VERSION: Final = "2023-06-01"
DAYS_AT_ONCE: Final = 31
SECONDS: Final = 30
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
PAUSES: Final = (1.0, 4.0)
"""Seconds before asking again; the report is made for being asked once a minute."""
LONGEST_PAUSE_SECONDS: Final = 60
"""However much longer they ask for."""
_NO_ADDRESS: Final = "The address of Anthropic's API is none; it is like https://api.anthropic.com."
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
MOST_PAGES: Final = 1_000
"""Of one report; more are an answer that never ends."""


class ReportError(Exception):
    """The report could not be had. Its text is ours, and names no key."""


class _BusyError(ReportError):
    """Asking again may help, not before `wait_seconds`."""

    def __init__(self, text: str, wait_seconds: int = 0) -> None:
        super().__init__(text)
        self.wait_seconds = wait_seconds


class AnthropicReports:
    """The reports of the organisation that an admin key belongs to.

    Raises ReportError, made with an address that is none, or to which the key would go in the clear.
    """

    def __init__(
        self,
        admin_key: Callable[[], str],
        base_url: str = "https://api.anthropic.com",
        *,
        pause: Callable[[float], None],
    ) -> None:
        self._admin_key = admin_key
        self._base_url = _address(base_url)
        self._pause = pause

    def usage(
        self, first: date, last: date, *, key_ids: Iterable[str] = (), workspace_ids: Iterable[str] = ()
    ) -> Iterator[tuple[date, str, TokenCounts]]:
        """(day, model, counts) of all messages from `first` to `last`, both included. Raises ReportError.

        `key_ids`, `workspace_ids`: only those with one of these keys (`apikey_…`), in one of these workspaces
        (`wrkspc_…`); neither: of the whole organisation. A day of one model may come in several parts. The last five
        minutes are not in it yet.
        """
        parameters = [
            ("starting_at", f"{first}T00:00:00Z"),
            ("ending_at", f"{last + timedelta(days=1)}T00:00:00Z"),
            ("bucket_width", "1d"),
            ("group_by[]", "model"),
            ("limit", str(DAYS_AT_ONCE)),
            *(("api_key_ids[]", key_id) for key_id in key_ids),
            *(("workspace_ids[]", workspace_id) for workspace_id in workspace_ids),
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
        """A few times where that may help: reading changes nothing."""
        for seconds in PAUSES:
            try:
                return self._get_once(parameters)
            except _BusyError as error:
                self._pause(max(seconds, error.wait_seconds))
        return self._get_once(parameters)

    def _get_once(self, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        kind = HTTPSConnection if self._base_url.scheme == "https" else HTTPConnection
        connection = kind(self._base_url.hostname or "", self._base_url.port, timeout=SECONDS)
        target = f"{self._base_url.path.rstrip('/')}/v1/organizations/usage_report/messages?{urlencode(parameters)}"
        admin_key = self._admin_key()
        if not is_one_line(admin_key):
            # The error of who tried to send it would quote it.
            raise ReportError("The admin key cannot be sent: it is not one line of printable ASCII.")
        headers = {"x-api-key": admin_key, "anthropic-version": API_VERSION, "user-agent": "tollgate"}
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise _BusyError(f"Anthropic did not answer: {type(error).__name__}.") from error
        except ValueError:
            raise ReportError(_NO_ADDRESS) from None  # a host that has no name in DNS
        finally:
            connection.close()
        if answer.status in (401, 403):
            raise ReportError("Anthropic refuses this key. The report needs an admin key (sk-ant-admin…).")
        if answer.status in _BUSY:
            raise _BusyError(f"Anthropic answered {answer.status}.", _wait_seconds(answer.headers.get("retry-after")))
        if answer.status != 200:
            raise ReportError(f"Anthropic answered {answer.status}.")
        try:
            document: dict[str, Any] = json.loads(body)
        except ValueError as error:
            raise ReportError("Anthropic's answer is no JSON.") from error
        return document


def _wait_seconds(retry_after: str | None) -> int:
    """What was told, within reason; 0 for a date or nothing."""
    told = retry_after or ""
    return min(int(told), LONGEST_PAUSE_SECONDS) if re.fullmatch(r"[0-9]{1,9}", told) else 0


def _address(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ReportError(_NO_ADDRESS)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ReportError("An admin key goes over https, or to this machine.")
    return parts


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
