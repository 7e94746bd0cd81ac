"""Rules of a profile, from its TOML file to what a runtime executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.pipeline import build
from compiler.request import BuildRequest
from tests.compiler.quantization.rescue.nets import samples, uneven_net

PROFILE = """
name = "NAME"
title = "A board"
source = "this test"

[hardware]
arch = "x86_64"
cpu = "any"
cores = 1
memory_bytes = 1_000_000_000

[[targets]]
format = "FORMAT"
runtime = "RUNTIME"
precisions = ["int8"]

[quantization]
RULES
"""


def built(folder: Path, name: str, rules: str, target: tuple[str, str] = ("tflite", "litert")) -> Path:
    """The artifact of a net on a profile with these rules."""
    model = uneven_net(ratio=1.0)
    onnx.save(ir.to_proto(model), folder / "net.onnx")
    np.savez(folder / "data.npz", image=np.asarray(samples(model).feeds["image"]))
    text = PROFILE.replace("NAME", name).replace("RULES", rules)
    (folder / f"{name}.toml").write_text(text.replace("FORMAT", target[0]).replace("RUNTIME", target[1]))
    request = BuildRequest(
        str(folder / "net.onnx"),
        folder / name,
        calibration=str(folder / "data.npz"),
        profiles=(str(folder / f"{name}.toml"),),
    )
    report = build(request)
    assert report.ok, [gate for gate in report.gates if not gate.ok]
    return folder / name / report.artifacts[0].path


def answers(path: Path, codes: np.ndarray, kind: type) -> np.ndarray:
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert taken["dtype"] == given["dtype"] == kind
    found = []
    for row in codes:
        interpreter.set_tensor(taken["index"], row[None].astype(kind))
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"])[0].astype(np.int32))
    return np.stack(found)


def test_uint8_of_a_profile_is_what_litert_takes_and_gives(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (8, 3, 8, 8))
    signed = answers(built(tmp_path, "signed", 'integer_io = "int8"'), codes, np.int8)
    unsigned = answers(built(tmp_path, "unsigned", 'integer_io = "uint8"'), codes + 128, np.uint8)
    np.testing.assert_array_equal(unsigned, signed + 128)
    assert np.ptp(signed) > 20


def test_float_ops_and_per_tensor_of_a_profile_reach_the_artifact(tmp_path: Path) -> None:
    target = ("onnx", "onnxruntime")
    plain = onnx.load(built(tmp_path, "plain", "", target))
    ruled = onnx.load(built(tmp_path, "ruled", 'float_ops = ["Gemm"]\nper_channel = false', target))

    def axes(model: onnx.ModelProto) -> int:
        sizes = {one.name: int(np.prod(one.dims)) for one in model.graph.initializer}
        return sum(n.op_type == "DequantizeLinear" and sizes.get(n.input[1], 1) > 1 for n in model.graph.node)

    def reads_codes(model: onnx.ModelProto) -> bool:
        made = {o: n.op_type for n in model.graph.node for o in n.output}
        return any(made.get(n.input[1]) == "DequantizeLinear" for n in model.graph.node if n.op_type == "Gemm")

    assert axes(plain) > 0 and axes(ruled) == 0
    assert reads_codes(plain) and not reads_codes(ruled)
