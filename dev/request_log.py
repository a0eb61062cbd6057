"""One line per request: what a developer wants to see while calling the gateway.

The metering figures are the function's own: they are read from the structured line that it logs for each outcome.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TextIO

Json = dict[str, Any]

_CODES = {"dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1"}


class Screen:
    """Where the stack writes for people; colours only on a terminal."""

    def __init__(self, out: TextIO | None = None, *, colour: bool | None = None) -> None:
        self._out = out or sys.stdout
        self._colour = self._out.isatty() if colour is None else colour

    def line(self, text: str = "") -> None:
        """Writes one line at once; a reader that has gone is no reason to stop."""
        try:
            self._out.write(text + "\n")
            self._out.flush()
        except (BrokenPipeError, ValueError):
            pass

    def paint(self, style: str, text: str) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self._colour else text


@dataclass(slots=True)
class Outcome:
    """One finished request as the gateway saw it, and what the function said about it."""

    method: str
    path: str
    started_at: datetime
    status: int = 0
    streamed: bool = False
    first_byte_ms: int | None = None
    duration_ms: int = 0
    client_left: bool = False
    note: str = ""
    """Why the gateway itself answered, or how the invocation failed."""
    events: list[Json] = field(default_factory=list)
    """The function's structured log lines."""


class RequestLog:
    """Formats outcomes. `names` maps user ids to what the banner calls them."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.names: Mapping[str, str] = {}

    def write(self, outcome: Outcome) -> None:
        self._screen.line(self.format(outcome))

    def format(self, outcome: Outcome) -> str:
        """` 04:12:07 POST /v1/messages  200 stream  demo  sonnet-5-5  in 9 out 48 cache 0  …`"""
        paint = self._screen.paint
        facts = _facts(outcome.events)
        style = "green" if outcome.status < 400 else "yellow" if outcome.status < 500 else "red"
        status = paint(style, str(outcome.status or "---")) + (" stream" if outcome.streamed else "")
        parts = [
            paint("dim", f" {outcome.started_at.astimezone():%H:%M:%S}") + f" {outcome.method} {outcome.path}",
            status,
            self._who(facts),
            str(facts.get("model", "")).removeprefix("claude-"),
            _tokens(facts),
            _code(facts, outcome.note),
            "client left" if outcome.client_left else "",
            f"ttft {outcome.first_byte_ms} ms" if outcome.streamed and outcome.first_byte_ms is not None else "",
            f"{outcome.duration_ms} ms",
            _cost(facts),
            f"left {facts['remaining_tokens']:,}" if isinstance(facts.get("remaining_tokens"), int) else "",
        ]
        return "  ".join(part for part in parts if part)

    def _who(self, facts: Json) -> str:
        user_id = str(facts.get("user_id", ""))
        return self._screen.paint("cyan", self.names.get(user_id, user_id[:8])) if user_id else ""


def parse_line(text: str) -> Json | None:
    """A function's structured log line; None for anything else, embedded metrics included."""
    if not text.startswith("{"):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "_aws" not in line and ("message" in line or "type" in line) else None


def loud_text(event: Json) -> str:
    """A warning or an error as a person reads it: what, which error, where."""
    names = ("errorType", "errorMessage", "error_type", "error", "error_at")  # AWS's runtime client's, then our own
    details = [str(event[name]) for name in names if event.get(name) and event[name] != event.get("message")]
    trace = [str(line).rstrip() for line in event.get("stackTrace") or ()]
    head = "  ".join([str(event.get("level", "")), str(event.get("message", "")), *details])
    return "\n".join([head.strip(), *trace])


def _facts(events: list[Json]) -> Json:
    """All fields of all lines, the later ones winning."""
    facts: Json = {}
    for event in events:
        facts |= event
    return facts


def _tokens(facts: Json) -> str:
    if not isinstance(facts.get("output_tokens"), int):
        return ""
    cached = [facts.get(name, 0) for name in ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")]
    return f"in {facts.get('input_tokens', 0):,} out {facts['output_tokens']:,} cache {sum(cached):,}"


def _code(facts: Json, note: str) -> str:
    outcome = str(facts.get("outcome", ""))
    shown = str(facts.get("error_code", "")) or ("" if outcome in ("", "complete") else outcome)
    return " ".join(part for part in (shown, note) if part)


def _cost(facts: Json) -> str:
    picousd = facts.get("cost_picousd")
    return f"${picousd / 10**12:.6f}" if isinstance(picousd, int) else ""
