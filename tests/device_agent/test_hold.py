"""An update that waits: for an application, and for a link that costs nothing."""

from __future__ import annotations

import fcntl
from pathlib import Path

import numpy as np

from device_agent.config import AgentConfig
from device_agent.hold import FILE, undisturbed
from device_agent.store import confirm, store_for
from device_agent.update import update_all
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, RepositorySimulator, toy_model


def test_an_update_waits_for_the_application(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    with (config.data_dir / FILE).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert update_all(config)[0].outcome == "activated", "the first release disturbs nobody"
        confirm(store_for(config.data_dir, MODEL))
        repository.publish("r2", w=5.0)
        (result,) = update_all(config)
        assert result.outcome == "current" and "application" in result.reason
        assert not list(store_for(config.data_dir, MODEL).downloads.iterdir())
    assert update_all(config)[0].outcome == "activated", "the kernel gives the lock up with its holder"


def test_an_application_waits_for_an_update_at_work(config: AgentConfig) -> None:
    with undisturbed(config.data_dir) as free, (config.data_dir / FILE).open("ab") as other:
        assert free
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise AssertionError("both have it")
        except BlockingIOError:
            pass


def test_a_metered_link_carries_small_updates_only(repository: RepositorySimulator, tmp_path: Path) -> None:
    from device_agent.trust import provision
    from device_agent.update import TRUST_FOLDER

    more = 'metered_file = "metered"\nmetered_max_bytes = 4096\n'
    config = make_config(tmp_path / "device", str(repository.folder), more=more)
    assert config.update.metered_file == tmp_path / "device" / "metered"
    provision(config.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    flag = tmp_path / "device" / "metered"
    flag.touch()
    repository.publish("r2", toy_model(5.0, 1.0, ballast=np.zeros(4096, np.float32)), w=5.0)
    (result,) = update_all(config)
    assert result.outcome == "current" and "metered" in result.reason and "KiB" in result.reason
    flag.unlink()
    assert update_all(config)[0].outcome == "activated"
    confirm(store_for(config.data_dir, MODEL))
    flag.touch()
    repository.publish("r3", w=7.0)
    assert update_all(config)[0].outcome == "activated", "small enough"
