"""docs/errors.md: every answer that is a refusal, from the table that makes them."""

from __future__ import annotations

from pathlib import Path

from dev.docs.markdown import NOTHING, NOTICE, code, table
from tollgate.edge.errors import ERROR_TABLE, ErrorRow

_ENVELOPE = """\
```json
{"type": "error", "error": {"type": "…", "message": "…", "details": {"error_code": "…"}}, "request_id": "…"}
```"""


def page(_root: Path) -> str:
    """The page's text."""
    return "\n".join(
        [
            "# Errors",
            "",
            NOTICE.format(name="errors"),
            "",
            "Refusals of Tollgate's own wear Claude's envelope, so that Anthropic's clients raise their typed errors:",
            "",
            _ENVELOPE,
            "",
            "Promised are `error.type`, `error.message`, `error.details.error_code` and `request_id` (also the header",
            "`request-id`). Answers of Claude's that concern the caller's own request pass unchanged.",
            "",
            table(["Status", "`error.type`", "`error_code`", "When", "Headers", "What to do"], map(_row, ERROR_TABLE)),
        ]
    )


def _row(row: ErrorRow) -> list[str]:
    codes = " ".join(code(name) for name in row.codes)
    return [str(int(row.status)), code(row.type), codes, _sentence(row.when), _headers(row), _sentence(row.client)]


def _headers(row: ErrorRow) -> str:
    headers = [] if row.should_retry else ["`x-should-retry: false`"]
    if row.retry_after_seconds is not None:
        headers.append(f"`retry-after: {row.retry_after_seconds}`")
    elif row.error.__name__ in {"QuotaExceededError", "RateLimitedError"}:
        headers.append("`retry-after`")
    return ", ".join(headers) or NOTHING


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
