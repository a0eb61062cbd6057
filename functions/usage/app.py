"""GET /usage/current: what the caller has used of the running usage period."""

from __future__ import annotations

from tollgate.edge.documents import UsageDocument
from tollgate.edge.http_api import HttpApi
from tollgate.edge.views import usage_view
from tollgate.flows.current_usage import find_current_usage
from tollgate.wiring import UsageTools, build_usage

api: HttpApi[UsageTools] = HttpApi(build_usage)
handler = api.handle


@api.get("/usage/current")
def current() -> UsageDocument:
    """Used, reserved and remaining by kind, cost, overage and the reset time; figures as of now."""
    tools = api.tools
    account = tools.accounts.find(api.caller(), fresh=True)
    usage = find_current_usage(account, tools.meters, tools.ledger, tools.clock)
    return UsageDocument.model_validate(usage_view(usage))
