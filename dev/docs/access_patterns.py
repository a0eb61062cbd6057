"""docs/access-patterns.md: what is in the table and how it is reached, read from the source of tollgate.storage.

Nothing is imported or run: keys are what the functions that build them return, operations are the client's methods that
a public method calls, by itself or through private ones.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.docs.markdown import NOTHING, NOTICE, code, table

OPERATIONS = {
    "get_item": "GetItem",
    "put_item": "PutItem",
    "update_item": "UpdateItem",
    "delete_item": "DeleteItem",
    "query": "Query",
    "transact_write_items": "TransactWriteItems",
}
Fields = dict[str, str]
"""Attribute to how its value is made, e.g. `SK` to `USAGE#<period.id>`."""


@dataclass(slots=True)
class Source:
    """One storage module and the functions it may call to build keys."""

    name: str
    tree: ast.Module
    functions: dict[str, ast.FunctionDef]
    constants: dict[str, str]

    @property
    def title(self) -> str:
        """First sentence of the module's docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0].rstrip(".")


def page(root: Path) -> str:
    """The page's text."""
    sources = list(read_sources(root / "layers" / "core" / "tollgate" / "storage"))
    lines = [
        "# Items and access patterns",
        "",
        NOTICE.format(name="access-patterns"),
        "",
        "One table with the keys `PK` and `SK`, and one index `GSI1` (`GSI1PK`, `GSI1SK`, keys only). DynamoDB deletes",
        "an item some time after its `expires_at`, if it has one; readers do not rely on that.",
        "",
        "## Items",
        "",
        table(["`Type`", "PK", "SK", "GSI1PK", "GSI1SK", "Ends", "Module"], item_rows(sources)),
        "## Access patterns",
        "",
    ]
    for source in sources:
        rows = list(pattern_rows(source))
        if rows:
            head = ["Operation of the module", "DynamoDB", "What it promises"]
            lines += [f"### `storage/{source.name}.py`: {source.title}", "", table(head, rows)]
    return "\n".join(lines)


def read_sources(folder: Path) -> Iterator[Source]:
    """The modules of storage/, each with its own functions and those of table.py, which all share."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))}
    shared = _functions(trees["table"])
    for name, tree in trees.items():
        if name not in ("__init__", "table"):
            yield Source(name, tree, shared | _functions(tree), _constants(tree))


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _constants(tree: ast.Module) -> dict[str, str]:
    """The module's own texts, by name."""
    found: dict[str, str] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            found[target.id] = value.value
    return found


# --- Items ----------------------------------------------------------------------------------------------------------


def item_rows(sources: list[Source]) -> list[list[str]]:
    """One row an entity: every place that builds a dictionary with both `PK` and `Type`."""
    rows: dict[str, list[str]] = {}
    for source in sources:
        for function in (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef)):
            for item in _items_of(function, source):
                keys = [code(item.get(name, "")) for name in ("PK", "SK", "GSI1PK", "GSI1SK")]
                ends = "by `expires_at`" if "expires_at" in item else NOTHING
                rows[item["Type"]] = [code(item["Type"]), *keys, ends, code(source.name)]
    return [rows[name] for name in sorted(rows)]


def _items_of(function: ast.FunctionDef, source: Source) -> Iterator[Fields]:
    variables = {
        statement.targets[0].id: statement.value
        for statement in ast.walk(function)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.expr):
            fields = _fields(node, source, variables)
            if {"PK", "Type"} <= fields.keys():
                yield fields


def _fields(node: ast.expr, source: Source, variables: dict[str, ast.expr]) -> Fields:
    """The entries of an expression that builds an item or its key; empty for any other expression."""
    match node:
        case ast.Dict(keys=keys, values=values):
            pairs = list(zip(keys, values, strict=True))
        case ast.Call(func=ast.Name(id="attributes"), keywords=keywords):
            pairs = [(ast.Constant(word.arg) if word.arg else None, word.value) for word in keywords]
        case ast.Call(func=ast.Name(id=name)) if name in source.functions:
            return _fields(_returned(source.functions[name]), source, {})
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fields(left, source, variables) | _fields(right, source, variables)
        case _:
            return {}
    fields: Fields = {}
    for key, value in pairs:
        if key is None:
            fields |= _fields(value, source, variables)
        elif isinstance(key, ast.Constant):
            fields[str(key.value)] = _text(value, source, variables)
    return fields


def _text(node: ast.expr, source: Source, variables: dict[str, ast.expr]) -> str:
    """How a value is made: constants as they are, the rest as `<name>`."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value, source, variables) for value in values)
        case ast.FormattedValue(value=value):
            return _text(value, source, variables)
        case ast.Call(func=ast.Name(id="s" | "n"), args=[value]):
            return _text(value, source, variables)
        case ast.Call(func=ast.Name(id=name)) if name in source.functions:
            return _text(_returned(source.functions[name]), source, {})
        case ast.Name(id=name) if name in variables:
            return _text(variables[name], source, {})
        case ast.Name(id=name) if name in source.constants:
            return source.constants[name]
        case _:
            return f"<{ast.unparse(node)}>"


def _returned(function: ast.FunctionDef) -> ast.expr:
    """What a one-expression function returns."""
    last = function.body[-1]
    return last.value if isinstance(last, ast.Return) and last.value is not None else ast.Constant("")


# --- Access patterns ------------------------------------------------------------------------------------------------


_PART = "TransactWriteItemTypeDef"
"""What a method returns that leaves the writing to a transaction of its caller's."""


def pattern_rows(source: Source) -> Iterator[list[str]]:
    """One row a public method: what it asks of DynamoDB, and the first sentence of its docstring."""
    for group in (node for node in source.tree.body if isinstance(node, ast.ClassDef)):
        methods = {node.name: node for node in group.body if isinstance(node, ast.FunctionDef)}
        for name, method in methods.items():
            operations = sorted(set(_operations(method, methods, set())))
            if not operations and method.returns is not None and ast.unparse(method.returns) == _PART:
                operations = ["TransactWriteItems, as a part"]
            if operations and not name.startswith("_"):
                promise = (ast.get_docstring(method) or "").split("\n\n", 1)[0].removeprefix("Access pattern: ")
                yield [code(name), ", ".join(operations), promise]


def _operations(method: ast.FunctionDef, methods: dict[str, ast.FunctionDef], seen: set[str]) -> Iterator[str]:
    for node in ast.walk(method):
        match node:
            case ast.Call(func=ast.Name(id="query_items"), keywords=keywords):
                yield OPERATIONS["query"] + _qualities(keywords)
            case ast.Call(func=ast.Attribute(attr=name), keywords=keywords) if name in OPERATIONS:
                yield OPERATIONS[name] + _qualities(keywords)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name in methods and name not in seen:
                seen.add(name)
                yield from _operations(methods[name], methods, seen)


def _qualities(keywords: list[ast.keyword]) -> str:
    """` on GSI1` for a read of the index, ` (consistent)` for a consistent one."""
    given = {word.arg: word.value for word in keywords}
    index = given.get("IndexName")
    if isinstance(index, ast.Constant):
        return f" on `{index.value!s}`"
    return " (consistent)" if "ConsistentRead" in given else ""
