"""The job for a Mac (docs/ci, docs/coreml.md), as far as any system can run it: stand-ins take the place of python3 and pip."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "docs/ci/verify-on-macos.sh"

# `python3 -m venv FOLDER` leaves a python and an edgewright that write down what they are asked for.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\necho "$0 $*" >> "$CALLS"\\n' > "$3/bin/python"
printf '#!/bin/sh\\necho "$0 $*" >> "$CALLS"\\nexit %s\\n' "$VERDICT" > "$3/bin/edgewright"
chmod +x "$3/bin/python" "$3/bin/edgewright"
"""


def _run(folder: Path, verdict: int, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    stand_ins, calls = folder / "stand-ins", folder / "calls"
    stand_ins.mkdir()
    (folder / "tmp").mkdir()
    (stand_ins / "python3").write_text(PYTHON, "utf-8")
    (stand_ins / "python3").chmod(0o755)
    calls.touch()
    environment = {
        "PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(folder / "tmp"),
        "CALLS": str(calls),
        "VERDICT": str(verdict),
    }
    done = subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=30)
    return done, calls.read_text("utf-8").splitlines()


@pytest.mark.parametrize("verdict", [0, 1])
def test_the_script_installs_verifies_and_hands_on_the_verdict(tmp_path: Path, verdict: int) -> None:
    done, calls = _run(tmp_path, verdict, "a build")
    assert done.returncode == verdict, done.stderr
    install, verify = calls
    assert verify.endswith("/bin/edgewright verify a build")
    named = re.search(r"pip install --quiet (.+)\[([a-z,]+)\]$", install)
    assert named is not None and Path(named[1]) == ROOT
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(named[2].split(",")) <= set(extras)
    assert not list((tmp_path / "tmp").iterdir())  # the environment is gone


def test_without_a_build_it_says_what_it_wants(tmp_path: Path) -> None:
    done, calls = _run(tmp_path, 0)
    assert done.returncode != 0 and "output folder of a build" in done.stderr
    assert not calls


def test_the_documented_job_runs_the_script_on_what_it_downloads() -> None:
    text = (ROOT / "docs/coreml.md").read_text("utf-8")
    (job,) = re.findall(r"```yaml\n(verify-on-device:.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"- run: (.+)", job)
    script, folder = command.split()
    assert ROOT / script == SCRIPT and os.access(SCRIPT, os.X_OK)
    assert job.count(f"path: {folder} }}") == 2  # downloaded, and uploaded whatever the verdict
    assert "if: always()" in job and "macos" in job
