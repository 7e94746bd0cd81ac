"""How much memory this process has needed."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

KIB = 1024


def peak_memory_bytes() -> int:
    """The process's high-water mark of resident memory, bytes.

    Linux's VmHWM starts anew at exec; ru_maxrss, the fallback, takes over that of a large parent.
    Source: proc_pid_status(5), getrusage(2) (kibibytes on Linux, bytes on macOS).
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB
