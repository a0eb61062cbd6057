"""Amounts as people read them. The whole numbers beside them are what counts."""

from __future__ import annotations

from typing import Final

PICOUSD_PER_USD: Final = 10**12
PICOUSD_PER_CENT: Final = 10**10
PICOUSD_PER_NANOUSD: Final = 1000

_DIGITS: Final = 6
"""After the point: a short call costs some millionths of a dollar."""


def dollars(picousd: int) -> str:
    """`$0.000498`; cents at least, six digits after the point at most, rounded half up."""
    unit = PICOUSD_PER_USD // 10**_DIGITS
    whole, part = divmod((abs(picousd) + unit // 2) // unit, 10**_DIGITS)
    digits = f"{part:0{_DIGITS}d}".rstrip("0").ljust(2, "0")
    return f"{'-' if picousd < 0 else ''}${whole:,}.{digits}"


def decimal(amount: int, unit: int) -> str:
    """`amount / unit` exactly, without trailing zeros; `unit` is a power of ten."""
    whole, part = divmod(abs(amount), unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{'-' if amount < 0 else ''}{whole}{'.' if digits else ''}{digits}"
