"""Deleting an account that pays: what is paid for ends at Stripe first, and nobody pays for an account that is gone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from dev.stripe_double.faults import Fault
from tests.support.api_world import RETURN_URL, ApiWorld, Caller, api_world
from tests.support.billing_function import spend
from tollgate.domain.principals import CredentialKind, Principal


@pytest.fixture
def world() -> Iterator[ApiWorld]:
    with api_world() as world:
        yield world


def subscribe(world: ApiWorld, caller: Caller) -> None:
    world.stripe.world.complete_checkout(order(world, caller))
    status = json.loads(world.ask("GET", "/billing/status", caller=caller).body)
    assert status["plan"]["id"] == "pro"


def order(world: ApiWorld, caller: Caller) -> str:
    form = {"plan": "pro", "success_url": RETURN_URL, "cancel_url": RETURN_URL}
    answer = world.ask("POST", "/billing/checkout", form, caller=caller)
    assert answer.status == 201, answer.body
    session_id: str = json.loads(answer.body)["id"]
    return session_id


def statuses(world: ApiWorld, kind: str) -> list[Any]:
    return [one["status"] for one in world.stripe.world.all(kind)]


def test_deleting_an_account_ends_what_is_paid_for_and_can_be_repeated(world: ApiWorld) -> None:
    ada = world.signed_in("ada@example.com")
    subscribe(world, ada)
    assert world.ask("DELETE", "/auth/me", caller=ada).status == 204
    assert statuses(world, "subscription") == ["canceled"]
    assert world.ask("DELETE", "/auth/me", caller=ada).status in {204, 401}
    assert statuses(world, "subscription") == ["canceled"]


def test_a_checkout_that_was_open_cannot_be_paid_any_more(world: ApiWorld) -> None:
    ada = world.signed_in("ada@example.com")
    order(world, ada)
    assert world.ask("DELETE", "/auth/me", caller=ada).status == 204
    assert statuses(world, "checkout.session") == ["expired"]


def test_while_stripe_is_down_nothing_is_deleted(world: ApiWorld) -> None:
    ada = world.signed_in("ada@example.com")
    subscribe(world, ada)
    world.stripe.down = True
    answer = world.ask("DELETE", "/auth/me", caller=ada)
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["details"]["error_code"] == "stripe_unavailable"
    assert world.ask("GET", "/auth/me", caller=ada).status == 200
    assert statuses(world, "subscription") == ["active"]
    world.stripe.down = False
    assert world.ask("DELETE", "/auth/me", caller=ada).status == 204
    assert statuses(world, "subscription") == ["canceled"]


def test_who_never_bought_anything_is_deleted_without_asking_stripe(world: ApiWorld) -> None:
    ada = world.signed_in("ada@example.com")
    world.stripe.down = True
    assert world.ask("DELETE", "/auth/me", caller=ada).status == 204
    assert world.stripe.asked == []


def refuses_meter_events(method: str, path: str) -> Fault | None:
    return Fault.ERROR_BEFORE if path.startswith("/v1/billing/meter_events") and method == "POST" else None


@pytest.mark.parametrize("told", [True, False])
def test_overage_so_far_is_billed_but_keeps_nobody_from_being_deleted(told: bool) -> None:
    """Two dollars of it; nobody has told Stripe before."""
    with api_world(behind=timedelta(hours=2)) as world:
        ada = world.signed_in("ada@example.com")
        subscribe(world, ada)
        world.ask("POST", "/billing/overage", {"enabled": True}, caller=ada)
        world.stripe.world.advance(world.stripe.world.now + timedelta(hours=2))
        tools = importlib.import_module("functions.billing.app").api.tools
        account = tools.accounts.find(Principal("main", ada.user_id, CredentialKind.ACCESS_TOKEN, ""), fresh=True)
        spend(account, tools.ledger, account.plan.quota_tokens + 100_000)
        if not told:
            world.stripe.faults = refuses_meter_events
        assert world.ask("DELETE", "/auth/me", caller=ada).status == 204
        assert statuses(world, "subscription") == ["canceled"]
        owed_cents = 100_000 * account.plan.overage_price_microusd_per_1k_tokens // 10_000_000
        billed = [invoice["total"] for invoice in world.stripe.world.all("invoice")]
        assert (owed_cents in billed) is told, billed
