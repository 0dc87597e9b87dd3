"""The memory of this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class ProcessMemory:
    """Resident memory, now and at its highest, in bytes."""

    resident_bytes: int
    peak_bytes: int


def process_memory(status: Path = STATUS) -> ProcessMemory:
    """The memory of this process. Zeros if the system does not say.

    It is read from /proc, because a child's `ru_maxrss` starts at its parent's size. Systems without /proc give the
    highest for both.
    """
    try:
        found = {}
        for line in status.read_text("ascii", "replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
        return ProcessMemory(found["VmRSS"], found["VmHWM"])
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        import resource  # not everywhere
    except ImportError:
        return ProcessMemory(0, 0)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = most if sys.platform == "darwin" else most * 1024
    return ProcessMemory(peak, peak)
