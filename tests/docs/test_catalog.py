"""docs/catalog.md explains exactly the keys the loader takes, and its example works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tollgate.catalog.loader import KEYS, read_catalog

PAGE = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text(encoding="utf-8")
HEADINGS = {
    "plans.toml": "### At the top",
    "plans": "### `[plans.<id>]`",
    "billing": "### `[billing]`",
    "notices": "### `[notices]`",
    "models.toml": "### The file",
    "models": "### `[models.<id>]`",
    "prices": "### `[[models.<id>.prices]]`",
    "microusd_per_mtok": "### `microusd_per_mtok`",
    "weights": "### `weights`",
}
TABLE_ROW = re.compile(r"^\| `(\w+)` \|.*\| (.*) \|$", re.MULTILINE)


def documented(table: str) -> dict[str, str]:
    """Key to what its third column says."""
    section = PAGE.split(HEADINGS[table] + "\n", 1)[1]
    return dict(TABLE_ROW.findall(re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]))


def test_every_table_has_a_section() -> None:
    assert HEADINGS.keys() == KEYS.keys()


@pytest.mark.parametrize("table", KEYS)
def test_the_documented_keys_are_the_known_ones_in_their_order(table: str) -> None:
    assert list(documented(table)) == list(KEYS[table])


@pytest.mark.parametrize("table", KEYS)
def test_required_keys_are_documented_as_required(table: str) -> None:
    for key, when_left_out in documented(table).items():
        assert (when_left_out == "required") is KEYS[table][key].required, key


def test_the_example_is_a_catalog(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "plans.toml").write_text(example, encoding="utf-8")

    catalog = read_catalog(tmp_path, "example")

    assert list(catalog.plans) == ["starter", "team"]


def test_the_shipped_catalogs_are_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [^|]* \|$", PAGE.split("## An example")[0], re.MULTILINE)
    examples = Path(__file__).parents[2] / "layers" / "core" / "tollgate" / "catalog" / "examples"

    assert listed == ["default", *sorted(folder.name for folder in examples.iterdir() if folder.is_dir())]
