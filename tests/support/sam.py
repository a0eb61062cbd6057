"""The SAM template as written, as CloudFormation sees it, and as it stands with parameters filled in."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

Node = Any
"""A piece of a template: whatever YAML can say."""

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "template.yaml"

REGION = "us-east-1"
PSEUDO = {
    "AWS::AccountId": "111122223333",
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": "tollgate-test",
    "AWS::URLSuffix": "amazonaws.com",
}


def load_template() -> dict[str, Node]:
    """template.yaml with intrinsic functions in their long form."""
    return cast("dict[str, Node]", yaml_parse(TEMPLATE.read_text()))


def resources_of(template: Mapping[str, Node], kind: str) -> dict[str, dict[str, Node]]:
    """Resources of one type by logical id."""
    return {name: resource for name, resource in template["Resources"].items() if resource["Type"] == kind}


def functions_of(template: Mapping[str, Node]) -> dict[str, dict[str, Node]]:
    """Properties of the functions by the name of their folder, Globals merged in as SAM merges them."""
    shared = template["Globals"]["Function"]
    return {
        properties["CodeUri"].removeprefix("functions/"): _merged(shared, properties)
        for properties in (
            resource["Properties"] for resource in resources_of(template, "AWS::Serverless::Function").values()
        )
    }


def _merged(shared: Node, own: Node) -> Node:
    if isinstance(shared, dict) and isinstance(own, dict):
        return {key: _merged(shared.get(key), own.get(key, shared.get(key))) for key in {**shared, **own}}
    return own


def parameters_of(template: Mapping[str, Node], **overrides: str) -> dict[str, str]:
    """Every parameter's value in a deployment that overrides some; KeyError for an unknown name."""
    values = {name: str(parameter["Default"]) for name, parameter in template["Parameters"].items()}
    unknown = overrides.keys() - values.keys()
    if unknown:
        raise KeyError(f"no such parameters: {sorted(unknown)}")
    return values | overrides


class NoManagedPolicies:
    """SAM looks managed policies up in IAM; this template names none."""

    def load(self) -> dict[str, str]:
        return {}


def to_cloudformation(template: Mapping[str, Node], *, artifact: str = "s3://artifacts/1", **overrides: str) -> Node:
    """What AWS makes of the template, transformed on this machine; `artifact` stands in for every uploaded folder."""
    packaged = copy.deepcopy(dict(template))
    for resource in packaged["Resources"].values():
        for key in ("CodeUri", "ContentUri"):
            if key in resource.get("Properties", {}):
                resource["Properties"][key] = f"{artifact}-{resource['Properties'][key].replace('/', '-')}"
    # The translator asks boto3 for a region and for nothing else.
    with patch.dict(os.environ, {"AWS_DEFAULT_REGION": REGION}):
        return transform(packaged, overrides, NoManagedPolicies())


def resolved(value: Node, template: Mapping[str, Node], parameters: Mapping[str, str]) -> Node:
    """A value with its intrinsic functions evaluated; references to resources become `<Name>` or `<Name.Attribute>`."""
    if isinstance(value, list):
        entries = [resolved(entry, template, parameters) for entry in value]
        return [entry for entry in entries if entry is not NO_VALUE]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(function, argument)] = value.items()
        if function in _INTRINSICS:
            return _INTRINSICS[function](argument, template, parameters)
    entries_by_key = {key: resolved(entry, template, parameters) for key, entry in value.items()}
    return {key: entry for key, entry in entries_by_key.items() if entry is not NO_VALUE}


NO_VALUE = object()


def _ref(name: str, template: Mapping[str, Node], parameters: Mapping[str, str]) -> Node:
    if name == "AWS::NoValue":
        return NO_VALUE
    return PSEUDO[name] if name in PSEUDO else parameters.get(name, f"<{name}>")


def _get_att(name: Node, _: Mapping[str, Node], __: Mapping[str, str]) -> str:
    return f"<{name if isinstance(name, str) else '.'.join(name)}>"


def _sub(text: str, template: Mapping[str, Node], parameters: Mapping[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if "." in name:
            return _get_att(name, template, parameters)
        return str(_ref(name, template, parameters))

    return re.sub(r"\$\{([^}]+)\}", value_of, text)


def _join(argument: Node, template: Mapping[str, Node], parameters: Mapping[str, str]) -> str:
    separator, parts = argument
    return str(separator).join(resolved(parts, template, parameters))


def _split(argument: Node, template: Mapping[str, Node], parameters: Mapping[str, str]) -> list[str]:
    separator, text = argument
    return str(resolved(text, template, parameters)).split(separator)


def _select(argument: Node, template: Mapping[str, Node], parameters: Mapping[str, str]) -> Node:
    index, entries = argument
    found = resolved(entries, template, parameters)
    # CloudFormation evaluates only the branch that is taken; this reader meets the other one too.
    return found[int(index)] if int(index) < len(found) else ""


def _if(argument: Node, template: Mapping[str, Node], parameters: Mapping[str, str]) -> Node:
    name, then, otherwise = argument
    return resolved(then if condition(name, template, parameters) else otherwise, template, parameters)


_INTRINSICS = {
    "Ref": _ref,
    "Fn::GetAtt": _get_att,
    "Fn::Sub": _sub,
    "Fn::Join": _join,
    "Fn::Split": _split,
    "Fn::If": _if,
    "Fn::Select": _select,
}


def condition(name: str, template: Mapping[str, Node], parameters: Mapping[str, str]) -> bool:
    """Whether a named condition holds."""
    return _holds(template["Conditions"][name], template, parameters)


def _holds(expression: Node, template: Mapping[str, Node], parameters: Mapping[str, str]) -> bool:
    [(function, argument)] = expression.items()
    match function:
        case "Condition":
            return condition(argument, template, parameters)
        case "Fn::Equals":
            left, right = resolved(argument, template, parameters)
            return str(left) == str(right)
        case "Fn::Not":
            return not _holds(argument[0], template, parameters)
        case "Fn::And":
            return all(_holds(part, template, parameters) for part in argument)
        case "Fn::Or":
            return any(_holds(part, template, parameters) for part in argument)
    raise ValueError(f"this reader does not know {function}")


def statements_of(role: Mapping[str, Node]) -> Iterator[dict[str, Node]]:
    """The permission statements of a role, conditional ones included."""
    for policy in role["Properties"]["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            yield statement["Fn::If"][1] if "Fn::If" in statement else statement


def rights_of(role: Mapping[str, Node], template: Mapping[str, Node], **parameters: str) -> dict[str, set[str]]:
    """What a role may do: actions by resource, with the template's conditions applied."""
    policies = resolved(role["Properties"]["Policies"], template, parameters_of(template, **parameters))
    rights: dict[str, set[str]] = {}
    for policy in policies:
        for statement in policy["PolicyDocument"]["Statement"]:
            resources = statement["Resource"]
            for resource in resources if isinstance(resources, list) else [resources]:
                rights.setdefault(resource, set()).update(statement["Action"])
    return rights


def role_of(function: str, template: Mapping[str, Node]) -> dict[str, Node]:
    """The role of the function in a folder."""
    [name, _] = functions_of(template)[function]["Role"]["Fn::GetAtt"]
    return cast("dict[str, Node]", template["Resources"][name])


def environment_of(function: str, template: Mapping[str, Node], **parameters: str) -> dict[str, str]:
    """A function's variables as `sam local` sets them: resources stand for themselves by their logical ids."""
    variables = functions_of(template)[function]["Environment"]["Variables"]
    values = resolved(variables, template, parameters_of(template, **parameters))
    return {name: re.sub(r"<(\w+)>", r"\1", str(value)) for name, value in values.items()}


def table_definition(template: Mapping[str, Node]) -> dict[str, Node]:
    """Arguments of CreateTable for the template's table."""
    [(name, table)] = resources_of(template, "AWS::DynamoDB::Table").items()
    of_create_table = ("AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema")
    return {"TableName": name} | {key: table["Properties"][key] for key in of_create_table}
