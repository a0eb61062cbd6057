"""What the parameters of a subscription say about its trial and its end."""

from __future__ import annotations

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.store import DAY

TRIAL_DAYS_AT_MOST = 730


def live_items(subscription: Json) -> list[Json]:
    items: list[Json] = subscription["items"]["data"]
    return items


def trial_end_of(params: Json, now: int) -> int | None:
    if "trial_end" in params and "trial_period_days" in params:
        raise StripeRefusal("You may only specify one of these parameters: trial_end, trial_period_days.")
    if "trial_period_days" in params:
        if not 1 <= params["trial_period_days"] <= TRIAL_DAYS_AT_MOST:
            raise StripeRefusal("The minimum number of trial period days is 1.", param="trial_period_days")
        return now + int(params["trial_period_days"]) * DAY
    end = params.get("trial_end", "now")
    if end == "now":
        return None
    if end <= now:
        raise StripeRefusal("The trial end must be in the future.", param="trial_end")
    return int(end)


def cancellation(subscription: Json, params: Json, now: int) -> Json:
    """The fields that `cancel_at_period_end` and `cancel_at` change, or none."""
    if "cancel_at_period_end" in params and "cancel_at" in params:
        raise StripeRefusal(
            "You may only specify one of these parameters: cancel_at, cancel_at_period_end.", param="cancel_at"
        )
    ends = [item["current_period_end"] for item in live_items(subscription)]
    if "cancel_at_period_end" in params:
        wanted = params["cancel_at_period_end"]
        # With a monthly meter beside an annual plan the paid year is the period that has to end.
        return {
            "cancel_at": max(ends) if wanted else None,
            "cancel_at_period_end": wanted,
            "canceled_at": now if wanted else None,
        }
    if "cancel_at" not in params:
        return {}
    given = params["cancel_at"]
    moment = {"": None, "min_period_end": min(ends), "max_period_end": max(ends)}.get(given, given)
    if moment is not None and (not isinstance(moment, int) or moment <= now):
        raise StripeRefusal("`cancel_at` must be a time in the future.", param="cancel_at")
    return {
        "cancel_at": moment,
        "cancel_at_period_end": False,
        "canceled_at": now if moment is not None else None,
    }


def declined() -> StripeRefusal:
    return StripeRefusal(
        "Your card was declined.",
        status=402,
        kind="card_error",
        code="card_declined",
        decline_code="generic_decline",
    )
