"""Budgets bind on the device's kind of machine, sizes everywhere; the command's exit code follows."""

from __future__ import annotations

import json
import platform
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from hw_benchmarks.budgets import check_budgets
from profiles.catalog import DEVICES, load_profile
from tests.compiler.small_net import save_net


def _document(machine: str, p90_ms: float) -> dict[str, Any]:
    result = {
        "artifact": "net.tflite",
        "environment": {"machine": machine},
        "latency_ns": {"p90": {"value": p90_ms * 1e6}},
        "peak_memory_bytes": 1 << 20,
        "size_bytes": 1000,
    }
    return {"results": [result]}


@pytest.mark.parametrize(
    ("machine", "p90_ms", "ok"), [("aarch64", 1.0, True), ("aarch64", 5000.0, False), ("x86_64", 5000.0, True)]
)
def test_latency_binds_on_the_devices_architecture(machine: str, p90_ms: float, ok: bool) -> None:
    checks = check_budgets(_document(machine, p90_ms), load_profile("android-arm64"))
    latency = next(check for check in checks if check.budget == "latency")
    assert latency.ok is ok
    assert ("not judged" in latency.sentence) is (machine == "x86_64")
    assert all(check.ok for check in checks if check.budget != "latency")


@pytest.mark.parametrize(("size", "code"), [(1 << 20, 0), (100, 1)])
def test_the_command_says_no(tmp_path: Path, size: int, code: int) -> None:
    save_net(tmp_path / "net.onnx")
    text = (DEVICES / "android-arm64.toml").read_text("utf-8").replace('"android-arm64"', '"here"')
    text = text.replace('arch = "aarch64"', f'arch = "{platform.machine()}"')
    (tmp_path / "here.toml").write_text(text.replace("size_bytes = 33_554_432", f"size_bytes = {size}"), "utf-8")
    script = Path(sysconfig.get_path("scripts")) / "edgewright-bench"
    quick = ["--duration", "0.05", "--repeats", "1", "--profile", "here.toml", "--json"]
    done = subprocess.run([script, "run", "net.onnx", *quick], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is (code == 0)
    assert {check["budget"] for check in document["budgets"]} == {"latency", "memory", "size"}
    assert all(check["binding"] for check in document["budgets"])
