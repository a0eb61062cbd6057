"""Every guard of the ledger switched off, one at a time, by a patch of its source: each must be caught.

`before` must occur exactly once in the module, so a change of the code that moves a guard fails here and is looked at.
A mutant runs in a process of its own, in which the patched module is loaded in place of the real one.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, ModuleType

METERS = "tollgate.storage.meters"
LEDGER = "tollgate.flows.ledger"
RELAY = "tollgate.flows.relay_message"
DOMAIN = "tollgate.domain.ledger"
_CORE = Path(__file__).resolve().parents[2] / "layers" / "core"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard switched off."""

    name: str
    module: str
    edits: tuple[tuple[str, str], ...]
    """(before, after); each `before` occurs once."""
    seeds: int
    """It is caught within this many seeds, beginning with seed 0."""
    survives_because: str = ""
    """Why nothing catches it; empty: it must be caught."""


def _always(condition: str) -> str:
    """The condition still named, and never false."""
    return f"({condition} OR attribute_exists(PK))"


def _condition(name: str, condition: str, after: str, seeds: int, because: str = "", *, module: str = METERS) -> Mutant:
    """A condition of `storage.meters` made always true; `after` is what follows it, to tell it from its likes."""
    return Mutant(name, module, ((f'"{condition}"{after}', f'"{_always(condition)}"{after}'),), seeds, because)


_RESERVE_PARTS = (
    _condition("dup", "attribute_not_exists(#r)", ",  # not reserved yet", 200),
    _condition("tombstone", "attribute_not_exists(#x)", ",  # not ended before", 200),
    _condition("remaining", "remaining >= :need", ",  # room for the amount", 50),
    _condition("request quota", "req_remaining >= :one", ",  # a request is left", 50),
    _condition("max_open", "open_count < :max_open", ",  # a stream slot", 50),
    _condition("plan_version pin", "plan_version = :version", ",  # the plan in hand", 400),
    _condition(
        "overage cap pin",
        "overage_cap = :cap",
        ",  # the cap this room was computed with\n    )\n)\n_RATE_IDLE",
        400,
        "the plan version is pinned beside it and moves whenever the cap does",
    ),
    _condition("GCRA idle", "rate_tat <= :now", ', "rate_tat = :next")', 100),
    Mutant(
        "GCRA busy, latest",
        METERS,
        (('"rate_tat > :now AND rate_tat <= :latest"', '"rate_tat > :now AND (rate_tat <= :latest OR attribute_exists(PK))"'),),
        100,
    ),
    Mutant(
        "GCRA busy, earliest",
        METERS,
        (('"rate_tat > :now AND rate_tat <= :latest"', '"(rate_tat > :now OR attribute_exists(PK)) AND rate_tat <= :latest"'),),
        400,
        "the stored time only moves on, and this form is sent only by who has seen it lie ahead",
    ),
)

_END_PARTS = (
    Mutant(
        "exact value, settlement",
        METERS,
        (
            (
                '"ConditionExpression": "#r = :reservation",\n                "ExpressionAttributeNames": {**names, **old}',
                '"ConditionExpression": "(#r = :reservation OR attribute_exists(PK))",\n'
                '                "ExpressionAttributeNames": {**names, **old}',
            ),
        ),
        50,
    ),
    Mutant(
        "exact value, sweep",
        METERS,
        (
            (
                '"ConditionExpression": "#r = :reservation",\n            "ExpressionAttributeNames"',
                '"ConditionExpression": "(#r = :reservation OR attribute_exists(PK))",\n            "ExpressionAttributeNames"',
            ),
        ),
        400,
    ),
    Mutant(
        "tombstone by settlement",
        LEDGER,
        (("tombstone_at_seconds=int(now) if grant.sent_twice else None", "tombstone_at_seconds=None"),),
        200,
    ),
    Mutant(
        "tombstone by sweep",
        METERS,
        (
            ('f"{_BOOK}, #x = :at REMOVE #r"', 'f"{_BOOK} REMOVE #r"'),
            ('        values[":at"] = n(now_seconds)\n        update', "        update"),
            (
                '"ExpressionAttributeNames": {"#r": f"r#{reservation.id}", "#x": f"x#{reservation.id}"},\n'
                '            "ExpressionAttributeValues": values,\n        }\n        put',
                '"ExpressionAttributeNames": {"#r": f"r#{reservation.id}"},\n'
                '            "ExpressionAttributeValues": values,\n        }\n        put',
            ),
        ),
        2000,
    ),
    Mutant(
        "sent twice",
        METERS,
        (
            (
                'sent_twice=answer["ResponseMetadata"].get("RetryAttempts", 0) > 0',
                'sent_twice=answer["ResponseMetadata"].get("RetryAttempts", 0) > 99',
            ),
        ),
        200,
    ),
    Mutant(
        "expired record",
        METERS,
        (("self._transact([self._in_transaction(key, update), put])", "self._transact([self._in_transaction(key, update)])"),),
        400,
    ),
    Mutant("late correction", LEDGER, (("if expired is None or expired.corrected:", "if True:"),), 400),
    Mutant(
        "late correction once",
        METERS,
        (
            (
                '"outcome = :expired AND charged = :swept"',
                '"(outcome = :expired AND charged = :swept) OR attribute_exists(PK)"',
            ),
        ),
        2000,
        "botocore's token applies the retries of one call once, and a second call reads the record first",
    ),
    Mutant(
        "late correction within the cap",
        METERS,
        (
            (
                'condition += " AND overage_cap = :cap AND remaining >= :need"',
                'condition += " AND (overage_cap = :cap AND remaining >= :need OR attribute_exists(PK))"',
            ),
        ),
        4000,
        "the flow bounds the charge by the room it read; only a reservation in between makes the difference",
    ),
)

_PLAN_PARTS = (
    _condition("create check", "plan_version = :version", ",\n                ", 1000),
    Mutant(
        "carry check",
        METERS,
        (
            (
                "[self._check_plan_version(meter.key, plan_version), self._resize(meter, plan, plan_version)]",
                "[self._resize(meter, plan, plan_version)]",
            ),
        ),
        2000,
    ),
    Mutant(
        "resize compare",
        METERS,
        (
            (
                '"ConditionExpression": "plan_version = :seen",\n                "ExpressionAttributeValues": {\n'
                '                    ":quota"',
                '"ConditionExpression": "(plan_version = :seen OR attribute_exists(PK))",\n'
                '                "ExpressionAttributeValues": {\n                    ":quota"',
            ),
        ),
        2000,
    ),
    Mutant(
        "plan version, profile",
        METERS,
        (
            (
                '"ConditionExpression": "plan_version = :seen",\n                "ExpressionAttributeValues": {":plan"',
                '"ConditionExpression": "(plan_version = :seen OR attribute_exists(PK))",\n'
                '                "ExpressionAttributeValues": {":plan"',
            ),
        ),
        1000,
    ),
    Mutant(
        "plan change, no meter yet",
        METERS,
        (
            (
                '"ConditionExpression": "attribute_not_exists(PK)",\n            }\n        }\n        return',
                '"ConditionExpression": "attribute_not_exists(PK) OR attribute_exists(PK)",\n            }\n        }\n        return',
            ),
        ),
        1000,
        "a meter created in between is brought to the newer plan by the next call that knows it",
    ),
)

_OTHER_PARTS = (
    _condition("top-up compare", "#r = :reservation", ",  # still ours", 400),
    _condition("top-up room", "remaining >= :need", ",  # room, overage included", 100),
    _condition(
        "top-up cap pin",
        "overage_cap = :cap",
        ",  # the cap this room was computed with\n                    )",
        4000,
        "a downgrade must land between reserve and top-up of one stream with a smaller cap and no room",
    ),
    Mutant(
        "idempotency marker",
        METERS,
        (('"attribute_not_exists(PK) OR expires_at < :now"', '"attribute_not_exists(PK) OR expires_at < :now OR attribute_exists(PK)"'),),
        50,
    ),
    Mutant(
        "marker's owner",
        METERS,
        (
            (
                '"ConditionExpression": "reservation_id = :id AND nonce = :nonce"',
                '"ConditionExpression": "(reservation_id = :id AND nonce = :nonce) OR attribute_exists(PK)"',
            ),
        ),
        200,
    ),
    Mutant("nonce", LEDGER, (("if mine is not None and mine.nonce == attempt.reservation.nonce:", "if mine is not None:"),), 1000),
    Mutant("give up", LEDGER, (("            if attempt.sent_twice:\n", "            if False:\n"),), 200),
    Mutant(
        "give up, earlier amount",
        LEDGER,
        (("                if stored is not None and stored.nonce == reservation.nonce:\n", "                if False:\n"),),
        4000,
        "a clamp after a reserve that lands between its refusal and the giving up: seen once in 10,000 seeds",
    ),
    Mutant(
        "unanswered top-up",
        LEDGER,
        (("            reservation = stored  # a top-up", "            continue  # a top-up"),),
        1000,
    ),
    Mutant(
        "deadline expiry",
        LEDGER,
        (
            (
                "expires_at_seconds=ceil(ask.deadline_at_seconds) + EXPIRY_MARGIN_SECONDS",
                "expires_at_seconds=ceil(self._clock.now_seconds()) + 5",
            ),
        ),
        100,
    ),
    Mutant(
        "expiry margin and skew",
        DOMAIN,
        (
            ("EXPIRY_MARGIN_SECONDS = 50", "EXPIRY_MARGIN_SECONDS = 0"),
            ("self.expires_at_seconds + 2 * SKEW_SECONDS < now_seconds", "self.expires_at_seconds < now_seconds"),
        ),
        2000,
    ),
    Mutant(
        "period pin",
        LEDGER,
        (
            (
                "            written = self._meters.settle(\n                grant.key,\n                reservation,\n                booking,",
                "            written = self._meters.settle(\n"
                "                grant.key if now < grant.key.period.end_at.timestamp() else replace(grant.key, period=type("
                "grant.key.period)(grant.key.period.end_at, grant.key.period.end_at)),\n"
                "                reservation,\n                booking,",
            ),
        ),
        200,
    ),
    Mutant(
        "sweep before refusing",
        LEDGER,
        (("if meter.expired(self._clock.now_seconds()):", "if False:"),),
        100,
    ),
    Mutant("released request returns", LEDGER, (("Settlement(used_tokens=0), returns_request=True", "Settlement(used_tokens=0), returns_request=False"),), 100),
    Mutant("strict expiry", DOMAIN, (("    if policy is ExpiryPolicy.STRICT:\n        return reservation.amount_tokens\n", ""),), 400),
    Mutant(
        "bounded input",
        RELAY,
        (("model.weights.billable_prompt_bound(request.prompt_bound_tokens)", "model.weights.billable_prompt_bound(1)"),),
        400,
    ),
    Mutant(
        "stop when a top-up is refused",
        RELAY,
        (("            return _Stop(RequestOutcome.OVER_QUOTA, error)\n        except StoreUnavailableError", "            return None\n        except StoreUnavailableError"),),
        400,
    ),
    Mutant(
        "upstream retries off",
        RELAY,
        (("        except UpstreamLostError as error:\n            self._fail(error)\n        except TollgateError", "        except UpstreamLostError as error:\n            return self._relay.upstream.send(request, self._seconds_left())\n        except TollgateError"),),
        200,
    ),
)

MUTANTS: tuple[Mutant, ...] = (*_RESERVE_PARTS, *_END_PARTS, *_PLAN_PARTS, *_OTHER_PARTS)


# ---- applying one


def patched_source(mutant: Mutant) -> str:
    """The module's text with the edits made. ValueError when one of them no longer fits."""
    text = _path_of(mutant.module).read_text()
    for before, after in mutant.edits:
        found = text.count(before)
        if found != 1:
            raise ValueError(f"mutant {mutant.name!r}: its text occurs {found} times in {mutant.module}:\n{before}")
        text = text.replace(before, after)
    return text


def _path_of(module: str) -> Path:
    return _CORE / Path(*module.split(".")).with_suffix(".py")


class _Loader(importlib.abc.InspectLoader):
    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source

    def get_source(self, fullname: str) -> str:
        return self._source

    def get_code(self, fullname: str) -> CodeType | None:
        return compile(self._source, f"<mutant of {self._module}>", "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._module = mutant.module
        self._loader = _Loader(mutant.module, patched_source(mutant))

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.util.spec_from_loader(fullname, self._loader)


def become(mutant: Mutant) -> None:
    """From now on this process has the mutant's module. Only for a process that ends after it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tollgate" or name.startswith("tests.simulation.")]:
        if name != __name__:
            del sys.modules[name]
    sys.meta_path.insert(0, _Finder(mutant))


# ---- running them


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    mutant: Mutant
    seeds: int
    """Seeds run."""
    caught: int
    first_seed: int | None
    kinds: dict[str, int]
    """Kind of violation to seeds that showed it."""

    @property
    def right(self) -> bool:
        return bool(self.caught) != bool(self.mutant.survives_because)


def try_mutants(mutants: tuple[Mutant, ...], *, jobs: int, full_seeds: int | None = None) -> Iterator[Verdict]:
    """Each in its own process, `jobs` at a time; up to its first catch, or through `full_seeds` seeds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.simulation.runner"])
    waiting = list(reversed(mutants))
    running: list[tuple[Mutant, Connection]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            context.Process(target=_run_mutant, args=(mutant, full_seeds, sender), daemon=True).start()
            sender.close()
            running.append((mutant, receiver))
        ready = multiprocessing.connection.wait([receiver for _, receiver in running])
        for mutant, receiver in [entry for entry in running if entry[1] in ready]:
            running.remove((mutant, receiver))
            yield _verdict(mutant, receiver)


def _verdict(mutant: Mutant, receiver: Connection) -> Verdict:
    with receiver:
        seeds, first, kinds = receiver.recv()
    return Verdict(mutant, seeds, sum(count for kind, count in kinds.items() if kind == "any"), first, kinds)


def _run_mutant(mutant: Mutant, full_seeds: int | None, sender: Connection) -> None:
    become(mutant)
    from tests.simulation.runner import run_seed

    kinds: dict[str, int] = {}
    first: int | None = None
    seeds = 0
    for seed in range(full_seeds if full_seeds is not None else mutant.seeds):
        # A crash alone may only say that the patch does not run.
        found = {violation.kind for violation in run_seed(seed).violations} - {"crash"}
        seeds += 1
        for kind in {*found, "any"} if found else ():
            kinds[kind] = kinds.get(kind, 0) + 1
        if found and first is None:
            first = seed
            if full_seeds is None:
                break
    sender.send((seeds, first, kinds))
    sender.close()
