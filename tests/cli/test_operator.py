"""`tollgate users`, `usage`, `keys`, `requests`, `reconcile`, `margin`, `export` and `notices`, at a whole table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
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
        self.stripe = StripeWorld(now=world.now, seed=1, webhook_secret="whsec_x", account_id="acct_1")

    def __call__(self, *arguments: str, width: int = 200) -> Result:
        connections = Connections(
            environ=self.environ,
            aws_client=lambda service, **where: aws_client(service, **({"region_name": REGION} | where)),
            stripe_wire=InProcess(self.stripe),
            now=lambda: self.world.now,
        )
        runner = CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"})
        result = runner.invoke(app, [*arguments, "--table", NAME], obj=connections)
        for canary in (SECRET, ADMIN_KEY, STRIPE_KEY, hash_api_key(SECRET, b"pepper")):
            assert canary not in result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

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
            tollgate.environ["ANTHROPIC_BASE_URL"] = anthropic.url
            told = tollgate.json("reconcile", "anthropic", "--from", "2026-11-20", status=1)
            [request] = anthropic.requests
            tollgate.says("reconcile", "anthropic", "--from", "2026-11-20", "--tolerance", "2")
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
            tollgate.environ["ANTHROPIC_BASE_URL"] = anthropic.url
            assert says in tollgate.says("reconcile", "anthropic", status=1)

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


class TestMargin:
    def test_is_revenue_less_fees_and_claude(self, tollgate: Operator, world: OperatorWorld) -> None:
        use(world)
        subscriber = a_subscriber(a_subscription(), version=0, tenant_id="main", user_id="ada")
        assert Subscriptions(world.table).put(subscriber)
        told = tollgate.json("margin")
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
        assert "is no month" in tollgate.says("margin", "--month", "10/2026", status=1)


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

    def test_writes_no_formula_for_a_spreadsheet(self, tollgate: Operator, world: OperatorWorld) -> None:
        world.users.put_email("main", "bob", '=HYPERLINK("http://evil")@example.com')
        rows = list(csv.DictReader(io.StringIO(tollgate("export", "users").stdout)))
        assert rows[1]["email"].startswith("'=")

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
