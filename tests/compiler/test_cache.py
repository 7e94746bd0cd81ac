from __future__ import annotations

from pathlib import Path

import pytest

from compiler.cache import Cache
from runtimes.errors import StorageError


def _write(folder: Path) -> None:
    (folder / "result").write_bytes(b"x" * 100)


def test_a_result_is_produced_once(tmp_path: Path) -> None:
    calls = []

    def produce(folder: Path) -> None:
        calls.append(1)
        _write(folder)

    cache = Cache(tmp_path / "cache")
    first, hit = cache.stage("s", {"a": 1}, produce, tmp_path)
    assert not hit
    again, hit = cache.stage("s", {"a": 1}, produce, tmp_path)
    assert hit
    assert first == again
    cache.stage("s", {"a": 2}, produce, tmp_path)
    cache.stage("t", {"a": 1}, produce, tmp_path)
    assert len(calls) == 3


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    def produce(folder: Path) -> None:
        _write(folder)
        raise RuntimeError("stopped")

    cache = Cache(tmp_path / "cache")
    with pytest.raises(RuntimeError):
        cache.stage("s", 1, produce, tmp_path)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_the_least_recently_used_results_go_first(tmp_path: Path) -> None:
    import os

    cache = Cache(tmp_path / "cache", max_bytes=250)
    folders = [cache.stage("s", n, _write, tmp_path)[0] for n in range(2)]
    os.utime(folders[0], (1, 1))
    cache.stage("s", 2, _write, tmp_path)
    assert not folders[0].exists()
    assert folders[1].exists()


def test_without_a_cache_results_go_to_scratch(tmp_path: Path) -> None:
    folder, hit = Cache(None).stage("s", 1, _write, tmp_path)
    assert not hit
    assert folder.parent == tmp_path


def test_an_unwritable_cache_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="Cannot write"):
        Cache(tmp_path / "cache").stage("s", 1, _write, tmp_path)
