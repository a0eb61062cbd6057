"""Every guard of the ledger switched off, one at a time, by a patch of its source: each must be caught."""

from __future__ import annotations

from tests.support.mutants import Edit, Mutant

METERS = "tollgate.storage.meters"
USERS = "tollgate.storage.users"
LEDGER = "tollgate.flows.ledger"
RELAY = "tollgate.flows.relay_message"
DOMAIN = "tollgate.domain.ledger"
PRINCIPALS = "tollgate.domain.principals"


def _condition(
    name: str, where: str, condition: str, seeds: int, because: str = "", part: str = "", first_seed: int = 0
) -> Mutant:
    """A condition in `storage.meters` that still names everything and is never false. `part`: of a longer text."""
    always = f"({condition} OR attribute_exists(PK))"
    text = part or condition
    edit = Edit(where, f'"{text}"', f'"{text.replace(condition, always)}"')
    return Mutant(name, METERS, (edit,), seeds, because, first_seed)


def _flow(
    name: str,
    where: str,
    before: str,
    after: str,
    seeds: int,
    because: str = "",
    module: str = LEDGER,
    first_seed: int = 0,
) -> Mutant:
    return Mutant(name, module, (Edit(where, before, after),), seeds, because, first_seed)


_ADMISSION = (
    _condition("dup", "_RESERVE_IF: ", "attribute_not_exists(#r)", 200),
    _condition("tombstone", "_RESERVE_IF: ", "attribute_not_exists(#x)", 200),
    _condition("remaining", "_RESERVE_IF: ", "remaining >= :need", 50),
    _condition("request quota", "_RESERVE_IF: ", "req_remaining >= :one", 50),
    _condition("max_open", "_RESERVE_IF: ", "open_count < :max_open", 50),
    _condition("plan_version pin", "_RESERVE_IF: ", "plan_version = :version", 400),
    _condition(
        "overage cap pin",
        "_RESERVE_IF: ",
        "overage_cap = :cap",
        400,
        "the plan version is pinned beside it and moves whenever the cap does",
    ),
    _condition("GCRA idle", "_RATE_IDLE: ", "rate_tat <= :now", 100),
    _condition(
        "GCRA busy, latest", "_RATE_BUSY: ", "rate_tat <= :latest", 200, "", "rate_tat > :now AND rate_tat <= :latest"
    ),
    _condition(
        "GCRA busy, earliest",
        "_RATE_BUSY: ",
        "rate_tat > :now",
        400,
        "the stored time only moves on, and this form is sent only by who has seen it lie ahead",
        "rate_tat > :now AND rate_tat <= :latest",
    ),
    _condition("idempotency marker", "def reserve_once(", "attribute_not_exists(PK) OR expires_at < :now", 50),
    _condition("marker's owner", "def forget_marker(", "reservation_id = :id AND nonce = :nonce", 400),
    _flow(
        "nonce",
        "def _reserve(",
        "mine is not None and mine.nonce == attempt.reservation.nonce",
        "mine is not None",
        1000,
    ),
    _flow("give up", "def reserve(", "if attempt.sent_twice:", "if False:", 1000),
    _flow(
        "give up, duplicate requests",
        "def _write_reservation(",
        "attempt.sent_twice |= written.sent_twice",
        "pass",
        4000,
        "a marker must be freed while another's late transaction is under way: once in 10,000 seeds",
    ),
    _flow(
        "give up, earlier amount",
        "def _give_up(",
        "if stored is not None and stored.nonce == reservation.nonce:",
        "if False:",
        4000,
        "an earlier round, before a clamp, must land between two requests of the giving up; the sweep then ends it",
    ),
    _flow(
        "sweep before refusing", "def _after_refusal(", "if meter.expired(self._clock.now_seconds()):", "if False:", 100
    ),
    _flow(
        "deadline expiry",
        "def _new_reservation(",
        "ceil(ask.deadline_at_seconds)",
        "ceil(self._clock.now_seconds()) - 45",
        100,
    ),
)

_ENDS = (
    _condition("exact value, settlement", "def settle(", "#r = :reservation", 50),
    _condition("exact value, sweep", "def expire(", "#r = :reservation", 1000),
    _flow("tombstone by settlement", "def _end_once(", "int(now) if grant.sent_twice else None", "None", 200),
    Mutant(
        "tombstone by sweep",
        METERS,
        (
            Edit("def expire(", ", #x = :at REMOVE", " REMOVE"),
            Edit("def expire(", 'values[":at"] = n(now_seconds)', "pass"),
            Edit("def expire(", ', "#x": f"x#{reservation.id}"', ""),
        ),
        8000,
        survives_because="a second copy of a reserve that lands after the sweep is not drawn in 20,000 seeds;"
        " tests/flows/test_ledger.py has it",
    ),
    _flow(
        "sent twice",
        "def _update(",
        "sent_twice=_sent_twice(answer)",
        "sent_twice=False",
        200,
        module=METERS,
    ),
    _flow(
        "expired record",
        "def expire(",
        "[self._in_transaction(key, update), put]",
        "[self._in_transaction(key, update)]",
        400,
        module=METERS,
    ),
    _flow("late correction", "def _end_late(", "if expired is None:", "if True:", 400),
    _condition(
        "late correction once",
        "def correct(",
        "outcome = :expired AND charged = :swept",
        2000,
        "botocore's token applies the retries of one call once, and a second call reads the record first",
    ),
    _flow(
        "late correction within the cap",
        "def correct(",
        'condition += " AND overage_cap = :cap AND remaining >= :need"',
        'condition += " AND (overage_cap = :cap AND remaining >= :need OR attribute_exists(PK))"',
        4000,
        "the flow bounds the charge by the room it read; only a reservation in between makes the difference",
        module=METERS,
    ),
    _flow("unanswered top-up", "def _end_once(", "reservation = stored", "continue", 8000, first_seed=3220),
    Mutant(
        "expiry margin and skew",
        DOMAIN,
        (
            Edit("EXPIRY_MARGIN_SECONDS", "= 50", "= 0"),
            Edit("def has_expired(", "self.expires_at_seconds + 2 * SKEW_SECONDS", "self.expires_at_seconds"),
        ),
        8000,
        first_seed=1230,
    ),
    _flow(
        "period pin",
        "def _end_once(",
        "                grant.key,\n",
        "                grant.key if now < grant.key.period.end_at.timestamp() else replace(grant.key, period=type("
        "grant.key.period)(grant.key.period.end_at, grant.key.period.end_at)),\n",
        400,
    ),
    _flow("released request returns", "def release(", "returns_request=True", "returns_request=False", 100),
    _flow(
        "strict expiry",
        "def charge_for_expiry(",
        "return reservation.amount_tokens",
        "return 0",
        1000,
        module=DOMAIN,
    ),
)

_PLANS = (
    _condition("create check", "def _check_plan_version(", "plan_version = :version", 1000),
    _condition("pool", "def _take_from_pool(", "attribute_not_exists(taken) OR taken <= :room", 200),
    _flow("pool with the meter", "def create(", "put, *pool]", "put]", 200, module=METERS),
    _flow(
        "carry check",
        "def carry_plan(",
        "[check]",
        '[check | {"ConditionCheck": check["ConditionCheck"]'
        ' | {"ConditionExpression": "plan_version = :version OR attribute_exists(PK)"}}]',
        4000,
        "only an account that missed two changes, on a meter that missed both, tells the difference",
        module=METERS,
    ),
    _condition(
        "resize compare, version",
        "def _resize(",
        "plan_version = :seen",
        8000,
        "",
        "plan_version = :seen AND settled = :settled",
        first_seed=90,
    ),
    _condition(
        "resize compare, settled",
        "def _resize(",
        "settled = :settled",
        8000,
        "",
        "plan_version = :seen AND settled = :settled",
        first_seed=660,
    ),
    _condition(
        "resize compare, reserved",
        "def _resize(",
        "remaining = :remaining",
        8000,
        "",
        " AND remaining = :remaining",
        first_seed=480,
    ),
    _flow(
        "downgrade counts what is reserved",
        "def resize(",
        "counts_reserved=wanted < quota",
        "counts_reserved=False",
        8000,
        module=DOMAIN,
        first_seed=480,
    ),
    _flow("overage is banked", "def resize(", "beyond = meter.tokens_beyond_quota", "beyond = 0", 400, module=DOMAIN),
    _flow(
        "banked at the old price",
        "def resize(",
        "beyond * meter.overage_price_nanousd",
        "beyond * price",
        4000,
        module=DOMAIN,
    ),
    _flow(
        "banked once",
        "def resize(",
        "plan.stored_quota_tokens + tokens\n",
        "plan.stored_quota_tokens\n",
        4000,
        module=DOMAIN,
    ),
    _flow(
        "a downgrade makes no overage",
        "def resize(",
        "max(wanted, min(quota, meter.settled_tokens + meter.reserved_tokens))",
        "wanted",
        200,
        module=DOMAIN,
    ),
    _flow(
        "the cap counts what is banked",
        "def resize(",
        "account.overage_left_tokens(tokens, nanousd)",
        "account.overage_left_tokens(0, 0)",
        4000,
        module=DOMAIN,
    ),
    Mutant(
        "plan version, profile",
        USERS,
        (Edit("def entitle(", '"plan_version = :seen"', '"(plan_version = :seen OR attribute_exists(PK))"'),),
        1000,
    ),
    _flow(
        "what is written with it",
        "def _change(",
        "[*profile, *meters, *also]",
        "[*profile, *meters]",
        200,
        module=METERS,
    ),
    _flow(
        "the meter that is left", "def change_entitlements(", "if leaves is not None:", "if False:", 400, module=METERS
    ),
    _flow(
        "the meter that is entered",
        "def change_entitlements(",
        "[self._resize_or_absent(enters, account)]",
        "[]",
        400,
        module=METERS,
    ),
    _flow(
        "plan change, no meter yet",
        "def _check_absent(",
        '"attribute_not_exists(PK)"',
        '"attribute_not_exists(PK) OR attribute_exists(PK)"',
        1000,
        module=METERS,
    ),
    _flow(
        "home after a subscription",
        "def entitled_to(",
        "entitlements.anchor_at or self.created_at or self.anchor_at",
        "entitlements.anchor_at or self.anchor_at",
        200,
        module=PRINCIPALS,
    ),
    _flow(
        "no overage after a failed payment",
        "def _overage_tokens(",
        "profile.overage_blocked or ",
        "",
        200,
        module=PRINCIPALS,
    ),
    _flow("no overage in a trial", "def _overage_tokens(", "profile.trial or ", "", 400, module=PRINCIPALS),
    _flow("no overage that nobody asked for", "def _overage_tokens(", "or unasked ", "", 400, module=PRINCIPALS),
    _flow(
        "the user's own cap",
        "def _overage_tokens(",
        "own_cents is not None and price_nanousd > 0",
        "False",
        400,
        module=PRINCIPALS,
    ),
    _flow("the trial's quota", "def effective_plan(", "if profile.trial and", "if False and", 400, module=PRINCIPALS),
)

_TOP_UPS = (
    _condition("top-up compare", "def top_up(", "#r = :reservation", 400),
    _condition("top-up room", "def top_up(", "remaining >= :need", 100),
    _condition(
        "top-up cap pin",
        "def top_up(",
        "overage_cap = :cap",
        8000,
        first_seed=2950,
    ),
)

_RELAY = (
    _flow(
        "bounded input",
        "def _ask(",
        "model.weights.billable_prompt_bound(request.prompt_bound_tokens)",
        "model.weights.billable_prompt_bound(1)",
        400,
        module=RELAY,
    ),
    _flow(
        "stop when a top-up is refused",
        "def _top_up(",
        "return _Stop(RequestOutcome.OVER_QUOTA, error)\n        except StoreUnavailableError",
        "return None\n        except StoreUnavailableError",
        1000,
        module=RELAY,
    ),
    _flow(
        "upstream retries off",
        "def _send(",
        "self._fail(error)",
        "return self._relay.upstream.send(request, self._seconds_left())",
        400,
        module=RELAY,
    ),
)

_KEYS = (
    _condition(
        "key budget",
        "_KEY_FITS: ",
        "#k <= :key_most",
        100,
        "",
        "(attribute_not_exists(#k) OR #k <= :key_most)",
    ),
    _condition("key budget, more than all of it", "_KEY_NEVER_FITS: ", "#k <= :key_most", 400),
    _flow(
        "key budget, first amount above it",
        "def _key_parts(",
        "_KEY_FITS if most >= 0 else _KEY_NEVER_FITS",
        "_KEY_FITS",
        400,
        module=METERS,
    ),
    _condition("key budget, top-up", "def top_up(", "#k <= :key_most", 1000, "", " AND #k <= :key_most"),
    _flow("key budget moves with a top-up", "def top_up(", "#k = #k + :extra", "#k = #k", 400, module=METERS),
    _flow(
        "key budget moves with the end",
        "def _book(",
        "#k = #k - :back",
        "#k = #k",
        50,
        module=METERS,
    ),
    _condition(
        "key budget, late correction",
        "def correct(",
        "#k <= :key_most",
        4000,
        "the flow bounds the charge by what it read; only a reservation of the key in between makes the difference",
        " AND #k <= :key_most",
    ),
    _flow(
        "key id kept in the reservation",
        "def encode(",
        'f"{text}:{self.key_id}" if self.key_id else text',
        "text",
        50,
        module=DOMAIN,
    ),
    _condition(
        "key's GCRA idle", "_KEY_RATE_IDLE: ", "#q <= :key_now", 400, "", "(attribute_not_exists(#q) OR #q <= :key_now)"
    ),
    _condition(
        "key's GCRA busy, latest",
        "_KEY_RATE_BUSY: ",
        "#q <= :key_latest",
        400,
        "",
        "#q > :key_now AND #q <= :key_latest",
    ),
    _condition(
        "key's GCRA busy, earliest",
        "_KEY_RATE_BUSY: ",
        "#q > :key_now",
        400,
        "as for the user's: this form is sent only by who has seen the stored time lie ahead",
        "#q > :key_now AND #q <= :key_latest",
    ),
)

MUTANTS: tuple[Mutant, ...] = (*_ADMISSION, *_ENDS, *_PLANS, *_TOP_UPS, *_KEYS, *_RELAY)
