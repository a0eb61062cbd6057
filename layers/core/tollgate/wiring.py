"""The composition root: real collaborators, built once per container. The only place with a real clock and real ids."""

from __future__ import annotations

import secrets
import time
from typing import Final

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class SystemClock:
    """`tollgate.domain.sources.Clock` of this machine; Lambda keeps it within milliseconds of UTC."""

    def now_seconds(self) -> float:
        return time.time()


class SystemIds:
    """`tollgate.domain.sources.IdSource` from the operating system's generator.

    `secrets` draws from the kernel at every call, so ids stay unique when Lambda restores many environments from one
    snapshot.
    """

    def new_id(self, length: int) -> str:
        return "".join(secrets.choice(_BASE62) for _ in range(length))

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)
