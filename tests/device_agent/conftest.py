"""A published repository and a device that trusts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.config import AgentConfig, load_config
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER
from tests.simulators.repository import MODEL, PROFILE, RepositorySimulator


@pytest.fixture
def repository(tmp_path: Path) -> RepositorySimulator:
    return RepositorySimulator(tmp_path / "repository")


def make_config(folder: Path, repository: str, *, more: str = "") -> AgentConfig:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "agent.toml"
    path.write_text(
        f'repository = "{repository}"\ndata_dir = "data"\ndevice_id = "device-0001"\n'
        f'[[models]]\nname = "{MODEL}"\nprofile = "{PROFILE}"\n'
        f"[server]\nport = 0\n[update]\nreserve_bytes = 0\n{more}"
    )
    return load_config(path)


@pytest.fixture
def config(tmp_path: Path, repository: RepositorySimulator) -> AgentConfig:
    made = make_config(tmp_path / "device", str(repository.folder))
    provision(made.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    return made
