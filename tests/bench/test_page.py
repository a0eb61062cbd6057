"""The page and its plots are made from results alone, whichever of them are there."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench import charts, costs, page
from bench.charts import Bar

TARGETS = ("upstream directly", "bare pass-through", "Tollgate", "LiteLLM")
SHORT = {
    "cpu_ms_per_stream": 2.0,
    "streams_per_cpu_second": 500.0,
    "first_byte_ms": 1.0,
    "first_token_ms": 1.5,
    "first_token_p99_ms": 3.0,
    "stream_ms": 4.0,
    "billed_ms": 5.0,
    "rss_mb": 50.0,
    "pss_mb": 40.0,
    "retries": 0,
}


def peers(*names: str) -> dict[str, Any]:
    """A result of the comparison, with these targets."""
    return {
        "measured_at": "2026-11-20",
        "measured_on": "a machine",
        "litellm_version": "1" if "LiteLLM" in names else None,
        "skipped": None if "LiteLLM" in names else "not installed",
        "rounds": 1,
        "short_events": 10,
        "paced_events": 50,
        "pace_ms": 20,
        "start": {name: {"cpu_seconds": 0.1, "seconds": 0.2, "rss_mb": 40.0} for name in names[1:]},
        "short": dict.fromkeys(names, SHORT),
        "paced": {lanes: dict.fromkeys(names, SHORT) for lanes in ("1", "8")},
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    return tmp_path


def keep(root: Path, name: str, result: dict[str, Any]) -> None:
    (root / "bench" / "results" / f"{name}.json").write_text(json.dumps(result))


def test_what_was_not_measured_is_said_to_be_missing(root: Path) -> None:
    text = page.page(root)
    assert text.count("Not measured yet") == 6
    assert "chaos" not in text
    for plot in page.PLOTS.values():
        assert "not measured yet" in plot(root)


def test_every_target_has_its_row_and_its_bar(root: Path) -> None:
    keep(root, "peers", peers(*TARGETS))
    text = page.page(root)
    assert all(f"| {name} | 2 (1.0x) |" in text for name in TARGETS)
    assert text.count("<rect") == 0
    assert all(name in page.PLOTS["benchmarks/cpu.svg"](root) for name in TARGETS)


def test_without_litellm_the_page_says_why(root: Path) -> None:
    keep(root, "peers", peers(*TARGETS[:3]))
    assert "LiteLLM was skipped: not installed." in page.page(root)
    assert "LiteLLM" not in page.PLOTS["benchmarks/cpu.svg"](root)


def test_the_scheduled_job_is_shown_by_users_and_by_those_who_are_due(root: Path) -> None:
    row = {"users": 1_000, "due_users": 100, "closed_periods": 100, "calls": {"Query": 3, "GetItem": 4}}
    row |= {"items_read": 500, "read_units": 60, "write_units": 70, "seconds": 1.5}
    keep(root, "usage_reset", {"measured_on": "m", "by_users": [row], "by_due_users": [row]})
    assert page.page(root).count("| 1,000 | 100 | 100 | 7 | 500 | 60 | 70 | 1.5 |") == 2
    ElementTree.fromstring(page.PLOTS["benchmarks/growth.svg"](root))


def test_the_scorecard_of_the_chaos_suite_is_shown_with_what_was_wanted(root: Path) -> None:
    card = {
        "counts": {"kills": 1_234, "calls": 9},
        "targets": {"kills": {"wanted": 1_000, "met": True}},
        "found": {"billed_twice": 0},
        "parts": {"kills": {"ran_at": "2026-11-20T10:20Z", "measured_on": "a machine"}},
    }
    keep(root, "chaos", card)
    text = page.page(root)
    assert "*2026-11-20, a machine.*" in text
    assert "| kills | 1,234 | 1,000 |" in text
    assert "| billed twice | 0 |" in text


def test_plots_are_well_formed_whatever_they_are_called() -> None:
    drawn = [
        charts.bars("a < b", "ms & s", [Bar("x > y", (1.0,), "1 ms"), Bar("none", (0.0,), "0 ms")]),
        charts.bars("parts", "%", [Bar("one", (30.0, 70.0), "100 %")], parts={"a": 2, "b": 3}),
        charts.lines("l", "MB", {"a": [(1, 10), (8, 80), (64, 600)]}, across="streams", log=True),
        charts.lines("flat", "MB", {"a": [(0, 5), (10, 5)]}, across="s"),
        charts.lines("nothing", "MB", {}, across="s"),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg)


def test_a_bar_is_as_long_as_its_figure() -> None:
    svg = charts.bars("t", "ms", [Bar("half", (5.0,), "5"), Bar("whole", (10.0,), "10")])
    root = ElementTree.fromstring(svg)
    widths = [float(node.get("width", 0)) for node in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[0] * 2 == pytest.approx(widths[1], abs=0.2)


def test_a_million_requests_cost_what_the_formula_says() -> None:
    found = costs.per_million(own_ms=10, writes=3, reads=1, log_bytes=1_000, model_seconds=10)
    assert found == {
        "lambda_waiting": 66.67,  # 10 s x 0.5 GB x 1,000,000 x $0.0000133334
        "lambda_own": 0.07,
        "lambda_requests": 0.20,
        "table": 2.00,  # 3 x $0.625 + $0.125
        "logs": 0.50,
        "all": 69.43,
    }


def test_the_memory_that_is_priced_is_the_template_s() -> None:
    template = (Path(__file__).parents[2] / "template.yaml").read_text(encoding="utf-8")
    claude = template.split("  ClaudeFunction:\n")[1].split("\n  UsageReset")[0]
    assert "MemorySize" not in claude, "it has the one of Globals"
    assert f"    MemorySize: {int(costs.MEMORY_GB * 1024)}\n" in template.split("Resources:")[0]
