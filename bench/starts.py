"""What each function costs to start: modules, processor time, memory, package size; with byte code and without.

Measured on what `make build` makes, in a copy of the project, by the Python that is deployed; where SAM or that Python
is missing, on the checkout by this Python, and sizes are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.function import CREDENTIALS, ROOT
from dev.packaging import BUILD_DIR, build, find_python, find_sam, runtime_version
from dev.template import Template

PROBE: Final = ROOT / "bench" / "start_probe.py"
SOURCES: Final = ("template.yaml", "samconfig.toml", "layers", "functions")
EMPTY: Final = "an empty function"
BOUND: Final = {
    "COGNITO_ISSUER": "https://cognito-idp.us-east-1.amazonaws.com/us-east-1_bench",
    "COGNITO_CLIENT_IDS": "bench",
    "COGNITO_CLIENT_ID": "bench",
    "STRIPE_EVENT_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/111122223333/events",
    "STRIPE_EVENT_DLQ_URL": "https://sqs.us-east-1.amazonaws.com/111122223333/dead-letters",
}
"""Variables that only deployed resources would fill in."""


@dataclass(frozen=True, slots=True)
class Place:
    """One function as it is started: its files, its Python, the module of its handler."""

    label: str
    python: Path
    module: str
    paths: tuple[Path, ...]
    environment: Mapping[str, str]

    def start(self, *, byte_code: Path | None = None) -> dict[str, Any]:
        """Starts it once. `byte_code`: where Python keeps its own, for files that come without."""
        environment = dict(self.environment) | {"PYTHONPATH": os.pathsep.join(map(str, self.paths)), "PATH": os.defpath}
        if byte_code is None:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        else:
            environment["PYTHONPYCACHEPREFIX"] = str(byte_code)
        run = subprocess.run(
            [self.python, "-S", PROBE, self.module] if self.python != Path(sys.executable) else self._here(),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            raise RuntimeError(f"{self.label} does not start:\n{run.stderr[-2000:]}")
        answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return answer

    def _here(self) -> list[str | Path]:
        return [self.python, PROBE, self.module]


def places_in_checkout() -> dict[str, Place]:
    """Every function of the template, as it is in this checkout, on this Python."""
    return {
        function.label: Place(
            function.label,
            Path(sys.executable),
            f"functions.{function.label}.app",
            (*function.layers, ROOT),
            _environment(function.environment),
        )
        for function in Template(ROOT / "template.yaml").local({}).functions.values()
    }


def _environment(declared: Mapping[str, str]) -> dict[str, str]:
    bound = {name: value for name, value in BOUND.items() if name in declared}
    return {**declared, **bound, **CREDENTIALS, "POWERTOOLS_SERVICE_NAME": "bench"}


def _places_built(root: Path, python: Path) -> dict[str, Place]:
    built = root / BUILD_DIR
    return {
        function.label: Place(
            function.label,
            python,
            "app",
            (built / name, *(built / _layer_name(layer) / "python" for layer in function.layers)),
            _environment(function.environment),
        )
        for name, function in Template(ROOT / "template.yaml").local({}).functions.items()
    }


def _layer_name(folder: Path) -> str:
    return "".join(word.capitalize() for word in folder.name.split("_")) + "Layer"


def measure(starts: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The table of all functions; the least of several starts, so that what else runs here counts for little."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-build-")))
        version = runtime_version(ROOT / "template.yaml")
        python = find_python(version, os.environ)
        if find_sam() is None or python is None:
            say(f"no SAM or no python{version}: starts are measured on the checkout, sizes are left out")
            return {"measured_from": "checkout", "functions": _measure_checkout(starts, folder, say)}
        say("building what is deployed")
        _build_copy(folder)
        return {
            "measured_from": f"build, Python {version}",
            "layers_mb": {path.name: _megabytes(path) for path in sorted((folder / BUILD_DIR).glob("*Layer"))},
            "functions": _measure_built(starts, folder, python, say),
        }


def _build_copy(folder: Path) -> None:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    machine = {"aarch64": "arm64", "arm64": "arm64"}.get(os.uname().machine, "x86_64")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    os.environ["__SAM_CLI_APP_DIR"] = str(folder / "sam")  # or it would note its telemetry choice in the home folder
    build(["--parameter-overrides", f"Architecture={machine}"], folder)


def _measure_built(starts: int, root: Path, python: Path, say: Callable[[str], None]) -> dict[str, Any]:
    bare = Path(root / "bare")
    shutil.copytree(root / BUILD_DIR, bare / BUILD_DIR, ignore=shutil.ignore_patterns("__pycache__"))
    rows: dict[str, Any] = {EMPTY: _row(_empty(python), _empty(python), starts)}
    uncompiled = _places_built(bare, python)
    for label, place in _places_built(root, python).items():
        say(f"starts of {label}")
        code, *layers = place.paths
        rows[label] = _row(place, uncompiled[label], starts) | {
            "package_mb": round(_megabytes(code) + sum(_megabytes(path.parent) for path in layers), 1),
            "own_kb": round(_megabytes(code) * 1000, 1),
        }
    return rows


def _measure_checkout(starts: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    python = Path(sys.executable)
    rows: dict[str, Any] = {EMPTY: _row(_empty(python), _empty(python), starts)}
    for label, place in places_in_checkout().items():
        say(f"starts of {label}")
        rows[label] = _row(place, place, starts, byte_code=folder / "byte-code")
    return rows


def _empty(python: Path) -> Place:
    return Place(EMPTY, python, "bare", (ROOT / "bench",), {})


def _row(place: Place, uncompiled: Place, starts: int, byte_code: Path | None = None) -> dict[str, Any]:
    if byte_code is not None:
        place.start(byte_code=byte_code)
    compiled = [place.start(byte_code=byte_code) for _ in range(starts)]
    from_source = [uncompiled.start() for _ in range(max(1, starts // 2))]
    return {
        "modules": len(compiled[0]["modules"]),
        "cpu_seconds": round(min(run["cpu_seconds"] for run in compiled), 3),
        "rss_mb": round(min(run["rss_bytes"] for run in compiled) / 2**20, 1),
        "cpu_seconds_without_byte_code": round(min(run["cpu_seconds"] for run in from_source), 3),
        "rss_mb_without_byte_code": round(min(run["rss_bytes"] for run in from_source) / 2**20, 1),
    }


def _megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 3)
