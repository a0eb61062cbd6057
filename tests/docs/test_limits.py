"""docs/limits.md states the limits that are in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollgate.domain.open_routes import (
    ADDRESS_FAILURES,
    MAILBOX_FAILURES,
    OPEN_ROUTES,
    PAIR_FAILURES,
    BackOff,
    Rate,
    Subject,
)

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
WORDS = {
    Subject.ADDRESS: "one address",
    Subject.NETWORK: "one network",
    Subject.MAILBOX: "one mailbox",
    Subject.PAIR: "one mailbox from one address",
}
UNITS = {60: "a minute", 3600: "an hour", 24 * 3600: "a day"}


def cell(rate: Rate) -> str:
    return f"{WORDS[rate.subject]}: {rate.burst}, then {rate.requests} {UNITS[rate.seconds]}"


@pytest.mark.parametrize("route", OPEN_ROUTES)
def test_the_rates_of_every_open_route_are_listed(route: str) -> None:
    limits = OPEN_ROUTES[route]
    assert f"| `{route}` | {'; '.join(map(cell, limits.rates))} |\n" in PAGE


@pytest.mark.parametrize("back_off", [ADDRESS_FAILURES, MAILBOX_FAILURES, PAIR_FAILURES])
def test_the_waits_after_wrong_passwords_are_listed(back_off: BackOff) -> None:
    row = f"| {WORDS[back_off.subject]} | {back_off.free_failures} | {back_off.longest_seconds // 60} minutes |\n"
    assert row in PAGE
