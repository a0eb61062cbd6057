"""What a resource offers: the operation as the stripe package spells it, and who answers it."""

from __future__ import annotations

from collections.abc import Callable

from dev.stripe_double.forms import Json

Handler = Callable[..., Json]
"""Called with the checked parameters, then with the ids out of the path, in order."""
Routes = dict[str, Handler]
