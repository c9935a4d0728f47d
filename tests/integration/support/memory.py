"""Peak memory of a process and everything that it starts."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass
class Peak:
    """Largest sum seen so far, in MiB."""

    pss_mib: float = 0.0


def sum_pss_mib(process: psutil.Process) -> float:
    """Return the proportional set size of a process and its descendants: shared pages are counted once."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return total / 2**20


@contextmanager
def watch_memory(pid: int, pause_s: float = 0.5) -> Iterator[Peak]:
    """Measure in the background while the block runs."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                peak.pss_mib = max(peak.pss_mib, sum_pss_mib(psutil.Process(pid)))
            except psutil.NoSuchProcess:
                return
            time.sleep(pause_s)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
