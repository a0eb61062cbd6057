"""Where users may be sent back to after a visit at Stripe's pages: only to addresses that the operator has listed.

An address is compared as it stands, after a strict reading: whatever two parsers could read in two ways is refused, so
that no browser goes somewhere else than what was checked here. No I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tollgate.domain.errors import PermissionDeniedError

LONGEST_URL: Final = 2000
"""Stripe takes 5,000 characters; browsers and proxies take less."""

# Lower case, no user, no escapes and no second slash in the path; ASCII throughout. Braces are Stripe's placeholder.
_URL: Final = re.compile(
    r"(?P<origin>https?://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:]+\])(?::[1-9][0-9]{0,4})?)"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,=:@-]*)*)"
    r"(?:\?[A-Za-z0-9._~!$&'()*+,;=:@/?%{}-]*)?"
    r"(?:#[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)?"
)
_DOTS: Final = frozenset({".", ".."})


@dataclass(frozen=True, slots=True)
class ReturnUrls:
    """The operator's list: each entry an origin with or without a path, and all that lies below it."""

    allowed: tuple[str, ...]

    def check(self, name: str, url: str) -> str:
        """The same address. Raises PermissionDeniedError that names the field, and not what was sent."""
        found = _URL.fullmatch(url) if len(url) <= LONGEST_URL and url.isascii() else None
        if found is not None:
            origin, path = found["origin"], found["path"]
            segments = path.split("/")[1:]
            plain = not _DOTS & set(segments) and "" not in segments[:-1]
            if plain and any(_lies_below(origin, path, entry) for entry in self.allowed):
                return url
        raise PermissionDeniedError(
            f"{name}: must be one of the pages that the operator allows, or lie below one of them, written plainly: "
            "https, lower-case host, no user, no escapes in the path",
            error_code="return_url_not_allowed",
        )


def _lies_below(origin: str, path: str, entry: str) -> bool:
    listed = _URL.fullmatch(entry)
    if listed is None or listed["origin"] != origin:
        return False
    root = listed["path"].rstrip("/")
    return path == root or path.startswith(f"{root}/")
