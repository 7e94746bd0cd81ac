"""Trains the nets of ``nets`` here and now, and keeps what it trained by the content of everything it depends on."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.quantization.data import Labelled, boxes, digits, mnist

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
FORMAT_VERSION = 1  # raise it when training changes


@dataclass(frozen=True, slots=True)
class Trained:
    """``onnx``: opset 18, batch 1. ``program``: the same net by torch.export, for peers that quantize PyTorch."""

    onnx: Path
    program: Path
    data: Labelled
    hard: bool


def trained(name: str, realdata: Path, cache: Path) -> Trained:
    """The net called ``name``, trained from seed 0 unless ``cache`` has it."""
    from benchmarks.quantization.nets import NETS

    net = NETS[name]
    data = digits() if net.data == "digits" else mnist(realdata)
    folder = cache / "nets" / f"{name.replace(' ', '-').replace(':', '-').replace(',', '')}-{_key(name, data)}"
    if not folder.is_dir():
        _fill(name, data, folder)
    return Trained(folder / "net.onnx", folder / "net.pt2", data, net.hard)


def _key(name: str, data: Labelled) -> str:
    """A digest of everything that the trained net depends on."""
    import torch

    from benchmarks.quantization.nets import NETS

    digest = hashlib.sha256(f"{FORMAT_VERSION} {name} {NETS[name].epochs} {torch.__version__}".encode())
    for path in sorted(p for p in HERE.glob("nets/*.py") if p.name != "__init__.py"):
        digest.update(path.read_bytes())
    digest.update(data.images.tobytes())
    return digest.hexdigest()[:16]


def _fill(name: str, data: Labelled, folder: Path) -> None:
    import torch

    from benchmarks.quantization.nets import NETS

    torch.manual_seed(0)
    made = _train(NETS[name].make(), data, NETS[name].epochs)
    if NETS[name].after is not None:
        NETS[name].after(made)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    example = (torch.zeros(1, *data.images.shape[1:]),)
    torch.onnx.export(made, example, str(scratch / "net.onnx"), dynamo=False, opset_version=18, verbose=False)
    torch.export.save(torch.export.export(made, example), scratch / "net.pt2")
    try:
        scratch.replace(folder)
    except OSError:  # another run trained the same net in the meantime
        shutil.rmtree(scratch)


def _train(net: nn.Module, data: Labelled, epochs: int, rows: int = 100) -> nn.Module:
    """Adam with a cosine on the samples for training; returns the net in evaluation mode."""
    import torch
    from torch import nn

    from benchmarks.quantization.nets.hard import BOX_SCALE

    x, y = torch.from_numpy(data.images[: data.trained]), torch.from_numpy(data.labels[: data.trained])
    box = torch.from_numpy(boxes(data.images[: data.trained]))
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * int(np.ceil(len(x) / rows)))
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(rows):
            answer = net(x[chosen])
            loss = nn.functional.cross_entropy(answer[:, :10], y[chosen])
            if answer.shape[1] > 10:
                loss = loss + nn.functional.mse_loss(answer[:, 10:] / BOX_SCALE, box[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()
