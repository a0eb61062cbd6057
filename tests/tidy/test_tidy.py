"""House rules that a machine can check; what each protects from is in its docstring.

An exception is written down beside its rule, with the reason.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "layers" / "core"
PACKAGE = CORE / "tollgate"
RUNTIME = ROOT / "layers" / "stream_runtime"
FUNCTIONS = ROOT / "functions"

# Left never imports right. Names on one level don't import each other, except inside one folder.
LEVELS = (
    {"domain"},
    {"catalog", "config", "providers", "storage"},
    {"flows", "telemetry"},
    {"edge"},
    {"wiring"},
    {"functions"},
)
SIDEWAYS = {
    # An HTTP answer is logged where it is made; flows get a Report instead.
    ("edge", "telemetry"),
}
LONGEST_FUNCTION_LINES = 70
LONGEST_HANDLER_LINES = 25


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


PRODUCTION = files(PACKAGE, RUNTIME, FUNCTIONS)
LOGIC = files(PACKAGE, FUNCTIONS)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def within(path: Path, *parts: str) -> bool:
    """Is this file in one of these parts of the package, e.g. `domain` or `wiring.py`?"""
    return path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).parts[0] in parts


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Full dotted names a file imports, type-checking blocks included, with their lines."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`time.time` for the expression time.time, "" for what is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def part_of(module: str) -> str | None:
    """`storage` for tollgate.storage.meters; None for what is not ours."""
    first, _, rest = module.partition(".")
    if first == "functions":
        return first
    return rest.partition(".")[0] or None if first == "tollgate" else None


def module_of(path: Path) -> str:
    base = CORE if path.is_relative_to(CORE) else RUNTIME if path.is_relative_to(RUNTIME) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def level(part: str) -> int:
    found = [number for number, parts in enumerate(LEVELS) if part in parts]
    assert found, f"{part} has no level: add it to LEVELS"
    return found[0]


def test_imports_point_to_the_left() -> None:
    """The domain cannot know a database, and storage cannot know HTTP: each can be read and tested alone."""
    wrong = []
    for path in LOGIC:
        here = part_of(module_of(path))
        for module, line in imports(path):
            there = part_of(module)
            if here is None or there is None or here == there or (here, there) in SIDEWAYS:
                continue
            if level(there) >= level(here):
                wrong.append(f"{name_of(path)}:{line} {here} imports {there}")
    assert not wrong


def test_no_two_modules_import_each_other() -> None:
    modules = {module_of(path): path for path in LOGIC}
    known = {
        module: {name for name in modules for target, _ in imports(path) if f"{target}.".startswith(f"{name}.")}
        - {module, "tollgate", *(package for package in modules if modules[package].name == "__init__.py")}
        for module, path in modules.items()
    }

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle of imports: {' -> '.join((*path, module))}"
        for target in known[module]:
            walk(target, (*path, module))

    for module in known:
        walk(module, ())


def test_functions_do_not_import_each_other() -> None:
    """One folder is one Lambda: its neighbours are not in its package."""
    for path in files(FUNCTIONS):
        for module, line in imports(path):
            assert part_of(module) != "functions", f"{name_of(path)}:{line} imports {module}"


def test_the_domain_imports_only_the_standard_library() -> None:
    for path in files(PACKAGE / "domain", PACKAGE / "catalog"):
        for module, line in imports(path):
            first = module.partition(".")[0]
            allowed = first == "tollgate" or first in sys.stdlib_module_names
            assert allowed, f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize(
    "path", files(PACKAGE, RUNTIME, FUNCTIONS, ROOT / "tollgate_cli", ROOT / "dev", ROOT / "bench"), ids=name_of
)
def test_no_function_is_longer_than_a_page(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION_LINES, f"{name_of(path)}:{node.lineno} {node.name}: {length} lines"


@pytest.mark.parametrize("path", files(FUNCTIONS), ids=name_of)
def test_handlers_are_thin(path: Path) -> None:
    """They parse, call one flow or one storage operation, and shape the answer: no loop, no try, no foreign client."""
    for module, line in imports(path):
        allowed = module.partition(".")[0] in {"tollgate", "tollgate_runtime", "aws_lambda_powertools"}
        assert allowed or module.partition(".")[0] in sys.stdlib_module_names, f"{name_of(path)}:{line} {module}"
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.For | ast.While | ast.Try), f"{name_of(path)}:{node.lineno} is no thin handler"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_HANDLER_LINES, f"{name_of(path)}:{node.lineno} {node.name}: {length} lines"


def test_only_the_settings_read_the_environment() -> None:
    """So an incomplete environment is refused at the start, not found out in the middle of a stream.

    The streaming runtime is not ours to configure: Lambda tells it where it is by variables.
    """
    for path in LOGIC:
        if within(path, "config.py"):
            continue
        for node in ast.walk(tree(path)):
            found = dotted(node) in {"os.environ", "os.getenv", "os.environb"}
            assert not found, f"{name_of(path)}:{getattr(node, 'lineno', 0)} reads the environment"
        for module, line in imports(path):
            assert module not in {"os.environ", "os.getenv"}, f"{name_of(path)}:{line} reads the environment"


HIDDEN = re.compile(
    r"(time\.(time|time_ns|monotonic|monotonic_ns|perf_counter|perf_counter_ns)"
    r"|(datetime\.)?(datetime|date)\.(now|utcnow|today)|uuid\.uuid\d|random\.\w+|secrets\.\w+|os\.urandom)"
)


def test_logic_is_given_its_time_and_its_ids() -> None:
    """A hidden clock or id cannot be replayed: the simulator runs the same modules with its own."""
    for path in LOGIC:
        if within(path, "wiring.py"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute):
                assert not HIDDEN.fullmatch(dotted(node)), f"{name_of(path)}:{node.lineno} {dotted(node)}"
        for module, line in imports(path):
            # Importing `datetime` the class is fine; importing `time` the function hides the clock behind a name.
            assert not HIDDEN.fullmatch(module), f"{name_of(path)}:{line} {module}"


def annotated(path: Path) -> Iterator[tuple[str, str, int]]:
    """(name, annotation, line) of arguments, fields, variables and results."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.arg) and node.annotation:
            yield node.arg, ast.unparse(node.annotation), node.lineno
        elif isinstance(node, ast.AnnAssign):
            name = dotted(node.target).rpartition(".")[2] or ast.unparse(node.target)
            yield name, ast.unparse(node.annotation), node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.name, ast.unparse(node.returns), node.lineno


def test_money_and_tokens_are_whole_numbers() -> None:
    """A float is only ever a time in seconds; no sum of tokens or money goes through a division that rounds."""
    for path in files(PACKAGE / "domain", PACKAGE / "storage", PACKAGE / "catalog"):
        for name, annotation, line in annotated(path):
            if re.fullmatch(r"float( \| None)?", annotation):
                assert name.endswith("_seconds"), f"{name_of(path)}:{line} {name}: {annotation}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not within(path, "catalog"):
                pytest.fail(f"{name_of(path)}:{node.lineno} divides with /; // is exact")


UNITS = re.compile(r"_(tokens|requests|microusd|picousd|cents|permille)$")


def test_a_unit_in_a_name_is_a_whole_number() -> None:
    for path in PRODUCTION:
        for name, annotation, line in annotated(path):
            if UNITS.search(name):
                assert "float" not in annotation, f"{name_of(path)}:{line} {name}: {annotation}"


def words_of_code(path: Path) -> Iterator[tuple[str, int]]:
    """Names and texts that do something: docstrings and comments may explain what they like."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree(path)):
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield word, getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node.lineno


def test_production_code_knows_no_tests() -> None:
    """A double is a faithful peer; code that asks whether it is being tested is not the code that runs."""
    knows = re.compile(r"(?<![a-z])(mock|fake|testing|is_test|in_test|pytest|unittest|moto|monkeypatch)(?![a-z])", re.I)
    for path in PRODUCTION:
        for word, line in words_of_code(path):
            assert not knows.search(word), f"{name_of(path)}:{line} {word!r}"


def test_status_codes_stay_at_the_edge() -> None:
    """Refusals are classes; one table turns them into HTTP. Providers read the statuses of others, and only read.

    A route says the status of its success where it is declared.
    """
    for path in LOGIC:
        if within(path, "edge", "providers") or path.is_relative_to(FUNCTIONS):
            continue
        for node in ast.walk(tree(path)):
            assert "HTTPStatus" not in dotted(node).split("."), f"{name_of(path)}:{getattr(node, 'lineno', 0)}"


def test_keys_are_built_in_storage_only() -> None:
    """One place knows how an item is found; elsewhere a key would be a guess."""
    prefix = re.compile(r"\b(PK|SK|GSI1PK|GSI1SK)\b|[A-Z]{3,}#")
    for path in LOGIC:
        if within(path, "storage"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                assert not prefix.search(node.value), f"{name_of(path)}:{node.lineno} {node.value!r}"


UNCONDITIONAL = {
    # A mark of activity is a fact with a key of its own, too.
    "layers/core/tollgate/storage/activity.py",
    # A request record is a fact with a key of its own: writing it twice writes the same.
    "layers/core/tollgate/storage/requests.py",
    # Its one plain write deletes, which is right whatever is there; what it puts is in a transaction with a condition.
    "layers/core/tollgate/storage/preferences.py",
}


def test_every_write_has_a_condition() -> None:
    """Check, then write is a race: the condition is in the write."""
    for path in files(PACKAGE / "storage"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in {"put_item", "update_item", "delete_item"} and name_of(path) not in UNCONDITIONAL:
                keywords = {keyword.arg for keyword in node.keywords}
                assert keywords & {"ConditionExpression", None}, f"{name_of(path)}:{node.lineno} has no condition"
            assert node.func.attr != "scan", f"{name_of(path)}:{node.lineno} scans the table"


def test_no_error_is_told_by_its_wording() -> None:
    for path in PRODUCTION:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
                for side in node.comparators:
                    worded = isinstance(side, ast.Call) and dotted(side.func) == "str"
                    assert not worded, f"{name_of(path)}:{node.lineno} looks into str(…)"


def test_nothing_only_passes_its_arguments_on() -> None:
    """A function that is one call with its own arguments is a name too many. The wiring adapts, which is its job."""
    for path in PRODUCTION:
        if within(path, "wiring.py"):
            continue
        # A method that a base class asks for adapts, too.
        asked_for = {
            method
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef) and node.bases
            for method in node.body
        }
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node not in asked_for and forwards(node):
                pytest.fail(f"{name_of(path)}:{node.lineno} {node.name} only forwards")


def forwards(function: ast.FunctionDef) -> bool:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if len(body) != 1 or not isinstance(body[0], ast.Return | ast.Expr) or not isinstance(body[0].value, ast.Call):
        return False
    call = body[0].value
    own = [arg.arg for arg in (*function.args.args, *function.args.kwonlyargs) if arg.arg not in {"self", "cls"}]
    passed = [dotted(arg) for arg in (*call.args, *(keyword.value for keyword in call.keywords))]
    return bool(own) and own == passed


TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".sh", ""}
MADE = {".venv", ".dev", ".git", ".aws-sam", "node_modules", "__pycache__"}


def our_text() -> Iterator[Path]:
    """Every text file of the project that is written by people; not by asking git, which a copy may lack."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in MADE and not name.endswith("_cache")]
        yield from (Path(folder, name) for name in names if Path(name).suffix in TEXT)


def test_nothing_is_left_to_do_in_a_comment() -> None:
    """Work left over is an issue or a line in the changelog, not a note that nobody reads."""
    note = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for path in our_text():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not note.search(line), f"{name_of(path)}:{number} {line.strip()}"


def test_every_refusal_is_in_the_error_table_and_in_a_test() -> None:
    source = tree(PACKAGE / "domain" / "errors.py")
    # The base class is no refusal of its own; what is stale or superseded is read again before anybody hears of it.
    silent = {"TollgateError", "StaleAccountError", "SupersededError"}
    refusals = {node.name for node in source.body if isinstance(node, ast.ClassDef)} - silent
    codes = {
        node.name: ast.literal_eval(part.value)
        for node in source.body
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.Assign) and dotted(part.targets[0]) == "error_code"
    }
    table = (PACKAGE / "edge" / "errors.py").read_text(encoding="utf-8")
    tested = "\n".join(path.read_text(encoding="utf-8") for path in files(ROOT / "tests") if path != Path(__file__))

    assert refusals, "the file has moved"
    assert not {name for name in refusals if not re.search(rf"\b{name}\b", table)}, "not in the error table"
    # A test may know a refusal by what callers know it by.
    assert not {name for name in refusals if not re.search(rf"\b({name}|{codes[name]})\b", tested)}, "in no test"


IMPORT_ALL = """
import sys, threading
def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise RuntimeError(f"{event} at import: {arguments}")
sys.addaudithook(refuse)
sys.path[:0] = PATHS
for module in MODULES:
    __import__(module)
assert threading.active_count() == 1, threading.enumerate()
"""


def test_importing_does_no_work() -> None:
    """Every module, in an empty environment, with no network: a start that fails must say why, not crash at import."""
    started = [path for path in PRODUCTION if path.name != "__main__.py"]
    program = IMPORT_ALL.replace("PATHS", repr([str(CORE), str(RUNTIME), str(ROOT)])).replace(
        "MODULES", repr([module_of(path) for path in started])
    )
    ran = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""


# Words of the glossary and what they are not called. Two names for one thing become two things.
REFUSED = {
    "org": "tenant",
    "organization": "tenant",
    "platform": "tenant",
    "workspace": "tenant",
    "tier": "plan",
    "package": "plan",
    "limit": "quota",
    "hold": "reservation",
    "lock": "reservation",
    "commit": "settlement",
    "cancel": "release",
    "refund": "release",
}
SAID_BY_OTHERS = {
    # Anthropic's field of `usage`.
    "service_tier",
    # A rate limit is no quota, and is called so.
    "rate_limit",
    "rate_limited",
    # Stripe's: the end of a subscription, and money that went back to a payer. Neither moves the ledger by itself.
    "cancel_at",
    "cancel_subscription",
    "cancel_url",
    "refund",
}


def words(name: str) -> list[str]:
    """`RateLimitedError` and `rate_limited_error` are rate, limited, error."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_").split("_")


def named(path: Path) -> Iterator[tuple[str, int]]:
    """Classes, their fields, and functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            yield node.name, node.lineno
            yield from (
                (field.target.id, field.lineno)
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def test_one_thing_has_one_name() -> None:
    for path in PRODUCTION:
        for name, line in named(path):
            spelt = "_".join(words(name))
            for other in SAID_BY_OTHERS:
                spelt = spelt.replace(other, "")
            for word in spelt.split("_"):
                assert word not in REFUSED, f"{name_of(path)}:{line} {name}: say {REFUSED[word]}"


def test_routes_use_the_words_of_the_glossary() -> None:
    template = (ROOT / "template.yaml").read_text(encoding="utf-8")
    routes = re.findall(r"^\s+Path: (/\S*)", template, re.MULTILINE)

    assert routes, "the template writes its paths in another way now"
    for route in routes:
        assert not set(re.split(r"[/_{}-]", route)) & REFUSED.keys(), route
