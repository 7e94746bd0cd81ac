"""Numbers of an INT8 .mlpackage: identifiers matched to the hub's names, both ways of storing weights, matrices turned back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.errors import DataError
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.passes import clean_up
from compiler.previous.find import PreviousArtifact, PreviousRelease
from compiler.previous.numbers import read_numbers
from compiler.previous.predict import predict_updates
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import make_bench
from compiler.quantization.spec import Role
from compiler.quantization.sticky import stick
from profiles.schema import Precision
from runtimes.artifact.archive import pack_folder

pytest.importorskip("coremltools")

# Names that MIL cannot have, two that it cannot tell apart, and square matrices, whose shape does not say how they lie.
NET = """
<ir_version: 10, opset_import: ["": 21]>
net (float[1, 3, 6, 6] image) => (float[1, 8] out) {
  c = Conv <pads = [1, 1, 1, 1]> (image, WEIGHT, BIAS)
  r = Relu (c)
  g = GlobalAveragePool (r)
  f = Flatten (g)
  h = Gemm (f, SQUARE, SHIFT)
  i = Relu (h)
  j = MatMul (i, MIX)
  out = MatMul (j, MIX2)
}
"""
NAMES = {
    "WEIGHT": ("stem.0/weight", (8, 3, 3, 3)),
    "BIAS": ("stem.0/bias", (8,)),
    "SQUARE": ("fc.weight", (8, 8)),
    "SHIFT": ("fc.bias", (8,)),
    "MIX": ("mix.w", (8, 8)),
    "MIX2": ("mix/w", (8, 8)),
}


def _net(folder: Path, nudge: float = 0.0) -> ir.Model:
    model = onnx.parser.parse_model(NET)
    rng, noise = np.random.default_rng(0), np.random.default_rng(1)
    for node in model.graph.node:
        node.input[:] = [NAMES[name][0] if name in NAMES else name for name in node.input]
    for name, shape in NAMES.values():
        values = rng.standard_normal(shape) + nudge * noise.standard_normal(shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    path = folder / "net.onnx"
    onnx.save(model, path)
    return clean_up(import_model(str(path)).model)


def _quantized(hub: ir.Model) -> Quantized:
    images = np.random.default_rng(2).standard_normal((64, 3, 6, 6)).astype(np.float32)
    return quantize(hub, make_dataset({"image": images}, hub_inputs(hub), where="test"))


def _export(model: ir.Model, path: Path, target: str = "iOS17") -> Path:
    options = ExportOptions(precision=Precision.INT8, deployment_target=target)
    return EXPORTERS.get("coreml").export(model, path, options).path


def _release(path: Path, archive: str | None = None) -> PreviousRelease:
    return PreviousRelease("before", (PreviousArtifact(path.name, "coreml", "int8", (), path, archive),))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "packed"])
@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_a_package_gives_back_the_specification(tmp_path: Path, target: str, packed: bool) -> None:
    hub = _net(tmp_path)
    made = _quantized(hub)
    path = _export(made.model, tmp_path / "net.mlpackage", target)
    if packed:
        pack_folder(path, tmp_path / "net.zip")
        shutil.rmtree(path)
        path = tmp_path / "net.zip"
    numbers = read_numbers(_release(path, "zip" if packed else None), hub)
    assert {n: p for n, p in made.spec.activations.items() if numbers.activations.get(n) != p} == {}
    nodes = {str(n.name): n for n in made.model.graph}
    checked = set()
    for constant in made.spec.constants:
        producer = nodes[constant.node].inputs[constant.index].producer()  # type: ignore[union-attr]
        weight = nodes[constant.node].inputs[1].name.removesuffix("/dequantized")  # type: ignore[union-attr]
        table = numbers.biases if constant.role is Role.BIAS else numbers.constants
        if weight in ("mix.w", "mix/w"):  # both are "mix_w" in MIL: neither may be taken for the other
            assert weight not in table
            continue
        codes = producer.inputs[0].const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_array_equal(table[weight].codes, codes)
        np.testing.assert_array_equal(table[weight].params.scale, constant.params.scale)
        assert table[weight].params.axis == constant.params.axis
        checked.add((weight, constant.role))
    assert len(checked) == 4


def test_a_light_fine_tune_keeps_the_package_s_numbers(tmp_path: Path) -> None:
    before = _export(_quantized(_net(tmp_path)).model, tmp_path / "before.mlpackage")
    hub = _net(tmp_path, 0.0004)
    fresh = _quantized(hub)
    data = make_dataset(
        {"image": np.random.default_rng(3).standard_normal((64, 3, 6, 6)).astype(np.float32)},
        hub_inputs(hub),
        where="test",
    )
    found = stick(fresh, hub, read_numbers(_release(before), hub), QuantizeOptions(), make_bench(hub, data))
    assert found.how is not None and found.chosen is not None
    assert found.how.kept_codes > 0.6  # the two matrices that go by one identifier are a third of all codes
    patches = []
    for model, name in ((fresh.model, "fresh.mlpackage"), (found.chosen.model, "kept.mlpackage")):
        new = _export(model, tmp_path / name)
        patches.append(predict_updates(_release(before), [(new, "coreml", "int8", ())])[0].patch_bytes)
    assert patches[1] < patches[0]


def test_a_damaged_package_is_refused(tmp_path: Path) -> None:
    hub = _net(tmp_path)
    path = _export(_quantized(hub).model, tmp_path / "net.mlpackage")
    weights = next(path.rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match=r"before: .*weight\.bin"):
        read_numbers(_release(path), hub)
    (tmp_path / "net.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="before"):
        read_numbers(_release(tmp_path / "net.zip", "zip"), hub)
