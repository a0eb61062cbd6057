"""What the local stack shows in a browser: docs of the API, mail, billing and notices. No page asks another host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
NAMES: Final = frozenset({"billing", "docs", "mail", "notices"})
ROOT: Final = FOLDER.parent.parent
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    """A whole answer that is no JSON of the stack's own."""

    content_type: str
    body: bytes


def html(name: str) -> Page:
    """One of the pages in this folder, read anew each time: who edits one sees it."""
    return Page("text/html; charset=utf-8", (FOLDER / f"{name}.html").read_bytes())


def openapi_document() -> Page:
    """docs/openapi.json, served as from the address where it is read. FileNotFoundError before `make docs`."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    document["servers"] = [{"url": "/", "description": "this local stack"}]
    return Page("application/json", json.dumps(document).encode())
