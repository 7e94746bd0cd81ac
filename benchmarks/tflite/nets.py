"""The matrix: timm nets with seeded random weights, as our hub, as ONNX and as calibration data, in a folder that is kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.architectures import SIZES

NETS = (
    *("mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_lite0", "mobilenetv4_conv_small", "ghostnet_100"),
    *("resnet18", "regnetx_002", "mobilevit_xxs", "convnext_atto", "deit_tiny_patch16_224"),
)
CALIBRATED = 8  # images; what is measured is time, so the ranges need to be plausible only
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Net:
    """``hub`` and ``quantized`` are ONNX files of our own hub; ``data``: [CALIBRATED, 3, size, size] float32, an .npy file."""

    name: str
    size: int
    folder: Path

    @property
    def hub(self) -> Path:
        return self.folder / "hub.onnx"

    @property
    def quantized(self) -> Path:
        return self.folder / "quantized.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npy"


def prepare(name: str, work: Path) -> Net:
    """Make what is missing of the net's files."""
    net = Net(name, SIZES.get(name, 224 if "224" in name else 128), work / name)
    net.folder.mkdir(parents=True, exist_ok=True)
    if not net.data.exists():
        images = np.random.default_rng(0).random((CALIBRATED, 3, net.size, net.size)).astype(np.float32)
        np.save(net.data, images)
    if not net.hub.exists():
        _import(net)
    if not net.quantized.exists():
        _quantize(net)
    return net


def _import(net: Net) -> None:
    import torch

    from compiler.importers import import_model
    from compiler.importers.base import ImportOptions
    from tests.timm_models import create

    example = torch.from_numpy(np.load(net.data)[:1])
    source = net.folder / "source.pt2"
    torch.export.save(torch.export.export(create(net.name), (example,)), source)
    ir.save(import_model(str(source), ImportOptions()).model, net.hub)
    source.unlink()


def _quantize(net: Net) -> None:
    from compiler.calibration.dataset import make_dataset
    from compiler.hubfacts import hub_inputs
    from compiler.quantization.engine import quantize
    from compiler.quantization.plan import QuantizeOptions

    model = ir.load(net.hub)
    data = make_dataset({str(model.graph.inputs[0].name): np.load(net.data)}, hub_inputs(model), where="benchmark")
    ir.save(quantize(model, data, QuantizeOptions()).model, net.quantized)
