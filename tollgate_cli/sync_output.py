"""What `plans diff` and `plans sync` show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from tollgate.domain.selling import Action, Change, WantedPrice, money

_STYLES: Final = {Action.CREATE: "green", Action.UPDATE: "yellow", Action.ARCHIVE: "red", Action.DELETE: "red"}
_SIGNS: Final = {Action.CREATE: "+", Action.UPDATE: "~", Action.ARCHIVE: "-", Action.DELETE: "-"}
_LONGEST: Final = 60


def changes_table(changes: Iterable[Change]) -> Table:
    table = Table(title="To do at Stripe", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("What", no_wrap=True)
    table.add_column("Name", overflow="fold")
    table.add_column("How", overflow="fold")
    for change in changes:
        style = _STYLES[change.action]
        table.add_row(
            Text(_SIGNS[change.action], style=style), f"{change.action} {change.kind}", change.name, describe(change)
        )
    return table


def describe(change: Change) -> str:
    """In a few words; for a price that is replaced, what becomes of those who pay it."""
    words = [f"{one.field}: {_short(one.old)} → {_short(one.new)}" for one in change.differences]
    if isinstance(change.wanted, WantedPrice) and change.action is Action.CREATE and not words:
        price = change.wanted
        unit = "a unit" if price.metered else f"a {price.interval}"
        words = [f"{money(price.unit_hundredth_cents, price.currency)} {unit}"]
    if change.action is Action.ARCHIVE:
        words = ["nobody can buy it any more; subscribers keep it"]
    return "\n".join(words)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def change_document(change: Change) -> dict[str, Any]:
    return {
        "action": str(change.action),
        "kind": str(change.kind),
        "name": change.name,
        "target_id": change.target_id,
        "differences": [{"field": one.field, "old": one.old, "new": one.new} for one in change.differences],
    }
