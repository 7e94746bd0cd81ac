"""The command as a process: exit codes, one JSON document, and a quick --help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np

from device_agent.version import VERSION
from runtimes.artifact.versions import at_least
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, RepositorySimulator, toy_nan

ROOT = Path(__file__).resolve().parents[2]


def agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "device_agent.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60
    )


def test_the_story(repository: RepositorySimulator, tmp_path: Path) -> None:
    make_config(tmp_path / "device", str(repository.folder))
    toml, x, y = tmp_path / "device" / "agent.toml", tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(x, x=np.ones((2, 4), np.float32))
    assert agent("infer", "--config", toml, "--inputs", x, "-o", y).returncode == 4
    assert agent("update", "--config", toml).returncode == 2  # no root of trust yet
    repository.publish("r1")
    done = agent("install", "--config", toml, "--root", repository.root, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["outcome"] == "activated"
    assert agent("infer", "--config", toml, "--inputs", x, "-o", y).returncode == 0
    with np.load(y) as data:
        np.testing.assert_array_equal(data["y"], np.full((2, 4), 3.0, np.float32))
    repository.publish("r2", toy_nan())
    assert agent("update", "--config", toml).returncode == 1
    document = json.loads(agent("status", "--config", toml, "--json").stdout)
    assert document["models"][MODEL]["active"]["release"] == "r1" and document["spool"]["records"] == 2
    back = agent("rollback", "--config", toml, "--json")
    assert back.returncode == 1 and json.loads(back.stdout)["error"] == "NoWayBack"
    timestamp = repository.folder / "metadata" / "timestamp.json"
    signed = timestamp.read_bytes()
    forged = signed.replace(b'"version":2', b'"version":3')
    assert forged != signed
    timestamp.write_bytes(forged)
    assert agent("update", "--config", toml).returncode == 5


def test_a_missing_configuration_is_a_usage_error(tmp_path: Path) -> None:
    done = agent("status", "--config", tmp_path / "none.toml")
    assert done.returncode == 2 and "->" in done.stderr and not done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, device_agent.cli\n"
        "bad = {'numpy', 'pydantic', 'tuf', 'onnxruntime', 'urllib3', 'bottle'} & set(sys.modules)\n"
        "sys.exit(str(sorted(bad)) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_the_packages() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
    assert at_least(VERSION, None) and at_least(VERSION, "0.1") and not at_least(VERSION, "0.2")
    assert not at_least(VERSION, "strange")
