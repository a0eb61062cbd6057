"""A catalog comes to Stripe whatever happens on the way, and what is not ours stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
import stripe

from dev.stripe_double.faults import Fault
from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.domain.plans import Billing, Plan, TaxKind
from tollgate.domain.price_keys import plan_of_price
from tollgate.domain.selling import Change, Kind
from tollgate.domain.subscriptions import Interval
from tollgate.flows.sync_plans import PlansSync, SyncConflictError, SyncUnsettledError
from tollgate.providers.stripe_admin import StripeAdmin

DEFAULT = load_catalog("default")
KEY = "sk_test_x"
URL = "https://example.com/stripe/webhook"
VERSION = "2026-10-28.endive"


@pytest.fixture
def world() -> StripeWorld:
    return new_world()


def new_world() -> StripeWorld:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    return StripeWorld(now=now, seed=1, webhook_secret="whsec_test", account_id="acct_1")


def catalog(*, billing: Billing | None = None, without: str | None = None, **changes: object) -> Catalog:
    """The default catalog; changes are of Pro."""
    plans: dict[str, Plan] = {plan_id: plan for plan_id, plan in DEFAULT.plans.items() if plan_id != without}
    plans["pro"] = replace(plans["pro"], **changes)  # type: ignore[arg-type]
    return replace(DEFAULT, plans=MappingProxyType(plans), billing=billing or DEFAULT.billing)


def admin(world: StripeWorld, wire: InProcess | None = None) -> StripeAdmin:
    return StripeAdmin(lambda: KEY, http_client=wire or InProcess(world))


def run(world: StripeWorld, sold: Catalog = DEFAULT, *, url: str | None = None) -> list[Change]:
    """The changes that were made; checks that Stripe took every request."""
    made: list[Change] = []
    PlansSync(sold, admin(world), url).run(hand_over=lambda _: None, done=made.append)
    assert world.refused == []
    return made


def api(world: StripeWorld) -> stripe.StripeClient:
    return stripe.StripeClient(KEY, http_client=InProcess(world), stripe_version=VERSION)


def prices(world: StripeWorld, *, active: bool = True) -> dict[str, Any]:
    """By lookup key; the key of one that lost it is its id."""
    found = api(world).v1.prices.list({"limit": 100, "active": active})
    return {price.lookup_key or price.id: price.to_dict(for_json=True) for price in found.data}


def everything(world: StripeWorld) -> dict[str, list[dict[str, Any]]]:
    """What is for sale, apart from ids that Stripe chose and times."""
    client = api(world)
    lists: dict[str, Any] = {
        "products": client.v1.products.list({"limit": 100}),
        "prices": client.v1.prices.list({"limit": 100}),
        "meters": client.v1.billing.meters.list({"limit": 100}),
        "portals": client.v1.billing_portal.configurations.list({"limit": 100}),
        "webhooks": client.v1.webhook_endpoints.list({"limit": 100}),
    }
    return {
        kind: sorted(
            ({**one.to_dict(for_json=True), "created": 0, "updated": 0} for one in found.data),
            key=lambda one: one["id"],
        )
        for kind, found in lists.items()
    }


def shape(world: StripeWorld) -> list[tuple[object, ...]]:
    """What people can buy, so that two accounts can be compared."""
    found = everything(world)
    return sorted(
        [
            *(("product", one["id"], one["name"], one["active"]) for one in found["products"]),
            *(
                ("price", one["lookup_key"], one["unit_amount_decimal"], one["product"])
                for one in found["prices"]
                if one["active"]
            ),
            *(("meter", one["event_name"], one["status"]) for one in found["meters"]),
            *(("portal", one["active"], str(one["metadata"])) for one in found["portals"]),
            *(("webhook", one["url"], one["status"]) for one in found["webhooks"]),
        ],
        key=str,
    )


def test_everything_that_a_catalog_needs_is_made(world: StripeWorld) -> None:
    run(world)
    found = prices(world)

    assert {key: (price["unit_amount_decimal"], price["recurring"]["interval"]) for key, price in found.items()} == {
        "tollgate_pro_month": ("2900", "month"),
        "tollgate_pro_year": ("29000", "year"),
        "tollgate_enterprise_month": ("9900", "month"),
        "tollgate_enterprise_year": ("99000", "year"),
        "tollgate_overage": ("0.01", "month"),
    }
    [meter] = api(world).v1.billing.meters.list().data
    assert (meter.event_name, meter.default_aggregation.formula) == ("tollgate_overage", "last")
    overage = found["tollgate_overage"]["recurring"]
    assert (overage["usage_type"], overage["meter"]) == ("metered", meter.id)
    assert plan_of_price(found["tollgate_pro_year"]["metadata"], None) == ("pro", Interval.YEAR)
    [portal] = api(world).v1.billing_portal.configurations.list().data
    assert not portal.features.subscription_update.enabled, "plans are changed with us"
    assert portal.features.subscription_cancel.mode == "at_period_end"


def test_a_second_run_changes_nothing(world: StripeWorld) -> None:
    run(world)
    before, asked = everything(world), len(world.requests)

    assert run(world) == []
    assert everything(world) == before
    assert not [call for call in world.requests[asked:] if not call.startswith("GET")]


def test_free_plans_and_their_like_are_not_at_stripe(world: StripeWorld) -> None:
    run(world, load_catalog("calls"))

    assert not [key for key in prices(world) if "free" in key]
    assert "tollgate_overage" not in prices(world), "nothing has overage there"
    assert api(world).v1.billing.meters.list().data == []


def test_a_changed_amount_is_a_new_price_and_the_old_one_keeps_its_subscribers(world: StripeWorld) -> None:
    run(world)
    old = prices(world)["tollgate_pro_month"]

    run(world, catalog(price_cents=3_900))

    assert prices(world)["tollgate_pro_month"]["unit_amount_decimal"] == "3900"
    [archived] = prices(world, active=False).values()
    assert archived["id"] == old["id"]
    assert plan_of_price(archived["metadata"], archived["lookup_key"]) == ("pro", Interval.MONTH)
    assert run(world, catalog(price_cents=3_900)) == []


def test_a_price_can_go_back_to_what_it_was_within_a_day(world: StripeWorld) -> None:
    run(world)
    run(world, catalog(price_cents=3_900))
    run(world)

    assert prices(world)["tollgate_pro_month"]["unit_amount_decimal"] == "2900"
    assert len(prices(world, active=False)) == 2


def test_a_new_name_is_the_same_product(world: StripeWorld) -> None:
    run(world)
    [change] = run(world, catalog(name="Professional"))

    assert (change.kind, change.target_id) == (Kind.PRODUCT, "tollgate_plan_pro")
    assert [(one.field, one.old, one.new) for one in change.differences] == [("name", "Pro", "Professional")]


def test_a_plan_that_is_sold_no_more_cannot_be_bought_and_comes_back_as_it_was(world: StripeWorld) -> None:
    run(world)
    before = shape(world)

    run(world, catalog(without="enterprise"))
    assert not [key for key in prices(world) if "enterprise" in key]
    assert not api(world).v1.products.retrieve("tollgate_plan_enterprise").active

    run(world)
    assert shape(world) == before


def test_tax_is_said_on_every_price_and_product(world: StripeWorld) -> None:
    run(world)
    run(world, catalog(billing=replace(DEFAULT.billing, tax=TaxKind.STRIPE_TAX)))

    assert {price["tax_behavior"] for price in prices(world).values()} == {"exclusive"}
    assert {product.tax_code for product in api(world).v1.products.list().data} == {"txcd_10103001"}


def test_what_is_not_ours_is_never_touched(world: StripeWorld) -> None:
    client = api(world)
    theirs = client.v1.products.create({"name": "Pro", "metadata": {"team": "shop"}})
    client.v1.prices.create({"product": theirs.id, "currency": "usd", "unit_amount": 2_900, "lookup_key": "pro_month"})
    meter = {"formula": "sum"}
    client.v1.billing.meters.create({"display_name": "x", "event_name": "calls", "default_aggregation": meter})  # type: ignore[typeddict-item]
    client.v1.billing_portal.configurations.create({"features": {"invoice_history": {"enabled": True}}})
    client.v1.webhook_endpoints.create({"url": URL, "enabled_events": ["invoice.paid"]})
    before = copy.deepcopy(everything(world))

    run(world)
    run(world, catalog(price_cents=3_900, without="enterprise"))

    after = everything(world)
    for kind, objects in before.items():
        assert [one for one in after[kind] if one["id"] in {old["id"] for old in objects}] == objects, kind


@pytest.mark.parametrize(
    ("in_the_way", "named"),
    [
        (
            lambda client: client.v1.products.create({"id": "tollgate_plan_pro", "name": "x"}),
            "product tollgate_plan_pro",
        ),
        (
            lambda client: client.v1.prices.create(
                {
                    "product_data": {"name": "x"},
                    "currency": "usd",
                    "unit_amount": 1,
                    "recurring": {"interval": "month"},
                    "lookup_key": "tollgate_pro_month",
                }
            ),
            "tollgate_pro_month",
        ),
        (
            lambda client: client.v1.billing.meters.create(
                {
                    "display_name": "x",
                    "event_name": "tollgate_overage",
                    "default_aggregation": {"formula": "sum"},
                }
            ),
            "counts their sum",
        ),
    ],
    ids=["product", "price", "meter"],
)
def test_something_else_in_our_place_stops_the_run_before_it_begins(
    world: StripeWorld, in_the_way: Callable[[stripe.StripeClient], object], named: str
) -> None:
    in_the_way(api(world))
    before = everything(world)

    with pytest.raises(SyncConflictError, match=named):
        run(world)

    assert everything(world) == before


class CrashError(BaseException):
    """The process is gone: nothing catches this."""


def crashing_at(world: StripeWorld, number: int, *, done: bool) -> InProcess:
    """Ends the process at the write of this number, before Stripe hears of it or after it was done."""
    writes = 0

    def plan(method: str, _url: str) -> Fault | None:
        nonlocal writes
        writes += method != "GET"
        if method == "GET" or writes != number:
            return None
        if not done:
            raise CrashError
        return Fault.SLOW

    def end() -> None:
        raise CrashError

    return InProcess(world, plan, end)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_run_that_breaks_off_anywhere_is_finished_by_the_next(done: bool) -> None:
    """From nothing to the catalog, then to another price and one plan less: crash at every write of both."""
    whole = new_world()
    changed = catalog(price_cents=3_900, without="enterprise")
    wanted = []
    for sold in (DEFAULT, changed):
        run(whole, sold, url=URL)
        wanted.append(shape(whole))
    writes = len([call for call in whole.requests if not call.startswith("GET")])

    for number in range(1, writes + 1):
        world, secrets = new_world(), list[str]()
        wire = crashing_at(world, number, done=done)
        crashes = 0
        for sold, state in zip((DEFAULT, changed), wanted, strict=True):
            try:
                PlansSync(sold, admin(world, wire), URL).run(hand_over=secrets.append, done=lambda _: None)
            except CrashError:
                crashes += 1
                PlansSync(sold, admin(world), URL).run(hand_over=secrets.append, done=lambda _: None)
            assert shape(world) == state, f"write {number}"
            [endpoint] = api(world).v1.webhook_endpoints.list().data
            assert world.events.secrets[endpoint.id] in secrets, f"write {number}"
            assert run(world, sold, url=URL) == []
        assert crashes == 1, f"write {number}"


def test_what_nobody_has_approved_is_not_done(world: StripeWorld) -> None:
    """Between the question and the answer somebody else has changed something."""
    sync = PlansSync(DEFAULT, admin(world))
    approved = sync.find_work().changes
    api(world).v1.products.create({"id": "tollgate_plan_pro", "name": "Pro", "metadata": {"tollgate": "plan"}})
    before = everything(world)

    with pytest.raises(SyncUnsettledError):
        sync.run(hand_over=lambda _: None, done=lambda _: None, approved=approved)

    assert everything(world) == before


def test_two_runs_at_once_leave_one_price_of_each_kind(world: StripeWorld) -> None:
    """The second begins when the first has read and made half of it."""
    overlapped: list[Change] = []

    def done(change: Change) -> None:
        if change.kind is Kind.PRICE and not overlapped:
            overlapped.append(change)
            run(world, catalog(price_cents=3_900))

    PlansSync(DEFAULT, admin(world)).run(hand_over=lambda _: None, done=done)

    assert overlapped
    assert prices(world)["tollgate_pro_month"]["unit_amount_decimal"] == "2900"
    assert len(prices(world)) == 5
    assert run(world) == []


def test_the_webhook_is_made_once_and_its_secret_handed_over(world: StripeWorld) -> None:
    secrets: list[str] = []
    PlansSync(DEFAULT, admin(world), URL).run(hand_over=secrets.append, done=lambda _: None)
    [endpoint] = api(world).v1.webhook_endpoints.list().data

    assert (endpoint.url, endpoint.api_version, endpoint.status) == (URL, VERSION, "enabled")
    assert {"customer.subscription.updated", "invoice.paid"} <= set(endpoint.enabled_events)
    assert world.events.secrets[endpoint.id] in secrets
    assert run(world, url=URL) == []


def test_an_endpoint_whose_secret_nobody_got_is_made_anew(world: StripeWorld) -> None:
    def lose(_: str) -> None:
        raise CrashError

    with pytest.raises(CrashError):
        PlansSync(DEFAULT, admin(world), URL).run(hand_over=lose, done=lambda _: None)
    [lost] = api(world).v1.webhook_endpoints.list().data
    secrets: list[str] = []
    PlansSync(DEFAULT, admin(world), URL).run(hand_over=secrets.append, done=lambda _: None)

    [endpoint] = api(world).v1.webhook_endpoints.list().data
    assert endpoint.id != lost.id
    assert world.events.secrets[endpoint.id] in secrets


def test_an_endpoint_that_was_disabled_or_lost_events_is_put_right(world: StripeWorld) -> None:
    run(world, url=URL)
    [endpoint] = api(world).v1.webhook_endpoints.list().data
    api(world).v1.webhook_endpoints.update(endpoint.id, {"disabled": True, "enabled_events": ["invoice.paid"]})

    [change] = run(world, url=URL)

    assert [one.field for one in change.differences] == ["enabled", "events"]
    assert run(world, url=URL) == []


def test_without_an_address_webhooks_are_left_alone(world: StripeWorld) -> None:
    run(world, url=URL)

    assert run(world, url=None) == []
    assert len(api(world).v1.webhook_endpoints.list().data) == 1


def test_another_deployment_s_endpoint_in_the_same_account_stays(world: StripeWorld) -> None:
    run(world, url=URL)
    run(world, url="https://staging.example.com/stripe/webhook")

    assert len(api(world).v1.webhook_endpoints.list().data) == 2
    assert run(world, url=URL) == []
