"""bench/results/chaos.json: what was run, what went wrong on purpose, and what went wrong in truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.chaos.campaigns import KINDS, Part

PATH = Path(__file__).resolve().parents[2] / "bench" / "results" / "chaos.json"
TARGETS = {
    "kills": 1_000,
    "table_faults": 10_000,
    "stream_cuts": 10_000,
    "webhook_schedules": 10_000,
    "fuzz_inputs": 100_000,
}


def write(part: Part, path: Path = PATH) -> None:
    """Replaces this part; the others stay as they were run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    parts = {**card.get("parts", {}), part.name: part.document()}
    path.write_text(json.dumps(_card(parts), indent=1) + "\n")


def summary(path: Path = PATH) -> str:
    """One line for people."""
    card = json.loads(path.read_text())
    counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in card["counts"].items())
    wrong = {name: number for name, number in card["found"].items() if number}
    return f"{counts}; found: {wrong or 'nothing'}"


def _card(parts: dict[str, Any]) -> dict[str, Any]:
    def figure(part: str, name: str) -> int:
        found: int = parts.get(part, {}).get("figures", {}).get(name, 0)
        return found

    def total(part: str, prefix: str) -> int:
        figures: dict[str, int] = parts.get(part, {}).get("figures", {})
        return sum(number for name, number in figures.items() if name.startswith(prefix))

    counts = {
        "calls": figure("storm", "calls") + figure("cuts", "calls"),
        "kills": figure("storm", "kills"),
        "table_faults": total("storm", "table_"),
        "upstream_faults": total("storm", "upstream_") + total("cuts", "upstream_"),
        "stream_cuts": figure("cuts", "stream_cuts"),
        "webhook_schedules": figure("webhooks", "schedules"),
        "fuzz_inputs": figure("fuzz", "inputs"),
    }
    found = dict.fromkeys(KINDS.values(), 0)
    for part in parts.values():
        for name, number in part["kinds"].items():
            found[name] = found.get(name, 0) + number
    return {
        "counts": counts,
        "targets": {name: {"wanted": wanted, "met": counts[name] >= wanted} for name, wanted in TARGETS.items()},
        "found": found,
        "seconds": round(sum(part["seconds"] for part in parts.values()), 1),
        "parts": dict(sorted(parts.items())),
    }
