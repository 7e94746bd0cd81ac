"""Numbers of the release before: read back exactly, kept where they fit, given up where the gate says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.errors import DataError
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.passes import clean_up
from compiler.previous.find import PreviousArtifact, PreviousRelease, find_previous
from compiler.previous.numbers import Numbers, read_numbers
from compiler.previous.predict import predict_updates
from compiler.previous.recipe import advice
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import make_bench
from compiler.quantization.spec import Role
from compiler.quantization.sticky import ALLOWED_LOSS_DB, Sticky, stick
from profiles.schema import Precision
from tests.compiler.small_net import save_net

INT8 = ExportOptions(precision=Precision.INT8)


def _hub(folder: Path, nudge: float) -> ir.Model:
    path = folder / f"net-{nudge}.onnx"
    save_net(path, width=48, nudge=nudge)
    return clean_up(import_model(str(path)).model)


def _data(hub: ir.Model) -> Dataset:
    images = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    return make_dataset({"image": images}, hub_inputs(hub), where="test")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quantized, PreviousRelease]:
    folder = tmp_path_factory.mktemp("first")
    hub = _hub(folder, 0.0)
    made = quantize(hub, _data(hub))
    artifacts = []
    for fmt, suffix in (("onnx", ".onnx"), ("tflite", ".tflite"), ("coreml", ".mlpackage")):
        path = EXPORTERS.get(fmt).export(made.model, folder / f"net{suffix}", INT8).path
        artifacts.append(PreviousArtifact(path.name, fmt, "int8", (), path, None))
    return made, PreviousRelease("the first", tuple(artifacts))


@pytest.mark.parametrize("fmt", ["onnx", "tflite", "coreml"])
def test_numbers_read_back_are_those_of_the_specification(
    fmt: str, first: tuple[Quantized, PreviousRelease], tmp_path: Path
) -> None:
    made, release = first
    only = PreviousRelease("one", tuple(a for a in release.artifacts if a.format == fmt))
    numbers = read_numbers(only, _hub(tmp_path, 0.0))
    for name, params in made.spec.activations.items():
        # A .tflite file names a tensor once; what only reshapes it has no name there.
        assert numbers.activations.get(name, params if name == "f" and fmt == "tflite" else None) == params, name
    nodes = {str(n.name): n for n in made.model.graph}
    for constant in made.spec.constants:
        weight = made.spec.constant(constant.node, 1)
        found = _found(numbers, constant.node, constant.role, nodes)
        assert weight is not None
        np.testing.assert_array_equal(found.params.scale, constant.params.scale)
        codes = nodes[constant.node].inputs[constant.index].producer().inputs[0].const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_array_equal(found.codes, codes)


def _found(numbers: Numbers, node: str, role: Role, nodes: dict[str, ir.Node]):  # type: ignore[no-untyped-def]
    weight = nodes[node].inputs[1]
    assert weight is not None
    assert weight.name is not None
    name = weight.name.removesuffix("/dequantized")
    return numbers.biases[name] if role is Role.BIAS else numbers.constants[name]


def _stuck(folder: Path, nudge: float, release: PreviousRelease) -> tuple[Quantized, Sticky, ir.Model]:
    hub = _hub(folder, nudge)
    fresh = quantize(hub, _data(hub))
    found = stick(fresh, hub, read_numbers(release, hub), QuantizeOptions(), make_bench(hub, _data(hub)))
    return fresh, found, hub


def test_an_unchanged_model_keeps_everything(tmp_path: Path, first: tuple[Quantized, PreviousRelease]) -> None:
    _, found, hub = _stuck(tmp_path, 0.0, first[1])
    assert found.how is not None
    assert found.how.kept_codes == 1.0
    assert found.chosen is not None
    path = EXPORTERS.get("onnx").export(found.chosen.model, tmp_path / "again.onnx", INT8).path
    # Only the digest of the specification may differ: it records how the calibration went.
    assert predict_updates(first[1], [(path, "onnx", "int8", ())])[0].patch_bytes < 300
    assert advice(hub, read_numbers(first[1], hub)) == ()


def test_a_light_fine_tune_sends_much_less(tmp_path: Path, first: tuple[Quantized, PreviousRelease]) -> None:
    fresh, found, _ = _stuck(tmp_path, 0.0004, first[1])
    assert found.chosen is not None
    assert found.how is not None
    assert found.how.score.sqnr_db >= found.fresh.sqnr_db - ALLOWED_LOSS_DB
    sizes = []
    for model, name in ((fresh.model, "fresh.onnx"), (found.chosen.model, "kept.onnx")):
        path = EXPORTERS.get("onnx").export(model, tmp_path / name, INT8).path
        sizes.append(predict_updates(first[1], [(path, "onnx", "int8", ())])[0].patch_bytes)
    assert sizes[1] < sizes[0] / 2


def test_another_model_altogether_keeps_next_to_nothing(
    tmp_path: Path, first: tuple[Quantized, PreviousRelease]
) -> None:
    """The old numbers score well on their own model; held against the new one they must not be taken."""
    _, found, hub = _stuck(tmp_path, 0.5, first[1])
    assert found.how is None or found.how.kept_codes < 0.2
    if found.how is not None:
        assert found.how.score.sqnr_db >= found.fresh.sqnr_db - ALLOWED_LOSS_DB
    assert any("lower learning rate" in line for line in advice(hub, read_numbers(first[1], hub)))


def test_every_attempt_that_was_taken_respects_the_loss(
    tmp_path: Path, first: tuple[Quantized, PreviousRelease]
) -> None:
    _, found, _ = _stuck(tmp_path, 0.005, first[1])
    assert found.attempts
    for attempt in found.attempts:
        lost = found.fresh.sqnr_db - attempt.score.sqnr_db
        assert attempt.accepted is False or lost <= ALLOWED_LOSS_DB


def test_places_without_a_release_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no earlier release"):
        find_previous(str(tmp_path), "net")
    with pytest.raises(DataError, match="no INT8 artifact"):
        read_numbers(PreviousRelease("empty", ()), _hub(tmp_path, 0.0))
