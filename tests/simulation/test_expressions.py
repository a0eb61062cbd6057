"""The interpreter of DynamoDB's expressions: what it understands, and that it refuses the rest."""

from __future__ import annotations

import pytest

from tests.simulation.expressions import ExpressionError, Item, compile_condition, compile_update

METER: Item = {"PK": {"S": "USER"}, "SK": {"S": "USAGE"}, "remaining": {"N": "10"}, "r#1": {"S": "5:0:a:1"}}
NAMES = {"#r": "r#1", "#x": "x#1"}
VALUES = {
    ":nine": {"N": "9"},
    ":ten": {"N": "10"},
    ":eleven": {"N": "11"},
    ":text": {"S": "5:0:a:1"},
    ":word": {"S": "10"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("remaining >= :nine", True),
        ("remaining >= :ten", True),
        ("remaining >= :eleven", False),
        ("remaining > :nine", True),
        ("remaining > :ten", False),
        ("remaining < :eleven", True),
        ("remaining < :ten", False),
        ("remaining <= :ten", True),
        ("remaining <= :nine", False),
        ("remaining = :ten", True),
        ("remaining = :word", False),  # a number never equals a string
        ("remaining <> :word", True),
        ("remaining <> :ten", False),
        ("missing >= :nine", False),
        ("missing = :nine", False),
        ("missing <> :nine", True),
        ("#r = :text", True),
        ("attribute_exists(PK)", True),
        ("attribute_exists(#x)", False),
        ("attribute_not_exists(#x)", True),
        ("attribute_not_exists(#r)", False),
        ("NOT attribute_exists(#r)", False),
        ("remaining BETWEEN :nine AND :eleven", True),
        ("begins_with(SK, :text)", False),
        ("attribute_exists(#x) OR attribute_exists(PK) AND attribute_exists(#r)", True),
        ("(attribute_exists(PK) OR attribute_exists(#r)) AND attribute_exists(#x)", False),
    ],
)
def test_a_condition_holds_as_in_dynamodb(text: str, expected: bool) -> None:
    assert compile_condition(text).test(METER, NAMES, VALUES) is expected


def test_a_range_whose_ends_are_reversed_is_refused() -> None:
    """DynamoDB refuses it; moto does not."""
    assert compile_condition("remaining BETWEEN :ten AND :ten").test(METER, NAMES, VALUES)
    with pytest.raises(ExpressionError, match="upper bound"):
        compile_condition("remaining BETWEEN :eleven AND :nine").test(METER, NAMES, VALUES)


def test_every_condition_on_a_missing_item_sees_no_attribute() -> None:
    assert compile_condition("attribute_not_exists(PK)").test({}, NAMES, VALUES)
    assert not compile_condition("remaining >= :nine").test({}, NAMES, VALUES)


def test_an_update_computes_from_the_old_item_only() -> None:
    update = compile_update("SET remaining = remaining - :nine, other = remaining REMOVE #r")

    assert update.apply(METER, NAMES, VALUES) == {
        "PK": {"S": "USER"},
        "SK": {"S": "USAGE"},
        "remaining": {"N": "1"},
        "other": {"N": "10"},
    }
    assert METER["remaining"] == {"N": "10"}


def test_add_and_if_not_exists_begin_at_their_default() -> None:
    update = compile_update("SET a = if_not_exists(a, :nine) + :ten ADD b :nine")

    new = update.apply(METER, NAMES, VALUES)

    assert (new["a"], new["b"]) == ({"N": "19"}, {"N": "9"})


def test_an_update_from_an_attribute_that_is_not_there_is_refused() -> None:
    with pytest.raises(ExpressionError):
        compile_update("SET missing = missing + :nine").apply(METER, NAMES, VALUES)


def test_two_actions_on_one_attribute_are_refused() -> None:
    with pytest.raises(ExpressionError):
        compile_update("SET #r = :text REMOVE #same").check_paths({**NAMES, "#same": "r#1"})


@pytest.mark.parametrize(
    "text",
    [
        "remaining >= 10",
        "size(r) > :nine",
        "contains(a, :text)",
        "a.b = :nine",
        "a[0] = :nine",
        "remaining >= :nine AND",
        "(remaining >= :nine",
        "remaining >= :nine remaining",
        "remaining == :nine",
        "status = :nine",
        "attribute_exists(:nine)",
        "",
    ],
)
def test_a_condition_outside_the_known_language_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        compile_condition(text)


@pytest.mark.parametrize(
    "text",
    ["SET a = b * :nine", "SET a = :nine SET b = :nine", "DELETE a :nine", "SET a", "a = :nine", "SET :nine = a", ""],
)
def test_an_update_outside_the_known_language_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        compile_update(text)
