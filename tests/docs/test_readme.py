"""The documents are true where a machine can tell: links, commands, named tests, quoted places, example code."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tollgate.domain.api_keys import is_well_formed

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
SHOWN_TARGETS = set(re.findall(r"^([a-z]+):.*##", MAKEFILE, re.MULTILINE))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(text: str) -> list[str]:
    """Every `make something` that a page tells to type: in code blocks at the start of a line, or in backticks."""
    blocks = "\n".join(re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL))
    return re.findall(r"^make ([a-z]+)", blocks, re.MULTILINE) + re.findall(r"`make ([a-z]+)[^`]*`", text)


def test_the_first_screen_is_two_commands() -> None:
    first_block = README.split("```")[1].strip().splitlines()[1:]

    assert [line.partition("#")[0].strip() for line in first_block] == ["make dev", "make test"]
    assert README.index("```") < 200, "nothing stands before them but what it is"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_page_exists(page: Path) -> None:
    assert set(commands(page.read_text(encoding="utf-8"))) <= TARGETS


def test_every_task_is_explained_to_contributors() -> None:
    table = re.findall(r"^\| `make ([a-z]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert set(table) == SHOWN_TARGETS - {"help"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{name_of(page)}: {target}"


# In code a place is named like this: docs/decisions.md, "A heading". It may run over a line's end and comment signs.
PLACE = re.compile(r"(docs/[a-z-]+\.md)(?:,[\s#]*\"([^\"]+)\")?")


def test_every_place_that_code_names_is_in_the_documents() -> None:
    sources = [
        path
        for folder in ("layers", "functions", "tollgate_cli", "dev", "tests", "bench")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".toml", ".sh"} and path != Path(__file__)
    ]
    for source in [*sources, ROOT / "template.yaml", ROOT / "pyproject.toml", ROOT / "Makefile"]:
        for page, heading in PLACE.findall(source.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{name_of(source)}: {page}"
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
            said = re.sub(r"[\s#]+", " ", heading).strip()
            assert not said or said in headings, f"{name_of(source)}: {page}, {said!r}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        named = ROOT / path
        assert named.exists(), f"{name_of(page)}: {path}"
        if name:
            source = named.read_text(encoding="utf-8")
            assert re.search(rf"^\s*(async )?def {name}\(", source, re.MULTILINE), f"{name_of(page)}: {path}::{name}"


def test_the_listed_invariants_are_those_the_simulator_checks() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    section = page.split("## What the simulator checks")[1].split("\n## ")[0]
    listed = {
        name for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "simulation").glob("*.py"))

    assert listed == set(re.findall(r"\.report\(\s*\"(\w+)\"", sources))


def test_python_in_the_readme_is_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    assert blocks
    for block in blocks:
        ast.parse(block)


def test_bodies_in_the_readme_are_requests() -> None:
    tour = README.split("## In 30 seconds")[1].split("\n## ")[0]
    bodies = [json.loads(body) for body in re.findall(r"-d '(\{.*\})'", tour)]

    assert bodies
    assert all({"model", "max_tokens", "messages"} <= body.keys() for body in bodies)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_shows_a_key_that_could_work(page: Path) -> None:
    words = re.findall(r"tg_(?:live|test)_\w+", page.read_text(encoding="utf-8"))

    assert not [word for word in words if is_well_formed(word)]
