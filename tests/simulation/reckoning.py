"""The reckoning at the end of a run: every reservation against its call, every meter against its reservations.

Reported: overbill (charged more than known use, or without an upstream call), lost_tokens (used, but neither charged
nor written off), inexact (an answered settlement booked something else than upstream told), unstopped (a stream went
on although its reservation could not grow), double_call, orphan_leak, ledger (a meter differs from the sum of its
charges or counts), truth_over_limit (more was really used than quota, cap and what is visibly written off), record (a
request record tells something else than the meter).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.simulation.expressions import Item
from tests.simulation.oracle import COUNT_NAMES, Key, Oracle, number
from tests.simulation.truth import Call, Held, cost_picousd
from tollgate.domain.plans import ExpiryPolicy


def reckon(oracle: Oracle, meters: Iterable[tuple[str, str, Item]], records: Iterable[Item]) -> None:
    """After everything late has landed and one sweep has passed."""
    used: Counter[Key] = Counter()
    excused: Counter[Key] = Counter()
    charged: Counter[Key] = Counter()
    for held in oracle.reservations.values():
        charged[held.meter] += held.charged_tokens
        oracle.seen["billed_tokens"] += held.charged_tokens
        oracle.seen["written_off_tokens"] += held.written_off_tokens
        if held.call is None or not held.call.starts:
            _check_unused(oracle, held)
        else:
            _check_used(oracle, held, held.call)
        if held.call is not None:
            used[held.meter] += held.call.used_tokens
            excused[held.meter] += _excused(oracle, held, held.call)
    for pk, sk, item in meters:
        _check_meter(oracle, (pk, sk), item, charged[pk, sk])
        limit = oracle.meters[pk, sk].most_room + excused[pk, sk]
        if not oracle.adversarial and used[pk, sk] > limit:
            oracle.report("truth_over_limit", f"{pk} {sk} used {used[pk, sk]} of {limit}, write-offs included")
    oracle.seen["used_tokens"] += sum(used.values())
    _check_records(oracle, records)


def _excused(oracle: Oracle, held: Held, call: Call) -> int:
    """Use that no hard bound can hold: what is written off, a prompt nobody could see, output beyond a slice."""
    excused = held.hidden_tokens if oracle.policy is ExpiryPolicy.STRICT else held.written_off_tokens
    if call.sliced or held.hidden_tokens:
        excused += max(0, call.used_tokens - held.charged_tokens)
    return excused


def _check_unused(oracle: Oracle, held: Held) -> None:
    call = held.call
    if held.charged_tokens and not held.swept:
        oracle.report("overbill", f"{held.nonce} charged {held.charged_tokens} without an upstream call")
    if held.charged_tokens and call is not None and call.released and call.settled_at is not None:
        oracle.report("overbill", f"{held.nonce} was released and answered, but {held.charged_tokens} charged")


def _check_used(oracle: Oracle, held: Held, call: Call) -> None:
    if call.starts > 1:
        oracle.report("double_call", f"{held.nonce} called upstream {call.starts} times")
    owed = _owed(held, call)
    if held.charged_tokens + held.written_off_tokens < owed:
        figures = f"charged {held.charged_tokens}, written off {held.written_off_tokens}"
        oracle.report("lost_tokens", f"{held.nonce} used {owed}, {figures}")
    if held.swept and not held.corrected:
        if call.settled_at is not None:
            oracle.report("inexact", f"{held.nonce} settled and answered, but the sweep's charge stands")
        return
    if call.final is not None and held.charged_tokens > call.used_tokens:
        oracle.report("overbill", f"{held.nonce} charged {held.charged_tokens} of {call.used_tokens}")
    if call.settled_at is not None and call.final is not None and not call.released:
        _check_exact(oracle, held, call)


def _owed(held: Held, call: Call) -> int:
    """What must be charged or written off: all of the use, except what nobody could hold or know."""
    if not call.sliced and not held.hidden_tokens:
        return call.used_tokens
    if held.swept and call.settled_at is None:
        return min(call.used_tokens, held.amount_tokens)
    # Ended by its owner, whether or not it heard of it: what was generated unseen after a cut is in nobody's counts.
    return call.seen_tokens if call.final is None else call.used_tokens


def _check_exact(oracle: Oracle, held: Held, call: Call) -> None:
    """An answered settlement booked exactly what upstream had told."""
    assert call.final is not None
    known = call.known_tokens
    late_or_beyond = held.corrected or call.used_tokens > held.amount_tokens
    if held.charged_tokens != known and not late_or_beyond:
        oracle.report("inexact", f"{held.nonce} charged {held.charged_tokens}, reported {known}")
    if held.charged_tokens + held.written_off_tokens != known:
        booked = f"{held.charged_tokens} + {held.written_off_tokens}"
        oracle.report("inexact", f"{held.nonce} booked {booked}, reported {known}")
    if call.hard and call.streamed and held.written_off_tokens and not held.corrected:
        oracle.report("unstopped", f"{held.nonce} ran to its end without a reservation for {held.written_off_tokens}")
    if held.counts != call.final or held.cost_picousd != cost_picousd(call.final):
        oracle.report("inexact", f"{held.nonce} counts {held.counts}, reported {call.final}")


def _check_meter(oracle: Oracle, key: Key, item: Item, charged: int) -> None:
    truth = oracle.meters[key]
    if truth.held:
        oracle.report("orphan_leak", f"{key} still holds {sorted(truth.held)}")
    stored = [number(item, name) for name in COUNT_NAMES]
    if stored != truth.counts or number(item, "picousd") != truth.cost_picousd:
        oracle.report("ledger", f"{key} counts {stored}, settled {truth.counts}")
    if number(item, "settled") != charged:
        oracle.report("ledger", f"{key} settled {number(item, 'settled')}, charges {charged}")


def _check_records(oracle: Oracle, records: Iterable[Item]) -> None:
    """What a request record says was charged is what the meter was charged, if its settlement was answered."""
    by_id = {held.id: held for held in oracle.reservations.values() if held.id not in oracle.shared_ids}
    for record in records:
        oracle.seen["records"] += 1
        held = by_id.get(record["reservation_id"]["S"])
        if held is None or held.call is None or held.call.settled_at is None:
            continue
        told = number(record, "charged_tokens"), number(record, "written_off_tokens")
        booked = held.charged_tokens, held.written_off_tokens
        if told != booked:
            oracle.report("record", f"{held.nonce}: {told} told, {booked} booked")
