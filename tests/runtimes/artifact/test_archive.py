"""The zip of a folder: same bytes for the same files; hostile archives leave nothing behind."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from runtimes.artifact.archive import pack_folder, unpack
from runtimes.artifact.files import sha256_tree, size_tree
from runtimes.errors import ArtifactError, StorageError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "net.mlpackage"
    (folder / "Data" / "weights").mkdir(parents=True)
    (folder / "Manifest.json").write_text("{}")
    (folder / "Data" / "weights" / "weight.bin").write_bytes(os.urandom(3000))
    (folder / "Data" / "empty.bin").write_bytes(b"")
    return folder


def test_round_trip_keeps_the_tree_digest(package: Path, tmp_path: Path) -> None:
    pack_folder(package, tmp_path / "a.zip")
    unpack(tmp_path / "a.zip", tmp_path / "copy", size_tree(package))
    assert sha256_tree(tmp_path / "copy") == sha256_tree(package)


def test_same_files_same_bytes_whatever_the_dates_and_modes(package: Path, tmp_path: Path) -> None:
    pack_folder(package, tmp_path / "a.zip")
    for path in package.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o755)
    pack_folder(package, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_link_is_not_packed(package: Path, tmp_path: Path) -> None:
    (package / "link").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        pack_folder(package, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def _refused(tmp_path: Path, archive: Path, *, max_bytes: int = 10_000) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError):
        unpack(archive, tmp_path / "out", max_bytes)
    assert sorted(tmp_path.rglob("*")) == before


def _zip(path: Path, *names: str, mode: int = stat.S_IFREG | 0o644, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = compression
            archive.writestr(info, b"x" * 100)
    return path


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a//x", "./x", "a\\x", "C:x", "folder/", "x" * 256, "a/" * 40 + "x"]
)
def test_a_path_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    _refused(tmp_path, _zip(tmp_path / "a.zip", name))


def test_links_devices_and_compression_are_refused(tmp_path: Path) -> None:
    for mode in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFIFO):
        _refused(tmp_path, _zip(tmp_path / "a.zip", "x", mode=mode | 0o644))
    _refused(tmp_path, _zip(tmp_path / "a.zip", "x", compression=zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_and_a_file_that_is_also_a_folder_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path, _zip(tmp_path / "a.zip", "x", "x"))
    _refused(tmp_path, _zip(tmp_path / "a.zip", "x", "x/y"))


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path, _zip(tmp_path / "a.zip", "x"), max_bytes=99)
    unpack(tmp_path / "a.zip", tmp_path / "out", 100)


def test_no_truncation_or_bit_flip_gives_another_tree(package: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "a.zip", tmp_path / "b.zip"
    pack_folder(package, good)
    data = good.read_bytes()
    for length in range(0, len(data), 97):
        bad.write_bytes(data[:length])
        _refused(tmp_path, bad)
    for position in range(0, len(data), 13):
        bad.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        target = tmp_path / f"out{position}"
        try:
            unpack(bad, target, 10_000)
        except ArtifactError:
            assert not target.exists()
        else:  # a name or a date in a header changed: file contents are guarded by their CRC
            assert size_tree(target) == size_tree(package)


def test_an_existing_folder_is_left_alone(package: Path, tmp_path: Path) -> None:
    pack_folder(package, tmp_path / "a.zip")
    with pytest.raises(StorageError, match="exists"):
        unpack(tmp_path / "a.zip", package, 10_000)
    assert (package / "Manifest.json").read_text() == "{}"
