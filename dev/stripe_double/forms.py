"""Stripe's form encoding: `items[0][price]=x` is {"items": [{"price": "x"}]}."""

from __future__ import annotations

import re
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

Value: TypeAlias = Any
"""Anything JSON can hold: what callers send is not known until the contract has looked at it."""
Json = dict[str, Any]

_PARTS = re.compile(r"[^\[\]]+|\[([^\[\]]*)\]")


def parse_form(text: str) -> Json:
    root: Json = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        place = root
        *path, last = [_index(match) for match in _PARTS.finditer(name)]
        for part in path:
            inner = place.setdefault(part if part else str(len(place)), {})
            if not isinstance(inner, dict):
                # `a=1&a[b]=2`: the later spelling wins, and the contract then judges it.
                inner = place[part] = {}
            place = inner
        place[last if last else str(len(place))] = value
    return {name: _lists(value) for name, value in root.items()}


def _index(match: re.Match[str]) -> str:
    return match.group(1) if match.group(0).startswith("[") else match.group(0)


def _lists(value: Value) -> Value:
    """A hash whose every key is a number was a list."""
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _lists(inner) for key, inner in value.items()}
