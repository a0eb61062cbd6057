"""The generated pages say what code says, completely."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dev.docs import access_patterns, settings
from dev.docs.cli import PAGES, outdated
from dev.docs.markdown import table
from tests.support.sam import ROOT, functions_of, load_template
from tollgate.edge.errors import ERROR_TABLE


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    """If not: `make docs`."""
    assert outdated([name]) == []


def test_every_parameter_and_every_variable_is_explained() -> None:
    page = settings.page(ROOT)
    template = load_template()
    names = set(template["Parameters"])
    for function in functions_of(template).values():
        names |= function["Environment"]["Variables"].keys()
    for name in names:
        assert f"| `{name}` |" in page


def test_every_variable_that_a_function_reads_is_one_that_the_template_sets() -> None:
    """And none is set that nothing reads. Those of AWS are read by its own libraries."""
    source = (ROOT / "layers" / "core" / "tollgate" / "config.py").read_text(encoding="utf-8")
    literals = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    read = {text for text in literals if isinstance(text, str) and re.fullmatch(r"[A-Z]+(_[A-Z]+)*", text)}
    read |= {"POWERTOOLS_LOG_LEVEL"}
    given: set[str] = set()
    for function in functions_of(load_template()).values():
        given |= function["Environment"]["Variables"].keys()
    assert {name for name in read ^ given if not name.startswith("AWS_")} == set()


def test_a_variable_that_nobody_described_stops_the_page(tmp_path: Path) -> None:
    text = (ROOT / "template.yaml").read_text(encoding="utf-8")
    (tmp_path / "template.yaml").write_text(text.replace("        STAGE: ", "        STAGES: "), encoding="utf-8")
    with pytest.raises(settings.DriftError, match=r"\['STAGE', 'STAGES'\]"):
        settings.page(tmp_path)


def test_every_error_code_is_listed_with_its_status() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for row in ERROR_TABLE:
        for code in row.codes:
            assert re.search(rf"^\| {int(row.status)} \|.*`{code}`", page, re.MULTILINE), code


def test_every_entity_and_every_operation_is_listed() -> None:
    """Found by searching the source for words, where the page is made from its syntax."""
    page = access_patterns.page(ROOT)
    folder = ROOT / "layers" / "core" / "tollgate" / "storage"
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for entity in re.findall(r"""(?:"Type": |Type=)"(\w+)\"""", text):
            assert f"| `{entity}` | `" in page, entity
        if "self._table.client" in text:
            for method in re.findall(r"(?<!@property\n)^    def ([a-z]\w*)\(self", text, re.MULTILINE):
                assert f"| `{method}` | " in page, f"{path.stem}.{method}"


def test_keys_of_items_are_spelled_out() -> None:
    rows = access_patterns.item_rows(list(access_patterns.read_sources(ROOT / "layers/core/tollgate/storage")))
    by_type = {row[0]: row for row in rows}
    assert by_type["`User`"][1:3] == ["`TENANT#<tenant_id>#USER#<user_id>`", "`PROFILE`"]
    assert by_type["`Meter`"][3] == "`METERS#<shard>`"
    assert all(row[1] != "none" and row[2] != "none" for row in rows)


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["x | y\nz"]]) == "| a |\n| --- |\n| x \\| y z |\n"
