"""docs/openapi.json is whole: every route of the template, every answer, and examples that keep their own promise."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from tests.support.sam import ROOT, functions_of, load_template

DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def routes() -> dict[str, bool]:
    """Every HttpApi route of the template, and whether it is open; read without the local stack's own reader."""
    found = {}
    for function in functions_of(load_template()).values():
        for event in function.get("Events", {}).values():
            if event["Type"] == "HttpApi":
                properties = event["Properties"]
                open_to_all = properties.get("Auth", {}).get("Authorizer") == "NONE"
                found[f"{properties['Method']} {properties['Path']}"] = open_to_all
    return found


def test_it_has_every_route_of_the_template_and_no_other() -> None:
    assert set(OPERATIONS) == set(routes())


def test_a_route_is_open_in_it_exactly_where_the_template_opens_it() -> None:
    assert {name: operation["security"] == [] for name, operation in OPERATIONS.items()} == routes()


def test_it_is_openapi_3_1_with_one_name_for_each_operation() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert DOCUMENT["components"]["securitySchemes"]["accessToken"]["scheme"] == "bearer"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_tells_every_way_it_can_end(name: str) -> None:
    operation = OPERATIONS[name]
    statuses = set(operation["responses"])
    assert len([status for status in statuses if status < "300"]) == 1
    assert {"429", "500", "503"} <= statuses
    assert ("401" in statuses) or operation["security"] == []
    assert "422" not in statuses or "idempotency" in str(operation["responses"]["422"])
    if "requestBody" in operation:
        assert {"400", "413", "415"} <= statuses
        assert set(operation["requestBody"]["content"]) == {"application/json"}
    for answer in operation["responses"].values():
        assert answer["description"]
        assert "request-id" in answer["headers"]
    assert operation["summary"]


def test_a_route_that_answers_a_repetition_says_how_it_is_recognised() -> None:
    """Who does not know the header cannot send it, and makes two keys where one was meant."""
    told = {
        name
        for name, operation in OPERATIONS.items()
        for parameter in operation.get("parameters", ())
        if (parameter["in"], parameter["name"]) == ("header", "idempotency-key")
        and not parameter.get("required")
        and parameter["description"]
    }
    answering = {name for name, operation in OPERATIONS.items() if "idempotency" in str(operation["responses"])}
    assert told == answering == {"POST /api-keys"}


def test_every_reference_leads_somewhere_and_no_schema_is_left_over() -> None:
    text = json.dumps(DOCUMENT)
    for kind in ("schemas", "headers"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name
    for part in text.split('"#/components/')[1:]:
        kind, _, name = part.partition('"')[0].partition("/")
        assert name in DOCUMENT["components"][kind]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_example_is_valid(name: str) -> None:
    operation = OPERATIONS[name]
    for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
        for content in holder.get("content", {}).values():
            examples = [example["value"] for example in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            assert examples
            schema = {**content["schema"], "components": DOCUMENT["components"]}
            for example in examples:
                jsonschema_rs.validate(schema, example)
