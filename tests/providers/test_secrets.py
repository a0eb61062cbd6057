"""Secrets from SSM: one signed call, five minutes of memory, and nothing of them in any text."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest

from tests.support.clocks import FakeClock, Reports
from tests.support.moto_table import REGION, set_credentials
from tests.support.scripted_http import Behaviour, ScriptedServer, answer
from tollgate.domain.errors import UpstreamUnavailableError
from tollgate.providers.secrets import (
    COOLDOWN_SECONDS,
    FRESH_SECONDS,
    SecretFetchError,
    Secrets,
    parameter_client,
    read_parameters,
)

KEY_NAME, PEPPER_NAME = "/tollgate/dev/anthropic-api-key", "/tollgate/dev/key-pepper"
NAMES = (KEY_NAME, PEPPER_NAME)
CANARY = "canary-secret-5a1c"


def parameters(values: dict[str, str]) -> Behaviour:
    """What SSM answers: the found ones, in no particular order, and the names that do not exist."""
    found = [{"Name": name, "Type": "SecureString", "Value": value, "Version": 1} for name, value in values.items()]
    absent = [name for name in NAMES if name not in values]
    return answer(json.dumps({"Parameters": found[::-1], "InvalidParameters": absent}).encode())


BOTH = parameters({KEY_NAME: CANARY, PEPPER_NAME: f"{CANARY}-pepper"})


class World:
    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.clock = FakeClock()
        self.reports = Reports()
        self.client = parameter_client(botocore.session.get_session(), REGION)
        self.secrets = Secrets(self.client, NAMES, self.clock, self.reports)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    set_credentials(monkeypatch)
    with ScriptedServer(BOTH) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", server.url)
        world = World(server)
        yield world
        world.client.close()


def test_all_secrets_come_in_one_signed_call_with_decryption(world: World) -> None:
    assert world.secrets.value(KEY_NAME) == CANARY
    assert world.secrets.value(PEPPER_NAME) == f"{CANARY}-pepper"
    [request] = world.server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert json.loads(body) == {"Names": list(NAMES), "WithDecryption": True}
    assert b"X-Amz-Target: AmazonSSM.GetParameters" in head
    assert f"/{REGION}/ssm/aws4_request".encode() in head
    assert b"X-Amz-Security-Token: session" in head


def test_the_small_model_is_botocores_own_for_its_operation(world: World) -> None:
    """So an update of botocore that changes GetParameters is noticed."""
    small = world.client.meta.service_model.operation_model("GetParameters")
    whole = botocore.session.get_session().get_service_model("ssm").operation_model("GetParameters")
    assert world.client.meta.service_model.operation_names == ["GetParameters"]
    assert world.client.meta.service_model.metadata == whole.service_model.metadata
    assert shape_tree(small.input_shape) == shape_tree(whole.input_shape)
    assert shape_tree(small.output_shape) == shape_tree(whole.output_shape)


def shape_tree(shape: Any) -> Any:  # noqa: ANN401  botocore's Shape
    members = {name: shape_tree(member) for name, member in getattr(shape, "members", {}).items()}
    element = getattr(shape, "member", None)
    return (
        shape.name,
        shape.type_name,
        shape.metadata,
        shape.serialization,
        members,
        shape_tree(element) if element is not None else None,
    )


def test_asking_for_the_client_twice_gives_two_of_the_same(world: World) -> None:
    session = botocore.session.get_session()
    clients = [parameter_client(session, REGION) for _ in range(2)]
    assert [client.meta.endpoint_url for client in clients] == [world.server.url] * 2


def test_a_region_decides_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    client = parameter_client(botocore.session.get_session(), "us-gov-west-1")
    assert client.meta.endpoint_url == "https://ssm.us-gov-west-1.amazonaws.com"


@pytest.mark.parametrize(("age_seconds", "reads"), [(-1, 1), (0, 2), (1, 2)])
def test_secrets_are_read_again_after_five_minutes(world: World, age_seconds: int, reads: int) -> None:
    world.secrets.value(KEY_NAME)
    world.clock.advance(FRESH_SECONDS + age_seconds)
    world.secrets.value(KEY_NAME)
    assert len(world.server.requests) == reads


def test_a_rotated_secret_is_used_without_a_new_deployment(world: World) -> None:
    world.secrets.value(KEY_NAME)
    world.server.behaviour = parameters({KEY_NAME: "rotated", PEPPER_NAME: "p"})
    world.clock.advance(FRESH_SECONDS)
    assert world.secrets.value(KEY_NAME) == "rotated"


BAD_ANSWERS = [
    answer(b'{"__type": "ThrottlingException", "message": "slow down"}', "400 Bad Request"),
    answer(b'{"__type": "com.amazon.coral#AccessDeniedException"}', "400 Bad Request"),
    answer(b"oops", "500 Internal Server Error"),
    answer(b"<html>", "200 OK"),
    answer(b"{}", "200 OK"),
    answer(b'{"Parameters": [{"Name": 7}]}', "200 OK"),
    parameters({KEY_NAME: CANARY}),
    parameters({KEY_NAME: CANARY, PEPPER_NAME: ""}),
    lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"),
    lambda _connection, _request: None,
]


@pytest.mark.parametrize("behaviour", BAD_ANSWERS)
def test_while_they_cannot_be_read_the_old_ones_serve(world: World, behaviour: Behaviour) -> None:
    world.secrets.value(KEY_NAME)
    world.server.behaviour = behaviour
    world.clock.advance(FRESH_SECONDS * 100)
    assert world.secrets.value(KEY_NAME) == CANARY
    assert [name for name, _ in world.reports.lines] == ["secrets_unavailable"]


@pytest.mark.parametrize("behaviour", BAD_ANSWERS)
def test_secrets_that_were_never_read_are_our_fault_not_the_callers(world: World, behaviour: Behaviour) -> None:
    world.server.behaviour = behaviour
    with pytest.raises(UpstreamUnavailableError) as refusal:
        world.secrets.value(KEY_NAME)
    assert refusal.value.error_code == "secrets_unavailable"
    assert "/tollgate" not in refusal.value.public_message


def test_a_report_names_the_parameter_that_does_not_exist(world: World) -> None:
    world.server.behaviour = parameters({KEY_NAME: CANARY})
    with pytest.raises(UpstreamUnavailableError):
        world.secrets.value(KEY_NAME)
    assert world.reports.lines == [("secrets_unavailable", f"no such parameter, or an empty one: {PEPPER_NAME}")]


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "  {}\t", "\n{} \n"])
def test_what_copying_left_around_a_secret_is_no_part_of_it(world: World, around: str) -> None:
    """`echo key | aws ssm put-parameter` stores a line end, which no header can carry."""
    world.server.behaviour = parameters({KEY_NAME: around.format(CANARY), PEPPER_NAME: "p"})
    assert world.secrets.value(KEY_NAME) == CANARY


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx-evil: b", "a\x00b", "a\x7fb", "sk-世", "a\u2028b"])
def test_a_secret_that_no_header_could_carry_is_refused_by_its_name(world: World, value: str) -> None:
    world.server.behaviour = parameters({KEY_NAME: value, PEPPER_NAME: "p"})
    with pytest.raises(UpstreamUnavailableError) as refusal:
        world.secrets.value(KEY_NAME)
    assert refusal.value.error_code == "secrets_unavailable"
    assert world.reports.lines == [("secrets_unavailable", f"not one line of printable ASCII: {KEY_NAME}")]


@pytest.mark.parametrize("value", ["", " ", "\n", " \t\r\n "])
def test_a_secret_of_nothing_but_space_is_an_empty_one(world: World, value: str) -> None:
    world.server.behaviour = parameters({KEY_NAME: value, PEPPER_NAME: "p"})
    with pytest.raises(UpstreamUnavailableError):
        world.secrets.value(KEY_NAME)
    assert world.reports.lines == [("secrets_unavailable", f"no such parameter, or an empty one: {KEY_NAME}")]


def test_an_outage_costs_one_try_in_fifteen_seconds(world: World) -> None:
    world.secrets.value(KEY_NAME)
    world.server.behaviour = answer(b"{}", "400 Bad Request")
    world.server.requests.clear()
    world.clock.advance(FRESH_SECONDS)
    for _ in range(COOLDOWN_SECONDS * 10):
        assert world.secrets.value(KEY_NAME) == CANARY
        world.clock.advance(0.1)
    assert len(world.server.requests) == 1
    world.server.behaviour = BOTH
    world.clock.advance(1)
    world.secrets.value(KEY_NAME)
    assert len(world.server.requests) == 2


def test_a_server_error_is_tried_once_more(world: World) -> None:
    def fail_once(connection: socket.socket, request: bytes) -> None:
        world.server.behaviour = BOTH
        answer(b"oops", "503 Service Unavailable")(connection, request)

    world.server.behaviour = fail_once
    assert world.secrets.value(KEY_NAME) == CANARY
    assert len(world.server.requests) == 2


def test_no_secret_is_in_any_text(world: World) -> None:
    world.secrets.value(KEY_NAME)
    for behaviour in (*BAD_ANSWERS, answer(json.dumps({"__type": CANARY, "message": CANARY}).encode(), "400 Bad")):
        world.server.behaviour = behaviour
        world.clock.advance(FRESH_SECONDS)
        world.secrets.value(KEY_NAME)
        with pytest.raises(SecretFetchError) as failure:
            read_parameters(world.client, NAMES)
        assert CANARY not in f"{failure.value!r} {failure.value}"
    assert CANARY not in f"{world.secrets!r} {world.secrets} {world.client!r} {world.reports.lines}"


def test_a_name_that_was_not_asked_for_is_not_there(world: World) -> None:
    with pytest.raises(UpstreamUnavailableError):
        world.secrets.value("/another")


@pytest.mark.parametrize("names", [(), tuple(f"/p{number}" for number in range(11))])
def test_one_call_reads_one_to_ten_secrets(world: World, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="1 to 10"):
        Secrets(world.client, names, world.clock, world.reports)


def test_without_credentials_there_is_a_reason_to_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(SecretFetchError, match="NoCredentialsError"):
        read_parameters(parameter_client(botocore.session.get_session(), REGION), NAMES)
