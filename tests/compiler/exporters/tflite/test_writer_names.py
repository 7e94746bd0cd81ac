"""Names of tensors: one each, and the hub's where it has one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite.writer import GraphWriter
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.importers.tflite.reader import read_graph
from compiler.passes import clean_up
from compiler.quantization.engine import quantize
from profiles.schema import Precision
from tests.compiler.small_net import save_net


def test_a_tensor_that_has_the_name_keeps_it() -> None:
    writer = GraphWriter()
    one, two = (writer.tensor(name, (1,), np.dtype(np.float32)) for name in ("logits", "other"))
    writer.rename(one, "logits")
    writer.rename(two, "logits")
    assert (writer.name(one), writer.name(two)) == ("logits", "logits/1")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_outputs_go_by_the_name_of_the_hub(precision: Precision, tmp_path: Path) -> None:
    save_net(tmp_path / "net.onnx")
    hub = clean_up(import_model(str(tmp_path / "net.onnx")).model)
    if precision is Precision.INT8:
        images = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
        hub = quantize(hub, make_dataset({"image": images}, hub_inputs(hub), where="test")).model
    path = EXPORTERS.get("tflite").export(hub, tmp_path / "net.tflite", ExportOptions(precision=precision)).path
    graph = read_graph(path)
    assert [graph.tensors[index].name for _, index in graph.outputs] == ["logits"]
