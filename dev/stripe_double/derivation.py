"""The contract of Stripe's API, read out of the installed stripe package.

Stripe generates that package from its own description of the API, for one API version: the services name each
method and path, the TypedDicts every parameter, the resource classes every field of an answer. Reading them as source
(nothing is imported or run) gives a contract that is always the pinned version's, with nothing to vendor.

The document is plain JSON so that it can be cached. A shape is one of "s" (string), "i" (whole number), "n" (number),
"d" (decimal), "b" (boolean), "*" (anything), or an object with one key that says what it is:
`$` a named shape, `o` fields, `l` list, `m` map, `|` alternatives, `e` the values allowed, `x` an id or the object it
names, `L` a page of objects, `?` the same or null.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

Shape: TypeAlias = str | dict[str, Any]

PREFIXES = (
    "/v1/account",
    "/v1/billing/meter_event_adjustments",
    "/v1/billing/meter_events",
    "/v1/billing/meters",
    "/v1/billing_portal",
    "/v1/charges",
    "/v1/checkout/sessions",
    "/v1/coupons",
    "/v1/customers",
    "/v1/disputes",
    "/v1/events",
    "/v1/invoice_payments",
    "/v1/invoiceitems",
    "/v1/invoices",
    "/v1/payment_intents",
    "/v1/payment_methods",
    "/v1/prices",
    "/v1/products",
    "/v1/promotion_codes",
    "/v1/radar/early_fraud_warnings",
    "/v1/refunds",
    "/v1/subscription_items",
    "/v1/subscription_schedules",
    "/v1/subscriptions",
    "/v1/webhook_endpoints",
    "/v2/core/event_destinations",
    "/v2/core/events",
)
"""What a product that sells subscriptions calls, and what its owner's tools call on top."""

_SCALARS = {"str": "s", "int": "i", "float": "n", "bool": "b", "Decimal": "d"}
_DOCUMENT_VERSION = 4
"""Moves when the form of the document changes, so that an old cache is not read."""


class PrunedPackageError(RuntimeError):
    """The stripe package that was found has no parameter types (the Lambda layer drops them)."""


def package_root() -> Path:
    spec = importlib.util.find_spec("stripe")
    if spec is None or not spec.submodule_search_locations:
        raise PrunedPackageError("the stripe package is not installed")
    root = Path(spec.submodule_search_locations[0])
    if not (root / "params").is_dir():
        raise PrunedPackageError(f"{root} has no params: use the development environment's stripe, not the layer's")
    return root


def document(cache_directory: Path | None, prefixes: tuple[str, ...] = PREFIXES) -> dict[str, Any]:
    """The contract of the installed package; kept in `cache_directory`, under a name that carries the version."""
    version = importlib.metadata.version("stripe")
    asked = zlib.crc32("".join(prefixes).encode())
    name = f"stripe-{version}-{_DOCUMENT_VERSION}-{asked:08x}.json"
    kept = cache_directory / name if cache_directory else None
    if kept is not None and kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    made = derive(package_root(), prefixes)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: two processes that start together never read half a document.
        whole = kept.with_name(f"{kept.name}.{id(made)}")
        whole.write_text(json.dumps(made, separators=(",", ":")))
        whole.replace(kept)
    return made


def derive(root: Path, prefixes: tuple[str, ...]) -> dict[str, Any]:
    reader = _Reader(root)
    operations: dict[str, Any] = {}
    for key, found in _operations(root):
        path = key.partition(" ")[2]
        if any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes):
            operations[key] = {
                "service": found["service"],
                "params": reader.params(*found["params"]) if found["params"] else None,
                "answer": reader.answer(found["answer"]),
            }
    return {
        "api_version": _api_version(root),
        "operations": operations,
        "params": reader.param_shapes,
        "resources": reader.resource_shapes,
    }


def _api_version(root: Path) -> str:
    tree = ast.parse((root / "_api_version.py").read_text())
    values = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "CURRENT"
    ]
    return str(values[0])


def _operations(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(root.rglob("_*_service.py")):
        tree = ast.parse(file.read_text())
        imports = _imports(tree)
        module = ".".join(file.relative_to(root.parent).with_suffix("").parts)
        for service in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for method in (node for node in service.body if isinstance(node, ast.FunctionDef)):
                yield from _operation(module, service.name, method, imports)


def _operation(
    module: str, service: str, method: ast.FunctionDef, imports: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    calls = (node for node in ast.walk(method) if isinstance(node, ast.Call))
    call = next((c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "_request"), None)
    if call is None:
        return
    verb = ast.literal_eval(call.args[0]).upper()
    path = next(str(node.value) for node in ast.walk(call.args[1]) if isinstance(node, ast.Constant))
    arguments = [*method.args.posonlyargs, *method.args.args]
    annotation = next((a.annotation for a in arguments if a.arg == "params"), None)
    names = _names(annotation) if annotation is not None else []
    params = next((imports[name] for name in names if name.endswith("Params") and name in imports), None)
    answers = [name for name in (_names(method.returns) if method.returns else []) if name in imports]
    yield (
        f"{verb} {path}",
        {
            "service": f"{module}:{service}.{method.name}",
            "params": params,
            "answer": [imports[name] for name in answers],
        },
    )


def _imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Local name → (module, name there)."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stripe.")
        for alias in node.names
    }


def _names(annotation: ast.expr) -> list[str]:
    """Every name in an annotation, also inside its quoted parts, from the outside in."""
    found: list[str] = []
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.extend(_names(_quoted(node.value)))
    return found


@cache
def _quoted(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class _Reader:
    """Turns annotations into shapes; a class met twice is described once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trees: dict[str, ast.Module] = {}
        self.param_shapes: dict[str, Shape | None] = {}
        self.resource_shapes: dict[str, Shape | None] = {}

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            file = self._root.parent / (module.replace(".", "/") + ".py")
            self._trees[module] = ast.parse(file.read_text())
        return self._trees[module]

    def params(self, module: str, name: str) -> str:
        key = f"{module.removeprefix('stripe.params.')}:{name}"
        if key not in self.param_shapes:
            self.param_shapes[key] = None
            self.param_shapes[key] = self._typed_dict(module, name)
        return key

    def _typed_dict(self, module: str, name: str) -> Shape:
        tree = self._tree(module)
        local = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        read = _Annotation(lambda label: {"$": self.params(module, label)} if label in local else "*")
        fields: dict[str, Shape] = {}
        required: list[str] = []
        for key, annotation in _typed_dict_items(tree, name):
            optional = isinstance(annotation, ast.Subscript) and _label(annotation.value) == "NotRequired"
            if not optional:
                required.append(key)
            fields[key] = read.shape(annotation)
        return {"o": fields, "r": required}

    def answer(self, candidates: list[tuple[str, str]]) -> Shape:
        """`ListObject[Customer]`, `Customer`, or nothing we know."""
        named = [name for _, name in candidates]
        objects = [(module, name) for module, name in candidates if not name.endswith("ListObject")]
        objects = [(module, name) for module, name in objects if name != "SearchResultObject"]
        if not objects:
            return "*"
        shapes: list[Shape] = [{"$": self.resource(module, name)} for module, name in objects]
        of = shapes[0] if len(shapes) == 1 else {"|": shapes}
        return {"L": of} if len(named) > len(objects) else of

    def resource(self, module: str, name: str) -> str:
        key = f"{module.removeprefix('stripe.')}:{name}"
        if key not in self.resource_shapes:
            self.resource_shapes[key] = None
            tree = self._tree(module)
            found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
            self.resource_shapes[key] = "*" if found is None else self._class(found, _imports(tree), {})
        return key

    def _class(self, node: ast.ClassDef, imports: dict[str, tuple[str, str]], outer: dict[str, ast.ClassDef]) -> Shape:
        nested = outer | {inner.name: inner for inner in node.body if isinstance(inner, ast.ClassDef)}

        def resolve(label: str) -> Shape:
            if label in nested:
                return self._class(nested[label], imports, {k: v for k, v in nested.items() if k != label})
            if label in imports:
                return {"$": self.resource(*imports[label])}
            return "*"

        fields: dict[str, Shape] = {}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_":
                # `from_` and the like are Python's spelling of a reserved word.
                fields[item.target.id.rstrip("_")] = _Annotation(resolve).shape(item.annotation)
        fields.pop("OBJECT_NAME", None)
        return {"o": fields, "r": []}


def _typed_dict_items(tree: ast.Module, name: str) -> Iterator[tuple[str, ast.expr]]:
    """Fields of a TypedDict, also of the functional base that carries keys which are Python keywords."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in node.bases:
                yield from _typed_dict_items(tree, _label(base))
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id, item.annotation
        elif isinstance(node, ast.Assign) and _label(node.targets[0]) == name and isinstance(node.value, ast.Call):
            literal = node.value.args[1]
            if isinstance(literal, ast.Dict):
                for key, value in zip(literal.keys, literal.values, strict=True):
                    yield str(ast.literal_eval(key)) if key else "", value


def _label(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


class _Annotation:
    """One annotation as a shape; `resolve` says what a class name stands for."""

    def __init__(self, resolve: Callable[[str], Shape]) -> None:
        self._resolve = resolve

    def shape(self, node: ast.expr) -> Shape:
        if isinstance(node, ast.Constant):
            return self.shape(_quoted(node.value)) if isinstance(node.value, str) else "*"
        if isinstance(node, ast.Name):
            return _SCALARS.get(node.id) or self._resolve(node.id)
        if isinstance(node, ast.BinOp):
            return self._union([node.left, node.right])
        if isinstance(node, ast.Subscript):
            return self._subscript(_label(node.value), node.slice)
        return "*"

    def _subscript(self, label: str, inner: ast.expr) -> Shape:
        match label:
            case "Optional":
                return {"?": self.shape(inner)}
            case "Literal":
                values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return {"e": [ast.literal_eval(value) for value in values]}
            case "List" | "Sequence":
                return {"l": self.shape(inner)}
            case "Dict":
                return {"m": self.shape(inner.elts[1]) if isinstance(inner, ast.Tuple) else "*"}
            case "UntypedStripeObject":
                return {"m": self.shape(inner)}
            case "Union":
                return self._union(inner.elts if isinstance(inner, ast.Tuple) else [inner])
            case "ExpandableField":
                return {"x": self.shape(inner)}
            case "ListObject":
                return {"L": self.shape(inner)}
            case "NotRequired":
                return self.shape(inner)
        return "*"

    def _union(self, nodes: list[ast.expr]) -> Shape:
        shapes: list[Shape] = []
        for node in nodes:
            made = self.shape(node)
            for one in made["|"] if isinstance(made, dict) and "|" in made else [made]:
                if one not in shapes:
                    shapes.append(one)
        # `Dict[str, str] | UntypedStripeObject[str]` is one map; the second is the SDK's convenience.
        values = [value for one in shapes if isinstance(one, dict) and "e" in one for value in one["e"]]
        rest = [one for one in shapes if not (isinstance(one, dict) and "e" in one)]
        if any(value != "" for value in values) and "s" in rest:
            # An open enum ("these, or a string we may add"): for requests the listed values are the ones that work.
            rest.remove("s")
        whole: list[Shape] = [{"e": values}, *rest] if values else rest
        return whole[0] if len(whole) == 1 else {"|": whole}
