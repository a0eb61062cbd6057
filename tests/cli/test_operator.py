"""`tollgate users`, `usage`, `keys`, `requests`, `reconcile`, `margin`, `export` and `notices`, at a whole table."""

from __future__ import annotations

import csv
import io
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from typer.testing import CliRunner, Result

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.cli.conftest import aws_client
from tests.support.moto_table import NAME, REGION, moto_table
from tests.support.operator_world import MODEL, OperatorWorld
from tests.support.scripted_http import ScriptedServer, answer
from tests.support.subscriptions import a_subscriber, a_subscription
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.overage import Span, Window
from tollgate.flows.message_calls import Standing
from tollgate.flows.notices import UsageThresholds
from tollgate.providers.stripe_client import StripeConnection
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.notices import Notices
from tollgate.storage.overage import OverageAccounts
from tollgate.storage.subscriptions import Subscriptions
from tollgate_cli.app import app
from tollgate_cli.connections import Connections

SECRET = mint_api_key(KeyMode.LIVE, bytes(range(32)))
ADMIN_KEY = "sk-ant-admin-canary"
STRIPE_KEY = "sk_test_canary"


class Operator:
    """Somebody at a terminal."""

    def __init__(self, world: OperatorWorld) -> None:
        self.world = world
        self.environ: dict[str, str] = {"STRIPE_SECRET_KEY": STRIPE_KEY}
        self.before_queries: Callable[..., None] | None = None
        """What happens in the table before each query of the command."""
        self.stripe = StripeWorld(now=world.now, seed=1, webhook_secret="whsec_x", account_id="acct_1")

    def __call__(self, *arguments: str, width: int = 200) -> Result:
        connections = Connections(
            environ=self.environ,
            aws_client=self._client,
            stripe_wire=InProcess(self.stripe),
            now=lambda: self.world.now,
            pause=self.world.clock.pause,
        )
        runner = CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"})
        result = runner.invoke(app, [*arguments, "--table", NAME], obj=connections)
        for canary in (SECRET, ADMIN_KEY, STRIPE_KEY, hash_api_key(SECRET, b"pepper")):
            assert canary not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "nobody foresaw" not in result.output
        return result

    def _client(self, service: str, **where: str) -> Any:  # noqa: ANN401  any of boto3's
        made = aws_client(service, **({"region_name": REGION} | where))
        if service == "dynamodb" and self.before_queries is not None:
            made.meta.events.register("before-call.dynamodb.Query", self.before_queries)
        return made

    def json(self, *arguments: str, status: int = 0) -> Any:  # noqa: ANN401  any JSON
        result = self(*arguments, "--json")
        assert result.exit_code == status, result.output
        return json.loads(result.stdout)

    def says(self, *arguments: str, status: int = 0) -> str:
        result = self(*arguments)
        assert result.exit_code == status, result.output
        return " ".join(result.output.split())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[OperatorWorld]:
    with moto_table(monkeypatch) as table:
        made = OperatorWorld(table)
        made.add_user("ada", "pro")
        made.pass_time(minutes=1)
        made.add_user("bob")
        yield made


@pytest.fixture
def tollgate(world: OperatorWorld) -> Operator:
    return Operator(world)


def use(world: OperatorWorld) -> None:
    """Something of everything."""
    world.call("ada", 1_000)
    world.call("ada", 2_000, estimated=True, written_off=77)
    world.crash("bob", 500)
    world.pass_time(minutes=5)
    world.sweep("bob")
    world.call("bob", 300)


class TestUsers:
    def test_are_listed_in_the_order_in_which_they_came(self, tollgate: Operator) -> None:
        assert [user["user_id"] for user in tollgate.json("users", "list")["users"]] == ["ada", "bob"]
        assert "ada@example.com" in tollgate.says("users", "list")

    def test_are_listed_page_by_page_without_a_scan(self, tollgate: Operator, world: OperatorWorld) -> None:
        for number in range(30):
            world.pass_time(seconds=1)
            world.add_user(f"user-{number:02d}")
        world.table.calls.clear()
        seen: list[str] = []
        after = ""
        while True:
            page = tollgate.json("users", "list", "--limit", "7", "--after", after)
            seen += [user["user_id"] for user in page["users"]]
            after = page["next_after"]
            if after is None:
                break
        assert seen == ["ada", "bob", *(f"user-{number:02d}" for number in range(30))]

    def test_can_be_narrowed_to_a_plan(self, tollgate: Operator) -> None:
        assert [user["user_id"] for user in tollgate.json("users", "list", "--plan", "pro")["users"]] == ["ada"]

    def test_are_found_by_address_in_any_case(self, tollgate: Operator) -> None:
        assert tollgate.json("users", "find", "BOB@example.com")["user_id"] == "bob"
        assert "No user has the address" in tollgate.says("users", "find", "eve@example.com", status=1)

    def test_show_how_they_stand(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        shown = tollgate.json("users", "show", "ada@example.com")
        assert shown["running_period"]["used_tokens"] == 3_000
        assert shown["running_period"]["written_off_tokens"] == 77
        assert "3,000 of 2,000,000 tokens" in tollgate.says("users", "show", "ada")

    def test_that_are_none_are_said_to_be_none(self, tollgate: Operator) -> None:
        assert "There is no user eve" in tollgate.says("usage", "eve", status=1)

    def test_cannot_paint_the_terminal(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.users.put_email("main", "bob", "\x1b[2J[red]bob@example.com")
        shown = tollgate("users", "list").output
        assert "\x1b" not in shown
        assert "[red]bob@example.com" in shown


def test_usage_tells_periods_and_days_with_what_is_no_plain_call(tollgate: Operator, world: OperatorWorld) -> None:
    use(world)
    told = tollgate.json("usage", "ada")
    [period] = told["periods"]
    assert (period["settled_tokens"], period["written_off_tokens"], period["requests"]) == (3_000, 77, 2)
    [day] = told["days"]
    assert (day["day"], day["requests"], day["estimated_requests"]) == ("2026-11-20", 2, 1)
    [day] = tollgate.json("usage", "bob")["days"]
    assert (day["charged_tokens"], day["expired_requests"]) == (800, 1)
    assert "3,000" in tollgate.says("usage", "ada")


def test_keys_are_told_without_anything_that_opens_or_proves_one(tollgate: Operator, world: OperatorWorld) -> None:
    ApiKeys(world.table).put_key(
        ApiKey(
            id="key_1",
            key_hash=hash_api_key(SECRET, b"pepper"),
            tenant_id="main",
            user_id="ada",
            mode=KeyMode.LIVE,
            last_four=SECRET[-4:],
            created_at=world.now,
            name="[bold]laptop",
            budget_tokens=5_000,
        )
    )
    [key] = tollgate.json("keys", "ada")["keys"]
    assert (key["id"], key["last_four"], key["state"], key["budget_tokens"]) == ("key_1", SECRET[-4:], "active", 5_000)
    assert "[bold]laptop" in tollgate.says("keys", "ada")


class TestRequests:
    def test_are_listed_newest_first_with_orphans_below(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        told = tollgate.json("requests", "ada")
        assert [each["charged_tokens"] for each in told["requests"]] == [2_000, 1_000]
        told = tollgate.json("requests", "bob")
        assert [orphan["charged_tokens"] for orphan in told["orphans"]] == [500]
        assert "Orphans, calls whose owner vanished: 1" in tollgate.says("requests", "bob")
        assert "estimated" in tollgate.says("requests", "ada")

    @pytest.mark.parametrize(
        ("options", "charged"),
        [
            (["--estimated"], [2_000]),
            (["--outcome", "complete"], [1_000]),
            (["--model", MODEL], [2_000, 1_000]),
            (["--model", "claude-sonnet-5"], []),
            (["--key", "key_1"], [2_000, 1_000]),
            (["--key", "key_2"], []),
            (["--limit", "1"], [2_000]),
        ],
    )
    def test_are_filtered(
        self, tollgate: Operator, world: OperatorWorld, options: list[str], charged: list[int]
    ) -> None:
        use(world)
        assert [each["charged_tokens"] for each in tollgate.json("requests", "ada", *options)["requests"]] == charged

    def test_go_on_where_a_page_ended(self, tollgate: Operator, world: OperatorWorld) -> None:
        for number in range(1, 6):
            world.pass_time(seconds=1)
            world.call("ada", 100 * number)
        page = tollgate.json("requests", "ada", "--limit", "3")
        rest = tollgate.json("requests", "ada", "--before", page["next_before"])
        assert [each["charged_tokens"] for each in page["requests"] + rest["requests"]] == [500, 400, 300, 200, 100]
        assert rest["next_before"] is None


class TestUnbooked:
    """A call whose settlement the ledger never took is counted once, and charged as the orphan that became of it."""

    @pytest.fixture(autouse=True)
    def _lost(self, world: OperatorWorld) -> None:
        world.lose_settlement("bob", 500, estimated=True)

    def _exported(self, tollgate: Operator, what: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(tollgate("export", what).stdout)))

    def test_is_charged_nothing_until_it_is_swept(self, tollgate: Operator) -> None:
        [call] = tollgate.json("requests", "bob")["requests"]
        assert (call["kind"], call["charged_tokens"], call["written_off_tokens"]) == ("unbooked", 0, 0)
        [day] = tollgate.json("usage", "bob")["days"]
        assert (day["requests"], day["unbooked_requests"], day["charged_tokens"]) == (0, 1, 0)

    def test_adds_up_once_when_it_is_swept(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.pass_time(minutes=5)
        world.sweep("bob")
        [meter] = world.meters.list_of_user("main", "bob")
        assert (meter.settled_requests, meter.settled_tokens) == (1, 500)

        told = tollgate.json("requests", "bob")
        [call], [orphan] = told["requests"], told["orphans"]
        assert (call["kind"], call["charged_tokens"], orphan["charged_tokens"]) == ("unbooked", 0, 500)
        assert call["reservation_id"] == orphan["reservation_id"]
        assert "complete" not in tollgate.says("requests", "bob")
        assert "unbooked" in tollgate.says("requests", "bob")

        [day] = tollgate.json("usage", "bob")["days"]
        assert (day["requests"], day["expired_requests"], day["unbooked_requests"]) == (1, 1, 1)
        assert (day["charged_tokens"], day["estimated_requests"]) == (500, 1)

        calls, orphans = self._exported(tollgate, "requests"), self._exported(tollgate, "orphans")
        assert sum(int(each["charged_tokens"]) for each in calls + orphans) == 500
        assert [each["kind"] for each in calls] == ["unbooked"]

    def test_has_its_own_charge_when_its_owner_came_late(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.pass_time(minutes=5)
        world.sweep("bob")
        world.plant("bob", "EXPIRED#", charged=480)
        item = next(each for each in world.table.items() if each["SK"]["S"].startswith("EXPIRED#"))
        item["outcome"] = {"S": "corrected"}
        world.table.client.put_item(TableName=NAME, Item=item)
        [call] = tollgate.json("requests", "bob")["requests"]
        assert (call["kind"], call["charged_tokens"]) == ("request", 480)
        [orphan] = self._exported(tollgate, "orphans")
        assert (orphan["corrected"], orphan["charged_tokens"]) == ("True", "0")


class TestOddOptions:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("users", "list", "--endpoint-url", "foo"), "--endpoint-url must be an address"),
            (("users", "list", "--endpoint-url", "http://h:99999"), "--endpoint-url must be an address"),
            (("users", "list", "--endpoint-url", "ftp://h"), "--endpoint-url must be an address"),
            (("requests", "ada", "--before", "0001-01-01T00:00:00+23:59"), "is no instant"),
            (("requests", "ada", "--before", "1999-12-31"), "--before must be from 2000-01-01"),
            (("requests", "ada", "--before", "yesterday"), "is no instant"),
            (("export", "requests", "--from", "9999-12-31"), "--from must be a day from"),
            (("export", "requests", "--to", "0001-01-01"), "--to must be a day from"),
            (("export", "requests", "--from", "2026-11-20", "--to", "2026-11-19"), "is later than --to"),
            (("export", "users", "--from", "2026-11-20"), "are for requests and orphans"),
            (("export", "users", "--json"), "--format jsonl"),
            (("export", "users", "--output", "/nowhere/at/all.csv"), "cannot be written"),
            (("reconcile", "anthropic", "--from", "2026-11-20", "--to", "2026-11-19"), "is later than --to"),
            (("reconcile", "anthropic", "--from", "2026-08-01"), "Records are kept 90 days"),
            (("margin", "--month", "2026-13"), "is no month"),
        ],
    )
    def test_are_wrong_usage_and_status_2(self, tollgate: Operator, arguments: tuple[str, ...], says: str) -> None:
        tollgate.environ["ANTHROPIC_ADMIN_KEY"] = ADMIN_KEY
        assert says in tollgate.says(*arguments, status=2)

    @pytest.mark.parametrize("first", ["2026-11-19", "2026-11-20"])
    def test_at_the_edge_are_meant_so(self, tollgate: Operator, world: OperatorWorld, first: str) -> None:
        use(world)
        rows = tollgate("export", "requests", "--from", first, "--to", "2026-11-20").stdout.splitlines()
        assert len(rows) == 1 + 3
        assert len(tollgate("export", "requests", "--to", "2026-11-19").stdout.splitlines()) == 1
        assert tollgate("export", "requests", "--from", "2099-12-31", "--to", "2099-12-31").exit_code == 0

    def test_what_nobody_foresaw_is_named_without_its_text(self, world: OperatorWorld) -> None:
        def broken(service: str, **_: str) -> Any:  # noqa: ANN401
            raise ValueError(f"the header canary for {service}")

        connections = Connections(environ={}, aws_client=broken, now=lambda: world.now)
        result = CliRunner().invoke(app, ["users", "list", "--table", NAME], obj=connections)
        assert result.exit_code == 1
        assert "ValueError, which nobody foresaw, at test_operator.py" in " ".join(result.output.split())
        assert "canary" not in result.output


class TestReconcile:
    def test_the_ledger_agrees_with_itself(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        told = tollgate.json("reconcile", "ledger")
        assert (told["users"], told["records"], told["expired"], told["differences"]) == (2, 3, 1, [])
        said = tollgate.says("reconcile", "ledger")
        assert "No difference" in said
        assert "orphans" in said

    def test_a_planted_difference_is_found_and_is_status_1(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        world.plant("bob", "REQUEST#", charged_tokens=299)
        told = tollgate.json("reconcile", "ledger", status=1)
        [difference] = told["differences"]
        assert (difference["user_id"], difference["figure"]) == ("bob", "charged_tokens")
        assert (difference["expected"], difference["found"]) == (799, 800)
        assert "charged_tokens" in tollgate.says("reconcile", "ledger", "--user", "bob", status=1)
        assert tollgate.json("reconcile", "ledger", "--user", "ada")["differences"] == []

    def test_overage_is_compared_with_stripes_own_count(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        customer = sell_overage(tollgate, world, owed=700)
        told = tollgate.json("reconcile", "stripe")["checks"][0]
        assert (told["owed"], told["told"], told["differs"]) == (700, 0, False)
        assert "not all told yet" in tollgate.says("reconcile", "stripe")

        tell_stripe(tollgate, customer, 701)
        told = tollgate.json("reconcile", "stripe", status=1)["checks"][0]
        assert (told["told"], told["differs"]) == (701, True)
        assert "differs" in tollgate.says("reconcile", "stripe", "--user", "ada", status=1)

    def test_anthropics_report_is_asked_with_an_admin_key_and_drift_is_told(
        self, tollgate: Operator, world: OperatorWorld
    ) -> None:
        use(world)
        tollgate.environ["ANTHROPIC_ADMIN_KEY"] = ADMIN_KEY
        world.pass_time(days=1)
        with ScriptedServer(answer(report(uncached=990 + 1_990 + 290 + 5, output=30))) as anthropic:
            tollgate.environ["ANTHROPIC_ADMIN_BASE_URL"] = anthropic.url
            told = tollgate.json("reconcile", "anthropic", "--from", "2026-11-20", status=1)
            [request] = anthropic.requests
            tollgate.says("reconcile", "anthropic", "--from", "2026-11-20", "--tolerance", "2")
            tollgate.says("reconcile", "anthropic", "--key-id", "apikey_1", "--key-id", "apikey_2", status=1)
            assert b"api_key_ids%5B%5D=apikey_1&api_key_ids%5B%5D=apikey_2" in anthropic.requests[-1]
        [day] = told["days"]
        assert (day["day"], day["model"], day["drift_tokens"]) == ("2026-11-20", MODEL, 5)
        assert (day["estimated_requests"], day["orphans_of_the_day"]) == (1, 1)
        head = request.decode().lower()
        assert head.startswith("get /v1/organizations/usage_report/messages?starting_at=2026-11-20t00%3a00%3a00z")
        assert f"x-api-key: {ADMIN_KEY}" in head

    @pytest.mark.parametrize(
        ("status", "body", "says"),
        [
            ("401 Unauthorized", b"{}", "needs an admin key"),
            ("500 Broken", b"{}", "answered 500"),
            ("200 OK", b"<html>", "no JSON"),
            ("200 OK", b'{"data": [{}]}', "does not know"),
        ],
    )
    def test_what_stands_in_the_way_is_said(
        self, tollgate: Operator, world: OperatorWorld, status: str, body: bytes, says: str
    ) -> None:
        tollgate.environ["ANTHROPIC_ADMIN_KEY"] = ADMIN_KEY
        with ScriptedServer(answer(body, status)) as anthropic:
            tollgate.environ["ANTHROPIC_ADMIN_BASE_URL"] = anthropic.url
            assert says in tollgate.says("reconcile", "anthropic", status=1)

    @pytest.mark.parametrize(("behind", "status"), [(1, 0), (2, 0), (3, 1)])
    def test_an_answer_that_asking_again_may_mend_is_asked_for_three_times(
        self, tollgate: Operator, world: OperatorWorld, behind: int, status: int
    ) -> None:
        tollgate.environ["ANTHROPIC_ADMIN_KEY"] = ADMIN_KEY
        with ScriptedServer(answer(b"{}", "429 Too Many Requests")) as anthropic:
            tollgate.environ["ANTHROPIC_ADMIN_BASE_URL"] = anthropic.url
            before = world.clock.seconds

            def recovers(connection: socket.socket, request: bytes) -> None:
                good = len(anthropic.requests) > behind
                text = b'{"data": [], "has_more": false, "next_page": null}' if good else b"{}"
                answer(text, "200 OK" if good else "429 Too Many Requests")(connection, request)

            anthropic.behaviour = recovers
            tollgate.says("reconcile", "anthropic", status=status)
            assert len(anthropic.requests) == min(behind + 1, 3)
        assert world.clock.seconds - before == (1, 5, 5)[behind - 1]

    @pytest.mark.parametrize(
        ("theirs", "tolerance", "status"), [(1_000, 0, 0), (1_001, 0, 1), (1_001, 1, 0), (1_002, 1, 1), (1_006, 5, 1)]
    )
    def test_drift_that_rounds_to_nothing_is_within_any_tolerance_but_none(
        self, tollgate: Operator, world: OperatorWorld, theirs: int, tolerance: int, status: int
    ) -> None:
        """Recorded are 990 in and 10 out; the triplets stand around a permille of what Anthropic counts."""
        world.call("ada", 1_000)
        tollgate.environ["ANTHROPIC_ADMIN_KEY"] = ADMIN_KEY
        world.pass_time(days=1)
        with ScriptedServer(answer(report(uncached=theirs - 10, output=10))) as anthropic:
            tollgate.environ["ANTHROPIC_ADMIN_BASE_URL"] = anthropic.url
            asked = ("reconcile", "anthropic", "--from", "2026-11-20", "--tolerance", str(tolerance))
            tollgate.says(*asked, status=status)

    def test_kinds_of_tokens_do_not_make_up_for_each_other(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.call("ada", 1_000)
        tollgate.environ["ANTHROPIC_ADMIN_KEY"] = ADMIN_KEY
        world.pass_time(days=1)
        with ScriptedServer(answer(report(uncached=900, output=100))) as anthropic:
            tollgate.environ["ANTHROPIC_ADMIN_BASE_URL"] = anthropic.url
            told = tollgate.json("reconcile", "anthropic", "--from", "2026-11-20", "--tolerance", "179", status=1)
            assert (told["days"][0]["drift_permille"], told["differences"]) == (0, 1)
            tollgate.says("reconcile", "anthropic", "--from", "2026-11-20", "--tolerance", "180")

    @pytest.mark.parametrize("key", ["sk-ant-admin\nsecond-canary", "sk-ant-\u201ccanary\u201d", "sk-ant\x7fcanary"])
    def test_a_key_that_no_header_can_carry_is_refused_and_never_shown(self, tollgate: Operator, key: str) -> None:
        tollgate.environ |= {"ANTHROPIC_ADMIN_KEY": key, "ANTHROPIC_ADMIN_BASE_URL": "http://127.0.0.1:9"}
        said = tollgate.says("reconcile", "anthropic", status=1)
        assert "ANTHROPIC_ADMIN_KEY is not one line of printable ASCII" in said
        assert "canary" not in said
        tollgate.environ["STRIPE_SECRET_KEY"] = f"sk_test_{key}"
        said = tollgate.says("reconcile", "stripe", status=1)
        assert "is not one line of printable ASCII" in said
        assert "canary" not in said

    @pytest.mark.parametrize("address", ["foo", "http://example.com", "https://h:99999", "ftp://127.0.0.1"])
    def test_an_admin_key_goes_nowhere_but_over_https(self, tollgate: Operator, address: str) -> None:
        tollgate.environ |= {"ANTHROPIC_ADMIN_KEY": ADMIN_KEY, "ANTHROPIC_ADMIN_BASE_URL": address}
        said = tollgate.says("reconcile", "anthropic", status=1)
        assert "https" in said

    def test_an_address_that_is_for_claude_gets_no_admin_key(self, tollgate: Operator) -> None:
        with ScriptedServer(answer(b"{}")) as proxy:
            ours = {"ANTHROPIC_BASE_URL": proxy.url, "ANTHROPIC_ADMIN_BASE_URL": "http://127.0.0.1:9"}
            tollgate.environ |= ours | {"ANTHROPIC_ADMIN_KEY": ADMIN_KEY}
            assert "did not answer" in tollgate.says("reconcile", "anthropic", status=1)
            assert proxy.requests == []

    def test_a_user_who_never_pauses_is_told_as_moving_and_is_no_difference(
        self, tollgate: Operator, world: OperatorWorld
    ) -> None:
        """A call ends between the reading of the meter and that of the records, each time."""
        world.call("ada", 100)

        def meanwhile(params: dict[str, Any], **_: object) -> None:
            if b"REQUEST#" in params["body"]:
                world.call("ada", 100)

        tollgate.before_queries = meanwhile
        told = tollgate.json("reconcile", "ledger", "--user", "ada")
        assert told["differences"] == []
        assert {(each["figure"], each["found"] - each["expected"]) for each in told["moving"]} >= {("requests", -1)}
        said = tollgate.says("reconcile", "ledger", "--user", "ada")
        assert "Moving" in said

    def test_without_an_admin_key_it_says_so(self, tollgate: Operator) -> None:
        assert "ANTHROPIC_ADMIN_KEY" in tollgate.says("reconcile", "anthropic", status=1)


def report(uncached: int, output: int) -> bytes:
    result = {
        "uncached_input_tokens": uncached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "cache_read_input_tokens": 0,
        "output_tokens": output,
        "model": f"{MODEL}-20251001",
    }
    bucket = {"starting_at": "2026-11-20T00:00:00Z", "ending_at": "2026-11-21T00:00:00Z", "results": [result]}
    return json.dumps({"data": [bucket], "has_more": False, "next_page": None}).encode()


def sell_overage(tollgate: Operator, world: OperatorWorld, *, owed: int) -> str:
    """Ada is a customer and owes so many hundredths of a cent; Stripe has the meter. The customer's id."""
    client = StripeConnection(lambda: STRIPE_KEY, http_client=InProcess(tollgate.stripe)).client()
    customer = client.v1.customers.create({"email": "ada@example.com"}).id
    client.v1.billing.meters.create(
        {
            "display_name": "Overage",
            "event_name": world.catalog.billing.meter_event_name,
            "default_aggregation": {"formula": "last"},
        }
    )
    Subscriptions(world.table).claim_customer("main", "ada", customer)
    world.plant("ada", "USAGE#", ov_nanousd=owed * 100_000, ov_tokens=1)
    [meter] = world.meters.list_of_user("main", "ada")
    start_at, end_at = meter.key.period.start_at, meter.key.period.end_at
    accounts = OverageAccounts(world.table)
    account = accounts.take("main", "ada", "me", world.now)
    assert account is not None
    window = Window("sub_1", customer, start_at, end_at)
    assert accounts.give_back(replace(account, windows=(window,), spans=(Span(start_at),))) is not None
    return customer


def tell_stripe(tollgate: Operator, customer: str, value: int) -> None:
    client = StripeConnection(lambda: STRIPE_KEY, http_client=InProcess(tollgate.stripe)).client()
    event = {
        "event_name": tollgate.world.catalog.billing.meter_event_name,
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        "timestamp": int(tollgate.world.now.timestamp()) - 120,
    }
    client.v1.billing.meter_events.create(event)  # type: ignore[arg-type]
    tollgate.world.pass_time(minutes=5)
    tollgate.stripe.advance(tollgate.world.now)


def pay(
    tollgate: Operator, world: OperatorWorld, user: str | None, cents: int, interval: str = "month"
) -> tuple[Any, str]:
    """Somebody buys Pro: (Stripe's client, the subscription's id). `user` None: a stranger to this deployment."""
    client: Any = StripeConnection(lambda: STRIPE_KEY, http_client=InProcess(tollgate.stripe)).client()
    tollgate.stripe.advance(world.now)
    customer = client.v1.customers.create({"email": "x@example.com"}).id
    tollgate.stripe.add_card(customer)
    if user is not None:
        Subscriptions(world.table).claim_customer("main", user, customer)
    price = client.v1.prices.create(
        {
            "product_data": {"name": "Pro"},
            "currency": "usd",
            "unit_amount": cents,
            "recurring": {"interval": interval},
            "metadata": {"tollgate_plan": "pro", "tollgate_interval": interval},
        }
    )
    subscription = client.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
    return client, subscription.id


class TestMargin:
    def test_is_revenue_less_fees_and_claude(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        pay(tollgate, world, "ada", 2_900)
        told = tollgate.json("margin")
        assert told["prices"] == "paid invoices"
        pro, free = told["plans"]["pro"], told["plans"]["free"]
        assert pro["price_picousd"] == 29 * 10**12
        assert pro["fees_picousd"] == (29 * 36 * 10**9) + 30 * 10**10
        assert pro["margin_picousd"] == pro["price_picousd"] - pro["fees_picousd"] - pro["cost_picousd"]
        assert free["margin_picousd"] == -free["cost_picousd"] < 0
        assert (free["orphans"], pro["written_off_tokens"]) == (1, 77)
        assert [user["user_id"] for user in told["users"]] == ["bob", "ada"]
        said = tollgate.says("margin")
        assert "$29.0000" in said
        assert "What orphans cost is in no figure" in said

    def test_of_another_month_is_empty(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        assert tollgate.json("margin", "--month", "2026-10")["plans"] == {}
        assert "is no month" in tollgate.says("margin", "--month", "10/2026", status=2)

    def test_of_a_paid_month_stays_when_the_subscription_ends(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.call("ada", 1_000)
        client, subscription = pay(tollgate, world, "ada", 2_900)
        before = tollgate.json("margin", "--month", "2026-11")["total"]
        assert before["price_picousd"] == 29 * 10**12
        client.v1.subscriptions.cancel(subscription)
        world.pass_time(days=60)
        tollgate.stripe.advance(world.now)
        assert tollgate.json("margin", "--month", "2026-11")["total"] == before
        assert tollgate.json("margin", "--month", "2026-12")["total"]["price_picousd"] == 0

    def test_counts_who_paid_and_did_not_call(self, tollgate: Operator, world: OperatorWorld) -> None:
        pay(tollgate, world, "ada", 2_900)
        world.pass_time(days=40)
        tollgate.stripe.advance(world.now)
        for month in ("2026-11", "2026-12"):
            told = tollgate.json("margin", "--month", month)
            [ada] = told["users"]
            assert (ada["user_id"], ada["plan_id"], ada["periods"]) == ("ada", "pro", 0)
            assert ada["revenue_picousd"] == 29 * 10**12
            assert told["plans"]["pro"]["users"] == 1
        assert tollgate.json("margin", "--month", "2026-11", "--user", "bob")["users"] == []

    def test_spreads_a_year_over_its_months_to_the_unit(self, tollgate: Operator, world: OperatorWorld) -> None:
        pay(tollgate, world, "ada", 29_000, "year")
        months = [f"2026-{month}" for month in (11, 12)] + [f"2027-{month:02d}" for month in range(1, 11)]
        told = [tollgate.json("margin", "--month", month)["total"] for month in months]
        assert sum(each["price_picousd"] for each in told) == 290 * 10**12
        assert all(22 * 10**12 < each["price_picousd"] < 25 * 10**12 for each in told)
        assert sum(each["fees_picousd"] for each in told) in range(1_074 * 10**10, 1_074 * 10**10 + 13)
        for month in ("2026-10", "2027-11"):
            assert tollgate.json("margin", "--month", month)["total"]["price_picousd"] == 0

    def test_reads_every_page_of_invoices(self, tollgate: Operator, world: OperatorWorld) -> None:
        for number in range(103):
            world.add_user(f"user-{number:03d}")
            pay(tollgate, world, f"user-{number:03d}", 2_900)
        told = tollgate.json("margin")
        assert (told["plans"]["pro"]["users"], told["total"]["price_picousd"]) == (103, 103 * 29 * 10**12)

    def test_leaves_out_strangers_and_says_so(self, tollgate: Operator, world: OperatorWorld) -> None:
        pay(tollgate, world, None, 2_900)
        told = tollgate.json("margin")
        assert told["total"]["price_picousd"] == 0
        assert "1 customers paid for plans and are no users of this deployment" in tollgate.says("margin")

    def test_without_stripe_is_called_an_estimate(self, tollgate: Operator, world: OperatorWorld) -> None:
        """By today's subscriptions, also of who did not call; not of months before they were bought."""
        del tollgate.environ["STRIPE_SECRET_KEY"]
        for user in ("ada", "bob"):
            subscriber = a_subscriber(a_subscription(), version=0, tenant_id="main", user_id=user)
            assert Subscriptions(world.table).put(subscriber)
        world.call("ada", 1_000)
        told = tollgate.json("margin")
        assert told["prices"] == "estimate"
        assert "ESTIMATE" in told["notes"][0]
        assert told["plans"]["pro"]["price_picousd"] == 2 * 29 * 10**12
        said = tollgate.says("margin")
        assert "prices ESTIMATED" in said
        assert "set STRIPE_SECRET_KEY" in said
        assert tollgate.json("margin", "--month", "2026-10")["total"]["price_picousd"] == 0
        assert "not in this catalog" in tollgate.says("margin", "--catalog", "calls")

    def test_has_the_real_cost_of_what_the_ledger_never_took(self, tollgate: Operator, world: OperatorWorld) -> None:
        """Before the sweep, after it, when the day is rolled up, and when the period is closed."""
        record = world.lose_settlement("bob", 500, estimated=True)
        open_one = tollgate.json("margin")["plans"]["free"]
        world.pass_time(minutes=5)
        world.sweep("bob")
        swept = tollgate.json("margin")["plans"]["free"]
        world.pass_time(days=2)
        world.roll_up("bob")
        rolled = tollgate.json("margin")["plans"]["free"]
        for told in (open_one, swept, rolled):
            assert (told["cost_picousd"], told["unbooked_picousd"]) == (record.cost_picousd, record.cost_picousd)
            assert (told["unbooked"], told["estimated"]) == (1, 1)
            assert told["margin_picousd"] == -record.cost_picousd
        assert (open_one["orphans"], swept["orphans"], rolled["orphans"]) == (0, 1, 1)
        [period] = tollgate.json("usage", "bob")["periods"]
        assert (period["expired_requests"], period["unbooked_requests"], period["estimated_requests"]) == (1, 1, 1)
        assert (period["unbooked_picousd"], period["cost_picousd"]) == (record.cost_picousd, 0)


class TestExport:
    @pytest.mark.parametrize(("what", "rows"), [("users", 2), ("periods", 2), ("requests", 3), ("orphans", 1)])
    def test_writes_a_row_each_in_both_forms(
        self, tollgate: Operator, world: OperatorWorld, what: str, rows: int
    ) -> None:
        use(world)
        lines = [json.loads(line) for line in tollgate("export", what, "--format", "jsonl").stdout.splitlines()]
        table = list(csv.DictReader(io.StringIO(tollgate("export", what).stdout)))
        assert len(lines) == len(table) == rows
        assert list(table[0]) == list(lines[0])

    @pytest.mark.parametrize("what", ["users", "periods", "requests", "orphans"])
    def test_of_nothing_is_the_head_line_alone(self, tollgate: Operator, world: OperatorWorld, what: str) -> None:
        use(world)
        whole = tollgate("export", what).stdout.splitlines()
        assert tollgate("export", what, "--tenant", "nobody").stdout.splitlines() == whole[:1]
        assert tollgate("export", what, "--tenant", "nobody", "--format", "jsonl").stdout == ""

    def test_writes_no_formula_for_a_spreadsheet(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.users.put_email("main", "bob", '=HYPERLINK("http://evil")@example.com')
        rows = list(csv.DictReader(io.StringIO(tollgate("export", "users").stdout)))
        assert rows[1]["email"].startswith("'=")

    def test_that_breaks_off_leaves_no_file(self, tollgate: Operator, world: OperatorWorld, tmp_path: Path) -> None:
        use(world)

        def breaks(params: dict[str, Any], **_: object) -> None:
            if b"USER#bob" in params["body"] and b"REQUEST#" in params["body"]:
                raise EndpointConnectionError(endpoint_url="x")

        file = tmp_path / "requests.csv"
        tollgate.before_queries = breaks
        tollgate.says("export", "requests", "-o", str(file), status=1)
        assert not file.exists()
        tollgate.before_queries = None
        tollgate.says("export", "requests", "-o", str(file))
        assert len(file.read_text().splitlines()) == 1 + 3

    def test_does_not_write_over_a_file_and_keeps_it_from_others(
        self, tollgate: Operator, world: OperatorWorld, tmp_path: Path
    ) -> None:
        file = tmp_path / "users.csv"
        tollgate.says("export", "users", "--output", str(file))
        before = file.read_text()
        assert file.stat().st_mode & 0o077 == 0
        assert "exists already" in tollgate.says("export", "users", "--output", str(file), status=1)
        assert file.read_text() == before


class TestNotices:
    def test_wait_are_shown_and_revived_when_they_were_given_up(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.call("bob", 1_000)
        notices = Notices(world.table)
        [meter] = world.meters.list_of_user("main", "bob")
        thresholds = UsageThresholds(notices, (1,), world.clock, lambda *_: None)
        thresholds.note(Standing(world.account("bob"), meter))
        [entry] = [entry for shard in range(4) for entry in notices.list_waiting(shard)]
        taken = notices.take(entry, world.now + timedelta(minutes=2))
        assert taken is not None
        assert notices.bury(taken)
        [told] = tollgate.json("notices", "list", "--dead")["notices"]
        assert (told["state"], told["user_id"]) == ("dead", "bob")
        assert tollgate.json("notices", "replay") == {"revived": 1}
        assert tollgate.json("notices", "list", "--dead")["notices"] == []
        assert "waiting" in tollgate.says("notices", "list")


def test_a_command_about_no_deployment_asks_which(tollgate: Operator) -> None:
    connections = Connections(environ={}, aws_client=aws_client, now=lambda: datetime(2026, 11, 20, tzinfo=UTC))
    result = CliRunner().invoke(app, ["users", "list"], obj=connections)
    assert result.exit_code == 1
    assert "Which deployment?" in result.output
