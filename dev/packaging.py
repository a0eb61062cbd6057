"""Builds what is deployed, and keeps the pinned requirements in step with pyproject.toml.

    python -m dev.packaging build [ARGUMENTS FOR sam build]   build, prune, compile, verify
    python -m dev.packaging finish [BUILD_DIR]                the same without `sam build`
    python -m dev.packaging lock                              write every requirements file from pyproject.toml
    python -m dev.packaging lock --check                      refuse requirements that disagree with it; no network

`sam build` ships no byte code and a layer is read-only, so Python would compile every file again at every cold start:
the largest part of it. The order is build, compile, deploy; a later `sam build` removes the byte code again.

Standard library only: the `compile` command runs on the deployed Python version, which may have nothing installed.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

ROOT = Path(__file__).resolve().parents[1]
BUILD_DIR = Path(".aws-sam/build")

BOTO_SERVICES = frozenset({"cognito-idp", "dynamodb", "sesv2", "sqs", "ssm"})
"""AWS services whose clients functions and layers create; botocore's descriptions of all others are pruned."""

MAX_UNZIPPED_BYTES = 250 * 1024 * 1024
"""Lambda's limit for a function together with its layers."""

_HASH_UNCHECKED = 0b01
"""Flags of a byte code file that is keyed by its source's hash and never compared with the source again (PEP 552)."""


class PackagingError(Exception):
    """What stands in the way, in words for whoever typed the command."""


# --- Python of the deployed version --------------------------------------------------------------------------------


def runtime_version(template: Path) -> str:
    """The Python minor version that a template deploys on, such as "3.13"."""
    versions: set[str] = set(re.findall(r"^\s+Runtime: python(\d+\.\d+)$", template.read_text(), re.MULTILINE))
    if len(versions) != 1:
        raise PackagingError(f"{template} names {len(versions)} Python runtimes; this command knows how to build one")
    return versions.pop()


def find_python(version: str, environ: Mapping[str, str]) -> Path | None:
    """A Python of exactly this minor version that has pip, as `sam build` wants it; None if this machine has none.

    Looks on PATH, among pyenv's versions and where uv keeps its own. A pyenv shim of an inactive version is on PATH
    too, but does not run: so every candidate is asked.
    """
    return next((path for path in _python_candidates(version, environ) if _is_python(path, version)), None)


def _python_candidates(version: str, environ: Mapping[str, str]) -> Iterator[Path]:
    name = f"python{version}"
    for folder in environ.get("PATH", "").split(os.pathsep):
        if folder and (Path(folder) / name).is_file():
            yield Path(folder) / name
    home = Path(environ.get("HOME", "/"))
    pyenv_versions = Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    uv_pythons = Path(
        environ.get("UV_PYTHON_INSTALL_DIR")
        or Path(environ.get("XDG_DATA_HOME") or home / ".local/share") / "uv/python"
    )
    yield from sorted(pyenv_versions.glob(f"{version}*/bin/{name}"), reverse=True)
    yield from sorted(uv_pythons.glob(f"cpython-{version}*/bin/{name}"), reverse=True)


def _is_python(path: Path, version: str) -> bool:
    probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([path, "-c", probe], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version


def require_python(version: str) -> Path:
    """Like find_python, but raises PackagingError with the ways to get one."""
    python = find_python(version, os.environ)
    if python is None:
        raise PackagingError(
            f"the template deploys on python{version} and byte code must come from the same version, but no "
            f"python{version} with pip is on PATH, in pyenv or in uv: `uv python install {version}` gets one, "
            f"so does `pyenv install {version}`"
        )
    return python


# --- Build ----------------------------------------------------------------------------------------------------------


def find_sam() -> Path | None:
    """The SAM command line: the project's own, else the one on PATH."""
    own = ROOT / ".dev" / "sam" / "bin" / "sam"
    if own.is_file():
        return own
    found = shutil.which("sam")
    return Path(found) if found else None


def install_sam() -> Path:
    """Puts the pinned aws-sam-cli into `.dev/sam`, an environment of its own: it pins what the project uses newer."""
    folder = ROOT / ".dev" / "sam"
    requirements = ROOT / "requirements" / "sam.txt"
    uv = _find_uv()
    if uv is not None:
        _run([uv, "venv", "--quiet", "--python", sys.executable, folder])
        _run(
            [uv, "pip", "install", "--quiet", "--require-hashes", "--python", folder / "bin/python", "-r", requirements]
        )
    else:
        _run([sys.executable, "-m", "venv", folder])
        _run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", requirements])
    return folder / "bin" / "sam"


def build(sam_arguments: Sequence[str], project: Path = ROOT) -> None:
    """`sam build`, then everything that makes its result deployable. Prints what was built and how large it is."""
    python = require_python(runtime_version(project / "template.yaml"))
    sam = find_sam() or install_sam()
    environ = dict(os.environ)
    # sam takes the first python of the runtime's version on PATH.
    environ["PATH"] = os.pathsep.join([str(python.parent), environ.get("PATH", "")])
    environ.setdefault("SAM_CLI_TELEMETRY", "0")
    _run([sam, "build", *sam_arguments], cwd=project, environ=environ)
    finish(_build_dir_of(sam_arguments, project), python=python)


def _build_dir_of(sam_arguments: Sequence[str], project: Path) -> Path:
    """Where this `sam build` writes: as given, else as samconfig.toml says for the chosen environment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--build-dir", "-b")
    parser.add_argument("--config-env", default="default")
    known, _ = parser.parse_known_args(sam_arguments)
    config = tomllib.loads((project / "samconfig.toml").read_text())
    configured = config.get(known.config_env, {}).get("build", {}).get("parameters", {}).get("build_dir")
    return project / (known.build_dir or configured or BUILD_DIR)


def finish(build_dir: Path, *, python: Path | None = None) -> None:
    """Prunes, compiles and verifies what `sam build` left; raises PackagingError if it can't be deployed."""
    template = build_dir / "template.yaml"
    if not template.is_file():
        raise PackagingError(f"nothing is built in {build_dir}: run `sam build` first")
    version = runtime_version(template)
    for artifact in artifacts(build_dir):
        prune(artifact)
    # As a script, so that the other Python needs neither this project on its path nor its bytecode cache.
    script = Path(__file__).resolve()
    _run([python or require_python(version), "-I", script, "compile", "--version", version, build_dir])
    for artifact in artifacts(build_dir):
        print(f"{artifact.name}: {_size(artifact) / 1e6:.1f} MB unzipped")
    total = sum(_size(artifact) for artifact in artifacts(build_dir))
    if total > MAX_UNZIPPED_BYTES:
        raise PackagingError(f"{total} bytes unzipped; Lambda takes {MAX_UNZIPPED_BYTES} for a function and its layers")


def artifacts(build_dir: Path) -> list[Path]:
    """The built functions and layers, one folder each."""
    return sorted(path for path in build_dir.iterdir() if path.is_dir())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- Prune ----------------------------------------------------------------------------------------------------------


def prune(artifact: Path) -> None:
    """Deletes what no function can use. Licences and package metadata stay: they have to travel with the code."""
    for path in sorted(_prunable(artifact)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _prunable(artifact: Path) -> Iterator[Path]:
    yield from artifact.rglob("__pycache__")  # of whichever Python: compiled anew below
    packages = artifact / "python"
    if not packages.is_dir():
        return
    yield from packages.glob("*.dist-info/RECORD")  # it lists files and hashes that are no longer so
    yield from packages.glob("*.data")  # console scripts
    yield from packages.glob("bin")
    for package in packages.iterdir():
        # Third-party tests; nothing of ours is called so.
        yield from (path for path in package.glob("**/tests") if path.is_dir() and package.name != "tollgate")
    yield from packages.glob("boto3/examples")
    # Types of parameters, for type checkers only: 8 of the package's 17 MB.
    yield from packages.glob("stripe/params")
    # A page that browses documents; none of our functions serves it.
    yield from packages.glob("aws_lambda_powertools/event_handler/openapi/swagger_ui/*.min.*")
    yield from packages.glob("botocore/data/*/*/examples-1.json")
    for service in packages.glob("botocore/data/*"):
        # Descriptions of some 400 services: 25 of the layer's 50 MB.
        if service.is_dir() and service.name not in BOTO_SERVICES:
            yield service


# --- Byte code ------------------------------------------------------------------------------------------------------


def compile_artifacts(build_dir: Path, version: str) -> int:
    """Byte code for every source file, keyed by hash and never checked again; how many files.

    Unchecked, because a zip's dates never match and a hash would be read and computed for each import. The paths
    inside are those of the deployed function, so the same source gives the same bytes on every machine.
    """
    running = "{}.{}".format(*sys.version_info[:2])
    if running != version:
        raise PackagingError(f"python{running} cannot compile for python{version}")
    compiled = 0
    for artifact in artifacts(build_dir):
        deployed_at = "/opt" if (artifact / "python").is_dir() else "/var/task"
        done = compileall.compile_dir(
            artifact,
            maxlevels=50,
            quiet=1,
            force=True,
            stripdir=str(artifact),
            prependdir=deployed_at,
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
        if not done:
            raise PackagingError(f"a file in {artifact} does not compile on python{version}")
        missing = uncompiled(artifact)
        if missing:
            raise PackagingError(f"{len(missing)} files have no usable byte code, the first is {missing[0]}")
        compiled += sum(1 for _ in artifact.rglob("*.py"))
    return compiled


def uncompiled(artifact: Path) -> list[Path]:
    """Source files without byte code that the running Python would import unchecked and that matches the source."""
    return [source for source in sorted(artifact.rglob("*.py")) if not _has_byte_code(source)]


def _has_byte_code(source: Path) -> bool:
    byte_code = Path(importlib.util.cache_from_source(str(source)))
    if not byte_code.is_file():
        return False
    header = byte_code.read_bytes()[:16]
    expected = (
        importlib.util.MAGIC_NUMBER
        + _HASH_UNCHECKED.to_bytes(4, "little")
        + importlib.util.source_hash(source.read_bytes())
    )
    return header == expected


# --- Lock -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lock:
    """One requirements file and what of pyproject.toml goes into it."""

    path: str
    groups: tuple[str, ...] = ()
    project: bool = True
    """Whether the project's own dependencies are in it, beside the groups."""
    agrees_with: str | None = None
    """The file whose versions this one takes over; it is written first."""


LOCKS = (
    Lock("layers/core/requirements.txt"),
    Lock("layers/stream_runtime/requirements.txt", groups=("stream_runtime",), project=False),
    Lock("requirements/dev.txt", groups=("stream_runtime", "dev"), agrees_with="layers/core/requirements.txt"),
    Lock("requirements/test.txt", groups=("stream_runtime", "dev", "test"), agrees_with="requirements/dev.txt"),
    # Environments of their own: nothing has to agree.
    Lock("requirements/engines.txt", groups=("engines",), project=False),
    Lock("requirements/sam.txt", groups=("sam",), project=False),
    Lock("requirements/litellm.txt", groups=("litellm",), project=False),
    Lock("requirements/uv.txt", groups=("uv",), project=False),
)

SAME_VERSIONS = ("layers/core/requirements.txt", "layers/stream_runtime/requirements.txt", "requirements/dev.txt")
"""Files whose every pin must be in requirements/test.txt too: what is tested is what is deployed."""


def _find_uv() -> Path | None:
    beside = Path(sys.executable).with_name("uv")
    if beside.is_file():
        return beside
    found = shutil.which("uv")
    return Path(found) if found else None


def lock(root: Path = ROOT) -> None:
    """Resolves pyproject.toml for every platform and writes the requirements files, all hashes in."""
    uv = _find_uv()
    if uv is None:
        raise PackagingError("uv resolves the pins and is not here: `pip install uv`")
    for entry in LOCKS:
        command: list[str | Path] = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-header", "--no-annotate"]
        command += ["pyproject.toml"] if entry.project else []
        for group in entry.groups:
            command += ["--group", group]
        command += ["--constraints", entry.agrees_with] if entry.agrees_with else []
        _run([*command, "--output-file", entry.path], cwd=root)


def check_lock(root: Path = ROOT) -> list[str]:
    """What is wrong with the requirements files; nothing when they are what pyproject.toml asks for. No network."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    pins: dict[str, dict[str, str]] = {}
    faults: list[str] = []
    for entry in LOCKS:
        pins[entry.path], unhashed = read_pins((root / entry.path).read_text())
        faults += [f"{entry.path}: {name} has no hash" for name in unhashed]
        wanted = _wanted(project, entry)
        faults += [
            f"{entry.path}: pyproject.toml wants {name}{'==' + version if version else ''}, "
            f"the file has {pins[entry.path].get(name, 'none')}"
            for name, version in wanted.items()
            if name not in pins[entry.path] or version not in (None, pins[entry.path][name])
        ]
    tested = pins["requirements/test.txt"]
    for path in SAME_VERSIONS:
        faults += [
            f"{path}: {name}=={version}, but requirements/test.txt has {tested.get(name, 'none')}"
            for name, version in pins[path].items()
            if tested.get(name) != version
        ]
    return faults


def read_pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Versions by normalised name, and the names that lack a sha256 hash. Anything not pinned exactly is refused."""
    pins: dict[str, str] = {}
    unhashed: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", requirement)
        if match is None:
            raise PackagingError(f"not an exact pin: {requirement!r}")
        name = _normalised(match[1])
        pins[name] = match[2]
        if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", requirement):
            unhashed.append(name)
    return pins, unhashed


def _wanted(project: Mapping[str, object], entry: Lock) -> dict[str, str | None]:
    """Direct requirements of a lock by normalised name, with the version where pyproject.toml pins one."""
    groups = project["dependency-groups"]
    table = project["project"]
    assert isinstance(groups, dict)
    assert isinstance(table, dict)
    requirements: Iterable[str] = [
        *(table["dependencies"] if entry.project else []),
        *(requirement for group in entry.groups for requirement in groups[group]),
    ]
    wanted: dict[str, str | None] = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:==(\S+))?", requirement)
        if match is None:
            raise PackagingError(f"pyproject.toml: pin {requirement!r} exactly, or leave the version to the lock")
        wanted[_normalised(match[1])] = match[2]
    return wanted


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- Command line ---------------------------------------------------------------------------------------------------


def _run(command: Sequence[str | Path], *, cwd: Path = ROOT, environ: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run([str(part) for part in command], cwd=cwd, env=environ, check=True)
    except subprocess.CalledProcessError as error:
        raise PackagingError(f"{Path(command[0]).name} failed with status {error.returncode}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.packaging", description="Builds what is deployed.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="sam build, prune, compile, verify; further arguments go to sam build")
    finish_parser = commands.add_parser("finish", help="prune, compile and verify an existing build")
    finish_parser.add_argument("build_dir", type=Path, nargs="?", default=ROOT / BUILD_DIR)
    compile_parser = commands.add_parser("compile", help="byte code only; run by the deployed Python version")
    compile_parser.add_argument("--version", required=True)
    compile_parser.add_argument("build_dir", type=Path)
    lock_parser = commands.add_parser("lock", help="write the requirements files from pyproject.toml")
    lock_parser.add_argument("--check", action="store_true", help="compare only; no network")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs one command; 0 when it did what it promises."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command != "build":
        _parser().error(f"unknown arguments: {' '.join(rest)}")
    try:
        match options.command:
            case "build":
                build(rest)
            case "finish":
                finish(options.build_dir.resolve())
            case "compile":
                print(f"{compile_artifacts(options.build_dir, options.version)} files compiled for {options.version}")
            case "lock" if options.check:
                faults = check_lock()
                print("\n".join(faults) or "requirements agree with pyproject.toml")
                return 1 if faults else 0
            case "lock":
                lock()
    except PackagingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
