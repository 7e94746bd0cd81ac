"""Manifest and index: reading and writing back changes no byte, and what cannot be kept is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.index import IndexEntry, ReleaseIndex, Rollout, read_index
from runtimes.artifact.manifest import SCHEMA, Manifest, read_manifest
from runtimes.errors import ManifestError

DIGEST = "ab" * 32
FILE = {"path": "a.onnx", "size_bytes": 3, "sha256": DIGEST}
SPEC = {"name": "x", "dtype": "float32", "shape": [1, None]}
MINIMAL: dict[str, Any] = {
    "schema": SCHEMA,
    "model": "kws",
    "release": "1",
    "sequence": 1,
    "created": "2026-01-01T00:00:00Z",
    "inputs": [SPEC],
    "outputs": [SPEC],
    "artifacts": [FILE | {"format": "onnx", "precision": "int8", "runtime": "onnxruntime", "profiles": ["p"]}],
    "self_test": {"vectors": FILE, "max_abs_error": 1},
}
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    scalars | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
unknown = st.dictionaries(st.from_regex(r"x_[a-z]{1,8}", fullmatch=True), json_values, max_size=3)


@given(unknown, unknown, unknown)
def test_reading_and_writing_a_manifest_changes_no_byte(
    top: dict[str, Any], artifact: dict[str, Any], quality: dict[str, Any]
) -> None:
    document = json.loads(json.dumps(MINIMAL)) | top | {"quality": quality}
    document["artifacts"][0] |= artifact
    data = canonical_json(document)
    assert read_manifest(data).to_bytes() == data


@given(unknown, st.integers(0, 100) | st.floats(0, 100), st.booleans())
def test_reading_and_writing_an_index_changes_no_byte(extra: dict[str, Any], percent: float, halted: bool) -> None:
    entry = {"release": "1", "sequence": 4, "manifest": "1/manifest.json", "manifest_sha256": DIGEST}
    entry |= {"rollout": {"percent": percent, "halted": halted} | extra}
    data = canonical_json({"schema": "edgewright.index/1", "channel": "c", "model": "m", "releases": [entry]} | extra)
    assert read_index(data).to_bytes() == data


def test_schema_is_written_even_if_it_was_never_set() -> None:
    manifest = Manifest.model_validate({k: v for k, v in MINIMAL.items() if k != "schema"})
    assert json.loads(manifest.to_bytes())["schema"] == SCHEMA
    assert read_manifest(manifest.to_bytes()).to_bytes() == manifest.to_bytes()
    index = ReleaseIndex(channel="c", model="m", releases=())
    assert read_index(index.to_bytes()) == index


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgewright.manifest/9"},
        {"sequence": "1"},
        {"sequence": 1.0},
        {"sequence": 0},
        {"release": "../x"},
        {"artifacts": []},
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        read_manifest(canonical_json(MINIMAL | change))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b", ""])
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    document = json.loads(json.dumps(MINIMAL))
    document["artifacts"][0]["path"] = path
    with pytest.raises(ManifestError):
        read_manifest(canonical_json(document))


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'{"a":1,"a":2}', b"[" * 100_000, b"\xff", b'{"schema":NaN}', b"{}", b"1" * 5_000_000],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        read_manifest(data)
    with pytest.raises(ManifestError):
        read_index(data)


def test_an_index_without_schema_is_refused() -> None:
    with pytest.raises(ManifestError):
        read_index(canonical_json({"channel": "c", "model": "m", "releases": []}))


@given(st.text(min_size=1, max_size=8), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_percentage_contains_the_smaller(device: str, one: int, two: int) -> None:
    low, high = sorted((one, two))
    if Rollout(percent=low).includes(device, "m", "1"):
        assert Rollout(percent=high).includes(device, "m", "1")
        assert not Rollout(percent=high, halted=True).includes(device, "m", "1")


def test_newest_for_skips_halted_releases() -> None:
    entries = [
        IndexEntry(release=str(n), sequence=n, manifest="m", manifest_sha256=DIGEST, rollout=Rollout(halted=n == 2))
        for n in (1, 2)
    ]
    newest = ReleaseIndex(channel="c", model="m", releases=tuple(entries)).newest_for("device")
    assert newest is not None and newest.release == "1"
