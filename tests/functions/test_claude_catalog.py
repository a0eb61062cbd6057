"""The claude function on a catalog of the operator's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.catalogs import write_catalog
from tests.support.claude_function import claude_function


def test_an_app_that_names_no_model_gets_the_catalogs_first_that_its_plan_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The operator's choice, not the calendar's: a newer model may be dearer."""
    catalog = write_catalog(tmp_path / "catalog", pro={"models": ["claude-sonnet-5-5", "claude-haiku-4-5"]})
    with claude_function(monkeypatch) as function:
        monkeypatch.setenv("CATALOG", str(catalog))
        form = {"messages": [{"role": "user", "content": "Hello"}]}
        assert function.call("POST", "/claude/stream", form).status == 200
        assert json.loads(function.claude.exchanges[-1].body)["model"] == "claude-haiku-4-5"
        assert function.call("GET", "/v1/models").json["first_id"] == "claude-sonnet-5-5"
