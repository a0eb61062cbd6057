"""What Stripe accepts and answers at the pinned version, checked request by request.

Derived from the installed stripe package (`derivation`), so it cannot drift from the version in use. It knows names,
types, enums and what is required; rules between parameters are in `resources`, each beside its situation.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dev.stripe_double.derivation import Shape, document
from dev.stripe_double.forms import Json, Value

_WHOLE = re.compile(r"-?\d{1,18}")
_DECIMAL = re.compile(r"-?\d+(\.\d{1,12})?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE]-?\d+)?")
ENUM_VALUES_SHOWN = 12
KEPT_IN = Path(__file__).resolve().parents[2] / ".dev"


@dataclass(frozen=True)
class Violation:
    """One thing Stripe would refuse, with the code and text it refuses with."""

    code: str
    param: str
    message: str


@dataclass(frozen=True)
class Operation:
    key: str
    """`POST /v1/customers/{customer}`, as the package spells it."""
    service: str
    params: str | None
    answer: Shape


class Contract:
    def __init__(self, source: Mapping[str, Any]) -> None:
        self.api_version: str = source["api_version"]
        self.params: Mapping[str, Any] = source["params"]
        self.resources: Mapping[str, Any] = source["resources"]
        self.operations: dict[str, Operation] = {
            key: Operation(key, found["service"], found["params"], found["answer"])
            for key, found in source["operations"].items()
        }
        # A literal segment wins over a placeholder: /v1/invoices/create_preview is no invoice.
        self._routes: dict[tuple[str, int], list[tuple[re.Pattern[str], Operation]]] = defaultdict(list)
        for operation in sorted(self.operations.values(), key=lambda one: (one.key.count("{"), one.key)):
            method, _, path = operation.key.partition(" ")
            pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
            self._routes[method, path.count("/")].append((pattern, operation))
        self.by_object: dict[str, str] = {
            shape["o"]["object"]["e"][0]: name
            for name, shape in self.resources.items()
            if isinstance(shape, dict) and "e" in (shape.get("o", {}).get("object") or ())
        }

    def match(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        for pattern, operation in self._routes.get((method, path.count("/")), ()):
            if found := pattern.fullmatch(path):
                return operation, found.groupdict()
        return None

    def check(self, operation: Operation, given: Json, *, form: bool) -> tuple[Json, list[Violation]]:
        """The parameters in their own types, and everything Stripe would refuse about them."""
        checker = _Checker(self.params, form=form)
        shape: Shape = {"$": operation.params} if operation.params else {"o": {"expand": {"l": "s"}}, "r": []}
        typed = checker.value(shape, given, ())
        return typed, checker.violations

    def answer_faults(self, shape: Shape, value: Value, path: str = "") -> list[str]:
        """Where an answer carries a field, or a value of an enum, that this version of Stripe does not have."""
        return list(_answer_faults(self.resources, shape, value, path))


@cache
def installed_contract(cache_directory: Path | None = KEPT_IN) -> Contract:
    """Of the stripe package in this environment. Deriving takes over a second, so it is kept beside the local stack."""
    return Contract(document(cache_directory))


def _spelled(path: tuple[str, ...]) -> str:
    return path[0] + "".join(f"[{part}]" for part in path[1:]) if path else ""


class _Checker:
    def __init__(self, shapes: Mapping[str, Any], *, form: bool) -> None:
        self._shapes = shapes
        self._form = form
        self.violations: list[Violation] = []

    def _refuse(self, code: str, path: tuple[str, ...], message: str) -> None:
        self.violations.append(Violation(code, _spelled(path), message))

    def value(self, shape: Shape, given: Value, path: tuple[str, ...]) -> Value:
        if isinstance(shape, str):
            return given if shape == "*" else self._scalar(shape, given, path)
        ((kind, inner),) = ((key, value) for key, value in shape.items() if key != "r")
        match kind:
            case "$":
                return self.value(self._shapes[inner], given, path)
            case "o":
                return self._fields(inner, shape["r"], given, path)
            case "l":
                return self._list(inner, given, path)
            case "m":
                return self._map(inner, given, path)
            case "|":
                return self._alternatives(inner, given, path)
            case "?":
                return given if given is None else self.value(inner, given, path)
            case "e":
                return self._enum(inner, given, path)
        return given

    def _fields(self, fields: Mapping[str, Shape], required: list[str], given: Value, path: tuple[str, ...]) -> Value:
        if given == []:
            given = {}
        if not isinstance(given, dict):
            self._refuse("parameter_invalid_object", path, f"Invalid object: {_spelled(path)} must be a hash.")
            return given
        typed: Json = {}
        for name, value in given.items():
            if name in fields:
                typed[name] = self.value(fields[name], value, (*path, name))
                continue
            where = _spelled((*path, name))
            near = difflib.get_close_matches(name, fields, 1)
            hint = f". Did you mean {near[0]}?" if near else ""
            self._refuse("parameter_unknown", (*path, name), f"Received unknown parameter: {where}{hint}")
        for name in required:
            if name not in given:
                where = _spelled((*path, name))
                self._refuse("parameter_missing", (*path, name), f"Missing required param: {where}.")
        return typed

    def _list(self, inner: Shape, given: Value, path: tuple[str, ...]) -> Value:
        if not isinstance(given, list):
            self._refuse("parameter_invalid_array", path, f"Invalid array: {_spelled(path)} must be a list.")
            return given
        return [self.value(inner, one, (*path, str(index))) for index, one in enumerate(given)]

    def _map(self, inner: Shape, given: Value, path: tuple[str, ...]) -> Value:
        if given in ("", []):
            return {}
        if isinstance(given, list) and self._form:
            # A hash with the keys 0, 1, … looks like a list once it is a form.
            given = {str(index): value for index, value in enumerate(given)}
        if not isinstance(given, dict):
            self._refuse("parameter_invalid_hash", path, f"Invalid hash: {_spelled(path)} must be a hash.")
            return given
        # A value of "" removes a key (metadata), whatever the values are.
        return {key: value if value == "" else self.value(inner, value, (*path, key)) for key, value in given.items()}

    def _alternatives(self, shapes: list[Shape], given: Value, path: tuple[str, ...]) -> Value:
        tried: list[tuple[bool, int, list[Violation]]] = []
        for shape in shapes:
            attempt = _Checker(self._shapes, form=self._form)
            typed = attempt.value(shape, given, path)
            if not attempt.violations:
                return typed
            tried.append((_form_of(shape) != _form_of_value(given), len(attempt.violations), attempt.violations))
        # The complaint that helps is the one about the alternative of the same form as what was given.
        self.violations.extend(min(tried, key=lambda one: one[:2])[2])
        return given

    def _enum(self, values: list[Any], given: Value, path: tuple[str, ...]) -> Value:
        for value in values:
            if given == value and isinstance(given, bool) == isinstance(value, bool):
                return given
            if self._form and isinstance(value, bool) and given == str(value).lower():
                return value
        if isinstance(given, dict | list):
            self._refuse("parameter_invalid_type", path, f"Invalid {_spelled(path)}: must be a single value.")
            return given
        names = [str(value) for value in values if value != ""]
        near = difflib.get_close_matches(str(given), names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        shown = ", ".join(names[:ENUM_VALUES_SHOWN]) + (", …" if len(names) > ENUM_VALUES_SHOWN else "")
        self._refuse("parameter_invalid_enum", path, f"Invalid {_spelled(path)}: must be one of {shown}{hint}")
        return given

    def _scalar(self, kind: str, given: Value, path: tuple[str, ...]) -> Value:
        where = _spelled(path)
        if isinstance(given, dict | list) or given is None:
            self._refuse("parameter_invalid_type", path, f"Invalid {where}: must be a single value.")
            return given
        text = str(given)
        match kind:
            case "s":
                if given == "" and self._form:
                    self._refuse(
                        "parameter_invalid_empty",
                        path,
                        f"You passed an empty string for '{where}'. We assume empty values are an attempt to unset a "
                        "parameter; however this parameter cannot be unset.",
                    )
                elif not isinstance(given, str):
                    self._refuse("parameter_invalid_string", path, f"Invalid string: {text}")
                return given
            case "i" if self._typed(given, int) and _WHOLE.fullmatch(text):
                return int(text)
            case "n" if self._typed(given, int | float) and _NUMBER.fullmatch(text):
                return float(text)
            case "d" if (isinstance(given, str) or self._typed(given, int)) and _DECIMAL.fullmatch(text):
                return text
            case "b" if isinstance(given, bool) or (self._form and text in ("true", "false")):
                return given in (True, "true")
        name = {"i": "integer", "n": "number", "d": "decimal", "b": "boolean"}[kind]
        self._refuse(f"parameter_invalid_{name}", path, f"Invalid {name}: {text}")
        return given

    def _typed(self, given: Value, kind: Value) -> bool:
        """Forms carry everything as text; JSON has types of its own, and true is no number."""
        return (self._form and isinstance(given, str)) or (isinstance(given, kind) and not isinstance(given, bool))


def _form_of(shape: Shape) -> str:
    if isinstance(shape, dict) and ("$" in shape or "o" in shape or "m" in shape):
        return "hash"
    return "list" if isinstance(shape, dict) and "l" in shape else "value"


def _form_of_value(given: Value) -> str:
    return "hash" if isinstance(given, dict) else "list" if isinstance(given, list) else "value"


def _answer_faults(resources: Mapping[str, Any], shape: Shape, value: Value, path: str) -> list[str]:
    if isinstance(shape, str):
        return _scalar_faults(shape, value, path)
    ((kind, inner),) = ((key, one) for key, one in shape.items() if key != "r")
    match kind:
        case "$":
            return _answer_faults(resources, resources[inner], value, path)
        case "?":
            return [] if value is None else _answer_faults(resources, inner, value, path)
        case "x":
            return [] if isinstance(value, str) else _answer_faults(resources, inner, value, path)
        case "o":
            return _object_faults(resources, inner, value, path)
        case "l":
            if not isinstance(value, list):
                return [f"{path}: is no list"]
            return [fault for one in value for fault in _answer_faults(resources, inner, one, f"{path}[]")]
        case "L":
            if not isinstance(value, dict) or not isinstance(value.get("data"), list):
                return [f"{path}: is no page"]
            return [fault for one in value["data"] for fault in _answer_faults(resources, inner, one, f"{path}.data[]")]
        case "|":
            tries = [_answer_faults(resources, one, value, path) for one in inner]
            return min(tries, key=len)
        case "e":
            return [] if value in inner else [f"{path}: {value!r} is none of {inner[:8]}"]
    return [] if isinstance(value, dict) else [f"{path}: is no hash"]


def _object_faults(resources: Mapping[str, Any], fields: Mapping[str, Shape], value: Value, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: is no object"]
    if value.get("deleted") is True:
        return []
    faults = [f"{path}.{name}: no such field" for name in value if name not in fields]
    for name, shape in fields.items():
        if name in value:
            faults += _answer_faults(resources, shape, value[name], f"{path}.{name}")
        elif not (isinstance(shape, dict) and "?" in shape):
            faults.append(f"{path}.{name}: is missing")
    return faults


def _scalar_faults(kind: str, value: Value, path: str) -> list[str]:
    right = {
        "s": isinstance(value, str),
        "i": isinstance(value, int) and not isinstance(value, bool),
        "n": isinstance(value, int | float) and not isinstance(value, bool),
        "d": isinstance(value, str) and _DECIMAL.fullmatch(value) is not None,
        "b": isinstance(value, bool),
        "*": True,
    }[kind]
    return [] if right else [f"{path}: {value!r} is no {kind!r}"]
