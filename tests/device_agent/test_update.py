"""Updates against a real TUF repository: the way up, the refusals, the attacks."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from compiler.publish.delta import encode_delta
from device_agent.config import AgentConfig
from device_agent.engine import Engine
from device_agent.errors import NetworkError, TrustError
from device_agent.store import confirm, store_for
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, roll_back, update_all
from runtimes.artifact.index import Rollout
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, Faults, RepositorySimulator, serve, toy_model, toy_nan


def active(config: AgentConfig) -> str | None:
    ref = store_for(config.data_dir, MODEL).load().active
    return ref.release if ref else None


def answer(config: AgentConfig) -> float:
    """The running model's answer to ones: w + b."""
    with Engine(config) as engine:
        engine.refresh(MODEL)
        return float(engine.infer(MODEL, {"x": np.ones((1, 4), np.float32)})["y"][0, 0])


def test_install_update_confirm_and_roll_back(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1", w=2.0, b=1.0)
    (first,) = update_all(config)
    assert (first.outcome, first.via) == ("activated", "full") and first.verdict is not None and first.verdict.ok
    assert answer(config) == 3.0
    store = store_for(config.data_dir, MODEL)
    assert store.load().floor == 0
    assert confirm(store).floor == 1
    assert update_all(config)[0].outcome == "current"
    repository.publish("r2", w=5.0, b=1.0)
    assert update_all(config, dry_run=True)[0].outcome == "planned" and active(config) == "r1"
    assert update_all(config)[0].outcome == "activated"
    assert answer(config) == 6.0
    roll_back(store, "by hand")
    assert answer(config) == 3.0
    assert update_all(config)[0].outcome == "current" and active(config) == "r1"


def test_a_nan_release_is_rejected_once_and_the_device_stays(
    repository: RepositorySimulator, config: AgentConfig
) -> None:
    repository.publish("r1")
    update_all(config)
    repository.publish("broken", toy_nan())
    (result,) = update_all(config)
    assert result.outcome == "rejected" and "NaN" in result.reason
    assert active(config) == "r1" and answer(config) == 3.0
    assert update_all(config)[0].outcome == "current"


@pytest.mark.parametrize(
    ("self_test", "model", "reason"),
    [
        ({"max_memory_bytes": 1 << 20}, None, "memory"),
        ({"max_latency_ms": 1e-6}, None, "latency"),
        ({}, toy_model(2.5, 1.0), "differs by"),
        ({}, b"not a model", "ModelLoadError"),
    ],
)
def test_trials_refuse_with_a_reason(
    repository: RepositorySimulator, config: AgentConfig, self_test: dict[str, float], model: bytes | None, reason: str
) -> None:
    repository.publish("r1", model, self_test=self_test)
    (result,) = update_all(config)
    assert result.outcome == "rejected" and reason in result.reason
    assert active(config) is None


def test_a_useless_delta_falls_back_to_the_full_file(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0, delta=("r1", b"no delta"))
    (result,) = update_all(config)
    assert (result.outcome, result.via) == ("activated", "full")


def test_rollout_leaves_other_devices_alone(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    repository.publish("r2", rollout=Rollout(percent=0))
    repository.publish("r3", rollout=Rollout(min_agent="99.0"))
    repository.publish("r4", rollout=Rollout(halted=True))
    update_all(config)
    assert active(config) == "r1"


def test_a_tampered_target_is_refused(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=9.0)
    file = repository.target_file("r2/model.onnx")
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(TrustError):
        update_all(config)
    assert active(config) == "r1" and answer(config) == 3.0
    file.write_bytes(toy_model(9.0, 1.0))
    assert update_all(config)[0].outcome == "activated"


def test_a_rolled_back_repository_is_refused(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    old = repository.folder.with_name("old")
    shutil.copytree(repository.folder, old)
    repository.publish("r2")
    update_all(config)
    shutil.rmtree(repository.folder)
    old.rename(repository.folder)
    with pytest.raises(TrustError):
        update_all(config)
    assert active(config) == "r2"


def test_expired_metadata_is_refused(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    repository.expires = datetime.now(UTC) - timedelta(days=1)
    repository.publish("r2")
    with pytest.raises(TrustError):
        update_all(config)
    assert active(config) == "r1"


def test_another_root_of_trust_is_refused(repository: RepositorySimulator, config: AgentConfig) -> None:
    stranger = RepositorySimulator(repository.folder.with_name("stranger"))
    with pytest.raises(TrustError):
        provision(config.data_dir / TRUST_FOLDER, stranger.root.read_bytes())
    with pytest.raises(TrustError):
        provision(config.data_dir / "elsewhere", b"{}")
    stranger.publish("r1")
    with pytest.raises(TrustError):
        update_all(config.model_copy(update={"repository": str(stranger.folder)}))


def test_http_resumes_where_it_broke(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    faults = Faults()
    faults.drop_after, faults.drops = 40, 1
    with serve(repository.folder, faults) as url:
        web = config.model_copy(update={"repository": url})
        (result,) = update_all(web)
        assert result.outcome == "activated"
        assert faults.ranges == ["bytes=40-"]
        faults.status = 503
        with pytest.raises(NetworkError):
            update_all(web)
    with pytest.raises(NetworkError):
        update_all(web)
    assert answer(web) == 3.0


def test_a_missing_repository_is_a_network_error(repository: RepositorySimulator, config: AgentConfig) -> None:
    gone = make_config(config.data_dir.parent, str(repository.folder / "gone"))
    with pytest.raises(NetworkError):
        update_all(gone)


def test_a_delta_makes_the_artifact(repository: RepositorySimulator, config: AgentConfig, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    weights = random.normal(size=20_000).astype(np.float32)
    old, new = (toy_model(2.0, 1.0, ballast=weights + np.float32(d)) for d in (0.0, 1e-4))
    repository.publish("r1", old)
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    paths = [tmp_path / name for name in ("old.onnx", "new.onnx", "patch.ewd")]
    paths[0].write_bytes(old)
    paths[1].write_bytes(new)
    encode_delta(*paths)
    repository.publish("r2", new, delta=("r1", paths[2].read_bytes()))
    (result,) = update_all(config)
    assert (result.outcome, result.via) == ("activated", "delta"), result
    assert result.fetched_bytes < len(new)


def test_a_device_leaves_a_revoked_release(repository: RepositorySimulator, config: AgentConfig) -> None:
    store = store_for(config.data_dir, MODEL)
    repository.publish("r1")
    update_all(config)
    confirm(store)
    repository.publish("r2", w=5.0)
    update_all(config)
    _revoke_last(repository)
    (result,) = update_all(config)
    assert (result.outcome, result.release) == ("revoked", "r1")
    assert "wrong labels" in result.reason
    active = store.load().active
    assert active is not None and active.release == "r1"
    assert update_all(config)[0].outcome == "current"


def test_without_a_way_back_a_revoked_release_stays_until_a_newer_one_comes(
    repository: RepositorySimulator, config: AgentConfig
) -> None:
    store = store_for(config.data_dir, MODEL)
    repository.publish("r1")
    update_all(config)
    _revoke_last(repository)
    (result,) = update_all(config)
    assert (result.outcome, result.release) == ("current", "r1")
    assert "revoked (wrong labels)" in result.reason and "no way back" in result.reason
    repository.publish("r2", w=5.0)
    assert update_all(config)[0].outcome == "activated"
    active = store.load().active
    assert active is not None and active.release == "r2"


def _revoke_last(repository: RepositorySimulator) -> None:
    entry = repository.entries[-1]
    withdrawn = Rollout(halted=True, revoked="wrong labels")
    repository.entries[-1] = entry.model_copy(update={"rollout": withdrawn})
    repository.commit()
