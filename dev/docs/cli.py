"""Writes the generated pages of docs/, or says which of them are out of date.

python -m dev.docs all               settings.md, errors.md, access-patterns.md, openapi.json, benchmarks.md, its plots
python -m dev.docs settings          one of them
python -m dev.docs all --check       write nothing; status 1 when a page is not what code says
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.page import PLOTS
from bench.page import page as benchmarks_page
from dev.docs import access_patterns, errors, openapi, settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs"


PAGES: dict[str, Callable[[Path], str]] = {
    "access-patterns": access_patterns.page,
    "benchmarks": benchmarks_page,
    **PLOTS,
    "errors": errors.page,
    "openapi": openapi.page,
    "settings": settings.page,
}


def write(names: Sequence[str]) -> None:
    """Writes these pages."""
    for name in names:
        path_of(name).parent.mkdir(exist_ok=True)
        path_of(name).write_text(PAGES[name](ROOT), encoding="utf-8")


def outdated(names: Sequence[str]) -> list[str]:
    """Those of these pages that are missing or not what code says."""
    return [name for name in names if _written(name) != PAGES[name](ROOT)]


def path_of(name: str) -> Path:
    """Where a page is kept."""
    if name.endswith(".svg"):
        return FOLDER / name
    return FOLDER / f"{name}{'.json' if name == 'openapi' else '.md'}"


def _written(name: str) -> str | None:
    path = path_of(name)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(arguments: Sequence[str]) -> int:
    """Runs the command; 1 when a check finds an outdated page."""
    parser = argparse.ArgumentParser(prog="python -m dev.docs", description="Generated pages of docs/.")
    parser.add_argument("page", choices=["all", *PAGES])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is out of date")
    options = parser.parse_args(arguments)
    names = list(PAGES) if options.page == "all" else [options.page]
    if not options.check:
        write(names)
        return 0
    for name in (found := outdated(names)):
        print(f"docs/{path_of(name).relative_to(FOLDER)} is out of date: python -m dev.docs {name}", file=sys.stderr)
    return 1 if found else 0
