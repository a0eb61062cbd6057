"""The double takes what the SDK's own types allow, and refuses everything else, parameter by parameter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe
import typing_extensions as te
from stripe._encode import _api_encode

from dev.stripe_double import derivation
from dev.stripe_double.contract import Contract, Operation, installed_contract
from dev.stripe_double.forms import parse_form
from tests.dev.stripe_samples import Sampler, alternatives, bare, fields, params_class, spoiled

SEED = 20261120
SAMPLES_EACH = 4

CONTRACT = installed_contract()
OPERATIONS = [operation for operation in CONTRACT.operations.values() if operation.params]


def as_sent(operation: Operation, params: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The parameters as they arrive: v1 and reads as a form, encoded by the SDK itself, v2 writes as JSON."""
    method, _, path = operation.key.partition(" ")
    if path.startswith("/v2/") and method != "GET":
        return json.loads(json.dumps(params)), False
    return parse_form(urlencode(list(_api_encode(params)))), True


def refusals(operation: Operation, params: dict[str, Any]) -> list[str]:
    given, form = as_sent(operation, params)
    return [f"{one.code} {one.param}" for one in CONTRACT.check(operation, given, form=form)[1]]


def test_the_contract_is_of_the_version_that_is_locked() -> None:
    assert CONTRACT.api_version == stripe.api_version
    assert len(CONTRACT.operations) > 150


def test_every_valid_request_is_taken() -> None:
    sampler = Sampler(SEED)
    wrong = [
        (operation.key, found, sample)
        for operation in OPERATIONS
        for _ in range(SAMPLES_EACH)
        for sample in [sampler.sample(params_class(operation))]
        for found in refusals(operation, sample)
    ]
    assert wrong == []


def test_every_fault_in_a_request_is_caught_where_it_is() -> None:
    """Unknown key, missing key, wrong type, value the enum lacks: one at a time, in every place of every sample."""
    sampler = Sampler(SEED)
    missed: list[tuple[str, str, str]] = []
    tried: dict[str, int] = {}
    for operation in OPERATIONS:
        for _ in range(SAMPLES_EACH):
            sample = sampler.sample(params_class(operation))
            for fault, where, broken in spoiled(sample, sampler.sites):
                if forgiven(operation, fault, where):
                    continue
                tried[fault] = tried.get(fault, 0) + 1
                found = refusals(operation, broken)
                if not any(one.split(" ", 1)[1].startswith(where.split("[no_such")[0]) for one in found):
                    missed.append((operation.key, fault, where))
    assert missed == []
    assert all(count > 100 for count in tried.values()), tried
    assert set(tried) == {"unknown key", "missing required", "wrong type", "hash for text", "bad enum"}


def forgiven(operation: Operation, fault: str, where: str) -> bool:
    """A place where another alternative of the SDK's own type takes the broken value as well."""
    kind: Any = params_class(operation)
    path = where.replace("]", "").split("[")
    if fault in ("unknown key", "missing required"):
        path = path[:-1]
    taken: list[Any] = []
    for part in path:
        hashes = [one for one in alternatives(kind) if te.is_typeddict(one) or te.get_origin(one) in (list, dict)]
        if len(hashes) > 1:
            return True
        arguments = te.get_args(hashes[0])
        kind = arguments[-1] if arguments else bare(fields(hashes[0])[part])
        taken = [te.get_origin(one) or one for one in alternatives(kind)]
    match fault:
        case "wrong type" | "bad enum":
            return str in taken
        case "hash for text":
            return dict in taken
    return dict in taken and len(taken) > 1


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ("client_referenc_id=u", "parameter_unknown", "client_referenc_id", "Did you mean client_reference_id?"),
        ("mode=subscribe", "parameter_invalid_enum", "mode", "did you mean subscription?"),
        ("payment_method_types[0]=card", "parameter_unknown", "payment_method_types", "allowed_payment_method_types"),
        ("line_items[0][quantity]=two", "parameter_invalid_integer", "line_items[0][quantity]", "Invalid integer: two"),
        ("expires_at=", "parameter_invalid_integer", "expires_at", "Invalid integer: "),
        ("success_url=", "parameter_invalid_empty", "success_url", "cannot be unset"),
        ("metadata[a][b]=c", "parameter_invalid_type", "metadata[a]", "single value"),
        ("line_items=x", "parameter_invalid_array", "line_items", "Invalid array"),
        ("automatic_tax=true", "parameter_invalid_object", "automatic_tax", "must be a hash"),
        ("automatic_tax[liability][type]=self", "parameter_missing", "automatic_tax[enabled]", "Missing required"),
    ],
)
def test_a_refusal_says_what_and_where_as_stripe_does(body: str, code: str, param: str, says: str) -> None:
    operation, _ = match("POST", "/v1/checkout/sessions")
    found = CONTRACT.check(operation, parse_form(body), form=True)[1]
    assert [(one.code, one.param) for one in found] == [(code, param)]
    assert says in found[0].message


def test_parameters_arrive_in_their_own_types() -> None:
    operation, _ = match("POST", "/v1/subscriptions/sub_1")
    body = "cancel_at_period_end=true&proration_date=12&items[1][id]=b&items[0][id]=a&metadata[0]=x&cancel_at="
    typed, violations = CONTRACT.check(operation, parse_form(body), form=True)
    assert violations == []
    assert typed == {
        "cancel_at": "",
        "cancel_at_period_end": True,
        "items": [{"id": "a"}, {"id": "b"}],
        "metadata": {"0": "x"},
        "proration_date": 12,
    }


def test_json_has_types_of_its_own() -> None:
    operation, _ = match("POST", "/v2/core/event_destinations")
    given = {"name": 1, "type": "webhook_endpoint", "event_payload": "thin", "enabled_events": ["*"]}
    found = CONTRACT.check(operation, given, form=False)[1]
    assert [(one.code, one.param) for one in found] == [("parameter_invalid_string", "name")]


def test_a_literal_segment_wins_over_an_id() -> None:
    assert match("POST", "/v1/invoices/create_preview")[0].key == "POST /v1/invoices/create_preview"
    operation, ids = match("POST", "/v1/invoices/in_1")
    assert (operation.key, ids) == ("POST /v1/invoices/{invoice}", {"invoice": "in_1"})
    assert CONTRACT.match("PUT", "/v1/invoices/in_1") is None


def match(method: str, path: str) -> tuple[Operation, dict[str, str]]:
    found = CONTRACT.match(method, path)
    assert found is not None
    return found


def test_the_derived_document_is_kept_and_read_again(tmp_path: Path) -> None:
    first = derivation.document(tmp_path, ("/v1/refunds",))
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1
    assert derivation.document(tmp_path, ("/v1/refunds",)) == first
    assert list(tmp_path.iterdir()) == kept
    assert derivation.document(tmp_path, ("/v1/charges",)) != first


def test_a_package_without_its_types_is_told_from_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer's stripe has no `params`; deriving from it would give a contract that takes everything."""
    pruned = tmp_path / "stripe"
    pruned.mkdir()
    shutil.copy(Path(stripe.__file__).parent / "_api_version.py", pruned / "__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "stripe")
    with pytest.raises(derivation.PrunedPackageError, match="no params"):
        derivation.package_root()


def test_an_answer_with_a_field_of_another_version_is_noticed() -> None:
    shape = {"$": CONTRACT.by_object["invoice"]}
    assert "x.subscription: no such field" in CONTRACT.answer_faults(shape, {"subscription": "sub_1"}, "x")
    line = {"$": CONTRACT.by_object["line_item"]}
    assert "x.price: no such field" in CONTRACT.answer_faults(line, {"price": "price_1"}, "x")
    subscription = {"$": CONTRACT.by_object["subscription"]}
    faults = CONTRACT.answer_faults(subscription, {"current_period_end": 1, "status": "on"}, "x")
    assert "x.current_period_end: no such field" in faults
    assert any(fault.startswith("x.status: 'on' is none of") for fault in faults)


def test_a_contract_can_be_made_of_a_stored_document() -> None:
    stored = json.loads(json.dumps(derivation.derive(derivation.package_root(), ("/v1/refunds",))))
    assert "POST /v1/refunds" in Contract(stored).operations
