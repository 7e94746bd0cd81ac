"""What the build machine is: recorded beside every figure that depends on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


def host_info() -> dict[str, Any]:
    """CPU model, cores, the instruction-set flags that change integer kernels, operating system, Python."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        fields = {}
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "machine": platform.machine(),
        "cpu": fields.get("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count() or 1,
        "cpu_flags": [flag for flag in FLAGS if flag in present],
        "system": platform.system(),
        "python": platform.python_version(),
    }
