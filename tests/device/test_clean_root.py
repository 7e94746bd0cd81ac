"""install.sh in a Debian root that has never seen us: installed, checked by systemd, answering as its own user. See README.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.device.board import ENABLE, ROOT, SUITE, _sources
from tests.simulators.repository import MODEL, PROFILE, RepositorySimulator

PACKAGES = "systemd,python3-venv,libgomp1,passwd,coreutils,dash,sed,grep,debianutils,libstdc++6"


def _missing() -> str | None:
    if not os.environ.get(ENABLE):
        return f"a clean Debian root takes a minute: set {ENABLE}=1"
    if os.geteuid() != 0:
        return "a root of its own needs root"
    absent = [tool for tool in ("mmdebstrap", "unshare") if shutil.which(tool) is None]
    return f"{absent[0]} is not installed" if absent else None


WHY_NOT = _missing()
pytestmark = [pytest.mark.device, pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")]


def _wheels(folder: Path, source: Path) -> None:
    """Our wheel and everything that it needs, as someone would carry them to a board without a network."""
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("edgewright-*.whl")
    fetch = [*pip, "download", "--quiet", "--only-binary=:all:", "--python-version", "3.11", "-d", str(folder)]
    subprocess.run([*fetch, f"{wheel}[agent-ort]"], check=True, capture_output=True, timeout=600)


def _inside(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run in the root, in namespaces of its own: no network, and mounts that vanish."""
    script = f'mount -t proc proc "{root}/proc" && exec chroot "{root}" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"'
    command = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-ec", script, "inside", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_script_installs_an_agent_that_answers(tmp_path: Path) -> None:
    root = tmp_path / "root"
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=essential", f"--include={PACKAGES}", SUITE, str(root), _sources()],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip(f"no Debian root: {made.stderr[-500:]}")
    (root / "wheels").mkdir()
    _wheels(root / "wheels", tmp_path / "source")
    shutil.copytree(ROOT / "device_agent" / "packaging", root / "packaging")
    (wheel,) = (root / "wheels").glob("edgewright-*.whl")
    script = ("sh", "/packaging/install.sh", "--extra", "agent-ort", "--find-links", "/wheels", f"/wheels/{wheel.name}")
    done = _inside(root, *script)
    assert done.returncode == 0, done.stderr[-2000:]

    unit = root / "etc/systemd/system/edgewright-agent.service"
    checked = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "edgewright-agent.service"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert unit.is_file() and "edgewright" not in checked.stderr, checked.stderr

    repository = RepositorySimulator(root / "repository")
    repository.publish("r1")
    config = root / "etc/edgewright/agent.toml"
    config.write_text(
        f'data_dir = "/var/lib/edgewright"\nrepository = "/repository"\n[[models]]\nname = "{MODEL}"\nprofile = "{PROFILE}"\n'
    )
    again = _inside(root, *script)  # an upgrade keeps the configuration
    assert again.returncode == 0 and MODEL in config.read_text(), again.stderr[-2000:]

    agent = "/opt/edgewright/bin/edgewright-agent"
    told = ("--config", "/etc/edgewright/agent.toml", "--json")
    installed = _inside(root, agent, "install", "--root", "/repository/metadata/1.root.json", *told)
    assert installed.returncode == 0 and '"activated"' in installed.stdout, installed.stderr[-2000:]
    owner = (root / "var/lib/edgewright").stat().st_uid
    kept = [path for path in (root / "var/lib/edgewright").rglob("*") if path.stat().st_uid != owner]
    assert owner != 0 and not kept, "what root installs belongs to the service's user"

    np.savez(root / "tmp/x.npz", x=np.ones((1, 4), np.float32))
    (root / "tmp").chmod(0o1777)
    answered = _inside(root, agent, "infer", "--inputs", "/tmp/x.npz", "-o", "/tmp/y.npz", *told)
    assert answered.returncode == 0, answered.stderr[-2000:]
    with np.load(root / "tmp/y.npz") as found:
        np.testing.assert_array_equal(found["y"], np.full((1, 4), 3.0, np.float32))
    assert _inside(root, agent, "doctor", *told).returncode == 0
