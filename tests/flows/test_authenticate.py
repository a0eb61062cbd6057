"""Who calls: API keys and access tokens from two headers, and nothing from anywhere else."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clocks import NOON, FakeClock, Reports
from tests.support.moto_table import CountedTable, moto_table
from tests.support.user_pool import CLIENT_ID, ISSUER, SUBJECT, KeySetSource, UserPool
from tollgate.domain.api_keys import SECRET_BYTES, ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.errors import AuthenticationError, StoreUnavailableError, UpstreamUnavailableError
from tollgate.domain.principals import CredentialKind, MaxTokensPolicy, Principal
from tollgate.flows.authenticate import MAX_CREDENTIAL_BYTES, Authenticator, principal_of_claims
from tollgate.providers.cognito import KeyFetchError, SigningKeys, TokenVerifier
from tollgate.storage.api_keys import ApiKeys

PEPPER = b"pepper-of-the-tests"
SEED = 20261120
NOW = datetime.fromtimestamp(NOON, UTC)


class World:
    """An authenticator on an empty table and a user pool, with a clock to turn."""

    def __init__(self, table: CountedTable, *, allow_test_keys: bool = False, cache_entries: int = 4096) -> None:
        self.table = table
        self.clock = FakeClock()
        self.pool = UserPool()
        self.source = KeySetSource(self.pool.key_set())
        self.api_keys = ApiKeys(table)
        self.random = random.Random(SEED)
        verifier = TokenVerifier(
            issuer=ISSUER,
            client_ids=frozenset({CLIENT_ID}),
            keys=SigningKeys(self.source.fetch, self.clock, Reports()),
            clock=self.clock,
        )
        self.authenticator = Authenticator(
            self.api_keys,
            verifier,
            lambda: PEPPER,
            self.clock,
            allow_test_keys=allow_test_keys,
            cache_entries=cache_entries,
        )

    def mint(self, mode: KeyMode = KeyMode.LIVE) -> str:
        return mint_api_key(mode, self.random.randbytes(SECRET_BYTES))

    def issue(self, mode: KeyMode = KeyMode.LIVE, **changes: object) -> str:
        """A stored key's text; the user is `u1` unless changed."""
        text = self.mint(mode)
        key_hash = hash_api_key(text, PEPPER)
        values: dict[str, object] = {"id": "key_1", "tenant_id": "main", "user_id": "u1", "mode": mode}
        values |= {"last_four": text[-4:], "created_at": NOW, "key_hash": key_hash} | changes
        self.api_keys.put_key(ApiKey(**values))  # type: ignore[arg-type]
        self.table.calls.clear()
        return text

    def call(self, text: str) -> Principal:
        return self.authenticator.principal_of({"x-api-key": text})

    def refusal(self, headers: dict[str, str]) -> AuthenticationError:
        with pytest.raises(AuthenticationError) as refusal:
            self.authenticator.principal_of(headers)
        return refusal.value


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def world(table: CountedTable) -> World:
    return World(table)


# --- Where credentials are read


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {"x-api-key": key},
        lambda key: {"authorization": f"Bearer {key}"},
        lambda key: {"authorization": f"bearer  {key} "},
        lambda key: {"x-api-key": f" {key}\t"},
        lambda key: {"x-api-key": "", "authorization": f"Bearer {key}"},
        lambda key: {"x-api-key": key, "authorization": "Bearer of-somebody-else"},
        lambda key: {"x-api-key": key, "authorization": "Basic dTpw"},
    ],
)
def test_a_key_is_taken_from_either_header_and_x_api_key_wins(world: World, headers: object) -> None:
    text = world.issue(id="key_5", max_tokens_policy=MaxTokensPolicy.REFUSE)
    principal = world.authenticator.principal_of(headers(text))  # type: ignore[operator]
    assert principal == Principal("main", "u1", CredentialKind.API_KEY, "key_5", MaxTokensPolicy.REFUSE)


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_an_access_token_is_taken_from_either_header(world: World, header: str) -> None:
    token = world.pool.access_token(NOON)
    value = f"Bearer {token}" if header == "authorization" else token
    principal = world.authenticator.principal_of({header: value})
    assert principal == Principal("main", SUBJECT, CredentialKind.ACCESS_TOKEN, CLIENT_ID)
    assert world.table.calls == {}


def test_no_identity_header_changes_the_caller(world: World) -> None:
    text = world.issue()
    spoofs = {"x-user-id": "u2", "x-tenant-id": "acme", "x-platform-user-id": "u2", "x-amzn-oidc-identity": "u2"}
    assert world.authenticator.principal_of(spoofs | {"x-api-key": text}) == world.call(text)
    assert "No credential" in world.refusal(spoofs).public_message


def test_what_a_token_claims_about_tenant_plan_and_groups_is_not_read(world: World) -> None:
    claims = {"custom:tenant": "acme", "custom:plan": "enterprise", "cognito:groups": ["admins"], "username": "eve"}
    token = world.pool.access_token(NOON, **claims)
    assert world.call(token) == world.call(world.pool.access_token(NOON))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Basic dTpw"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "tg_live_without_scheme"},
        {"authorization": "Bearer sk-ant-api03-x"},
        {"authorization": "Bearer a.b"},
        {"authorization": "Bearer a.b.c.d"},
        {"authorization": "Bearer .."},
        {"x-api-key": "🔑.🔑.🔑"},
        {"x-api-key": "tg_live_" + "é" * 36},
        {"x-api-key": "\ud800.\ud800.\ud800"},
    ],
)
def test_what_is_no_credential_of_ours_gets_one_and_the_same_answer(world: World, headers: dict[str, str]) -> None:
    refusal = world.refusal(headers)
    assert (refusal.public_message, refusal.error_code) == ("The credential is not valid.", "invalid_credentials")
    assert world.table.calls == {}


@pytest.mark.parametrize(("extra_bytes", "accepted"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_a_header_beyond_8_kb_is_refused_before_it_is_parsed(
    world: World, header: str, extra_bytes: int, *, accepted: bool
) -> None:
    prefix = "Bearer " if header == "authorization" else ""
    value = (prefix + world.pool.access_token(NOON)).ljust(MAX_CREDENTIAL_BYTES + extra_bytes)
    if accepted:
        assert world.authenticator.principal_of({header: value}).user_id == SUBJECT
    else:
        world.refusal({header: value})
    assert (world.source.fetches > 0) is accepted


def test_a_header_of_five_megabytes_costs_nothing(world: World) -> None:
    world.refusal({"authorization": "Bearer " + "a." * 2_500_000})
    assert world.source.fetches == 0


# --- API keys


def test_a_key_costs_one_read_and_then_none(world: World) -> None:
    text = world.issue()
    for _ in range(100):
        world.call(text)
        world.clock.advance(0.4)
    assert world.table.calls == {"GetItem": 1}


def test_200_000_look_alikes_are_refused_without_a_single_read(world: World) -> None:
    alphabet = string.digits + string.ascii_letters
    for _ in range(200_000):
        text = "tg_live_" + "".join(world.random.choices(alphabet, k=36))
        try:
            world.call(text)
        except AuthenticationError:
            continue
        pytest.fail(f"accepted {text} (seed {SEED})")
    assert world.table.calls == {}


def test_unknown_malformed_and_deleted_keys_get_the_same_answer(world: World) -> None:
    deleted = world.issue()
    world.table.client.delete_item(
        TableName=world.table.name, Key={"PK": {"S": f"KEY#{hash_api_key(deleted, PEPPER)}"}, "SK": {"S": "KEY"}}
    )
    unknown = world.mint()
    answers = {
        (refusal.public_message, refusal.error_code)
        for refusal in (world.refusal({"x-api-key": text}) for text in (unknown, unknown[:-1], deleted))
    }
    assert answers == {("The credential is not valid.", "invalid_credentials")}


def test_an_unknown_well_formed_key_is_looked_up_once_a_minute_at_most(world: World) -> None:
    unknown = world.mint()
    for _ in range(50):
        world.refusal({"x-api-key": unknown})
    assert world.table.calls == {"GetItem": 1}
    world.clock.advance(50)
    world.refusal({"x-api-key": unknown})
    assert world.table.calls == {"GetItem": 2}


def test_a_flood_of_unknown_keys_does_not_push_out_a_known_one(table: CountedTable) -> None:
    world = World(table, cache_entries=10)
    text = world.issue()
    world.call(text)
    for _ in range(30):
        world.refusal({"x-api-key": world.mint()})
    world.table.calls.clear()
    world.call(text)
    assert world.table.calls == {}


def test_more_known_keys_than_the_memory_holds_only_cost_reads(table: CountedTable) -> None:
    world = World(table, cache_entries=3)
    texts = [world.issue(user_id=f"u{number}") for number in range(6)]
    for _ in range(2):
        assert [world.call(text).user_id for text in texts] == [f"u{number}" for number in range(6)]
    assert world.table.calls == {"GetItem": 12}


@pytest.mark.parametrize(("age_seconds", "refused"), [(49, False), (50, True), (59, True)])
def test_a_revocation_takes_effect_within_60_seconds(world: World, age_seconds: int, *, refused: bool) -> None:
    text = world.issue()
    world.call(text)
    world.api_keys.revoke_key(hash_api_key(text, PEPPER), NOW)
    world.clock.advance(age_seconds)
    if refused:
        refusal = world.refusal({"x-api-key": text})
        assert (refusal.error_code, refusal.public_message) == ("revoked", "The API key has been revoked.")
    else:
        assert world.call(text).user_id == "u1"


def test_a_key_in_constant_use_is_read_again_before_a_minute_is_over(world: World) -> None:
    text = world.issue()
    for _ in range(120):
        world.call(text)
        world.clock.advance(1)
    assert world.table.calls == {"GetItem": 3}


@pytest.mark.parametrize(("offset_seconds", "refused"), [(-1, False), (0, True), (1, True)])
def test_a_key_is_refused_from_its_expiry_on_though_it_is_remembered(
    world: World, offset_seconds: int, *, refused: bool
) -> None:
    text = world.issue(expires_at=NOW + timedelta(seconds=30))
    world.call(text)
    world.clock.advance(30 + offset_seconds)
    if refused:
        assert world.refusal({"x-api-key": text}).error_code == "expired"
    else:
        assert world.call(text).user_id == "u1"
    assert world.table.calls == {"GetItem": 1}


def test_a_revoked_key_is_remembered_too(world: World) -> None:
    text = world.issue(revoked_at=NOW)
    for _ in range(20):
        assert world.refusal({"x-api-key": text}).error_code == "revoked"
    assert world.table.calls == {"GetItem": 1}


def test_a_test_key_is_unknown_where_test_keys_are_not_allowed(world: World) -> None:
    refusal = world.refusal({"x-api-key": world.issue(KeyMode.TEST)})
    assert refusal.error_code == "invalid_credentials"
    assert world.table.calls == {}


def test_a_test_key_works_where_test_keys_are_allowed(table: CountedTable) -> None:
    world = World(table, allow_test_keys=True)
    assert world.call(world.issue(KeyMode.TEST)).user_id == "u1"


def test_a_key_is_not_found_under_another_pepper(world: World) -> None:
    text = world.mint()
    world.issue(key_hash=hash_api_key(text, b"another pepper"))
    assert world.refusal({"x-api-key": text}).error_code == "invalid_credentials"


def test_the_key_itself_is_stored_and_remembered_nowhere(world: World) -> None:
    text = world.issue()
    world.call(text)
    world.refusal({"x-api-key": world.mint()})
    secret = text.removeprefix("tg_live_")
    assert secret not in repr(world.table.items())
    assert secret not in repr(vars(world.authenticator._known)) + repr(vars(world.authenticator._unknown))


def test_when_the_table_is_silent_the_caller_is_not_called_invalid(world: World) -> None:
    text = world.issue()

    def drop(**_: object) -> None:
        raise StoreUnavailableError("no answer")

    world.table.client.meta.events.register("before-call.dynamodb", drop)
    with pytest.raises(StoreUnavailableError):
        world.call(text)


def test_when_no_keys_can_be_had_the_token_is_not_called_invalid(world: World) -> None:
    world.source.failure = KeyFetchError("down")
    with pytest.raises(UpstreamUnavailableError) as refusal:
        world.call(world.pool.access_token(NOON))
    assert refusal.value.error_code == "sign_in_unavailable"


def test_two_users_one_after_the_other_are_never_confused(world: World) -> None:
    first, second = world.issue(user_id="u1"), world.issue(user_id="u2", tenant_id="acme")
    for _ in range(5):
        assert world.call(first).user_id == "u1"
        assert (world.call(second).tenant_id, world.call(second).user_id) == ("acme", "u2")
        assert world.call(world.pool.access_token(NOON)).user_id == SUBJECT


def test_the_accepted_key_is_at_hand_without_another_read(world: World) -> None:
    text = world.issue(id="key_5")
    world.call(text)
    found = world.authenticator.api_key_of({"x-api-key": text})
    assert found is not None
    assert found.id == "key_5"
    assert world.authenticator.api_key_of({"authorization": f"Bearer {world.pool.access_token(NOON)}"}) is None
    assert world.table.calls == {"GetItem": 1}


# --- Claims that API Gateway has verified


CLAIMS = {"sub": SUBJECT, "client_id": CLIENT_ID, "token_use": "access", "iss": ISSUER, "exp": "1795179600"}
CLIENTS = frozenset({CLIENT_ID})


def test_the_claims_of_an_access_token_name_the_caller() -> None:
    principal = principal_of_claims(CLAIMS | {"custom:tenant": "acme", "username": "eve"}, CLIENTS)
    assert principal == Principal("main", SUBJECT, CredentialKind.ACCESS_TOKEN, CLIENT_ID)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sub", None),
        ("sub", ""),
        ("sub", ["a"]),
        ("client_id", None),
        ("client_id", "another-client"),
        ("client_id", ""),
        ("client_id", [CLIENT_ID]),
        ("token_use", None),
        ("token_use", "id"),
        ("token_use", ["access"]),
    ],
)
def test_claims_of_anything_else_are_refused(name: str, value: object) -> None:
    with pytest.raises(AuthenticationError):
        principal_of_claims({**CLAIMS, name: value}, CLIENTS)


@pytest.mark.parametrize("name", ["sub", "client_id", "token_use"])
def test_claims_without_a_required_one_are_refused(name: str) -> None:
    with pytest.raises(AuthenticationError):
        principal_of_claims({key: value for key, value in CLAIMS.items() if key != name}, CLIENTS)


def test_an_id_tokens_claims_are_refused() -> None:
    claims = {"sub": SUBJECT, "aud": CLIENT_ID, "token_use": "id", "custom:plan": "enterprise"}
    with pytest.raises(AuthenticationError):
        principal_of_claims(claims, CLIENTS)


# --- What a key brings with it


def test_a_keys_models_and_limits_travel_with_its_caller(world: World) -> None:
    text = world.issue(
        id="key_5",
        first_id="key_3",
        allowed_models=frozenset({"claude-haiku-4-5"}),
        budget_tokens=900,
        requests_per_minute=30,
        burst_requests=4,
    )
    principal = world.call(text)
    assert principal.allowed_models == {"claude-haiku-4-5"}
    assert principal.limits is not None
    assert (principal.limits.id, principal.limits.budget_tokens) == ("key_3", 900)
    assert (principal.limits.requests_per_minute, principal.limits.burst_requests) == (30, 4)


def test_an_access_token_and_a_plain_key_have_no_limits_of_their_own(world: World) -> None:
    for credential in (world.pool.access_token(NOON), world.issue()):
        principal = world.call(credential)
        assert (principal.limits, principal.allowed_models) == (None, frozenset())
