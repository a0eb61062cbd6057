"""Where results are kept, and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "results"


def machine(engine: str) -> str:
    """The machine in words, without its name."""
    cores = os.cpu_count()
    python = platform.python_version()
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {python}, table on {engine}"


def write(name: str, result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Keeps a result, with its day, in place of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    dated = {"measured_at": datetime.now(UTC).strftime("%Y-%m-%d")} | result
    path.write_text(json.dumps(dated, indent=1) + "\n", encoding="utf-8")
    return path


def read(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """A result; None when it was never measured."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
