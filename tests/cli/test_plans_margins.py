"""`tollgate plans lint` and `simulate`: what people read, what scripts read, and what stops a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.support.catalogs import write_catalog

PAID: dict[str, int | str | list[str] | None] = {
    "price_cents": 900,
    "period_kind": "anchored_month",
    "pool_tokens": None,
}


def words(text: str) -> str:
    """A table's text without its layout."""
    return " ".join(text.split())


def test_the_shipped_catalog_passes(tollgate: Command) -> None:
    result = tollgate("plans", "lint")
    said = words(result.stdout)

    assert result.exit_code == 0
    assert "Pro, protected $29.00 monthly $27.66 +$19.66 68 % +$5.66 20 %" in said
    assert "Worst case of Pro: US-only, output on claude-sonnet-5." in said
    assert "$290.00 yearly $279.26 +$183.26 63 % +$15.26 5 %" in said
    assert "$20.00/M overage $19.28 +$15.28 76 % +$8.28 41 %" in said
    assert "pool, all users -$5,000.00" in said
    assert "warning: Enterprise can lose money by the month, by the year." in said
    assert "No protected plan can lose money." in said


def test_the_page_about_plans_shows_what_the_command_says(tollgate: Command) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")
    shown = page.split("$ tollgate plans lint\n")[1].split("```")[0].splitlines()
    said = [line.rstrip() for line in tollgate("plans", "lint", width=80).stdout.splitlines()]

    assert len(shown) > 4
    assert [line for line in shown if line.rstrip() not in said] == []


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal(tollgate: Command, width: int) -> None:
    for command in (["lint"], ["lint", "--catalog", "models"], ["simulate", "--plan", "pro"]):
        lines = tollgate("plans", *command, width=width).stdout.splitlines()

        assert max(map(len, lines)) <= width
        assert not [line for line in lines if "…" in line], "nothing is cut off"


@pytest.mark.parametrize("catalog", ["default", "calls", "calls_pair", "models"])
def test_every_shipped_catalog_has_margins(tollgate: Command, catalog: str) -> None:
    document = tollgate.json("plans", "lint", "--catalog", catalog)

    assert document["catalog"] == catalog
    assert not [message for message in document["messages"] if message["level"] == "error"]
    assert all(plan["models"] for plan in document["plans"])


def test_a_protected_plan_that_can_lose_money_stops_the_pipeline(tollgate: Command, tmp_path: Path) -> None:
    folder = write_catalog(tmp_path, free={}, small={**PAID, "quota_tokens": 20_000_000, "protected": "true"})
    path = folder / "plans.toml"
    path.write_text(path.read_text().replace('"true"', "true"))

    result = tollgate("plans", "lint", "--catalog", str(folder))

    assert result.exit_code == 1
    assert "error: Test is protected and can lose money by the month." in words(result.stdout)
    document = tollgate.json("plans", "lint", "--catalog", str(folder))
    assert [(plan["plan"], plan["fails"]) for plan in document["plans"]] == [("free", False), ("small", True)]


def test_amounts_in_json_are_whole_microusd(tollgate: Command) -> None:
    pro = tollgate.json("plans", "lint")["plans"][1]

    assert pro["month"]["worst"] == {
        "model": "claude-sonnet-5",
        "revenue_microusd": 29_000_000,
        "fees_microusd": 1_344_000,
        "cost_microusd": 22_000_000,
        "margin_microusd": 5_656_000,
        "margin_permille": 195,
    }
    assert pro["worst_way"] == {"kind": "output", "fast": False, "us_only": True, "long_prompt": False}


def test_a_day_decides_the_prices(tollgate: Command) -> None:
    """Cache reads of Sonnet 5.5 were twice as dear before 7 October."""
    costs = [
        plan["models"][2]["typical"]["cost_microusd"]
        for day in ("2026-10-06", "2026-10-07")
        for plan in tollgate.json("plans", "simulate", "--plan", "pro", "--mix", "agent", "--at", day)["plans"]
    ]

    assert costs[0] > costs[1]


def test_a_simulation_shows_each_model_for_the_use_asked_for(tollgate: Command) -> None:
    [pro] = tollgate.json("plans", "simulate", "--plan", "pro", "--mix", "90/10", "--used", "150")["plans"]

    sonnet = next(model for model in pro["models"] if model["model"] == "claude-sonnet-5-5")
    assert sonnet["typical"]["cost_microusd"] == 3 * 2_800_000
    assert sonnet["typical"]["revenue_microusd"] == 29_000_000 + 20_000_000
    said = words(tollgate("plans", "simulate", "--plan", "pro", "--mix", "90/10", "--used", "150").stdout)
    assert "Pro, 150 % of the quota used" in said
    assert "90 % input, 10 % output" in said


@pytest.mark.parametrize(
    ("catalog", "said"),
    [
        ("calls", "Worst case of Starter: US-only, long prompts, calls that fill the context on claude-haiku-5-5."),
        ("calls", "Worst case of Enterprise: output on claude-haiku-4-5, which nothing bounds."),
        ("models", "Worst case of BEAST: fast, US-only, output on claude-fable-5-2."),
        ("models", "BASIC is the default plan: users have it without paying its price."),
    ],
)
def test_the_worst_case_is_put_into_words(tollgate: Command, catalog: str, said: str) -> None:
    assert said in words(tollgate("plans", "lint", "--catalog", catalog).stdout)


@pytest.mark.parametrize("mix", ["", "90", "90/20", "a/b", "-10/110", "50/50/0/0/0", "٩٠/10"])
def test_a_mix_that_is_none_is_refused(tollgate: Command, mix: str) -> None:
    result = tollgate("plans", "simulate", "--mix", mix)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: --mix")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lint", "--catalog", "nowhere"], "no catalog is called 'nowhere'; there are: default"),
        (["simulate", "--plan", "gold"], "There is no plan gold; there are: free, pro, enterprise."),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(tollgate: Command, arguments: list[str], said: str) -> None:
    result = tollgate("plans", *arguments)

    assert result.exit_code == 1
    assert said in words(result.stderr)
    assert result.stdout == ""


def test_a_slip_in_a_catalog_is_named_with_its_place(tollgate: Command, tmp_path: Path) -> None:
    folder = write_catalog(tmp_path, free={"price_cents": -1})

    assert "plans.toml [plans.free] price_cents: must be from 0" in words(
        tollgate("plans", "lint", "--catalog", str(folder)).stderr
    )


@pytest.mark.parametrize("group", [[], ["plans"], ["events"]])
def test_help_is_there_without_asking(tollgate: Command, group: list[str]) -> None:
    said = tollgate(*group).output

    assert "Usage: " in said
    assert "Commands" in said
