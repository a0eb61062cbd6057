"""Valid requests of any operation, drawn from the SDK's TypedDicts as Python sees them at run time.

The double reads the same package as source text; these samples come to be another way, so that both must agree.
"""

from __future__ import annotations

import importlib
import random
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal, Union

import typing_extensions as te
from stripe._request_options import RequestOptions
from stripe._stripe_object import UntypedStripeObject

from dev.stripe_double.contract import Operation

WORDS = ("alpha", "bravo", "charlie", "delta")
DEEPEST = 5
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Site:
    """One value of a sample, and the type it was made for."""

    place: Place
    kind: Any


def params_class(operation: Operation) -> Any:  # noqa: ANN401  a TypedDict class
    """The TypedDict that the service's method takes."""
    assert operation.params is not None
    module, name = operation.params.split(":")
    return getattr(importlib.import_module(f"stripe.params.{module}"), name)


@cache
def fields(kind: Any) -> dict[str, Any]:  # noqa: ANN401
    """Without the SDK's request options, which some of the types carry along."""
    options = RequestOptions.__annotations__
    own = {name: hint for name, hint in kind.__annotations__.items() if name not in options}
    holder = type("Holder", (), {"__annotations__": own})
    return typing.get_type_hints(holder, globalns=vars(sys.modules[kind.__module__]), include_extras=True)


def required(kind: Any) -> set[str]:  # noqa: ANN401
    return {name for name, hint in fields(kind).items() if typing.get_origin(hint) is not te.NotRequired}


def bare(hint: Any) -> Any:  # noqa: ANN401
    return te.get_args(hint)[0] if te.get_origin(hint) is te.NotRequired else hint


def alternatives(kind: Any) -> list[Any]:  # noqa: ANN401
    """Of a union; where the SDK lists values and adds "or any string", the listed ones are what works."""
    if te.get_origin(kind) not in (Union, types.UnionType):
        return [kind]
    parts = [part for part in te.get_args(kind) if part is not type(None) and not is_twin(part)]
    listed = any(te.get_origin(part) is Literal and any(te.get_args(part)) for part in parts)
    return [part for part in parts if not (listed and part is str)]


def is_twin(part: Any) -> bool:  # noqa: ANN401
    """`UntypedStripeObject[str]` is what `Dict[str, str]` may also be given as."""
    return (te.get_origin(part) or part) is UntypedStripeObject


class Sampler:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.sites: list[Site] = []

    def sample(self, kind: Any) -> dict[str, Any]:  # noqa: ANN401
        """Everything that is required and some of what is not; `sites` then says where everything is."""
        self.sites = []
        made: dict[str, Any] = self._value(kind, ())
        return made

    def _value(self, kind: Any, place: Place) -> Any:  # noqa: ANN401
        kind = self._random.choice(alternatives(kind))
        origin, arguments = te.get_origin(kind), te.get_args(kind)
        self.sites.append(Site(place, kind))
        if origin is Literal:
            return self._random.choice(arguments)
        if origin in (list, te.Sequence):
            return [self._value(arguments[0], (*place, index)) for index in range(self._random.randint(1, 2))]
        if origin is dict:
            return {word: self._value(arguments[1], (*place, word)) for word in self._random.sample(WORDS, 2)}
        if te.is_typeddict(kind):
            return self._fields(kind, place)
        plain: dict[Any, Callable[[], Any]] = {
            str: lambda: self._random.choice(WORDS),
            bool: lambda: self._random.random() < 0.5,
            int: lambda: self._random.randint(1, 10**9),
            float: lambda: self._random.randint(1, 1000) / 8,
            Decimal: lambda: str(Decimal(self._random.randint(1, 10**6)).scaleb(-4)),
        }
        return plain[kind]() if kind in plain else "anything"

    def _fields(self, kind: Any, place: Place) -> dict[str, Any]:  # noqa: ANN401
        chance = 0.6 / (1 + len(place)) if len(place) < DEEPEST else 0.0
        needed = required(kind)
        chosen = [name for name in fields(kind) if name in needed or self._random.random() < chance]
        if not chosen and place and (optional := sorted(fields(kind))):
            # An empty hash cannot be told in a form, so one field is there in any case.
            chosen = [self._random.choice(optional)]
        return {name: self._value(bare(fields(kind)[name]), (*place, name)) for name in chosen}


def sites_of(kind: Any, value: Any, place: Place = ()) -> Iterator[Site]:  # noqa: ANN401
    """The sites of parameters that somebody else made."""
    for one in alternatives(kind):
        origin, arguments = te.get_origin(one), te.get_args(one)
        if te.is_typeddict(one) and isinstance(value, dict):
            yield Site(place, one)
            for name, inner in value.items():
                yield from sites_of(bare(fields(one)[name]), inner, (*place, name))
        elif origin is list and isinstance(value, list):
            for index, inner in enumerate(value):
                yield from sites_of(arguments[0], inner, (*place, index))
        elif (
            (origin is Literal and value in arguments)
            or (one in (int, float, bool) and type(value) is one)
            or (one in (str, Decimal) and isinstance(value, str))
        ):
            yield Site(place, one)
        else:
            continue
        return


def put(sample: Any, place: Place, value: Any) -> Any:  # noqa: ANN401
    """A copy of the sample with another value there."""
    if not place:
        return value
    if isinstance(sample, list):
        return [put(one, place[1:], value) if index == place[0] else one for index, one in enumerate(sample)]
    return {**sample, place[0]: put(sample.get(place[0]), place[1:], value)}


def look(sample: Any, place: Place) -> Any:  # noqa: ANN401
    for part in place:
        sample = sample[part]
    return sample


def spoiled(sample: dict[str, Any], sites: list[Site]) -> Iterator[tuple[str, str, Any]]:
    """(what is wrong, where, the sample with that one fault), for everything that can be wrong with it."""
    for site in sites:
        where, value = _spelled(site.place), look(sample, site.place)
        if te.is_typeddict(site.kind):
            yield (
                "unknown key",
                _spelled((*site.place, "no_such_thing")),
                put(sample, site.place, {**value, "no_such_thing": "x"}),
            )
            for name in sorted(required(site.kind) & value.keys()):
                left = {key: one for key, one in value.items() if key != name}
                if left or not site.place:
                    yield "missing required", _spelled((*site.place, name)), put(sample, site.place, left)
        elif site.kind in (int, float, bool, Decimal) and site.place:
            yield "wrong type", where, put(sample, site.place, "twelve")
        elif te.get_origin(site.kind) is Literal:
            yield "bad enum", where, put(sample, site.place, "no_such_value")
        elif site.kind is str:
            yield "hash for text", where, put(sample, site.place, {"no_such_key": "x"})


def _spelled(place: Place) -> str:
    return str(place[0]) + "".join(f"[{part}]" for part in place[1:]) if place else ""
