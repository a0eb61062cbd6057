"""The loop that docs/usage.md shows for exports: pieces are put together, and what is no piece never is."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.scripted_http import Behaviour, ScriptedServer, answer

PAGE = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
LINK = '</usage/export?format=csv&from=2026-11-01&after=MjAyNi0x_-1>; rel="next"'
HEAD, REST = b"at,id\r\n1,a\r\n", b"2,b\r\n"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")


def in_turn(*answers: Behaviour) -> Behaviour:
    """The last one again and again."""
    left = list(answers)

    def behave(connection: socket.socket, request: bytes) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(connection, request)

    return behave


def paste(server: ScriptedServer, folder: Path) -> int:
    [loop] = [text for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "/usage/export" in text]
    environ = {**os.environ, "API": server.url, "TOKEN": "token-canary", "no_proxy": "*"}
    return subprocess.run(["bash", "-c", loop], cwd=folder, env=environ, capture_output=True, check=False).returncode


def test_pieces_are_put_together_by_following_the_link(tmp_path: Path) -> None:
    with ScriptedServer(in_turn(answer(HEAD, link=LINK), answer(REST))) as server:
        assert paste(server, tmp_path) == 0
    assert (tmp_path / "usage.csv").read_bytes() == HEAD + REST
    assert [request.split(b" ")[1] for request in server.requests] == [
        b"/usage/export?format=csv&from=2026-11-01&to=2026-11-30",
        b"/usage/export?format=csv&from=2026-11-01&after=MjAyNi0x_-1",
    ]


@pytest.mark.parametrize("status", ["401 Unauthorized", "503 Service Unavailable"])
@pytest.mark.parametrize("good_pieces", [0, 1])
def test_a_refusal_is_a_failure_and_no_part_of_the_file(tmp_path: Path, status: str, good_pieces: int) -> None:
    refused = answer(b'{"type":"error"}', status)
    with ScriptedServer(in_turn(*[answer(HEAD, link=LINK)] * good_pieces, refused)) as server:
        assert paste(server, tmp_path) != 0
    assert not (tmp_path / "usage.csv").exists()
    assert (tmp_path / "usage.part").read_bytes() == HEAD * good_pieces


def test_a_short_outage_is_waited_out(tmp_path: Path) -> None:
    outage = answer(b'{"type":"error"}', "503 Service Unavailable")
    with ScriptedServer(in_turn(answer(HEAD, link=LINK), outage, answer(REST))) as server:
        assert paste(server, tmp_path) == 0
    assert (tmp_path / "usage.csv").read_bytes() == HEAD + REST
