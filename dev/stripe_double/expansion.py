"""`expand`: ids in an answer replaced by the objects they name."""

from __future__ import annotations

import json
from collections.abc import Callable

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json, Value
from dev.stripe_double.store import Store

DEPTH_AT_MOST = 4

Included = Callable[[Json], Value]


class Expander:
    def __init__(self, store: Store, included: dict[tuple[str, str], Included]) -> None:
        self._store = store
        self._included = included
        """(object, field) → what a field holds that is absent until it is asked for."""

    def view(self, thing: Json, paths: list[str]) -> Json:
        """A copy for the caller, so that nothing it keeps changes under its hands."""
        if not paths:
            return thing
        copied: Json = json.loads(json.dumps(thing))
        for path in paths:
            parts = path.split(".")
            if len([part for part in parts if part != "data"]) > DEPTH_AT_MOST:
                raise StripeRefusal("You cannot expand more than 4 levels of a property.", param="expand")
            self._expand(copied, parts, path)
        return copied

    def _expand(self, place: Value, parts: list[str], path: str) -> None:
        if isinstance(place, list):
            for one in place:
                self._expand(one, parts, path)
            return
        if not parts or not isinstance(place, dict):
            return
        name, *rest = parts
        kind = place.get("object", "")
        if name not in place:
            if (kind, name) not in self._included:
                if place.get("deleted") or name in self._fields(kind):
                    return
                raise StripeRefusal(f"This property cannot be expanded ({path}).", param="expand")
            place[name] = json.loads(json.dumps(self._included[kind, name](place)))
        elif isinstance(place[name], str):
            place[name] = self._object(place[name], path)
        elif isinstance(place[name], list):
            place[name] = [self._object(one, path) if isinstance(one, str) else one for one in place[name]]
        self._expand(place[name], rest, path)

    def _object(self, identifier: str, path: str) -> Json:
        found = self._store.find(identifier)
        if found is None:
            raise StripeRefusal(f"This property cannot be expanded ({path}).", param="expand")
        copied: Json = json.loads(json.dumps(found))
        return copied

    def _fields(self, kind: str) -> Json:
        contract = self._store.contract
        fields: Json = contract.resources[contract.by_object[kind]]["o"] if kind in contract.by_object else {}
        return fields
