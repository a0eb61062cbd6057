"""docs/billing-webhooks.md tells every event there is a reaction to, and no other."""

from __future__ import annotations

from pathlib import Path

from tollgate.domain.stripe_events import REACTIONS

COLUMNS = 5
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "billing-webhooks.md").read_text(encoding="utf-8")


def test_the_catalogue_on_the_page_is_the_code() -> None:
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    told = {
        name: (queued == "yes", alarm or None, notice or None)
        for name, _, queued, alarm, notice in (row for row in rows if len(row) == COLUMNS and "." in row[0])
    }
    assert told == {name: (one.queued, one.alarm, one.notice) for name, one in REACTIONS.items()}
