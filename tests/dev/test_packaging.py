"""Pins agree with pyproject.toml; byte code and pruning do what a layer needs. The build itself: tests/template."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from dev.packaging import (
    BOTO_SERVICES,
    LOCKS,
    PackagingError,
    artifacts,
    check_lock,
    compile_artifacts,
    find_python,
    finish,
    prune,
    read_pins,
    runtime_version,
    uncompiled,
)
from tests.support.sam import ROOT

RUNNING = "{}.{}".format(*sys.version_info[:2])
HASH = "--hash=sha256:" + "0" * 64


# --- Lock -----------------------------------------------------------------------------------------------------------


def test_every_requirements_file_is_what_pyproject_asks_for() -> None:
    assert check_lock() == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that the check reads."""
    for path in ("pyproject.toml", *(entry.path for entry in LOCKS)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_version_raised_in_pyproject_alone_is_noticed_in_every_file(project: Path) -> None:
    replace(project / "pyproject.toml", '"boto3==1.44.5"', '"boto3==1.44.6"')
    faults = check_lock(project)
    assert [fault.partition(":")[0] for fault in faults] == [
        "layers/core/requirements.txt",
        "requirements/dev.txt",
        "requirements/test.txt",
    ]
    assert "wants boto3==1.44.6, the file has 1.44.5" in faults[0]


def test_a_new_requirement_without_a_pin_is_noticed(project: Path) -> None:
    replace(project / "pyproject.toml", '    "rich",\n', '    "rich",\n    "new_thing",\n')
    assert check_lock(project)[0] == "requirements/dev.txt: pyproject.toml wants new-thing, the file has none"


def test_a_layer_that_carries_another_version_than_was_tested_is_noticed(project: Path) -> None:
    replace(project / "layers/core/requirements.txt", "urllib3==", "urllib3==9.")
    [fault] = check_lock(project)
    assert fault.startswith("layers/core/requirements.txt: urllib3==9.")


def test_a_pin_without_a_hash_is_noticed(project: Path) -> None:
    path = project / "requirements" / "sam.txt"
    path.write_text(path.read_text() + "left-pad==1.0\n")
    assert check_lock(project) == ["requirements/sam.txt: left-pad has no hash"]


def test_a_looser_requirement_than_an_exact_pin_is_refused(project: Path) -> None:
    replace(project / "pyproject.toml", '"boto3==1.44.5"', '"boto3>=1.44"')
    with pytest.raises(PackagingError, match=r"boto3>=1\.44"):
        check_lock(project)


@pytest.mark.parametrize(
    ("line", "name", "version"),
    [
        (f"plain==1.0 {HASH}", "plain", "1.0"),
        (f"With_Extra[crypto]==2.1 {HASH}", "with-extra", "2.1"),
        (f"marked==3 ; python_version < '3.12' \\\n    {HASH}", "marked", "3"),
    ],
)
def test_pins_are_read_in_every_form_that_uv_writes(line: str, name: str, version: str) -> None:
    assert read_pins(line) == ({name: version}, [])


@pytest.mark.parametrize("line", ["open>=1", "https://example.com/a.whl", "-e ."])
def test_what_is_not_an_exact_pin_is_refused(line: str) -> None:
    with pytest.raises(PackagingError, match="not an exact pin"):
        read_pins(line)


# --- Byte code ------------------------------------------------------------------------------------------------------


@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    """A build as `sam build` leaves it: one layer, one function."""
    package = tmp_path / "build" / "CoreLayer" / "python" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 1\n")
    (package / "deep.py").write_text("def f():\n    raise ValueError\n")
    function = tmp_path / "build" / "AuthFunction"
    function.mkdir()
    (function / "app.py").write_text("def handler(event, context):\n    return {}\n")
    (tmp_path / "build" / "template.yaml").write_text(f"Globals:\n  Function:\n    Runtime: python{RUNNING}\n")
    return tmp_path / "build"


def test_every_file_gets_byte_code_that_outlives_a_changed_date(build_dir: Path) -> None:
    assert compile_artifacts(build_dir, RUNNING) == 3
    for artifact in artifacts(build_dir):
        assert uncompiled(artifact) == []
        for source in artifact.rglob("*.py"):
            os.utime(source, (0, 0))  # as a zip does
        assert uncompiled(artifact) == []


def test_the_same_source_gives_the_same_bytes_anywhere(build_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(build_dir, tmp_path / "elsewhere")
    compile_artifacts(build_dir, RUNNING)
    compile_artifacts(tmp_path / "elsewhere", RUNNING)
    for path in build_dir.rglob("*.pyc"):
        twin = tmp_path / "elsewhere" / path.relative_to(build_dir)
        assert path.read_bytes() == twin.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("damage", ["missing", "checked", "stale", "foreign"])
def test_byte_code_that_would_not_be_used_as_it_is_counts_as_none(build_dir: Path, damage: str) -> None:
    compile_artifacts(build_dir, RUNNING)
    source = build_dir / "CoreLayer" / "python" / "package" / "deep.py"
    byte_code = Path(importlib.util.cache_from_source(str(source)))
    original = byte_code.read_bytes()
    match damage:
        case "missing":
            byte_code.unlink()
        case "checked":
            byte_code.write_bytes(original[:4] + b"\3\0\0\0" + original[8:])
        case "stale":
            source.write_text("pass\n")
        case "foreign":
            byte_code.write_bytes(b"\0\0\r\n" + original[4:])
    assert uncompiled(build_dir / "CoreLayer") == [source]


def test_another_python_than_the_deployed_one_may_not_compile(build_dir: Path) -> None:
    with pytest.raises(PackagingError, match=r"cannot compile for python3\.99"):
        compile_artifacts(build_dir, "3.99")


def test_a_file_that_does_not_compile_stops_the_build(build_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (build_dir / "AuthFunction" / "broken.py").write_text("def f(:\n")
    with pytest.raises(PackagingError, match="does not compile"):
        compile_artifacts(build_dir, RUNNING)
    assert "broken.py" in capsys.readouterr().out


def test_finishing_without_a_build_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match="run `sam build` first"):
        finish(tmp_path)


# --- Pruning --------------------------------------------------------------------------------------------------------


def test_what_no_function_can_use_goes_and_licences_stay(tmp_path: Path) -> None:
    packages = tmp_path / "CoreLayer" / "python"
    gone = [
        "boto3/examples/s3.rst",
        "botocore/data/ec2/2016-11-15/service-2.json.gz",
        "botocore/data/dynamodb/2012-08-10/examples-1.json",
        "thing-1.0.dist-info/RECORD",
        "thing-1.0.data/scripts/thing",
        "bin/thing",
        "thing/tests/test_thing.py",
        "stripe/params/_customer_create_params.py",
        "aws_lambda_powertools/event_handler/openapi/swagger_ui/swagger-ui-bundle.min.js",
        "thing/__pycache__/x.cpython-39.pyc",
    ]
    kept = [
        "botocore/data/endpoints.json",
        "thing-1.0.dist-info/METADATA",
        "thing-1.0.dist-info/licenses/LICENSE",
        "thing/__init__.py",
        "tollgate/tests/kept.py",
        "aws_lambda_powertools/event_handler/openapi/swagger_ui/html.py",
        *(f"botocore/data/{service}/2012-08-10/service-2.json.gz" for service in BOTO_SERVICES),
    ]
    for name in gone + kept:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    prune(tmp_path / "CoreLayer")
    left = {path.relative_to(packages).as_posix() for path in packages.rglob("*") if path.is_file()}
    assert left == set(kept)


# --- The deployed Python --------------------------------------------------------------------------------------------


def fake_python(folder: Path, version: str, script: str) -> Path:
    path = folder / f"python{version}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_shim_that_does_not_run_is_passed_over_for_the_real_one(tmp_path: Path) -> None:
    """pyenv puts a shim of every version on PATH; those of inactive versions exit with an error."""
    fake_python(tmp_path / "shims", "3.99", "echo 'pyenv: python3.99: command not found' >&2; exit 127")
    real = fake_python(tmp_path / "pyenv/versions/3.99.1/bin", "3.99", "echo 3.99")
    environ = {"PATH": str(tmp_path / "shims"), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)}
    assert find_python("3.99", environ) == real


def test_a_python_without_pip_or_of_another_version_is_none(tmp_path: Path) -> None:
    fake_python(tmp_path / "a", "3.99", "echo 'No module named pip' >&2; exit 1")
    fake_python(tmp_path / "b", "3.99", "echo 3.98")
    environ = {"PATH": f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}", "HOME": str(tmp_path)}
    assert find_python("3.99", environ) is None


def test_the_template_decides_which_python_that_is() -> None:
    assert runtime_version(ROOT / "template.yaml") == "3.13"


def test_a_template_with_two_runtimes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text("A:\n  Runtime: python3.13\nB:\n  Runtime: python3.14\n")
    with pytest.raises(PackagingError, match="2 Python runtimes"):
        runtime_version(path)
