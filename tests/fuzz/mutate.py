"""Seeded distortions: of JSON values, of texts, of bytes. One generator for each input, so one integer replays it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from random import Random
from typing import Any

ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u2028",
    "é",
    "世界",
    "🙂",
    "\r\n",
    "../..",
    "%00",
    "'\"<>",
    "x" * 300,
    "-1",
    "1e999",
    "true",
    "null",
    "event: message_stop",
    "TENANT#main#USER#x",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    -(2**63),
    10**400,
    0.1,
    1e308,
    [],
    {},
    [[]],
    {"": ""},
    {"type": None},
    *ODD_TEXTS,
)
ODD_JSON = (b"", b"{", b"[]", b"null", b'"x"', b"1", b"{}{}", b'{"a":1,"a":2}', b"\xff\xfe", b"NaN", b"[" * 20_000)


def odd_text(random: Random) -> str:
    if random.random() < 0.5:
        return random.choice(ODD_TEXTS)
    return "".join(
        chr(random.choice((random.randrange(128), random.randrange(0x3000)))) for _ in range(random.randrange(40))
    )


def mutated_json(random: Random, value: Any, rounds: int) -> Any:  # noqa: ANN401  any JSON
    """The value with so many of its members removed, doubled, renamed, or made something else."""
    value = json.loads(json.dumps(value))
    for _ in range(rounds):
        places = list(_places(value))
        if not places:
            break
        holder, key = random.choice(places)
        _distort(random, holder, key)
    return value


def _places(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _distort(random: Random, holder: Any, key: Any) -> None:  # noqa: ANN401
    old = holder[key]
    choice = random.randrange(7)
    if choice == 0:
        del holder[key]
    elif choice == 1 and isinstance(holder, dict):
        holder[odd_text(random)] = holder.pop(key)
    elif choice == 2 and isinstance(holder, list):
        holder.extend([old] * random.randrange(1, 4))
    elif choice == 3:
        holder[key] = [old] * random.randrange(3)
    elif choice == 4:
        holder[key] = {odd_text(random): old}
    else:
        holder[key] = deepcopy(random.choice(ODD_VALUES))  # or the next round would distort the list itself


def encoded(value: Any) -> bytes:  # noqa: ANN401
    """As a client might send it: lone surrogates escaped."""
    return json.dumps(value).encode()


def mutated_bytes(random: Random, data: bytes, rounds: int) -> bytes:
    """The bytes with some of them changed, cut out, doubled or moved."""
    found = bytearray(data)
    for _ in range(rounds):
        if not found:
            return bytes(found)
        at = random.randrange(len(found))
        end = min(len(found), at + random.randrange(1, 30))
        match random.randrange(6):
            case 0:
                found[at] = random.randrange(256)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end]
            case 3:
                found[at:at] = random.choice((b"\n", b"\r", b"\r\n", b"\n\n", b":", b"{", b"\x00", b"\xff", b"data: "))
            case 4:
                del found[at:]
            case _:
                found[at:end] = random.randbytes(end - at)
    return bytes(found)


def cut(random: Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces."""
    if random.random() < 0.2:
        return [data[at : at + 1] for at in range(len(data))]
    bounds = sorted({0, len(data), *(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 12)))})
    return [data[start:end] for start, end in pairwise(bounds)]


def pick(random: Random, ways: Sequence[tuple[int, Callable[[], Any]]]) -> Any:  # noqa: ANN401
    """One of several ways, by weight."""
    [way] = random.choices([way for _, way in ways], [weight for weight, _ in ways])
    return way()
