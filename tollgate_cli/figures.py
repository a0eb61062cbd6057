"""How figures are written for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.markup import escape
from rich.table import Table

from tollgate.domain.plans import UNLIMITED

PICOUSD_PER_HUNDREDTH_CENT: Final = 100_000_000
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")


def usd(picousd: int) -> str:
    """`$12.3456`: to a hundredth of a cent, toward zero; `-$0.0100` below zero."""
    units, sign = abs(picousd) // PICOUSD_PER_HUNDREDTH_CENT, "-" if picousd < 0 else ""
    return f"{sign}${units // 10_000:,}.{units % 10_000:04d}"


def count(number: int | None) -> str:
    """With separators; `none` for what has no limit."""
    return "none" if number is None or number >= UNLIMITED else f"{number:,}"


def of_quota(used: int, quota: int | None) -> str:
    """`3,000 of 100,000`, and no more than `3,000` where there is no quota."""
    return f"{used:,}" if quota is None or quota >= UNLIMITED else f"{used:,} of {quota:,}"


def percent(permille: int | None) -> str:
    if permille is None:
        return ""
    sign = "-" if permille < 0 else ""
    return f"{sign}{abs(permille) // 10}.{abs(permille) % 10} %"


def moment(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant.astimezone(UTC):%Y-%m-%d %H:%M}"


def rfc3339(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def table_of(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A table whose columns in `right` are numbers."""
    made = Table(title=title, title_justify="left")
    for heading in headings:
        made.add_column(heading, overflow="fold", justify="right" if heading in right else "left")
    for row in rows:
        made.add_row(*row)
    return made


def said(text: str | None) -> str:
    """Text that somebody chose, as it may be shown: no markup of ours, no commands for a terminal."""
    return escape("".join(character if character.isprintable() else "?" for character in text or ""))


def safe_cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; users choose some of it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
