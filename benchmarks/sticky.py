"""`python -m benchmarks.sticky`: INT8 updates with and without numbers kept from the release before.

A MobileNetV2-like net is trained on scikit-learn's digits and fine-tuned in several ways. Every pair is quantized twice: afresh,
and holding on to the previous release's numbers at the gate's default. Shown are patches of both against the previous artifact,
by the same codec, and what holding on cost: signal to noise and answers against the new float model, on held-out images.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.previous.find import PreviousArtifact, PreviousRelease
from compiler.previous.numbers import read_numbers
from compiler.publish.delta import encode_delta
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import judged_on
from compiler.quantization.sticky import stick
from compiler.verification.metrics import parity
from profiles.schema import Precision
from runtimes.session import Array, run_dataset

CALIBRATED = 200
FORMATS = {"onnx": ".onnx", "tflite": ".tflite"}


def tune(net: Any, images: Array, labels: Array, kind: str) -> Any:
    """A copy of ``net`` fine-tuned on the second half of the training images."""
    import torch

    torch.manual_seed(1)
    tuned = copy.deepcopy(net)
    frozen_norms = kind != "AdamW, norms moving"
    parameters = list(tuned[-1].parameters() if kind == "head only" else tuned.parameters())
    optimizers: dict[str, Callable[[], Any]] = {
        "head only": lambda: torch.optim.SGD(parameters, 0.02),
        "light SGD, norms frozen": lambda: torch.optim.SGD(parameters, 0.001),
        "SGD, norms frozen": lambda: torch.optim.SGD(parameters, 0.01),
        "AdamW, norms frozen": lambda: torch.optim.AdamW(parameters, 1e-4),
        "AdamW, norms moving": lambda: torch.optim.AdamW(parameters, 1e-4),
    }
    optimizer = optimizers[kind]()
    tuned.train(not frozen_norms)
    x, y = torch.from_numpy(images[500:1000]), torch.from_numpy(labels[500:1000])
    for _ in range(3):
        for rows in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(tuned(x[rows]), y[rows]).backward()
            optimizer.step()
    return tuned.eval()


KINDS = ("head only", "light SGD, norms frozen", "SGD, norms frozen", "AdamW, norms frozen", "AdamW, norms moving")


def hub_of(net: Any, images: Array, folder: Path) -> ir.Model:
    import torch

    path = folder / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.from_numpy(images[:1]),)), path)
    return import_model(str(path)).model


def write(model: ir.Model, folder: Path, stem: str) -> dict[str, Path]:
    options = ExportOptions(precision=Precision.INT8)
    folder.mkdir(exist_ok=True)
    return {
        fmt: EXPORTERS.get(fmt).export(model, folder / f"{stem}{suffix}", options).path
        for fmt, suffix in FORMATS.items()
    }


def main() -> None:
    from benchmarks.quantization.nets import digits, trained

    images, labels = digits()
    net = trained("mobilenetv2-like", images, labels)
    columns = "fine-tune, tolerance, codes kept, SQNR afresh, SQNR kept, answers afresh, answers kept, format, file"
    header = [*columns.split(", "), "patch afresh", "patch kept", "times smaller"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hub = hub_of(net, images, folder)
        data = dataset(hub, images[:CALIBRATED])
        before = write(quantize(hub, data).model, folder / "before", "net")
        previous = PreviousRelease(
            "before", tuple(PreviousArtifact(p.name, f, "int8", (), p, None) for f, p in before.items())
        )
        for kind in KINDS:
            for line in rows(kind, hub_of(tune(net, images, labels, kind), images, folder), images, previous, folder):
                print(line, flush=True)


def dataset(hub: ir.Model, images: Array) -> Dataset:
    return make_dataset({hub_inputs(hub)[0].name: images}, hub_inputs(hub), where="digits")


def rows(kind: str, hub: ir.Model, images: Array, previous: PreviousRelease, folder: Path) -> list[str]:
    calibration, unseen = dataset(hub, images[:CALIBRATED]), dataset(hub, images[1000:])
    fresh = quantize(hub, calibration)
    bench = judged_on(hub, calibration, dataset(hub, images[CALIBRATED : CALIBRATED + 100]))
    sticky = stick(fresh, hub, read_numbers(previous, hub), QuantizeOptions(), bench)
    kept = sticky.chosen or fresh
    with open_hub(hub) as session:
        truth = run_dataset(session, dict(unseen.feeds))
    scores = []
    for model in (fresh.model, kept.model):
        with open_hub(model) as session:
            scores.append(parity(run_dataset(session, dict(unseen.feeds)), truth))
    lines = []
    for fmt, old in {a.format: a.file for a in previous.artifacts}.items():
        sizes = []
        for model, stem in ((fresh.model, "fresh"), (kept.model, "kept")):
            new = write(model, folder / stem, "net")[fmt]
            sizes.append(encode_delta(old, new, folder / "patch").size_bytes)
        how = sticky.how
        cells = [kind, *((f"{how.tolerance:g}", f"{100 * how.kept_codes:.1f} %") if how else ("none", "-"))]
        cells += [f"{s.snr_db:.1f} dB" for s in scores]
        cells += [f"{100 * (s.agreement or 0):.1f} %" for s in scores]
        cells += [fmt, f"{old.stat().st_size:,}", f"{sizes[0]:,}", f"{sizes[1]:,}", f"{sizes[0] / sizes[1]:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
