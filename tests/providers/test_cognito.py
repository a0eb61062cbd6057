"""Access tokens: what is accepted, every known way to forge one, and what happens when the keys cannot be had."""

from __future__ import annotations

import base64
import json
import socket
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clocks import NOON, FakeClock, Reports
from tests.support.scripted_http import ScriptedServer, answer
from tests.support.user_pool import CLIENT_ID, ISSUER, SUBJECT, KeySetSource, UserPool, b64, private_key
from tollgate.domain.errors import AuthenticationError, TollgateError, UpstreamUnavailableError
from tollgate.providers.cognito import (
    COOLDOWN_SECONDS,
    FRESH_SECONDS,
    LEEWAY_SECONDS,
    LONGEST_LIFE_SECONDS,
    MAX_KEY_SET_BYTES,
    MAX_TOKEN_BYTES,
    STALE_SECONDS,
    AccessToken,
    KeyFetchError,
    KeySetUrl,
    SigningKeys,
    TokenVerifier,
    signing_keys_of,
)


class World:
    """One pool, a verifier for it, a clock to turn and a key source that can fail."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.pool = UserPool()
        self.source = KeySetSource(self.pool.key_set())
        self.reports = Reports()
        self.verifier = self.new_verifier()

    def new_verifier(self) -> TokenVerifier:
        keys = SigningKeys(self.source.fetch, self.clock, self.reports)
        return TokenVerifier(issuer=ISSUER, client_ids=frozenset({CLIENT_ID, "second"}), keys=keys, clock=self.clock)

    def accepts(self, token: str) -> AccessToken:
        return self.verifier.verify(token)

    def refuses(self, token: str) -> AuthenticationError:
        with pytest.raises(AuthenticationError) as refusal:
            self.verifier.verify(token)
        return refusal.value

    def token(self, **changes: Any) -> str:  # noqa: ANN401  any JSON
        return self.pool.access_token(self.clock.seconds, **changes)


@pytest.fixture
def world() -> World:
    return World()


# --- What is accepted


def test_a_good_access_token_tells_subject_and_client(world: World) -> None:
    assert world.accepts(world.token()) == AccessToken(SUBJECT, CLIENT_ID, NOON + 3600)
    assert world.accepts(world.token(client_id="second")).client_id == "second"


def test_many_tokens_cost_one_fetch_an_hour(world: World) -> None:
    for _ in range(60):
        world.accepts(world.token())
        world.clock.advance(60)
    assert world.source.fetches == 1
    world.accepts(world.token())
    assert world.source.fetches == 2


# --- Forged tokens


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS256", "RS257"])
def test_a_token_without_a_signature_is_refused(world: World, algorithm: str) -> None:
    world.refuses(world.pool.unsigned(world.pool.access_claims(NOON), algorithm))


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
def test_the_public_key_as_an_hmac_secret_is_refused(world: World, encoding: serialization.Encoding) -> None:
    public = private_key("pool").public_key()
    secret = public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    claims = world.pool.access_claims(NOON)
    world.refuses(world.pool.hmac_signed(claims, secret))
    world.refuses(world.pool.hmac_signed(claims, secret, alg="RS256"))
    world.refuses(world.pool.hmac_signed(claims, b64(secret).encode()))
    world.refuses(world.pool.hmac_signed(claims, b""))


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
def test_the_right_key_under_another_algorithm_is_refused(world: World, algorithm: str) -> None:
    world.refuses(world.pool.signed_with(algorithm, world.pool.access_claims(NOON)))


def test_a_foreign_pools_token_is_refused_even_under_our_key_id(world: World) -> None:
    foreign = UserPool(key_name="foreign")
    foreign.key_id = world.pool.key_id
    world.refuses(foreign.access_token(NOON))
    world.refuses(UserPool("https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Other").access_token(NOON))


def test_a_changed_signature_or_payload_is_refused(world: World) -> None:
    head, payload, signature = world.token().split(".")
    other = world.token(sub="00000000-0000-0000-0000-000000000000").split(".")[1]
    world.refuses(f"{head}.{other}.{signature}")
    world.refuses(f"{head}.{payload}.{signature[:-4]}AAAA")
    world.refuses(f"{head}.{payload}.")
    world.refuses(f"{head}..{signature}")


def test_padded_or_dirty_base64_is_refused(world: World) -> None:
    head, payload, signature = world.token().split(".")
    world.refuses(f"{head}.{payload}.{signature}\n")
    world.refuses(f"{head}.{payload} .{signature}")
    world.refuses(f"{head}.{payload}+.{signature}")
    world.refuses(f" {head}.{payload}.{signature}")


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"crit": "exp"},
        {"b64": False},
        {"b64": True},
        {"kid": None},
        {"kid": 7},
        {"kid": ["pool-1"]},
        {"kid": "unknown"},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": ""},
        {"alg": None},
        {"alg": ["RS256"]},
        {"alg": {"RS256": 1}},
        {"alg": "rs256"},
    ],
)
def test_a_header_that_asks_for_more_than_rs256_is_refused_though_signed(world: World, header: dict[str, Any]) -> None:
    world.refuses(world.pool.sign(world.pool.access_claims(NOON), **header))


def test_addresses_and_keys_in_the_header_are_neither_fetched_nor_believed(world: World) -> None:
    thief = UserPool(key_name="thief")
    with ScriptedServer(answer(thief.key_set())) as server:
        for own in ({}, {"kid": world.pool.key_id}):
            header = {
                "jku": f"{server.url}/jwks.json",
                "x5u": f"{server.url}/cert.pem",
                "jwk": thief.jwk(),
                "x5c": [base64.b64encode(b"certificate").decode()],
            }
            world.refuses(thief.sign(thief.access_claims(NOON), **header, **own))
        world.accepts(world.pool.sign(world.pool.access_claims(NOON), jku=f"{server.url}/jwks.json"))
        assert server.requests == []


# --- Claims


@pytest.mark.parametrize("issuer_is_right", [True, False])
@pytest.mark.parametrize("client_is_right", [True, False])
@pytest.mark.parametrize("use_is_right", [True, False])
@pytest.mark.parametrize("key_is_right", [True, False])
@pytest.mark.parametrize("kind", ["access", "id"])
def test_only_all_four_together_make_a_caller(
    world: World, kind: str, *, issuer_is_right: bool, client_is_right: bool, use_is_right: bool, key_is_right: bool
) -> None:
    signer = world.pool if key_is_right else UserPool(key_name="foreign")
    changes = {
        "iss": ISSUER if issuer_is_right else ISSUER + "x",
        ("client_id" if kind == "access" else "aud"): CLIENT_ID if client_is_right else "another",
        "token_use": "access" if use_is_right else "id",
    }
    make = signer.access_token if kind == "access" else signer.id_token
    token = make(NOON, **changes)
    if kind == "access" and issuer_is_right and client_is_right and use_is_right and key_is_right:
        world.accepts(token)
    else:
        world.refuses(token)


def test_an_id_token_is_no_access_token_even_when_it_names_a_client(world: World) -> None:
    world.refuses(world.pool.id_token(NOON))
    world.refuses(world.pool.id_token(NOON, client_id=CLIENT_ID))


@pytest.mark.parametrize("name", ["sub", "iss", "client_id", "token_use", "exp", "iat"])
@pytest.mark.parametrize("value", [None, "", 0, True, [], {}, ["access"], "x" * 129])
def test_a_required_claim_that_is_missing_or_of_another_type_is_refused(world: World, name: str, value: object) -> None:
    if (name, value) == ("iat", 0):
        world.accepts(world.token(iat=0))  # long ago is fine, it is a whole number
    else:
        world.refuses(world.token(**{name: value}))


@pytest.mark.parametrize(("past_seconds", "accepted"), [(-1, True), (0, False), (1, False)])
def test_a_token_ends_half_a_minute_after_its_expiry(world: World, past_seconds: int, *, accepted: bool) -> None:
    token = world.token(exp=NOON - LEEWAY_SECONDS - past_seconds)
    if accepted:
        world.accepts(token)
    else:
        assert world.refuses(token).error_code == "expired"


@pytest.mark.parametrize(("beyond_seconds", "accepted"), [(-1, True), (0, False), (1, False)])
def test_a_token_that_lives_longer_than_cognito_lets_it_is_refused(
    world: World, beyond_seconds: int, *, accepted: bool
) -> None:
    token = world.token(exp=NOON + LONGEST_LIFE_SECONDS + LEEWAY_SECONDS + beyond_seconds)
    if accepted:
        world.accepts(token)
    else:
        assert world.refuses(token).error_code == "invalid_credentials"


@pytest.mark.parametrize("name", ["iat", "nbf"])
@pytest.mark.parametrize(("ahead_seconds", "accepted"), [(-1, True), (0, True), (1, False)])
def test_a_token_from_the_future_is_refused(world: World, name: str, ahead_seconds: int, *, accepted: bool) -> None:
    token = world.token(**{name: NOON + LEEWAY_SECONDS + ahead_seconds})
    if accepted:
        world.accepts(token)
    else:
        world.refuses(token)


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "spelled",
    [
        f'"{NOON}"',
        f"{NOON}.0",
        f"{NOON / 1e9}e9",
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "true",
        f"[{NOON}]",
        "{}",
    ],
)
def test_a_time_that_is_no_plain_whole_number_is_refused(world: World, name: str, spelled: str) -> None:
    claims = json.dumps(world.pool.access_claims(NOON, **{name: "PLACE"})).replace('"PLACE"', spelled)
    world.refuses(world.pool.sign_text(claims))


def test_only_a_token_that_is_good_otherwise_is_called_expired(world: World) -> None:
    long_ago = NOON - 7200
    for changes in ({"client_id": "another"}, {"iss": "https://elsewhere"}, {"token_use": "id"}):
        assert world.refuses(world.token(exp=long_ago, **changes)).error_code == "invalid_credentials"
    foreign = UserPool(key_name="foreign").access_token(long_ago)
    assert world.refuses(foreign).error_code == "invalid_credentials"


# --- Size and form


@pytest.mark.parametrize(("extra_bytes", "parsed"), [(0, True), (1, False)])
def test_a_huge_token_is_refused_before_it_is_parsed(world: World, extra_bytes: int, *, parsed: bool) -> None:
    head, _, signature = world.token().split(".")
    room = MAX_TOKEN_BYTES - len(head) - len(signature) - 2
    room -= room % 4  # whole base64 groups
    signature += "A" * (MAX_TOKEN_BYTES - len(head) - room - len(signature) - 2)
    signature = signature if len(signature) % 4 != 1 else signature[:-1]
    world.refuses(f"{head}.{'A' * (room + 4 * extra_bytes)}.{signature}")
    assert (world.source.fetches > 0) is parsed


@pytest.mark.parametrize("depth", [100, 2000])
def test_a_deeply_nested_token_is_refused(world: World, depth: int) -> None:
    world.refuses(world.pool.sign_text("[" * depth + "]" * depth))
    nested = b64(b'{"alg":' + b"[" * depth + b"]" * depth + b"}")
    world.refuses(f"{nested}.e30.AAAA")


@pytest.mark.parametrize("payload", ["", "null", "[]", '"text"', "7", "{", '{"sub":', "\ufeff{}", "{}{}"])
def test_a_payload_that_is_no_object_is_refused_though_signed(world: World, payload: str) -> None:
    world.refuses(world.pool.sign_text(payload))


@given(st.text(max_size=200) | st.text(alphabet="eyJhbGciOiJSUzI1NiJ9._-=", max_size=200))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_is_refused_and_raises_nothing_else(text: str) -> None:
    world = World()
    world.refuses(text)
    world.refuses(f"{text}.{text}.{text}")


@given(st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_good_token_with_one_character_changed_is_refused(data: st.DataObject) -> None:
    world = World()
    token = world.token()
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from([char for char in "ABCDEFwxyz0189-_." if char != token[place]]))
    world.refuses(token[:place] + other + token[place + 1 :])


def test_a_verifier_without_issuer_or_clients_is_not_built(world: World) -> None:
    keys = SigningKeys(world.source.fetch, world.clock, world.reports)
    with pytest.raises(ValueError, match="anybody"):
        TokenVerifier(issuer="", client_ids=frozenset({CLIENT_ID}), keys=keys, clock=world.clock)
    with pytest.raises(ValueError, match="anybody"):
        TokenVerifier(issuer=ISSUER, client_ids=frozenset(), keys=keys, clock=world.clock)


# --- Which keys may sign


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"use": None},
        {"alg": "RS512"},
        {"alg": None},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "EC"},
        {"key_ops": ["sign"]},
        {"key_ops": ["encrypt"]},
        {"key_ops": ["verify", "encrypt"]},
        {"d": "AQAB"},
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"n": "AQAB"},
        {"n": None},
        {"n": 7},
        {"e": "!!!!"},
    ],
)
def test_a_key_that_is_not_for_verifying_rs256_is_left_out(changes: dict[str, Any]) -> None:
    pool, odd = UserPool(), UserPool(key_name="foreign")
    keys = signing_keys_of(pool.key_set(odd.jwk(**changes)))
    assert set(keys) == {pool.key_id}


def test_an_rsa_key_below_2048_bits_is_left_out() -> None:
    numbers = private_key("weak", 1024).public_key().public_numbers()
    weak = b64(numbers.n.to_bytes(128))
    assert set(signing_keys_of(UserPool().key_set(UserPool(key_name="foreign").jwk(n=weak)))) == {"pool-1"}


def test_a_key_that_says_it_verifies_is_taken() -> None:
    assert set(signing_keys_of(UserPool().key_set(UserPool(key_name="foreign").jwk(key_ops=["verify"])))) == {
        "pool-1",
        "foreign-1",
    }


def test_a_symmetric_key_in_the_set_verifies_nothing(world: World) -> None:
    oct_key = {"kty": "oct", "use": "sig", "alg": "HS256", "kid": "oct-1", "k": b64(b"secret")}
    world.source.document = world.pool.key_set(oct_key)
    world.refuses(world.pool.hmac_signed(world.pool.access_claims(NOON), b"secret", kid="oct-1"))
    world.refuses(world.pool.hmac_signed(world.pool.access_claims(NOON), b"secret", kid="oct-1", alg="RS256"))
    world.accepts(world.token())


GARBAGE = [
    b"",
    b"<html>404</html>",
    b"null",
    b"[]",
    b"{}",
    b'{"keys": null}',
    b'{"keys": {}}',
    b'{"keys": []}',
    b'{"keys": [null, 7, "x", []]}',
    b"\xff\xfe",
    b"[" * 50_000,
    b'{"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "a"}]}',
]


@pytest.mark.parametrize("document", GARBAGE)
def test_garbage_is_no_key_set(document: bytes) -> None:
    with pytest.raises(KeyFetchError):
        signing_keys_of(document)


@pytest.mark.parametrize("document", GARBAGE)
def test_garbage_does_not_replace_good_keys(world: World, document: bytes) -> None:
    world.accepts(world.token())
    world.source.document = document
    world.clock.advance(FRESH_SECONDS)
    world.accepts(world.token())
    assert world.source.fetches == 2
    assert [name for name, _ in world.reports.lines] == ["key_set_unavailable"]


# --- Rotation, outage, flood


def test_a_rotated_key_is_found_once_the_cooldown_is_over(world: World) -> None:
    world.accepts(world.token())
    old = world.pool.jwk()
    world.pool = UserPool(key_name="rotated")
    world.source.document = world.pool.key_set(old)
    world.clock.advance(COOLDOWN_SECONDS)
    world.accepts(world.token())
    world.accepts(UserPool().access_token(world.clock.seconds))
    assert world.source.fetches == 2


def test_a_withdrawn_key_is_refused_after_the_next_refresh(world: World) -> None:
    withdrawn = world.token(exp=NOON + 20_000)
    world.accepts(withdrawn)
    world.source.document = UserPool(key_name="rotated").key_set()
    world.clock.advance(FRESH_SECONDS)
    world.refuses(withdrawn)


@pytest.mark.parametrize(("waited_seconds", "fetches"), [(-1, 1), (0, 2), (1, 2)])
def test_an_unknown_key_id_fetches_again_only_after_the_cooldown(
    world: World, waited_seconds: int, fetches: int
) -> None:
    world.accepts(world.token())
    world.clock.advance(COOLDOWN_SECONDS + waited_seconds)
    world.refuses(world.pool.sign(world.pool.access_claims(NOON), kid="guess"))
    assert world.source.fetches == fetches


def test_a_flood_of_unknown_key_ids_causes_no_fetch_storm(world: World) -> None:
    for number in range(1000):
        world.refuses(world.pool.sign({"number": number}, kid=f"guess-{number}"))
        world.clock.advance(0.1)
    assert world.source.fetches == 4  # at 0, 30, 60 and 90 seconds


def test_a_flood_during_an_outage_causes_no_fetch_storm_either(world: World) -> None:
    world.source.failure = KeyFetchError("down")
    for _ in range(290):
        with pytest.raises(UpstreamUnavailableError):
            world.verifier.verify(world.token())
        world.clock.advance(0.1)
    assert world.source.fetches == 1
    assert world.reports.lines == [("key_set_unavailable", "down")]


@pytest.mark.parametrize(("before_end_seconds", "served"), [(1, True), (0, False), (-1, False)])
def test_the_last_good_keys_serve_a_day_of_outage(world: World, before_end_seconds: int, *, served: bool) -> None:
    world.accepts(world.token())
    world.source.failure = KeyFetchError("down")
    world.clock.advance(STALE_SECONDS - before_end_seconds)
    if served:
        world.accepts(world.token())
    else:
        with pytest.raises(UpstreamUnavailableError) as refusal:
            world.verifier.verify(world.token())
        assert refusal.value.error_code == "sign_in_unavailable"


def test_after_an_outage_the_keys_are_fresh_again(world: World) -> None:
    world.accepts(world.token())
    world.source.failure = KeyFetchError("down")
    world.clock.advance(STALE_SECONDS)
    with pytest.raises(UpstreamUnavailableError):
        world.verifier.verify(world.token())
    world.source.failure = None
    world.clock.advance(COOLDOWN_SECONDS)
    world.accepts(world.token())


def test_an_outage_at_the_first_token_is_not_blamed_on_the_caller(world: World) -> None:
    world.source.failure = KeyFetchError("down")
    with pytest.raises(TollgateError) as refusal:
        world.verifier.verify(world.token())
    assert not isinstance(refusal.value, AuthenticationError)


# --- The fetch itself


class TickingClock(FakeClock):
    """Moves two seconds with every look, as if each part took so long to come."""

    def now_seconds(self) -> float:
        self.seconds += 2
        return self.seconds


def fetch_from(server: ScriptedServer, clock: FakeClock | None = None) -> bytes:
    return KeySetUrl(f"{server.url}/pool/.well-known/jwks.json", clock or FakeClock()).fetch()


def test_the_key_set_is_fetched_by_one_plain_get() -> None:
    with ScriptedServer(answer(b'{"keys": []}')) as server:
        assert fetch_from(server) == b'{"keys": []}'
        assert [request.split(b" HTTP")[0] for request in server.requests] == [b"GET /pool/.well-known/jwks.json"]


@pytest.mark.parametrize(
    "behaviour",
    [
        answer(b"no", "404 Not Found"),
        answer(b"no", "500 Internal Server Error"),
        answer(b"", "301 Moved Permanently", Location="http://127.0.0.1:1/jwks.json"),
        answer(b"x" * (MAX_KEY_SET_BYTES + 1)),
        lambda connection, _: connection.sendall(b"not http\r\n\r\n"),
        lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        lambda connection, _: None,
    ],
)
def test_a_bad_answer_is_one_failure_and_not_followed(behaviour: Any) -> None:  # noqa: ANN401  a Behaviour
    with ScriptedServer(behaviour) as server:
        with pytest.raises(KeyFetchError):
            fetch_from(server)
        assert len(server.requests) == 1


def test_an_answer_of_exactly_the_largest_size_is_taken() -> None:
    with ScriptedServer(answer(b"x" * MAX_KEY_SET_BYTES)) as server:
        assert len(fetch_from(server)) == MAX_KEY_SET_BYTES


def test_a_server_that_drips_is_given_up() -> None:
    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not server.closing.wait(0.01):
            connection.sendall(b" ")

    with ScriptedServer(drip) as server, pytest.raises(KeyFetchError, match="too slowly"):
        fetch_from(server, TickingClock())


@pytest.mark.slow
def test_a_server_that_is_silent_is_given_up_after_two_seconds() -> None:
    def stay_silent(_connection: socket.socket, _request: bytes) -> None:
        server.closing.wait(5)

    with ScriptedServer(stay_silent) as server, pytest.raises(KeyFetchError, match="TimeoutError"):
        fetch_from(server)


def test_a_closed_port_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(KeyFetchError, match="ConnectionRefusedError"):
        KeySetUrl(f"http://127.0.0.1:{port}/jwks.json", FakeClock()).fetch()
