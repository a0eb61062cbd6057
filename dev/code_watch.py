"""Notices when the code that functions run has changed, by looking at the files' times."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SUFFIXES: Final = (".py", ".toml", ".yaml", "bootstrap")


class CodeWatch:
    """Remembers how some files and folders looked."""

    def __init__(self, *places: Path) -> None:
        self._places = places
        self._seen = self._look()

    def changed(self) -> list[Path]:
        """Files that are new, gone or different since the last call."""
        now, before = self._look(), self._seen
        self._seen = now
        return sorted(path for path in now.keys() | before.keys() if now.get(path) != before.get(path))

    def _look(self) -> dict[Path, int]:
        found: dict[Path, int] = {}
        for place in self._places:
            for path in place.rglob("*") if place.is_dir() else (place,):
                if path.name.endswith(_SUFFIXES):
                    try:
                        found[path] = path.stat().st_mtime_ns
                    except FileNotFoundError:
                        continue  # gone between the two looks
        return found
