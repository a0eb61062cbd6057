"""Catalogs made for one test: a folder that `Catalog` may name by its path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PLAN = {
    "name": "Test",
    "price_cents": 0,
    "quota_kind": "hard",
    "quota_tokens": 100_000,
    "models": ["claude-haiku-5-5"],
    "max_open_reservations": 64,
    "expiry_policy": "strict",
    "period_kind": "calendar_month",
    "upgrade_message": "Upgrade at example.com.",
}


def write_catalog(folder: Path, **plans: Mapping[str, int | str | list[str] | None]) -> Path:
    """A plans.toml with these plans, the first being the default; each says how it differs from PLAN (None: without).

    Returns the folder.
    """
    lines = [f'default_plan = "{next(iter(plans))}"']
    for plan_id, changes in plans.items():
        lines.append(f"[plans.{plan_id}]")
        values = {name: value for name, value in {**PLAN, **changes}.items() if value is not None}
        lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.toml").write_text("\n".join(lines) + "\n")
    return folder


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'
