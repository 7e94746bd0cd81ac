"""Encoding: exact for anything, small for fine-tuned nets, the same bytes twice."""

from __future__ import annotations

import hashlib
import lzma
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from compiler.errors import PublishError
from compiler.publish.delta import DeltaReport, encode_delta
from compiler.publish.delta.walkers import find_tensors
from runtimes.artifact.archive import pack_folder
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.delta.format import HEADER, STREAM, Kind


def _encode(folder: Path, base: bytes, new: bytes) -> DeltaReport:
    """Encode, apply, compare, and check that the patch is never larger than the compressed full file plus its header."""
    (folder / "base").write_bytes(base)
    (folder / "new").write_bytes(new)
    report = encode_delta(folder / "base", folder / "new", folder / "patch")
    digest = apply_delta(folder / "base", folder / "patch", folder / "out", max_result_bytes=len(new))
    assert (folder / "out").read_bytes() == new
    assert digest == report.result_sha256 == hashlib.sha256(new).hexdigest()
    assert report.size_bytes == (folder / "patch").stat().st_size == min(report.candidates.values())
    assert report.size_bytes <= min(len(new), len(lzma.compress(new, preset=9))) + HEADER.size + STREAM.size + 64
    return report


@settings(max_examples=40, deadline=None)
@given(base=st.binary(max_size=300), new=st.binary(max_size=300), splice=st.integers(0, 300))
def test_anything_round_trips(base: bytes, new: bytes, splice: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _encode(Path(folder), base, base[:splice] + new + base[splice:])


def _net(weights: dict[str, np.ndarray]) -> bytes:  # type: ignore[type-arg]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"], name=f"node_{name}") for name in weights]
    graph = helper.make_graph(
        nodes, "net", [], [], initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    return bytes(helper.make_model(graph, ir_version=10).SerializeToString(deterministic=True))


def _fine_tuned(dtype: str, seed: int = 0) -> tuple[bytes, bytes]:
    """Two nets of 16 layers, [64, 64, 3] each, the second with noise of 1 % of the weights' deviation (int8: 1 step)."""
    random = np.random.default_rng(seed)
    before, after = {}, {}
    for layer in range(16):
        weight = random.normal(0, 0.05, (64, 64, 3)).astype(np.float32)
        tuned = (weight + random.normal(0, 0.0005, weight.shape)).astype(np.float32)
        if dtype == "int8":
            scale = float(np.abs(weight).max()) / 127
            before[f"w{layer}"], after[f"w{layer}"] = (
                np.clip(np.rint(w / scale), -127, 127).astype(np.int8) for w in (weight, tuned)
            )
            bias = random.integers(-5000, 5000, 64, dtype=np.int32)
            before[f"b{layer}"], after[f"b{layer}"] = bias, bias + random.integers(-20, 20, 64, dtype=np.int32)
        else:
            before[f"w{layer}"], after[f"w{layer}"] = weight.astype(dtype), tuned.astype(dtype)
    return _net(before), _net(after)


# Shares of xz -9 of the full file. Bounds are the measured 0.18, 0.54 and 0.70 plus five points.
@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.23), ("float16", 0.59), ("float32", 0.75)])
def test_a_fine_tuned_net_is_far_smaller_than_xz_of_the_full_file(dtype: str, most: float, tmp_path: Path) -> None:
    base, new = _fine_tuned(dtype)
    report = _encode(tmp_path, base, new)
    xz = len(lzma.compress(new, preset=9 | lzma.PRESET_EXTREME))
    assert report.codec.startswith("tensors/")
    assert report.size_bytes / xz < most


def test_same_input_same_patch(tmp_path: Path) -> None:
    base, new = _fine_tuned("int8")
    _encode(tmp_path, base, new)
    first = (tmp_path / "patch").read_bytes()
    _encode(tmp_path, base, new)
    assert (tmp_path / "patch").read_bytes() == first


def test_an_unchanged_file_costs_a_header(tmp_path: Path) -> None:
    base, _ = _fine_tuned("int8")
    assert _encode(tmp_path, base, base).size_bytes < 200


def test_frozen_layers_and_the_graph_are_copied(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    layers = {f"layer{n}": random.integers(-127, 127, 5000, dtype=np.int8) for n in range(10)}
    tuned = layers | {"layer9": random.integers(-127, 127, 5000, dtype=np.int8)}
    assert _encode(tmp_path, _net(layers), _net(tuned)).size_bytes < 5000 + 300


def test_a_renamed_reordered_or_reshaped_net_still_round_trips(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    layers = {f"layer{n}": random.normal(size=300).astype(np.float32) for n in range(6)}
    _encode(tmp_path, _net(layers), _net(dict(reversed(layers.items()))))
    _encode(tmp_path, _net(layers), _net({f"other/{name}": w for name, w in layers.items()}))
    _encode(tmp_path, _net(layers), _net({name: w[:100] for name, w in layers.items()}))


def test_a_damaged_model_is_only_bytes(tmp_path: Path) -> None:
    base, new = _fine_tuned("int8")
    for cut in (1, 7, 5000):
        _encode(tmp_path, base[:-cut], new[cut:])


def test_onnx_tensors_are_found_where_onnx_put_them() -> None:
    weights = {
        "half": np.arange(6, dtype=np.float16),
        "single": np.arange(5, dtype=np.float32),
        "int8": np.arange(7, dtype=np.int8),
        "int32": np.arange(3, dtype=np.int32),
    }
    data = _net(weights)
    found = {tensor.key.split(":", 1)[1].rsplit(":", 1)[0]: tensor for tensor in find_tensors(data)}
    kinds = {"half": Kind.ORDERED16, "single": Kind.ORDERED32, "int8": Kind.DIFF8, "int32": Kind.DIFF32}
    assert {name: tensor.kind for name, tensor in found.items()} == kinds
    for name, tensor in found.items():
        assert data[tensor.offset : tensor.offset + tensor.size] == weights[name].tobytes()


def _compare_with_onnx(path: Path) -> None:
    data = path.read_bytes()
    found = {
        tensor.key.split(":", 1)[1].rsplit(":", 1)[0]: data[tensor.offset : tensor.offset + tensor.size]
        for tensor in find_tensors(data)
    }
    initializers = [t for t in onnx.load(path).graph.initializer if t.raw_data]
    assert initializers
    for tensor in initializers:
        assert found[tensor.name] == tensor.raw_data


def test_real_onnx_tensors_are_where_onnx_reads_them(realdata: Path) -> None:
    for name in ("kws", "ic", "ad"):
        _compare_with_onnx(realdata / name / "model.onnx")


def test_real_tflite_tensors_are_where_litert_reads_them(realdata: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    path = realdata / "kws" / "reference_int8.tflite"
    data = path.read_bytes()
    found = {tensor.key: data[tensor.offset : tensor.offset + tensor.size] for tensor in find_tensors(data)}
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    seen: set[bytes] = set()
    scales = 0
    for tensor in model.subgraphs[0].tensors:
        contents = model.buffers[tensor.buffer].data
        if contents is not None and len(contents):
            seen.add(np.asarray(contents, np.uint8).tobytes())
            scale = found.get(f"0:{tensor.name.decode()}:scale")
            if tensor.quantization.scale is not None:
                assert scale == np.asarray(tensor.quantization.scale, np.float32).tobytes()
                scales += 1
    assert len(seen) > 5 and scales > 5
    assert seen <= set(found.values())


def test_real_core_ml_blobs_are_found_and_a_changed_package_is_small(realdata: Path, tmp_path: Path) -> None:
    package = realdata / "basic_pitch" / "nmp.mlpackage"
    pack_folder(package, tmp_path / "a.zip")
    data = (tmp_path / "a.zip").read_bytes()
    tensors = find_tensors(data)
    weights = next(package.rglob("weight.bin")).stat().st_size
    assert sum(tensor.size for tensor in tensors) > 0.9 * weights
    changed = bytearray(data)
    for tensor in tensors:
        if tensor.kind in (Kind.ORDERED16, Kind.ORDERED32):
            changed[tensor.offset] ^= 1
    report = _encode(tmp_path, data, bytes(changed))
    assert report.size_bytes < 0.2 * len(lzma.compress(bytes(changed)))


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(PublishError):
            encode_delta(tmp_path / "a", wrong, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()


def test_renamed_and_reordered_tensors_are_found_by_content_and_likeness(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    old = {f"w{n}": random.normal(0, 0.1, 3000).astype(np.float32) for n in range(5)}
    tuned = {name: w + np.float32(1e-6) * random.integers(-3, 4, 3000).astype(np.float32) for name, w in old.items()}
    same = _encode(tmp_path, _net(old), _net(tuned)).size_bytes
    renamed = {f"net/{name}": tuned[name] for name in reversed(tuned)}
    assert _encode(tmp_path, _net(old), _net(renamed)).size_bytes < same + 400
    assert _encode(tmp_path, _net(old), _net({f"net/{n}": old[n] for n in reversed(old)})).size_bytes < 800


def test_external_data_in_an_archive_is_found(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    weight = random.normal(0, 0.1, 5000).astype(np.float32)
    for stem, noise in (("a", 0.0), ("b", 1e-6)):
        (tmp_path / stem).mkdir()
        model = onnx.load_from_string(_net({"w": weight + np.float32(noise)}))
        onnx.save(model, tmp_path / stem / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
        pack_folder(tmp_path / stem, tmp_path / f"{stem}.zip")
    old, new = ((tmp_path / f"{stem}.zip").read_bytes() for stem in "ab")
    [tensor] = find_tensors(old)
    assert old[tensor.offset : tensor.offset + tensor.size] == weight.tobytes() and tensor.kind is Kind.ORDERED32
    assert _encode(tmp_path, old, new).codec.startswith("tensors/")
