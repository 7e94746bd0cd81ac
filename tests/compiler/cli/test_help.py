"""Every --help answers without loading anything heavy; the installed scripts end with the contract's exit codes."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "tensorflow",
    "coremltools",
    "onnxruntime",
    "ai_edge_litert",
    "onnxsim",
    "onnx",
    "onnx_ir",
    "numpy",
    "tuf",
    "rich",
)
PROBE = """
import sys
sys.argv = [{name!r}, *{arguments!r}]
try:
    from {module} import main
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = sorted(set({heavy!r}) & set(sys.modules))
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    ("name", "module", "arguments"),
    [
        ("edgewright", "compiler.cli.main", ["--help"]),
        ("edgewright", "compiler.cli.main", ["build", "--help"]),
        ("edgewright", "compiler.cli.main", ["run", "--help"]),
        ("edgewright", "compiler.cli.main", ["release", "--help"]),
        ("edgewright", "compiler.cli.main", ["delta", "--help"]),
        ("edgewright", "compiler.cli.main", ["keys", "--help"]),
        ("edgewright-agent", "device_agent.cli", ["--help"]),
        ("edgewright-bench", "hw_benchmarks.cli", ["--help"]),
    ],
)
def test_help_loads_nothing_heavy(name: str, module: str, arguments: list[str]) -> None:
    code = PROBE.format(name=name, module=module, arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def _edgewright(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sysconfig.get_path("scripts")) / "edgewright"
    return subprocess.run([str(script), *arguments], capture_output=True, text=True)


def test_unknown_profile_is_a_usage_error_with_a_remedy(tmp_path: Path) -> None:
    done = _edgewright("build", "net.onnx", "-o", str(tmp_path / "out"), "--profile", "raspberry-pi-4")
    assert done.returncode == 2
    assert "Did you mean 'raspberry-pi-4b'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_the_artifacts() -> None:
    done = _edgewright("build", "net.onnx", "-o", "out", "--profile", "iphone-15", "--precision", "fp16", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.split() == ["net-fp16.mlpackage", "coreml", "iphone-15"]


def test_int8_without_calibration_is_refused(tmp_path: Path) -> None:
    done = _edgewright("build", "net.onnx", "-o", str(tmp_path / "out"), "--precision", "int8")
    assert done.returncode == 2
    assert "--calibration" in done.stderr


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    done = _edgewright("build", str(tmp_path / "none.onnx"), "-o", str(tmp_path / "out"))
    assert done.returncode == 3
    assert "none.onnx" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_profiles_are_listed() -> None:
    done = _edgewright("profiles")
    assert done.returncode == 0
    assert "raspberry-pi-4b" in done.stdout
