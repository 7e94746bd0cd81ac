"""The exporter's promises: refusals, names, types, bytes, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER, package
from compiler.exporters.coreml.names import Names, sanitize
from compiler.exporters.coreml.target import UnknownTarget, find_target
from profiles.schema import Precision
from runtimes.coreml_reference.session import open_package
from runtimes.errors import StorageError
from tests.compiler.exporters.coreml.interpreter import run_package
from tests.compiler.exporters.coreml.support import (
    Arrays,
    export,
    exported_answers,
    hub,
    parse,
    random_feeds,
    reference,
    relative_error,
)

CONV = """
net (float[1, 2, 6, 6] x) => (float[1, 3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    y = Flatten(p)
}
"""
FP32 = ExportOptions(Precision.FP32)


def conv_model(factor: float = 1.0) -> ir.Model:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((3, 2, 3, 3)).astype(np.float32) * np.float32(factor)
    return hub(parse(CONV, w=weight, b=np.array([0.1, -0.2, 0.3], np.float32)))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def specification(path: Path) -> Any:
    import coremltools as ct

    return ct.utils.load_spec(str(path))


def test_the_registry_finds_it() -> None:
    assert EXPORTERS.get("coreml") is EXPORTER
    assert EXPORTER.suffix == ".mlpackage"


# --- the same bytes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_exports_are_byte_identical(tmp_path: Path, precision: str) -> None:
    first, _ = export(conv_model(), tmp_path, precision, author="us", version="1.2", team="vision")
    before = digests(first)
    shutil.move(first, tmp_path / "elsewhere.mlpackage")
    export(
        conv_model(2.0), tmp_path, "fp32", "iOS16"
    )  # another export in the same process moves the builder's counters
    (tmp_path / "other").mkdir()
    second, _ = export(conv_model(), tmp_path / "other", precision, author="us", version="1.2", team="vision")
    assert digests(second) == before
    assert set(before) == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }


def test_other_weights_give_other_identifiers(tmp_path: Path) -> None:
    one, _ = export(conv_model(), tmp_path, target="iOS17")
    first = json.loads((one / "Manifest.json").read_text("utf-8"))
    two, _ = export(conv_model(2.0), tmp_path, target="iOS17")
    second = json.loads((two / "Manifest.json").read_text("utf-8"))
    assert first["rootModelIdentifier"] in first["itemInfoEntries"]
    weights = [k for k, v in first["itemInfoEntries"].items() if v["name"] == "weights"]
    assert weights[0] not in second["itemInfoEntries"]


def test_no_path_of_this_machine_is_inside(tmp_path: Path) -> None:
    path, _ = export(conv_model(), tmp_path)
    for file in (p for p in path.rglob("*") if p.is_file()):
        assert str(tmp_path).encode() not in file.read_bytes()


def test_the_model_is_not_modified(tmp_path: Path) -> None:
    model = conv_model()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    export(model, tmp_path, "fp16")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


# --- names and types


def test_illegal_names_are_replaced_and_recorded(tmp_path: Path) -> None:
    proto = parse("net (float[1, 2] a, float[1, 2] b) => (float[1, 2] y) { y = Add(a, b) }")
    model = hub(proto)
    model.graph.inputs[0].name, model.graph.inputs[1].name = "in/put:0", "in.put:0"
    model.graph.outputs[0].name = "1st out"
    path, _ = export(model, tmp_path)
    description = specification(path).description
    assert [f.name for f in description.input] == ["in_put_0", "in_put_0_1"]
    user = description.metadata.userDefined
    assert json.loads(user["edgewright.inputs"]) == {"in_put_0": "in/put:0", "in_put_0_1": "in.put:0"}
    assert json.loads(user["edgewright.outputs"]) == {"_1st_out": "1st out"}
    feeds = {"in/put:0": np.float32([[1, 2]]), "in.put:0": np.float32([[3, 5]])}
    np.testing.assert_array_equal(run_package(path, feeds)["1st out"], [[4, 7]])


def test_legal_names_stay() -> None:
    assert [sanitize(n) for n in ("x", "_x@1", "tensor", "fp16", "9", "")] == [
        "x",
        "_x@1",
        "tensor_",
        "fp16_",
        "_9",
        "_",
    ]
    names = Names()
    assert [names.claim(n) for n in ("a", "a", "a_1", "a")] == ["a", "a_1", "a_1_1", "a_2"]


def test_a_name_that_the_builder_would_choose_is_kept_apart(tmp_path: Path) -> None:
    text = """net (float[1, 2] x) => (float[1, 2] relu_0_x_0) { leaky_y_alpha_0 = Relu(x)
              leaky_y = LeakyRelu(leaky_y_alpha_0)  relu_0_x_0 = Add(leaky_y, leaky_y_alpha_0) }"""
    model = hub(parse(text))
    feeds = random_feeds(model)
    assert relative_error(exported_answers(model, feeds, tmp_path), reference(model, feeds)) <= 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_inputs_and_outputs_are_float32(tmp_path: Path, precision: str) -> None:
    path, _ = export(conv_model(), tmp_path, precision)
    description = specification(path).description
    float32 = description.input[0].type.multiArrayType.FLOAT32
    assert [f.type.multiArrayType.dataType for f in (*description.input, *description.output)] == [float32, float32]


def test_integers_and_booleans_travel_as_int32(tmp_path: Path) -> None:
    model = hub(parse("net (int64[2] i, bool[2] f) => (int64[2] j, bool[2] g) { j = Add(i, i)  g = Not(f) }"))
    feeds: Arrays = {"i": np.array([3, -4]), "f": np.array([True, False])}
    path, _ = export(model, tmp_path)
    got = run_package(path, feeds)
    np.testing.assert_array_equal(got["j"], [6, -8])
    np.testing.assert_array_equal(got["g"], [0, 1])
    user = specification(path).description.metadata.userDefined
    assert json.loads(user["edgewright.dtypes"]) == {"i": "int64", "f": "bool", "j": "int64", "g": "bool"}


def test_an_input_and_a_constant_can_be_outputs(tmp_path: Path) -> None:
    text = "net (float[2] x) => (float[2] y, float[2] z, float[2] k) { y = Identity(x)  z = Relu(y)  k = Identity(c) }"
    model = hub(parse(text, c=np.float32([5, 6])))
    got = exported_answers(model, {"x": np.float32([-1, 1])}, tmp_path)
    assert {k: v.tolist() for k, v in got.items()} == {"y": [-1, 1], "z": [0, 1], "k": [5, 6]}


def test_metadata_reaches_its_fields(tmp_path: Path) -> None:
    path, _ = export(conv_model(), tmp_path, author="A", version="1.2", description="D", license="L", build="7")
    metadata = specification(path).description.metadata
    assert (metadata.author, metadata.versionString, metadata.shortDescription, metadata.license) == (
        "A",
        "1.2",
        "D",
        "L",
    )
    assert metadata.userDefined["build"] == "7"


# --- float16


def test_float16_halves_the_weights(tmp_path: Path) -> None:
    full, _ = export(conv_model(), tmp_path)
    half, _ = export(conv_model(), tmp_path, "fp16")
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    # 54 weights: 64-byte header, 64-byte record, data rounded up to 64 bytes.
    assert ((full / weights).stat().st_size, (half / weights).stat().st_size) == (64 + 64 + 216, 64 + 64 + 108)


@pytest.mark.parametrize("value", [1e6, 1e-9])
def test_a_constant_beyond_float16_keeps_its_operator_in_float32(tmp_path: Path, value: float) -> None:
    text = "net (float[4] x) => (float[4] y) { s = Mul(x, k)  t = Mul(s, q)  y = Relu(t) }"
    model = hub(parse(text, k=np.array(value, np.float32), q=np.array(1 / value, np.float32)))
    path, result = export(model, tmp_path, "fp16")
    assert any("Mul_0" in note and "Mul_1" in note and "Relu" not in note for note in result.notes)
    got = run_package(path, {"x": np.float32([1, 2, -3, 0.5])})["y"]
    np.testing.assert_allclose(got, [1, 2, 0, 0.5], rtol=2**-11)


# --- refusals


def test_all_refusals_come_at_once_and_without_echoes() -> None:
    text = """
    net (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y, float[1, 2, 4, 4] z) {
        d = RandomNormalLike(x)
        m = Add(x, d)
        y = RandomNormalLike(m)
        n = Relu(m)
        z = RandomUniformLike(n)
    }
    """
    refusals = EXPORTER.check(hub(parse(text)), FP32)
    assert [r.op_type for r in refusals] == ["RandomNormalLike", "RandomNormalLike", "RandomUniformLike"]
    assert all(r.where == "coreml" and r.reason and r.node for r in refusals)


def test_export_raises_what_check_lists_and_writes_nothing(tmp_path: Path) -> None:
    model = hub(parse("net (float[2, 2] x) => (float[2, 2] y) { y = RandomNormalLike(x) }"))
    with pytest.raises(UnsupportedModel) as caught:
        export(model, tmp_path)
    assert list(caught.value.refusals) == EXPORTER.check(model, FP32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("net (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }", "not static"),
        ("net (float x) => (float y) { y = Relu(x) }", "rank 0"),
        ("net (float[1,1,1,1,1,2] x) => (float[1,1,1,1,1,2] y) { y = Relu(x) }", "rank 6"),
        ("net (uint32[2] x) => (uint32[2] y) { y = Identity(x) }", "uint32 cannot be"),
        ("net (float[4] x, int64[1] k) => (float[2] v, int64[2] i) { v, i = TopK (x, k) }", "run time"),
    ],
)
def test_what_core_ml_cannot_hold_is_refused_with_its_reason(text: str, reason: str) -> None:
    model = ir.from_proto(parse(text))
    for node in model.graph:
        node.name = node.op_type
    assert any(reason in r.reason for r in EXPORTER.check(model, FP32))


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_activations_are_quantized_at_every_target(target: str, kind: str, tmp_path: Path) -> None:
    """By operations of their own since iOS17, and before by what they are made of."""
    text = (
        "net (float[64] x) => (float[64] y, KIND[64] q) { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"
    )
    model = hub(parse(text.replace("KIND", kind), s=np.array(0.25, np.float32), z=np.array(3, kind)))
    feeds: Arrays = {"x": np.random.default_rng(0).normal(0, 30, 64).astype(np.float32)}
    feeds["x"][:4] = [0.125, 0.375, -0.125, 1000]  # ties, and what leaves the range
    path = EXPORTER.export(model, tmp_path / "q.mlpackage", ExportOptions(Precision.INT8, target)).path
    with open_package(path) as session:
        got = session.run(feeds)
    for name, want in reference(model, feeds).items():
        np.testing.assert_array_equal(got[name], want)


def test_a_wide_integer_constant_is_refused() -> None:
    model = hub(parse("net (int64[1] x) => (int64[1] y) { y = Add(x, k) }", k=np.array([2**40])))
    assert "does not fit int32" in EXPORTER.check(model, FP32)[0].reason


def test_unknown_targets_are_named() -> None:
    with pytest.raises(UnknownTarget, match=r"iOS15.*iOS18"):
        EXPORTER.check(conv_model(), ExportOptions(Precision.FP32, "iOS7"))
    assert find_target("macOS14").name == "iOS17"
    assert find_target("iOS26").version == 26


# --- nothing half-written


def test_a_package_that_was_there_is_replaced(tmp_path: Path) -> None:
    path, _ = export(conv_model(), tmp_path)
    (path / "stale").write_text("old", "utf-8")
    export(conv_model(), tmp_path)
    assert not (path / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failure_leaves_the_old_package_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = export(conv_model(), tmp_path)
    before = digests(path)

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, "_manifest", full)
    with pytest.raises(StorageError, match="No space left"):
        export(conv_model(2.0), tmp_path)
    assert digests(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(StorageError):
        EXPORTER.export(conv_model(), tmp_path / "file" / "m.mlpackage", FP32)
