"""How the whole suite is collected and ordered; what it proves is the same without this."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m alone` wants a dozen tests: files that have none need not be imported for them."""
    if config.option.markexpr != "alone" or collection_path.suffix != ".py":
        return None
    return True if "mark.alone" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: begun last, one of them keeps its process busy after the other has ended.

    With `--no-loadscope-reorder`; without it xdist begins with those that have most tests, which are the quick ones.
    """
    long = {item.path for item in items for name in ("slow", "stack") if item.get_closest_marker(name)}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Thousands of tests and all modules stay: looking through them for garbage again and again took minutes."""
    gc.collect()
    gc.freeze()
