"""Networks as torch.onnx.export writes them, held against PyTorch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from profiles.schema import Precision
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import hub

pytestmark = pytest.mark.slow
_LIBRARIES: list[Any] = []  # an operator lives as long as the library that defined it


def _network(name: str) -> Any:
    """Random weights from a fixed seed; batch-norm parameters are drawn too, because timm zeroes some of them."""
    import torch

    # timm imports torchvision, whose wheel names two operators that it defines only beside CUDA.
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=10).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return network


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_timm_network(tmp_path: Path, name: str) -> None:
    import torch

    network = _network(name)
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    program = torch.onnx.export(network, (x,), dynamo=True, opset_version=21, verbose=False, input_names=["x"])
    assert program is not None
    model = hub(program.model_proto)
    with torch.no_grad():
        want = network(x).numpy()
    # float16: two roundings by 2**-11 per convolution, of which resnet18 has 20 and mobilenetv3 52, as in test_real_models.
    for precision, bound in (("fp32", 1e-4), ("fp16", 2 * 52 * 2**-11)):
        path = tmp_path / f"{precision}.mlpackage"
        EXPORTER.export(model, path, ExportOptions(Precision(precision)))
        with open_session(path, runtime="coreml-reference") as session:
            (got,) = session.run({"x": x.numpy()}).values()
        assert float(np.abs(got - want).max() / np.ptp(want)) <= bound
