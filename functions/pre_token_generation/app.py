"""Cognito's trigger before it issues tokens: adds the user's plan to them."""

from __future__ import annotations

from tollgate.edge.pre_token import PlanClaim
from tollgate.wiring import build_pre_token_generation

handler = PlanClaim(build_pre_token_generation).handle
