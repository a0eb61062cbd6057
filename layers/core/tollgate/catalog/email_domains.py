"""Domains whose mailboxes anybody can read and nobody owns; an account on one is refused.

Data: disposable_domains.txt beside this module, and a file of the operator's own, one domain a line, `#` for comments,
`!example.com` to accept a domain that the shipped list refuses. A domain stands for its subdomains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tollgate.catalog.loader import CatalogError

_SHIPPED = Path(__file__).parent / "disposable_domains.txt"
_DOMAIN = re.compile(r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")


class EmailDomains:
    """Tells which addresses are disposable."""

    def __init__(self, refused: frozenset[str]) -> None:
        self._refused = refused

    def refuse(self, email: str) -> bool:
        """Whether the address is at a refused domain or at a subdomain of one."""
        labels = email.rpartition("@")[2].strip().lower().rstrip(".").split(".")
        return any(".".join(labels[start:]) in self._refused for start in range(len(labels)))


def load_email_domains(own_file: str | None = None) -> EmailDomains:
    """The shipped list and the operator's own. Raises CatalogError for a line that is no domain, or no such file."""
    refused = set(_lines(_SHIPPED))
    for line in _lines(Path(own_file)) if own_file else ():
        if line.startswith("!"):
            refused.discard(line[1:])
        else:
            refused.add(line)
    return EmailDomains(frozenset(refused))


def _lines(path: Path) -> Iterable[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CatalogError(path.name, "", "", "cannot be read") from error
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip().lower()
        if entry and not _DOMAIN.fullmatch(entry.removeprefix("!")):
            raise CatalogError(path.name, "", f"line {number}", f"{entry!r} is no domain")
        if entry:
            yield entry
