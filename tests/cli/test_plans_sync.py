"""`tollgate plans diff` and `sync` through the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.stripe_double.faults import Fault
from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.cli.conftest import NOW, Command, aws_client, stack_with
from tests.cli.test_plans_margins import words
from tollgate.catalog import loader

URL = "https://example.com/stripe/webhook"


@pytest.fixture
def dearer(tmp_path: Path) -> str:
    """The default catalog, Pro at $39."""
    shipped = (Path(loader.__file__).parent / "plans.toml").read_text(encoding="utf-8")
    (tmp_path / "plans.toml").write_text(shipped.replace("price_cents = 2_900\n", "price_cents = 3_900\n"))
    return str(tmp_path)


def writes(world: StripeWorld) -> int:
    return len([call for call in world.requests if not call.startswith("GET")])


def test_diff_shows_what_is_missing_and_does_nothing(tollgate: Command) -> None:
    result = tollgate("plans", "diff")
    said = words(result.stdout)

    assert result.exit_code == 3
    assert "+ create product Pro" in said
    assert "+ create price tollgate_pro_year 290.00 usd a year" in said
    assert "+ create price tollgate_overage 0.0001 usd a unit" in said
    assert writes(tollgate.world) == 0


def test_sync_shows_asks_and_does_it(tollgate: Command) -> None:
    result = tollgate("plans", "sync", typed="y\n")

    assert result.exit_code == 0
    assert "Do this?" in result.output
    assert "changes made." in result.stdout
    assert tollgate("plans", "diff").exit_code == 0
    again = tollgate("plans", "sync")
    assert (again.exit_code, words(again.stdout)) == (0, "Stripe has what the catalog says.")
    assert tollgate.world.refused == []


@pytest.mark.parametrize("typed", ["n\n", "\n", ""])
def test_who_does_not_say_yes_changes_nothing(tollgate: Command, typed: str) -> None:
    result = tollgate("plans", "sync", typed=typed)

    assert result.exit_code == 1
    assert writes(tollgate.world) == 0


def test_a_new_price_says_what_becomes_of_the_old_one(tollgate: Command, dearer: str) -> None:
    tollgate("plans", "sync", "--yes")

    said = words(tollgate("plans", "diff", "--catalog", dearer).stdout)

    assert "amount: 29.00 usd → 39.00 usd" in said
    assert "- archive price tollgate_pro_month nobody can buy it any more; subscribers keep it" in said


def test_json_is_for_scripts_and_asks_nothing(tollgate: Command) -> None:
    refused = tollgate("plans", "sync", "--json")
    assert (refused.exit_code, refused.stdout) == (1, "")

    made = tollgate.json("plans", "sync", "--yes")["changes"]
    assert {change["action"] for change in made} == {"create"}
    assert tollgate.json("plans", "diff") == {"changes": []}


@pytest.mark.parametrize(
    ("key", "live", "said"),
    [
        ("", False, "There is no key for Stripe"),
        ("sk_live_x", False, "Say --live if you mean that"),
        ("rk_live_x", False, "Say --live if you mean that"),
        ("sk_test_x", True, "this key is for a sandbox"),
        ("pk_test_x", False, "no secret key of Stripe's"),
    ],
)
def test_real_money_takes_a_live_key_and_the_word_live(tollgate: Command, key: str, live: bool, said: str) -> None:
    tollgate.environ = {"STRIPE_SECRET_KEY": key}

    result = tollgate("plans", "diff", *(["--live"] if live else []))

    assert result.exit_code == 1
    assert said in words(result.stderr)
    assert tollgate.world.requests == []


@pytest.mark.parametrize("key", ["sk_live_x", "rk_live_x"])
def test_with_both_it_goes_on(key: str) -> None:
    live = StripeWorld(now=NOW, seed=1, webhook_secret="whsec_test", account_id="acct_1", livemode=True)
    tollgate = Command(live, {"STRIPE_SECRET_KEY": key})

    assert tollgate("plans", "diff", "--live").exit_code == 3


def test_no_secret_can_be_given_as_an_argument(tollgate: Command) -> None:
    said = tollgate("plans", "sync", "--help").output

    assert "--key-parameter" in said
    assert "--key " not in said


@pytest.mark.usefixtures("aws")
def test_the_key_may_come_from_ssm_and_the_webhook_s_secret_goes_there(tollgate: Command) -> None:
    ssm = aws_client("ssm")
    ssm.put_parameter(Name="/tollgate/stripe-key", Value=tollgate.environ.pop("STRIPE_SECRET_KEY"), Type="SecureString")
    ssm.put_parameter(Name="/tollgate/webhook", Value="whsec_before", Type="SecureString")
    options = ["--key-parameter", "/tollgate/stripe-key", "--webhook-url", URL, "--store-secret", "/tollgate/webhook"]

    result = tollgate("plans", "sync", "--yes", *options)

    assert result.exit_code == 0
    stored = ssm.get_parameter(Name="/tollgate/webhook", WithDecryption=True)["Parameter"]["Value"].split()
    assert stored[-1] == "whsec_before", "deliveries that were signed before may still come"
    assert set(stored[:-1]) == set(tollgate.world.events.secrets.values())
    assert not any(secret in result.output for secret in stored)


def test_without_a_place_for_it_the_secret_is_shown_once(tollgate: Command) -> None:
    first = tollgate("plans", "sync", "--yes", "--webhook-url", URL)
    second = tollgate("plans", "sync", "--yes", "--webhook-url", URL)

    secrets = tollgate.world.events.secrets.values()
    assert all(secret in first.stderr for secret in secrets)
    assert not any(secret in first.stdout + second.output for secret in secrets)


def test_the_webhook_s_address_may_come_from_the_stack(tollgate: Command) -> None:
    tollgate.aws_client = stack_with({"StripeWebhookUrl": URL})

    changes = tollgate.json("plans", "diff", "--stack", "tollgate")["changes"]

    assert [change["name"] for change in changes if "webhook" in change["kind"]] == [URL, URL]


def test_a_stack_of_something_else_is_named(tollgate: Command) -> None:
    tollgate.aws_client = stack_with({})

    result = tollgate("plans", "diff", "--stack", "shop")

    assert "Stack shop has no output StripeWebhookUrl." in words(result.stderr)


@pytest.mark.parametrize("url", ["http://example.com/x", "example.com"])
def test_a_webhook_without_encryption_is_refused(tollgate: Command, url: str) -> None:
    result = tollgate("plans", "diff", "--webhook-url", url)

    assert (result.exit_code, words(result.stderr)) == (1, "error: The webhook's address must begin with https://.")


def test_a_conflict_is_said_and_nothing_is_done(tollgate: Command) -> None:
    tollgate.world.handle(
        "POST", "/v1/products", {"Authorization": "Bearer sk_test_x"}, b"id=tollgate_plan_pro&name=Theirs"
    )
    before = writes(tollgate.world)

    result = tollgate("plans", "sync", "--yes")

    assert result.exit_code == 1
    assert "Nothing was changed. product tollgate_plan_pro is not ours" in words(result.stderr)
    assert writes(tollgate.world) == before


def test_when_stripe_is_down_it_says_so_in_a_line(tollgate: Command) -> None:
    tollgate.wire = InProcess(tollgate.world, lambda _method, _url: Fault.ERROR_BEFORE)

    result = tollgate("plans", "diff")

    assert result.exit_code == 1
    assert words(result.stderr) == "error: Stripe did not answer. Nothing is lost: try again shortly."
