"""A function with SnapStart hooks; each leaves a line in the file named by HOOKS_FILE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from snapshot_restore_py import register_after_restore, register_before_snapshot  # type: ignore[import-untyped]

from tollgate_runtime import Response


def _note(line: str) -> None:
    with Path(os.environ["HOOKS_FILE"]).open("a") as file:
        file.write(line + "\n")
    if os.environ.get("HOOKS_FAIL") == line:
        raise RuntimeError(f"{line} failed")


register_before_snapshot(_note, "before snapshot")
register_after_restore(_note, "after restore")


def handler(_event: dict[str, Any], _context: object) -> dict[str, Any] | None:
    with Response(200, {}) as response:
        response.write(Path(os.environ["HOOKS_FILE"]).read_text())
    return response.result()
