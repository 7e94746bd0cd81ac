"""`python -m benchmarks.sticky [--net NET.pt2] [--only KIND]`: INT8 updates with and without numbers kept from the release before.

A MobileNetV2 of 2.2 million parameters is trained on digits and fine-tuned in several ways. Every pair is quantized twice:
afresh, and holding on to the previous release's numbers at the gate's default. Shown are patches of both against the previous
artifact, by the same codec, and what holding on cost: signal to noise and answers against the new float model, on held-out images.
NET.pt2 is the trained net, as `benchmarks.delta_releases --keep FOLDER` leaves it in FOLDER/before.
"""

from __future__ import annotations

import argparse
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
KINDS = ("head only", "light SGD, norms frozen", "SGD, norms frozen", "AdamW, norms frozen", "AdamW, norms moving")


def tune(net: Any, kind: str) -> Any:
    """A copy of ``net`` fine-tuned on images that it has not seen."""
    import torch

    # Late: delta_releases takes hub_of from here.
    from benchmarks.delta_releases import fit

    tuned = copy.deepcopy(net)
    parameters = list(tuned[-1].parameters() if kind == "head only" else tuned.parameters())
    optimizers: dict[str, Callable[[], Any]] = {
        "head only": lambda: torch.optim.SGD(parameters, 0.005, 0.9),
        "light SGD, norms frozen": lambda: torch.optim.SGD(parameters, 0.0005, 0.9),
        "SGD, norms frozen": lambda: torch.optim.SGD(parameters, 0.005, 0.9),
        "AdamW, norms frozen": lambda: torch.optim.AdamW(parameters, 1e-4),
        "AdamW, norms moving": lambda: torch.optim.AdamW(parameters, 1e-4),
    }
    return fit(tuned, optimizers[kind](), slice(900, 1500), 2, moving_norms=kind == "AdamW, norms moving")


def trained(path: Path | None) -> Any:
    """The net of the release before: from ``path``, or trained now as delta_releases trains it."""
    import torch

    from benchmarks.delta_releases import fit, mobilenet_v2

    torch.manual_seed(0)
    net = mobilenet_v2(10)
    if path is None:
        return fit(net, torch.optim.Adam(net.parameters(), 1e-3), slice(0, 900), 6, moving_norms=True)
    net.load_state_dict(torch.export.load(path).state_dict)
    return net.eval()


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
    from benchmarks.delta_releases import pictures

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", type=Path)
    parser.add_argument("--only", choices=KINDS)
    arguments = parser.parse_args()
    if arguments.net is not None and not arguments.net.is_file():
        parser.error(f"--net {arguments.net}: no such file; leave it out, and the net is trained here")
    images, _ = pictures()
    net = trained(arguments.net)
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
        for kind in [arguments.only] if arguments.only else KINDS:
            for line in rows(kind, hub_of(tune(net, kind), images, folder), images, previous, folder):
                print(line, flush=True)


def dataset(hub: ir.Model, images: Array) -> Dataset:
    return make_dataset({hub_inputs(hub)[0].name: images}, hub_inputs(hub), where="digits")


def rows(kind: str, hub: ir.Model, images: Array, previous: PreviousRelease, folder: Path) -> list[str]:
    calibration, unseen = dataset(hub, images[:CALIBRATED]), dataset(hub, images[1500:])
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
