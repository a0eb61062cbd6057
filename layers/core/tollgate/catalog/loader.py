"""Reads a catalog: plans.toml and models.toml, checked so strictly that a slip of the pen cannot sell tokens for free.

Every fault is a CatalogError that names file, table and key. Reading takes about 2 ms and imports only the standard
library, since the streaming function does it at start. What the keys mean: docs/catalog.md, tested against KEYS here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tollgate.domain.notices import DEFAULT_THRESHOLDS_PERCENT, NoticeRules
from tollgate.domain.plans import UNLIMITED, Billing, ExpiryPolicy, LateUsage, PeriodKind, Plan, QuotaKind, TaxKind
from tollgate.domain.pricing import WHOLE_PERMILLE, Model, PriceRow, TokenPrices, dearest_model
from tollgate.domain.tokens import TokenWeights

_SHIPPED = Path(__file__).parent
_SNAPSHOT_DIGITS = 8
_ALL_MODELS = "all"
# Stored with every user and every meter, whose size costs money; the template takes the same form as DefaultPlan.
_PLAN_ID = re.compile(r"[a-z][a-z0-9_-]{0,15}")
_MOST_THRESHOLDS = 10
_STRIPE_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_CURRENCY = re.compile(r"[a-z]{3}")
# Stripe counts these in whole units or in thousandths, so a price in "cents" would be wrong by a factor.
_NO_CENTS = re.compile("bif|clp|djf|gnf|jpy|kmf|krw|mga|pyg|rwf|ugx|vnd|vuv|xaf|xof|xpf|bhd|jod|kwd|omr|tnd")


class CatalogError(Exception):
    """A catalog that cannot be used; for the operator, never for a caller."""

    def __init__(self, file: str, table: str, key: str, problem: str) -> None:
        where = f"{file} [{table}] {key}".replace("[] ", "").rstrip()
        super().__init__(f"{where}: {problem}")
        self.file = file
        self.table = table
        self.key = key


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a deployment sells: plans, and the models behind them."""

    name: str
    plans: Mapping[str, Plan]
    models: Mapping[str, Model]
    default_plan_id: str
    dearest_model: Model
    """Stands in for a model that is not in the catalog, so that nothing is priced as free."""
    model_ids: Mapping[str, str]
    """Model ids and aliases, each to its model id."""
    billing: Billing = field(default_factory=Billing)
    notices: NoticeRules = field(default_factory=NoticeRules)

    def plan(self, plan_id: str) -> Plan:
        """Raises CatalogError for a plan that users may still be on although the file no longer has it."""
        plan = self.plans.get(plan_id)
        if plan is None:
            raise CatalogError("plans.toml", f"plans.{plan_id}", "", "no such plan; keep a plan while users are on it")
        return plan

    def resolve_model(self, name: str) -> Model | None:
        """The model of an id, an alias or a dated snapshot (`<id>-20251001`); None when it is not ours."""
        model_id = self.model_ids.get(name)
        if model_id is None:
            base, _, snapshot = name.rpartition("-")
            if len(snapshot) == _SNAPSHOT_DIGITS and snapshot.isascii() and snapshot.isdigit():
                model_id = self.model_ids.get(base)
        return None if model_id is None else self.models[model_id]


@lru_cache(maxsize=8)
def load_catalog(name: str) -> Catalog:
    """The catalog called `name`: `default`, a folder of catalog/examples, or the path of a folder of one's own.

    An own folder (absolute path) travels in a layer or in the function. Raises CatalogError.
    """
    if name == "default":
        return read_catalog(_SHIPPED, name)
    if name.startswith("/"):
        return read_catalog(Path(name), Path(name).name)
    examples = {folder.name: folder for folder in (_SHIPPED / "examples").iterdir() if folder.is_dir()}
    if name not in examples:
        known = ", ".join(["default", *sorted(examples)])
        raise CatalogError("catalog", "", "", f"no catalog is called {name!r}; there are: {known}")
    return read_catalog(examples[name], name)


def read_catalog(folder: Path, name: str) -> Catalog:
    """The catalog in a folder: its plans.toml, and its models.toml or else the shipped one. Raises CatalogError."""
    models_file = folder / "models.toml"
    models, model_ids = _models(_File(models_file if models_file.exists() else _SHIPPED / "models.toml"))
    plans_file = _File(folder / "plans.toml")
    plans, default_plan_id, billing = _plans(plans_file, model_ids)
    return Catalog(
        name=name,
        plans=MappingProxyType(plans),
        models=MappingProxyType(models),
        default_plan_id=default_plan_id,
        dearest_model=dearest_model(tuple(models.values())),
        model_ids=MappingProxyType(model_ids),
        billing=billing,
        notices=NoticeRules(**plans_file.read("notices", plans_file.data.get("notices", {}), NOTICES_KEYS)),
    )


# --- one key -------------------------------------------------------------------------------------------------------

_REQUIRED: Final = object()


class _WrongValueError(Exception):
    """What is wrong with a value; the reader adds where it stands."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a key may hold. `check` returns the value, or raises _WrongValueError saying what is wrong with it."""

    check: Callable[[Any], object]
    default: object = _REQUIRED

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongValueError(f"must be text, is {value!r}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise _WrongValueError(f"must be a list of names, is {value!r}")
    if len(set(value)) != len(value):
        raise _WrongValueError(f"names one thing twice: {value!r}")
    return tuple(value)


def _model_list(value: object) -> tuple[str, ...]:
    if value == _ALL_MODELS:
        return ()
    if isinstance(value, str):
        raise _WrongValueError(f'must be a list of models or "all", is {value!r}')
    return _texts(value)


def _whole(minimum: int, maximum: int = UNLIMITED) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, float):
            raise _WrongValueError(f"is {value!r}; money and tokens are whole numbers, in the unit the key names")
        if isinstance(value, bool) or not isinstance(value, int):
            raise _WrongValueError(f"must be a whole number, is {value!r}")
        if not minimum <= value <= maximum:
            raise _WrongValueError(f"must be from {minimum} to {maximum}, is {value}")
        return value

    return check


def _percents(value: object) -> tuple[int, ...]:
    check = _whole(1, 1_000)
    if not isinstance(value, list):
        raise _WrongValueError(f"must be a list of whole numbers, is {value!r}")
    found = tuple(check(item) for item in value)
    if list(found) != sorted(set(found)) or len(found) > _MOST_THRESHOLDS:
        raise _WrongValueError(f"must be at most {_MOST_THRESHOLDS} numbers that rise, is {value!r}")
    return found


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _WrongValueError(f"must be true or false, is {value!r}")
    return value


def _currency(value: object) -> str:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise _WrongValueError(f"must be three lower-case letters like usd, is {value!r}")
    if _NO_CENTS.fullmatch(value):
        raise _WrongValueError(f"is {value}, which has no hundredths; prices here are in hundredths")
    return value


def _stripe_name(value: object) -> str:
    if not isinstance(value, str) or not _STRIPE_NAME.fullmatch(value):
        raise _WrongValueError(f"must be lower-case letters, digits and _, a letter first, is {value!r}")
    return value


def _day(value: object) -> date:
    if isinstance(value, datetime) or not isinstance(value, date):
        raise _WrongValueError(f"must be a date like 2026-10-07, is {value!r}")
    return value


def _one_of(kinds: type[StrEnum]) -> Callable[[object], StrEnum]:
    def check(value: object) -> StrEnum:
        try:
            return kinds(str(value))
        except ValueError:
            raise _WrongValueError(f"must be one of {', '.join(kinds)}, is {value!r}") from None

    return check


def _tables(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise _WrongValueError("must be one or more tables")
    return value


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise _WrongValueError(f"must be a table with at least one entry, is {value!r}")
    return value


# --- the keys of each table, in the order in which docs/catalog.md explains them -----------------------------------

PLAN_KEYS: Final = {
    "name": Key(_text),
    "price_cents": Key(_whole(0)),
    "quota_kind": Key(_one_of(QuotaKind)),
    "quota_tokens": Key(_whole(1), None),
    "quota_requests": Key(_whole(1), None),
    "overage_cap_tokens": Key(_whole(0), None),
    "overage_price_microusd_per_1k_tokens": Key(_whole(0), None),
    "period_kind": Key(_one_of(PeriodKind)),
    "models": Key(_model_list),
    "requests_per_minute": Key(_whole(1, 60_000), None),
    "burst_requests": Key(_whole(1, 60_000), None),
    "max_open_reservations": Key(_whole(1, 1_000)),
    "max_output_tokens": Key(_whole(1), None),
    "slice_output_tokens": Key(_whole(1), None),
    "expiry_policy": Key(_one_of(ExpiryPolicy)),
    "max_api_keys": Key(_whole(0, 100), 10),
    "upgrade_message": Key(_text, ""),
    "pool_tokens": Key(_whole(1), None),
    "sold": Key(_flag, None),
    "annual_price_cents": Key(_whole(1), None),
    # Two years are the longest trial that Stripe takes.
    "trial_days": Key(_whole(0, 730), 0),
    "trial_quota_tokens": Key(_whole(1), None),
    "overage_opt_in": Key(_flag, False),
    "issue_first_key": Key(_flag, False),
    "protected": Key(_flag, False),
}
BILLING_KEYS: Final = {
    "currency": Key(_currency, "usd"),
    "tax": Key(_one_of(TaxKind), TaxKind.NONE),
    "promotion_codes": Key(_flag, False),
    "grace_days": Key(_whole(0, 60), 7),
    "fee_permille": Key(_whole(0, 500), 29),
    "fee_cents": Key(_whole(0, 10_000), 30),
    "billing_fee_permille": Key(_whole(0, 500), 7),
    "overage_lookup_key": Key(_stripe_name, "tollgate_overage"),
    "meter_event_name": Key(_stripe_name, "tollgate_overage"),
    "late_usage": Key(_one_of(LateUsage), LateUsage.CARRY),
}
NOTICES_KEYS: Final = {"thresholds_percent": Key(_percents, DEFAULT_THRESHOLDS_PERCENT)}
MODEL_KEYS: Final = {
    "display_name": Key(_text),
    "description": Key(_text),
    "context_tokens": Key(_whole(1)),
    "max_output_tokens": Key(_whole(1)),
    "created_at": Key(_day),
    "deprecated_at": Key(_day, None),
    "retires_at": Key(_day, None),
    "aliases": Key(_texts, ()),
    "weights": Key(_table, None),
    "prices": Key(_tables),
}
PRICE_KEYS: Final = {
    "effective_from": Key(_day),
    "max_prompt_tokens": Key(_whole(1), None),
    "microusd_per_mtok": Key(_table),
    "fast_microusd_per_mtok": Key(_table, None),
    "batch_permille": Key(_whole(1, WHOLE_PERMILLE)),
    "us_only_permille": Key(_whole(WHOLE_PERMILLE, 10 * WHOLE_PERMILLE)),
    "web_search_microusd": Key(_whole(0)),
}
TOKEN_PRICE_KEYS: Final = {
    kind: Key(_whole(1)) for kind in ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
}
# Output may count for little but never for nothing: what is left could then pay for endless output.
WEIGHT_KEYS: Final = {kind: Key(_whole(1 if kind == "output" else 0, 1_000_000), 1000) for kind in TOKEN_PRICE_KEYS}
KEYS: Final = {
    "plans.toml": {
        "default_plan": Key(_text),
        "plans": Key(_table),
        "billing": Key(_table, None),
        "notices": Key(_table, None),
    },
    "plans": PLAN_KEYS,
    "billing": BILLING_KEYS,
    "notices": NOTICES_KEYS,
    "models.toml": {"models": Key(_table)},
    "models": MODEL_KEYS,
    "prices": PRICE_KEYS,
    "microusd_per_mtok": TOKEN_PRICE_KEYS,
    "weights": WEIGHT_KEYS,
}
"""Every table of a catalog with its keys."""


class _File:
    """One TOML file, and its name in errors."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self.data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CatalogError(self.name, "", "", f"cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise CatalogError(self.name, "", "", f"is not TOML: {error}") from error

    def read(self, table: str, data: object, keys: Mapping[str, Key]) -> dict[str, Any]:
        """The checked values of one table, defaults filled in."""
        if not isinstance(data, dict):
            raise self.error(table, "", f"must be a table, is {data!r}")
        for key in data:
            if key not in keys:
                raise self.error(table, key, f"unknown key; known are: {', '.join(keys)}")
        values: dict[str, Any] = {}
        for key, expected in keys.items():
            if key not in data:
                if expected.required:
                    raise self.error(table, key, "is missing")
                values[key] = expected.default
                continue
            try:
                values[key] = expected.check(data[key])
            except _WrongValueError as error:
                raise self.error(table, key, str(error)) from None
        return values

    def error(self, table: str, key: str, problem: str) -> CatalogError:
        return CatalogError(self.name, table, key, problem)


# --- models --------------------------------------------------------------------------------------------------------


def _models(file: _File) -> tuple[dict[str, Model], dict[str, str]]:
    tables = file.read("", file.data, KEYS["models.toml"])["models"]
    models = {model_id: _model(file, model_id, data) for model_id, data in tables.items()}
    model_ids = {model_id: model_id for model_id in models}
    for model in models.values():
        for alias in model.aliases:
            if alias in model_ids:
                raise file.error(f"models.{model.id}", "aliases", f"{alias!r} already names {model_ids[alias]}")
            model_ids[alias] = model.id
    return models, model_ids


def _model(file: _File, model_id: str, data: object) -> Model:
    table = f"models.{model_id}"
    values = file.read(table, data, MODEL_KEYS)
    rows = [_price_row(file, f"{table}.prices", number, row) for number, row in enumerate(values["prices"], 1)]
    rows.sort(key=lambda row: (row.effective_from, row.max_prompt_tokens or UNLIMITED))
    _check_rows(file, f"{table}.prices", rows)
    return Model(
        id=model_id,
        display_name=values["display_name"],
        description=values["description"],
        context_tokens=values["context_tokens"],
        max_output_tokens=values["max_output_tokens"],
        created_at=_midnight(values["created_at"]),
        deprecated_at=_midnight(values["deprecated_at"]) if values["deprecated_at"] else None,
        retires_at=_midnight(values["retires_at"]) if values["retires_at"] else None,
        aliases=values["aliases"],
        weights=TokenWeights(**file.read(f"{table}.weights", values["weights"] or {}, WEIGHT_KEYS)),
        prices=tuple(rows),
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _price_row(file: _File, table: str, number: int, data: object) -> PriceRow:
    values = file.read(f"{table} #{number}", data, PRICE_KEYS)
    batch, us_only = values["batch_permille"], values["us_only_permille"]

    def prices(key: str) -> TokenPrices | None:
        if values[key] is None:
            return None
        kinds = file.read(f"{table} #{number}.{key}", values[key], TOKEN_PRICE_KEYS)
        for kind, price in kinds.items():
            # Costs are exact because this holds: see cost_picousd.
            if price * batch % WHOLE_PERMILLE or price * batch * us_only % WHOLE_PERMILLE**2:
                problem = f"{price} has no whole batch or US-only price ({batch} and {us_only} thousandths)"
                raise file.error(f"{table} #{number}.{key}", kind, problem)
        return TokenPrices(**kinds)

    standard = prices("microusd_per_mtok")
    assert standard is not None, "the key is required"
    return PriceRow(
        effective_from=values["effective_from"],
        max_prompt_tokens=values["max_prompt_tokens"],
        standard=standard,
        fast=prices("fast_microusd_per_mtok"),
        batch_permille=batch,
        us_only_permille=us_only,
        web_search_microusd=values["web_search_microusd"],
    )


def _check_rows(file: _File, table: str, rows: list[PriceRow]) -> None:
    """For every date one row for any prompt size: no gap that would be free, no overlap that would be a guess."""
    sizes: dict[date, list[int | None]] = {}
    for row in rows:
        sizes.setdefault(row.effective_from, []).append(row.max_prompt_tokens)
    for day, limits in sizes.items():
        if len(set(limits)) != len(limits):
            raise file.error(table, "effective_from", f"two rows from {day} overlap: same max_prompt_tokens")
        if None not in limits:
            raise file.error(
                table, "max_prompt_tokens", f"no row from {day} for prompts above {max(filter(None, limits))}"
            )


# --- plans ---------------------------------------------------------------------------------------------------------


def _plans(file: _File, model_ids: Mapping[str, str]) -> tuple[dict[str, Plan], str, Billing]:
    top = file.read("", file.data, KEYS["plans.toml"])
    default_plan_id = top["default_plan"]
    plans = {
        plan_id: _plan(file, plan_id, data, model_ids, given=plan_id == default_plan_id)
        for plan_id, data in top["plans"].items()
    }
    if default_plan_id not in plans:
        raise file.error("", "default_plan", f"{default_plan_id!r} is none of the plans: {', '.join(plans)}")
    return plans, default_plan_id, Billing(**file.read("billing", top["billing"] or {}, BILLING_KEYS))


def _plan(file: _File, plan_id: str, data: object, model_ids: Mapping[str, str], *, given: bool) -> Plan:
    """`given`: it is the default, which users have without paying."""
    table = f"plans.{plan_id}"
    if not _PLAN_ID.fullmatch(plan_id):
        raise file.error(table, "", "a plan id has at most 16 lower-case letters, digits, _ and -, a letter first")
    values = file.read(table, data, PLAN_KEYS)
    if given and values["sold"]:
        raise file.error(table, "sold", "is the default plan: everybody has it without paying, so nobody can buy it")
    if values["sold"] is None:
        values["sold"] = values["price_cents"] > 0 and not given
    for key, problem in (*_contradictions(values), *_selling_contradictions(values)):
        raise file.error(table, key, problem)
    unknown = [name for name in values["models"] if name not in model_ids]
    if unknown:
        raise file.error(table, "models", f"no such model in models.toml: {', '.join(unknown)}")
    return Plan(
        id=plan_id,
        **values
        | {
            "models": frozenset(model_ids[name] for name in values["models"]),
            "overage_cap_tokens": values["overage_cap_tokens"] or 0,
            "overage_price_microusd_per_1k_tokens": values["overage_price_microusd_per_1k_tokens"] or 0,
            "burst_requests": values["burst_requests"] or 0,
        },
    )


def _contradictions(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each key alone cannot show, as (key, problem)."""
    found = []
    soft = values["quota_kind"] is QuotaKind.SOFT
    has_overage = soft and values["quota_tokens"] is not None
    for key in ("overage_cap_tokens", "overage_price_microusd_per_1k_tokens"):
        if has_overage and values[key] is None:
            found.append((key, "is missing: a soft quota of tokens needs a cap and a price for what goes beyond it"))
        if not has_overage and values[key] is not None:
            found.append((key, "only a soft quota of tokens has overage; this plan has none"))
    if not soft and values["quota_tokens"] is None and values["quota_requests"] is None:
        found.append(("quota_kind", "hard, but there is neither quota_tokens nor quota_requests to hold"))
    if not soft and values["slice_output_tokens"] is not None:
        found.append(
            ("slice_output_tokens", "only soft quotas reserve in slices; a hard one reserves all of max_tokens")
        )
    if (values["requests_per_minute"] is None) != (values["burst_requests"] is None):
        found.append(("burst_requests", "requests_per_minute and burst_requests go together"))
    if values["pool_tokens"] is not None:
        most = values["quota_tokens"] and values["quota_tokens"] + (values["overage_cap_tokens"] or 0)
        if most is None:
            found.append(("pool_tokens", "only a quota of tokens can be shared out of a pool; this plan has none"))
        elif values["pool_tokens"] < most:
            found.append(("pool_tokens", f"is {values['pool_tokens']}, less than the {most} that one user may use"))
    longest, first = values["max_output_tokens"], values["slice_output_tokens"]
    if longest is not None and first is not None and first > longest:
        found.append(("slice_output_tokens", f"is {first}, more than max_output_tokens {longest}"))
    return found


def _selling_contradictions(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for what checkout needs."""
    found = []
    monthly, annual = values["price_cents"], values["annual_price_cents"]
    has_overage = values["quota_kind"] is QuotaKind.SOFT and values["quota_tokens"] is not None
    if values["sold"] and not monthly:
        found.append(("sold", "has no price: a plan that costs nothing is given, not sold"))
    if not values["sold"]:
        found += [
            (key, "only a plan that is sold has this; this one is not")
            for key in ("annual_price_cents", "trial_days", "issue_first_key")
            if values[key]
        ]
    if annual is not None and not monthly <= annual <= 12 * monthly:
        found.append(
            (
                "annual_price_cents",
                f"is {annual}; a year costs between one month ({monthly}) and twelve ({12 * monthly})",
            )
        )
    if values["trial_quota_tokens"] is not None:
        if not values["trial_days"]:
            found.append(("trial_quota_tokens", "there is no trial: trial_days is missing"))
        if values["quota_tokens"] is not None and values["trial_quota_tokens"] > values["quota_tokens"]:
            found.append(("trial_quota_tokens", f"is more than quota_tokens, {values['quota_tokens']}"))
    if values["overage_opt_in"] and not has_overage:
        found.append(("overage_opt_in", "only a soft quota of tokens has overage; this plan has none"))
    if values["issue_first_key"] and not values["max_api_keys"]:
        found.append(("issue_first_key", "max_api_keys is 0, so there is no key to issue"))
    if values["sold"] and values["period_kind"] is not PeriodKind.ANCHORED_MONTH:
        # The first of a month, or the 31st day, may be any day of the month that is paid for. And an invoice bills the
        # last value of its meter: a period that restarts within one would lose the overage that came before.
        found.append(
            ("period_kind", "one payment would open two quotas; a sold plan is paid by the month, so anchored_month")
        )
    return found
