"""The one port of the local stack, with small functions of the test's own behind it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from dev.authorizer import TokenChecker
from dev.events import EVENT_BYTES_AT_MOST
from dev.gateway import Gateway, server_for
from dev.lambda_host import FunctionHost
from dev.processes import Processes
from dev.request_log import RequestLog, Screen
from dev.template import Template
from tests.support.user_pool import CLIENT_ID, UserPool

ROOT = Path(__file__).resolve().parent.parent.parent
ISSUER = "https://cognito-idp.us-east-1.amazonaws.com/pool-1"

TEMPLATE = """
Resources:
  Runtime: {{Type: AWS::Serverless::LayerVersion, Properties: {{ContentUri: {layer}}}}}
  Api:
    Type: AWS::Serverless::HttpApi
    Properties:
      Auth:
        DefaultAuthorizer: Jwt
        Authorizers:
          Jwt: {{JwtConfiguration: {{issuer: {issuer}, audience: [{client}]}}}}
      CorsConfiguration: {{AllowOrigins: ["*"], AllowMethods: [GET], AllowHeaders: [authorization]}}
  Account:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: account
      Handler: app.handler
      Timeout: 10
      Events:
        Me: {{Type: HttpApi, Properties: {{Method: GET, Path: /me}}}}
        Open: {{Type: HttpApi, Properties: {{Method: POST, Path: "/open/{{what}}", Auth: {{Authorizer: NONE}}}}}}
  Stream:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: stream
      Handler: app.handler
      Timeout: 10
      Layers: [!Ref Runtime]
      Environment: {{Variables: {{AWS_LAMBDA_EXEC_WRAPPER: /opt/python/tollgate_runtime/bootstrap}}}}
      FunctionUrlConfig:
        AuthType: NONE
        InvokeMode: RESPONSE_STREAM
        Cors: {{AllowOrigins: ["https://app.example"], AllowMethods: [POST], AllowHeaders: [x-api-key],
               ExposeHeaders: [request-id]}}
"""

ACCOUNT = """
def handler(event, context):
    if event.get("pathParameters", {}).get("what") == "raise":
        raise ValueError("as asked")
    if event.get("pathParameters", {}).get("what") == "plain":
        return {"no": "status"}
    return {"statusCode": 201, "headers": {"X-Own": "1"}, "cookies": ["a=1", "b=2"], "body": event["rawPath"],
            "isBase64Encoded": False} | {"body": str(event["requestContext"].get("authorizer", {}).get("jwt", {})
            .get("claims", {}).get("sub"))}
"""

STREAM = """
import json, os, time
from pathlib import Path
from tollgate_runtime import Response

def handler(event, context):
    do = event["rawPath"].removeprefix("/")
    if do == "raise":
        raise ValueError("as asked")
    headers = {"content-type": "text/event-stream", "request-id": "r-1", "access-control-allow-origin": "own"}
    with Response(200, headers, ["a=1"]) as response:
        if do == "event":
            response.write(json.dumps(event))
            return response.result()
        for number in range(4):
            response.write(f"data: {number}\\n\\n")
            time.sleep(0.1)
            if do == "die" and number == 1:
                os._exit(1)
            if do == "fail" and number == 1:
                raise ValueError("in the middle")
        if do == "mark":
            Path(__file__).with_name("finished").touch()
    return response.result()
"""


@dataclass(frozen=True)
class Running:
    """A gateway that answers."""

    port: int
    printed: io.StringIO
    stream_dir: Path
    pool: UserPool

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        connection = self.connect()
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


class _KeySet(BaseHTTPRequestHandler):
    pool = UserPool(ISSUER)

    def do_GET(self) -> None:
        body = self.pool.key_set()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("project")
    for name, code in (("account", ACCOUNT), ("stream", STREAM)):
        (folder / name).mkdir()
        (folder / name / "app.py").write_text(dedent(code))
    layer = ROOT / "layers" / "stream_runtime"
    (folder / "template.yaml").write_text(TEMPLATE.format(layer=layer, issuer=ISSUER, client=CLIENT_ID))
    local = Template(folder / "template.yaml").local({})
    processes, printed = Processes(), io.StringIO()
    hosts = {
        name: FunctionHost(function, {}, processes, lambda *_: None, concurrency=8)
        for name, function in local.functions.items()
    }
    keys = HTTPServer(("127.0.0.1", 0), _KeySet)
    threading.Thread(target=keys.serve_forever, daemon=True).start()
    tokens = TokenChecker(f"http://127.0.0.1:{keys.server_port}/jwks.json")

    async def control(method: str, path: str) -> dict[str, Any] | None:
        return {"method": method} if path == "known" else None

    gateway = Gateway(local, hosts, tokens, RequestLog(Screen(printed, colour=False)), control)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = server_for(gateway)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Running(listener.getsockname()[1], printed, folder / "stream", _KeySet.pool)
    server.should_exit = True
    for host in hosts.values():
        host.close()
    thread.join()
    processes.stop_all()
    keys.shutdown()
    keys.server_close()


def test_a_route_of_the_api_wants_a_token(running: Running) -> None:
    status, headers, body = running.call("GET", "/me")
    assert (status, json.loads(body)) == (401, {"message": "Unauthorized"})
    assert headers["www-authenticate"] == "Bearer"


def test_a_good_token_reaches_the_function_as_claims(running: Running) -> None:
    token = running.pool.access_token(time.time(), sub="user-7")
    status, headers, body = running.call("GET", "/me", authorization=f"Bearer {token}")
    assert (status, body) == (201, b"user-7")
    assert headers["x-own"] == "1"
    assert headers.get_all("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda pool: pool.access_token(time.time() - 7200),
        lambda pool: pool.access_token(time.time(), client_id="another"),
        lambda pool: pool.access_token(time.time(), iss="https://elsewhere"),
        lambda pool: UserPool(ISSUER, "foreign").access_token(time.time()),
        lambda pool: pool.unsigned(pool.access_claims(time.time())),
        lambda pool: pool.access_token(time.time())[:-4] + "AAAA",
        lambda _: "no-token-at-all",
    ],
    ids=["expired", "other client", "other issuer", "other key", "unsigned", "tampered", "garbage"],
)
def test_a_bad_token_is_refused_without_running_the_function(running: Running, forge: Any) -> None:  # noqa: ANN401
    status, headers, _ = running.call("GET", "/me", authorization=f"Bearer {forge(running.pool)}")
    assert status == 401
    assert "invalid_token" in headers["www-authenticate"]


def test_an_open_route_needs_no_token(running: Running) -> None:
    assert running.call("POST", "/open/x", b"{}")[0] == 201


def test_a_result_without_a_status_becomes_json(running: Running) -> None:
    status, headers, body = running.call("POST", "/open/plain", b"{}")
    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", {"no": "status"})


def test_an_exception_behind_the_api_is_a_500_that_tells_nothing(running: Running) -> None:
    status, _, body = running.call("POST", "/open/raise", b"{}")
    assert (status, json.loads(body)) == (500, {"message": "Internal Server Error"})


def test_another_method_on_a_path_of_the_api_is_not_found(running: Running) -> None:
    assert running.call("DELETE", "/me")[0] == 404


def test_the_api_answers_preflights_by_its_own_rules(running: Running) -> None:
    status, headers, _ = running.call(
        "OPTIONS", "/me", origin="https://any.example", access_control_request_method="GET"
    )
    assert (status, headers["access-control-allow-origin"]) == (204, "*")


def test_every_other_path_streams_from_the_function_url(running: Running) -> None:
    connection = running.connect()
    connection.request("POST", "/v1/anything", b"{}")
    response = connection.getresponse()
    begun_at = time.monotonic()
    first = response.read1()
    waited = time.monotonic() - begun_at
    rest = response.read()
    connection.close()
    assert first == b"data: 0\n\n"
    assert waited < 0.09
    assert rest == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert response.headers["set-cookie"] == "a=1"


def test_the_event_is_a_function_urls(running: Running) -> None:
    _, _, body = running.call("POST", "/event?beta=true", b'{"a":1}', content_type="application/json")
    event = json.loads(body)
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/event", "beta=true")
    assert event["body"] == '{"a":1}'
    assert event["requestContext"]["http"]["method"] == "POST"


def test_cors_headers_come_from_the_urls_rules_not_from_the_function(running: Running) -> None:
    _, headers, _ = running.call("POST", "/x", b"{}", origin="https://app.example")
    assert headers.get_all("access-control-allow-origin") == ["https://app.example"]
    assert headers["access-control-expose-headers"] == "request-id"
    assert headers["request-id"] == "r-1"


def test_an_exception_before_the_first_byte_is_a_502(running: Running) -> None:
    assert running.call("POST", "/raise", b"{}")[0] == 502


def test_an_exception_in_mid_stream_just_ends_the_answer(running: Running) -> None:
    status, _, body = running.call("POST", "/fail", b"{}")
    assert (status, body) == (200, b"data: 0\n\ndata: 1\n\n")


def test_a_process_that_dies_in_mid_stream_breaks_the_answer_off(running: Running) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        running.call("POST", "/die", b"{}")
    assert caught.value.partial == b"data: 0\n\ndata: 1\n\n"


def test_a_client_that_leaves_does_not_stop_the_function(running: Running) -> None:
    connection = running.connect()
    connection.request("POST", "/mark", b"{}")
    connection.getresponse().read1()
    connection.close()
    finished, limit = running.stream_dir / "finished", time.monotonic() + 5
    while not finished.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    assert finished.exists()


@pytest.mark.parametrize("size", [EVENT_BYTES_AT_MOST, EVENT_BYTES_AT_MOST + 1])
def test_a_body_that_no_event_can_hold_is_a_413_in_the_envelope(running: Running, size: int) -> None:
    status, _, body = running.call("POST", "/x", b"x" * size, content_type="application/json")
    answer = json.loads(body)
    assert status == 413
    assert answer["error"]["type"] == "request_too_large"
    assert answer["Message"].startswith("Request must be smaller than 6291456 bytes")


def test_a_body_just_below_the_limit_passes(running: Running) -> None:
    body = b"x" * (EVENT_BYTES_AT_MOST - 4096)
    status, _, answered = running.call("POST", "/event", body, content_type="application/json")
    assert status == 200
    assert len(json.loads(answered)["body"]) == len(body)


def test_many_streams_run_side_by_side(running: Running) -> None:
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(running.call("POST", "/x", b"{}")[2])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"] * 6


def test_the_stacks_own_paths_need_a_header_that_no_web_page_can_send(running: Running) -> None:
    assert running.call("GET", "/_dev/known")[0] == 200
    assert running.call("GET", "/_dev/unknown")[0] == 404
    assert running.call("POST", "/_dev/known")[0] == 403
    assert running.call("POST", "/_dev/known", x_tollgate_dev="1")[0] == 200
    assert running.call("POST", "/_dev/known", x_tollgate_dev="1", host="rebound.example")[0] == 403


def test_each_request_leaves_one_line(running: Running) -> None:
    running.call("POST", "/open/logged", b"{}")
    limit = time.monotonic() + 5
    while "POST /open/logged" not in running.printed.getvalue() and time.monotonic() < limit:
        time.sleep(0.02)
    lines = [line for line in running.printed.getvalue().splitlines() if "/open/logged" in line]
    assert len(lines) == 1
    assert "201" in lines[0]
