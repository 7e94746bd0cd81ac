"""What the machine was doing while it was measured. Everything is read from /proc and /sys; what is missing is null."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

CPU = "/sys/devices/system/cpu/cpu0/cpufreq"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def _number(path: str, scale: float = 1.0) -> float | None:
    text = _read(path)
    try:
        return float(text) * scale if text else None
    except ValueError:
        return None


def cpu_model() -> str:
    """The model name of x86, or the device-tree model and part number of ARM."""
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    board = _read("/sys/firmware/devicetree/base/model") or fields.get("Model")
    part = fields.get("model name") or (
        f"ARM part {fields['CPU part']}" if "CPU part" in fields else platform.machine()
    )
    return f"{board} ({part})" if board else part


def capture(threads: int) -> dict[str, Any]:
    """Machine, governor, frequency (Hz), temperature (degrees Celsius), load, memory (bytes), versions of system and Python."""
    frequency = _number(f"{CPU}/scaling_cur_freq", 1000)
    return {
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "governor": _read(f"{CPU}/scaling_governor"),
        "frequency_hz": frequency,
        "temperature_c": _number("/sys/class/thermal/thermal_zone0/temp", 1e-3),
        "load_1min": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "threads": threads,
    }


def energy_joules() -> float | None:
    """The package energy counter (Intel RAPL), where it exists and may be read."""
    return _number("/sys/class/powercap/intel-rapl:0/energy_uj", 1e-6)
