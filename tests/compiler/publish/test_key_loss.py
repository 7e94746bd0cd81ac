"""Keys that are lost or stolen, as a device in the field lives through it: the agent's own update client follows every new root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from compiler.publish.keys import ensure_signer
from compiler.publish.release import Signing, init, publish, refresh
from compiler.publish.rotate import rotate
from device_agent.config import AgentConfig, load_config
from device_agent.errors import TrustError
from device_agent.store import store_for
from device_agent.trust import provision, trusted_versions
from device_agent.update import TRUST_FOLDER, update_all
from tests.compiler.publish.conftest import copy

MODEL, PROFILE = "net", "raspberry-pi-4b"


class Fleet:
    """A repository whose root needs two of three keys, and a device that runs its release 1."""

    def __init__(self, folder: Path, built: Path) -> None:
        self.repo, self.signing, self.built = folder / "repo", Signing(folder / "keys"), built
        init(self.repo, self.signing, root_keys=3, root_threshold=2)
        self.publish("1")
        device = folder / "device"
        device.mkdir()
        (device / "agent.toml").write_text(
            f'repository = "{self.repo}"\ndata_dir = "data"\ndevice_id = "device-0001"\n[update]\nreserve_bytes = 0\n'
            f'[[models]]\nname = "{MODEL}"\nprofile = "{PROFILE}"\n'
        )
        self.config: AgentConfig = load_config(device / "agent.toml")
        provision(self.config.data_dir / TRUST_FOLDER, (self.repo / "metadata" / "1.root.json").read_bytes())
        assert self.update() == "1"

    def publish(self, release: str) -> None:
        publish(self.built, self.repo, self.signing, channel="stable", release=release)

    def update(self) -> str | None:
        update_all(self.config)
        return self.release()

    def release(self) -> str | None:
        active = store_for(self.config.data_dir, MODEL).load().active
        return active.release if active else None

    def root_version(self) -> int:
        return trusted_versions(self.config.data_dir / TRUST_FOLDER)["root"]


@pytest.fixture
def fleet(tmp_path: Path, built: Path) -> Fleet:
    return Fleet(tmp_path, built)


def _forget(fleet: Fleet, keys: tuple[Path, ...]) -> None:
    for path in keys:
        path.unlink()


def test_key_rotation_with_loss_of_a_key_reaches_a_device_that_slept_through_it(fleet: Fleet) -> None:
    """A root key is lost, then one after the other every online key; the device meets all the new roots at once."""
    (fleet.signing.keys / "root-2.pem").unlink()
    rotate(fleet.repo, fleet.signing, "root", lost=True)
    for role in ("timestamp", "snapshot", "targets", "stable"):
        _forget(fleet, rotate(fleet.repo, fleet.signing, role).old_files)
    fleet.publish("2")
    newest = max(int(path.name.partition(".")[0]) for path in (fleet.repo / "metadata").glob("*.root.json"))
    assert newest >= 4 and fleet.root_version() == 1
    assert fleet.update() == "2"
    assert fleet.root_version() == newest


def test_a_stolen_timestamp_key_is_worth_nothing_once_the_device_saw_the_new_root(fleet: Fleet, tmp_path: Path) -> None:
    """The thief signs, with the old key, a newer state of the repository as it was before the rotation."""
    theirs = copy(fleet.repo, tmp_path / "theirs")
    stolen = Signing(copy(fleet.signing.keys, tmp_path / "stolen"))
    rotate(fleet.repo, fleet.signing, "timestamp")
    fleet.publish("2")
    assert fleet.update() == "2"
    for _ in range(9):  # a higher version than the device has seen
        refresh(theirs, stolen)
    shutil.copy(theirs / "metadata" / "timestamp.json", fleet.repo / "metadata" / "timestamp.json")
    for path in (theirs / "metadata").glob("*.snapshot.json"):
        shutil.copy(path, fleet.repo / "metadata" / path.name)
    with pytest.raises(TrustError):
        update_all(fleet.config)
    assert fleet.release() == "2"


@pytest.mark.parametrize("stolen", (1, 2), ids=("one-key", "two-keys"))
def test_one_stolen_root_key_moves_no_device_and_two_move_them_all(fleet: Fleet, stolen: int) -> None:
    """The second case is why: it is the threshold that decides, and nothing else that the first might have got wrong."""
    forged: Metadata[Root] = Metadata.from_file(str(fleet.repo / "metadata" / "1.root.json"))
    thief = CryptoSigner.generate_ed25519()
    forged.signed.version = 2
    for keyid in list(forged.signed.roles["root"].keyids):
        forged.signed.revoke_key(keyid, "root")
    forged.signed.add_key(thief.public_key, "root")
    forged.signed.roles["root"].threshold = 1
    forged.signatures.clear()
    for number in range(1, stolen + 1):
        forged.sign(ensure_signer(fleet.signing.keys / f"root-{number}.pem", None), append=True)
    forged.sign(thief, append=True)
    forged.to_file(str(fleet.repo / "metadata" / "2.root.json"))
    if stolen == 1:
        with pytest.raises(TrustError):
            update_all(fleet.config)
    else:
        update_all(fleet.config)
    assert (fleet.release(), fleet.root_version()) == ("1", stolen)
