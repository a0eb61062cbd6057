"""DynamoDB's expression language, as far as Tollgate uses it; everything else is refused, never guessed.

Compiled once per expression text into closures over (item, names, values). Items and values are in DynamoDB's typed
form, `{"N": "5"}`. Only whole numbers exist here: the ledger has no others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

Value = Mapping[str, Any]
Item = dict[str, Value]
Names = Mapping[str, str]
Values = Mapping[str, Value]
Operand = Callable[[Item, Names, Values], Value | None]
Test = Callable[[Item, Names, Values], bool]
Action = Callable[[Item, Item, Names, Values], None]


class ExpressionError(ValueError):
    """What DynamoDB answers with a ValidationException; or a form that this interpreter does not know."""


@dataclass(frozen=True, slots=True)
class Condition:
    test: Test
    placeholders: frozenset[str]


@dataclass(frozen=True, slots=True)
class Update:
    actions: tuple[Action, ...]
    placeholders: frozenset[str]
    paths: tuple[str, ...]
    """The target of every action, as written: a name or a `#` placeholder."""

    def check_paths(self, names: Names) -> None:
        """Two actions on one attribute are an error, whatever the condition says."""
        targets = {names[path] if path[0] == "#" else path for path in self.paths}
        if len(targets) != len(self.paths):
            raise ExpressionError(f"two actions on one attribute: {sorted(targets)}")

    def apply(self, item: Item, names: Names, values: Values) -> Item:
        """A new item; every right-hand side sees the old one."""
        new = dict(item)
        for action in self.actions:
            action(item, new, names, values)
        return new


@lru_cache(maxsize=4096)
def compile_condition(text: str) -> Condition:
    parser = _Parser(text)
    test = parser.any_of()
    parser.end()
    return Condition(test, frozenset(parser.placeholders))


@lru_cache(maxsize=4096)
def compile_update(text: str) -> Update:
    parser = _Parser(text)
    actions, paths = parser.clauses()
    parser.end()
    return Update(tuple(actions), frozenset(parser.placeholders), tuple(paths))


_TOKEN = re.compile(r"\s*(?:(<>|<=|>=|[=<>()+\-,])|([#:]?[A-Za-z_][A-Za-z0-9_]*))")


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise ExpressionError(f"cannot read {stripped[position:]!r} in {text!r}")
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent; each method returns a closure."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self.placeholders: set[str] = set()

    def _fail(self, why: str) -> NoReturn:
        raise ExpressionError(f"{why} at token {self._next} of {self._text!r}")

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _word(self) -> str:
        return self._peek().upper()

    def _take(self, expected: str | None = None) -> str:
        token = self._peek()
        if not token or (expected is not None and token.upper() != expected):
            self._fail(f"expected {expected or 'more'}")
        self._next += 1
        return token

    def end(self) -> None:
        if self._next != len(self._tokens):
            self._fail("left over text")

    # Conditions

    def any_of(self) -> Test:
        tests = [self._all_of()]
        while self._word() == "OR":
            self._take()
            tests.append(self._all_of())
        if len(tests) == 1:
            return tests[0]
        return lambda item, names, values: any(test(item, names, values) for test in tests)

    def _all_of(self) -> Test:
        tests = [self._inverted()]
        while self._word() == "AND":
            self._take()
            tests.append(self._inverted())
        if len(tests) == 1:
            return tests[0]

        def every(item: Item, names: Names, values: Values) -> bool:
            for test in tests:  # noqa: SIM110  this loop runs for every write of every run; all() costs a generator
                if not test(item, names, values):
                    return False
            return True

        return every

    def _inverted(self) -> Test:
        if self._word() == "NOT":
            self._take()
            test = self._inverted()
            return lambda item, names, values: not test(item, names, values)
        return self._primary()

    def _primary(self) -> Test:
        token = self._peek()
        if token == "(":
            self._take()
            test = self.any_of()
            self._take(")")
            return test
        if token in {"attribute_exists", "attribute_not_exists"}:
            return self._existence()
        if token == "begins_with":
            return self._prefix()
        return self._comparison()

    def _existence(self) -> Test:
        wanted = self._take() == "attribute_exists"
        self._take("(")
        path = self._path()
        self._take(")")
        if path[0] == "#":
            return lambda item, names, values: (names[path] in item) is wanted
        return lambda item, names, values: (path in item) is wanted

    def _prefix(self) -> Test:
        self._take()
        self._take("(")
        left = self._operand()
        self._take(",")
        right = self._operand()
        self._take(")")

        def starts(item: Item, names: Names, values: Values) -> bool:
            text, prefix = left(item, names, values), right(item, names, values)
            return bool(text and prefix and "S" in text and "S" in prefix and text["S"].startswith(prefix["S"]))

        return starts

    def _comparison(self) -> Test:
        left = self._operand()
        operator = self._take()
        if operator.upper() == "BETWEEN":
            low = self._operand()
            self._take("AND")
            high = self._operand()

            def between(item: Item, names: Names, values: Values) -> bool:
                lowest, highest = low(item, names, values), high(item, names, values)
                if _compare(">", lowest, highest):
                    # DynamoDB's own words; moto takes it.
                    self._fail("The BETWEEN operator requires upper bound to be greater than or equal to lower bound")
                return _compare(">=", left(item, names, values), lowest) and _compare(
                    "<=", left(item, names, values), highest
                )

            return between
        if operator not in {"=", "<>", "<", "<=", ">", ">="}:
            self._fail(f"unknown operator {operator}")
        right = self._operand()
        return lambda item, names, values: _compare(operator, left(item, names, values), right(item, names, values))

    # Updates

    def clauses(self) -> tuple[list[Action], list[str]]:
        actions: list[Action] = []
        paths: list[str] = []
        seen: set[str] = set()
        while self._peek():
            word = self._take().upper()
            if word in seen:
                self._fail(f"{word} twice")
            seen.add(word)
            clause = {"SET": self._assignment, "REMOVE": self._removal, "ADD": self._addition}.get(word)
            if clause is None:
                self._fail(f"unknown clause {word}")
            while True:
                path, action = clause()
                actions.append(action)
                paths.append(path)
                if self._peek() != ",":
                    break
                self._take()
        if not actions:
            self._fail("empty update")
        return actions, paths

    def _assignment(self) -> tuple[str, Action]:
        path = self._path()
        self._take("=")
        value = self._sum()

        def assign(old: Item, new: Item, names: Names, values: Values) -> None:
            result = value(old, names, values)
            if result is None:
                raise ExpressionError(f"an attribute on the right of {path} does not exist")
            new[names[path] if path[0] == "#" else path] = result

        return path, assign

    def _sum(self) -> Operand:
        left = self._term()
        operator = self._peek()
        if operator not in {"+", "-"}:
            return left
        self._take()
        right = self._term()
        sign = 1 if operator == "+" else -1

        def add(item: Item, names: Names, values: Values) -> Value | None:
            augend, addend = left(item, names, values), right(item, names, values)
            if augend is None or addend is None:
                return None
            return {"N": str(_number(augend) + sign * _number(addend))}

        return add

    def _term(self) -> Operand:
        if self._peek() != "if_not_exists":
            return self._operand()
        self._take()
        self._take("(")
        path = self._path()
        self._take(",")
        default = self._operand()
        self._take(")")

        def existing(item: Item, names: Names, values: Values) -> Value | None:
            found = item.get(names[path] if path[0] == "#" else path)
            return default(item, names, values) if found is None else found

        return existing

    def _removal(self) -> tuple[str, Action]:
        path = self._path()

        def remove(old: Item, new: Item, names: Names, values: Values) -> None:
            new.pop(names[path] if path[0] == "#" else path, None)

        return path, remove

    def _addition(self) -> tuple[str, Action]:
        path = self._path()
        addend = self._operand()

        def add(old: Item, new: Item, names: Names, values: Values) -> None:
            name = names[path] if path[0] == "#" else path
            value = addend(old, names, values)
            if value is None:
                raise ExpressionError("ADD needs a value")
            new[name] = {"N": str(_number(old.get(name, {"N": "0"})) + _number(value))}

        return path, add

    # Operands

    def _path(self) -> str:
        token = self._take()
        if token[0] == "#":
            self.placeholders.add(token)
        elif not (token[0].isalpha() or token[0] == "_"):
            self._fail(f"{token} is no attribute")
        elif token.upper() in _RESERVED:
            self._fail(f"{token} is a reserved word")
        return token

    def _operand(self) -> Operand:
        token = self._peek()
        if token[:1] == ":":
            self._take()
            self.placeholders.add(token)
            return lambda item, names, values: values[token]
        path = self._path()
        if self._peek() == "(":
            self._fail(f"unknown function {path}")
        if path[0] == "#":
            return lambda item, names, values: item.get(names[path])
        return lambda item, names, values: item.get(path)


# Reserved words near our vocabulary. The agreement test runs every request against an engine that knows all of them.
_RESERVED = frozenset(
    [
        "COUNT",
        "COUNTER",
        "DATE",
        "KEY",
        "NAME",
        "OWNER",
        "STATE",
        "STATUS",
        "TIME",
        "TOKEN",
        "TTL",
        "TYPE",
        "USAGE",
        "USER",
    ]
)


def _number(value: Value) -> int:
    text = value.get("N")
    if text is None:
        raise ExpressionError(f"no number: {value}")
    return int(text)


def _compare(operator: str, left: Value | None, right: Value | None) -> bool:
    """Missing attributes and unequal types compare false, except under `<>`."""
    if left is None or right is None:
        return operator == "<>"
    ((left_type, left_value),) = left.items()
    ((right_type, right_value),) = right.items()
    if left_type != right_type:
        return operator == "<>"
    if left_type == "N":
        left_value, right_value = int(left_value), int(right_value)
    if operator == "=":
        return bool(left_value == right_value)
    if operator == "<>":
        return bool(left_value != right_value)
    if operator == "<=":
        return bool(left_value <= right_value)
    if operator == ">=":
        return bool(left_value >= right_value)
    if operator == "<":
        return bool(left_value < right_value)
    return bool(left_value > right_value)
