"""Offline bundles and simulated fleets: from a published repository to a device that has no network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.cli.release import release
from compiler.errors import OutputExists, PublishError
from compiler.publish.bundle import make_bundle
from compiler.publish.release import Signing, init, publish, set_rollout
from compiler.publish.simulate import simulate
from device_agent.config import AgentConfig, load_config
from device_agent.errors import NetworkError, TrustError
from device_agent.store import store_for
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, update_all

MODEL, PROFILE = "net", "raspberry-pi-4b"


@pytest.fixture
def published(tmp_path: Path, built: Path) -> Path:
    """A repository with releases 1 and 2; signatures start now, for the device has a clock."""
    signing = Signing(tmp_path / "keys")
    init(tmp_path / "repository", signing, channels=("stable", "beta"))
    for name in ("1", "2"):
        publish(built, tmp_path / "repository", signing, channel="stable", release=name)
    return tmp_path / "repository"


def _device(folder: Path, bundle: Path, root: bytes) -> AgentConfig:
    folder.mkdir()
    (folder / "agent.toml").write_text(
        f'repository = "{bundle}"\ndata_dir = "data"\ndevice_id = "offline-1"\n[update]\nreserve_bytes = 0\n'
        f'[[models]]\nname = "{MODEL}"\nprofile = "{PROFILE}"\n'
    )
    config = load_config(folder / "agent.toml")
    provision(config.data_dir / TRUST_FOLDER, root)
    return config


def _bundle(repository: Path, output: Path, **options: object) -> Path:
    make_bundle(repository, output, channel="stable", model=MODEL, **options)  # type: ignore[arg-type]
    return output


def test_a_device_installs_from_the_file_alone(published: Path, tmp_path: Path) -> None:
    bundle = _bundle(published, tmp_path / "2.zip", profiles=[PROFILE])
    root = (published / "metadata" / "1.root.json").read_bytes()
    published.rename(tmp_path / "gone")
    config = _device(tmp_path / "device", bundle, root)
    (result,) = update_all(config)
    assert (result.outcome, result.via) == ("activated", "full")
    active = store_for(config.data_dir, MODEL).load().active
    assert active is not None and active.release == "2"


def test_the_same_repository_gives_the_same_bytes(published: Path, tmp_path: Path) -> None:
    one, two = (_bundle(published, tmp_path / name).read_bytes() for name in ("one.zip", "two.zip"))
    assert one == two


def test_a_changed_byte_is_refused_by_the_device(published: Path, tmp_path: Path) -> None:
    bundle = _bundle(published, tmp_path / "b.zip")
    with zipfile.ZipFile(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    index = next(name for name in contents if name.endswith("index.json"))
    contents[index] = contents[index].replace(b'"2"', b'"3"')
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    config = _device(tmp_path / "device", bundle, (published / "metadata" / "1.root.json").read_bytes())
    with pytest.raises(TrustError):
        update_all(config)
    assert store_for(config.data_dir, MODEL).load().active is None


def test_a_compressed_or_damaged_bundle_is_refused(published: Path, tmp_path: Path) -> None:
    """What a fuzzer found: entries that zipfile cannot unpack. A bomb is refused for the same reason."""
    root = (published / "metadata" / "1.root.json").read_bytes()
    for number, damage in enumerate((lambda z: z, lambda z: z[:80] + bytes([z[80] ^ 255]) + z[81:])):
        bundle = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("metadata/timestamp.json", bytes(1 << 24))
        bundle.write_bytes(damage(bundle.read_bytes()))
        with pytest.raises(NetworkError, match="never are"):
            update_all(_device(tmp_path / f"device{number}", bundle, root))


def test_bad_requests_leave_no_file(published: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.zip"
    for wrong in ({"release": "r9"}, {"profiles": ["cortex-m4"]}, {"model": "other"}, {"channel": "beta"}):
        options = {"channel": "stable", "model": MODEL} | wrong
        with pytest.raises(PublishError):
            make_bundle(published, output, **options)  # type: ignore[arg-type]
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(OutputExists):
        _bundle(published, output)
    assert output.read_text() == "mine"


def test_a_fleet_splits_as_the_rollout_says(published: Path, tmp_path: Path) -> None:
    def fleet(**options: object) -> dict[str | None, int]:
        found = simulate(published, channel="stable", model=MODEL, devices=100_000, **options)  # type: ignore[arg-type]
        assert sum(found.devices_by_release.values()) == 100_000
        return found.devices_by_release

    signing = Signing(tmp_path / "keys")
    set_rollout(published, signing, channel="stable", model=MODEL, release="2", percent=10)
    assert 0.09 < fleet()["2"] / 100_000 < 0.11
    assert 0.48 < fleet(percent=50)["2"] / 100_000 < 0.52
    set_rollout(published, signing, channel="stable", model=MODEL, release="2", halted=True)
    assert fleet() == {"1": 100_000, "2": 0}


def test_a_fleet_says_who_is_left_out_and_what_is_sent(published: Path, tmp_path: Path) -> None:
    signing = Signing(tmp_path / "keys")
    where = {"channel": "stable", "model": MODEL}
    set_rollout(published, signing, **where, release="2", percent=50, terms={"min_agent": "0.2"})
    found = simulate(published, **where, devices=10_000, agents={"0.1.0": 30, "0.2.0": 70})
    assert found.left_out["agent older than 0.2"] == pytest.approx(3000, abs=2)
    assert sum(found.left_out.values()) == found.devices_by_release["1"]
    assert found.moves == {"1": found.devices_by_release["2"]} and 3400 < found.moves["1"] < 3600
    # The same bytes again: there is no delta to send.
    assert found.transfers and all((t.before, t.delta_bytes) == ("1", None) and t.full_bytes for t in found.transfers)
    said = CliRunner().invoke(
        release, ["simulate", str(published), "--model", MODEL, "--devices", "1000", "--agent", "0.1.0=1"]
    )
    assert "not 2: 1,000 devices, agent older than 0.2" in said.output


@pytest.mark.parametrize(
    "terms",
    (
        {"windows": ("whenever",)},
        {"min_agent": "new"},
        {"min_runtimes": {"onnxruntime": "new"}},
        {"min_runtimes": {"oonnxruntime": "1.2"}},
    ),
)
def test_terms_that_no_device_understands_are_not_signed(
    published: Path, tmp_path: Path, terms: dict[str, object]
) -> None:
    before = (published / "metadata" / "timestamp.json").read_bytes()
    with pytest.raises(PublishError):
        set_rollout(published, Signing(tmp_path / "keys"), channel="stable", model=MODEL, release="2", terms=terms)
    assert (published / "metadata" / "timestamp.json").read_bytes() == before


def test_the_commands(published: Path, tmp_path: Path) -> None:
    where = [str(published), "--model", MODEL]
    made = CliRunner().invoke(release, ["bundle", *where, "-o", str(tmp_path / "b.zip"), "--json"])
    assert json.loads(made.stdout)["release"] == "2" and zipfile.is_zipfile(tmp_path / "b.zip")
    shown = CliRunner().invoke(release, ["simulate", *where, "--devices", "50"])
    assert shown.exit_code == 0 and "50" in shown.stdout
