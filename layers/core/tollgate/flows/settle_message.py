"""The end of one relayed message: what its use costs, and the one settlement or release that it takes.

An end is booked in the ledger first, then recorded, then told. What the table does not answer is left to the sweep,
visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import Grant, Settled, Settlement, charge_for_unknown_end
from tollgate.domain.pricing import Model, cost_picousd
from tollgate.domain.sources import Clock
from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry
from tollgate.flows.ledger import Ledger
from tollgate.flows.message_calls import Admission, Journal, MessageCall, Relayed, Standing
from tollgate.storage.requests import RequestOutcome, RequestRecord, Requests


class OpenCall:
    """One admitted call until its end: what is held for it, and how it is booked."""

    def __init__(
        self,
        call: MessageCall,
        admission: Admission,
        began_at_seconds: float,
        *,
        ledger: Ledger,
        requests: Requests,
        clock: Clock,
        journal: Journal,
        model_named: Callable[[str], Model],
    ) -> None:
        self.grant = admission.grant
        """As it stands after the last top-up."""
        self.ended = False
        """Settled or released, or at least tried: it must not happen twice."""
        self.last_standing = Standing(admission.account, admission.grant.meter)
        """Of the caller, as told last."""
        self.first_byte_at_seconds: float | None = None
        self.upstream_request_id: str | None = None
        self._call = call
        self._admission = admission
        self._began_at_seconds = began_at_seconds
        self._ledger = ledger
        self._requests = requests
        self._clock = clock
        self._journal = journal
        self._model_named = model_named
        self._models: dict[str, Model] = {}

    def standing(self, settled: Settled | None = None) -> Standing:
        """Of the caller, as far as known."""
        meter = settled.meter if settled is not None else None
        self.last_standing = Standing(self._admission.account, meter or self.grant.meter)
        return self.last_standing

    def milliseconds_since_begin(self) -> int:
        return int((self._clock.now_seconds() - self._began_at_seconds) * 1000)

    # ---- figures

    def billable_tokens(self, usage: Usage) -> int:
        """At the weights of the models that served it."""
        return sum(self._model_of(usage, entry).weights.billable_tokens(entry.counts) for entry in usage.entries)

    def billable_prompt_tokens(self, usage: Usage) -> int:
        """The same for all that went in."""
        return self.billable_tokens(replace(usage, entries=_without_output(usage.entries)))

    def _cost_picousd(self, usage: Usage) -> int:
        began_at = datetime.fromtimestamp(self._began_at_seconds, UTC)
        return sum(
            cost_picousd(
                self._model_of(usage, entry),
                entry.counts,
                began_at,
                speed=usage.speed,
                service_tier=usage.service_tier,
                inference_geo=usage.inference_geo,
                web_searches=0 if position else usage.web_searches,
            )
            for position, entry in enumerate(usage.entries)
        )

    def _model_of(self, usage: Usage, entry: UsageEntry) -> Model:
        name = entry.model or usage.model
        if name is None:
            return self._admission.model
        if name not in self._models:
            self._models[name] = self._model_named(name)
        return self._models[name]

    # ---- ends

    def release(self) -> Settled | None:
        """Nothing was generated: all goes back, the request too. None when the table did not answer."""
        self.ended = True
        return release(self._ledger, self._journal, self.grant)

    def finish_known(self, outcome: RequestOutcome, usage: Usage) -> Relayed:
        """The provider told the final counts."""
        settlement = Settlement(
            used_tokens=self.billable_tokens(usage), counts=usage.counts, cost_picousd=self._cost_picousd(usage)
        )
        return self._finish(outcome, usage, settlement, estimated=False)

    def finish_unknown(
        self, outcome: RequestOutcome, reported: Usage, prompt_tokens: int | None, delivered_tokens: int
    ) -> Relayed:
        """The provider's final counts never came: the plan's rule decides, on what is known to have passed.

        `prompt_tokens`: billable, None while not known. `delivered_tokens`: output, counted or measured.
        """
        if prompt_tokens is None:
            prompt_tokens = max(self.grant.reservation.prompt_bound_tokens, self.billable_prompt_tokens(reported))
        weights = self._admission.model.weights
        used, written_off = charge_for_unknown_end(
            self._admission.account.plan.expiry_policy,
            self.grant.reservation,
            prompt_tokens,
            prompt_tokens + weights.billable_output(self._admission.output_tokens),
            weights.billable_output(delivered_tokens),
        )
        usage = replace(reported, entries=_with_output(reported.entries, delivered_tokens))
        settlement = Settlement(used, written_off, usage.counts, self._cost_picousd(usage))
        return self._finish(outcome, usage, settlement, estimated=True)

    def _finish(self, outcome: RequestOutcome, usage: Usage, settlement: Settlement, *, estimated: bool) -> Relayed:
        settled = self._settle(settlement)
        relayed = Relayed(
            outcome=outcome,
            estimated=estimated,
            usage=usage,
            charged_tokens=settled.charged_tokens if settled else settlement.used_tokens,
            written_off_tokens=settled.written_off_tokens if settled else settlement.written_off_tokens,
            cost_picousd=settlement.cost_picousd,
            standing=self.standing(settled),
        )
        record = self._record(relayed, booked=settled is not None)
        try:
            self._requests.put(record)
        except StoreUnavailableError as error:
            self._journal.failure("request_not_recorded", error, request_id=record.request_id)
        self._tell(relayed, record, late=settled is not None and settled.late)
        return relayed

    def _settle(self, settlement: Settlement) -> Settled | None:
        """None when the table did not answer: the sweep then ends the reservation, visibly."""
        self.ended = True
        try:
            return self._ledger.settle(self.grant, settlement)
        except StoreUnavailableError as error:
            self._journal.failure(
                "settlement_left_to_sweep",
                error,
                request_id=self._call.request_id,
                user_id=self.grant.key.user_id,
                period_id=self.grant.key.period.id,
                billable_tokens=settlement.used_tokens,
            )
            self._journal.measure({"SettlementLeftToSweep": 1})
            return None

    def _record(self, relayed: Relayed, *, booked: bool) -> RequestRecord:
        usage, counts = relayed.usage, relayed.usage.counts
        first_byte, began_at = self.first_byte_at_seconds, datetime.fromtimestamp(self._began_at_seconds, UTC)
        price = self._model_of(usage, UsageEntry(counts)).price_row(counts.prompt_tokens, began_at)
        return RequestRecord(
            tenant_id=self.grant.key.tenant_id,
            user_id=self.grant.key.user_id,
            request_id=self._call.request_id,
            reservation_id=self.grant.reservation.id,
            credential_id=self._call.principal.credential_id,
            period_id=self.grant.key.period.id,
            plan_id=self._admission.account.plan.id,
            began_at=began_at,
            duration_ms=self.milliseconds_since_begin(),
            first_byte_ms=None if first_byte is None else int((first_byte - self._began_at_seconds) * 1000),
            model=self._admission.model.id,
            served_model=usage.model,
            outcome=relayed.outcome,
            estimated=relayed.estimated,
            counts=counts,
            prompt_tokens=counts.prompt_tokens,
            price_from=price.effective_from,
            price_max_prompt_tokens=price.max_prompt_tokens,
            charged_tokens=relayed.charged_tokens,
            written_off_tokens=relayed.written_off_tokens,
            cost_picousd=relayed.cost_picousd,
            streamed=self._admission.streamed,
            speed=usage.speed,
            service_tier=usage.service_tier,
            inference_geo=usage.inference_geo,
            web_searches=usage.web_searches,
            web_fetches=usage.web_fetches,
            upstream_request_id=self.upstream_request_id,
            nonce=self.grant.reservation.nonce,
            booked=booked,
        )

    def _tell(self, relayed: Relayed, record: RequestRecord, *, late: bool) -> None:
        counts = record.counts
        self._journal.event(
            "message_relayed",
            request_id=record.request_id,
            tenant_id=record.tenant_id,
            user_id=record.user_id,
            credential=self._call.principal.credential.value,
            credential_id=record.credential_id,
            plan_id=record.plan_id,
            period_id=record.period_id,
            model=record.model,
            outcome=record.outcome.value,
            estimated=record.estimated,
            late=late,
            streamed=record.streamed,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cache_write_5m_tokens=counts.cache_write_5m_tokens,
            cache_write_1h_tokens=counts.cache_write_1h_tokens,
            cache_read_tokens=counts.cache_read_tokens,
            charged_tokens=record.charged_tokens,
            written_off_tokens=record.written_off_tokens,
            remaining_tokens=relayed.standing.meter.remaining_tokens,
            cost_picousd=record.cost_picousd,
            first_byte_ms=record.first_byte_ms,
            duration_ms=record.duration_ms,
            upstream_request_id=record.upstream_request_id,
            client_session_id=self._call.headers.get("x-claude-code-session-id"),
        )


def release(ledger: Ledger, journal: Journal, grant: Grant) -> Settled | None:
    """Give a reservation back; None when the table did not answer and the sweep has to."""
    try:
        return ledger.release(grant)
    except StoreUnavailableError as error:
        journal.failure("release_left_to_sweep", error, user_id=grant.key.user_id, period_id=grant.key.period.id)
        return None


def _without_output(entries: tuple[UsageEntry, ...]) -> tuple[UsageEntry, ...]:
    return tuple(replace(entry, counts=replace(entry.counts, output_tokens=0)) for entry in entries)


def _with_output(entries: tuple[UsageEntry, ...], output_tokens: int) -> tuple[UsageEntry, ...]:
    """Put an estimate in place of output counts that were never final."""
    first, *others = _without_output(entries) or (UsageEntry(TokenCounts()),)
    return (replace(first, counts=replace(first.counts, output_tokens=output_tokens)), *others)
