"""Changed code is noticed, nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

from dev.code_watch import CodeWatch


def test_new_changed_and_deleted_code_is_noticed_once(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    watch = CodeWatch(tmp_path)
    assert watch.changed() == []
    app.write_text("one")
    assert watch.changed() == [app]
    assert watch.changed() == []
    os.utime(app, ns=(1, 1))
    assert watch.changed() == [app]
    app.unlink()
    assert watch.changed() == [app]


def test_byte_code_and_data_are_no_code(tmp_path: Path) -> None:
    watch = CodeWatch(tmp_path)
    (tmp_path / "app.cpython-311.pyc").touch()
    (tmp_path / "notes.txt").touch()
    assert watch.changed() == []


def test_a_single_file_can_be_watched(tmp_path: Path) -> None:
    template = tmp_path / "template.yaml"
    watch = CodeWatch(template)
    template.touch()
    assert watch.changed() == [template]
