"""What other processes use: processor time to the microsecond, memory, file descriptors."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_MEGABYTE = 2**20


def cpu_seconds(pid: int) -> float:
    """Processor time of a process since its start, of ended threads too.

    Linux has it in nanoseconds, by a clock made of the process's number (clock_getcpuclockid); elsewhere it comes in
    hundredths of a second, which many requests even out.
    """
    if platform.system() == "Linux":
        return time.clock_gettime((~pid << 3) | 2)
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of several processes together."""

    rss_mb: float
    """As if nothing were shared."""
    pss_mb: float
    """Pages that n processes share count 1/n for each: what the machine really lacks. On Linux only, else as RSS."""

    @classmethod
    def of(cls, pids: Iterable[int]) -> Memory:
        rss, pss = 0, 0
        for pid in pids:
            full = psutil.Process(pid).memory_full_info()
            rss += full.rss
            pss += getattr(full, "pss", full.rss)
        return cls(round(rss / _MEGABYTE, 1), round(pss / _MEGABYTE, 1))


def rss_mb(pid: int) -> float:
    """Memory of one process, shared pages included."""
    return float(psutil.Process(pid).memory_info().rss) / _MEGABYTE


def open_files(pid: int) -> int:
    """File descriptors of a process: sockets, pipes and files."""
    return int(psutil.Process(pid).num_fds())
